"""Graphs of layers that Keras 2 wrote, as Keras 3 writes them.

Both name the result of a layer's call by the layer and a number. Keras 2 begins at 1 where the layer is a model that
was made with an input (making it was call 0), Keras 3 at 0. Keras 2 has what is computed between layers (`x * 2`,
`x[:, 0]`) as layers that name a function of TensorFlow: these become operations of Keras, where it has the same one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_CONSTANT = "_CONSTANT_VALUE"  # where the first argument is no tensor
_BETWEEN_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"})  # the last until TensorFlow 2.3
_RECURRENT = frozenset({"RNN", "SimpleRNN", "GRU", "LSTM", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"})


@dataclass(frozen=True, slots=True)
class _Operation:
    """An operation of Keras, and where TensorFlow's arguments go; those not named here must have no effect."""

    module: str
    name: str
    second: str | None = None  # the argument that is given with the tensor
    settings: Mapping[str, str] = field(default_factory=dict)  # argument → what the operation calls it
    always: Mapping[str, Any] = field(default_factory=dict)  # what TensorFlow does and Keras has to be told


def _numpy(name: str, second: str | None = None, **settings: str) -> _Operation:
    return _Operation("keras.src.ops.numpy", name, second, settings)


def _nn(name: str, always: Mapping[str, Any] | None = None, **settings: str) -> _Operation:
    return _Operation("keras.src.ops.nn", name, None, settings, always or {})


_OPERATIONS: Mapping[str, _Operation] = {
    "__operators__.add": _numpy("Add", "y"),
    "__operators__.getitem": _numpy("GetItem", "slice_spec"),
    "math.add": _numpy("Add", "y"),
    "math.subtract": _numpy("Subtract", "y"),
    "math.multiply": _numpy("Multiply", "y"),
    "math.truediv": _numpy("TrueDivide", "y"),
    "math.pow": _numpy("Power", "y"),
    "math.maximum": _numpy("Maximum", "y"),
    "math.minimum": _numpy("Minimum", "y"),
    "linalg.matmul": _numpy("Matmul", "b"),
    "math.negative": _numpy("Negative"),
    "math.abs": _numpy("Absolute"),
    "math.square": _numpy("Square"),
    "math.sqrt": _numpy("Sqrt"),
    "math.exp": _numpy("Exp"),
    "math.log": _numpy("Log"),
    "math.tanh": _numpy("Tanh"),
    "math.reduce_mean": _numpy("Mean", axis="axis", keepdims="keepdims"),
    "math.reduce_sum": _numpy("Sum", axis="axis", keepdims="keepdims"),
    "math.reduce_max": _numpy("Max", axis="axis", keepdims="keepdims"),
    "math.reduce_min": _numpy("Min", axis="axis", keepdims="keepdims"),
    "clip_by_value": _numpy("Clip", clip_value_min="x_min", clip_value_max="x_max"),
    "concat": _numpy("Concatenate", axis="axis"),
    "stack": _numpy("Stack", axis="axis"),
    "reshape": _numpy("Reshape", shape="newshape"),
    "expand_dims": _numpy("ExpandDims", axis="axis"),
    "compat.v1.squeeze": _numpy("Squeeze", axis="axis"),
    "compat.v1.transpose": _numpy("Transpose", perm="axes"),
    "cast": _Operation("keras.src.ops.core", "Cast", None, {"dtype": "dtype"}),
    "math.sigmoid": _nn("Sigmoid"),
    "math.softplus": _nn("Softplus"),
    "nn.relu": _nn("Relu"),
    "nn.relu6": _nn("Relu6"),
    "nn.elu": _nn("Elu"),
    "nn.silu": _nn("Silu"),
    "nn.gelu": _nn("Gelu", {"approximate": False}, approximate="approximate"),
    "nn.leaky_relu": _nn("LeakyRelu", alpha="negative_slope"),
    "nn.softmax": _nn("Softmax", axis="axis"),
    # TensorFlow takes the root of max(the sum of squares, 1e-12), Keras the maximum of the root and this.
    "math.l2_normalize": _nn("Normalize", {"order": 2, "epsilon": 1e-6}, axis="axis"),
}
# Those of one kind of attribute, the type: of the nodes of TensorFlow's graph that the layers of 2020 name.
_NODES: Mapping[str, str] = {
    "Add": "math.add",
    "AddV2": "math.add",
    "Sub": "math.subtract",
    "Mul": "math.multiply",
    "RealDiv": "math.truediv",
    "Pow": "math.pow",
    "Maximum": "math.maximum",
    "Minimum": "math.minimum",
    "Neg": "math.negative",
    "Abs": "math.abs",
    "Square": "math.square",
    "Sqrt": "math.sqrt",
    "Exp": "math.exp",
    "Log": "math.log",
    "Tanh": "math.tanh",
    "Sigmoid": "math.sigmoid",
    "Softplus": "math.softplus",
    "Relu": "nn.relu",
    "Relu6": "nn.relu6",
    "Elu": "nn.elu",
}


