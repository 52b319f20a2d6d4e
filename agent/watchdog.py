"""Tells systemd that the agent is alive, as long as it does what it is for.

Law: a loop that turns is not enough; every task that is watched must have turned within its own time. An agent that
does not is ended by systemd and started again, which touches no container.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from protocol.systemd_notify import SystemdNotify

log = structlog.get_logger(__name__)

IDLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A task that must not stand still. `turned_at`: loop seconds of its last turn."""

    name: str
    turned_at: Callable[[], float]
    late_seconds: float


async def watch(notify: SystemdNotify, watched: Sequence[Watched]) -> None:
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while True:
        now = loop.time()
        standing = [task.name for task in watched if now - max(task.turned_at(), began_at) > task.late_seconds]
        if standing:
            log.error("watchdog.standing_still", tasks=standing, next="systemd restarts the agent")
        else:
            notify.alive()
        await asyncio.sleep(notify.watchdog_seconds / 3 if notify.watchdog_seconds else IDLE_SECONDS)
