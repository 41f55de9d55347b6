"""`checkpoint download` and `checkpoint describe`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from cas.cli import output
from cas.cli.parser import LINKS, MODES, Parser, add_command, add_form, add_group, checkpoint_uuid, client, missing

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
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_uuid, nargs="?", help="the checkpoint")
    add_download_options(parser)
    parser = add_command(
        commands,
        "describe",
        describe,
        summary="print what is known of a checkpoint",
        what="describe the checkpoint",
        usage="UUID [OPTIONS]",
        example=f"$ checkpoint describe {_UUID}\n$ checkpoint describe {_UUID} --json",
    )
    parser.add_argument("uuid", metavar="UUID", type=checkpoint_uuid, nargs="?", help="the checkpoint")
    add_form(parser)


def add_download_options(parser: Parser) -> None:
    """Add what every download takes."""
    parser.add_argument("-o", "--output-dir", metavar="DIR", help="the folder; default checkpoints/<uuid>")
    how = "how files get there; default auto: reflinks where the disk can, else copies"
    parser.add_argument("--link", choices=LINKS, help=how)
    way = "direct: from the storage; master: through the master; auto (default): as it is open"
    parser.add_argument("--mode", choices=MODES, help=way)
    add_form(parser, quiet="print only the path")


def download(args: argparse.Namespace) -> None:
    """Download a checkpoint."""
    if args.uuid is None:
        raise missing(args, "checkpoint", "<uuid>")
    bring(client(args).get_checkpoint(args.uuid), args)


def bring(checkpoint: Checkpoint, args: argparse.Namespace) -> None:
    """Download a checkpoint to where the options say, and print it."""
    path = checkpoint.download(args.output_dir, args.mode, link=args.link)
    if args.quiet:
        output.say(path)
    elif args.json:
        files, transfer = _plain(checkpoint.link_report), _transferred(checkpoint.pull_report)
        output.say_json(path=path, checkpoint=_known(checkpoint), files=files, transfer=transfer)
    else:
        output.say(f"Local checkpoint path:\n{path}\n")
        metrics = json.dumps(checkpoint.validation["metrics"], indent=4, default=str)
        row = (checkpoint.batch_number, checkpoint.uuid, metrics)
        output.say(output.documented_table(("Batch", "Checkpoint UUID", "Validation Metrics"), [row]))
        sys.stdout.flush()  # the result first
        output.note(_what_was_done(checkpoint))


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
    rows = [(output.size(one["size"]), "yes" if one["here"] else "no", one["path"]) for one in files]
    output.say(f"files: {len(rows)}, {output.size(sum(one['size'] for one in files))}")
    if rows:
        output.say(output.table(("size", "here", "path"), rows, right=("size",)))


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
    names = ("type", "endpoint_url", "bucket", "container", "prefix", "host_path", "container_path", "storage_path")
    return " ".join(str(storage[name]) for name in names if storage.get(name))


def _files(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """List the files as the store knows them, else as the registry does."""
    manifest = checkpoint.store.resolve(checkpoint.record.registry, checkpoint.uuid)
    if manifest is None:
        resources = sorted(checkpoint.resources.items())
        return [{"path": name, "size": size, "digest": None, "here": False} for name, size in resources]
    absent = set(checkpoint.store.absent(manifest))
    return [
        {
            "path": str(entry.path),
            "size": entry.size,
            "digest": str(entry.digest) if entry.digest else None,
            "here": entry.digest is not None and entry.digest not in absent,
        }
        for entry in manifest.files
    ]


def _what_was_done(checkpoint: Checkpoint) -> str:
    """Say how the files got into the folder, and what was transferred."""
    link, pull = checkpoint.link_report, checkpoint.pull_report
    parts = [f"files: {link}"]
    if pull is not None:
        here = f", {output.size(pull.bytes_here)} were here" if pull.bytes_here else ""
        parts.append(f"{output.size(pull.bytes_fetched)} fetched in {pull.seconds:.1f} s{here}")
    if link is not None and link.only_copies:
        parts.append(f"{link.only_copies} of them no hard links, because this store has the only copy")
    if link is not None and link.extra:
        parts.append(f"{link.extra} files that are not the checkpoint's were left alone")
    return "; ".join(parts)


def _plain(report: LinkReport | None) -> dict[str, Any] | None:
    from dataclasses import asdict

    return None if report is None else asdict(report)


def _transferred(report: PullReport | None) -> dict[str, Any] | None:
    if report is None:
        return None
    names = ("files_fetched", "bytes_fetched", "bytes_resumed", "bytes_here", "seconds")
    return {**{name: getattr(report, name) for name in names}, "proofs": dict(report.proofs)}
