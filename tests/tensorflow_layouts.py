"""Every layout of TensorFlow and Keras, loaded where people load: for tests, and for the processes that they start.

`python tensorflow_layouts.py FILE` uses the store and forks, as data loaders do: before TensorFlow is used, and after.
The file holds checkpoints and their outputs.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cas.errors import CasError

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

DATA = Path(__file__).parent / "data"
KERAS2 = DATA / "keras2"
EXPECTED = json.loads((KERAS2 / "expected.json").read_text())
H5_TRIAL = DATA / "checkpoints" / "k_legacy_keras_h5"
H5_OUTPUT = [[0.594938, 0.971833]]
OUTPUTS: dict[str, Any] = {
    "h5": H5_OUTPUT,
    "functional_h5": EXPECTED["functional"],
    "functional_keras": EXPECTED["functional"],
    "weights": EXPECTED["functional"],
    "saved_model": [[0.946421, 0.670538, 0.135537, 0.706789, 0.1077]],
    "callback": [[-0.843047, -0.505835]],
}
TODAYS = ("keras_of_today", "h5_of_today", "weights_of_today")  # their output is recorded when they are made

FUNCTIONAL = """
import tensorflow as tf
from determined.keras import TFKerasTrial, TFKerasTrialContext

L = tf.keras.layers


def build(units):
    inner = [L.Input((6,)), L.Dense(4, activation="relu"), L.BatchNormalization(), L.Dropout(0.5)]
    start = L.Input((5,), dtype="int32")
    x = L.Embedding(10, 3)(start)
    x = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    x = L.TimeDistributed(tf.keras.Sequential(inner, name="inner"))(x)
    x = L.LSTM(units)(x)
    return tf.keras.Model(start, L.Dense(2)(L.LayerNormalization()(x)))


class T(TFKerasTrial):
    def __init__(self, context: TFKerasTrialContext):
        self.context = context

    def build_model(self):
        model = self.context.wrap_model(build(self.context.get_hparam("units")))
        model.compile(optimizer=self.context.wrap_optimizer(tf.keras.optimizers.Adam()), loss="mse")
        return model
"""


def weights_trial(folder: Path) -> Path:
    """A checkpoint of TFKerasTrial since 0.13.8: weights in TensorFlow's format, and the class of the model."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(FUNCTIONAL)
    for path in (KERAS2 / "functional").iterdir():
        shutil.copy(path, folder)
    load_data = {"trial_type": "TFKerasTrial", "trial_cls_spec": "model_def:T", "hparams": {"units": 4}}
    (folder / "load_data.json").write_text(json.dumps({**load_data, "experiment_config": {}}))
    return folder


def close(found: Any, expected: Any) -> bool:
    import numpy

    return bool(numpy.allclose(found, expected, atol=2e-6))


def functional_output(model: Any) -> Any:
    import numpy

    return model(numpy.arange(5).reshape(1, 5) % 10).numpy()


def small(seed: int | None = None) -> Any:
    import tensorflow as tf

    if seed is not None:
        tf.keras.utils.set_random_seed(seed)
    layers = tf.keras.layers
    return tf.keras.Sequential([layers.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dense(2)])


def small_output(model: Any) -> Any:
    import numpy

    return model(numpy.ones((1, 4), "float32")).numpy()


def make_all(root: Path) -> dict[str, Any]:
    """Make a folder of each layout; return the output of each."""
    shutil.copytree(H5_TRIAL, root / "h5")
    shutil.copytree(DATA / "checkpoints" / "j_tf_saved_model", root / "saved_model")
    shutil.copytree(DATA / "checkpoints" / "d_keras_callback", root / "callback")
    weights_trial(root / "weights")
    for name in ("functional_h5", "functional_keras", *TODAYS):
        (root / name).mkdir()
    shutil.copy(KERAS2 / "functional.h5", root / "functional_h5")
    shutil.copy(KERAS2 / "functional.keras", root / "functional_keras")
    model = small(seed=7)
    model.save(root / "keras_of_today" / "model.keras")
    model.save(root / "h5_of_today" / "model.h5")
    model.save_weights(root / "weights_of_today" / "a.weights.h5")
    return {**OUTPUTS, **dict.fromkeys(TODAYS, small_output(model).tolist())}


def load(name: str, loader: Callable[..., Any]) -> Any:
    """Load a layout; weights that no code of theirs takes go into a model of the caller's."""
    return loader(model=small()) if name in ("callback", "weights_of_today") else loader()


def output(name: str, model: Any) -> Any:
    """Return what a model of this layout makes of the input whose output is recorded."""
    if name == "saved_model":
        import tensorflow as tf

        return next(iter(model.signatures["serving_default"](x=tf.ones((1, 4))).values())).numpy()
    return (
        functional_output(model)
        if name.startswith(("functional", "weights")) and name != TODAYS[2]
        else (small_output(model))
    )


def load_all(checkpoints: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """Return, for each layout, whether its output is the recorded one, or the error."""
    found: dict[str, Any] = {}
    for name, checkpoint in checkpoints.items():
        try:
            found[name] = close(output(name, load(name, checkpoint.load)), expected[name])
        except CasError as error:
            found[name] = str(error)
    return found


def load_all_into(queue: Any, checkpoints: dict[str, Any], expected: dict[str, Any]) -> None:
    queue.put(load_all(checkpoints, expected))


def in_fork(work: Callable[[], Any], seconds: float) -> Any:
    """Return what a forked child answers, or None if it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    end = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)
    with open(reading, "rb") as pipe:
        return json.loads(pipe.read())


def error_of(loader: Callable[[], Any]) -> str | None:
    try:
        loader()
    except CasError as error:
        return str(error)
    return None


def main(file: str) -> None:
    checkpoints, expected = pickle.loads(Path(file).read_bytes())
    for checkpoint in checkpoints.values():
        checkpoint.view()
    import tensorflow as tf  # as data loaders do, whose parent imports everything

    before = in_fork(lambda: load_all(checkpoints, expected), 200)
    tf.ones((2, 2)) @ tf.ones((2, 2))
    after = in_fork(lambda: {name: error_of(checkpoint.load) for name, checkpoint in checkpoints.items()}, 100)
    print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main(sys.argv[1])
