"""Refs and manifests: what a checkpoint consists of.

A ref is an empty file whose name says everything, so that there is nothing in it that a crash could tear.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from cas.errors import ContentError
from cas.index import disk
from cas.index.digest import Digest
from cas.index.layout import Layout, check_uuid, unquote_registry
from cas.index.manifest import MAX_BYTES, FileEntry, Manifest
from cas.index.owners import Owners
from cas.index.paths import RelativePath

log = logging.getLogger("cas.index")

PULLED = "pulled"  # the registry of what came from a bare URL: nobody vouches for it (docs/format.md, F60)


class Refs:
    """The refs and manifests of one home."""

    def __init__(self, layout: Layout, owners: Owners, *, read_only: bool = False) -> None:
        self._layout = layout
        self._owners = owners
        self._read_only = read_only

    # --- manifests -------------------------------------------------------------------------------------------

    def put(self, manifest: Manifest, scratch: Path, *, durable: bool = False) -> Digest:
        """Store a manifest under its digest; `scratch` is a folder of ours in `ingest/`."""
        target = self._layout.manifest(manifest.digest)
        if self.get(manifest.digest) is not None and not durable:
            return manifest.digest
        path = scratch / f"{manifest.digest.hex}.json"
        fd = disk.create(path)
        try:
            disk.write(fd, manifest.encoded)
            disk.set_mode(fd, 0o444)
            if durable:
                disk.sync(fd)
        finally:
            os.close(fd)
        disk.make_folder(target.parent)
        disk.rename(path, target)  # whatever was there had the same bytes, or was damaged
        return manifest.digest

    def get(self, digest: Digest) -> Manifest | None:
        """Return a manifest, or None if it is not here; a damaged one goes aside and is not here."""
        path = self._layout.manifest(digest)
        try:
            data = disk.read_file(path, MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            held = self._bring_back(digest)
            return None if held is None else Manifest.parse(held)
        except OSError as error:  # as bad as a damaged one
            log.warning("manifest %s cannot be read: %s", digest, error)
        else:
            if Digest.of(data) == digest:
                return Manifest.parse(data)
        if self._read_only:
            log.warning("manifest %s is damaged, in %s", digest, self._layout.root)
            return None
        away = self._layout.aside(f"{digest.hex}.json")
        try:
            disk.make_folder(away.parent)
            disk.rename(path, away)
        except OSError as error:  # gone, or in a home that we may only read
            log.warning("manifest %s is damaged, and cannot be moved away: %s", digest, error)
        else:
            log.warning("manifest %s is damaged; it lies in %s now", digest, away)
        return None

    def _bring_back(self, digest: Digest) -> bytes | None:
        """Give a manifest its name back that a killed removal left in `aside/`."""
        for held in sorted((self._layout.root / "aside").glob(f"{digest.hex}.json.*")):
            with contextlib.suppress(OSError):
                data = disk.read_file(held, MAX_BYTES)
                if Digest.of(data) == digest:
                    if self._read_only:
                        return data
                    with contextlib.suppress(OSError):
                        disk.make_folder(self._layout.manifest(digest).parent)
                        disk.rename(held, self._layout.manifest(digest))
                    return data
        return None

    def manifests(self) -> Iterator[Digest]:
        """Yield the digests that the names under `manifests/` say."""
        for path in sorted((self._layout.root / "manifests").glob("??/*.json")):
            try:
                yield Digest(path.parent.name + path.stem)
            except ContentError:
                continue

    # --- refs --------------------------------------------------------------------------------------------------

    def tag(self, registry: str, uuid: str, manifest: Digest, *, durable: bool = False) -> Path:
        """Say that a checkpoint consists of a manifest's files (and of those of its other refs)."""
        path = self._layout.refs(registry, uuid) / manifest.hex
        fd = self._create_ref(path)
        try:
            if durable:
                disk.sync(fd)
        finally:
            os.close(fd)
        return path

    def _create_ref(self, path: Path) -> int:
        while True:
            disk.make_folder(path.parent)
            try:
                return disk.create(path, 0o444)
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                log.debug("%s was removed in between", path.parent)

    def untag(self, registry: str, uuid: str) -> int:
        """Remove all refs of a checkpoint; return how many there were."""
        folder = self._layout.refs(registry, uuid)
        names = self._names(folder)
        for digest in names:
            disk.unlink(folder / digest.hex)
        try:
            folder.rmdir()
        except OSError:
            log.debug("%s is not empty, or gone", folder)
        return len(names)

    def of(self, registry: str, uuid: str, *, ours: bool = False) -> list[Digest]:
        """Return the manifests of a checkpoint, the oldest ref first; with `ours`, not what another member said."""
        return self._names(self._layout.refs(registry, uuid), ours=ours)

    def registries(self, uuid: str) -> list[str]:
        """Return the registries that have refs of a checkpoint, in order of name."""
        folder = self._layout.root / "refs"
        check_uuid(uuid)
        return [unquote_registry(name) for name in disk.names(folder) if (folder / name / uuid).is_dir()]

    def added(self, uuid: str) -> Iterator[int]:
        """Yield when each ref of a checkpoint was added (ns, by the disk's clock)."""
        for registry in self.registries(uuid):
            folder = self._layout.refs(registry, uuid)
            for name in disk.names(folder):
                with contextlib.suppress(OSError):
                    yield (folder / name).stat().st_mtime_ns

    def all_registries(self) -> list[str]:
        """Return the registries that have refs, in order of name."""
        return sorted(map(unquote_registry, disk.names(self._layout.root / "refs")))

    def all(self) -> Iterator[tuple[str, str, list[Digest]]]:
        """Yield registry, UUID and manifests of every checkpoint."""
        folder = self._layout.root / "refs"
        for registry in disk.names(folder):
            for uuid in disk.names(folder / registry):
                yield unquote_registry(registry), uuid, self._names(folder / registry / uuid)

    def latest(self) -> Iterator[Digest]:
        """Yield the manifests of all checkpoints, those that were tagged last first."""
        found = []
        for registry in disk.names(self._layout.root / "refs"):
            with contextlib.suppress(OSError), os.scandir(self._layout.root / "refs" / registry) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.path))
        for _, path in sorted(found, reverse=True):
            yield from reversed(self._names(Path(path)))

    def _names(self, folder: Path, *, ours: bool = False) -> list[Digest]:
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(ContentError, FileNotFoundError):
                        stat, digest = entry.stat(follow_symlinks=False), Digest(entry.name)
                        if not ours or self._owners.believe(stat):
                            found.append((stat.st_mtime_ns, digest))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:  # a folder that a colleague closed
            log.warning("%s cannot be read, so what it says is not known: %s", folder, error.strerror)
            return []
        return [digest for _, digest in sorted(found)]


def union(manifests: list[Manifest]) -> Manifest | None:
    """Join what several refs say of one checkpoint: a file with a digest beats one without, a later ref an earlier.

    Entries that cannot lie in one tree with those of a later ref are dropped.
    """
    if len(manifests) < 2:
        return manifests[0] if manifests else None
    files: dict[RelativePath, FileEntry] = {}
    folders: set[str] = set()
    directories: set[RelativePath] = set()
    for manifest in reversed(manifests):
        for entry in manifest.files:
            if entry.path in folders or any(parent in files for parent in entry.path.parents):
                continue
            known = files.get(entry.path)
            if known is None or (known.digest is None and entry.digest is not None):
                files[entry.path] = entry
                folders.update(entry.path.parents)
        directories.update(manifest.directories)
    usable = [folder for folder in directories if folder not in files and not any(p in files for p in folder.parents)]
    return Manifest.of(files.values(), usable)
