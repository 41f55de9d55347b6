"""A folder as the archives that a master sends: plain files only, relative names, mode 0666, time 0."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

TYPES = ("application/x-tar", "application/gzip", "application/zip")


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def archive(files: Mapping[str, bytes], kind: str) -> bytes:
    """Return an archive of a type."""
    if kind == "application/zip":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files.items():
                packed.writestr(name, data)
        return out.getvalue()
    plain = tar([(name, data, {}) for name, data in files.items()])
    return gzip.compress(plain, 1) if kind == "application/gzip" else plain


def tar(members: list[tuple[str, bytes, dict[str, object]]]) -> bytes:
    """Return a tar of members; each may have other fields of a `TarInfo`. Padded as Go does: two blocks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as packed:
        for name, data, fields in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o666
            for field, value in fields.items():
                setattr(member, field, value)
            packed.addfile(member, io.BytesIO(data))
        end = packed.offset
    return out.getvalue()[:end] + bytes(1024)
