"""Models of TensorFlow: SavedModels, and Keras weights with the trial that builds their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cas.config import Trust
from cas.errors import CasError, ContentError, UnsafeContentError
from cas.load.layouts import Layout
from cas.load.sources import Sources
from cas.load.trials import build_trial

_UNSAFE_OPERATIONS = ("WriteFile", "CreateSummaryFileWriter")  # of a graph: they write where they like
SERVE = ("serve",)  # the tag of the graph that is meant for inference


def require_tensorflow() -> Any:
    """Return the tensorflow package.

    Raises:
        CasError: it is not installed.
    """
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
    layout: Layout, tags: Sequence[str] | None, options: Mapping[str, Any], trust: Trust = Trust.SCAN
) -> Any:
    """Return the trackable that TensorFlow makes of a SavedModel.

    It holds a graph and no Python code, but a graph is a program: parts of it run while it is loaded, and can write
    files. TensorFlow's saver is such a part of every model, so a scan finds only what no model needs.

    Raises:
        UnsafeContentError: the trust policy does not allow it.
        ContentError: it is damaged, or has no graph with these tags.
        CasError: TensorFlow is not installed.
    """
    _require_allowed(layout, trust)
    tf = require_tensorflow()
    wanted = list(tags) if tags is not None else list(SERVE)
    try:
        return tf.saved_model.load(str(layout.file), tags=wanted, **options)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        message = str(error).partition("\n")[0][:300]
        raise ContentError(f"{layout.file}: TensorFlow cannot load it with the tags {wanted}: {message}") from error


def _require_allowed(layout: Layout, trust: Trust) -> None:
    if trust is Trust.NEVER:
        raise UnsafeContentError(
            f"{layout.file}: a SavedModel's graph is a program, and the trust policy is `never`; trust=scan loads it"
        )
    if trust is Trust.ALWAYS:
        return
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        path = layout.file / name
        if not path.is_file():
            continue
        data = path.read_bytes()
        if found := [operation for operation in _UNSAFE_OPERATIONS if operation.encode() in data]:
            raise UnsafeContentError(
                f"{path}: its graph would call {' and '.join(found)}, which no model needs; trust=always loads it"
            )


def load_keras_trial(layout: Layout, sources: Sources | None, trust: Trust) -> Any:
    """Build a Keras model with its trial class and load its weights.

    Raises:
        UnsafeContentError: the trust policy lets no code run.
        ContentError: the weights do not fit.
        CasError: TensorFlow is not installed.
    """
    if trust is Trust.NEVER:
        raise UnsafeContentError(
            f"{layout.folder}: its model is built by code/ ({layout.entrypoint}), and CAS_TRUST=never lets no code run"
        )
    require_tensorflow()
    from cas.load.standin.keras import TFKerasTrialContext

    context = TFKerasTrialContext(layout.hparams, layout.experiment_config)
    model = build_trial(layout, sources, context).build_model()
    try:
        model.load_weights(str(layout.file))
    except (ValueError, OSError) as error:
        message = str(error).partition("\n")[0][:300]
        raise ContentError(f"{layout.file} does not fit the model of {layout.entrypoint}: {message}") from error
    return model


def refuse_callback_weights(layout: Layout) -> CasError:
    """Say what to do with weights whose model only the user's own script builds."""
    return CasError(
        f"{layout.folder} holds Keras weights of a model that the training script builds: build it, then call"
        f" model.load_weights({str(layout.file)!r})"
    )
