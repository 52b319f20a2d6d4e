"""Keys that a newer monitor wrote and this one does not know, carried through a change of the record.

During a rolling upgrade an older monitor may change what a newer one wrote. Laws:
- A key that this monitor does not know stays where it is, with its value, for as long as the part that it is in stays.
- What this monitor knows is exactly as it wants it: what it removed is not brought back.
- Parts of a list are followed by being equal, then by their name, key, id or cid; a part that is new has nothing to
  carry.

All values are plain JSON: dict, list, str, int, float, bool, None. `raw` is what was read; `before` the same as this
monitor understood it, `after` what it wants to write.
"""

from __future__ import annotations

from typing import Any

_NAMES = ("id", "key", "name", "cid", "agent_id")


def has_unknown(raw: Any, before: Any) -> bool:
    """Whether anything in `raw` was not understood."""
    match raw, before:
        case dict(), dict():
            return any(key not in before or has_unknown(value, before[key]) for key, value in raw.items())
        case list(), list() if len(raw) == len(before):
            return any(has_unknown(one, other) for one, other in zip(raw, before, strict=True))
        case _:
            return False


def carry(raw: Any, before: Any, after: Any) -> Any:
    """`after`, with the keys of `raw` that `before` does not have."""
    match raw, before, after:
        case dict(), dict(), dict():
            found = {
                key: carry(raw[key], before[key], value) if key in raw and key in before else value
                for key, value in after.items()
            }
            found.update((key, value) for key, value in raw.items() if key not in before and key not in after)
            return found
        case list(), list(), list() if len(raw) == len(before):
            return _carry_list(raw, before, after)
        case _:
            return after


def _carry_list(raw: list[Any], before: list[Any], after: list[Any]) -> list[Any]:
    unused = list(range(len(before)))
    followed: dict[int, int] = {}  # index after → index before
    for position, value in enumerate(after):
        match_at = next((index for index in unused if before[index] == value), None)
        if match_at is not None:
            followed[position] = match_at
            unused.remove(match_at)
    for position, value in enumerate(after):
        if position in followed:
            continue
        match_at = next((index for index in unused if _same_name(before[index], value)), None)
        if match_at is not None:
            followed[position] = match_at
            unused.remove(match_at)
    return [
        carry(raw[followed[position]], before[followed[position]], value) if position in followed else value
        for position, value in enumerate(after)
    ]


def _same_name(one: Any, other: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    return any(key in one and one[key] == other.get(key) for key in _NAMES)
