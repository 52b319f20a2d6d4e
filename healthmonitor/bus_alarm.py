"""That the bus is gone, told without it: nothing can be written there, and nobody leads.

Laws:
- Who led last tells of it once it lasts, and of its end. What was told stands in a note on this machine until everybody
  has its end, so that the next process of this monitor tells the end when this one does not live to see it.
- What one process began to tell, the next tells again while it lasts, under the same name: the letters were in memory.

Does not know: who is told, how a channel speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from healthmonitor.core.deviations import deviation
from healthmonitor.core.incidents import over
from healthmonitor.core.notifying.notification import Transition
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import Incident
from healthmonitor.embedded_nats import write_private
from protocol import codec

log = structlog.get_logger("bus-alarm")

BUS_LOST = "bus_lost"
"""The kind that is told from memory, and only from there."""
LOOK_SECONDS = 0.25
LED_LATELY_SECONDS = 30.0
"""A leader loses its lease before its connection is known to be lost; it tells of it all the same."""


class AlarmNote(Protocol):
    """What was told and is not over, or not everywhere told to be over. May raise OSError."""

    def load(self) -> Incident | None: ...

    def save(self, alarm: Incident | None) -> None: ...


class NoteInMemory:
    def __init__(self) -> None:
        self._alarm: Incident | None = None

    def load(self) -> Incident | None:
        return self._alarm

    def save(self, alarm: Incident | None) -> None:
        self._alarm = alarm


class NoteInFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Incident | None:
        try:
            return codec.from_json(Incident, self._path.read_bytes())
        except FileNotFoundError:
            return None
        except codec.Invalid as error:
            log.warning("bus.note_unreadable", path=str(self._path), error=str(error), next="taken for none")
            return None

    def save(self, alarm: Incident | None) -> None:
        if alarm is None:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, codec.to_json(alarm).decode())


class BusAlarm:
    def __init__(
        self,
        note: AlarmNote,
        connected: Callable[[], bool],
        is_leader: Callable[[], bool],
        policy: Callable[[], Policy],
        unix_time: Callable[[], float],
        send: Callable[[Incident, Transition], None],
        waits: Callable[[Incident], bool],
    ) -> None:
        """`waits(alarm)`: whether a letter of it still waits for a receiver."""
        self._note = note
        self._connected = connected
        self._is_leader = is_leader
        self._policy = policy
        self._unix_time = unix_time
        self._send = send
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        self._led_at = self._loop.time()  # who starts without a bus says so too
        self._down_since: float | None = None
        self._alarm: Incident | None = None
        self._lost_at: float | None = None  # loop's clock; None: an earlier process saw it
        self._told = False  # by this process
        self._over: Incident | None = None

    async def run(self) -> None:
        self._alarm = await self._noted()
        while True:
            await self._look(self._loop.time())
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, now: float) -> None:
        if self._connected():
            self._down_since = None
            if self._is_leader():
                self._led_at = now
            if self._alarm is not None:
                self._over, self._alarm = self._end(self._alarm, now), None
            if self._over is not None and not self._waits(self._over):
                self._over = None
                await self._write(None)
            return
        self._down_since = now if self._down_since is None else self._down_since
        down_seconds = now - self._down_since
        led_lately = self._down_since - self._led_at <= LED_LATELY_SECONDS
        if down_seconds < self._policy().liveness.canary_lost_seconds:
            return
        if self._alarm is None and led_lately:
            self._lost_at = self._down_since
            self._alarm = self._begun(down_seconds)
            log.error("bus.lost", next="told from memory", seconds=round(down_seconds, 1))
            self._tell(self._alarm)
            await self._write(self._alarm)
        elif self._alarm is not None and not self._told:
            self._tell(self._alarm)

    def _tell(self, alarm: Incident) -> None:
        self._told, self._over = True, None
        self._send(alarm, Transition.OPENED)

    def _begun(self, seconds: float) -> Incident:
        at = self._unix_time()
        detail = f"the connection is down for {seconds:.0f} s and tried again and again"
        lost = deviation(BUS_LOST, "monitor", detail, self._policy())
        return Incident(
            key=lost.key,
            kind=lost.kind,
            subject=lost.subject,
            severity=lost.severity,
            title=lost.title,
            detail=lost.detail,
            opened_at=at - seconds,
            updated_at=at,
            next_step=lost.next_step,
        )

    def _end(self, alarm: Incident, now: float) -> Incident:
        ended = over(alarm, None if self._lost_at is None else now - self._lost_at, self._unix_time())
        ended = replace(ended, resolution=f"{ended.resolution}: the connection is back")
        self._lost_at, self._told = None, False
        self._send(ended, Transition.RESOLVED)
        return ended

    async def _noted(self) -> Incident | None:
        try:
            return await asyncio.to_thread(self._note.load)
        except OSError as error:
            log.warning("bus.note_not_read", error=str(error))
            return None

    async def _write(self, alarm: Incident | None) -> None:
        try:
            await asyncio.to_thread(self._note.save, alarm)
        except OSError as error:
            log.warning("bus.note_not_written", error=str(error), next="only this process can tell its end")
