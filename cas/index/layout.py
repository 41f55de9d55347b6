"""Where everything lies in a home, and the file that says that a folder is one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from cas.errors import CasError, ContentError, NotAllowedError, UsageError
from cas.index import disk, locks
from cas.index.digest import Digest

FORMAT = 1
_FOLDERS = {"blobs", "manifests", "refs", "records", "facts", "chunks", "ingest", "views"}
_GROUPS_FOLDERS = (*sorted(_FOLDERS), "aside", "leases", "locks", "pins", "trusted", "used", "verdicts")
# A group's home and its `views/`: members make things there, and nobody renames another's.
GROUPS_HOME = 0o770 | stat.S_ISGID | stat.S_ISVTX
FORMAT_BYTES = 1 << 16  # far more than it has
# Folders of a group's home whose own folders a member could put a link in place of, and lead others elsewhere.
GUARDED = ("blobs", "manifests", "refs", "records", "chunks", "leases")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
CACHEDIR_TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Everything in this folder can be made again by cas; backups may leave it out.\n"
)


_NO_FILE = {errno.EINVAL, errno.ELOOP, errno.EFBIG, errno.ENXIO}  # somebody put a folder, link or pipe in its place
_HOME = Path()  # stands for: in the home


@dataclass(frozen=True, slots=True)
class Layout:
    """The names in one home; nothing here touches the disk.

    Of a home that we may only read, what we note down and the views lie elsewhere, in folders of this user's.
    """

    root: Path
    notes: Path = _HOME  # what our facts and records lie under
    views: Path = _HOME  # what our views lie in

    def __post_init__(self) -> None:
        if self.notes == _HOME:
            object.__setattr__(self, "notes", self.root)
        if self.views == _HOME:
            object.__setattr__(self, "views", self.root / "views")

    def blob(self, digest: Digest) -> Path:
        """The name of a blob."""
        return self.root.joinpath("blobs", digest.hex[:2], digest.hex[2:])

    def manifest(self, digest: Digest) -> Path:
        """The name of a manifest."""
        return self.root / "manifests" / digest.hex[:2] / f"{digest.hex[2:]}.json"

    def chunks(self, digest: Digest) -> Path:
        """The name of a blob's chunk list; with `.parts` behind it, that of its part list."""
        return self.root / "chunks" / digest.hex[:2] / digest.hex[2:]

    def refs(self, registry: str, uuid: str) -> Path:
        """The folder whose files name the manifests of one checkpoint."""
        return self.root / "refs" / quote_registry(registry) / check_uuid(uuid)

    def records(self, registry: str) -> Path:
        """Our file (this host's and user's) of the records of one registry."""
        return self.notes / "records" / quote_registry(registry) / f"{disk.writer_name()}.jsonl"

    @property
    def facts(self) -> Path:
        """Our file (this host's and user's) of facts."""
        return self.notes / "facts" / f"{disk.writer_name()}.jsonl"

    def view(self, manifest: Digest) -> Path:
        """The folder of the view of one manifest."""
        return self.views / manifest.hex

    @property
    def views_apart(self) -> bool:
        """Whether our views lie in a folder that is this user's alone."""
        return self.views != self.root / "views"

    @property
    def views_outside(self) -> bool:
        """Whether our views lie in a temporary folder, outside of the home."""
        return not self.views.is_relative_to(self.root)

    def building(self, manifest: Digest) -> Path:
        """The folder that holds views of one manifest while they are built: on the same disk, with the same owner."""
        if not self.views_apart:
            return self.ingest(f"view {manifest.hex}")
        return self.views / ".ingest" / manifest.hex[:32]

    def old_view(self, manifest: Digest) -> Path:
        """A new name for a view that is on its way out."""
        if not self.views_apart:
            return self.aside(f"view-{manifest.hex}")
        return self.views / ".aside" / f"view-{manifest.hex}.{secrets.token_hex(4)}"

    def lease(self, id: str) -> Path:
        """The folder of one process's lease."""
        return self.root / "leases" / id

    def users(self, manifest: Digest) -> Path:
        """The door of the view of one manifest: the folder that names the leases of those inside."""
        return self.view(manifest) / "users"

    def pin(self, uuid: str) -> Path:
        """The file that says that a checkpoint is pinned."""
        return self.root / "pins" / check_uuid(uuid)

    def trusted(self, uid: int, digest: Digest) -> Path:
        """The file that says that a user trusts the checkpoint of a manifest."""
        return self.notes / "trusted" / f"{uid}.{digest.hex}"

    def verdict(self, uid: int, key: Digest) -> Path:
        """The file that holds what a user's scan has found."""
        return self.notes / "verdicts" / f"{uid}.{key.hex}"

    def used(self, uuid: str) -> Path:
        """The file whose time says when a checkpoint was last used."""
        return self.root / "used" / check_uuid(uuid)

    def ingest(self, key: str) -> Path:
        """The folder that holds the partial transfers of one thing."""
        return self.root / "ingest" / Digest.of(key.encode()).hex[:32]

    def aside(self, name: str) -> Path:
        """A new name in `aside/`."""
        return self.root / "aside" / f"{name}.{secrets.token_hex(4)}"

    def lock(self, key: str) -> Path:
        """The lock file of one thing."""
        return self.root / "locks" / f"{Digest.of(key.encode()).hex[:32]}.lock"


