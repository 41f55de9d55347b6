"""`cas://<uuid>/path`: checkpoints as an fsspec file system, for everything that opens URLs (pandas, datasets, torch).

    fsspec.open("cas://46985143-af68-4d48-ab91-a6447052ca49/config.json").open()
    fsspec.filesystem("cas").ls("46985143-af68-4d48-ab91-a6447052ca49")

Read-only. The files of a checkpoint come into the store when the first of them is opened; what is listed needs none.
fsspec finds this module by its entry point (group `fsspec.specs`), and is the only one that imports it.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.spec import AbstractFileSystem

from cas.checkpoint import Checkpoint
from cas.client import Determined
from cas.config import Settings
from cas.errors import NotFoundError
from cas.index.manifest import FileEntry, Manifest
from cas.index.paths import RelativePath
from cas.index.store import store_of

_READ_ONLY = "a checkpoint in the store is never changed; `cas add` makes a new one"


class CasFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Checkpoints by UUID, as folders.

    Args:
        master: address of a Determined master to ask for what is not here; default as for `Determined`.
        registry: whose checkpoints, if several registries are in the catalog.
        settings: any of the settings, by name: `home="/data/cas"`, `offline=True`, …
        storage_options: fsspec's own.
    """

    protocol = "cas"
    root_marker = ""

    def __init__(
        self,
        master: str | None = None,
        registry: str | None = None,
        settings: dict[str, Any] | None = None,
        **storage_options: Any,
    ) -> None:
        super().__init__(**storage_options)
        self._settings = Settings.load(**(settings or {}))
        self._client = Determined(master, registry=registry, settings=self._settings)
        self._checkpoints: dict[str, Checkpoint] = {}

    @property
    def fsid(self) -> str:
        """What tells this file system from others: the store's home."""
        return f"cas:{self._settings.home}"

    # --- looking -----------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002  # fsspec's signature
        """List a folder; the top lists the checkpoints that the store holds.

        Raises:
            FileNotFoundError: there is none.
        """
        checkpoint, inner = self._split(path)
        if not checkpoint:
            store = store_of(self._settings)
            found = [_folder(uuid) for uuid in sorted({uuid for _, uuid, _ in store.refs.all()})]
        else:
            found = self._children(checkpoint, inner)
        return found if detail else [one["name"] for one in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Say what a path is: its name, type, size in bytes, and, if it is known, the digest of a file.

        Raises:
            FileNotFoundError: it is nothing.
        """
        checkpoint, inner = self._split(path)
        if not inner:
            if checkpoint:
                self._tree(checkpoint)
            return _folder(checkpoint)
        tree = self._tree(checkpoint)
        if inner in tree.by_path:
            return _file(checkpoint, tree.by_path[inner])
        if inner in _folders(tree):
            return _folder(f"{checkpoint}/{inner}")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"cas://{checkpoint}/{inner}")

    def ukey(self, path: str) -> str:
        """Return what changes when the bytes do: the digest, where it is known."""
        found = self.info(path)
        return str(found.get("digest") or super().ukey(path))

    def checksum(self, path: str) -> int:
        """Return a number that changes when the bytes do."""
        return int(self.ukey(path).rpartition(":")[2][:16], 16)

    def _children(self, checkpoint: str, inner: str) -> list[dict[str, Any]]:
        tree = self._tree(checkpoint)
        if inner in tree.by_path:
            return [_file(checkpoint, tree.by_path[inner])]
        if inner and inner not in _folders(tree):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"cas://{checkpoint}/{inner}")
        files = [_file(checkpoint, one) for one in tree.files if _parent(one.path) == inner]
        folders = [_folder(f"{checkpoint}/{one}") for one in _folders(tree) if _parent(one) == inner]
        return sorted((*files, *folders), key=lambda one: str(one["name"]))

    # --- reading -----------------------------------------------------------------------------------------------

    def local_path(self, path: str) -> Path:
        """Return the read-only file or folder on this disk; the checkpoint is fetched if it is not here.

        Raises:
            FileNotFoundError: there is none.
        """
        checkpoint, inner = self._split(path)
        found = self._checkpoint(checkpoint).view() / inner
        if not found.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"cas://{checkpoint}/{inner}")
        return found

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise OSError(errno.EROFS, f"{os.strerror(errno.EROFS)}: {_READ_ONLY}", f"cas://{path}")
        return open(self.local_path(path), "rb")

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Copy one file, or make one folder."""
        source = self.local_path(rpath)
        if source.is_dir():
            Path(lpath).mkdir(parents=True, exist_ok=True)
        elif hasattr(lpath, "write"):
            with open(source, "rb") as file:
                shutil.copyfileobj(file, lpath)
        else:
            shutil.copyfile(source, lpath)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return the bytes of a file, or of a part of it."""
        return self.local_path(path).read_bytes()[start:end]

    # --- never -------------------------------------------------------------------------------------------------

    def _refuse(self, path: object = "", *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, f"{os.strerror(errno.EROFS)}: {_READ_ONLY}", f"cas://{path}")

    mkdir = makedirs = rm_file = _rm = cp_file = put_file = pipe_file = touch = _refuse

    # --- which checkpoint --------------------------------------------------------------------------------------

    def _split(self, path: str) -> tuple[str, str]:
        """Take a path apart: which checkpoint, and the path in it, with no `..` left."""
        text = str(self._strip_protocol(path)).strip("/")
        checkpoint, _, inner = text.partition("/")
        if ".." in PurePosixPath(inner).parts:
            raise FileNotFoundError(errno.ENOENT, "no path of a checkpoint has '..'", f"cas://{text}")
        return checkpoint, inner.strip("/")

    def _checkpoint(self, name: str) -> Checkpoint:
        if name not in self._checkpoints:
            try:
                self._checkpoints[name] = self._client.get_checkpoint(name)
            except (NotFoundError, ValueError) as error:
                raise FileNotFoundError(errno.ENOENT, str(error), f"cas://{name}") from error
        return self._checkpoints[name]

    def _tree(self, name: str) -> Manifest:
        """Return what a checkpoint consists of: what the store knows, else what its record names."""
        checkpoint = self._checkpoint(name)
        known = checkpoint.store.resolve(checkpoint.record.registry, checkpoint.uuid)
        if known is not None:
            return known
        if not checkpoint.resources:
            checkpoint.view()
            return self._tree(name)
        return _of_resources(checkpoint)


def _of_resources(checkpoint: Checkpoint) -> Manifest:
    """Make a tree of what a registry says of a checkpoint; nothing of it is stored."""
    from cas.index.identity import RemoteIdentity

    files, folders = [], []
    for name, size in checkpoint.resources.items():
        if name.endswith("/"):
            folders.append(RelativePath(name.rstrip("/")))
        else:
            identity = RemoteIdentity(url=f"cas://{checkpoint.uuid}/{name}", size=size)
            files.append(FileEntry(RelativePath(name), size, identity=identity))
    return Manifest.of(files, folders)


def _folders(tree: Manifest) -> set[str]:
    found = {parent for one in tree.files for parent in one.path.parents}
    return found | {str(one) for one in tree.directories} | {up for one in tree.directories for up in one.parents}


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(checkpoint: str, entry: FileEntry) -> dict[str, Any]:
    digest = str(entry.digest) if entry.digest is not None else None
    return {"name": f"{checkpoint}/{entry.path}", "size": entry.size, "type": "file", "digest": digest}


__all__ = ["CasFileSystem"]
