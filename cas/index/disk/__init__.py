"""The one package that knows the disk's and the clock's quirks; every change that the store makes goes through it.

Callers say `disk.rename`, `disk.now`: this is the door, and the modules behind it are what it is made of.

    steps     what a change of the disk is: observed by tests, refused in a sealed store
    group     whose is what is made in a group's home
    writing   open files: made, filled, closed to writers, synced
    naming    names and folders: made, moved, linked, removed, synced
    copying   bytes that two files share, or that the kernel copies
    looking   what only looks
    clocks    the disk's present, this host's, and which boot this is
    forks     a process that forks while another thread imports
"""

from __future__ import annotations

from cas.index.disk.clocks import awake, boot_id, clock, monotonic, now, writer_name
from cas.index.disk.copying import COPY_WINDOW, SHARED, copy_range, copy_whole, is_link_refusal, reflink
from cas.index.disk.forks import importing
from cas.index.disk.group import refuse_links, share, unshare
from cas.index.disk.looking import (
    Signature,
    folders,
    forget_cached,
    is_ours,
    is_writable,
    names,
    open_file,
    opened,
    read_file,
    read_start,
    translate,
)
from cas.index.disk.naming import (
    change_mode,
    give_to_group,
    link,
    make_folder,
    make_folder_in,
    remove_folder,
    remove_tree,
    rename,
    set_time,
    symlink,
    sync_folder,
    sync_names,
    touch,
    unlink,
)
from cas.index.disk.steps import Observer, freeze, observe, step, thaw
from cas.index.disk.writing import (
    create,
    open_append,
    overwrite,
    set_mode,
    sync,
    truncate,
    write,
    write_at,
    write_new,
    write_once,
)

__all__ = [
    "COPY_WINDOW",
    "SHARED",
    "Observer",
    "Signature",
    "awake",
    "boot_id",
    "change_mode",
    "clock",
    "copy_range",
    "copy_whole",
    "create",
    "folders",
    "forget_cached",
    "freeze",
    "give_to_group",
    "importing",
    "is_link_refusal",
    "is_ours",
    "is_writable",
    "link",
    "make_folder",
    "make_folder_in",
    "monotonic",
    "names",
    "now",
    "observe",
    "open_append",
    "open_file",
    "opened",
    "overwrite",
    "read_file",
    "read_start",
    "reflink",
    "refuse_links",
    "remove_folder",
    "remove_tree",
    "rename",
    "set_mode",
    "set_time",
    "share",
    "step",
    "symlink",
    "sync",
    "sync_folder",
    "sync_names",
    "thaw",
    "touch",
    "translate",
    "truncate",
    "unlink",
    "unshare",
    "write",
    "write_at",
    "write_new",
    "write_once",
    "writer_name",
]
