"""How far a copy is, and how long it will still take.

Law: the rate is what was reached over the last while, not since the beginning, so that it follows what the disks do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

WINDOW_SECONDS = 10.0


class Phase(Enum):
    COPYING = "copying"
    COMPARING = "comparing"


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """`samples`: (seconds, bytes), of the last `WINDOW_SECONDS`, oldest first."""

    phase: Phase
    bytes_total: int
    began_at: float
    bytes_done: int = 0
    samples: tuple[tuple[float, int], ...] = ()

    def at(self, now: float, bytes_done: int) -> CopyProgress:
        """Never more than all of it, and never less than before: what is measured goes by whole blocks."""
        done = min(self.bytes_total, max(self.bytes_done, bytes_done))
        before = self.samples or ((self.began_at, 0),)
        recent = tuple(sample for sample in before if sample[0] >= now - WINDOW_SECONDS) or before[-1:]
        return replace(self, bytes_done=done, samples=(*recent, (now, done)))

    @property
    def bytes_per_second(self) -> float:
        if len(self.samples) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self.samples[0], self.samples[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def plain(self) -> dict[str, Any]:
        rate = self.bytes_per_second
        return {
            "phase": self.phase.value,
            "bytes_done": self.bytes_done,
            "bytes_total": self.bytes_total,
            "bytes_per_second": round(rate),
            "seconds_left": round((self.bytes_total - self.bytes_done) / rate, 1) if rate > 0 else None,
        }
