"""The token cache that every client of Determined masters shares: `auth.json`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.errors import UsageError
from cas.registry.http import canonical_url

log = logging.getLogger("cas.registry")

LOCK_SECONDS = 10.0  # then the token is not cached: the holder may be a stopped process


@dataclass(slots=True)
class Entry:
    """What `auth.json` says of one master."""

    active_user: str | None = None
    tokens: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, value: object) -> Entry:
        """Read an entry.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(value, dict) or value.keys() - {"active_user", "tokens"}:
            raise ValueError("an entry is not what it must be")
        active, tokens = value.get("active_user"), value.get("tokens") or {}
        if not (active is None or isinstance(active, str)) or not isinstance(tokens, dict):
            raise ValueError("an entry is not what it must be")
        if not all(isinstance(token, str) for token in tokens.values()):
            raise ValueError("a token is no text")
        return cls(active, dict(tokens))

    def to_json(self) -> dict[str, Any]:
        """Return what is written of it."""
        active = {"active_user": self.active_user} if self.active_user is not None else {}
        return active | {"tokens": self.tokens}


class TokenCache:
    """`auth.json`, which the `det` command shares: the tokens of one master.

    Writers hold `auth.json.lock` and rename a whole new file; a file that cannot be understood is set aside under
    another name, never deleted.
    """

    def __init__(self, folder: Path, master: str) -> None:
        self._path = folder / "auth.json"
        self._master = master

    def __repr__(self) -> str:
        return f"<TokenCache {self._path} for {self._master}>"

    @property
    def active_user(self) -> str | None:
        """Who logged in last with `det user login`."""
        return self._entry().active_user

    def token(self, user: str) -> str | None:
        """Return a user's token, if there is one; it may have expired."""
        return self._entry().tokens.get(user)

    def keep(self, user: str, token: str) -> None:
        """Write down a token. A cache that cannot be written is said, and is no error."""

        def change(entry: Entry) -> None:
            entry.tokens[user] = token

        self._change(change)

    def drop(self, user: str, token: str) -> None:
        """Forget a token that the master refused, unless another process has put a new one in its place."""

        def change(entry: Entry) -> None:
            if entry.tokens.get(user) == token:
                del entry.tokens[user]

        self._change(change)

    def activate(self, user: str | None) -> None:
        """Make a user the one who is meant where nobody is named; None: nobody."""

        def change(entry: Entry) -> None:
            entry.active_user = user

        self._change(change)

    def forget(self, user: str) -> None:
        """Forget a user's token; if the user was active, nobody is."""

        def change(entry: Entry) -> None:
            entry.tokens.pop(user, None)
            if entry.active_user == user:
                entry.active_user = None

        self._change(change)

    def users(self) -> tuple[str, ...]:
        """Return who has a token here, in order of name."""
        return tuple(sorted(self._entry().tokens))

    def _entry(self) -> Entry:
        try:
            return self._read().get(self._master, Entry())
        except ValueError:
            with self._locked() as held:
                return self._read_or_set_aside(held=held).get(self._master, Entry())
        except OSError as error:
            log.warning("cannot read %s: %s", self._path, error.strerror)
            return Entry()

    def _change(self, change: Callable[[Entry], None]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as held:
                if not held:
                    log.warning("another process holds %s.lock; the token is not kept", self._path)
                    return
                masters = self._read_or_set_aside(held=True)
                change(masters.setdefault(self._master, Entry()))
                self._write(masters)
        except OSError as error:
            log.warning("cannot write %s: %s; the token is not kept", self._path, error.strerror or error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        from filelock import FileLock, Timeout  # imported late: `import cas` must stay fast

        lock = FileLock(f"{self._path}.lock", timeout=LOCK_SECONDS, is_singleton=False)
        try:
            lock.acquire()
        except (Timeout, OSError):
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _read_or_set_aside(self, *, held: bool) -> dict[str, Entry]:
        try:
            return self._read()
        except ValueError as error:
            if not held:
                return {}
            aside = self._path.with_name(f"auth.json.corrupt-{secrets.token_hex(4)}")
            self._path.rename(aside)
            aside.chmod(0o600)
            log.warning("%s cannot be understood (%s); it lies in %s now: log in again", self._path, error, aside)
            return {}

    def _read(self) -> dict[str, Entry]:
        """What the file says, by canonical URL.

        Raises:
            ValueError: it is none of the versions 0, 1 and 2.
        """
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("it is no JSON") from error  # the parser's own message may quote a token
        if not isinstance(data, dict):
            raise ValueError("it is no object")
        if "version" not in data:
            return {self._master: Entry.parse(data)}
        version, masters = data["version"], data.get("masters")
        if (
            isinstance(version, bool)
            or version not in (1, 2)
            or data.keys() != {"version", "masters"}
            or not isinstance(masters, dict)
        ):
            raise ValueError("its version is not 0, 1 or 2")
        return _by_canonical_url(masters, strict=version == 2)

    def _write(self, masters: Mapping[str, Entry]) -> None:
        document = {"version": 2, "masters": {url: entry.to_json() for url, entry in masters.items()}}
        temporary = self._path.with_name("auth.json.temp")
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=4)
        temporary.replace(self._path)


def _by_canonical_url(masters: Mapping[str, object], *, strict: bool) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for url, value in masters.items():
        try:
            canonical = canonical_url(url)
        except UsageError as error:
            raise ValueError("the key of a master is no address") from error
        if strict and canonical != url:
            raise ValueError("the key of a master is not in canonical form")
        entry = Entry.parse(value)
        if canonical in found:
            entry = Entry(entry.active_user or found[canonical].active_user, found[canonical].tokens | entry.tokens)
        found[canonical] = entry
    return found
