"""`export` and `import`: checkpoints in one file, for sites with no network between them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cas.cli import output
from cas.cli.parser import WrongUsageError, add_command, add_form, checkpoint_or_name, settings

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    _register_export(groups)
    _register_import(groups)


# --- export ----------------------------------------------------------------------------------------------------------
def _register_export(groups: Any) -> None:
    parser = add_command(
        groups,
        "export",
        export,
        summary="write checkpoints, with all that is known of them, into one plain tar; what is not here is fetched"
        " first. Extracted, the file is a home of its own",
        what="export the checkpoints",
        usage="UUID... FILE",
        example=f"$ export {_UUID} model.tar\n$ export {_UUID} - | ssh host cas import -",
        again="nothing is left of it: run the same command again",
    )
    parser.add_argument("words", metavar="UUID... FILE", nargs="*", help="the checkpoints, then the file; - is stdout")
    add_form(parser)


def export(args: argparse.Namespace) -> None:
    """Write checkpoints into a file."""
    from cas.actions.exporting import STREAM
    from cas.actions.exporting import export as write
    from cas.registry.names import is_uuid

    *uuids, file = args.words or [""]
    if not uuids:
        raise WrongUsageError(
            args.parser.prog, f"say which checkpoints and which file: {args.program} export <uuid> <file>"
        )
    if is_uuid(file):
        raise WrongUsageError(args.parser.prog, f"the file comes last, and {file} is a UUID")
    try:
        wanted = [checkpoint_or_name(uuid) for uuid in uuids]
    except argparse.ArgumentTypeError as error:
        raise WrongUsageError(args.parser.prog, f"argument UUID: {error}; the file comes last") from None
    if file == STREAM and args.json:
        raise WrongUsageError(args.parser.prog, "--json goes to stdout, where the export goes: name a file")
    if file == STREAM and sys.stdout.isatty():
        raise WrongUsageError(args.parser.prog, "the export would go to the terminal: name a file, or pipe it")
    done = write(wanted, file, settings=settings(args))
    if args.json:
        output.say_json(path=done.path, checkpoints=done.checkpoints, blobs=done.blobs, size=done.size)
        return
    text = (
        f"{output.count(done.checkpoints, 'checkpoint')}, {output.count(done.blobs, 'blob')}, {output.size(done.size)}"
    )
    if file == STREAM:
        output.note(text)
    else:
        output.say(f"{done.path}: {text}")


# --- import ----------------------------------------------------------------------------------------------------------
def _register_import(groups: Any) -> None:
    parser = add_command(
        groups,
        "import",
        import_,
        summary="bring the checkpoints of a file that `export` wrote into the store; every byte is checked, and what"
        " is here already is passed over",
        what="import the file",
        usage="FILE",
        example="$ import model.tar\ncat model.tar | $ import -",
        again="what came is kept: run the same command again to go on",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="what export wrote; - is stdin")
    add_form(parser)


def import_(args: argparse.Namespace) -> None:
    """Bring the checkpoints of a file into the store."""
    from cas.actions.importing import STREAM, import_file

    if args.file is None:
        raise WrongUsageError(args.parser.prog, f"say which file: {args.program} import <file>")
    if args.file != STREAM and args.file.endswith((".gz", ".zst", ".xz", ".bz2")) and Path(args.file).exists():
        text = f"{args.file} is compressed: decompress it into `{args.program} import -`"
        raise WrongUsageError(args.parser.prog, text)
    done = import_file(args.file, settings=settings(args))
    if args.json:
        checkpoints = [{"registry": one.registry, "uuid": one.uuid} for one in done.checkpoints]
        counts = {"blobs": done.blobs, "here": done.here, "size": done.size, "records": done.records}
        output.say_json(checkpoints=checkpoints, **counts)
        return
    for one in done.checkpoints:
        output.say(output.printable(f"{one.uuid}  {one.registry}"))
    came = f"{output.count(done.blobs, 'blob')} came ({output.size(done.size)}), here already: {done.here}"
    output.note(f"{came}; {output.count(done.records, 'new record')}")
