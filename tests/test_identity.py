import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ContentError
from cas.index.identity import RemoteIdentity

FULL = RemoteIdentity("s3+https://host/bucket/key", 7, '"abc"', "v1", 12)


@pytest.mark.parametrize("identity", [FULL, RemoteIdentity("file:///a", 0)])
def test_json_is_read_back(identity: RemoteIdentity) -> None:
    assert RemoteIdentity.from_json(json.loads(json.dumps(identity.to_json()))) == identity


def test_members_that_are_not_set_are_left_out() -> None:
    assert RemoteIdentity("u", 1).to_json() == {"url": "u", "size": 1}


def test_keys_are_equal_exactly_when_identities_are() -> None:
    others = [
        RemoteIdentity("s3+https://host/bucket/key", 7, '"abc"', "v1", 13),
        RemoteIdentity("s3+https://host/bucket/key", 7, '"abc"', "v1"),
        RemoteIdentity("s3+https://host/bucket/key", 8, '"abc"', "v1", 12),
        RemoteIdentity("s3+https://host/bucket/key", 7, "v1", '"abc"', 12),
    ]
    assert len({FULL.key, *(other.key for other in others)}) == 5
    assert FULL.key == RemoteIdentity.from_json(FULL.to_json()).key


def test_weak_etags_and_times_are_no_validators() -> None:
    assert not RemoteIdentity("u", 1, 'W/"a"', None, 5).has_validator
    assert not RemoteIdentity("u", 1).has_validator
    assert RemoteIdentity("u", 1, '"a"').has_validator
    assert RemoteIdentity("u", 1, None, "3").has_validator


@pytest.mark.parametrize(
    "data",
    [None, [], "u", {}, {"url": "u"}, {"size": 1}, {"url": "u", "size": -1}, {"url": "u", "size": True},
     {"url": "u", "size": 1.0}, {"url": "u", "size": "1"}, {"url": 7, "size": 1}, {"url": "\ud800", "size": 1},
     {"url": "u", "size": 1 << 63}, {"url": "u", "size": 1, "etag": 7}, {"url": "u", "size": 1, "etag": None},
     {"url": "u", "size": 1, "modified": True}, {"url": "u", "size": 1, "modified": "1"},
     {"url": "u", "size": 1, "version": "\udcff"}, {"url": "u", "size": 1, "extra": 1}],
)  # fmt: skip
def test_anything_else_is_refused(data: object) -> None:
    with pytest.raises(ContentError):
        RemoteIdentity.from_json(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=2)
)
names = st.sampled_from(["url", "size", "etag", "version", "modified", "other"])


@given(st.dictionaries(names, values) | values)
def test_hostile_json_raises_one_kind_of_error(data: Any) -> None:
    try:
        identity = RemoteIdentity.from_json(data)
    except ContentError:
        return
    identity.key.encode("utf-8")
    assert identity.to_json() == data
