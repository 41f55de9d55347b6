"""Settings: arguments, else `CAS_*` variables, else `config.toml`, else defaults.

This module is the only reader of the environment (cloud clients' own credential chains apart).
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import platformdirs

from cas.errors import UsageError

log = logging.getLogger("cas.config")

_MASTER_VARIABLES = ("DET_MASTER", "DET_MASTER_ADDR")


class Link(StrEnum):
    """How files get into a user's folder."""

    AUTO = "auto"  # reflink where the file system can, else copy
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"
    COPY = "copy"


class Trust(StrEnum):
    """Which pickles and code of checkpoints may run."""

    NEVER = "never"  # only formats that run no code
    SCAN = "scan"  # what a scan finds harmless, and code of checkpoints from registries and folders of the user's
    ALWAYS = "always"


class Verify(StrEnum):
    """What a transfer checks besides the digest."""

    DEFAULT = "default"  # every checksum that the origin declares
    STRICT = "strict"  # and what no checksum vouches for is not committed


class DownloadMode(StrEnum):
    """Which way a checkpoint's files come."""

    AUTO = "auto"  # from the storage; where that way is closed, through the master
    DIRECT = "direct"
    MASTER = "master"


class Client(StrEnum):
    """What speaks with S3 and GCS."""

    AUTO = "auto"  # our own; fsspec where that cannot do what is asked
    OWN = "own"
    FSSPEC = "fsspec"  # s3fs, gcsfs


class Progress(StrEnum):
    """What long work says on stderr."""

    AUTO = "auto"  # a bar on a terminal and in a notebook; in a log file a line now and then, if it takes long
    ON = "on"  # and in a log file at least one line
    OFF = "off"


class Shared(StrEnum):
    """Whose a store is that is made now."""

    NO = "no"  # this user's alone
    GROUP = "group"  # of all members of its folder's group


class Network(StrEnum):
    """Whether the home is on a network file system: several hosts may use it, and flock may do nothing."""

    AUTO = "auto"  # as the mount says; what is unknown counts as one
    YES = "yes"
    NO = "no"


def _truth(text: object) -> bool:
    if isinstance(text, bool):
        return text
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if (value := known.get(str(text).strip().lower())) is None:
        raise ValueError("must be true or false")
    return value


def _positive(text: object) -> int:
    try:
        value = int(str(text))
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError("must be a whole number of 1 or more")
    return value


def _seconds(text: object) -> float:
    try:
        value = float(str(text))
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ValueError("must be a number of seconds, 0 or more")
    return value


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)


def size_of(text: object) -> int:
    """Parse a number of bytes: `500 GiB`, `1.5T`, `200MB` (of 1000 each), `4096`.

    Raises:
        ValueError: it is none.
    """
    found = _SIZE.fullmatch(str(text).strip())
    if found is None:
        raise ValueError("must be a number of bytes, like 500GiB")
    number, unit, ending = found.groups()
    decimal = (ending or "").lower() == "b"  # GB; G and GiB are of 1024
    factor = 1000 ** "_kmgtp".index(unit.lower() or "_") if decimal else _UNITS[unit.lower()]
    return int(float(number) * factor)


def _rate(text: object) -> int:
    value = size_of(str(text).strip().removesuffix("/s"))
    if value < 1024:
        raise ValueError("must be 1K or more a second")
    return value


_LENGTHS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdwy])", re.ASCII | re.IGNORECASE)


def seconds_of(text: object) -> float:
    """Parse a length of time: `30d`, `12h`, `2w`, `90m`, `45s`, `1y`.

    Raises:
        ValueError: it is none.
    """
    found = _DURATION.fullmatch(str(text).strip())
    if found is None:
        raise ValueError("must be a length of time, like 30d, 12h, 2w or 90m")
    return float(found[1]) * _LENGTHS[found[2].lower()]


def _text(text: object) -> str:
    if not isinstance(text, str):  # config.toml may hold anything
        raise ValueError("must be text")
    return text


def _folder(text: object) -> Path:
    if not isinstance(text, str | Path) or not str(text):
        raise ValueError("must be a folder")
    return Path(str(text)).expanduser().absolute()


def _folders(given: object) -> tuple[Path, ...]:
    """Take a list of folders, or text that parts them as PATH does."""
    if isinstance(given, str):
        given = [name for name in given.split(os.pathsep) if name]
    if not isinstance(given, list | tuple):
        raise ValueError(f"must be a list of folders (in a variable: parted by {os.pathsep!r})")
    return tuple(dict.fromkeys(_folder(name) for name in given))