def in_todays_graph(graph: dict[str, Any]) -> dict[str, Any]:
    """Return what a functional model is made of, with its calls as Keras 3 writes them; equal if Keras 3 wrote it.

    Raises:
        ValueError: it computes something between its layers that Keras 3 has no operation for.
    """
    calls = [call for layer in graph["layers"] for call in layer.get("inbound_nodes") or ()]
    is_new = all(isinstance(call, dict) and call.keys() == {"args", "kwargs"} for call in calls)
    return graph if is_new else _Graph(graph).rewritten()


class _Graph:
    """One functional model."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self._graph = graph
        self._layers = {layer["name"]: layer for layer in graph["layers"]}
        self._begun: dict[str, int] = {}  # layer → the number of its first call
        calls = [layer.get("inbound_nodes") for layer in graph["layers"]]
        for name, number, *_ in self._references([*calls, graph["output_layers"]]):
            self._begun[name] = min(number, self._begun.get(name, number))

    def rewritten(self) -> dict[str, Any]:
        """Return the model in Keras 3's words."""
        made = {"layers": [self._layer(layer) for layer in self._graph["layers"]]}
        for name in ("input_layers", "output_layers"):
            found = self._graph[name]
            # A single tensor was written as a list of one, and given and returned as itself.
            made[name] = self._ends(found[0] if _is_list_of_one(found) else found)
        return {**self._graph, **made}

    def _references(self, value: Any) -> Iterator[list[Any]]:
        """Yield every result of a call that is named in something, as [layer, number, index] or with arguments."""
        if self._is_reference(value):
            yield value
            value = value[3:]
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                yield from self._references(one)

    def _is_reference(self, value: Any) -> bool:
        if not isinstance(value, list) or len(value) not in (3, 4) or not isinstance(value[0], str):
            return False
        return value[0] in self._layers and isinstance(value[1], int) and isinstance(value[2], int)

    def _number(self, name: str, number: int) -> int:
        return number - self._begun[name] if _is_model(self._layers[name]) else number

    def _ends(self, value: Any) -> Any:
        """Return inputs or outputs. There Keras 3 counts functional models from 1, too, and sequential ones from 0."""
        if self._is_reference(value):
            name, number, index = value
            layer = self._layers[name]
            more = 1 if _is_model(layer) and layer["class_name"] != "Sequential" else 0
            return [name, self._number(name, number) + more, index]
        if isinstance(value, dict):
            return {key: self._ends(one) for key, one in value.items()}
        return [self._ends(one) for one in value]

    # --- calls ---------------------------------------------------------------------------------------------------

    def _layer(self, layer: dict[str, Any]) -> dict[str, Any]:
        calls = [self._call(call, layer) for call in layer.get("inbound_nodes") or ()]
        if layer["class_name"] in _BETWEEN_LAYERS:
            return _operation(layer, calls)
        # Its calls build it. Keras 2 told the shape of its first argument only, or mixed that with others'.
        return {**{name: value for name, value in layer.items() if name != "build_config"}, "inbound_nodes": calls}

    def _call(self, call: Any, layer: Mapping[str, Any]) -> dict[str, Any]:
        """Return one call of a layer: what it is given first, and arguments, which each tensor has once more."""
        arguments: dict[str, Any] = {}
        first = self._first(call, arguments)
        if _is_list_of_one(call):
            first = first[0]
        told = {name: self._argument(value) for name, value in arguments.items()}
        if layer["class_name"] in _RECURRENT:
            told = {name: value for name, value in told.items() if value is not None}
            if isinstance(first, list) and layer["config"].get("num_constants") is None:
                first, told["initial_state"] = first[0], first[1:]
        return {"args": [first], "kwargs": told}

    def _first(self, value: Any, arguments: dict[str, Any]) -> Any:
        if isinstance(value, list) and len(value) in (3, 4) and (value[0] == _CONSTANT or self._is_reference(value)):
            arguments.update(value[3] if len(value) == 4 else {})
            return _constant(value[2]) if value[0] == _CONSTANT else self._tensor(value)
        if isinstance(value, dict):
            return {key: self._first(one, arguments) for key, one in value.items()}
        if not isinstance(value, list):
            raise ValueError(f"its graph has {value!r:.60} where the result of a layer should be")
        return [self._first(one, arguments) for one in value]

    def _argument(self, value: Any) -> Any:
        if self._is_reference(value):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self._argument(one) for key, one in value.items()}
        return [self._argument(one) for one in value] if isinstance(value, list) else value

    def _tensor(self, reference: list[Any]) -> dict[str, Any]:
        name, number, index = reference[:3]
        history = [name, self._number(name, number), index]
        # Its shape and type are those of the result that is found there.
        return {"class_name": "__keras_tensor__", "config": {"shape": [], "dtype": "float32", "keras_history": history}}


