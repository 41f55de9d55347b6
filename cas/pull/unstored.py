"""Downloads that leave nothing in the store: for homes with a small quota.

A store of its own, beside the target, takes what is fetched: so such a download is checked, parallel, and resumed where
it was killed, as any other. What the user's store has is used from there. At the end the files are the target's, none
was copied, and that store is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cas.config import DownloadMode, Link, Settings, Shared
from cas.errors import CasError, ForeignContentError, OfflineError
from cas.index import disk, lines
from cas.index.digest import Digest
from cas.index.leases import living
from cas.index.locks import Claim, is_abandoned
from cas.index.manifest import FileEntry, Manifest
from cas.index.store import Store, explained, forget_store, store_of
from cas.load.links import Materializer
from cas.load.placing import LinkReport
from cas.load.scratch import beside, prefix_of
from cas.load.targets import TargetRecord, Written, is_complete, place_of
from cas.pull.origin import Origin
from cas.transfer.fetch import PullReport

log = logging.getLogger("cas.pull.unstored")

_USERS = "users"  # the folder of locks of the processes that use the store beside a target
_ATTEMPTS = 3  # while other processes that bring the same end, and take the store beside the target with them

Metadata = Callable[[Manifest], "bytes | None"]


@dataclass(frozen=True, slots=True)
class Unstored:
    """One download, past the store."""

    store: Store
    origin: Origin
    target: Path
    metadata: Metadata  # what `metadata.json` the target gets, if the files have none

    def bring(self, mode: DownloadMode) -> tuple[LinkReport, PullReport | None]:
        """Bring the files; say how they got there, and what was transferred (None: they were there).

        Raises:
            ForeignContentError: the folder holds other content under a name of the checkpoint's.
            CheckpointNotFoundError: the files are not at the origin.
            NoSpaceError: they will not fit beside the target; or the disk became full, and the next call goes on.
        """
        place = place_of(Path(os.path.abspath(self.target)))  # noqa: PTH100 - absolute() keeps `..`
        home = beside(place)
        known = self._known() if mode is not DownloadMode.MASTER else None
        if known is not None and is_complete(self.store, place, known, self.metadata(known), owned=True):
            if home.exists():  # of a process that was killed when all was done
                _remove(store_of(self._settings(home)), place)
            return LinkReport.unchanged(known), None
        for attempt in range(_ATTEMPTS):
            try:
                return self._bring(place, home, mode)
            except (CasError, OSError) as error:
                is_ours = isinstance(error, CasError) and not isinstance(error.__cause__, FileNotFoundError)
                if is_ours or home.exists() or attempt == _ATTEMPTS - 1:
                    raise
                log.info("another process ended with the same download; looking again: %s", error)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _known(self) -> Manifest | None:
        """Return what the origin's files are, if all of them were seen before, as they are now."""
        try:
            listing = self.origin.selection.of_listing(self.origin.remote().list())
        except OfflineError:
            raise
        except CasError:  # whoever fetches says what is wrong
            return None
        facts = self.store.facts.origins(file.identity for file in listing.files)
        if any(file.identity not in facts for file in listing.files):
            return None
        entries = (
            FileEntry(file.path, file.size, facts[file.identity].digest, executable=file.executable)
            for file in listing.files
        )
        return Manifest.of(entries, listing.directories if self.origin.selection.is_everything else ())

    def _bring(self, place: Path, home: Path, mode: DownloadMode) -> tuple[LinkReport, PullReport]:
        settings = self._settings(home)
        with explained(f"cannot write beside {place}"):
            private = store_of(settings)
            try:
                with private.leases.claim(self.origin.record.uuid), _using(private):
                    pulled = replace(self.origin, settings=settings).fetch(private, mode=mode)
                    wanted = self.origin.selection.part_of(pulled.manifest)
                    with Materializer(private, place, link=Link.AUTO, giving=True) as materializer:
                        placed = materializer.finish(wanted, extra=self.metadata(wanted))
            except (CasError, OSError) as error:
                # What can be resumed stays; whoever wants it in another folder would not find it.
                if isinstance(error, ForeignContentError) or not _holds_bytes(private.home):
                    _remove(private, place)
                raise
            record, facts = TargetRecord.read(private, place), list(lines.read(private.layout.facts))
            _remove(private, place)
        self._note(place, record, [line.payload for line in facts if line.payload.get("kind") == "origin"])
        return placed, pulled

    def _settings(self, home: Path) -> Settings:
        layers = (self.store.home, *self.origin.settings.read_only_stores)
        private = {"shared": Shared.NO, "max_size": None, "link": Link.AUTO}
        return replace(self.origin.settings, home=home, read_only_stores=layers, **private)  # type: ignore[arg-type]

    def _note(self, place: Path, record: TargetRecord, proven: list[dict[str, Any]]) -> None:
        """Keep what was proven, so that the next call sees that all is there: facts take little room."""
        nowhere = place / "no blob"  # the files are no links; their change time is that of the removal of the store
        try:
            files = {
                path: Written.of(f"{place}/{path}", Digest(one.hex), nowhere) for path, one in record.files.items()
            }
            TargetRecord(record.manifest, files).write(self.store, place)
            self.store.facts.add(proven)
        except OSError as error:
            log.info("what was proven of %s is not noted: %s", place, error)


def _holds_bytes(home: Path) -> bool:
    """Whether anything was fetched that the next call can use."""
    return any(home.glob("blobs/??/*")) or any(home.glob("ingest/*/*/*.data"))


@contextlib.contextmanager
def _using(private: Store) -> Iterator[None]:
    """Say, by a lock, that this process uses the store beside a target."""
    folder = private.home / _USERS
    disk.make_folder(folder)
    claim = Claim(folder / secrets.token_hex(8))
    try:
        yield
    finally:
        claim.release()


def _is_used(private: Store) -> bool:
    """Whether another process still uses the store beside a target: its lease lives, and so does itself."""
    users = [private.home / _USERS / name for name in disk.names(private.home / _USERS)]
    others = living(private.layout, disk.clock(private.home)).keys() - {private.leases.id}
    return bool(others) and not all(map(is_abandoned, users))


def _remove(private: Store, place: Path) -> None:
    """Remove the store beside the target, unless another process still uses it: that one does, then."""
    private.close()
    forget_store(private)
    try:
        if _is_used(private):
            return
        gone = private.home.with_name(f"{prefix_of(place.name)}{secrets.token_hex(8)}.part")
        disk.rename(private.home, gone)
    except FileNotFoundError:  # another process did
        return
    with contextlib.suppress(OSError):
        disk.remove_tree(gone)