def quote_registry(registry: str) -> str:
    """Return a registry's name as one part of a path.

    Raises:
        UsageError: the name is empty, too long, or not valid Unicode.
    """
    try:
        quoted = quote(registry, safe="")
    except UnicodeEncodeError as error:
        raise UsageError(f"registry name is not valid Unicode: {registry!r:.100}") from error
    if not registry or len(quoted) > 240:
        raise UsageError(f"registry name is empty or too long: {registry!r:.100}")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted


def unquote_registry(name: str) -> str:
    """Return the registry whose quoted name this is."""
    return unquote(name)


def check_uuid(uuid: str) -> str:
    """Return a checkpoint's UUID in canonical form (36 characters, lower case), as it is.

    Raises:
        UsageError: it is in another form, or none.
    """
    if not _UUID.fullmatch(uuid):
        raise UsageError(f"not a checkpoint UUID: {uuid!r:.80}")
    return uuid


@dataclass(frozen=True, slots=True)
class Format:
    """What `format.json` says."""

    store: str  # the store's id
    locks: str = "flock"  # or "lease", where flock does nothing
    sealed: float | None = None  # when the store was closed for images (seconds since 1970)


def is_groups(root: Path) -> bool:
    """Whether a home is a group's: its mode says so, and what is made in it belongs to the group as well."""
    wanted = stat.S_IWGRP | stat.S_ISGID
    return root.stat().st_mode & wanted == wanted


