"""`share` and `seal`: who else uses the store."""

from __future__ import annotations

import argparse
from typing import Any

from cas.cli import output
from cas.cli.parser import add_command, add_form, settings, store


def register(groups: Any) -> None:
    """Add the commands."""
    _register_share(groups)
    _register_seal(groups)


def _register_share(groups: Any) -> None:
    parser = add_command(
        groups,
        "share",
        share,
        summary="let all members of a group use the store, whatever their umask (--private: nobody else)",
        what="share the store",
        usage="[--group NAME | --private] [OPTIONS]",
        example="$ share --group ml-team\n$ share --private",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--group", metavar="NAME", help="whose store it will be; default: the group of its folder")
    which.add_argument("--private", action="store_true", help="keep everybody else out again")
    add_form(parser)


def share(args: argparse.Namespace) -> None:
    """Share the store, or end that."""
    from cas.index.sharing import share_store, unshare_store

    opened = store(args)
    group = None
    if args.private:
        unshare_store(opened)
    else:
        group = share_store(opened, args.group)
    if args.json:
        output.say_json(home=str(opened.home), group=group)
    elif group is None:
        output.say(f"{opened.home} is yours alone")
    else:
        output.say(f"{opened.home} is the store of the group {group}: all its members can add, use and remove")


def _register_seal(groups: Any) -> None:
    parser = add_command(
        groups,
        "seal",
        seal,
        summary="close the store for an image or a read-only mount: everything checked, synced and readable by all",
        what="seal the store",
        usage="[--undo] [OPTIONS]",
        example="$ seal\n$ seal --undo\n$ --home /opt/cas seal --json",
    )
    parser.add_argument("--undo", action="store_true", help="open a sealed store again")
    add_form(parser)


def seal(args: argparse.Namespace) -> None:
    """Seal the store, or open it again."""
    from cas.index.sealing import seal_store, unseal_store
    from cas.transfer.progress import reaching

    opened = store(args)
    if args.undo:
        was_sealed = unseal_store(opened)
        if args.json:
            output.say_json(home=str(opened.home), sealed=False, was_sealed=was_sealed)
        else:
            output.say(f"{opened.home} {'is open again' if was_sealed else 'was not sealed'}")
        return
    with reaching(settings(args).progress, "sealed") as advance:
        report = seal_store(opened, advance=advance)
    if args.json:
        known: dict[str, Any] = {"blobs": report.blobs, "size": report.size, "hashed": report.hashed}
        incomplete = list(report.incomplete)
        output.say_json(
            home=str(opened.home), sealed=True, was_sealed=report.was_sealed, **known, incomplete=incomplete
        )
        return
    for uuid in report.incomplete:
        output.note(f"not all files of {uuid} are in the store")
    if report.was_sealed:
        output.say(f"{opened.home} was sealed already")
    else:
        seen = f"{output.count(report.blobs, 'blob')}, {output.size(report.size)}, {report.hashed} of them read"
        output.say(f"{opened.home} is sealed ({seen}); nothing changes it until `cas seal --undo`")
