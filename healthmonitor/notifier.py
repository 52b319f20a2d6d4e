"""Writes incidents and events down, in order, off the monitor's loop, and hands what is written to alerting.

Laws: written first, then told; what concerns one incident stays in order; only the leader writes. The line is bounded:
what overflows is counted and logged, and opened anew.

Does not know: how an incident came about, who is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from healthmonitor.channels.channel import Transition
from healthmonitor.core.records import Event, Incident
from healthmonitor.journal import Superseded
from protocol.bus import BusUnavailable

log = structlog.get_logger("notifier")

LINE_MAX = 50_000
RESOLVED_KEPT = 500
PRUNE_EVERY = 50
"""Resolved ones beyond those kept are looked for after so many resolutions, not after each."""
AT_ONCE = 32
"""Incidents whose records are on their way to the disk at the same time: a storm of thousands is written in seconds."""
RETRY_FIRST_SECONDS = 0.5
RETRY_LONGEST_SECONDS = 60.0


class IncidentJournal(Protocol):
    def incidents(self) -> Mapping[str, Incident]: ...
    async def save_incident(self, incident: Incident) -> None: ...
    async def delete_incident(self, incident_key: str) -> None: ...
    async def append_event(self, event: Event) -> int: ...


class Teller(Protocol):
    """Alerting: it is told what is written."""

    def see(self, incident: Incident) -> None: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    incident: Incident
    transition: Transition


class Notifier:
    def __init__(
        self,
        journal: IncidentJournal,
        teller: Teller,
        is_leader: Callable[[], bool],
        unix_time: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._teller = teller
        self._is_leader = is_leader
        self._unix_time = unix_time
        self._line: asyncio.Queue[_Entry | Event] = asyncio.Queue(LINE_MAX)
        self._writing = 0
        self._resolved = 0
        self.overflowed = 0
        self.unwritten = 0  # because another monitor leads, or did: who leads now decides anew from what is written

    def put(self, incident: Incident, transition: Transition) -> None:
        self._enqueue(_Entry(incident, transition))

    def put_event(self, event: Event) -> None:
        self._enqueue(event)

    def idle(self) -> bool:
        return self._line.empty() and not self._writing

    async def run(self) -> None:
        ahead: list[_Entry | Event] = []
        while True:
            if not ahead:
                ahead.append(await self._line.get())
            while len(ahead) < AT_ONCE and not self._line.empty():
                ahead.append(self._line.get_nowait())
            batch, ahead = _independent(ahead)
            self._writing = len(batch) + len(ahead)
            async with asyncio.TaskGroup() as writes:
                for entry in batch:
                    writes.create_task(self._write(entry))
            self._writing = len(ahead)
            if self._resolved >= PRUNE_EVERY:
                self._resolved = 0
                await self._prune()

    async def _write(self, entry: _Entry | Event) -> None:
        delay = RETRY_FIRST_SECONDS
        saved = False
        while self._is_leader():
            try:
                if isinstance(entry, Event):
                    await self._journal.append_event(entry)
                    return
                if not saved:
                    await self._save(entry)
                    saved = True
                await self._journal.append_event(self._event(entry))
                return
            except BusUnavailable as error:
                log.warning("incident.not_written", error=str(error), next="retrying")
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_LONGEST_SECONDS)
            except Superseded as error:
                # Another monitor led for a moment. What it wrote was read back; the next turn begins from there.
                log.warning("incident.not_written", error=str(error), next="decided anew from what stands there")
                break
            except Exception:
                # A task's edge: a record that cannot be written (corrupt) must not silence the others.
                log.exception("incident.not_written", next="telling all the same")
                if isinstance(entry, _Entry) and not saved:
                    self._teller.see(entry.incident)
                return
        if not saved:
            self.unwritten += 1

    async def _save(self, entry: _Entry) -> None:
        """Told as soon as it is durable; its line in the timeline follows."""
        await self._journal.save_incident(entry.incident)
        self._teller.see(entry.incident)
        if entry.transition is Transition.RESOLVED:
            self._resolved += 1

    def _event(self, entry: _Entry) -> Event:
        incident = entry.incident
        return Event(
            at=self._unix_time(),
            kind=f"incident.{entry.transition.value}",
            subject=incident.subject,
            text=f"{incident.title}: {incident.resolution or incident.detail}",
            fields={
                "key": incident.key,
                "severity": incident.severity.name.lower(),
                **({"inhibited_by": incident.inhibited_by} if incident.inhibited_by else {}),
            },
        )

    async def _prune(self) -> None:
        over = sorted(
            (each for each in self._journal.incidents().values() if each.resolved_at is not None),
            key=lambda each: each.resolved_at or 0.0,
        )
        for incident in over[: max(0, len(over) - RESOLVED_KEPT)]:
            try:
                await self._journal.delete_incident(incident.key)
            except Exception as error:
                # A task's edge: an old record that cannot be deleted now is found again after the next resolutions
                log.warning("incident.not_forgotten", key=incident.key, error=repr(error), next="later")
                return

    def _enqueue(self, entry: _Entry | Event) -> None:
        try:
            self._line.put_nowait(entry)
        except asyncio.QueueFull:
            self.overflowed += 1
            log.error("notifier.overflow", entries=self._line.qsize(), dropped=self.overflowed)


def _independent(entries: list[_Entry | Event]) -> tuple[list[_Entry | Event], list[_Entry | Event]]:
    """Those that may be written at once: one of each incident; the rest comes after them, in order."""
    now: list[_Entry | Event] = []
    later: list[_Entry | Event] = []
    seen: set[str] = set()
    for entry in entries:
        key = entry.incident.key if isinstance(entry, _Entry) else ""
        if key in seen:
            later.append(entry)
        else:
            now.append(entry)
            seen.add(key)
    return now, later