def prepare(root: Path, *, shared: bool = False, network: bool = False) -> Format:
    """Make `root` a home if it is not one yet; return what `format.json` says.

    Args:
        root: the folder.
        shared: make it a group's.
        network: it is on a network file system, where flock may keep out this host's processes and no others.

    Raises:
        UsageError: it is something else: a file, or a folder with other things in it.
        ContentError: it is the home of a newer cas, or `format.json` is damaged.
        NotAllowedError: it cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        return read_format(root)
    known = next((folder for folder in root.parents if folder.exists()), root.parent)
    try:
        if not root.exists():
            disk.make_folder(root, 0o700)
            root.chmod(0o700)
        elif not root.is_dir():
            raise UsageError(f"the store's home {root} is not a folder; set CAS_HOME to one")
        elif _is_foreign(root):
            raise UsageError(f"{root} is no store, and holds other things; set CAS_HOME to a folder of its own")
        if shared or is_groups(root):
            make_groups(root)
        for name in ("ingest", "views"):
            disk.make_folder(root / name)
            _write_new(root / name / "CACHEDIR.TAG", CACHEDIR_TAG.encode())
        for name in ("aside", "leases"):  # now, because what makes room on a full disk needs them
            disk.make_folder(root / name)
        kind = "flock" if not network and locks.work_in(root / "ingest") else "lease"
        document = {"cas": "store", "format": FORMAT, "store": secrets.token_hex(16), "locks": kind}
        _write_new(root / "format.json", json.dumps(document, indent=1).encode() + b"\n")
        with contextlib.suppress(PermissionError):  # a folder above that we may pass, but not read
            disk.sync_names(root, known)
    except OSError as error:
        raise _cannot_make(root, error) from error
    return read_format(root)


def make_groups(root: Path) -> None:
    """Give a home, which may be new, the modes of a group's, and all its folders: none is left for a member to make.

    Raises:
        NotAllowedError: we are not in the home's group.
        OSError: it is another user's.
    """
    others = root.stat().st_mode & 0o005
    root.chmod(GROUPS_HOME | others)
    if not is_groups(root):
        raise NotAllowedError(
            f"{root} cannot be made a group's home: you are not in its group; `chgrp` it to one of yours"
        )
    disk.share(root)
    for name in _GROUPS_FOLDERS:
        disk.make_folder(root / name)
    (root / "views").chmod(GROUPS_HOME | others)


def _is_foreign(root: Path) -> bool:
    """Whether a folder that is no store yet holds something, and nothing of a store whose `format.json` was lost."""
    found = {name for name in disk.names(Path(os.path.realpath(root))) if not name.startswith(".")}
    return bool(found - {"lost+found"}) and not found & _FOLDERS


def _cannot_make(root: Path, error: OSError) -> CasError:
    known = disk.translate(error, f"cannot make the store's home {root}")
    if known is None or isinstance(known, NotAllowedError):
        reason = error.strerror or str(error)
        return NotAllowedError(f"cannot make the store's home {root}: {reason}; set CAS_HOME to a folder of yours")
    return known


def read_format(root: Path) -> Format:
    """Return what the `format.json` of a home says.

    Raises:
        FileNotFoundError: there is none, or it was lost in a power cut: it can be made.
        UsageError: the home is no folder.
        ContentError: it is the home of a newer cas, or the file is damaged.
        NotAllowedError: it cannot be read.
    """
    path = root / "format.json"
    try:
        document = json.loads(disk.read_file(path, FORMAT_BYTES))
        found, store, kind = document["format"], document["store"], document.get("locks", "flock")
        sealed = float(document["sealed"]) if "sealed" in document else None
    except NotADirectoryError as error:
        raise UsageError(f"the store's home {root} is not a folder; set CAS_HOME to one") from error
    except PermissionError as error:
        raise NotAllowedError(f"cannot read the store's home {root}; set CAS_HOME to a folder of yours") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_FILE:
            raise
        # A power cut can leave it empty. Nothing in it is needed to read the store, so it is made again.
        if (root / "blobs").is_dir() or path.lstat().st_size == 0:
            try:
                disk.unlink(path)
            except OSError as refused:
                message = f"{path} is damaged, and cannot be removed: {refused.strerror}; who removes it lets cas make"
                raise NotAllowedError(f"{message} it again") from refused
            raise FileNotFoundError(path) from error
        raise ContentError(f"{path} is damaged; if {root} is a store, delete that file and try again") from error
    if found != FORMAT:
        raise ContentError(f"{root} is a store of format {found!r:.20}; this cas reads {FORMAT}: install a newer cas")
    return Format(str(store), str(kind), sealed)


def _write_new(path: Path, data: bytes) -> None:
    """Write a small file so that it appears whole; if another process was first, theirs stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = disk.create(temporary, 0o644)
    try:
        disk.write(fd, data)
        disk.sync(fd)
    finally:
        os.close(fd)
    try:
        disk.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if not disk.is_link_refusal(error):
            raise
        disk.rename(temporary, path)
        return
    disk.unlink(temporary)
