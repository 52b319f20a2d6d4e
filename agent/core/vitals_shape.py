"""Vitals in BOSH's shapes: every number a string, but `uptime.secs`.

Source: bosh-agent's heartbeat (reference: BOSH agent wire protocol, 1.3); a key is absent where there is nothing to
say. Does not know: psutil.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since boot, over all cores."""

    user: float = 0.0  # nice included
    system: float = 0.0
    wait: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    percent: float
    inode_percent: float
    size_mib: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    cpu: CpuTimes
    load: tuple[float, float, float] | None
    memory_used_bytes: int
    memory_total_bytes: int
    swap_used_bytes: int
    swap_total_bytes: int
    uptime_seconds: float
    disks: Mapping[str, Usage] = field(default_factory=dict)  # system, ephemeral, persistent


def shape(sample: Sample, before: CpuTimes) -> dict[str, Any]:
    """`before`: the CPU times of the sample before this one; shares are of the time between the two."""
    vitals: dict[str, Any] = {
        "cpu": _cpu(before, sample.cpu),
        "disk": {
            name: {"inode_percent": f"{usage.inode_percent:.0f}", "percent": f"{usage.percent:.0f}"}
            for name, usage in sample.disks.items()
        },
        "mem": _memory(sample.memory_used_bytes, sample.memory_total_bytes),
        "swap": _memory(sample.swap_used_bytes, sample.swap_total_bytes),
    }
    if sample.load is not None:
        vitals["load"] = [f"{load:.2f}" for load in sample.load]
    if int(sample.uptime_seconds):
        vitals["uptime"] = {"secs": int(sample.uptime_seconds)}
    return vitals


def percent(part: float, whole: float) -> float:
    return 0.0 if whole <= 0 else min(100.0, max(0.0, 100.0 * part / whole))


def _cpu(before: CpuTimes, after: CpuTimes) -> dict[str, str]:
    elapsed = after.total - before.total
    return {
        "sys": f"{percent(after.system - before.system, elapsed):.1f}",
        "user": f"{percent(after.user - before.user, elapsed):.1f}",
        "wait": f"{percent(after.wait - before.wait, elapsed):.1f}",
    }


def _memory(used_bytes: int, total_bytes: int) -> dict[str, str]:
    return {"kb": str(used_bytes // 1024), "percent": f"{percent(used_bytes, total_bytes):.0f}"}
