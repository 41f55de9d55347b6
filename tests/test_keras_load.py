"""Keras: files that Keras 2 wrote (tests/data/keras2, by tf_keras 2.21) and files of today, and attacks in both.

Run in a process of its own (`-m tensorflow`).
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import pickle
import shutil
import stat
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorflow_layouts import (
    DATA,
    EXPECTED,
    H5_OUTPUT,
    H5_TRIAL,
    KERAS2,
    close,
    functional_output,
    load,
    load_all,
    load_all_into,
    make_all,
    output,
    small,
    small_output,
    weights_trial,
)

import cas
from cas.checkpoint import Checkpoint
from cas.config import Settings, Trust
from cas.errors import CasError, ContentError, NotFoundError, UnsafeContentError, UsageError
from cas.load.loading import load_folder, user_folder
from cas.load.permit import Permit

CALLBACK = DATA / "checkpoints" / "d_keras_callback"

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def tf() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


def load_path(path: Path, trust: Trust = Trust.SCAN, **options: Any) -> Any:
    with user_folder(path) as view:
        return load_folder(view, permit=Permit(trust), **options)


# --- files that Keras 2 wrote ------------------------------------------------------------------------------------


def test_weights_in_tensorflows_format_fill_the_model_of_the_trial(tmp_path: Path) -> None:
    folder = weights_trial(tmp_path / "c")
    assert close(functional_output(load_path(folder)), EXPECTED["functional"])
    trial = load_path(folder, whole=True)
    assert type(trial).__name__ == "T"
    assert close(functional_output(trial.build_model()), EXPECTED["functional"])


@pytest.mark.parametrize("way", ["lr", "legacy", "legacy by name"])
def test_trial_may_make_its_optimizer_as_keras_2_let_it(tf: Any, tmp_path: Path, way: str) -> None:
    folder = weights_trial(tmp_path / "c")
    code = folder / "code" / "model_def.py"
    made = {
        "lr": "tf.keras.optimizers.SGD(lr=0.25, momentum=0.5)",
        "legacy": "tf.keras.optimizers.legacy.SGD(0.25, momentum=0.5)",
        "legacy by name": "SGD(lr=0.25, momentum=0.5)",
    }[way]
    first = "from tensorflow.keras.optimizers.legacy import SGD\n" if way == "legacy by name" else ""
    code.write_text(first + code.read_text().replace("tf.keras.optimizers.Adam()", made))
    model = load_path(folder)
    assert close(functional_output(model), EXPECTED["functional"])
    assert type(model.optimizer) is tf.keras.optimizers.SGD
    assert float(model.optimizer.learning_rate) == 0.25 and model.optimizer.momentum == 0.5
    with pytest.raises(ValueError, match="lr"):  # what the user's own code meets stays as it is
        tf.keras.optimizers.SGD(lr=0.25)
    with pytest.raises(ImportError):
        tf.keras.optimizers.legacy.SGD()


def test_weights_that_do_not_fit_the_trial_are_an_error(tmp_path: Path) -> None:
    folder = weights_trial(tmp_path / "c")
    load_data = folder / "load_data.json"
    load_data.write_text(load_data.read_text().replace('"units": 4', '"units": 5'))
    with pytest.raises(ContentError, match=r"does not fit the model of model_def:T: .*has the shape") as caught:
        load_path(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsafeContentError, match="never"):
        load_path(folder, Trust.NEVER)


def test_weights_of_a_subclassed_model_fill_it_by_its_attributes(tf: Any) -> None:
    import numpy

    layers = tf.keras.layers

    class Block(layers.Layer):  # type: ignore[misc, name-defined]
        def __init__(self, units: int) -> None:
            super().__init__()
            self.dense, self.norm = layers.Dense(units), layers.BatchNormalization()

        def call(self, x: Any, training: bool = False) -> Any:
            return tf.nn.relu(self.norm(self.dense(x), training=training))

    class Net(tf.keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [Block(4), Block(3)]
            self.heads = {"a": layers.Dense(2), "b": layers.Dense(1)}

        def call(self, x: Any, training: bool = False) -> Any:
            for block in self.blocks:
                x = block(x, training=training)
            return tf.concat([self.heads["a"](x), self.heads["b"](x)], -1)

    x = numpy.linspace(-1, 1, 12).reshape(3, 4).astype("float32")[:1]
    model = Net()
    with pytest.raises(ContentError, match="no weights yet; build it, or call it once"):
        load_path(KERAS2 / "subclassed", model=model)
    model(x)
    assert load_path(KERAS2 / "subclassed", model=model) is model
    assert close(model(x).numpy(), EXPECTED["subclassed"])
    model = Net()
    model(x)
    load_path(KERAS2 / "subclassed" / "ckpt", model=model)  # as TensorFlow names it
    assert close(model(x).numpy(), EXPECTED["subclassed"])


SUBCLASSED = """
import tensorflow as tf
from determined.keras import TFKerasTrial

