"""Tells systemd that the agent is alive, as long as it does what it is for.

Law: a loop that turns is not enough; the heartbeat's task must have turned too. An agent that does not is ended by
systemd and started again, which touches no container.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from protocol.systemd_notify import SystemdNotify

log = structlog.get_logger(__name__)

IDLE_SECONDS = 5.0


async def watch(notify: SystemdNotify, turned_at: Mapping[str, Callable[[], float]], late_seconds: float) -> None:
    """`turned_at`: loop seconds of the last turn of each task that must not stand still."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    while True:
        standing = [name for name, read in turned_at.items() if loop.time() - max(read(), began_at) > late_seconds]
        if standing:
            log.error("watchdog.standing_still", tasks=standing, next="systemd restarts the agent")
        else:
            notify.alive()
        await asyncio.sleep(notify.watchdog_seconds / 3 if notify.watchdog_seconds else IDLE_SECONDS)
