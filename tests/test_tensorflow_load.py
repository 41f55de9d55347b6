"""Loading with real TensorFlow; run in a process of its own (`-m tensorflow`)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

from cas.config import Trust
from cas.errors import ContentError, UnsafeContentError, UsageError
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import Store
from cas.load.loading import load_folder, user_folder
from cas.load.permit import Permit
from cas.load.views import make_view

pytestmark = [pytest.mark.tensorflow, pytest.mark.filterwarnings("default")]

DATA = Path(__file__).parent / "data" / "checkpoints"
SAVED_MODEL = DATA / "j_tf_saved_model"
KERAS = DATA / "k_legacy_keras_h5"
CALLBACK = DATA / "d_keras_callback"
OUTPUT = [[0.946421, 0.670538, 0.135537, 0.706789, 0.1077]]
KERAS_OUTPUT = [[0.594938, 0.971833]]


@pytest.fixture(scope="module", autouse=True)
def tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("tensorflow")


def load_path(path: Path, trust: Trust = Trust.SCAN, **options: Any) -> Any:
    with user_folder(path) as view:
        return load_folder(view, permit=Permit(trust), **options)


def serve(model: Any) -> list[list[float]]:
    import numpy
    import tensorflow as tf

    found = model.signatures["serving_default"](x=tf.constant(numpy.ones((1, 4), "float32")))
    return next(iter(found.values())).numpy().tolist()


def close(found: Any, expected: Any) -> bool:
    import numpy

    return bool(numpy.allclose(found, expected, atol=2e-6))


def test_saved_model_loads_with_its_signatures() -> None:
    model = load_path(SAVED_MODEL)
    assert set(model.signatures) == {"serving_default", "predict"}
    assert close(serve(model), OUTPUT)


def test_a_graph_is_a_program_and_not_loaded_under_trust_never() -> None:
    with pytest.raises(UnsafeContentError, match="never"):
        load_path(SAVED_MODEL, trust=Trust.NEVER)


def test_a_graph_that_writes_files_while_it_is_loaded_is_refused_before_it_runs(tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.python.trackable.resource import TrackableResource

    class Writer(TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> object:
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

        def _initialize(self) -> None:
            tf.io.write_file(str(tmp_path / "written"), "it ran")

    class Model(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.writer = Writer()

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, x: object) -> object:
            return x

    tf.saved_model.save(Model(), str(tmp_path / "model"))
    (tmp_path / "written").unlink(missing_ok=True)
    with pytest.raises(UnsafeContentError, match="WriteFile"):
        load_path(tmp_path / "model")
    assert not (tmp_path / "written").exists()
    load_path(tmp_path / "model", trust=Trust.ALWAYS)
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("way", ["print", "python", "data set"])
def test_graph_that_writes_or_calls_python_when_it_is_run_is_refused(tmp_path: Path, way: str) -> None:
    import tensorflow as tf

    def run(x: object) -> object:
        if way == "print":
            tf.print(x, output_stream=f"file://{tmp_path / 'written'}")
        elif way == "python":
            return tf.py_function(lambda y: y, [x], tf.float32)
        else:
            dataset = tf.data.Dataset.from_tensors(x).cache(str(tmp_path / "written"))
            return next(iter(dataset.take(1)))
        return x

    class Model(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32)])  # type: ignore[untyped-decorator]
        def __call__(self, x: object) -> object:
            return run(x)

    tf.saved_model.save(Model(), str(tmp_path / "model"))
    with pytest.raises(UnsafeContentError, match="its graph would call") as caught:
        load_path(tmp_path / "model")
    assert caught.value.exit_code == 9 and "\n" not in str(caught.value)


def test_names_of_a_graph_written_as_text_are_read_as_tensorflow_reads_them(tmp_path: Path) -> None:
    import tensorflow as tf
    from google.protobuf import text_format
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.trackable.resource import TrackableResource

    class Writer(TrackableResource):  # type: ignore[misc]
        def _create_resource(self) -> object:
            return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

        def _initialize(self) -> None:
            tf.io.write_file(str(tmp_path / "written"), "it ran")

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "harmless"))
    module.writer = Writer()
    tf.saved_model.save(module, str(tmp_path / "model"))
    (tmp_path / "written").unlink(missing_ok=True)
    for name in ("harmless", "model"):
        graph = tmp_path / name / "saved_model.pb"
        text = text_format.MessageToString(SavedModel.FromString(graph.read_bytes()))
        graph.with_suffix(".pbtxt").write_text(text.replace('"WriteFile"', r'"Write\106ile"'))
        graph.unlink()
    assert r"Write\106ile" in (tmp_path / "model" / "saved_model.pbtxt").read_text()
    with pytest.raises(UnsafeContentError, match="its graph would call WriteFile"):
        load_path(tmp_path / "model")
    assert not (tmp_path / "written").exists()
    load_path(tmp_path / "harmless")
    (tmp_path / "harmless" / "saved_model.pbtxt").write_text("meta_graphs { no such field }")
    with pytest.raises(ContentError, match="not a whole SavedModel") as caught:
        load_path(tmp_path / "harmless")
    assert "\n" not in str(caught.value)


def test_words_of_a_graphs_data_are_no_calls(tmp_path: Path) -> None:
    import tensorflow as tf

    class Model(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
        def __call__(self) -> object:
            return tf.constant(["PyFunc", "WriteFile", "file://x"])

    tf.saved_model.save(Model(), str(tmp_path / "model"))
    assert load_path(tmp_path / "model")().numpy().tolist() == [b"PyFunc", b"WriteFile", b"file://x"]


def test_graph_that_runs_a_graph_out_of_a_string_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    class Model(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])  # type: ignore[untyped-decorator]
        def __call__(self, graph: object) -> object:
            return tf.raw_ops.DatasetCardinality(input_dataset=tf.raw_ops.DatasetFromGraph(graph_def=graph))

    tf.saved_model.save(Model(), str(tmp_path / "model"))
    with pytest.raises(UnsafeContentError, match="its graph would call DatasetFromGraph"):
        load_path(tmp_path / "model")


def test_tags_choose_the_graph() -> None:
    assert close(serve(load_path(SAVED_MODEL, tags=["serve"])), OUTPUT)
    assert close(serve(load_path(SAVED_MODEL, tags="serve")), OUTPUT)
    with pytest.raises(ContentError, match=r"\['train'\]") as caught:
        load_path(SAVED_MODEL, tags=["train"])
    assert "\n" not in str(caught.value)


def test_arguments_reach_tensorflow() -> None:
    import tensorflow as tf

    options = tf.saved_model.LoadOptions(allow_partial_checkpoint=True)
    assert close(serve(load_path(SAVED_MODEL, options=options)), OUTPUT)
    with pytest.raises(UsageError, match="takes no argument 'no_such_argument'; it takes options"):
        load_path(SAVED_MODEL, no_such_argument=1)


def test_saved_model_loads_from_a_view(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    entries = []
    for path in sorted(SAVED_MODEL.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = RelativePath(path.relative_to(SAVED_MODEL).as_posix())
            entries.append(FileEntry(name, len(data), store.put(data)))
    view = make_view(store, Manifest.of(entries)).path
    assert close(serve(load_folder(view, from_store=True)), OUTPUT)
    store.close()


def test_saved_model_loads_from_a_read_only_folder_with_odd_letters_in_its_path(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAVED_MODEL, tmp_path / "mit Leerzeichen und ünïcode"))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    model = load_path(folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)  # what was loaded does not need the folder
    assert close(serve(model), OUTPUT)


def test_damaged_saved_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAVED_MODEL, tmp_path / "c"))
    graph = next(folder.rglob("saved_model.pb"))
    graph.write_bytes(graph.read_bytes()[:500])
    with pytest.raises(ContentError) as caught:
        load_path(folder)
    assert "\n" not in str(caught.value)


def test_several_saved_models_are_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAVED_MODEL, tmp_path / "c"))
    shutil.copytree(folder / "inference" / "1591920000", folder / "inference" / "1591920001")
    with pytest.raises(ContentError, match=r"2 SavedModels \(inference/1591920000, inference/1591920001\)"):
        load_path(folder)
    assert close(serve(load_path(folder / "inference" / "1591920001")), OUTPUT)


def test_keras_weights_are_loaded_into_the_model_that_the_trial_builds(tmp_path: Path) -> None:
    import numpy

    folder = Path(shutil.copytree(KERAS, tmp_path / "c"))
    model = load_path(folder)
    shutil.rmtree(folder)
    assert close(model(numpy.ones((1, 4), "float32")).numpy(), KERAS_OUTPUT)
    assert "determined" not in sys.modules
    with pytest.raises(UnsafeContentError, match="never"):
        load_path(KERAS, trust=Trust.NEVER)


def test_weights_of_the_keras_callback_fill_the_users_own_model() -> None:
    import numpy
    import tensorflow as tf

    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dense(2)])
    assert load_path(CALLBACK, model=model) is model
    assert close(model(numpy.ones((1, 4), "float32")).numpy(), [[-0.843047, -0.505835]])
    wrong = tf.keras.Sequential([layers.Input((4,)), layers.Dense(6), layers.Dense(2)])
    with pytest.raises(ContentError, match=r"has the shape \(4, 6\), and its value \(4, 5\)"):
        load_path(CALLBACK, model=wrong)
    with pytest.raises(ContentError, match="2 layers with weights, and the model has 1"):
        load_path(CALLBACK, model=tf.keras.Sequential([layers.Input((4,)), layers.Dense(5)]))
    with pytest.raises(ContentError, match="no weights yet"):
        load_path(CALLBACK, model=tf.keras.Sequential([layers.Dense(5), layers.Dense(2)]))


def test_weights_of_the_keras_callback_without_a_model_are_arrays_and_say_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = load_path(CALLBACK, trust=Trust.NEVER)
    assert found["layer_with_weights-0/kernel"].shape == (4, 5)
    assert "give it as model=" in caplog.text
    assert "model_checkpoint holds Keras weights" in caplog.text  # and no folder of ours
    assert "view" not in caplog.text


def test_missing_tensorflow_is_said_with_the_extra_to_install() -> None:
    script = f"""
        import sys
        from pathlib import Path
        sys.modules["tensorflow"] = None  # what Python does where it is not installed
        from cas.errors import CasError
        from cas.load.loading import load_folder
        try:
            load_folder(Path({str(SAVED_MODEL)!r}))
        except CasError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    assert "pip install 'checkpoint-cas[tensorflow]'" in done.stdout.decode()
    assert len(done.stdout.decode().strip().splitlines()) == 1
