"""The code of checkpoints without the `determined` package, and with it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cas.errors import CasError, NotFoundError
from cas.load.loading import load_folder

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

TWO_MODELS = Path(__file__).parent / "data" / "checkpoints" / "a_two_models"


def trial_checkpoint(folder: Path, code: str, **said: Any) -> Any:
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(textwrap.dedent(code))
    layer = torch.nn.Linear(2, 1)
    torch.save({"models_state_dict": [layer.state_dict()], "optimizers_state_dict": [{}]}, folder / "state_dict.pth")
    load_data = {"trial_type": "PyTorchTrial", "trial_cls_spec": "model_def:T", "hparams": {"lr": 0.5}, **said}
    (folder / "load_data.json").write_text(json.dumps(load_data))
    return layer


def test_what_trials_do_before_they_train_works(tmp_path: Path) -> None:
    code = """
        import logging
        import torch
        import determined as det
        from determined import core, experimental, pytorch
        from determined.experimental import client
        from determined.pytorch import (
            ClipGradsL2Norm, DataLoader, LRScheduler, MetricReducer, PyTorchCallback, PyTorchTrial, PyTorchTrialContext,
            Reducer, TorchData, reset_parameters, samplers,
        )
        from determined.tensorboard.metric_writers.pytorch import TorchWriter

        logging.basicConfig(level=logging.INFO, format=det.LOG_FORMAT)
        INFO = det.get_cluster_info()

        class Accuracy(MetricReducer):
            pass

        class Stop(PyTorchCallback):
            def on_validation_end(self, metrics):
                pass

        class T(PyTorchTrial):
            def __init__(self, context: PyTorchTrialContext) -> None:
                super().__init__(context)
                assert INFO is None and hasattr(det, "pytorch") and not hasattr(det, "no_such_thing")
                self.logger = TorchWriter()
                self.logger.writer.add_scalar("loss", 1.0, 0)
                context.experimental.disable_dataset_reproducibility_checks()
                context.experimental.use_amp()
                self.accuracy = context.wrap_reducer(Accuracy(), for_training=False)
                model = torch.nn.Linear(2, 1).to(context.device)
                self.model = context.wrap_model(model)
                self.optimizer = context.wrap_optimizer(
                    torch.optim.Adam(self.model.parameters(), lr=context.get_hparam("lr")), backward_passes_per_step=2)
                self.model, self.optimizer = context.configure_apex_amp(self.model, self.optimizer)
                self.scaler = context.wrap_scaler(object())
                scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
                self.scheduler = context.wrap_lr_scheduler(scheduler, step_mode=LRScheduler.StepMode.MANUAL_STEP)
                assert context.distributed.get_rank() == 0 and context.distributed.size == 1
                assert context.get_experiment_config()["name"] == "e" and context.get_data_config() == {"path": "x"}
                assert not context.is_epoch_start() and context.get_trial_seed() == 7 and context.n_gpus == 0
                assert len(list(DataLoader([1, 2, 3, 4], batch_size=2))) == 2
                self.callbacks = {"clip": ClipGradsL2Norm(1.0), "stop": Stop()}
                try:
                    context.get_hparam("absent")
                except ValueError as error:
                    assert "'absent'" in str(error)
                    self.looked = True

            def build_callbacks(self):
                return self.callbacks
    """
    config = {"name": "e", "data": {"path": "x"}, "reproducibility": {"experiment_seed": 7}}
    layer = trial_checkpoint(tmp_path, code, experiment_config=config)
    trial = load_folder(tmp_path, whole=True)
    assert torch.equal(trial.model.weight, layer.weight)
    assert trial.looked


def test_what_trials_of_2020_import_and_call_works(tmp_path: Path) -> None:
    code = """
        import determined as det
        import determined.keras
        import determined.pytorch
        import torch
        from determined import core, experimental, horovod, util
        from determined.common import api, check, util as common_util
        from determined.experimental import Determined, client
        from determined.experimental.client import Checkpoint
        from determined.horovod import hvd
        from determined.keras import InputData, TFKerasTrial, TFKerasTrialContext
        from determined.pytorch import CheckpointLoadContext, DataLoader, LRScheduler, PyTorchTrial, to_device
        from determined.tensorboard.metric_writers import pytorch, tensorflow
        from determined.util import download_gcs_blob_with_backoff

        SEARCH = {"lr": det.Log(minval=-3, maxval=0), "layers": det.Categorical([1, 2]), "n": det.Constant(value=2)}

        def report(core_context: det.core.Context, checkpoint: client.Checkpoint, info: det.TrialInfo) -> None:
            pass

        class Other(det.Trial):
            def __init__(self, context: det.keras.TFKerasTrialContext, distributed: core.DistributedContext) -> None:
                pass

        class T(PyTorchTrial):
            def __init__(self, context: det.TrialContext) -> None:
                assert isinstance(context, det.TrialContext) and issubclass(PyTorchTrial, det.Trial)
                self.model = context.Model(torch.nn.Linear(2, 1))
                self.optimizer = context.Optimizer(torch.optim.SGD(self.model.parameters(), context.get_hparam("lr")))
                steps = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
                self.scheduler = context.LRScheduler(steps, LRScheduler.StepMode.STEP_EVERY_EPOCH)
                context.wrap_lr_scheduler(steps, LRScheduler.StepMode.STEP_EVERY_BATCH, 2)
                assert context.env.hparams == {"lr": 0.5} and context.env.experiment_config["name"] == "e"
                assert context.get_hparams() is context.get_hparams() and context.env.trial_seed == 0
                assert (hvd.rank(), hvd.local_rank(), hvd.size(), hvd.local_size()) == (0, 0, 1, 1)
                assert not hasattr(hvd, "DistributedOptimizer") and not hasattr(context.env, "slot_ids")
                self.loader = DataLoader([1, 2, 3, 4, 5], 2, True, None, None, 0, None, False, True)
                assert len(self.loader) == 2 and self.loader.drop_last and self.loader.batch_size == 2
                assert isinstance(self.loader.sampler, torch.utils.data.RandomSampler)
    """
    layer = trial_checkpoint(tmp_path, code, experiment_config={"name": "e"})
    trial = load_folder(tmp_path, whole=True)
    assert torch.equal(trial.model.weight, layer.weight)


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("from determined import FancyThing", r"determined\.FancyThing"),
        ("import determined as det; det.fancy()", r"determined\.fancy"),
        ("from determined.pytorch import FancyThing", r"determined\.pytorch\.FancyThing"),
        ("from determined.pytorch.samplers import Fancy", r"determined\.pytorch\.samplers\.Fancy"),
        ("from determined.pytorch.deepspeed import DeepSpeedTrial", r"determined\.pytorch\.deepspeed"),
        ("import determined.common.api", r"determined\.common"),
        ("from determined.common import check; check.true(True)", r"determined\.common\.check\.true"),
        ("from determined.horovod import hvd; hvd.allreduce(1)", r"determined\.horovod\.hvd\.allreduce"),
        ("import determined as det; det.TrialInfo()", r"determined\.TrialInfo"),
        ("from determined.util import merge_dicts; merge_dicts({}, {})", r"determined\.util\.merge_dicts"),
        ("from determined.experimental.client import Fancy", r"determined\.experimental\.client\.Fancy"),
        (
            "from determined.experimental import client; client.get_checkpoint('x')",
            r"experimental\.client\.get_checkpoint",
        ),
        ("from determined import core; core.init()", r"determined\.core\.init"),
        ("from determined import pytorch; pytorch.init()", r"determined\.pytorch\.init"),
        ("from determined import pytorch; pytorch.Trainer(1)", r"determined\.pytorch\.Trainer"),
        ("from determined.pytorch.samplers import SkipSampler; SkipSampler([], 1)", r"samplers\.SkipSampler"),
    ],
)
def test_what_it_lacks_is_one_line_that_names_it(tmp_path: Path, line: str, missing: str) -> None:
    code = f"{line}\nfrom determined.pytorch import PyTorchTrial\n\n\nclass T(PyTorchTrial):\n    pass\n"
    trial_checkpoint(tmp_path, code)
    with pytest.raises(CasError, match=f"{missing}.*install determined to load it") as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("__init__", "open('conf/net.json').close()"),
        ("build_model", "torch.load('./conf/net.json')"),
        ("the module", "open('conf/net.json').close()"),
    ],
)
def test_file_of_code_that_is_looked_for_in_the_current_folder_is_said(
    tmp_path: Path, where: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    code = f"""
        import torch
        from determined.pytorch import PyTorchTrial
        {how if where == "the module" else ""}

        class T(PyTorchTrial):
            def __init__(self, context):
                {how if where == "__init__" else "pass"}

            def build_model(self):
                {how if where == "build_model" else "pass"}
                return torch.nn.Linear(2, 1)
    """
    (folder / "code" / "conf").mkdir(parents=True)
    (folder / "code" / "model_def.py").write_text(textwrap.dedent(code))
    torch.save({"model_state_dict": torch.nn.Linear(2, 1).state_dict()}, folder / "state_dict.pth")
    config = {"entrypoint": "model_def:T"}
    (folder / "metadata.json").write_text(json.dumps({"torch_version": "1.4.0", "experiment_config": config}))
    with pytest.raises(FileNotFoundError, match="No such file") as untold:
        load_folder(folder)
    assert not isinstance(untold.value, CasError)  # it is not in code/ either
    torch.save(3, folder / "code" / "conf" / "net.json")
    with pytest.raises(NotFoundError, match=r"looks for conf.net\.json in the current folder") as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value) and f"change to {folder / 'code'} " in str(caught.value)
    with pytest.raises(NotFoundError, match=r"change to Checkpoint\.view\(\) / 'code'"):
        load_folder(folder, from_store=True)
    monkeypatch.chdir(folder / "code")
    assert isinstance(load_folder(folder), torch.nn.Linear)


def test_lightning_adapter_wraps_its_module(tmp_path: Path) -> None:
    code = """
        import torch
        from determined.pytorch.lightning import LightningAdapter

        class T(LightningAdapter):
            def __init__(self, context):
                super().__init__(context, lightning_module=torch.nn.Linear(2, 1))
    """
    layer = trial_checkpoint(tmp_path, code)
    assert torch.equal(load_folder(tmp_path).weight, layer.weight)


@pytest.mark.slow
def test_the_package_is_used_where_it_is_installed(tmp_path: Path) -> None:
    # The real one was tried by hand (0.38.1); this one says who was called.
    package = tmp_path / "site" / "determined"
    (package / "pytorch").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import pytorch\n")
    (package / "pytorch" / "__init__.py").write_text(
        textwrap.dedent(
            """
            class PyTorchTrial:
                def __init__(self, context):
                    pass

            class CheckpointLoadContext:
                def __init__(self, hparams=None, exp_conf=None):
                    self.models = []
                    self.said = hparams, exp_conf

                def wrap_model(self, model):
                    self.models.append(model)
                    return model

                def wrap_optimizer(self, optimizer):
                    return optimizer
            """
        )
    )
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "site")!r})
        from pathlib import Path
        from cas.load.loading import load_folder
        trial = load_folder(Path({str(TWO_MODELS)!r}))
        import determined
        assert isinstance(trial, determined.pytorch.PyTorchTrial)
        assert type(trial.context) is determined.pytorch.CheckpointLoadContext
        assert trial.context.said == ({{}}, None), trial.context.said
        del determined.pytorch.CheckpointLoadContext
        try:
            load_folder(Path({str(TWO_MODELS)!r}))
        except Exception as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    assert "older than 0.21" in done.stdout.decode()


@pytest.mark.slow
def test_a_part_of_the_package_that_cannot_be_imported_is_stood_in_for(tmp_path: Path) -> None:
    """The real determined.keras does so with Keras 3: it imports modules of Keras 2."""
    package = tmp_path / "site" / "determined"
    for part in ("keras", "pytorch", "core"):
        (package / part).mkdir(parents=True)
        (package / part / "__init__.py").write_text("REAL = True\n")
    (package / "__init__.py").write_text("__version__ = '0.38.1'\n")
    (package / "keras" / "__init__.py").write_text("from logging.handlers.legacy import hdf5_format\n")
    code = tmp_path / "c" / "code"
    code.mkdir(parents=True)
    (code / "first.py").write_text(
        "import determined.keras\nfrom determined import core, keras, pytorch\n"
        "from determined.keras import TFKerasTrial\nimport determined.keras.callbacks as callbacks\n"
        "assert determined.keras is keras and keras.callbacks is callbacks and determined.__version__ == '0.38.1'\n"
        "assert pytorch.REAL and core.REAL and determined.pytorch is pytorch and determined.core is core\n"
    )
    (code / "second.py").write_text("from determined import pytorch\nfrom determined.keras import Nothing\n")
    script = f"""
        import logging, sys
        sys.path.insert(0, {str(tmp_path / "site")!r})
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        from pathlib import Path
        from cas.load.layouts import Kind, Layout
        from cas.load.sources import sources_of
        from cas.load.trials import keras_context
        made = sources_of(Path({str(code)!r}))
        import determined
        assert made.load("first").TFKerasTrial.__module__ == "cas.load.standin.keras"
        assert not hasattr(determined, "keras")  # the user's own package stays as it is
        assert type(keras_context(Layout(Kind.KERAS_TRIAL, Path(), Path(), hparams={{"a": 1}}))).get_hparam
        try:
            made.load("second")
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True)
    warning, lacking = done.stdout.splitlines()
    assert "WARNING determined.keras of the determined package cannot be imported here" in warning
    assert "No module named 'logging.handlers.legacy'" in warning and "stand-in takes its place" in warning
    assert lacking.startswith("ImportError cannot import name 'Nothing' from 'cas.load.standin.keras'")
