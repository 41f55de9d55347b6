"""Every error that `cas` raises on purpose, and the exit code that its commands end with.

::

    CasError                      1  something failed; the message says what, with what, and what to do
    ├── UsageError (ValueError)   2  the call or the command is wrong
    │   └── ExperimentConflictError      2  what is said of an experiment or trial contradicts what was said before
    ├── NotFoundError (LookupError)      3  no such experiment, trial, checkpoint, file or folder
    │   └── CheckpointNotFoundError      3  its files are in no place that was asked (their only copy may be damaged)
    ├── ContentError              4  bytes, names or records are not what they must be; `check` found damage
    │   ├── DigestMismatchError   4  bytes do not have the digest or checksum that was declared
    │   ├── UnsafeNameError       4  a name from outside would leave the target or cannot be kept
    │   └── ForeignContentError   4  a target folder holds other content, which is left alone
    ├── LockTimeoutError          5  another process held a lock for too long
    ├── OfflineError              6  the network is needed and is off or does not answer
    ├── NoSpaceError              7  the disk, the quota or the inodes are used up
    ├── NotAllowedError           8  credentials or permissions are missing
    │   └── AuthenticationError   8  a master refused the login or the token
    ├── UnsafeContentError        9  a pickle or code that the trust policy does not allow to run
    ├── PeerError                 1  another rank of the job failed, or does not answer
    ├── ProtectedError           10  a checkpoint is pinned or in use, and stays
    ├── MasterError               1  a master answered with an error or with something that is no answer
    └── RemoteError               1  a remote answered with an error
        ├── TransientRemoteError  1  worth another try: the one type that retries look at
        └── ChangedError          1  the object is no longer the version that was listed

Fields come first (`error.path`, `error.url`, …), the message is made from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "CasError",
    "ChangedError",
    "CheckpointNotFoundError",
    "ContentError",
    "DigestMismatchError",
    "ExperimentConflictError",
    "ForeignContentError",
    "LockTimeoutError",
    "MasterError",
    "NoSpaceError",
    "NotAllowedError",
    "NotFoundError",
    "OfflineError",
    "PeerError",
    "ProtectedError",
    "RemoteError",
    "TransientRemoteError",
    "UnsafeContentError",
    "UnsafeNameError",
    "UsageError",
]


class CasError(Exception):
    """Base of all errors that `cas` raises on purpose; `exit_code` is what a command ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(CasError, ValueError):
    """The call or the command is wrong; nothing was done."""

    exit_code = 2


class ExperimentConflictError(UsageError):
    """What is said of an experiment or trial contradicts what was said before."""


class NotFoundError(CasError, LookupError):
    """No such experiment, trial, checkpoint, file or folder."""

    exit_code = 3


class CheckpointNotFoundError(NotFoundError):
    """A checkpoint is known, but its files are in no place that was asked."""


class ContentError(CasError):
    """Bytes, names or records are not what they must be."""

    exit_code = 4


class DigestMismatchError(ContentError):
    """Bytes do not have the digest or checksum that was declared for them."""

    def __init__(self, subject: str, *, expected: str, actual: str) -> None:
        self.subject = subject
        self.expected = expected
        self.actual = actual
        super().__init__(f"{subject}: expected {expected}, but the bytes have {actual}")


class UnsafeNameError(ContentError):
    """A name from outside would leave the target folder, or cannot be kept on this disk."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"unsafe file name {name!r}: {reason}")


class ForeignContentError(ContentError):
    """A target folder holds content that is not the checkpoint's; it was left as it is."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}; choose another folder, or move this one away")


class LockTimeoutError(CasError):
    """Another process held a lock for too long."""

    exit_code = 5


class OfflineError(CasError):
    """The network is needed, and it is off (`CAS_OFFLINE`) or does not answer."""

    exit_code = 6


class NoSpaceError(CasError):
    """The disk, the quota or the inodes are used up; nothing was broken."""

    exit_code = 7


class NotAllowedError(CasError):
    """Credentials or permissions are missing."""

    exit_code = 8


class AuthenticationError(NotAllowedError):
    """A master refused the login or the token."""


class UnsafeContentError(CasError):
    """A pickle or code that the trust policy does not allow to run."""

    exit_code = 9


class PeerError(CasError):
    """Another rank of the job failed, or does not answer: no rank goes on alone."""


class ProtectedError(CasError):
    """A checkpoint (or, with no UUID, the store) is pinned or in use, and stays."""

    exit_code = 10

    def __init__(self, uuid: str | None, reason: str) -> None:
        self.uuid = uuid
        self.reason = reason
        super().__init__(f"checkpoint {uuid} stays: {reason}" if uuid else reason)


class MasterError(CasError):
    """A master answered with an error, or with something that is no answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status  # of HTTP, if it answered with an error
        super().__init__(message)


class RemoteError(CasError):
    """A remote answered with an error that another try would not change."""


class TransientRemoteError(RemoteError):
    """A remote failed in a way that is worth another try; the only type that retries look at."""

    def __init__(self, message: str, *, retry_after: float | None = None, unreachable: bool = False) -> None:
        self.retry_after = retry_after  # seconds the server asked for, if it did
        self.unreachable = unreachable  # nobody answered at all
        super().__init__(message)


class ChangedError(RemoteError):
    """The object is no longer the version that was listed."""
