"""`Checkpoint`: download, load, load_from_path, view. Wires the rooms together.

A checkpoint's way through the code: its record (registry) → origin and plan (transfer) → blobs, manifest and ref
(index) → a view or a user's folder (load) → the framework's own loader.

What only some calls need is imported by them: half of all modules, and a tenth of a second of each process that pulls.
"""

from __future__ import annotations

import functools
import json
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cas.load.forks  # noqa: F401  (it notes what a forked child inherits: before any fork)
from cas.brought import Brought
from cas.config import DownloadMode, Link, Settings, Trust
from cas.errors import CasError, UsageError
from cas.index.digest import Digest
from cas.index.manifest import Manifest, digests_of
from cas.index.space import Destination
from cas.index.trust import Trusted, Verdicts
from cas.load.permit import Permit
from cas.load.views import AbsentBlobsError, make_view, use_view
from cas.registry.records import PULLED, CheckpointRecord, Registry
from cas.transfer.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from cas.load.placing import LinkReport


_ATTEMPTS = 3  # to make a view while another process removes blobs or this one finds damaged ones


class Checkpoint(Brought):
    """A set of files that a trial saved, known by its UUID.

    `record` is what a registry knows of it; the files may be on this disk, or at their origin, or both.
    """

    def __init__(
        self,
        record: CheckpointRecord,
        *,
        settings: Settings | None = None,
        registry: Registry | None = None,
        selection: Selection = EVERYTHING,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = settings or Settings.load()
        super().__init__(record, settings=chosen, registry=registry, selection=selection, options=options)
        self.link_report: LinkReport | None = None  # what the last download() did in the user's folder
        self.was_here = False  # add() found the same files in the store already
        self._entered: set[Digest] = set()  # views that were handed out, and stay until `release`

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        files: Iterable[str] = (),
        storage_options: Mapping[str, Any] | None = None,
        settings: Settings | None = None,
    ) -> Checkpoint:
        """Return what lies at a URL as a checkpoint: a bucket's prefix, a folder, an HTTP index, a hub through fsspec.

            model = Checkpoint.from_url("s3://models/llama-8b", include=["*.safetensors", "*.json"]).view()

        Nothing is fetched before its files are asked for; then only what is wanted, and never what is here. Nothing of
        it runs (pickles, code) until the user trusts it: `cas trust UUID`, or `trust="scan"` with `load`.

        Args:
            url: the place; also the path of a folder on this host.
            include: patterns of the files that are wanted (`*.json`, `folder/`); default: all.
            exclude: patterns of those that are not.
            files: over HTTP, the files below the URL, for servers with no index.
            storage_options: for fsspec, or `{"headers": {…}}` for HTTP; they may hold keys, and are never written.
            settings: default `Settings.load()`.

        Raises:
            UsageError: the URL means nothing, or has credentials in it.
        """
        from cas.pull.urls import record_for_url

        chosen = settings or Settings.load()
        selection = Selection.of(include, exclude)
        record = record_for_url(url, files=files, options=storage_options, settings=chosen)
        return cls(record, settings=chosen, selection=selection, options=storage_options)

    @classmethod
    def agreed(
        cls, choose: Callable[[], Checkpoint], process_group: Any = None, *, settings: Settings | None = None
    ) -> Checkpoint:
        """Let the first rank of a job choose, and return the same checkpoint (and files of it) on every rank.

            checkpoint = Checkpoint.agreed(lambda: Determined().get_experiment(7).top_checkpoint())

        Args:
            choose: called on the first rank only: one question to the master, and one answer for all.
            process_group: of `torch.distributed`; default: the job's default one.
            settings: default `Settings.load()`.

        Raises:
            UsageError: torch.distributed is not initialized.
            PeerError: the first rank could not choose; the message says why.
            CasError: this is the first rank, and it could not.
        """
        from cas.pull.job import agree, group_of

        chosen = settings or Settings.load()
        agreed = agree(group_of(process_group, chosen), lambda: choose()._chosen())
        return cls(
            agreed.record,
            settings=chosen,
            registry=agreed.registry,
            selection=agreed.selection,
            options=agreed.options,
        )

    def only(
        self, include: str | Iterable[str] | None = None, exclude: str | Iterable[str] | None = None
    ) -> Checkpoint:
        """Return the same checkpoint with some of its files only, for `download`, `view` and `load`; see `from_url`.

        Raises:
            UsageError: a pattern is empty.
        """
        selection = Selection.of(include, exclude)
        return Checkpoint(
            self.record, settings=self.settings, registry=self._registry, selection=selection, options=self._options
        )

    # --- the files -------------------------------------------------------------------------------------------

    def download(
        self,
        path: str | Path | None = None,
        mode: DownloadMode | str | None = None,
        *,
        link: Link | str | None = None,
        store: bool = True,
    ) -> str:
        """Bring the files into a folder of the user's, whole or not at all; return its path.

        Args:
            path: the folder; default `checkpoints/<uuid>` under the current one. It may exist: what is right there
                is kept, what is missing is added, and what is not the checkpoint's is never touched.
            mode: which way what is not here comes: `direct` (from the storage), `master` (through the master), `auto`
                (through the master where the storage's way is closed); default the setting.
            link: `auto` (reflink where the file system can, else copy), `reflink`, `hardlink`, `symlink`, `copy`.
            store: False leaves nothing in the store, for homes with a small quota: what is fetched goes straight to the
                folder's disk, checked and resumed all the same. What the store has is used from there.

        Raises:
            UsageError: the path is empty, there is no such way to link, or nothing to link to.
            ForeignContentError: the folder holds other content under a name of the checkpoint's.
            CheckpointNotFoundError: the files are neither here nor at the origin.
            NoSpaceError: it will not fit, and nothing was written; or the disk became full, and the next call goes on.
        """
        from cas.load.links import Materializer
        from cas.load.placing import OWN, LinkReport
        from cas.load.targets import is_complete

        self._require_downloadable()
        target = users_path(path) if path is not None else Path("checkpoints") / self.uuid
        chosen = self.settings.but(link=link, mode=mode)
        known = self._known()
        if known is not None and known.complete:
            extra = self._metadata_file(known)
            if is_complete(self.store, target, known, extra, owned=chosen.link in OWN):
                self.link_report, self.pull_report = LinkReport.unchanged(known), None
                self.store.uses.note(self.uuid)
                return str(target)
        if not store and not (known is not None and known.complete and all(map(self.store.has, digests_of(known)))):
            self._download_past_the_store(target, chosen)
            return str(target)
        only = self.is_only_copy
        sharing, copying = chosen.link is Link.AUTO, chosen.link in (Link.AUTO, Link.COPY)
        with (
            self.store.leases.claim(self.uuid),
            Materializer(self.store, target, link=chosen.link, is_only_copy=lambda _: only) as materializer,
        ):
            there = Destination(target.absolute(), sharing, materializer.begin) if copying else None
            manifest = self._bring(materializer.add, there, chosen.mode)
            self.link_report = materializer.finish(manifest, extra=self._metadata_file(manifest))
            self.store.uses.note(self.uuid)
        return str(target)

    def _download_past_the_store(self, target: Path, settings: Settings) -> None:
        if settings.link not in (Link.AUTO, Link.COPY):
            raise UsageError(f"link={settings.link} makes links into the store, in which this download leaves nothing")
        origin = replace(self._origin, settings=settings)
        if not self.record.experiment_config.get("checkpoint_storage") and not origin.has_master:
            raise self._gone(None, [])
        from cas.pull.unstored import Unstored

        past = Unstored(self.store, origin, target, self._metadata_file)
        self.link_report, self.pull_report = past.bring(settings.mode)

    def view(self) -> Path:
        """Return a read-only folder that looks like the checkpoint, made of links into the store.

        For loaders of the user's own: `AutoModel.from_pretrained(checkpoint.view())`. The folder stays until `release`
        or the end of this process, whatever is removed from the store meanwhile.

        Raises:
            CheckpointNotFoundError: the files are neither here nor at the origin.
        """
        path, digest = self._enter()
        if digest in self._entered:
            self.store.leases.leave(digest)  # once is enough
        self._entered.add(digest)
        return path

    def release(self) -> None:
        """Say that the folders which `view` returned are no longer needed: the checkpoint may be removed then."""
        while self._entered:
            self.store.leases.leave(self._entered.pop())

    def storage_reader(self) -> Any:
        """Return what `torch.distributed.checkpoint.load(state, storage_reader=…)` reads a distributed checkpoint with.

        Every rank of a host reads the same files; nothing is copied.

        Raises:
            CheckpointNotFoundError: the files are neither here nor at the origin.
            CasError: torch is not installed.
        """
        try:
            from torch.distributed.checkpoint import FileSystemReader
        except ImportError as error:
            raise CasError("a storage reader needs torch: pip install 'checkpoint-cas[torch]'") from error
        return FileSystemReader(self.view())

    def _enter(self) -> tuple[Path, Digest]:
        """Return the view, entered, and the manifest that names it. What is known and here costs no lock, no SQLite."""
        self._require_downloadable()
        whole = self._whole()
        if whole is not None and (found := use_view(self.store, whole)) is not None:
            self.store.uses.note(self.uuid)
            return found.path, whole
        with self.store.leases.claim(self.uuid):
            manifest = self._known()
            self.pull_report = None
            for attempt in range(_ATTEMPTS + 1):
                if manifest is not None and manifest.complete:
                    try:
                        path = make_view(self.store, manifest).path
                    except AbsentBlobsError:
                        if attempt == _ATTEMPTS:
                            raise
                    else:
                        self.store.uses.note(self.uuid)
                        return path, manifest.digest
                manifest = self._bring(None)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _whole(self) -> Digest | None:
        """Return the manifest of what is wanted, if it is known wholly; one that has a view is."""
        if self._selection.is_everything and (sole := self.store.sole(self.record.registry, self.uuid)):
            return sole
        known = self._known()
        return known.digest if known is not None and known.complete else None

    def load(
        self,
        path: str | Path | None = None,
        tags: list[str] | None = None,
        *,
        trust: Trust | str | None = None,
        process_group: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load the model with its framework's own loader: a `torch.nn.Module`, or a TensorFlow trackable.

        Of a trial with several models this gives the trial, of weights without code a state dict. Reads from the
        store and writes nothing into the current folder; with `path`, downloads there and loads from there.

        Args:
            path: see `download`.
            tags: of the graph in a SavedModel; default `["serve"]`.
            trust: `never`, `scan` or `always`: which pickles and code may run; default the setting.
            process_group: of `torch.distributed` (True: the default one), on every rank of which this is called: the
                hosts fetch the files together first, see `share`; with `only="model"` the model's bytes alone.
            kwargs: `model=` (your own, to put weights without code into), `only="model"` (no optimizer state; what is
                not here yet of that is not fetched), `trial_class=` and `trial_kwargs=` (what builds the model); others
                reach the framework's loader (`map_location`, `weights_only`, `mmap`, `custom_objects`, …).

        Raises:
            UsageError: this kind of checkpoint does not take such an argument.
            NotFoundError: no model is in it, or its code needs a module that is not installed.
            UnsafeContentError: the trust policy does not allow what would run.
            ContentError: it is damaged, or its parts do not fit.
            CasError: its framework is not installed.
        """
        if process_group is not None and process_group is not False:
            self._share(process_group, part=kwargs.get("only") == "model")
        return self._load(path, tags=tags, trust=trust, **kwargs)

    def load_trial(
        self,
        path: str | Path | None = None,
        *,
        trust: Trust | str | None = None,
        process_group: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Load the trial that was trained, with its models; see `load`, which gives the model where it is one.

        Raises:
            NotFoundError: it was no trial of Determined's that saved it.
        """
        if process_group is not None and process_group is not False:
            self._share(process_group, part=kwargs.get("only") == "model")
        return self._load(path, whole=True, trust=trust, **kwargs)

    def _load(self, path: str | Path | None, *, trust: Trust | str | None, **kwargs: Any) -> Any:
        from cas.load.loading import load_folder

        known = {"experiment_config": self.experiment_config, "hparams": self.hparams, **self.metadata}
        if path is not None:
            target = Path(self.download(path))
            return load_folder(target, metadata=known, permit=self._permit(trust), **kwargs)
        if kwargs.get("only") == "model" and not self._is_here():
            from cas.pull.alone import model_alone

            with model_alone(self.store, self._origin, self._known(), self._rest) as alone:
                if alone is not None:
                    if "mmap" in kwargs:
                        kwargs["mmap"] = False  # whoever completes the transfer cuts the file short
                    return load_folder(alone, metadata=known, permit=self._permit_of_part(trust), **kwargs)
        folder, digest = self._enter()
        leave: Callable[[], object] = functools.partial(self.store.leases.leave, digest)
        try:
            permit, scanned = self._permit(trust, digest), self._scanned(folder, digest)
            loaded = load_folder(folder, metadata=known, permit=permit, from_store=True, scanned=scanned, **kwargs)
            leave = _with(loaded, leave)
            return loaded
        except CasError as error:  # the user knows the checkpoint, not its view
            error.args = (str(error).replace(str(folder), f"checkpoint {self.uuid}"),)
            raise
        finally:
            leave()

    @staticmethod
    def load_from_path(
        path: str | Path, tags: list[str] | None = None, *, trust: Trust | str | None = None, **kwargs: Any
    ) -> Any:
        """Load the model from a folder that `download` made, any checkpoint folder, or one file; see `load`.

        The folder is only read: nothing is copied, hashed or written.

        Raises:
            NotFoundError: there is no such folder or file.
            NotAllowedError: something in it cannot be read.
        """
        return _load_path(path, tags=tags, trust=trust, **kwargs)

    @staticmethod
    def load_trial_from_path(path: str | Path, *, trust: Trust | str | None = None, **kwargs: Any) -> Any:
        """Load the trial that was trained from a folder; see `load_trial`.

        Raises:
            NotFoundError: there is no such folder, or no trial of Determined's saved it.
        """
        return _load_path(path, whole=True, trust=trust, **kwargs)

    def _permit(self, trust: Trust | str | None, digest: Digest | None = None) -> Permit:
        """Return what may run of it: what came from a bare URL needs the user's word for its very bytes."""
        chosen = self.settings.but(trust=trust).trust
        if self.record.registry != PULLED:
            return Permit(chosen)
        if digest is None:
            manifest = self.store.resolve(PULLED, self.uuid)
            digest = manifest.digest if manifest is not None else None
        if digest is not None and Trusted(self.store.layout).holds(digest):
            return Permit(chosen)
        return Permit(chosen, f"it was pulled from a bare URL; if you trust it, say so: cas trust {self.uuid}")

    def _permit_of_part(self, trust: Trust | str | None) -> Permit:
        """Return what may run of some of its bytes: of a bare URL's nothing, for the user's word is about the whole."""
        chosen = self.settings.but(trust=trust).trust
        if self.record.registry != PULLED:
            return Permit(chosen)
        return Permit(chosen, "it was pulled from a bare URL, and only a part of it: load it without only='model'")

    def _rest(self, names: list[str]) -> Path:
        return self.only(exclude=[*self._selection.exclude, *names], include=self._selection.include or None).view()

    def _scanned(self, folder: Path, digest: Digest) -> Any:
        from cas.load.verdicts import Scanned

        @functools.cache
        def digests() -> Mapping[str, Digest | None]:
            manifest = self.store.refs.get(digest)
            return {str(entry.path): entry.digest for entry in manifest.files} if manifest is not None else {}

        return Scanned(folder, Verdicts(self.store.layout), lambda path: digests().get(path))

    def _metadata_file(self, manifest: Manifest) -> bytes | None:
        """The `metadata.json` that a download writes if the checkpoint has none of its own."""
        if "metadata.json" in manifest.by_path or self.record.registry == PULLED or not self._selection.is_everything:
            return None
        return json.dumps(dict(self.metadata), indent=2, ensure_ascii=False).encode("utf-8")


def _load_path(path: str | Path, *, trust: Trust | str | None, **kwargs: Any) -> Any:
    from cas.load.loading import load_folder, user_folder

    permit = Permit(Settings.load(trust=trust).trust)
    if str(path).startswith("cas://"):
        uuid = str(path).removeprefix("cas://").partition("/")[0]
        raise UsageError(f"{path}: in the store, and no path: Determined.get_checkpoint({uuid!r:.80}).load() loads it")
    with user_folder(users_path(path)) as view:
        return load_folder(view, permit=permit, **kwargs)


def users_path(path: str | Path) -> Path:
    """Take a path from the user.

    Raises:
        UsageError: it is empty, as a shell's unset variable is (nobody means the current folder by that), or no path.
    """
    if path == "":
        raise UsageError("the path is empty; to mean the current folder, say '.'")
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):  # type: ignore[redundant-expr]  # users say anything
        raise UsageError(f"not a path: {path!r:.80}")
    return Path(path)


def _with(loaded: Any, leave: Callable[[], object]) -> Callable[[], object]:
    """Leave a view when the model that was loaded from it goes away: it may read more of it until then.

    What cannot tell of its end (a dictionary) has been read or mapped, and needs the names no longer. Returns what is
    to be called at once.
    """
    try:
        weakref.finalize(loaded, leave).atexit = False  # at the end of the process all views are left anyway
    except TypeError:
        return leave
    return lambda: None
