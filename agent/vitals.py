"""Vitals of the VM, sampled beside the heartbeat.

Law: sampling may hang (a dead disk, a stuck /proc); the heartbeat then carries the latest sample there was.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import psutil
import structlog

from agent.core.vitals_shape import CpuTimes, Sample, Usage, percent, shape
from agent.lone_thread import LoneThread, StillHanging

log = structlog.get_logger(__name__)

SAMPLE_INTERVAL_SECONDS = 5.0
SAMPLE_DEADLINE_SECONDS = 4.0
EPHEMERAL_PATH = "/var/lib/docker"


class Vitals:
    def __init__(self, read: Callable[[], Sample], interval_seconds: float = SAMPLE_INTERVAL_SECONDS) -> None:
        """`read` blocks; it is called in a thread of its own."""
        self._read = read
        self._interval_seconds = interval_seconds
        self._thread = LoneThread("vitals")
        self._before = CpuTimes()
        self._latest: dict[str, Any] = {}
        self._late = False

    def latest(self) -> dict[str, Any]:
        """In BOSH's shapes; empty before the first sample."""
        return self._latest

    async def run(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(self._interval_seconds)

    async def sample(self) -> None:
        try:
            sample = await self._thread.call(self._read, SAMPLE_DEADLINE_SECONDS)
        except (TimeoutError, StillHanging, OSError, psutil.Error) as error:
            if not self._late:
                log.warning("vitals.late", error=repr(error), next="the latest sample is sent until it returns")
            self._late = True
            return
        if self._late:
            log.info("vitals.back")
        self._late = False
        self._latest = shape(sample, self._before)
        self._before = sample.cpu


def read_sample(uptime_seconds: Callable[[], float], persistent: Callable[[], str | None]) -> Callable[[], Sample]:
    """A reader for `Vitals`. `persistent`: where the first persistent disk is mounted, if one is."""

    def read() -> Sample:
        times, memory, swap = psutil.cpu_times(), psutil.virtual_memory(), psutil.swap_memory()
        return Sample(
            cpu=CpuTimes(
                user=times.user + times.nice,
                system=times.system,
                wait=times.iowait,
                total=sum(times[:8]),  # guest and guest_nice are in user and nice already
            ),
            load=os.getloadavg(),
            memory_used_bytes=memory.used,
            memory_total_bytes=memory.total,
            swap_used_bytes=swap.used,
            swap_total_bytes=swap.total,
            uptime_seconds=uptime_seconds(),
            disks=_disks(persistent()),
        )

    return read


def disk_usage(path: str) -> Usage:
    """As df counts: of what an ordinary user may fill. Blocks; OSError."""
    stat = os.statvfs(path)
    used = stat.f_blocks - stat.f_bfree
    return Usage(
        percent=percent(used, used + stat.f_bavail),
        inode_percent=percent(stat.f_files - stat.f_ffree, stat.f_files),
        size_mib=stat.f_blocks * stat.f_frsize // (1024 * 1024),
    )


def _disks(persistent: str | None) -> dict[str, Usage]:
    usages = {"system": disk_usage("/")}
    if os.path.ismount(EPHEMERAL_PATH):
        usages["ephemeral"] = disk_usage(EPHEMERAL_PATH)
    if persistent is not None:
        usages["persistent"] = disk_usage(persistent)
    return usages
