"""Weights in TensorFlow's own format (`….index` and `….data-…`), also for models of Keras 3, which cannot read it.

Such a checkpoint is a graph of objects: the model, its layers, their variables, each under the name of the attribute
that held it. Keras 2 numbers layers (`layer_with_weights-3`). So the graph is walked beside the model at hand.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cas.errors import CasError, ContentError
from cas.load.saved_models import require_tensorflow

log = logging.getLogger("cas.load")

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"
_LAYER = re.compile(r"layer_with_weights-(\d+)\Z")
# What hangs below a model and is none of its weights, or is the same variables once more.
_PASSED_OVER = re.compile(
    r"(?:optimizer|keras_api|history|save_counter|metrics|keras_metrics|loss|\w*losses|\w*variables|\w*_function|layer-\d+"
    r"|layer_metrics|signatures)\Z"
)


def read_tensorflow(start: Path) -> dict[str, Any]:
    """Return the variables in TensorFlow's files as arrays of numpy, by the path from the model to each.

    Raises:
        ContentError: they are damaged.
    """
    reader = _open(start)
    names = sorted(reader.get_variable_to_shape_map())
    suffix = f"/.ATTRIBUTES/{_VALUE}"
    wanted = [name for name in names if name != _GRAPH and not name.startswith("save_counter")]
    return {name.removesuffix(suffix): _tensor(reader, start, name) for name in wanted}


def fill_from_tensorflow(
    model: Any, start: Path, builder: str, said: Mapping[str, Any], *, may_wait: bool = False
) -> Any:
    """Load TensorFlow's files into a model, in place, and return it.

    Where it `may_wait`, a model whose layers are built by its first call is filled then, as Keras 2 did: what does not
    fit is an error of that call.

    Raises:
        ContentError: they are damaged, or do not fit.
        CasError: it is no model that has weights.
    """
    tf = require_tensorflow()
    if not hasattr(model, "load_weights"):  # a module of TensorFlow without Keras
        if not isinstance(model, tf.Module):
            raise CasError(f"{builder} gave a {type(model).__name__}, not a model of TensorFlow")
        return _restore(tf, model, start, builder)
    if not _is_keras_3(model):
        try:
            model.load_weights(str(start), **said).expect_partial()
        except (ValueError, OSError, tf.errors.OpError) as error:
            raise _misfit(start, builder, str(error)) from error
        return model
    walk = _Walk(_open(start), start, builder)
    try:
        walk.fill(model)
    except _NotBuiltError:
        if not may_wait:
            raise
        walk.read()
        _when_built(model, functools.partial(walk.fill, model, is_built=True))
        log.warning("%s: loaded when the model is first called, which makes its weights", start.name)
    return model


def _when_built(model: Any, fill: Callable[[], None]) -> None:
    """Call `fill` as soon as the layers of a model have been built, before it computes anything with them."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    tf = require_tensorflow()
    build, call = model.build, model.call

    def is_complete() -> bool:
        return all(layer.built for layer in model._flatten_layers(include_self=False))

    def fill_once() -> None:
        if in_stateless_scope():  # Keras asks for shapes only, and variables have no values yet
            return
        with tf.init_scope():  # not as a part of the function that is traced, where it is
            fill()
        model.build = build
        del model.call

    @functools.wraps(build)
    def build_and_fill(*arguments: Any, **said: Any) -> None:
        build(*arguments, **said)
        if is_complete():
            fill_once()

    @functools.wraps(call)
    def fill_and_call(*arguments: Any, **said: Any) -> Any:
        if not is_complete() and not in_stateless_scope():  # Keras could not tell what a call builds, so it is tried
            call(*arguments, **said)
        fill_once()
        return call(*arguments, **said)

    model.build, model.call = build_and_fill, fill_and_call


def _restore(tf: Any, model: Any, start: Path, builder: str) -> Any:
    try:
        tf.train.Checkpoint(root=model).read(str(start)).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise _misfit(start, builder, str(error)) from error
    return model


