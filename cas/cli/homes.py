"""What `doctor` says of the home and of the stores below it: how each stands, and what to do about it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cas.cli import output

if TYPE_CHECKING:
    from cas.config import Explained
    from cas.index.probe import Abilities
    from cas.index.standing import Standing

_LITTLE_SPACE = 5 << 30  # bytes: less than many a checkpoint has


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that stands in the way, and the remedy; not `serious`: things work, but not as they could."""

    message: str
    remedy: str
    serious: bool = False


@dataclass(frozen=True, slots=True)
class Homes:
    """The home that is set, and the layers below it."""

    wants_group: bool  # by the setting `shared`
    network: str  # the setting
    main: Standing
    layers: tuple[Standing, ...]

    @classmethod
    def look(cls, home: Path, settings: tuple[Explained, ...]) -> Homes:
        """Look at all of them; settings that are wrong count as their defaults."""
        from cas.config import Network
        from cas.index.standing import examine

        known = {one.name: one.value for one in settings if one.error is None}
        network = Network(str(known.get("network", "auto")))
        layers = known.get("read_only_stores") or ()
        assert isinstance(layers, tuple), "the setting was parsed"
        return cls(
            wants_group=str(known.get("shared")) == "group",
            network=str(network),
            main=examine(home, network=network),
            layers=tuple(examine(layer, layer=True) for layer in layers),
        )

    def to_json(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the home's members, and those of each layer."""
        return asdict(self.main), [asdict(layer) for layer in self.layers]

    def rows(self) -> list[tuple[str, object]]:
        """Return the lines of the table about the home."""
        main = self.main
        if not main.store:
            return [("store", main.error or "not made yet"), *self._layer_rows()]
        return [
            ("store", _whose(main)),
            ("sealed", "yes: nothing changes it" if main.sealed else "no"),
            ("network", f"{'yes' if main.on_network else 'no'} (setting: {self.network}); locks by {main.lock_kind}"),
            ("index", main.index or "in memory"),
            ("views", main.views),
            ("proven", _proven(main)),
            *self._layer_rows(),
        ]

    def _layer_rows(self) -> list[tuple[str, object]]:
        return [(f"layer {layer.path}", _layer(layer)) for layer in self.layers]

    def findings(self, abilities: Abilities) -> list[Finding]:
        """Say what stands in the way."""
        return [*self._about_place(abilities), *self._about_use(abilities), *self._about_layers()]

    def _about_place(self, abilities: Abilities) -> list[Finding]:
        found, home = [], self.main.path
        if home.exists() and not home.is_dir():
            found.append(Finding(f"the home {home} is no folder", "set CAS_HOME to one", serious=True))
        elif self.main.error:
            found.append(Finding(self.main.error, "set CAS_HOME to a folder of yours", serious=True))
        elif not abilities.writable and not self.main.store:
            remedy = "set CAS_HOME to a folder of yours"
            found.append(Finding(f"{abilities.folder} cannot be written", remedy, serious=True))
        elif not abilities.writable or self.main.sealed:
            state = "is sealed" if self.main.sealed else "cannot be written"
            remedy = f"set CAS_HOME to a folder of yours, and CAS_READ_ONLY_STORES={home} to use what is in it"
            undo = "; or `cas seal --undo`" if self.main.sealed else ""
            found.append(Finding(f"the store {home} {state}: it is only read, nothing can be added", remedy + undo))
        elif abilities.hard_links is False:
            found.append(Finding("no hard links here: views are made of symlinks", "put CAS_HOME on another disk"))
        if abilities.writable and abilities.locks is False and self.main.lock_kind == "flock":
            message = "locks do nothing here: results stay right, but work may be done twice"
            found.append(Finding(message, "set CAS_NETWORK=yes: then leases are used in their place"))
        if abilities.free < _LITTLE_SPACE:
            message = f"only {output.size(abilities.free)} are free"
            found.append(Finding(message, "`cas du` shows what the store holds, `cas prune` makes room"))
        return found

    def _about_use(self, abilities: Abilities) -> list[Finding]:
        found, main = [], self.main
        if main.on_network and self.network == "auto":
            kind = abilities.file_system or "an unknown file system"
            remedy = "put CAS_HOME on a local disk if you can: it is faster; CAS_NETWORK=yes says that it is meant so"
            found.append(Finding(f"the home is on {kind}, which counts as a network file system", remedy))
        if abilities.network and self.network == "no":
            message = f"the home is on {abilities.file_system}, and CAS_NETWORK=no says that only this host uses it"
            found.append(Finding(message, "unset CAS_NETWORK if other hosts use it too"))
        if main.exposed:
            message = f"the mode of the home is wrong: {main.exposed}"
            found.append(Finding(message, f"chmod 700 {main.path}, or `cas share --group NAME`", serious=True))
        if self.wants_group and main.store and main.group is None:
            found.append(Finding("CAS_SHARED=group, but the store was made private", "`cas share --group NAME`"))
        if main.store and main.index is None:
            message = "the index is kept in memory: each process reads all facts and records anew"
            found.append(Finding(message, "set XDG_CACHE_HOME or TMPDIR to a folder of yours on a disk of this host"))
        return found

    def _about_layers(self) -> list[Finding]:
        found = []
        for layer in self.layers:
            if layer.path.absolute() == self.main.path.absolute():
                found.append(
                    Finding(f"{layer.path} is the home itself, and no layer", "take it out of read_only_stores")
                )
            elif not layer.store:
                message = f"the layer {layer.path} is not used: {layer.error or 'there is no store'}"
                found.append(Finding(message, "correct read_only_stores, or mount it"))
            elif layer.proven is not None and layer.proven < 1:
                message = f"{1 - layer.proven:.0%} of the layer {layer.path} is hashed before it is used"
                found.append(Finding(message, f"its owner: `cas --home {layer.path} seal`"))
        return found


def _whose(main: Standing) -> str:
    if main.group is not None:
        return f"of the group {main.group}"
    ours = not hasattr(os, "geteuid") or main.owner == os.geteuid()
    return "private" if ours else f"of the user {main.owner}"


def _proven(one: Standing) -> str:
    if one.proven is None:
        return "no blobs"
    return f"{one.proven:.0%} of {one.blobs} blobs need not be read after a reboot"


def _layer(layer: Standing) -> str:
    if not layer.store:
        return layer.error or "no store"
    return f"{'sealed, ' if layer.sealed else ''}{_proven(layer)}"
