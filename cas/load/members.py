"""Which member of what a file holds is its model: a trainer saves its optimizer, its numbers and more beside that.

The same question is asked of values, of what a pickle would make (cas/load/selecting.py), and of what the metadata of a
distributed checkpoint lists: what is fetched or read of a file must be what is returned of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cas.errors import UsageError

MODEL_KEYS = frozenset({"model", "model_state_dict", "models_state_dict", "state_dict"})
# What is no model, by its name: the others are told by what they hold.
_BESIDE = re.compile(
    r"optim|^opt(?:_|\d|$)|sched|scaler|sampler|rng|random|callback|loss|criterion|hyper|hparam|config|^args$|^step$"
)
_MAX_DEPTH = 4  # of members within members; also what contains itself has an end
_MAX_NAMES = 8  # in a message


@dataclass(frozen=True, slots=True)
class Look:
    """How values are told: tensors, modules, and what has members (None: it has not)."""

    is_tensor: Callable[[Any], bool]
    is_module: Callable[[Any], bool]
    as_mapping: Callable[[Any], Mapping[Any, Any] | None]


@dataclass(frozen=True, slots=True)
class Member:
    """Something that may be a model: its state, a module, or a list of one of them; `path` leads to it."""

    path: tuple[str, ...]
    value: Any


def find_models(value: Any, look: Look) -> list[Member]:
    """Return what may be the model in what a file holds.

    One, if it can be told: under a name that trainers give it, or the one state dict or module beside states of
    optimizers and numbers. What is a state dict itself is the model as a whole.
    """
    return _find(value, look, _MAX_DEPTH)


def _find(value: Any, look: Look, depth: int) -> list[Member]:
    members = look.as_mapping(value)
    if not members or depth == 0:
        return []
    for key in sorted(MODEL_KEYS & members.keys()):
        if _is_models(members[key], look):
            return [Member((key,), members[key])]
    if all(map(look.is_tensor, members.values())):
        return [Member((), value)]
    named = {key: one for key, one in members.items() if isinstance(key, str) and not _BESIDE.search(key.lower())}
    tensors = sum(map(look.is_tensor, named.values()))
    if 2 * tensors > len(named):
        return [Member((), value)]
    found: list[Member] = []
    for key, one in named.items():
        if _is_states(one, look):
            found.append(Member((key,), one))
        elif (inner := look.as_mapping(one)) and "param_groups" not in inner:
            found += [Member((key, *member.path), member.value) for member in _find(one, look, depth - 1)]
    return found or ([Member((), value)] if tensors else [])


def _is_models(value: Any, look: Look) -> bool:
    """Whether what has a model's name can be one, or is a list of them."""
    if isinstance(value, list):
        return bool(value) and all(look.is_module(one) or look.as_mapping(one) for one in value)
    return look.is_module(value) or bool(look.as_mapping(value))


def _is_states(value: Any, look: Look) -> bool:
    """Whether something is a module or a state dict by what it holds, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(not isinstance(one, list) and _is_states(one, look) for one in value)
    if look.is_module(value):
        return True
    members = look.as_mapping(value)
    if not members or "param_groups" in members or not all(isinstance(key, str) for key in members):
        return False
    return 2 * sum(map(look.is_tensor, members.values())) > len(members)


def untold(subject: str, held: Iterable[object], models: Sequence[Member]) -> UsageError:
    """Return the error for a file of which it cannot be told what the model is."""
    what = "holds no state of a model" if not models else f"{names_of('.'.join(one.path) for one in models)} may be it"
    return UsageError(f"{subject}: its model cannot be told from the rest ({what}): it holds {names_of(held)}")


def names_of(keys: Iterable[object]) -> str:
    """Return names for a message, the first few."""
    names = ["".join(c if c.isprintable() else "?" for c in f"{key!s:.40}") for key in keys]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


__all__ = ["MODEL_KEYS", "Look", "Member", "find_models", "names_of", "untold"]
