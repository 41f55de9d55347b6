"""`checkpoint download`, `checkpoint describe` and `checkpoint list`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.listed import say_checkpoints
from cas.cli.parser import (
    LINKS,
    MODES,
    Parser,
    WrongUsageError,
    add_command,
    add_form,
    add_group,
    add_patterns,
    add_registry,
    checkpoint_or_name,
    client,
    count,
    missing,
    number,
)
from cas.cli.planning import say_plan

if TYPE_CHECKING:
    from cas.checkpoint import Checkpoint
    from cas.load.links import LinkReport
    from cas.transfer.fetch import PullReport

DOWNLOAD_AGAIN = "what was fetched is kept: run the same command again to go on"
_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    example = f"$ checkpoint download {_UUID}"
    commands = add_group(groups, "checkpoint", aliases=("c",), summary="one checkpoint", example=example)
    parser = add_command(
        commands,
        "download",
        download,
        summary="download a checkpoint by its UUID",
        what="download the checkpoint",
        usage="UUID [OPTIONS]",
        example=f"{example}\n{example} -o model --link hardlink",
        again=DOWNLOAD_AGAIN,
    )
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_or_name, nargs="?", help="the checkpoint")
    add_download_options(parser)
    add_patterns(parser)
    parser = add_command(
        commands,
        "describe",
        describe,
        summary="print what is known of a checkpoint",
        what="describe the checkpoint",
        usage="UUID [OPTIONS]",
        example=f"$ checkpoint describe {_UUID}\n$ checkpoint describe {_UUID} --json",
    )
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_or_name, nargs="?", help="the checkpoint")
    add_form(parser)
    _register_list(commands)


def _register_list(commands: Any) -> None:
    parser = add_command(
        commands,
        "list",
        list_,
        summary="list the checkpoints of an experiment or of a trial",
        what="list the checkpoints",
        usage="(EXPERIMENT_ID | --trial ID) [OPTIONS]",
        example="$ checkpoint list 1\n$ checkpoint list 1 --best 3\n"
        "$ checkpoint list --trial 7 --sort-by accuracy --order desc --csv",
    )
    parser.add_argument(
        "experiment_id", metavar="EXPERIMENT_ID", type=number, nargs="?", help="those of this experiment"
    )
    parser.add_argument("--trial", metavar="ID", type=number, help="those of this trial")
    parser.add_argument("--best", metavar="N", type=count, help="only the best N by the searcher's metric, best first")
    parser.add_argument("--sort-by", metavar="METRIC", help="in order of this validation metric; default: of time")
    parser.add_argument("--order", choices=("asc", "desc"), help="with --sort-by: least first (default), or most first")
    add_form(parser, quiet="print only the UUIDs", csv=True)
    add_registry(parser)


def list_(args: argparse.Namespace) -> None:
    """List the checkpoints of an experiment or of a trial."""
    from cas.registry.select import CheckpointSortBy, require_metric

    if (args.experiment_id is None) == (args.trial is None):
        raise WrongUsageError(args.parser.prog, "say of which experiment, or of which trial: one of them")
    if args.best is not None and args.sort_by is not None:
        raise WrongUsageError(args.parser.prog, "--best goes by the searcher's metric, --sort-by by another: give one")
    if args.order is not None and args.sort_by is None:
        raise WrongUsageError(args.parser.prog, "--order goes with --sort-by only")
    door = client(args, registry=args.registry)
    sort_by, order = args.sort_by or CheckpointSortBy.END_TIME, args.order or "asc"
    if args.trial is not None:
        trial = door.get_trial(args.trial)
        found = trial.list_checkpoints(sort_by, order) if args.best is None else trial.top_n_checkpoints(args.best)
    else:
        experiment = door.get_experiment(args.experiment_id)
        if args.best is None:
            found = experiment.list_checkpoints(sort_by, order, every_state=True)
        else:
            found = experiment.top_n_checkpoints(args.best)
    if args.sort_by is not None:
        require_metric(args.sort_by, [one.record for one in found])
    say_checkpoints(found, args)


def add_download_options(
    parser: Parser, *, folder: str = "the folder; default checkpoints/<uuid>", quiet: str = "print only the path"
) -> None:
    """Add what every download takes."""
    parser.add_argument("-o", "--output-dir", metavar="DIR", help=folder)
    how = "how files get there; default auto: reflinks where the disk can, else copies"
    parser.add_argument("--link", choices=LINKS, help=how)
    past = "leave nothing in the store: what is fetched goes straight to the folder's disk"
    parser.add_argument("--no-store", action="store_true", help=past)
    way = "direct: from the storage; master: through the master; auto (default): as it is open"
    parser.add_argument("--mode", choices=MODES, help=way)
    parser.add_argument("--dry-run", action="store_true", help="print what would be fetched, and do nothing")
    add_form(parser, quiet=quiet)


def download(args: argparse.Namespace) -> None:
    """Download a checkpoint."""
    if args.uuid is None:
        raise missing(args, "checkpoint", "<uuid>")
    checkpoint = client(args).get_checkpoint(args.uuid)
    if args.include or args.exclude:
        checkpoint = checkpoint.only(args.include, args.exclude)
    brought = say_plan(checkpoint.plan(), args) if args.dry_run else bring(checkpoint, args, folder=args.output_dir)
    if args.json:
        output.say_json(**brought)


def bring(checkpoint: Checkpoint, args: argparse.Namespace, *, folder: str | None) -> dict[str, Any]:
    """Download a checkpoint into a folder, print it unless as JSON, and return what is printed then."""
    path = checkpoint.download(folder, args.mode, link=args.link, store=not args.no_store)
    if args.quiet:
        output.say(path)
        sys.stdout.flush()
    elif not args.json:
        output.say(f"Local checkpoint path:\n{path}\n")
        metrics = json.dumps(checkpoint.validation["metrics"], indent=4, default=str)
        row = (checkpoint.batch_number, checkpoint.uuid, metrics)
        output.say(output.documented_table(("Batch", "Checkpoint UUID", "Validation Metrics"), [row]))
        sys.stdout.flush()  # the result first
        output.note(_what_was_done(checkpoint))
    files, transfer = _plain(checkpoint.link_report), _transferred(checkpoint.pull_report)
    return {"path": path, "checkpoint": _known(checkpoint), "files": files, "transfer": transfer}


def describe(args: argparse.Namespace) -> None:
    """Print what is known of a checkpoint."""
    if args.uuid is None:
        raise missing(args, "checkpoint", "<uuid>")
    checkpoint = client(args).get_checkpoint(args.uuid)
    files = _files(checkpoint)
    if args.json:
        output.say_json(checkpoint=_known(checkpoint), files=files)
        return
    for name, value in _known(checkpoint).items():
        text = json.dumps(value, indent=2) if isinstance(value, dict) else output.printable(value)
        output.say(f"{name.replace('_', ' ')}: {text if value not in (None, {}) else '-'}")
    rows = [
        (output.size(one["size"]), "yes" if one["here"] else "no", one["proof"] or "-", one["path"]) for one in files
    ]
    output.say(f"files: {len(rows)}, {output.size(sum(one['size'] for one in files))}")
    if rows:
        output.say(output.table(("size", "here", "proof", "path"), rows, right=("size",)))


def _known(checkpoint: Checkpoint) -> dict[str, Any]:
    record = checkpoint.record
    data = record.to_json()  # with no credential in it
    return {
        "uuid": record.uuid,
        "registry": record.registry,
        "state": str(record.state),
        "experiment": record.experiment_id,
        "trial": record.trial_id,
        "batch": record.steps_completed,
        "report_time": record.report_time,
        "storage": _storage(record.experiment_config.get("checkpoint_storage")),
        "hparams": data["hparams"],
        "validation_metrics": data["validation"],
        "metadata": data["metadata"],
    }


def _storage(storage: object) -> str | None:
    """Say where the origin is, in words that hold no credential."""
    if not isinstance(storage, dict):
        return None
    names = (
        "type",
        "url",
        "endpoint_url",
        "bucket",
        "container",
        "prefix",
        "host_path",
        "container_path",
        "storage_path",
    )
    return " ".join(str(storage[name]) for name in names if storage.get(name))


def _files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """List the files as the store knows them, else as the registry does."""
    manifest = checkpoint.store.resolve(checkpoint.record.registry, checkpoint.uuid)
    if manifest is None:
        resources = sorted(checkpoint.resources.items())
        return [{"path": name, "size": size, "digest": None, "here": False, "proof": None} for name, size in resources]
    absent = set(checkpoint.store.absent(manifest))
    proofs = checkpoint.proofs
    return [
        {
            "path": str(entry.path),
            "size": entry.size,
            "digest": str(entry.digest) if entry.digest else None,
            "here": entry.digest is not None and entry.digest not in absent,
            "proof": proofs.get(entry.path),
        }
        for entry in manifest.files
    ]


def _what_was_done(checkpoint: Checkpoint) -> str:
    """Say how the files got into the folder, and what was transferred."""
    link, pull = checkpoint.link_report, checkpoint.pull_report
    parts = [f"files: {link}"]
    if pull is not None:
        known = pull.bytes_here + pull.bytes_reused
        here = f", {output.size(known)} were here" if known else ""
        parts.append(f"{output.size(pull.bytes_fetched)} fetched in {pull.seconds:.1f} s{here}")
    if link is not None and link.only_copies:
        parts.append(f"{link.only_copies} of them no hard links, because this store has the only copy")
    if link is not None and link.extra:
        parts.append(f"left alone: {output.count(link.extra, 'file')} not of the checkpoint")
    return "; ".join(parts)


def _plain(report: LinkReport | None) -> dict[str, Any] | None:
    from dataclasses import asdict

    return None if report is None else asdict(report)


def _transferred(report: PullReport | None) -> dict[str, Any] | None:
    if report is None:
        return None
    names = ("files_fetched", "bytes_fetched", "bytes_resumed", "bytes_reused", "bytes_here", "seconds")
    return {**{name: getattr(report, name) for name in names}, "proofs": dict(report.proofs)}
