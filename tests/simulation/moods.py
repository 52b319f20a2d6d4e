"""A cloud with moods: for as long as one lasts, calls go wrong with some chance.

Does not know: when a mood begins or ends (`faults.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from protocol.ids import CloudName
from tests.simulation.cloud import Fault, Machine, SimulatedCloud, SimulatedVm


class MoodyCloud(SimulatedCloud):
    def __init__(self, make_machine: Callable[[SimulatedVm], Machine], random: Random, name: CloudName) -> None:
        super().__init__(make_machine, random, latency_seconds=(0.01, 0.4), name=name)
        self.moods: dict[Fault, float] = {}  # fault → chance

    def _peek(self, name: str) -> Fault | None:
        self._drawn = super()._peek(name) or self._draw()
        return self._drawn

    def _take_fault(self, name: str) -> Fault | None:
        planned = super()._take_fault(name)
        if planned is not None:
            return planned
        if name == "create_vm":  # which looked before
            return self._drawn
        return self._draw()

    _drawn: Fault | None = None

    def _draw(self) -> Fault | None:
        return next((fault for fault, chance in self.moods.items() if self._random.random() < chance), None)
