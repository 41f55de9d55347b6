"""A checkpoint's files: which of them are here, and how the others get into the store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cas.config import DownloadMode, Settings
from cas.described import Described
from cas.errors import CasError, CheckpointNotFoundError
from cas.index.digest import Digest
from cas.index.manifest import Manifest, digests_of
from cas.index.space import Destination, Need, require_room
from cas.index.store import Store
from cas.pull.origin import Origin
from cas.registry.records import PULLED, CheckpointRecord, Registry, State
from cas.transfer.fetch import PullReport
from cas.transfer.plan import pull_key
from cas.transfer.selection import Selection
from cas.transfer.session import OnFile

if TYPE_CHECKING:
    from cas.pull.job import Chosen
    from cas.registry.remembering import HandsOutFiles
    from cas.transfer.preview import Preview


class Brought(Described):
    """What of a checkpoint's files the store has, and what brings the rest: its origin, or the job it is used by."""

    def __init__(
        self,
        record: CheckpointRecord,
        *,
        settings: Settings,
        registry: Registry | None,
        selection: Selection,
        options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(record, settings=settings, registry=registry)
        self._selection = selection  # which files this object stands for
        self._options = options  # storage_options of a place that a URL names
        self.pull_report: PullReport | None = None  # what the last call transferred; None if everything was here

    # --- what is here ----------------------------------------------------------------------------------------

    @property
    def is_only_copy(self) -> bool:
        """Whether its files lie nowhere but in this store: added here, with no origin."""
        from cas.registry.catalog import LOCAL

        return self.record.registry == LOCAL or not self.record.experiment_config.get("checkpoint_storage")

    @property
    def is_partial(self) -> bool:
        """Whether some of its files are known to the store, and were not fetched."""
        known = self.store.resolve(self.record.registry, self.uuid)
        return known is not None and not known.complete

    @property
    def proofs(self) -> Mapping[str, str]:
        """Path → what vouched for a file's bytes when they came: `origin checksum (kind)`, `zip crc`, `length only`.

        Files that were added here, or were not fetched, are not in it.
        """
        known = self.store.resolve(self.record.registry, self.uuid)
        if known is None:
            return {}
        found = self.store.facts.proofs(digests_of(known))
        return {str(entry.path): found[entry.digest] for entry in known.files if entry.digest in found}

    def _known(self) -> Manifest | None:
        """What is wanted of what the checkpoint consists of, as far as the store knows."""
        known = self.store.resolve(self.record.registry, self.uuid)
        return self._selection.part_of(known) if known is not None else None

    def _is_here(self) -> bool:
        known = self._known()
        return known is not None and known.complete and not self.store.absent(known)

    # --- where they come from --------------------------------------------------------------------------------

    @property
    def _origin(self) -> Origin:
        return Origin(self.record, self.settings, self._master, self._options, self._selection)

    @property
    def _master(self) -> HandsOutFiles | None:
        """Who is asked for the files where the storage cannot be reached."""
        registry = self._registry
        if registry is None or registry.name != self.record.registry:
            return None
        from cas.registry.remembering import Remembering

        return registry if isinstance(registry, Remembering) else None

    # --- how they get here -------------------------------------------------------------------------------------

    def fetch(self) -> Manifest:
        """Bring the files into the store, and nowhere else; return what they are.

        Raises:
            CheckpointNotFoundError: the files are neither here nor at the origin.
            NoSpaceError: they will not fit, or the disk became full; the next call goes on.
        """
        self._require_downloadable()
        with self.store.leases.claim(self.uuid):
            return self._bring(None)

    def plan(self) -> Preview:
        """Say what bringing the files here would fetch, and what of them is here already; changes nothing.

        Raises:
            CheckpointNotFoundError: the files are neither here nor at the origin.
            CasError: as the origin answers.
        """
        from cas.transfer.preview import Preview, preview

        manifest = self._known()
        if manifest is not None and manifest.complete and all(map(self.store.has, digests_of(manifest))):
            return Preview.of_manifest(self.store.home.as_uri(), manifest)
        return preview(
            self.store,
            self._origin.remote(),
            registry=self.record.registry,
            uuid=self.uuid,
            settings=self.settings,
            selection=self._selection,
        )

    def share(self, process_group: Any = None) -> None:
        """Bring the files to every host of a job; call it on every rank. Then `view`, `load`, `download` find them.

        Each host reads its share of what is missing from the origin, and the group exchanges the rest: N hosts cost the
        origin one checkpoint, not N. The first rank's checkpoint counts, with its patterns and `storage_options`; the
        others become the same.

        Args:
            process_group: of `torch.distributed`; default: the job's default one.

        Raises:
            UsageError: torch.distributed is not initialized.
            PeerError: another rank failed or does not answer; no rank goes on alone.
            CasError: this rank failed; the others were told.
        """
        self._share(process_group)

    def _share(self, process_group: Any, *, part: bool = False) -> None:
        """Do it; if the first rank needs a `part` of the bytes, that is exchanged; one host fetches it by itself."""
        from cas.pull.job import agree, fetch_models_together, fetch_together, group_of, is_one_host

        group = group_of(process_group, self.settings)
        chosen = agree(group, lambda: self._chosen(part=part))
        self.record, self._selection = chosen.record, chosen.selection
        self._options = self._options if chosen.options is None else chosen.options
        if chosen.part and is_one_host(group, self.settings):
            return
        self._require_downloadable()
        with contextlib.ExitStack() as claimed:

            def opened() -> Store:
                claimed.enter_context(self.store.leases.claim(self.uuid))
                return self.store

            origin: Origin | None = self._origin
            if chosen.part:
                origin = fetch_models_together(opened, self._origin, group, self._is_here)
            self.pull_report = fetch_together(opened, origin, group) if origin is not None else None
            self.store.uses.note(self.uuid)
            self._note_told()
            self._keep_small()

    def _chosen(self, *, part: bool = False) -> Chosen:
        from cas.pull.job import Chosen

        return Chosen(self.record, self._selection, self._options, part, self._registry)

    def _require_downloadable(self) -> None:
        if self.state not in (State.COMPLETED, State.PARTIALLY_DELETED):
            raise CasError(
                "Only COMPLETED or PARTIALLY_DELETED checkpoints can be downloaded."
                f" Checkpoint {self.uuid} is {self.state}"
            )

    def _bring(
        self, on_file: OnFile | None, destination: Destination | None = None, mode: DownloadMode | None = None
    ) -> Manifest:
        """Return a manifest whose blobs are all here, told one by one to `on_file`; fetch what is missing.

        Raises:
            NoSpaceError: what is missing will not fit, or not into the destination besides.
        """
        manifest, absent = self._look()
        origin = self._origin
        may_fetch = self.record.experiment_config.get("checkpoint_storage") or origin.has_master
        if (manifest is None or absent) and not may_fetch:
            raise self._gone(manifest, absent)
        if manifest is None or absent or not manifest.complete:
            # Whoever waits here needs no client of the storage and no listing: it finds everything afterwards.
            with self.store.exclusive(pull_key(self.record.registry, self.uuid, self._selection)):
                manifest, absent = self._look()
                if manifest is None or absent or not manifest.complete:
                    return self._fetch(origin, on_file, destination, mode)
        self._require_room(manifest, destination)
        if on_file is not None:
            for entry in manifest.files:
                on_file(entry)
        self.pull_report = None
        return manifest

    def _look(self) -> tuple[Manifest | None, list[Digest]]:
        """Return what is known of what is wanted, and which of its blobs are absent, if all of it is known."""
        manifest = self._known()
        if manifest is None or not manifest.complete:
            return manifest, []
        here = self.store.blobs.locate_all({entry.digest: entry.size for entry in manifest.files if entry.digest})
        return manifest, [digest for digest in digests_of(manifest) if digest not in here]

    def _fetch(
        self, origin: Origin, on_file: OnFile | None, destination: Destination | None, mode: DownloadMode | None
    ) -> Manifest:
        self.pull_report = origin.fetch(self.store, on_file=on_file, mode=mode, destination=destination)
        self._note_pulled()
        self._keep_small()
        return self._selection.part_of(self.pull_report.manifest)

    def _keep_small(self) -> None:
        """Keep the store below the setting `max_size`, if anything came."""
        if self.settings.max_size is not None and self.pull_report is not None and self.pull_report.files_fetched:
            from cas.removing import keep_small

            keep_small(self.store, self.settings.max_size)

    def _note_pulled(self) -> None:
        """Record what no registry but this store knows of: where a URL led."""
        if self.record.registry == PULLED:
            from cas.pull.urls import note_pulled

            note_pulled(self.store, self.record)

    def _note_told(self) -> None:
        """Record what another rank of the job told: else nothing here says that the files lie elsewhere too."""
        self._note_pulled()
        if self.pull_report is not None and not self.store.records.get(self.record.registry, "checkpoint", self.uuid):
            from cas.registry.remembering import remember

            remember(self.store, self.record.registry, [self.record])

    def _require_room(self, manifest: Manifest, destination: Destination | None) -> None:
        if destination is not None and self.settings.check_space:
            placed = destination.need((entry.path, entry.size) for entry in manifest.files)
            doing, nothing = f"cannot write into {destination.folder}", Need(self.store.home, 0)
            require_room(self.store, nothing, doing, destination=destination, placed=placed)

    def _gone(self, manifest: Manifest | None, absent: list[Digest]) -> CheckpointNotFoundError:
        if manifest is None:
            return CheckpointNotFoundError(
                f"checkpoint {self.uuid} is not in the store {self.settings.home}, and no registry says where its"
                f" files lie; `cas add FOLDER --uuid {self.uuid}` adds them"
            )
        names = [entry.path for entry in manifest.files if entry.digest in absent]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return CheckpointNotFoundError(
            f"{names[0]}{more} of checkpoint {self.uuid} is damaged or gone, and it was added locally, so there is no"
            f" origin to fetch it from; `cas check` says more, `cas add FOLDER --uuid {self.uuid}` brings it back"
        )
