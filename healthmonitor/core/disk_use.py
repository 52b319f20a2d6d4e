"""How full disks are, and when each will be full if it goes on as it does.

Laws: a forecast rests on medians over the first and the last third of what was seen, so that a file written and deleted
again moves nothing; with too little seen there is none, and a disk that does not grow has none. A forecast says when,
never that something is wrong now: full is what is full.

Does not know: heartbeats, incidents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from statistics import median
from typing import Protocol

import msgspec

from healthmonitor.core.policy import DiskPolicy

SAMPLES_MAX = 36
SAMPLES_LEAST = 9
_DAY_SECONDS = 86400.0
_SAMPLE = struct.Struct("<If")
_PERCENT_MAX = 1e6  # whatever an agent says
_SECONDS_MASK = 0xFFFFFFFF  # 136 years of a monotonic clock


class Report(Protocol):
    """What an agent says of a mounted disk."""

    @property
    def percent(self) -> float: ...
    @property
    def inode_percent(self) -> float: ...
    @property
    def errors(self) -> int: ...


class History(msgspec.Struct, frozen=True, gc=False):
    """(seconds, percent), oldest first, `sample_seconds` apart. Of one disk. Packed: there are as many as disks, and as
    tuples of floats three hours of samples would be the largest part of what is known of a VM."""

    packed: bytes = b""

    def seen(self, now: float, percent: float, sample_seconds: float) -> History:
        """With this sample, when it is time for one."""
        if self.packed and now < _SAMPLE.unpack_from(self.packed, len(self.packed) - _SAMPLE.size)[0] + sample_seconds:
            return self
        kept = self.packed[-_SAMPLE.size * (SAMPLES_MAX - 1) :]
        return History(kept + _SAMPLE.pack(int(now) & _SECONDS_MASK, max(-_PERCENT_MAX, min(percent, _PERCENT_MAX))))

    @property
    def samples(self) -> tuple[tuple[int, float], ...]:
        return tuple(_SAMPLE.iter_unpack(self.packed))

    def seconds_until_full(self) -> float | None:
        """From the last sample on; None when it does not grow, or too little was seen."""
        if len(self.packed) < SAMPLES_LEAST * _SAMPLE.size:
            return None
        samples = self.samples
        third = len(samples) // 3
        (from_at, from_percent), (to_at, to_percent) = _middle(samples[:third]), _middle(samples[-third:])
        if to_percent <= from_percent:
            return None
        percent_per_second = (to_percent - from_percent) / (to_at - from_at)
        return max(0.0, 100.0 - samples[-1][1]) / percent_per_second


def is_fine(report: Report, seconds_until_full: float | None, policy: DiskPolicy) -> bool:
    return next(complaints(report, seconds_until_full, policy), None) is None


def complaints(report: Report, seconds_until_full: float | None, policy: DiskPolicy) -> Iterator[tuple[str, str]]:
    """Kinds of deviations, each with its detail."""
    if report.errors:
        yield "disk_errors", f"the file system has recorded {report.errors} error{'s' if report.errors > 1 else ''}"
    percent = report.percent / 100.0
    soon = seconds_until_full is not None and seconds_until_full <= policy.full_within_seconds
    when = "" if seconds_until_full is None else f"; at its present growth full in {days_text(seconds_until_full)}"
    if percent >= policy.full_share:
        yield "disk_full", f"{report.percent:.0f} % used"
    elif percent >= policy.filling_share or soon:
        yield "disk_filling", f"{report.percent:.0f} % used{when}"
    if report.inode_percent / 100.0 >= policy.inodes_share:
        yield "disk_inodes", f"{report.inode_percent:.0f} % of its inodes are used, {report.percent:.0f} % of its space"


def days_text(seconds: float) -> str:
    if seconds < 2 * 3600.0:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * _DAY_SECONDS else f"{seconds / _DAY_SECONDS:.0f} days"


def _middle(samples: tuple[tuple[int, float], ...]) -> tuple[float, float]:
    return median(at for at, _ in samples), median(percent for _, percent in samples)
