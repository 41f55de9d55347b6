"""Who we are for S3, and where it is: botocore's chain.

(The environment, profiles, SSO, web identity, containers, and last the instance's metadata service.)
"""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from cas.errors import NotAllowedError
from cas.transfer.sigv4 import Credentials

RENEW = timedelta(minutes=5)  # how long obstore uses keys that the chain may renew
_SHARED = 5.0  # seconds in which threads whose keys were refused share one renewal
METADATA_SECONDS = 1  # the instance's metadata service is asked last, once: on a laptop nobody answers
_HINT = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or access_key and secret_key of the storage"


class Account:
    """The user's AWS configuration; explicit keys go before what it says. Safe for threads."""

    def __init__(self, explicit: Credentials | None = None) -> None:
        self.explicit = explicit
        self._lock = threading.Lock()
        self._given: Credentials | None = None  # the last ones
        self._renewed = -_SHARED

    @cached_property
    def _session(self) -> Any:
        from botocore.session import Session

        session = Session()
        session.set_config_variable("metadata_service_timeout", METADATA_SECONDS)
        session.set_config_variable("metadata_service_num_attempts", 1)
        return session

    def credentials(self) -> Credentials:
        """Return the keys to sign with now; they are renewed when they run out.

        Raises:
            NotAllowedError: there are none.
        """
        if self.explicit is not None:
            return self.explicit
        if (keys := _environment_keys()) is not None:
            self._given = keys
            return keys  # what the chain would give; botocore takes 0.15 s to load
        from botocore.exceptions import BotoCoreError

        try:
            with self._lock:
                found = self._session.get_credentials()
                frozen = found.get_frozen_credentials() if found is not None else None
        except BotoCoreError as error:
            raise NotAllowedError(f"no S3 credentials: {error}; {_HINT}") from error
        if frozen is None or not frozen.access_key:
            raise NotAllowedError(f"no S3 credentials were found; {_HINT}")
        self._given = Credentials(frozen.access_key, frozen.secret_key, frozen.token)
        return self._given

    def provide(self) -> dict[str, Any]:
        """Return the keys as obstore asks for them, again and again while it uses them.

        What is given to obstore is kept alive by it, and Python's collector cannot look into it: this must not lead to
        the store, or the two of them, with all their connections, stay until the process ends.
        """
        keys = self.credentials()
        expires = None if self.explicit is not None else datetime.now(UTC) + RENEW
        named = {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key}
        return {**named, "token": keys.token, "expires_at": expires}

    def renew(self) -> bool:
        """Forget the keys, which a server says ran out, and ask the chain anew; True if there are others now."""
        if self.explicit is not None:
            return False
        with self._lock:
            if time.monotonic() - self._renewed < _SHARED:
                return True  # for another thread
            before, self._renewed = self._given, time.monotonic()
            self.__dict__.pop("_session", None)
        try:
            return self.credentials() != before
        except NotAllowedError:
            return False

    def region(self) -> str | None:
        """Return the region that the environment or the profile names."""
        named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return named or self._configured("region")

    def endpoint(self) -> str | None:
        """Return the endpoint for S3 that the environment or the profile names."""
        if not _has_configuration() and not any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ):
            return None
        from botocore.configprovider import ConfiguredEndpointProvider
        from botocore.exceptions import BotoCoreError

        try:
            scoped = self._session.get_scoped_config()
            found = ConfiguredEndpointProvider(self._session.full_config, scoped, "s3").provide()
        except BotoCoreError as error:
            raise NotAllowedError(f"cannot read the AWS configuration: {error}") from error
        return found or None

    def ca_bundle(self) -> str | None:
        """Return the file of certificates that the environment or the profile names."""
        return os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or self._configured("ca_bundle")

    def _configured(self, name: str) -> str | None:
        if not _has_configuration():
            return None
        from botocore.exceptions import BotoCoreError

        try:
            return self._session.get_config_variable(name) or None
        except BotoCoreError as error:
            raise NotAllowedError(f"cannot read the AWS configuration: {error}; {_HINT}") from error


def _environment_keys() -> Credentials | None:
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        return None
    return Credentials(access, secret, os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN"))


def _has_configuration() -> bool:
    """Whether there is anything that only botocore can read."""
    named = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    return "AWS_PROFILE" in os.environ or "AWS_DEFAULT_PROFILE" in os.environ or Path(named).expanduser().exists()
