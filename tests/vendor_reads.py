"""What the vendor's own client (`determined`) makes of a master; run with its environment's Python.

vendor_reads.py URL USER PASSWORD EXPERIMENT… < /dev/null      prints one JSON object
vendor_reads.py URL login USER PASSWORD…                       logs these users in, one after the other
"""

from __future__ import annotations

import json
import sys
import warnings

warnings.simplefilter("ignore")

from determined.common.api import authentication  # noqa: E402  # it warns
from determined.experimental import client  # noqa: E402


def seen(checkpoint: client.Checkpoint) -> dict[str, object]:
    training = checkpoint.training
    return {
        "uuid": checkpoint.uuid,
        "state": checkpoint.state.name,
        "report_time": checkpoint.report_time,
        "resources": {name: int(size) for name, size in checkpoint.resources.items()},
        "metadata": checkpoint.metadata,
        "task_id": checkpoint.task_id,
        "training": training
        and {
            "experiment": training.experiment_id,
            "trial": training.trial_id,
            "hparams": training.hparams,
            "config": training.experiment_config,
            "metrics": training.validation_metrics["avgMetrics"] if training.validation_metrics else None,
        },
    }


def read(url: str, user: str, password: str, experiments: list[int]) -> dict[str, object]:
    determined = client.Determined(url, user, password)
    found: dict[str, object] = {"version": determined._session.get("/info").json()["version"]}
    for id in experiments:
        experiment = determined.get_experiment(id)
        trials = [one.id for one in experiment.list_trials()]
        by_uuid = (client.CheckpointSortBy.UUID, client.OrderBy.ASC)
        of_trials = {trial: determined.get_trial(trial).list_checkpoints(*by_uuid) for trial in trials}
        found[str(id)] = {
            "name": experiment.name,
            "trials": trials,
            "completed": [seen(one) for one in experiment.list_checkpoints(*by_uuid)],
            "of_trials": {trial: [seen(one) for one in some] for trial, some in of_trials.items()},
            "by_default": [one.uuid for one in experiment.list_checkpoints(max_results=1)],
        }
    return found


if __name__ == "__main__":
    address, *rest = sys.argv[1:]
    if rest[0] == "login":
        for name, secret in zip(rest[1::2], rest[2::2], strict=True):
            session = authentication.login(address, name, secret)
            authentication.TokenStore(address).set_token(session.username, session.token)
    else:
        print(json.dumps(read(address, rest[0], rest[1], [int(one) for one in rest[2:]])))
