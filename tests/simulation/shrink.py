"""A failing run, with fewer faults where that keeps it failing.

Law: what is kept fails by the same checker as the whole; each try is a run of its own with the same seed. Bounded in
tries and in real time: the smallest plan found by then is given.

Does not know: how a run is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TRIES_MAX = 60


def shrink(
    numbers: Sequence[int], fails: Callable[[tuple[int, ...]], bool], out_of_time: Callable[[], bool]
) -> tuple[int, ...]:
    """The numbers of the faults that are left (delta debugging: halves first, then smaller parts, then one by one)."""
    kept = tuple(numbers)
    tries = 0
    parts = 2
    while len(kept) > 1:
        size = max(1, len(kept) // parts)
        chunks = [kept[start : start + size] for start in range(0, len(kept), size)]
        for chunk in chunks:
            rest = tuple(number for number in kept if number not in chunk)
            if tries >= TRIES_MAX or out_of_time():
                return kept
            tries += 1
            if fails(rest):
                kept, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                return kept
            parts = min(len(kept), parts * 2)
    return kept