def _level(text: object) -> str:
    name = str(text).upper()
    if name not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise ValueError("must be debug, info, warning, error or critical")
    return name


def _setting(default: Any, parse: Callable[[Any], Any], doc: str) -> Any:
    return field(default=default, metadata={"parse": parse, "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a user can choose; each is `CAS_<NAME>` in the environment and `<name>` in `config.toml`."""

    home: Path = _setting(MISSING, _folder, "the folder of the store")
    master: str | None = _setting(None, _text, "URL of the Determined master (also DET_MASTER, DET_MASTER_ADDR)")
    shared: Shared = _setting(Shared.NO, Shared, "whose a store is that is made now: no (yours alone), group")
    read_only_stores: tuple[Path, ...] = _setting((), _folders, "homes whose content is used, and never written to")
    network: Network = _setting(Network.AUTO, Network, "whether the home is on a network file system: auto, yes, no")
    offline: bool = _setting(False, _truth, "never use the network; answer from the catalog and the store")
    link: Link = _setting(Link.AUTO, Link, "how download() places files: auto, reflink, hardlink, symlink, copy")
    trust: Trust = _setting(Trust.SCAN, Trust, "which pickles may run: never, scan, always")
    mode: DownloadMode = _setting(
        DownloadMode.AUTO, DownloadMode, "direct: from the storage; master: through the master; auto: as it is open"
    )
    verify: Verify = _setting(Verify.DEFAULT, Verify, "default: origin's checksums; strict: nothing unvouched")
    concurrency: int = _setting(6, _positive, "parallel requests of one transfer")
    bandwidth: int | None = _setting(None, _rate, "bytes per second that one transfer may take: 50M, 1G; default: all")
    check_space: bool = _setting(True, _truth, "refuse what will not fit on the disk before anything is written")
    lock_stall: float = _setting(60.0, _seconds, "seconds without progress after which a lock is not waited for")
    max_size: int | None = _setting(None, size_of, "size of the store, like 200GiB, that is kept after pulls")
    timeout: float = _setting(30.0, _seconds, "seconds that a server may keep silent")
    client: Client = _setting(Client.AUTO, Client, "what speaks with S3 and GCS: auto, own, fsspec (s3fs, gcsfs)")
    anonymous: bool = _setting(False, _truth, "read public buckets of S3, GCS and Azure without credentials")
    requester_pays: bool = _setting(False, _truth, "pay for the requests, where a bucket's owner does not")
    ca_bundle: str | None = _setting(
        None, _text, "file of certificates to trust in transfers (also AWS_CA_BUNDLE for S3, REQUESTS_CA_BUNDLE)"
    )
    region: str | None = _setting(None, _text, "region of S3 buckets, if nothing else tells")
    progress: Progress = _setting(Progress.AUTO, Progress, "progress on stderr: auto, on, off")
    log_level: str = _setting("WARNING", _level, "debug, info, warning, error, critical")

    @classmethod
    def load(cls, **arguments: Any) -> Self:
        """Read the settings; an argument that is None counts as not given.

        Raises:
            UsageError: a value is not allowed, `config.toml` cannot be read, or no setting has such a name.
        """
        _require_known(arguments)
        file = _read_config_file()
        values: dict[str, Any] = {}
        for one in fields(cls):
            if (given := _given(one.name, arguments, file)) is not None:
                values[one.name] = _parse(one.metadata["parse"], *given)
        values.setdefault("home", _default_home())
        if not values.get("master"):
            values["master"] = next((os.environ[name] for name in _MASTER_VARIABLES if os.environ.get(name)), None)
        if not values.get("ca_bundle"):
            values["ca_bundle"] = os.environ.get("REQUESTS_CA_BUNDLE") or None
        return cls(**values)

    def but(self, **changes: Any) -> Self:
        """Return these settings with some changed; a change that is None counts as none.

        Raises:
            UsageError: a value is not allowed, or no setting has such a name.
        """
        _require_known(changes)
        known = {one.name: one.metadata["parse"] for one in fields(self)}
        given = {name: _parse(known[name], value, name) for name, value in changes.items() if value is not None}
        return replace(self, **given)


def _require_known(names: Iterable[str]) -> None:
    known = [one.name for one in fields(Settings)]
    if unknown := sorted(set(names).difference(known)):
        raise UsageError(f"no setting is called {unknown[0]!r}; there are {', '.join(known)}")


def _given(name: str, arguments: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[Any, str] | None:
    """Return what is given for a setting, before it is parsed, and where; None if nothing is."""
    variable = f"CAS_{name.upper()}"
    if arguments.get(name) is not None:
        return arguments[name], name
    if os.environ.get(variable):
        return os.environ[variable], variable
    if name in file:
        return file[name], f"{name} in {config_file()}"
    return None


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting: its value, and where that comes from (for `cas doctor`)."""

    name: str
    value: object
    source: str  # "argument", the variable, "… in config.toml", or "default"
    doc: str
    error: str | None = None  # what is wrong with the value, if anything


def explain(**arguments: Any) -> tuple[Explained, ...]:
    """Say of every setting what it is, where that comes from, and what is wrong with it. Raises nothing."""
    problem = None
    try:
        file = _read_config_file()
    except UsageError as error:
        file, problem = {}, str(error)
    found = [_explain(one, arguments, file) for one in fields(Settings)]
    if problem is not None:
        doc = "the file that holds settings"
        found.append(Explained("config.toml", config_file(), "file", doc, problem))
    return tuple(found)


def _explain(one: Any, arguments: Mapping[str, Any], file: Mapping[str, Any]) -> Explained:
    doc = one.metadata["doc"]
    given = _given(one.name, arguments, file)
    if one.name == "master" and not (given and given[0]):
        given = next(((os.environ[name], name) for name in _MASTER_VARIABLES if os.environ.get(name)), None)
    if given is None:
        return Explained(one.name, _default_home() if one.name == "home" else one.default, "default", doc)
    source = "argument" if given[1] == one.name else given[1]
    try:
        return Explained(one.name, _parse(one.metadata["parse"], *given), source, doc)
    except UsageError as error:
        return Explained(one.name, given[0], source, doc, str(error))


def cache_folder() -> Path:
    """Return the platform's folder for what can be made again."""
    return Path(platformdirs.user_cache_dir("cas", appauthor=False))


def _default_home() -> Path:
    return Path(platformdirs.user_data_dir("cas", appauthor=False))


def _parse(parse: Callable[[Any], Any], value: Any, name: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        allowed = f"must be one of {', '.join(parse)}" if isinstance(parse, type(Link)) else str(error)
        raise UsageError(f"{name}: {value!r:.80} {allowed}") from error


def local_rank() -> int:
    """Return which of a host's ranks of one job this is, as its launcher says; 0 if none does."""
    names = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
    said = next((os.environ[name] for name in names if os.environ.get(name)), "0")
    return int(said) if said.isascii() and said.isdigit() else 0


def config_file() -> Path:
    """Return where `config.toml` is looked for: `CAS_CONFIG`, else the user's config folder."""
    if named := os.environ.get("CAS_CONFIG"):
        return Path(named).expanduser()
    return Path(platformdirs.user_config_dir("cas", appauthor=False)) / "config.toml"


def _read_config_file() -> Mapping[str, Any]:
    path = config_file()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if unknown := sorted(data.keys() - {one.name for one in fields(Settings)}):
        raise UsageError(f"{path}: no setting is called {unknown[0]!r}; `cas doctor` lists them")
    return data


@dataclass(frozen=True, slots=True)
class DeterminedEnvironment:
    """What the environment says to clients of Determined masters (`DET_*`); values as they are."""

    user: str | None
    password: str | None = field(repr=False)
    user_token: str | None = field(repr=False)
    cert_file: str | None
    cert_name: str | None
    config_folder: Path  # holds auth.json and certs.json, shared with the other client
    session_token: str | None = field(default=None, repr=False)  # of a task inside the cluster

    @classmethod
    def load(cls) -> Self:
        """Read the variables."""
        get = os.environ.get
        return cls(
            user=get("DET_USER"),
            password=get("DET_PASS"),
            user_token=get("DET_USER_TOKEN"),
            cert_file=get("DET_MASTER_CERT_FILE"),
            cert_name=get("DET_MASTER_CERT_NAME"),
            config_folder=_determined_folder(),
            session_token=get("DET_SESSION_TOKEN"),
        )


def _determined_folder() -> Path:
    if named := os.environ.get("DET_DEBUG_CONFIG_PATH"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "determined"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "determined"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "determined"
