"""Login as the users of the `det` command have it: identities, passwords, and the token cache both clients share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cas.config import DeterminedEnvironment
from cas.errors import AuthenticationError, MasterError, NotAllowedError, UsageError
from cas.registry.http import Http, canonical_url

log = logging.getLogger("cas.registry")

FALLBACK_USER = "determined"  # with an empty password: what an unconfigured master has
LOCK_SECONDS = 10.0  # then the token is not cached: the holder may be a stopped process
_SALT = "GubPEmmotfiK9TMD6Zdw"  # the master's, the same for everybody


def hashed(password: str) -> str:
    """Return a password as it is sent to a master; an empty one stays empty."""
    return hashlib.sha512((_SALT + password).encode()).hexdigest() if password else ""


# --- who -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom to log in as; `password` is None if it is not known, `explicit` if the user gave it."""

    user: str
    password: str | None = field(repr=False)
    explicit: bool

    @classmethod
    def choose(
        cls, user: str | None, password: str | None, environment: DeterminedEnvironment, active_user: str | None
    ) -> Identity:
        """Choose by precedence: arguments; `DET_USER` with `DET_PASS`; the active user; `determined`."""
        if user:
            return cls(user, password, password is not None)
        if environment.user and environment.password is not None:
            return cls(environment.user, environment.password, True)
        if active_user:
            return cls(active_user, password, password is not None)
        return cls(FALLBACK_USER, password or "", password is not None)


# --- the token cache -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Entry:
    """What `auth.json` says of one master."""

    active_user: str | None = None
    tokens: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, value: object) -> _Entry:
        if not isinstance(value, dict) or value.keys() - {"active_user", "tokens"}:
            raise ValueError("an entry is not what it must be")
        active, tokens = value.get("active_user"), value.get("tokens") or {}
        if not (active is None or isinstance(active, str)) or not isinstance(tokens, dict):
            raise ValueError("an entry is not what it must be")
        if not all(isinstance(token, str) for token in tokens.values()):
            raise ValueError("a token is no text")
        return cls(active, dict(tokens))

    def to_json(self) -> dict[str, Any]:
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

        def change(entry: _Entry) -> None:
            entry.tokens[user] = token

        self._change(change)

    def drop(self, user: str, token: str) -> None:
        """Forget a token that the master refused, unless another process has put a new one in its place."""

        def change(entry: _Entry) -> None:
            if entry.tokens.get(user) == token:
                del entry.tokens[user]

        self._change(change)

    def _entry(self) -> _Entry:
        try:
            return self._read().get(self._master, _Entry())
        except ValueError:
            with self._locked() as held:
                return self._read_or_set_aside(held=held).get(self._master, _Entry())
        except OSError as error:
            log.warning("cannot read %s: %s", self._path, error.strerror)
            return _Entry()

    def _change(self, change: Callable[[_Entry], None]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked() as held:
                if not held:
                    log.warning("another process holds %s.lock; the token is not kept", self._path)
                    return
                masters = self._read_or_set_aside(held=True)
                change(masters.setdefault(self._master, _Entry()))
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

    def _read_or_set_aside(self, *, held: bool) -> dict[str, _Entry]:
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

    def _read(self) -> dict[str, _Entry]:
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
            return {self._master: _Entry.parse(data)}
        version, masters = data["version"], data.get("masters")
        if (
            isinstance(version, bool)
            or version not in (1, 2)
            or data.keys() != {"version", "masters"}
            or not isinstance(masters, dict)
        ):
            raise ValueError("its version is not 0, 1 or 2")
        return _by_canonical_url(masters, strict=version == 2)

    def _write(self, masters: Mapping[str, _Entry]) -> None:
        document = {"version": 2, "masters": {url: entry.to_json() for url, entry in masters.items()}}
        temporary = self._path.with_name("auth.json.temp")
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=4)
        temporary.replace(self._path)


