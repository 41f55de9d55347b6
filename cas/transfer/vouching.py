"""What vouches for a file that is read whole: what the listing suggests, what the origin declares, or a second read."""

from __future__ import annotations

import logging

from cas.errors import ContentError, RemoteError
from cas.transfer import checksums
from cas.transfer.checksums import LENGTH_ONLY
from cas.transfer.remote import RangesIgnoredError, RemoteFile
from cas.transfer.retry import STREAMS, BrokenOffError
from cas.transfer.session import Session, unvouched

log = logging.getLogger("cas.transfer")


def likely_proof(session: Session, file: RemoteFile, data: bytes) -> str | None:
    """Return what is proven of bytes that have a checksum which the listing suggests; None proves nothing."""
    for likely in session.remote.likely_checksums(file):
        if checksums.matches(likely, data):
            return checksums.proof(likely)
    return None


def looked_closer(session: Session, file: RemoteFile, data: bytes) -> tuple[bytes, str]:
    """Ask what vouches for bytes that have no checksum which the listing suggests; return what is right, and its proof.

    If the origin declares nothing, and still suggests something else, they are read again: no ETag is believed against
    two reads that are alike.

    Raises:
        DigestMismatchError: the bytes have another checksum than is declared, twice.
        ContentError: two reads gave different bytes, or strict verification was asked for and nothing vouches.
    """
    if (declared := _declared_proof(session, file, data)) is not None:
        return declared
    if not session.remote.likely_checksums(file):
        return data, LENGTH_ONLY
    return _read_twice(session, file, data)


def _declared_proof(session: Session, file: RemoteFile, data: bytes) -> tuple[bytes, str] | None:
    checksum = session.declared(file)
    if checksum is None:
        if session.strict:
            raise unvouched(file)
        return None
    if not checksums.matches(checksum, data):
        log.warning("%s: bytes differ from the declared %s; fetching again", file.identity.url, checksum)
        data = read_whole(session, file)
        checksums.require(checksum, data, file.identity.url)
    return data, checksums.proof(checksum)


def _read_twice(session: Session, file: RemoteFile, data: bytes) -> tuple[bytes, str]:
    again = read_whole(session, file)
    if proof := likely_proof(session, file, again):
        return again, proof
    if again != data:
        raise ContentError(f"{file.identity.url}: two reads gave different bytes; nothing of it was kept")
    return data, LENGTH_ONLY


def read_whole(session: Session, file: RemoteFile) -> bytes:
    """Return the bytes of a file."""
    if not file.size:
        return b""
    data = _read(session, file)
    if len(data) != file.size:
        raise RemoteError(f"{file.identity.url}: {len(data)} bytes, but {file.size} were listed")
    session.got(len(data))
    return data


def _read(session: Session, file: RemoteFile) -> bytes:
    if file.identity.has_validator:
        try:
            return b"".join(map(bytes, session.remote.read(file, 0, file.size)))
        except RangesIgnoredError as error:  # it broke off, and the server cannot go on from there
            log.info("%s; reading it from its start", error)
    for left in range(STREAMS - 1, -1, -1):
        try:
            return b"".join(map(bytes, session.remote.stream(file)))
        except BrokenOffError as error:
            if not left or session.stop.is_set():
                raise
            log.info("%s; reading it from its start", error)
    raise AssertionError("the last try returned or raised")
