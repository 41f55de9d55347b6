"""`add`: bring folders into the store as checkpoints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import (
    WrongUsageError,
    add_boolean,
    add_command,
    add_form,
    checkpoint_uuid,
    members,
    metric,
    missing,
    number,
    settings,
)
from cas.errors import CasError, ExperimentConflictError

if TYPE_CHECKING:
    from cas.config import Settings

_UUID_LENGTH = 36  # folders are named in the canonical form; 32 hex digits may be anything
_MAX_METADATA = 64 << 20  # bytes


def register(groups: Any) -> None:
    """Add the command."""
    parser = add_command(
        groups,
        "add",
        add,
        summary="add folders (or files) to the store as checkpoints; they are copied, and left as they are",
        what="add the checkpoint",
        usage="PATH... [OPTIONS]",
        example="$ add model/ --experiment 1 --trial 2 --steps 300 --metric accuracy=0.97 --metric loss=0.1\n"
        "$ add run/ --experiment 1 --steps 300 --metric loss=0.1 --searcher-metric loss --smaller-is-better yes\n"
        "$ add checkpoints/*          # adopts folders named by UUID, as the older client left them",
        again="what was added whole is in the store; run the same command again to go on",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a folder, or one file")
    parser.add_argument("--experiment", metavar="ID", type=number, help="the experiment it belongs to, your own number")
    parser.add_argument("--trial", metavar="ID", type=number, help="the trial; unique over all your experiments")
    parser.add_argument("--steps", metavar="N", type=number, help="batches that the trial had trained")
    parser.add_argument(
        "--metric", metavar="NAME=VALUE", type=metric, action="append", default=[], help="of the validation; repeatable"
    )
    parser.add_argument("--searcher-metric", metavar="NAME", help="the metric that says which checkpoint is best")
    add_boolean(parser, "--smaller-is-better", help="that metric's direction: yes or no")
    parser.add_argument("--uuid", type=checkpoint_uuid, help="default: the folder's name if it is one, else a new one")
    of = "an object, or one of its members; repeatable"
    parser.add_argument("--hparams", metavar="JSON|NAME=VALUE", type=members, action="append", default=[], help=of)
    parser.add_argument("--metadata", metavar="JSON|NAME=VALUE", type=members, action="append", default=[], help=of)
    add_form(parser, quiet="print only the UUIDs")


def add(args: argparse.Namespace) -> int:
    """Add every path; one that cannot be added does not stop the others."""
    if not args.paths:
        raise missing(args, "folder", "<folder>")
    if len(args.paths) > 1 and args.uuid:
        raise WrongUsageError(args.parser.prog, "--uuid names one checkpoint: give one PATH with it")
    chosen, added, code = settings(args), [], 0
    for path in args.paths:
        try:
            added.append(_add(path, args, chosen))
        except CasError as error:
            if len(args.paths) == 1:
                raise
            output.note(f"Failed to add {path}: {error}")
            code = code or error.exit_code
            continue
        if not args.json:
            output.say(added[-1]["uuid"] if args.quiet else _line(added[-1]))
    if args.json:
        output.say_json(checkpoints=added)
    return code


def _add(path: str, args: argparse.Namespace, chosen: Settings) -> dict[str, Any]:
    from cas.actions import adding

    found = _left_by_older_client(Path(path))
    adopted = args.experiment is None and args.trial is None
    try:
        checkpoint = adding.add(
            path,
            experiment=found.experiment if adopted else args.experiment,
            trial=found.trial if adopted else args.trial,
            steps=args.steps if args.steps is not None else found.steps,
            metrics=dict(args.metric) or None,
            searcher_metric=args.searcher_metric,
            smaller_is_better=args.smaller_is_better,
            uuid=args.uuid or found.uuid,
            hparams=_joined(args.hparams) or found.hparams,
            metadata={**found.metadata, **_joined(args.metadata)} if args.metadata else None,
            config=found.config if adopted else None,
            settings=chosen,
        )
    except ExperimentConflictError as error:
        if not adopted or found.experiment is None:
            raise
        raise ExperimentConflictError(
            f"{error}; its metadata.json says experiment {found.experiment}, perhaps of another cluster:"
            " --experiment ID --trial ID gives it ids of your own"
        ) from error
    sizes = checkpoint.resources.values()
    return {
        "uuid": checkpoint.uuid,
        "from": path,
        "was_here": checkpoint.was_here,
        "experiment": checkpoint.experiment_id,
        "trial": checkpoint.trial_id,
        "batch": checkpoint.batch_number,
        "files": sum(not name.endswith("/") for name in checkpoint.resources),
        "size": sum(sizes),
    }


def _line(one: dict[str, Any]) -> str:
    count = f"{one['files']} file{'' if one['files'] == 1 else 's'}"
    what = "is in the store already, as in" if one["was_here"] else "added from"
    return f"{one['uuid']}  {what} {output.printable(one['from'])}: {count}, {output.size(one['size'])}"


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


@dataclass(frozen=True, slots=True)
class _Found:
    """What a folder that the older client downloaded says of itself: by its name, and in `metadata.json`."""

    uuid: str | None = None
    experiment: int | None = None
    trial: int | None = None
    steps: int | None = None
    hparams: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def _left_by_older_client(folder: Path) -> _Found:
    metadata = _read_object(folder / "metadata.json")
    experiment, hparams, config = (metadata.get(name) for name in ("experiment_id", "hparams", "experiment_config"))
    belongs = _is_count(experiment, least=1)
    return _Found(
        uuid=_uuid_in_name(folder),
        experiment=experiment if belongs else None,
        trial=metadata["trial_id"] if belongs and _is_count(metadata.get("trial_id"), least=1) else None,
        steps=metadata["steps_completed"] if _is_count(metadata.get("steps_completed"), least=0) else None,
        hparams=hparams if isinstance(hparams, dict) else None,
        config=_without_storage(config) if belongs and isinstance(config, dict) else None,
        metadata=metadata,
    )


def _without_storage(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the place where the files lay: what is added here is nobody's copy to fetch again."""
    return {name: value for name, value in config.items() if name != "checkpoint_storage"}


def _uuid_in_name(folder: Path) -> str | None:
    name = folder.resolve().name
    try:
        return checkpoint_uuid(name) if len(name) == _UUID_LENGTH and folder.is_dir() else None
    except argparse.ArgumentTypeError:
        return None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_METADATA:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # it is a file like any other, then
        return {}
    return found if isinstance(found, dict) else {}


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63