def _by_canonical_url(masters: Mapping[str, object], *, strict: bool) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for url, value in masters.items():
        try:
            canonical = canonical_url(url)
        except UsageError as error:
            raise ValueError("the key of a master is no address") from error
        if strict and canonical != url:
            raise ValueError("the key of a master is not in canonical form")
        entry = _Entry.parse(value)
        if canonical in found:
            entry = _Entry(entry.active_user or found[canonical].active_user, found[canonical].tokens | entry.tokens)
        found[canonical] = entry
    return found


# --- the login -------------------------------------------------------------------------------------------------


class Login:
    """The token for one master: from the cache, the environment, or a login."""

    def __init__(
        self, http: Http, *, user: str | None, password: str | None, environment: DeterminedEnvironment
    ) -> None:
        self._http = http
        self._asked_user = user
        self._asked_password = password
        self._environment = environment
        self._cache = TokenCache(environment.config_folder, http.url)
        self._lock = threading.Lock()
        self._token: str | None = None
        self._identity: Identity | None = None

    def __repr__(self) -> str:
        return f"<Login at {self._http.url}>"

    def token(self) -> str:
        """Return a token that the master takes; the first call may log in, or ask for the password.

        Raises:
            AuthenticationError: the master refuses the login, or there is nobody to ask for the password.
        """
        with self._lock:
            if self._token is None:
                self._token = self._obtain()
            return self._token

    def renew(self, stale: str) -> str:
        """Return another token after the master refused this one; asks nobody.

        Raises:
            AuthenticationError: only the user can log in again.
        """
        with self._lock:
            if self._token not in (None, stale):
                return str(self._token)
            identity = self._who()
            self._cache.drop(identity.user, stale)
            kept = self._cache.token(identity.user)
            if identity.password is not None:
                self._token = self._log_in(identity.user, identity.password)
            elif kept is not None:
                self._token = kept
            else:
                self._token = None
                raise self._refused(identity.user, "the token has expired")
            return self._token

    def _who(self) -> Identity:
        if self._identity is None:
            # The cache is only asked where nothing else names the user.
            named = self._asked_user or (self._environment.user and self._environment.password is not None)
            active = None if named else self._cache.active_user
            self._identity = Identity.choose(self._asked_user, self._asked_password, self._environment, active)
        return self._identity

    def _obtain(self) -> str:
        identity = self._who()
        if identity.explicit and identity.password is not None:
            # A cached token would hide that the password is wrong.
            return self._log_in(identity.user, identity.password)
        cached = self._cache.token(identity.user)
        if cached is not None and self._works(cached):
            return cached
        if cached is not None:
            self._cache.drop(identity.user, cached)
        environment = self._environment
        if environment.user and environment.user_token and self._asked_user in (None, "", environment.user):
            self._identity = Identity(environment.user, None, False)  # whoever renews it, it is this user's
            return environment.user_token
        if identity.password is not None:
            return self._log_in(identity.user, identity.password)
        return self._log_in(identity.user, self._prompt(identity.user))

    def _works(self, token: str) -> bool:
        try:
            self._http.get("/api/v1/me", token=token)
        except AuthenticationError:
            return False
        return True

    def _log_in(self, user: str, password: str) -> str:
        body = {"username": user, "password": hashed(password), "isHashed": True}
        try:
            answer = self._http.post("/api/v1/auth/login", body)
        except AuthenticationError as error:
            raise self._refused(user, "wrong user or password") from error
        except NotAllowedError as error:
            raise self._refused(user, str(error)) from error
        token = answer.get("token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token or not token.isprintable() or not token.isascii():
            raise MasterError(f"{self._http.url} answered the login with no token; is it a Determined master?")
        self._cache.keep(user, token)
        return token

    def _refused(self, user: str, reason: str) -> AuthenticationError:
        return AuthenticationError(
            f"{self._http.url} refuses {user!r} ({reason}): `det user login {user}` logs in, or give user=… and"
            " password=…, or set DET_USER and DET_PASS"
        )

    def _prompt(self, user: str) -> str:
        if not (sys.stdin is not None and sys.stdin.isatty()) and "ipykernel" not in sys.modules:
            raise self._refused(user, "no password is known, and there is no terminal to ask on")
        import getpass

        return getpass.getpass(f"Password for user '{user}': ")
