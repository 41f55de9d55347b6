"""`determined.pytorch`, as far as building a trial's models needs it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from cas.load.standin import Trial
from cas.load.standin.context import TrialContext
from cas.load.standin.lacking import Lacking, lacks, placeholders
from cas.load.standin.silent import Silent

_MODULE = "determined.pytorch"


class PyTorchTrialContext(TrialContext):
    """Keeps the models, optimizers and schedulers that a trial wraps, and returns them as they are."""

    def __init__(self, hparams: Mapping[str, Any], experiment_config: Mapping[str, Any]) -> None:
        super().__init__(hparams, experiment_config)
        self.models: list[Any] = []
        self.optimizers: list[Any] = []
        self.lr_schedulers: list[Any] = []
        self.experimental = self

    def wrap_model(self, model: Any) -> Any:
        """Note a model: the i-th is the i-th of the state dict."""
        self.models.append(model)
        return model

    def wrap_optimizer(self, optimizer: Any, *_: Any, **__: Any) -> Any:
        """Note an optimizer."""
        self.optimizers.append(optimizer)
        return optimizer

    def wrap_lr_scheduler(self, lr_scheduler: Any, step_mode: Any = None, frequency: int = 1) -> Any:
        """Note a scheduler."""
        self.lr_schedulers.append(LRScheduler(lr_scheduler, step_mode, frequency))
        return lr_scheduler

    # What these were called before they wrapped anything.
    Model, Optimizer, LRScheduler = wrap_model, wrap_optimizer, wrap_lr_scheduler

    def wrap_scaler(self, scaler: Any) -> Any:
        """Return the scaler."""
        return scaler

    def wrap_reducer(self, reducer: Any, *_: Any, **__: Any) -> Any:
        """Return the reducer."""
        return reducer

    def configure_apex_amp(self, models: Any, optimizers: Any = None, **__: Any) -> Any:
        """Return models and optimizers as they are: nothing is trained in half precision here."""
        return models if optimizers is None else (models, optimizers)

    def use_amp(self) -> None:
        """Do nothing."""

    def set_profiler(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def disable_dataset_reproducibility_checks(self) -> None:
        """Do nothing."""

    def disable_auto_to_device(self) -> None:
        """Do nothing."""

    def reduce_metrics(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def autocast_forward_pass(self, to_wrap: Any) -> Any:
        """Return the model as it is: nothing runs in half precision here."""
        return to_wrap

    def set_enable_tensorboard_logging(self, enable_tensorboard_logging: bool) -> None:  # noqa: FBT001 - as the real one
        """Do nothing."""

    def get_enable_tensorboard_logging(self) -> bool:
        """Return False."""
        return False

    def get_tensorboard_writer(self) -> Any:
        """Return what writes nothing."""
        return Silent()

    @property
    def n_gpus(self) -> int:
        """Return 0: models are built on the processor."""
        return 0

    num_gpus = n_gpus

    def get_model(self) -> Any:
        """Return the first model."""
        return self.models[0]

    def get_optimizer(self) -> Any:
        """Return the first optimizer."""
        return self.optimizers[0]

    @property
    def device(self) -> Any:
        """The processor: models are built there, and moved by whoever loads them."""
        import torch

        return torch.device("cpu")

    def to_device(self, data: Any, *_: Any, **__: Any) -> Any:
        """Return the data as they are."""
        return data

    def is_epoch_start(self) -> bool:
        """Return False: nothing is trained."""
        return False

    def is_epoch_end(self) -> bool:
        """Return False: nothing is trained."""
        return False

    def current_train_batch(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    def current_train_epoch(self) -> int:
        """Return 0: nothing is trained."""
        return 0


class PyTorchTrial(Trial):
    """The class that users' trials inherit from."""

    def __init__(self, context: PyTorchTrialContext) -> None:
        self.context = context


class PyTorchCallback:
    """The class that users' callbacks inherit from; none of its methods is called here."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do nothing."""


class MetricReducer:
    """The class that users' reducers inherit from."""


class Reducer(Enum):
    """How batch metrics are joined."""

    AVG = 1
    SUM = 2
    MAX = 3
    MIN = 4


class LRScheduler:
    """A scheduler, and when it steps."""

    class StepMode(Enum):
        """When a scheduler steps."""

        STEP_EVERY_EPOCH = 1
        STEP_EVERY_BATCH = 2
        MANUAL_STEP = 3
        STEP_EVERY_OPTIMIZER_STEP = 4

    def __init__(self, scheduler: Any, step_mode: Any = None, frequency: int = 1) -> None:
        self._scheduler = scheduler
        self._step_mode = step_mode
        self._frequency = frequency

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._scheduler, name)


class DataLoader:
    """A recipe for torch's DataLoader, whose arguments it takes, in the same order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        from torch.utils.data import DataLoader as TorchDataLoader

        self._loader = TorchDataLoader(*args, **options)

    def get_data_loader(self, *_: Any, **__: Any) -> Any:
        """Return torch's DataLoader for one process."""
        return self._loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Any:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


class _Count:
    """A length of training; only kept."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


class Batch(_Count):
    """A number of batches."""


class Epoch(_Count):
    """A number of epochs."""


class Record(_Count):
    """A number of records."""


class ClipGradsL2Norm(PyTorchCallback):
    """Clips nothing; old trials return it from `build_callbacks`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


ClipGradsL2Value = ClipGradsL2Norm
TrainUnit = _Count
TorchData = Any
CheckpointLoadContext = PyTorchExperimentalContext = PyTorchTrialContext
globals().update(placeholders(_MODULE, "Trainer data_length load_trial_from_checkpoint_path to_device"))


def init(*_: Any, **__: Any) -> Any:
    """Fail: this starts training.

    Raises:
        Lacking: always.
    """
    raise Lacking(f"{_MODULE}.init")


def reset_parameters(model: Any) -> None:
    """Initialize a model's parameters anew, where its modules can."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def __getattr__(name: str) -> Any:
    return lacks(_MODULE, name)
