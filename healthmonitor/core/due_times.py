"""Whom to look at when: a timer wheel.

Laws:
- Adding and taking cost the same whatever there is. Nobody is taken before their time, nor more than one tooth after.
- Who was added once is taken once.

A heap of (time, id) costs three times the memory and, at a hundred thousand entries, ten times the time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from protocol.ids import AgentId

TOOTH_SECONDS = 0.05


class DueTimes:
    def __init__(self) -> None:
        self._teeth: dict[int, list[AgentId]] = {}  # tooth → who is due at its end
        self._order: list[int] = []  # heap of the teeth that are there

    def add(self, agent: AgentId, at: float) -> None:
        tooth = int(at // TOOTH_SECONDS) + 1
        waiting = self._teeth.get(tooth)
        if waiting is None:
            self._teeth[tooth] = [agent]
            heapq.heappush(self._order, tooth)
        else:
            waiting.append(agent)

    def take(self, now: float) -> Iterator[AgentId]:
        """Those that are due, the earliest first, for as long as the caller asks: who is not taken stays due. Who is
        added meanwhile and is due too comes in its turn."""
        while self._order and self._order[0] * TOOTH_SECONDS <= now:
            waiting = self._teeth[self._order[0]]
            agent = waiting.pop()
            if not waiting:
                del self._teeth[heapq.heappop(self._order)]
            yield agent

    def take_some(self, now: float, most: int) -> list[AgentId]:
        """As `take`, as many as that, without stopping at each; who is added meanwhile is not among them."""
        taken: list[AgentId] = []
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
        everybody = [agent for tooth in sorted(self._teeth) for agent in self._teeth[tooth]]
        self._teeth.clear()
        self._order.clear()
        for agent in everybody:
            self.add(agent, now)
