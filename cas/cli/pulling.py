"""`pull`: checkpoints from URLs; `tag`: names of the user's own."""

from __future__ import annotations

import argparse
from typing import Any

from cas.cli import output
from cas.cli.checkpoint import DOWNLOAD_AGAIN
from cas.cli.parser import (
    LINKS,
    WrongUsageError,
    add_command,
    add_form,
    add_patterns,
    checkpoint_or_name,
    members,
    missing,
    settings,
)
from cas.cli.planning import say_plan

_UUID = "46985143-af68-4d48-ab91-a6447052ca49"


def register(groups: Any) -> None:
    """Add the commands."""
    parser = add_command(
        groups,
        "pull",
        pull,
        summary="bring what lies at a URL into the store: a bucket's prefix, a folder, an HTTP index, a hub",
        what="pull",
        usage="URL [OPTIONS]",
        example="$ pull s3://models/llama-8b --include '*.safetensors' --include '*.json' --name llama/8b\n"
        "$ pull https://host.example/models/8b/ -o model\n"
        "$ pull hf://org/model --exclude '*.bin'\n"
        "ls $($ view llama/8b)",
        again=DOWNLOAD_AGAIN,
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="s3://, gs://, az://, http(s)://, file://, hf://, …")
    add_patterns(parser)
    parser.add_argument(
        "--file",
        metavar="NAME",
        action="append",
        default=[],
        dest="files",
        help="over HTTP: a file below the URL, for servers with no index; repeatable",
    )
    parser.add_argument("--name", metavar="NAME", help="a name of your own for it, as `tag` gives")
    parser.add_argument(
        "--storage-option",
        metavar="NAME=VALUE",
        type=members,
        action="append",
        default=[],
        help="for fsspec, or headers={…} for HTTP; never written anywhere; repeatable",
    )
    parser.add_argument("-o", "--output-dir", metavar="DIR", help="also put the files into this folder")
    parser.add_argument("--link", choices=LINKS, help="with -o: how files get there; default auto")
    parser.add_argument("--dry-run", action="store_true", help="print what would be fetched, and fetch nothing")
    add_form(parser, quiet="print only the UUID")
    _register_tag(groups)


def pull(args: argparse.Namespace) -> None:
    """Bring what lies at a URL into the store."""
    if args.url is None:
        raise missing(args, "place", "<url>")
    if args.link and args.output_dir is None:
        raise WrongUsageError(args.parser.prog, "--link goes with -o")
    from cas.checkpoint import Checkpoint
    from cas.pull import urls
    from cas.registry.names import check_name

    if args.name is not None:
        check_name(args.name)
    chosen = settings(args)
    options = {name: value for one in args.storage_option for name, value in one.items()}
    checkpoint = Checkpoint.from_url(
        args.url,
        include=args.include,
        exclude=args.exclude,
        files=args.files,
        storage_options=options or None,
        settings=chosen,
    )
    if args.dry_run:
        planned = say_plan(checkpoint.plan(), args)
        if args.json:
            output.say_json(**planned)
        return
    manifest = checkpoint.fetch()
    report, partial = checkpoint.pull_report, checkpoint.is_partial
    if args.name is not None:
        urls.tag(args.name, checkpoint.uuid, settings=chosen)
    path = checkpoint.download(args.output_dir, link=args.link) if args.output_dir is not None else None
    if args.quiet:
        output.say(checkpoint.uuid)
    elif args.json:
        output.say_json(
            uuid=checkpoint.uuid,
            name=args.name,
            url=checkpoint.record.metadata.get("url"),
            files=len(manifest.files),
            size=manifest.size,
            partial=partial,
            path=path,
            fetched=report.bytes_fetched if report else 0,
            proofs=dict(report.proofs) if report else {},
        )
    else:
        count = f"{len(manifest.files)} file{'' if len(manifest.files) == 1 else 's'}"
        some = "; it has others, which were not pulled" if partial else ""
        named = f"  {args.name}" if args.name else ""
        output.say(f"{checkpoint.uuid}{named}  {count}, {output.size(manifest.size)}{some}")
        if path is not None:
            output.say(path)
        if report is not None:
            output.note(f"{output.size(report.bytes_fetched)} fetched in {report.seconds:.1f} s")


# --- tag -------------------------------------------------------------------------------------------------------------


def _register_tag(groups: Any) -> None:
    parser = add_command(
        groups,
        "tag",
        tag,
        summary="give checkpoints names, which are taken wherever their UUIDs are; or list the names",
        what="name the checkpoint",
        usage="[NAME UUID | --remove NAME]",
        example=f"$ tag best-so-far {_UUID}\n$ tag\n$ checkpoint download best-so-far\n$ tag --remove best-so-far",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="letters, digits and . _ + -, like llama/8b-v2")
    parser.add_argument("which", metavar="UUID", type=checkpoint_or_name, nargs="?", help="the checkpoint")
    parser.add_argument("--remove", action="store_true", help="take the name away; the checkpoint stays")
    add_form(parser)


def tag(args: argparse.Namespace) -> None:
    """Name a checkpoint, take a name away, or list all names."""
    from cas.pull import urls

    chosen = settings(args)
    if args.name is None:
        if args.remove:
            raise missing(args, "name", "<name>")
        _say_tags(args, urls.tags(settings=chosen))
        return
    if args.remove and args.which is not None:
        raise WrongUsageError(args.parser.prog, "--remove takes a name, and no UUID")
    if args.which is None and not args.remove:
        raise WrongUsageError(args.parser.prog, f"say which checkpoint: {args.parser.prog} {args.name} <uuid>")
    before = urls.tag(args.name, None if args.remove else args.which, settings=chosen)
    now = urls.tags(settings=chosen).get(args.name)
    if args.json:
        output.say_json(name=args.name, uuid=now, before=before)
    elif args.remove:
        output.say(f"{args.name} no longer names {before}")
    else:
        moved = f" (it named {before})" if before not in (None, now) else ""
        output.say(f"{args.name} names {now}{moved}")


def _say_tags(args: argparse.Namespace, found: dict[str, str]) -> None:
    if args.json:
        output.say_json(names=found)
    elif found:
        output.say(output.table(("name", "uuid"), list(found.items())))
    else:
        output.note("no checkpoint has a name")