layers = tf.keras.layers


class Block(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.dense, self.norm = layers.Dense(units), layers.BatchNormalization()

    def call(self, x, training=False):
        return tf.nn.relu(self.norm(self.dense(x), training=training))


class Net(tf.keras.Model):
    def __init__(self, first):
        super().__init__()
        self.blocks = [Block(first), Block(3)]
        self.heads = {"a": layers.Dense(2), "b": layers.Dense(1)}

    def call(self, x, training=False):
        BEFORE
        for block in self.blocks:
            x = block(x, training=training)
        return tf.concat([self.heads["a"](x), self.heads["b"](x)], -1)


class T(TFKerasTrial):
    def __init__(self, context):
        self.context = context

    def build_model(self):
        model = self.context.wrap_model(Net(self.context.get_hparam("first")))
        AFTER
        model.compile(tf.keras.optimizers.SGD(0.0), "mse")
        return model
"""


def subclassed_trial(folder: Path, first: int = 4, before: str = "pass", after: str = "pass") -> Path:
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(SUBCLASSED.replace("BEFORE", before).replace("AFTER", after))
    for path in (KERAS2 / "subclassed").iterdir():
        shutil.copy(path, folder / path.name.replace("ckpt", "determined-keras-model-weights"))
    load_data = {"trial_type": "TFKerasTrial", "trial_cls_spec": "model_def:T", "hparams": {"first": first}}
    (folder / "load_data.json").write_text(json.dumps({**load_data, "experiment_config": {}}))
    return folder


@pytest.mark.parametrize("way", ["call", "predict", "fit", "function", "part of a model", "trial", "built by hand"])
def test_model_of_a_trial_that_its_first_call_builds_is_filled_then(tf: Any, tmp_path: Path, way: str) -> None:
    folder = subclassed_trial(tmp_path / "c")
    model = load_path(folder, whole=True).build_model() if way == "trial" else load_path(folder)
    shutil.rmtree(folder)
    x = image(3, 4)[:1]
    if way == "predict":
        found = model.predict(x, verbose=0)
    elif way == "fit":
        model.fit(x, x[:, :3], verbose=0)  # which moves no weight, and statistics of the first batch only
        assert close(model.blocks[0].dense.kernel, load_path(KERAS2 / "subclassed")["blocks/0/dense/kernel"])
        return
    elif way == "function":
        found = tf.function(model)(x)
    elif way == "part of a model":
        start = tf.keras.Input((4,))
        found = tf.keras.Model(start, model(start))(x)
    else:
        if way == "built by hand":
            model.build((None, 4))
        found = model(x)
    assert close(found, EXPECTED["subclassed"])
    assert close(model(x), EXPECTED["subclassed"])
    assert "call" not in vars(model)  # nothing of ours stays


@pytest.mark.parametrize(
    "change",
    [
        {"before": "if not tf.executing_eagerly(): raise TypeError('no symbols')"},
        {"after": "model.blocks[0](tf.ones((1, 4)))"},
    ],
    ids=["Keras cannot trace it", "a part is built before"],
)
def test_model_that_is_built_in_part_or_cannot_be_traced_is_filled_by_its_first_call(
    tmp_path: Path, change: dict[str, str]
) -> None:
    model = load_path(subclassed_trial(tmp_path / "c", **change))
    x = image(3, 4)[:1]
    assert close(model(x), EXPECTED["subclassed"])


def test_what_does_not_fit_is_an_error_of_every_call(tmp_path: Path) -> None:
    model = load_path(subclassed_trial(tmp_path / "c", first=5))
    for _ in range(2):
        with pytest.raises(
            ContentError, match=r"determined-keras-model-weights does not fit .*has the shape"
        ) as caught:
            model(image(3, 4)[:1])
        assert "view" not in str(caught.value)


def test_weights_do_not_fill_a_part_of_the_callers_model(tf: Any) -> None:
    layers = tf.keras.layers

    class Net(tf.keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.d1, self.d2 = layers.Dense(5), layers.Dense(2)

    model = Net()
    model.d1(tf.ones((1, 4)))
    with pytest.raises(ContentError, match="no weights yet; build it, or call it once"):
        load_path(CALLBACK, model=model)


def test_whole_model_that_keras_2_wrote_as_h5_loads() -> None:
    assert close(functional_output(load_path(KERAS2 / "functional.h5")), EXPECTED["functional"])


def test_whole_model_that_keras_2_wrote_as_keras_loads() -> None:
    assert close(functional_output(load_path(KERAS2 / "functional.keras")), EXPECTED["functional"])


def test_model_of_a_trial_without_its_code_is_made_from_its_description(tmp_path: Path) -> None:
    shutil.copy(H5_TRIAL / "determined-keras-model.h5", tmp_path)
    assert close(small_output(load_path(tmp_path, Trust.NEVER)), H5_OUTPUT)


def image(*shape: int) -> Any:
    """The input whose output is recorded for the models of tests/data/keras2/README.md."""
    import numpy

    return numpy.linspace(-1, 1, int(numpy.prod(shape))).reshape(shape).astype("float32")


@pytest.mark.parametrize("name", ["nested.h5", "nested.keras", "layers.h5", "layers.keras", "transfer.h5"])
def test_models_in_models_and_operations_between_layers_of_keras_2_load(tf: Any, tmp_path: Path, name: str) -> None:
    expected = EXPECTED[name.partition(".")[0]]
    model = load_path(KERAS2 / name)
    found = model(image(1, *model.input_shape[1:]))
    assert isinstance(found, list) is (len(expected) > 1)  # a single output is a tensor, as it was
    assert all(close(one, other) for one, other in zip(tf.nest.flatten(found), expected, strict=True))
    model.save(tmp_path / "again.keras")
    found = load_path(tmp_path)(image(1, *model.input_shape[1:]))
    assert all(close(one, other) for one, other in zip(tf.nest.flatten(found), expected, strict=True))


def test_description_of_2020_which_names_no_modules_is_read(tf: Any, tmp_path: Path) -> None:
    import h5py

    def strip(config: Any) -> Any:
        if isinstance(config, list):
            return [strip(one) for one in config]
        if not isinstance(config, dict):
            return config
        lost = ("module", "registered_name", "build_config") if "class_name" in config else ()
        return {name: strip(value) for name, value in config.items() if name not in lost}

    for name in ("nested", "layers", "transfer"):
        path = Path(shutil.copy(KERAS2 / f"{name}.h5", tmp_path))
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = json.dumps(strip(json.loads(file.attrs["model_config"])))
            file.attrs["keras_version"] = "2.3.0-tf"
        model = load_path(path)
        found = tf.nest.flatten(model(image(1, *model.input_shape[1:])))
        assert all(close(one, other) for one, other in zip(found, EXPECTED[name], strict=True)), name


def test_operation_that_keras_3_does_not_have_is_named(tmp_path: Path) -> None:
    shutil.copy(KERAS2 / "nested.keras", tmp_path / "model.keras")

    def change(config: dict[str, Any]) -> None:
        (layer,) = [one for one in config["config"]["layers"] if one["name"] == "tf.math.multiply"]
        layer["config"]["function"] = "image.flip_up_down"

    rewrite(tmp_path / "model.keras", change)
    with pytest.raises(ContentError, match=r"it calls tf\.image\.flip_up_down between its layers.* Keras 2") as caught:
        load_path(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_of_depthwise_layers_in_tensorflows_format_fill_a_model(tf: Any) -> None:
    layers = tf.keras.layers
    stack = [layers.DepthwiseConv2D(2), layers.SeparableConv2D(3, 2), layers.Flatten(), layers.Dense(2)]
    model = tf.keras.Sequential([layers.Input((4, 4, 2)), *stack])
    assert close(load_path(KERAS2 / "mobile", model=model)(image(1, 4, 4, 2)), EXPECTED["mobile"][0])


# --- files of today ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize("trust", [Trust.SCAN, Trust.NEVER])
def test_whole_model_of_keras_own_layers_is_a_safe_format(tf: Any, tmp_path: Path, name: str, trust: Trust) -> None:
    model = small(seed=7)
    model.compile("adam", "mse", metrics=["mae"])
    model.save(tmp_path / name)
    loaded = load_path(tmp_path, trust)
    assert close(small_output(loaded), small_output(model))
    loaded.compile("sgd", "mse")
    loaded.fit(tf.ones((4, 4)), tf.ones((4, 2)), verbose=0)  # saving over the file that was loaded
    loaded.save(tmp_path / name)
    assert close(small_output(load_path(tmp_path, trust)), small_output(loaded))


def test_weights_of_today_fill_a_model(tf: Any, tmp_path: Path) -> None:
    model = small(seed=7)
    model.save_weights(tmp_path / "a.weights.h5")
    other = small(seed=7)
    for weight in other.weights:
        weight.assign(weight * 0)
    assert close(small_output(load_path(tmp_path, Trust.NEVER, model=other)), small_output(model))
    assert load_path(tmp_path, Trust.NEVER)
    wrong = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(3)])
    with pytest.raises(ContentError, match="does not fit the model of model=") as caught:
        load_path(tmp_path, model=wrong)
    assert "\n" not in str(caught.value)


def wide(tf: Any, seed: int) -> Any:
    tf.keras.utils.set_random_seed(seed)
    layers = [tf.keras.layers.Input((100,)), *(tf.keras.layers.Dense(200) for _ in range(4))]
    return tf.keras.Sequential(layers)


def in_parts(tf: Any, folder: Path) -> Any:
    model = wide(tf, 1)
    model.save_weights(folder / "a.weights.json", max_shard_size=0.0003)  # GB
    assert len(list(folder.glob("a_0000*.weights.h5"))) > 1
    return model


def test_weights_in_several_files_of_keras_fill_a_model(tf: Any, tmp_path: Path) -> None:
    model = in_parts(tf, tmp_path)
    for path in (tmp_path, tmp_path / "a.weights.json"):
        filled = load_path(path, Trust.NEVER, model=wide(tf, 2))
        pairs = zip(filled.weights, model.weights, strict=True)
        assert all((found.numpy() == wanted.numpy()).all() for found, wanted in pairs)
    arrays = load_path(tmp_path, Trust.NEVER)
    assert len(arrays) == len(model.weights)
    assert (arrays["layers/dense/vars/0"] == model.weights[0].numpy()).all()


def test_index_of_keras_weights_leads_nowhere_else(tf: Any, tmp_path: Path) -> None:
    import h5py

    in_parts(tf, tmp_path)
    index = tmp_path / "a.weights.json"
    described = json.loads(index.read_text())
    for name in ("../a_00000.weights.h5", "/dev/zero", "a.json", 3):
        index.write_text(json.dumps({"weight_map": {**described["weight_map"], "/x": [name]}}))
        with pytest.raises(ContentError, match=r"a\.weights\.json: names a file elsewhere"):
            load_path(tmp_path, model=wide(tf, 2))
    index.write_text('{"weight_map": ["a"]}')
    with pytest.raises(ContentError, match="no index of Keras weights"):
        load_path(tmp_path)
    index.write_text(json.dumps(described))
    with h5py.File(tmp_path / "a_00001.weights.h5", "r+") as file:
        file["stolen"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    with pytest.raises(UnsafeContentError, match="its data lie in another file"):
        load_path(tmp_path, model=wide(tf, 2))
    (tmp_path / "a_00001.weights.h5").unlink()
    with pytest.raises(NotFoundError, match=r"a_00001\.weights\.h5, which it names, is not there"):
        load_path(tmp_path)


def test_variables_of_a_module_of_tensorflow_are_filled(tf: Any, tmp_path: Path) -> None:
    class Module(tf.Module):  # type: ignore[misc, name-defined]
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = tf.Variable([value, value])

    tf.train.Checkpoint(root=Module(3.0)).write(str(tmp_path / "ckpt"))
    module = Module(0.0)
    load_path(tmp_path, model=module)
    assert module.weight.numpy().tolist() == [3.0, 3.0]


def test_layers_of_the_checkpoints_own_code_are_found_in_it(tf: Any, tmp_path: Path) -> None:
    script = """
import tensorflow as tf


@tf.keras.utils.register_keras_serializable("mine")
class Twice(tf.keras.layers.Layer):
    def call(self, x):
        from later import factor
        return x * factor
"""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_layers.py").write_text(script)
    (tmp_path / "code" / "later.py").write_text("factor = 2.0\n")
    from cas.load.sources import sources_of

    twice = sources_of(tmp_path / "code").load("own_layers").Twice
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), twice()])
    model.save(tmp_path / "model.keras")
    assert close(small_output(load_path(tmp_path)), [[2.0, 2.0, 2.0, 2.0]])
    with pytest.raises(UnsafeContentError, match=r"own_layers\.Twice, which is no part of Keras"):
        load_path(tmp_path, Trust.NEVER)


def test_classes_of_the_callers_own_are_taken(tf: Any, tmp_path: Path) -> None:
    class Thrice(tf.keras.layers.Layer):  # type: ignore[misc, name-defined]
        def call(self, x: Any) -> Any:
            return x * 3.0

    tf.keras.Sequential([tf.keras.layers.Input((4,)), Thrice()]).save(tmp_path / "model.keras")
    assert close(small_output(load_path(tmp_path, custom_objects={"Thrice": Thrice})), [[3.0] * 4])
    with pytest.raises(UsageError, match="custom_objects must map"):
        load_path(tmp_path, custom_objects=[Thrice])
    with pytest.raises((ContentError, UnsafeContentError)):
        load_path(tmp_path)


def test_what_a_model_was_trained_with_does_not_keep_it_from_loading(
    tf: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(seed=7)
    model.compile("adam", "mse")
    model.save(tmp_path / "model.h5")
    import h5py

    with h5py.File(tmp_path / "model.h5", "r+") as file:
        training = json.loads(file.attrs["training_config"])
        training["loss"] = "a_loss_of_somebody"
        file.attrs["training_config"] = json.dumps(training)
    assert close(small_output(load_path(tmp_path)), small_output(model))
    assert "without what it was trained with" in caplog.text
    with pytest.raises(ContentError):
        load_path(tmp_path, compile=True)


def test_no_trial_is_said_where_there_is_none(tf: Any, tmp_path: Path) -> None:
    small(seed=7).save(tmp_path / "model.keras")
    with pytest.raises(NotFoundError, match=r"a file of Keras and no trial class"):
        load_path(tmp_path, whole=True)
    with pytest.raises(UsageError, match="whole model"):
        load_path(tmp_path, model=small(seed=7))
    with pytest.raises(UsageError, match="takes no argument 'map_location'"):
        load_path(tmp_path, map_location="cpu")


def test_file_of_todays_keras_is_taken_as_it_is(tf: Any, tmp_path: Path) -> None:
    layers = tf.keras.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm = layers.BatchNormalization(renorm=True, renorm_momentum=0.5)
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(2, activation="hard_sigmoid"), norm])
    model.compile("adam", "mse")
    model.save(tmp_path / "model.keras")
    assert load_path(tmp_path, compile=True).compiled
    assert load_path(tmp_path).compiled
    loaded = load_path(tmp_path, compile=False)
    assert not loaded.compiled
    assert loaded.layers[-1].renorm_momentum == 0.5
    assert loaded.layers[0].get_config()["activation"] == "hard_sigmoid"
    assert close(small_output(loaded), small_output(model))


def test_argument_that_another_keras_3_had_is_left_out_where_it_says_nothing(tf: Any, tmp_path: Path) -> None:
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((1, 4)), layers.LSTM(2, recurrent_activation="hard_sigmoid")])
    model.save(tmp_path / "model.keras")
    rewrite(tmp_path / "model.keras", lambda config: config["config"]["layers"][-1]["config"].update(time_major=False))
    assert close(load_path(tmp_path)(image(1, 1, 4)), model(image(1, 1, 4)))
    rewrite(tmp_path / "model.keras", lambda config: config["config"]["layers"][-1]["config"].update(time_major=True))
    with pytest.raises(ContentError, match="time_major"):
        load_path(tmp_path)


def test_loss_of_the_users_own_needs_no_trust_where_it_is_left_out(tf: Any, tmp_path: Path) -> None:
    def own_loss(expected: Any, found: Any) -> Any:
        return tf.reduce_mean((expected - found) ** 2)

    model = small(seed=7)
    model.compile("adam", own_loss)
    model.save(tmp_path / "model.keras")
    loaded = load_path(tmp_path, Trust.NEVER, compile=False)
    assert not loaded.compiled and close(small_output(loaded), small_output(model))
    with pytest.raises(UnsafeContentError, match=r"own_loss.* compile=False leaves out what it was trained with"):
        load_path(tmp_path)
    assert load_path(tmp_path, custom_objects={"own_loss": own_loss}).compiled
    rewrite(tmp_path / "model.keras", ATTACKS["deep inside"])
    with pytest.raises(UnsafeContentError, match=r"shutil\.rmtree"):
        load_path(tmp_path, compile=False)


# --- where people load -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Checkpoint], dict[str, Any]]:
    """A read-only folder of each layout below one with odd letters, each in a store, and the recorded outputs."""
    root = tmp_path_factory.mktemp("layouts") / "mit Leerzeichen und ünïcode 'a\"b"
    root.mkdir()
    expected = make_all(root)
    for path in [root, *root.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    settings = Settings.load(home=tmp_path_factory.mktemp("store") / "ünï home")
    return root, {name: cas.add(root / name, settings=settings) for name in expected}, expected


def test_every_layout_loads_from_the_store_and_from_a_read_only_folder_named_from_elsewhere(
    places: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, checkpoints, expected = places
    assert load_all(checkpoints, expected) == dict.fromkeys(expected, True)
    monkeypatch.chdir(root)
    for name in expected:
        model = load(name, functools.partial(Checkpoint.load_from_path, name))
        assert close(output(name, model), expected[name]), name


def test_every_layout_loads_in_threads_at_once(places: Any) -> None:
    _, checkpoints, expected = places
    done: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda name=name: done.update(load_all({name: checkpoints[name]}, expected)))
        for name in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == dict.fromkeys(expected, True)


def test_every_layout_loads_in_a_spawned_process(places: Any) -> None:
    _, checkpoints, expected = places
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=load_all_into, args=(queue, checkpoints, expected))
    process.start()
    assert queue.get(timeout=250) == dict.fromkeys(expected, True)
    process.join()


def test_forked_worker_loads_where_tensorflow_was_not_used_before_and_says_so_where_it_was(
    places: Any, tmp_path: Path
) -> None:
    _, checkpoints, expected = places
    (tmp_path / "job.pkl").write_bytes(pickle.dumps((checkpoints, expected)))
    script = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("tensorflow_layouts.py"))]
    done = subprocess.run([*script, str(tmp_path / "job.pkl")], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == dict.fromkeys(expected, True)
    for name, error in found["after"].items():
        assert error is not None and "TensorFlow was in use when this process was forked" in error, name
        assert "spawn" in error and "\n" not in error


def test_every_layout_can_be_trained_and_the_store_stays_as_it_is(tf: Any, places: Any) -> None:
    _, checkpoints, expected = places
    for name, checkpoint in checkpoints.items():
        model = load(name, checkpoint.load)
        with tf.GradientTape() as tape:
            if name == "saved_model":
                (found,) = model.signatures["serving_default"](x=tf.ones((4, 4))).values()
            else:
                found = model(tf.ones((4, *model.input_shape[1:])))
            loss = tf.reduce_sum(found**2)
        variables = tape.watched_variables()
        gradients = tape.gradient(loss, variables)
        assert variables and None not in gradients, name
        tf.keras.optimizers.SGD(0.5).apply_gradients(zip(gradients, variables, strict=True))
        assert not close(output(name, model), expected[name]), name
    assert load_all(checkpoints, expected) == dict.fromkeys(expected, True)


def test_what_was_loaded_does_not_need_its_files_which_can_be_written_over(places: Any, tmp_path: Path) -> None:
    root, _, expected = places
    for name in expected:
        folder = tmp_path / name
        for path in [p for p in (root / name).rglob("*") if p.is_file()]:
            target = folder / path.relative_to(root / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        model = load(name, functools.partial(Checkpoint.load_from_path, folder))
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            path.write_bytes(b"")  # whoever reads a mapping of it now is killed
        assert close(output(name, model), expected[name]), name


def test_missing_h5py_is_said_with_the_extra_to_install(places: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _, _ = places
    monkeypatch.setitem(sys.modules, "h5py", None)  # what Python does where it is not installed
    for name in ("h5_of_today", "weights_of_today", "keras_of_today"):
        with pytest.raises(CasError, match=r"HDF5.*pip install 'checkpoint-cas\[tensorflow\]'") as caught:
            load_path(root / name)
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(CasError, match="a file of Keras, which is not installed"):
        load_path(root / "keras_of_today")


# --- attacks -----------------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the description in a .keras file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_lambda_layer_holds_code_and_is_refused(tf: Any, tmp_path: Path, name: str) -> None:
    trace = tmp_path / "it-ran"
    code = f"open({str(trace)!r}, 'w').close()"
    layers = [tf.keras.layers.Input((4,)), tf.keras.layers.Lambda(eval(f"lambda x: (exec({code!r}), x)[1]"))]
    tf.keras.Sequential(layers).save(tmp_path / name)
    trace.unlink(missing_ok=True)
    for trust in (Trust.SCAN, Trust.NEVER):
        with pytest.raises(UnsafeContentError, match="would call Lambda") as caught:
            load_path(tmp_path / name, trust)
        assert caught.value.exit_code == 9 and "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="trust='always'"):
        load_path(H5_TRIAL / "determined-keras-model.h5", safe_mode=False)
    assert not trace.exists()
    small_output(load_path(tmp_path / name, Trust.ALWAYS))
    assert trace.exists()


def replaced(**members: Any) -> Callable[[dict[str, Any]], None]:
    """Make the last layer something else."""

    def change(config: dict[str, Any]) -> None:
        layer = config["config"]["layers"][-1]
        layer.clear()
        layer.update(members)

    return change


ATTACKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a function of the standard library": replaced(
        module="os", class_name="function", config="system", registered_name="system"
    ),
    "a function under the name of one that is known": replaced(
        module="os", class_name="function", config="system", registered_name="hard_sigmoid_of_keras_2"
    ),
    "a function under the name of the caller's": replaced(
        module="os", class_name="function", config="system", registered_name="own"
    ),
    "a class of the standard library": replaced(
        module="subprocess", class_name="Popen", config={"args": ["id"]}, registered_name=None
    ),
    "a download of Keras' own": replaced(
        module="keras.utils", class_name="get_file", config={"fname": "x", "origin": "http://x"}, registered_name=None
    ),
    "unsafe deserialization switched on": replaced(
        module="keras.config", class_name="enable_unsafe_deserialization", config={}, registered_name=None
    ),
    "an inner module of Keras": replaced(
        module="keras.src.saving.serialization_lib", class_name="SafeModeScope", config={"safe_mode": False},
        registered_name=None,
    ),
    "a built-in function": replaced(module="builtins", class_name="exec", config={"x": 1}, registered_name=None),
    "a built-in as a function": replaced(
        module="builtins", class_name="function", config="exec", registered_name="function"
    ),
    "a lambda in an activation": replaced(
        module="keras.layers", class_name="Activation", registered_name=None,
        config={"activation": {"class_name": "__lambda__", "config": {"value": "4wA=", "defaults": None}}},
    ),
    "a pickled torch module": replaced(
        module="keras.layers", class_name="TorchModuleWrapper", config={"module": "gASVAA=="}, registered_name=None
    ),
    "a SavedModel of somewhere else": replaced(
        module="keras.layers", class_name="TFSMLayer", config={"filepath": "/tmp/x"}, registered_name=None
    ),
    "a file of this machine": replaced(
        module="keras.layers", class_name="StringLookup", config={"vocabulary": "/etc/passwd"}, registered_name=None
    ),
    "a file of this machine for a layer below": replaced(
        module="keras.src.layers.preprocessing.index_lookup", class_name="IndexLookup",
        config={"vocabulary": "/etc/passwd"}, registered_name=None,
    ),
    "a class of this package": replaced(
        module="cas.index.store", class_name="Store", config={"home": "/tmp/x"}, registered_name=None
    ),
    "in what it was trained with": lambda config: config.update(
        compile_config={"loss": {"module": "os", "class_name": "function", "config": "system"}}
    ),
    "deep inside": lambda config: config["config"]["layers"][-1]["config"].update(
        kernel_initializer={"module": "keras", "class_name": "Zeros", "config": {"a": [{"b": {
            "module": "shutil", "class_name": "rmtree", "config": {}}}]}}
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
@pytest.mark.parametrize("trust", [Trust.SCAN, Trust.NEVER])
def test_description_that_names_more_than_layers_is_refused(tf: Any, tmp_path: Path, attack: str, trust: Trust) -> None:
    small(seed=7).save(tmp_path / "model.keras")
    rewrite(tmp_path / "model.keras", ATTACKS[attack])
    with pytest.raises(UnsafeContentError) as caught:
        load_path(tmp_path, trust, custom_objects={"own": len})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ['{"class_name": ["x"], "config": {}}', "1", '{"a": ' * 900 + "1" + "}" * 900])
def test_description_that_is_none_is_an_error_of_one_line(tf: Any, tmp_path: Path, config: str) -> None:
    path = tmp_path / "model.keras"
    small(seed=7).save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**members, "config.json": config.encode()}.items():
            archive.writestr(name, data)
    with pytest.raises(ContentError) as caught:
        load_path(tmp_path)
    assert "\n" not in str(caught.value)


def test_archive_with_two_descriptions_is_refused(tf: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    small(seed=7).save(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("config.json", b"{}")
    with pytest.raises(ContentError, match="two files of one name"):
        load_path(tmp_path)


def test_weights_in_a_form_that_can_hold_pickles_are_refused(tf: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    small(seed=7).save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model.weights.npz", b"")
    with pytest.raises(UnsafeContentError, match=r"numpy\.load"):
        load_path(tmp_path)


def test_data_in_other_files_of_this_machine_are_refused(tf: Any, tmp_path: Path) -> None:
    import h5py

    (tmp_path / "secret").write_bytes(b"\0" * 80)
    for kind in ("link", "external", "virtual"):
        path = tmp_path / f"{kind}.weights.h5"
        small(seed=7).save_weights(path)
        with h5py.File(path, "r+") as file:
            group = file["layers"]
            if kind == "link":
                group["stolen"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
            elif kind == "external":
                group.create_dataset("stolen", (10,), "f8", external=[(str(tmp_path / "secret"), 0, 80)])
            else:
                layout = h5py.VirtualLayout((10,), "f8")
                layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (10,))
                group.create_virtual_dataset("stolen", layout)
        for options in ({}, {"model": small(seed=7)}):
            with pytest.raises(UnsafeContentError, match="its data lie in another file"):
                load_path(path, **options)


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_damaged_file_is_an_error_of_one_line(tf: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    small(seed=7).save(path)
    data = path.read_bytes()
    for bad in (b"", data[:100], data[: len(data) // 2], b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
        path.write_bytes(bad)
        with pytest.raises(ContentError) as caught:
            load_path(tmp_path)
        assert "\n" not in str(caught.value)


def test_damaged_weights_of_tensorflow_are_an_error_of_one_line(tmp_path: Path) -> None:
    folder = weights_trial(tmp_path / "c")
    for path in folder.glob("determined-keras-model-weights*"):
        data = path.read_bytes()
        for bad in (b"", data[:50], b"\0" * len(data)):
            path.write_bytes(bad)
            with pytest.raises(ContentError) as caught:
                load_path(folder)
            assert "\n" not in str(caught.value)
        path.write_bytes(data)
    next(folder.glob("*.data-*")).unlink()
    with pytest.raises((ContentError, NotFoundError)):
        load_path(folder)
