"""SavedModels of TensorFlow: a graph and its variables, with no Python code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError
from cas.load.forks import require_working_tensorflow
from cas.load.layouts import Layout
from cas.load.options import Options
from cas.load.permit import Permit

# Operations of a graph that write files where they like, call back into Python, run a graph out of a string, or talk to
# other machines. (The one that saves variables is in every SavedModel.) `PrintV2` is in many, and writes a file only
# where it names one.
_UNSAFE = re.compile(
    r"WriteFile|CreateSummary(?:File|Db)Writer|WriteSummary|WriteRawProtoSummary|ImportEvent"
    r"|DatasetToTFRecord(?:V2)?|ExperimentalDatasetToTFRecord|SaveDataset(?:V2)?|DistributedSave|SnapshotDataset(?:V2)?"
    r"|CacheDataset(?:V2)?|PyFunc|PyFuncStateless|EagerPyFunc|Rpc(?:Call|Client|Server|ServerStart|ServerRegister)"
    r"|DataServiceDataset(?:V[2-4])?|FileSystemSetConfiguration|DebugIdentity(?:V[23])?|DebugNumericSummary"
    r"|DebugNanCount|DumpTensor|CalibrationStatisticsSaver|DatasetFromGraph"
)
_FILE = "file://"
SERVE = ("serve",)  # the tag of the graph that is meant for inference


def require_tensorflow() -> Any:
    """Return the tensorflow package.

    Raises:
        CasError: it is not installed, or cannot work in this process.
    """
    require_working_tensorflow()
    try:
        import tensorflow
    except ImportError as error:
        if error.name != "tensorflow":
            raise
        raise CasError(
            "this checkpoint was made with TensorFlow, which is not installed: pip install 'checkpoint-cas[tensorflow]'"
        ) from error
    return tensorflow


def load_saved_model(
    layout: Layout, tags: Sequence[str] | None, options: Options, permit: Permit, *, whole: bool = False
) -> Any:
    """Return the trackable that TensorFlow makes of a SavedModel.

    It holds a graph and no Python code, but a graph is a program: parts of it run while it is loaded, and can write
    files. TensorFlow's saver is such a part of every model, so a scan finds only what no model needs.

    Raises:
        UnsafeContentError: the trust policy does not allow it.
        ContentError: it is damaged, or has no graph with these tags.
        NotFoundError: a trial was asked for.
        CasError: TensorFlow is not installed.
    """
    if whole:
        raise NotFoundError(f"{layout.file}: {layout.kind} has no trial in it; load() gives the model")
    if permit.safe_only:
        raise permit.refusal(f"{layout.file}: a SavedModel's graph is a program")
    tf = require_tensorflow()
    if permit.scans:
        _require_allowed(layout)
    wanted = list(tags) if tags is not None else list(SERVE)
    try:
        return tf.saved_model.load(str(layout.file), tags=wanted, **options.loader)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        message = str(error).partition("\n")[0][:300]
        raise ContentError(f"{layout.file}: TensorFlow cannot load it with the tags {wanted}: {message}") from error


def _require_allowed(layout: Layout) -> None:
    path, model = _parse(layout)
    if found := sorted({name for name in _names(model) if _UNSAFE.fullmatch(name) or name.startswith(_FILE)}):
        called = " and ".join(" ".join(name.split()) for name in found)[:300]
        raise UnsafeContentError(f"{path}: its graph would call {called}, which no model needs; trust=always loads it")


def _parse(layout: Layout) -> tuple[Path, Any]:
    """Return the file that TensorFlow will read, and what it says: as text, a name can be written in many ways."""
    from google.protobuf import message, text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    model = SavedModel()
    path = layout.file / "saved_model.pb"
    try:
        if path.is_file():
            model.ParseFromString(path.read_bytes())
        else:
            path = layout.file / "saved_model.pbtxt"
            text_format.Parse(path.read_text(encoding="utf-8"), model)
    except (message.DecodeError, text_format.ParseError, ValueError, OSError) as error:
        raise ContentError(f"{path}: not a whole SavedModel: {' '.join(str(error).split())[:200]}") from error
    return path, model


def _names(model: Any) -> Iterator[str]:
    """Yield what the graphs of a model and their functions call, and every string that is an attribute of a call."""
    for graph in (meta.graph_def for meta in model.meta_graphs):
        waiting = []
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                yield node.op
                waiting.extend(node.attr.values())
        for function in graph.library.function:
            waiting.extend(function.attr.values())
        while waiting:
            value = waiting.pop()
            for text in (value.s, *value.list.s):
                yield text.decode("utf-8", "replace")
            for function in (value.func, *value.list.func):  # which a call is given, with attributes for it
                yield function.name
                waiting.extend(function.attr.values())


__all__ = ["load_saved_model", "require_tensorflow"]
