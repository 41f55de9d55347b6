"""How a checkpoint's files get here: from the storage itself, or through the master."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cas.config import DownloadMode, Progress, Settings, Verify
from cas.errors import (
    CasError,
    CheckpointNotFoundError,
    NotAllowedError,
    OfflineError,
    TransientRemoteError,
    UsageError,
)
from cas.index.manifest import Manifest
from cas.index.space import Destination
from cas.index.store import Store
from cas.registry.records import CheckpointRecord, State
from cas.transfer.fetch import PullReport, pull
from cas.transfer.folder import FolderRemote
from cas.transfer.plan import pull_key
from cas.transfer.progress import drawer
from cas.transfer.remote import Remote
from cas.transfer.selection import EVERYTHING, Selection
from cas.transfer.session import OnFile
from cas.transfer.urls import remote_for_storage
from cas.transfer.watched import Watch

if TYPE_CHECKING:
    from cas.registry.remembering import HandsOutFiles
    from cas.transfer.archive import Stream

log = logging.getLogger("cas.checkpoint")

# The way to the storage is closed: no credentials, nobody answers, nothing installed that speaks with it.
_CLOSED = (NotAllowedError, OfflineError, TransientRemoteError, UsageError)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one checkpoint's files come from.

    `master` answers for the record's registry, if that is a master; without one, it is made of the settings when it is
    needed. `options` are the `storage_options` of a place that a URL names, and `selection` says which files are meant.
    `watch` sees whether a pull gets on.
    """

    record: CheckpointRecord
    settings: Settings
    master: HandsOutFiles | None = None
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    selection: Selection = EVERYTHING
    watch: Watch | None = field(default=None, repr=False)

    def fetch(
        self,
        store: Store,
        *,
        on_file: OnFile | None = None,
        mode: DownloadMode | None = None,
        destination: Destination | None = None,
    ) -> PullReport:
        """Bring the files into the store.

        Args:
            store: where to.
            on_file: called for each file as soon as it is in the store, from any thread; perhaps twice.
            mode: which way; default the setting.
            destination: a folder that the files are placed in besides, which must have room.

        Raises:
            CheckpointNotFoundError: there are no files, or nothing says where.
            OfflineError: the network is needed and is off, or does not answer.
            UsageError: the storage is of an unknown type, or there is no master to go through.
            CasError: what the transfer raised; where both ways were tried, the message says what each answered.
        """
        chosen = mode or self.settings.mode
        if chosen is DownloadMode.MASTER:
            return self._through_master(store, on_file, destination)
        try:
            return self._directly(store, on_file, destination)
        except (*_CLOSED, CheckpointNotFoundError) as error:
            if chosen is DownloadMode.DIRECT:
                raise
            return self._around(store, error, on_file, destination)

    # --- for a job of many hosts -------------------------------------------------------------------------------

    def open_remote(self) -> Remote | None:
        """Return what every host of a job reads its share of; None if the setting says that the master has them all.

        Raises:
            CasError: as `remote`.
        """
        return None if self.settings.mode is DownloadMode.MASTER else self.remote()

    def get_all(self, store: Store, closed: CasError | None, watch: Watch) -> PullReport:
        """Bring all files into the store of one host of a job, through the master.

        Args:
            store: where to.
            closed: why the storage cannot be read.
            watch: sees whether it gets on.

        Raises:
            CasError: as `fetch`.
        """
        return replace(self, watch=watch)._get_all(store, closed)

    def _get_all(self, store: Store, closed: CasError | None) -> PullReport:
        if closed is None:
            return self.fetch(store)
        if self.settings.mode is DownloadMode.DIRECT or not isinstance(closed, (*_CLOSED, CheckpointNotFoundError)):
            raise closed
        return self._around(store, closed, None, None)

    # --- from the storage --------------------------------------------------------------------------------------

    def remote(self) -> Remote:
        """Return where the files lie.

        Raises:
            CheckpointNotFoundError: nothing says where.
            OfflineError: it is somewhere else, and the network is off.
            UsageError: the storage is of an unknown type, or is not complete.
        """
        storage = self.record.experiment_config.get("checkpoint_storage")
        if not storage:
            raise CheckpointNotFoundError(f"no registry says where the files of checkpoint {self.record.uuid} lie")
        remote = remote_for_storage(storage, self.record.uuid, self.settings, options=self.options)
        if self.settings.offline and not isinstance(remote, FolderRemote):
            raise OfflineError(f"checkpoint {self.record.uuid} is not (wholly) on this disk, and CAS_OFFLINE is set")
        return remote

    def _directly(self, store: Store, on_file: OnFile | None, destination: Destination | None) -> PullReport:
        return self._pull(store, self.remote(), self.settings, on_file, destination)

    def _pull(
        self,
        store: Store,
        remote: Remote,
        settings: Settings,
        on_file: OnFile | None,
        destination: Destination | None,
    ) -> PullReport:
        record = self.record
        return pull(
            store,
            remote,
            registry=record.registry,
            uuid=record.uuid,
            settings=settings,
            expected_sizes=record.resources or None,
            partial=record.state is State.PARTIALLY_DELETED,
            selection=self.selection,
            destination=destination,
            on_file=on_file,
            watch=self.watch,
        )

    # --- through the master ------------------------------------------------------------------------------------

    def _around(
        self, store: Store, closed: CasError, on_file: OnFile | None, destination: Destination | None
    ) -> PullReport:
        """Go through the master, if it may have what the storage refuses; else raise what closed that way."""
        if not self._may_go_round(closed):
            raise closed
        log.warning("%s; so the files come through the master %s", closed, self.record.registry)
        try:
            return self._through_master(store, on_file, destination)
        except CasError as error:
            closed.args = (f"{closed}; and through the master: {error}",)
            raise closed from error

    @property
    def has_master(self) -> bool:
        """Whether a master knows the checkpoint."""
        return self.record.registry.startswith(("http://", "https://"))

    def _may_go_round(self, error: CasError) -> bool:
        """Whether the master may have what the storage refuses."""
        storage = self.record.experiment_config.get("checkpoint_storage")
        kind = storage.get("type") if isinstance(storage, dict) else None
        if not self.has_master or self.settings.offline or kind == "azure":  # masters hand out nothing of azure
            return False
        # An empty place in a bucket is no closed way; a folder that is not mounted here is one.
        return not isinstance(error, CheckpointNotFoundError) or kind in (None, "shared_fs", "directory")

    def _through_master(self, store: Store, on_file: OnFile | None, destination: Destination | None) -> PullReport:
        from cas.transfer.archive import ArchiveRemote

        record = self.record
        if not self.has_master:
            raise UsageError(f"no master knows checkpoint {record.uuid} of {record.registry}: mode 'master' needs one")
        if self.settings.offline:
            raise OfflineError(f"checkpoint {record.uuid} is not (wholly) on this disk, and CAS_OFFLINE is set")
        key = f"archive {record.registry} {record.uuid}"
        quiet = self.settings.but(progress=Progress.OFF)  # what is drawn is the archive as it comes
        shown = store.staging(pull_key(record.registry, record.uuid, self.selection))
        with contextlib.closing(shown), store.exclusive(key):
            shown.name_parts([store.layout.ingest(key)])  # who waits for this pull sees that the archive grows
            manifest = store.resolve(record.registry, record.uuid)
            if manifest is not None and manifest.complete and not store.absent(manifest):
                return _all_here(manifest, on_file)
            staging = store.staging(key)
            try:
                remote = ArchiveRemote(
                    f"{record.registry}/checkpoints/{record.uuid}",
                    self._archive,
                    staging.folder,
                    sizes=record.resources,
                    partial=record.state is State.PARTIALLY_DELETED,
                    timeout=self.settings.timeout,
                    drawing=lambda: drawer(self.settings.progress, record.uuid[:8])(sum(record.resources.values()), 0),
                )
                return self._pull(store, remote, quiet, on_file, destination)
            finally:
                staging.close()

    @contextlib.contextmanager
    def _archive(self) -> Iterator[tuple[str, Stream]]:
        """Open the archive in the first form that the master knows; a zip, if each file must be vouched for."""
        from cas.registry.http import UnsupportedTypeError
        from cas.registry.master import Master
        from cas.transfer.archive import Kind

        master = self.master or Master(self.record.registry, settings=self.settings)
        kinds = (Kind.TAR, Kind.GZIP, Kind.ZIP)
        for kind in kinds[::-1] if self.settings.verify is Verify.STRICT else kinds:
            with contextlib.ExitStack() as stack:
                try:
                    body = stack.enter_context(master.archive(self.record.uuid, kind))
                except UnsupportedTypeError as error:
                    refused = error
                    continue
                yield kind, body
                return
        raise refused


def _all_here(manifest: Manifest, on_file: OnFile | None) -> PullReport:
    """Tell of files that another process brought while we waited for it."""
    if on_file is not None:
        for entry in manifest.files:
            on_file(entry)
    return PullReport(
        manifest, {}, files_fetched=0, bytes_fetched=0, bytes_resumed=0, bytes_here=manifest.size, seconds=0.0
    )
