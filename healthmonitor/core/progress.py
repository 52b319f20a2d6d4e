"""How far something long is, as an agent says it while it copies a disk.

Law: what cannot be read is no progress; nothing is concluded from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from healthmonitor.core.units import size_text

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """`seconds_left`: None while it cannot be told."""

    what: str
    phase: str
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    seconds_left: float | None

    @property
    def text(self) -> str:
        """`copying disk data: 312 MiB of 1 GiB, 52 MiB/s, about 14 s left`."""
        done = f"{_size(self.bytes_done)} of {_size(self.bytes_total)}"
        rate = f"{self.bytes_per_second / _MIB:.0f} MiB/s"
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        phase = "" if self.phase == "copying" else f" ({self.phase})"
        return f"{self.what}{phase}: {done}, {rate}{left}"


def read_progress(what: str, said: Any) -> Progress | None:
    if not isinstance(said, dict):
        return None
    done, total, rate = (said.get(key) for key in ("bytes_done", "bytes_total", "bytes_per_second"))
    if not all(isinstance(value, (int, float)) for value in (done, total, rate)):
        return None
    left = said.get("seconds_left")
    return Progress(
        what=what,
        phase=str(said.get("phase", "")),
        bytes_done=int(done or 0),
        bytes_total=int(total or 0),
        bytes_per_second=float(rate or 0.0),
        seconds_left=float(left) if isinstance(left, (int, float)) else None,
    )


def _size(count: int) -> str:
    return size_text(count // _MIB)
