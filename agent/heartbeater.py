"""Heartbeats: on time, whatever Docker, disks or downloads do.

Laws: this task waits for nothing but its own clock and the bus; what a heartbeat says was gathered by others. A
heartbeat that cannot be sent now is not sent later. The sequence never falls within one boot, also over restarts of
the agent: it begins at the milliseconds since boot, and no agent sends a thousand a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agent.core.heartbeat_content import Facts, compose, encode_within
from protocol.bus import Bus, BusError
from protocol.ids import AgentId
from protocol.subjects import AgentMessage, to_monitor

log = structlog.get_logger(__name__)

EXTRA_GAP_SECONDS = 0.5
"""At most one heartbeat beside the regular ones within this time, however much changes."""


class Heartbeater:
    def __init__(
        self,
        bus: Bus,
        agent: AgentId,
        facts: Callable[[], Facts],
        interval_seconds: Callable[[], float],
        boot_seconds: Callable[[], float],
    ) -> None:
        """`boot_seconds`: CLOCK_BOOTTIME. `facts` must not wait for anything."""
        self._bus = bus
        self._subject = to_monitor(AgentMessage.HEARTBEAT, agent)
        self._facts = facts
        self._interval_seconds = interval_seconds
        self._boot_seconds = boot_seconds
        self._wake = asyncio.Event()
        self._now = False
        self._extra = False
        self.sequence = int(boot_seconds() * 1000)
        """Of the last heartbeat."""
        self.turned_at = 0.0
        """Loop seconds of the last turn of this task, for the watchdog."""
        bus.on_connection_change(self._on_connection)

    def changed(self) -> None:
        """Something that a heartbeat says has changed: send one soon."""
        self._extra = True
        self._wake.set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = sent_at = loop.time() - EXTRA_GAP_SECONDS
        while True:
            self._wake.clear()
            now = self.turned_at = loop.time()
            interval = self._interval_seconds()
            if now >= due_at or self._now or (self._extra and now >= sent_at + EXTRA_GAP_SECONDS):
                self._now = self._extra = False
                if await self._send(interval):
                    sent_at = now
                if now >= due_at:
                    due_at = max(due_at + interval, now + interval / 2)  # in step, unless the loop was late
            due_at = min(due_at, now + interval)  # the interval may have been shortened
            await self._sleep(due_at, sent_at + EXTRA_GAP_SECONDS)

    async def _send(self, interval_seconds: float) -> bool:
        if not self._bus.connected:
            return False
        self.sequence += 1
        payload = encode_within(compose(self._facts(), self.sequence, self._boot_seconds()))
        try:
            async with asyncio.timeout(interval_seconds):
                await self._bus.publish(self._subject, payload)
        except (BusError, TimeoutError) as error:
            log.warning("heartbeat.not_sent", error=str(error) or "the bus took too long", next="the next is on time")
            return False
        return True

    async def _sleep(self, due_at: float, extra_at: float) -> None:
        """Until the next regular one is due, a change may be told, or something new calls for a look."""
        until = min(due_at, extra_at) if self._extra else due_at
        try:
            async with asyncio.timeout(max(0.0, until - asyncio.get_running_loop().time())):
                await self._wake.wait()
        except TimeoutError:
            return

    def _on_connection(self, connected: bool) -> None:
        if connected:
            self._now = True
            self._wake.set()
