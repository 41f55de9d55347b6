"""How the certificate of a master is checked: arguments, else the environment, else `certs.json`."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cas.config import DeterminedEnvironment
from cas.errors import UsageError

if TYPE_CHECKING:
    import ssl

log = logging.getLogger("cas.registry")


@dataclass(frozen=True, slots=True)
class Tls:
    """How the certificate of a master is checked.

    `certificates` (PEM) count in addition to the usual authorities; `name` is what the certificate must be for, if
    that is not the host of the URL.
    """

    verify: bool = True
    certificates: str | None = field(default=None, repr=False)
    name: str | None = None

    @classmethod
    def choose(
        cls,
        url: str,
        environment: DeterminedEnvironment,
        *,
        cert_path: str | os.PathLike[str] | None = None,
        cert_name: str | None = None,
        noverify: bool = False,
    ) -> Tls:
        """Choose from arguments; with none of them, from the environment, else from `certs.json`.

        Raises:
            UsageError: the file given cannot be read, or both a file and `noverify` are given.
        """
        if cert_path is not None or cert_name is not None or noverify:
            if cert_path is not None and noverify:
                raise UsageError("cert_path and noverify contradict each other")
            certificates = None if cert_path is None else _read_pem(Path(cert_path))
            return cls(verify=not noverify, certificates=certificates, name=cert_name)
        return cls._from_environment(url, environment)

    @classmethod
    def _from_environment(cls, url: str, environment: DeterminedEnvironment) -> Tls:
        name = environment.cert_name or None
        file = environment.cert_file
        if not file:
            return cls(certificates=_stored_certificates(url, environment.config_folder), name=name)
        if file.lower() == "noverify":
            return cls(verify=False, name=name)
        if not Path(file).exists():
            log.warning("DET_MASTER_CERT_FILE names %s, which does not exist; only the usual authorities count", file)
            return cls(name=name)
        return cls(certificates=_read_pem(Path(file)), name=name)


def _read_pem(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"cannot read the certificates in {path}: {error.strerror}") from error


def _stored_certificates(url: str, folder: Path) -> str | None:
    path = folder / "certs.json"
    try:
        known = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("cannot read %s (%s); only the usual authorities count", path, error)
        return None
    found = known.get(url) if isinstance(known, dict) else None
    return found if isinstance(found, str) else None


def ssl_context(url: str, tls: Tls) -> ssl.SSLContext:
    """Return what checks certificates as `tls` says.

    Raises:
        UsageError: the certificates given are none.
    """
    import ssl  # with requests: late

    import certifi

    context = ssl.create_default_context(cafile=certifi.where())
    if tls.certificates:
        try:
            context.load_verify_locations(cadata=tls.certificates)
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(f"the certificates for {url} are no PEM text: {error}") from error
    return context
