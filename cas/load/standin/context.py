"""The context that a trial class is built with: hands out hyperparameters and keeps what the trial wraps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cas.load.standin.lacking import Lacking, lacks


class Distributed:
    """One process that trains alone."""

    rank = local_rank = cross_rank = 0
    size = local_size = cross_size = num_agents = 1

    def get_rank(self) -> int:
        """Return 0."""
        return 0

    def get_local_rank(self) -> int:
        """Return 0."""
        return 0

    def get_size(self) -> int:
        """Return 1."""
        return 1

    def get_num_agents(self) -> int:
        """Return 1."""
        return 1

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value."""
        return [value]

    def allgather(self, value: Any) -> list[Any]:
        """Return every process's value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value."""
        return value

    gather_local = allgather_local = allgather
    broadcast_local = broadcast


class Environment:
    """What a context has as `env`, as far as the checkpoint tells it."""

    det_experiment_id = det_trial_id = "0"  # the trial does not run
    managed_training = False

    def __init__(self, hparams: Mapping[str, Any], experiment_config: Mapping[str, Any]) -> None:
        self.hparams = dict(hparams)
        self.experiment_config = dict(experiment_config)

    @property
    def trial_seed(self) -> int:
        """The seed in the configuration."""
        return int((self.experiment_config.get("reproducibility") or {}).get("experiment_seed", 0))

    def __getattr__(self, name: str) -> Any:
        return lacks("TrialContext.env", name)


class TrialContext:
    """What contexts of every framework have."""

    def __init__(self, hparams: Mapping[str, Any], experiment_config: Mapping[str, Any]) -> None:
        self.env = Environment(hparams, experiment_config)
        self.distributed = Distributed()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Lacking(f"{type(self).__name__}.{name}")

    def get_hparam(self, name: str) -> Any:
        """Return one hyperparameter.

        Raises:
            ValueError: the trial had none of this name.
        """
        if name not in self.env.hparams:
            raise ValueError(
                f"Could not find name '{name}' in experiment hyperparameters. Please check your experiment"
                " configuration 'hyperparameters' section."
            )
        return self.env.hparams[name]

    def get_hparams(self) -> dict[str, Any]:
        """Return all hyperparameters: the dict itself, as the real one does."""
        return self.env.hparams

    def get_experiment_config(self) -> dict[str, Any]:
        """Return the experiment's configuration: the dict itself, as the real one does."""
        return self.env.experiment_config

    def get_data_config(self) -> dict[str, Any]:
        """Return the part of the configuration that is the user's own, on data."""
        return self.env.experiment_config.get("data") or {}

    def get_global_batch_size(self) -> int:
        """Return the batch size over all processes."""
        return int(self.get_hparam("global_batch_size"))

    def get_per_slot_batch_size(self) -> int:
        """Return the batch size of this process, the only one."""
        return self.get_global_batch_size()

    def get_experiment_id(self) -> int:
        """Return 0: the trial does not run."""
        return 0

    def get_trial_id(self) -> int:
        """Return 0: the trial does not run."""
        return 0

    def get_trial_seed(self) -> int:
        """Return the seed in the configuration."""
        return self.env.trial_seed

    def get_stop_requested(self) -> bool:
        """Return False."""
        return False

    def set_stop_requested(self, stop_requested: bool) -> None:  # noqa: FBT001 - as the real one
        """Do nothing."""

    def get_initial_batch(self) -> int:
        """Return 0: nothing is trained."""
        return 0

    def get_tensorboard_path(self) -> Path:
        """Return a folder that is not there: nothing is written."""
        return Path("tensorboard")
