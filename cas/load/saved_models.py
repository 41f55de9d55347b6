"""SavedModels of TensorFlow: a graph and its variables, with no Python code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError
from cas.load.forks import require_working_tensorflow
from cas.load.layouts import Layout
from cas.load.options import Options
from cas.load.permit import Permit

# Operations of a graph that write files where they like, call back into Python, or talk to other machines. (The one
# that saves variables is in every SavedModel.) `PrintV2` is in many, and writes a file only where it names one.
_UNSAFE = re.compile(
    rb"(?<![A-Za-z0-9_])(?:WriteFile|CreateSummary(?:File|Db)Writer|WriteSummary|WriteRawProtoSummary|ImportEvent"
    rb"|DatasetToTFRecord(?:V2)?|ExperimentalDatasetToTFRecord|SaveDataset(?:V2)?|DistributedSave|SnapshotDataset(?:V2)?"
    rb"|CacheDataset(?:V2)?|PyFunc|PyFuncStateless|EagerPyFunc|RpcCall|RpcClient|DataServiceDataset(?:V[2-4])?"
    rb"|FileSystemSetConfiguration|DebugIdentity(?:V[23])?|DumpTensor)(?![A-Za-z0-9_])|file://"
)
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
    _require_allowed(layout, permit)
    tf = require_tensorflow()
    wanted = list(tags) if tags is not None else list(SERVE)
    try:
        return tf.saved_model.load(str(layout.file), tags=wanted, **options.loader)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        message = str(error).partition("\n")[0][:300]
        raise ContentError(f"{layout.file}: TensorFlow cannot load it with the tags {wanted}: {message}") from error


def _require_allowed(layout: Layout, permit: Permit) -> None:
    if permit.safe_only:
        raise permit.refusal(f"{layout.file}: a SavedModel's graph is a program")
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = layout.file / name
        if not permit.scans or not path.is_file():
            continue
        if found := sorted({name.decode("ascii") for name in _UNSAFE.findall(path.read_bytes())}):
            raise UnsafeContentError(
                f"{path}: its graph would call {' and '.join(found)}, which no model needs; trust=always loads it"
            )


__all__ = ["load_saved_model", "require_tensorflow"]