def _is_list_of_one(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], list)


def _is_model(layer: Mapping[str, Any]) -> bool:
    return isinstance(layer["config"], dict) and isinstance(layer["config"].get("layers"), list)


# --- between layers ----------------------------------------------------------------------------------------------


def _operation(layer: Mapping[str, Any], calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the operation of Keras that a layer of TensorFlow's is, called as that was."""
    name, calls = _function(layer, calls)
    known = _OPERATIONS.get(name)
    if known is None:
        raise _unknown(name)
    made: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    for call in calls:
        arguments = {name: value for name, value in call["kwargs"].items() if name != "name"}
        first = list(call["args"])
        if known.second in arguments:
            value = arguments.pop(known.second)
            first.append(_slices(value) if known.name == "GetItem" else _constant(value))
        given = {key: arguments.pop(key) for key in known.settings if arguments.get(key) is not None}
        settings.append({known.settings[key]: value for key, value in given.items()})
        lost = [key for key, value in arguments.items() if value is not None and value is not False]
        if lost or settings[0] != settings[-1] or any(_has_tensor(value) for value in given.values()):
            raise _unknown(name, lost or list(given))
        made.append({"args": first, "kwargs": {}})
    said = {"name": layer["name"], **known.always, **(settings[0] if settings else {})}
    home = {"module": known.module, "class_name": known.name, "registered_name": known.name}
    return {**home, "config": said, "name": layer["name"], "inbound_nodes": made}


def _function(layer: Mapping[str, Any], calls: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return the function of TensorFlow that a layer calls, by the name it is exported under, and its arguments."""
    config = layer["config"]
    node = config.get("node_def")
    if layer["class_name"] != "TensorFlowOpLayer" or not isinstance(node, dict):
        return str(config.get("function")), calls
    name = _NODES.get(node["op"], f"raw_ops.{node['op']}")
    second = _OPERATIONS[name].second if name in _OPERATIONS else None
    found = []
    for call in calls:
        given = list(call["args"][0]) if isinstance(call["args"][0], list) else [call["args"][0]]
        for index, value in sorted((int(index), value) for index, value in (config.get("constants") or {}).items()):
            given.insert(index, value)
        if name not in _OPERATIONS or node.get("attr", {}).keys() - {"T"} or len(given) != (2 if second else 1):
            raise _unknown(name)
        found.append({"args": [_constant(given[0])], "kwargs": {second: given[1]} if second else {}})
    return name, found


def _unknown(name: str, arguments: Collection[str] = ()) -> ValueError:
    using = f" with {' and '.join(arguments)}" if arguments else ""
    return ValueError(
        f"it calls tf.{name}{using} between its layers, which cannot be put in the words of Keras 3:"
        " build the model in code and give that the weights, or load it with Keras 2 (tf_keras)"
    )


def _has_tensor(value: Any) -> bool:
    """Say whether the result of a layer is in a setting, which operations of Keras take as an argument only."""
    return isinstance(value, dict) or (isinstance(value, list) and any(_has_tensor(one) for one in value))


def _constant(value: Any) -> Any:
    """Return a number, a tensor or a table of numbers as an argument."""
    if not isinstance(value, list):
        return value
    kind = "float32" if any(isinstance(one, float) for one in _flat(value)) else "int32"
    return {"class_name": "__numpy__", "config": {"value": value, "dtype": kind}}


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _slices(value: Any) -> Any:
    """Return the key of `x[…]`, of which Keras 2 wrote slices without the name of their class."""
    if isinstance(value, list):
        return [_slices(one) for one in value]
    return {"class_name": "__slice__", "config": value} if isinstance(value, dict) and "start" in value else value


__all__ = ["in_todays_graph"]
