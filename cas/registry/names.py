"""Names of the user's own for checkpoints: records of `local`, so that they are kept as everything else is."""

from __future__ import annotations

import re

from cas.errors import NotFoundError, UsageError
from cas.index.records import NewRecord
from cas.index.store import Store
from cas.registry.catalog import LOCAL
from cas.registry.records import canonical_uuid

_KIND = "name"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*)*", re.ASCII)
_LONGEST = 200  # characters


def check_name(text: str) -> str:
    """Return a name for a checkpoint: letters, digits and `._+-`, with slashes between parts.

    Raises:
        UsageError: it is none; or it is a UUID, and those name themselves.
    """
    if is_uuid(text):
        raise UsageError(f"{text!r:.80} is a UUID, and those name themselves; choose a name like llama/8b")
    if not _NAME.fullmatch(text) or text.isdigit() or len(text) > _LONGEST:  # digits are ids of something else
        raise UsageError(f"not a name: {text!r:.80}; names are of letters, digits and . _ + -, like llama/8b-v2")
    return text


def is_uuid(text: object) -> bool:
    """Whether something is a checkpoint's UUID, in any form."""
    try:
        canonical_uuid(text)
    except UsageError:
        return False
    return True


def uuid_of(store: Store, text: object) -> str:
    """Return the UUID that a text is, in canonical form, or that a name stands for.

    Raises:
        UsageError: it can be neither.
        NotFoundError: no checkpoint has this name.
    """
    if is_uuid(text):
        return canonical_uuid(text)
    try:
        name = check_name(text if isinstance(text, str) else "")
    except UsageError:
        raise UsageError(f"not a checkpoint UUID, and no name: {str(text)!r:.80}") from None
    seen = store.records.get(LOCAL, _KIND, name)
    uuid = seen.data.get("uuid") if seen is not None else None
    if not isinstance(uuid, str) or not is_uuid(uuid):
        raise NotFoundError(f"no checkpoint is called {name!r}, and it is no UUID; `cas tag` lists the names")
    return canonical_uuid(uuid)


def set_name(store: Store, name: str, uuid: str | None) -> str | None:
    """Give a name to a checkpoint, or (None) to no checkpoint; return whose it was.

    Raises:
        UsageError: it is no name.
    """
    before = names(store).get(check_name(name))
    store.records.add(LOCAL, [NewRecord(_KIND, name, {"uuid": uuid})])
    return before


def names(store: Store) -> dict[str, str]:
    """Return every name, in order, with the UUID that it stands for."""
    found = {seen.id: seen.data.get("uuid") for seen in store.records.find(_KIND, registry=LOCAL)}
    return {name: uuid for name, uuid in sorted(found.items()) if isinstance(uuid, str)}