def _is_keras_3(model: Any) -> bool:
    import keras

    return keras.__version__.startswith("3") and any(
        kind.__module__.startswith(("keras.src.", "keras.models")) for kind in type(model).__mro__
    )


class _NotBuiltError(ContentError):
    """The model has no weights yet, or not all: its layers are built by its first call."""


def _misfit(start: Path, builder: str, why: str) -> ContentError:
    return ContentError(f"{start} does not fit the model of {builder}: {' '.join(why.split())[:300]}")


def _open(start: Path) -> Any:
    tf = require_tensorflow()
    try:
        return tf.train.load_checkpoint(str(start))
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ContentError(f"{start}: not whole weights of TensorFlow: {str(error).partition(chr(10))[0]}") from error


def _tensor(reader: Any, start: Path, key: str) -> Any:
    tf = require_tensorflow()
    try:
        return reader.get_tensor(key)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ContentError(f"{start}: {key}: {str(error).partition(chr(10))[0][:200]}") from error


class _Walk:
    """Goes through a checkpoint's graph and a model of Keras 3 side by side."""

    def __init__(self, reader: Any, start: Path, builder: str) -> None:
        from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

        self._reader = reader
        self._start = start
        self._builder = builder
        graph = TrackableObjectGraph()
        try:
            graph.ParseFromString(reader.get_tensor(_GRAPH))
        except Exception as error:  # of protobuf, or there is none: TensorFlow 1 wrote names only
            raise _misfit(start, builder, "it was not saved by save_weights of Keras") from error
        self._nodes = graph.nodes
        self._shapes = reader.get_variable_to_shape_map()
        self._values: dict[str, Any] = {}  # those that were read before, by their key
        self._done: dict[int, Any] = {}  # by the variable's id
        self._seen: set[int] = set()

    def fill(self, model: Any, *, is_built: bool | None = None) -> None:
        """Assign every weight of a model.

        Raises:
            ContentError: some have no value in the checkpoint, or one of another shape.
        """
        self._done.clear()
        self._seen.clear()
        root = self._root(model)
        if model.built if is_built is None else is_built:
            self._fill(model, root)
            return
        try:
            self._fill(model, root)  # all may have been made with the model
            if len(self._done) == len({self._key(leaf) for leaf in self._leaves(root)}):
                return
        except ContentError:
            pass
        what = "some of its layers have" if model.weights else "it has"
        why = f"{what} no weights yet; build it, or call it once, before"
        raise _NotBuiltError(str(_misfit(self._start, self._builder, why)))

    def read(self) -> None:
        """Read all values, to be assigned when the files may be gone."""
        keys = {self._key(leaf) for leaf in self._leaves(0)}
        self._values = {key: _tensor(self._reader, self._start, key) for key in keys if key is not None}
        self._start = Path(self._start.name)  # of a folder that only this load knows, maybe

    def _fill(self, model: Any, root: int) -> None:
        self._visit(root, model)
        absent = [weight.path for weight in model.weights if id(weight) not in self._done]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise _misfit(self._start, self._builder, f"it has no value for {absent[0]}{more}")

    def _root(self, model: Any) -> int:
        """Return the model's node: the first, or what `tf.train.Checkpoint(model=…)` has below it."""
        children = self._children(0)
        inner = [name for name in ("model", "net", "root") if name in children]
        is_model = any(_LAYER.match(name) for name in children) or any(hasattr(model, name) for name in inner)
        return children[inner[0]] if inner and not is_model else 0

    def _children(self, node: int) -> dict[str, int]:
        found = {child.local_name: child.node_id for child in self._nodes[node].children}
        return {name: child for name, child in found.items() if not _PASSED_OVER.match(name)}

    def _visit(self, node: int, value: Any) -> None:
        if node in self._seen:
            return
        self._seen.add(node)
        children = self._children(node)
        layers = self._layers(children, value)
        lost: list[int] = []
        for name, child in children.items():
            found = layers[name] if name in layers else _member(value, name)
            key = self._key(child)
            if key is not None and _is_variable(found):
                self._assign(found, key)
            elif key is not None:
                lost.append(child)
            elif found is not None:
                self._visit(child, found)
            else:
                lost += self._leaves(child)
        self._match(lost, value)

    def _layers(self, children: Mapping[str, int], model: Any) -> dict[str, Any]:
        """Which layer each number means: by the names of the layers if all are the same, else by their order."""
        numbers = {name: int(found[1]) for name in children if (found := _LAYER.match(name))}
        if not numbers:
            return {}
        own = [layer for layer in getattr(model, "layers", ()) if layer.weights]
        named = {name: self._name(children[name]) for name in numbers}
        by_name = {layer.name: layer for layer in own}
        if len(set(named.values())) == len(numbers) and set(named.values()) == by_name.keys():
            return {name: by_name[str(title)] for name, title in named.items()}
        if len(own) != len(numbers):
            why = f"it has {len(numbers)} layers with weights, and the model has {len(own)}"
            raise _misfit(self._start, self._builder, why)
        return {name: own[number] for name, number in numbers.items() if number < len(own)}

    def _name(self, node: int) -> str | None:
        """The name of the layer whose node this is: the first part of its variables' names."""
        names = {self._full_name(leaf).split("/")[0] for leaf in self._leaves(node)}
        return names.pop() if len(names) == 1 else None

    def _leaves(self, node: int) -> list[int]:
        waiting, seen, found = [node], set(), []
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            if self._key(one) is not None:
                found.append(one)
            waiting.extend(self._children(one).values())
        return found

    def _key(self, node: int) -> str | None:
        for attribute in self._nodes[node].attributes:
            if attribute.name == _VALUE:
                return str(attribute.checkpoint_key)
        return None

    def _full_name(self, node: int) -> str:
        return next((a.full_name for a in self._nodes[node].attributes if a.name == _VALUE), "")

    def _match(self, lost: list[int], owner: Any) -> None:
        """Give values whose attribute is called otherwise today to the one weight of the layer that they can mean."""
        for node in lost:
            key = self._key(node)
            title = self._full_name(node).rpartition("/")[2].partition(":")[0]
            if key is None or not title:
                continue
            shape = tuple(self._shapes.get(key, ()))
            free = [one for one in getattr(owner, "weights", ()) if id(one) not in self._done]
            fitting = [one for one in free if one.name == title and tuple(one.shape) == shape]
            if len(fitting) == 1:
                self._assign(fitting[0], key)

    def _assign(self, variable: Any, key: str) -> None:
        value = self._values[key] if key in self._values else _tensor(self._reader, self._start, key)
        if tuple(variable.shape) != value.shape:
            why = f"{variable.path} has the shape {tuple(variable.shape)}, and its value {value.shape}"
            raise _misfit(self._start, self._builder, why)
        variable.assign(value)
        self._done[id(variable)] = variable


def _is_variable(value: Any) -> bool:
    return hasattr(value, "assign") and hasattr(value, "shape")


def _member(value: Any, name: str) -> Any:
    """Return what an object of the model holds under a name of the checkpoint's."""
    if name.isdigit() and isinstance(value, list | tuple):
        return value[int(name)] if int(name) < len(value) else None
    if isinstance(value, Mapping):
        return value.get(name)
    for candidate in _candidates(name):
        found = getattr(value, candidate, None)
        if found is not None:
            return found
    return None


def _candidates(name: str) -> Iterator[str]:
    yield name
    yield f"_{name}"
    yield name.lstrip("_")
    if name == "depthwise_kernel":  # of a layer that has no other kernel
        yield "kernel"


__all__ = ["fill_from_tensorflow", "read_tensorflow"]
