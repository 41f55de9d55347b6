"""Login as the users of the `det` command have it: who it is, and how to get a token that the master takes."""

from __future__ import annotations

import hashlib
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cas.config import DeterminedEnvironment
from cas.errors import AuthenticationError, CasError, MasterError, NotAllowedError, NotFoundError
from cas.registry.dialect import Entrance
from cas.registry.http import AllocationToken, Http
from cas.registry.tokens import TokenCache

log = logging.getLogger("cas.registry")

FALLBACK_USER = "determined"  # with an empty password: what an unconfigured master has
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


# --- the login -------------------------------------------------------------------------------------------------


class Login:
    """The token for one master: from the cache, the environment, or a login.

    `entrance` says how that master is logged in to; it may ask the master what it is.
    """

    def __init__(
        self,
        http: Http,
        entrance: Callable[[], Entrance],
        *,
        user: str | None,
        password: str | None,
        environment: DeterminedEnvironment,
    ) -> None:
        self._http = http
        self._entrance = entrance
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
            if identity.password is not None and not isinstance(stale, AllocationToken):
                self._token = self._log_in(identity.user, identity.password)
            elif kept is not None:
                self._token = kept
            else:
                self._token = None
                raise self._refused(identity.user, "the token has expired")
            return self._token

    def whoami(self) -> str:
        """Return the name of the user that the master takes us for.

        Raises:
            AuthenticationError: it refuses the login.
        """
        answer = self._entrance().whoever(self._http, self.token())
        user = answer.get("user", answer) if isinstance(answer, dict) else None
        name = user.get("username") if isinstance(user, dict) else None
        if not isinstance(name, str):
            raise MasterError(f"{self._http.url} does not say who is logged in; is it a Determined master?")
        return name

    def start_session(self) -> str:
        """Log in with a password, whatever tokens there are, and make the user the active one; return the name.

        Raises:
            AuthenticationError: the master refuses the login, or there is nobody to ask for the password.
        """
        with self._lock:
            identity = self._who()
            user = identity.user
            password = identity.password if identity.explicit else None
            self._token = self._log_in(user, self._prompt(user) if password is None else password)
            self._cache.activate(user)
            return user

    def end_session(self, *, everyone: bool = False) -> tuple[str, ...]:
        """End the session of the user, or of everyone who has a token here; return whose. The tokens are forgotten.

        A session that the master does not end (it does not answer, or knows it no more) ends by itself after a week.
        """
        with self._lock:
            known = self._cache.users()
            users = known if everyone else tuple(user for user in (self._who().user,) if user in known)
            for user in users:
                token = self._cache.token(user)
                self._cache.forget(user)
                if token is not None:
                    self._end(user, token)
            self._token = None
            return users

    def _end(self, user: str, token: str) -> None:
        try:
            self._entrance().log_out(self._http, token)
        except (NotAllowedError, NotFoundError):
            pass  # it has ended already, or this master knows no logout
        except CasError as error:
            log.warning("the token of %s is forgotten here, but its session goes on: %s", user, error)

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
        token = self._from_environment()
        if token is not None:
            return token
        if identity.password is not None:
            return self._log_in(identity.user, identity.password)
        return self._log_in(identity.user, self._prompt(identity.user))

    def _from_environment(self) -> str | None:
        """A token that the environment gives; of a user first, then of the task that this runs in."""
        environment = self._environment
        if environment.user and environment.user_token and self._asked_user in (None, "", environment.user):
            self._identity = Identity(environment.user, None, False)  # whoever renews it, it is this user's
            return environment.user_token
        if environment.session_token and not self._asked_user:
            return AllocationToken(environment.session_token)
        return None

    def _works(self, token: str) -> bool:
        try:
            self._entrance().whoever(self._http, token)
        except NotAllowedError:
            return False
        return True

    def _log_in(self, user: str, password: str) -> str:
        try:
            answer = self._entrance().log_in(self._http, user, hashed(password))
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

        try:
            return getpass.getpass(f"Password for user '{user}': ")
        except (EOFError, NotImplementedError) as error:  # a terminal that ended; a notebook that runs unattended
            raise self._refused(user, "no password was given") from error
