"""Writes incidents down and hands them to the channels, in order, off the monitor's loop.

Laws: written first, then told; each channel has its own line, so that a slow one delays no other; an inhibited
incident is written and not told; only the leader does either. Lines are bounded: what overflows is counted and logged.

Does not know: how an incident came about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from healthmonitor.channels.channel import Channel, ChannelRefused, ChannelUnavailable, Transition
from healthmonitor.core.records import Event, Incident
from protocol.bus import BusUnavailable

log = structlog.get_logger("notifier")

LINE_MAX = 50_000
RESOLVED_KEPT = 500
RETRY_FIRST_SECONDS = 0.5
RETRY_LONGEST_SECONDS = 60.0


class IncidentJournal(Protocol):
    def incidents(self) -> Mapping[str, Incident]: ...
    async def save_incident(self, incident: Incident) -> None: ...
    async def delete_incident(self, incident_key: str) -> None: ...
    async def append_event(self, event: Event) -> int: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    incident: Incident
    transition: Transition


class Notifier:
    def __init__(
        self,
        journal: IncidentJournal,
        channels: Sequence[Channel],
        is_leader: Callable[[], bool],
        unix_time: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._is_leader = is_leader
        self._unix_time = unix_time
        self._line: asyncio.Queue[_Entry | Event] = asyncio.Queue(LINE_MAX)
        self._channels = [(channel, asyncio.Queue[_Entry](LINE_MAX)) for channel in channels]
        self._told: set[str] = set()
        self.overflowed = 0
        self.unwritten = 0  # because this monitor did not lead any more; who leads now opens them anew
        self.undelivered: dict[str, str] = {}  # channel → why it cannot deliver now

    def told_before(self, keys: Iterable[str]) -> None:
        """Incidents that a former leader, or this monitor before its restart, has told of."""
        self._told.update(keys)

    def put(self, incident: Incident, transition: Transition) -> None:
        self._enqueue(self._line, _Entry(incident, transition))

    def put_event(self, event: Event) -> None:
        self._enqueue(self._line, event)

    def idle(self) -> bool:
        return self._line.empty() and all(queue.empty() for _, queue in self._channels)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for channel, queue in self._channels:
                tasks.create_task(self._deliver(channel, queue), name=f"channel-{channel.name}")
            while True:
                entry = await self._line.get()
                await self._write(entry)

    async def _write(self, entry: _Entry | Event) -> None:
        delay = RETRY_FIRST_SECONDS
        while self._is_leader():
            try:
                if isinstance(entry, Event):
                    await self._journal.append_event(entry)
                    return
                await self._write_incident(entry)
                self._tell(entry)
                return
            except BusUnavailable as error:
                log.warning("incident.not_written", error=str(error), next="retrying")
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_LONGEST_SECONDS)
            except Exception:
                # A task's edge: a record that cannot be written (superseded, corrupt) must not silence the others.
                log.exception("incident.not_written", next="telling all the same")
                if isinstance(entry, _Entry):
                    self._tell(entry)
                return
        self.unwritten += 1

    async def _write_incident(self, entry: _Entry) -> None:
        incident = entry.incident
        if entry.transition is not Transition.NOTED:
            await self._journal.save_incident(incident)
        await self._journal.append_event(
            Event(
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
        )
        if entry.transition is Transition.RESOLVED:
            await self._prune()

    async def _prune(self) -> None:
        over = sorted(
            (each for each in self._journal.incidents().values() if each.resolved_at is not None),
            key=lambda each: each.resolved_at or 0.0,
        )
        for incident in over[: max(0, len(over) - RESOLVED_KEPT)]:
            await self._journal.delete_incident(incident.key)

    def _tell(self, entry: _Entry) -> None:
        """An incident whose cause is told already is not told; when the cause goes and it stays, it is opened then."""
        key = entry.incident.key
        transition = entry.transition
        if transition is Transition.RESOLVED:
            if key not in self._told and entry.incident.inhibited_by:
                return
            self._told.discard(key)
        elif entry.incident.inhibited_by:
            return
        elif transition is Transition.CHANGED and key not in self._told:
            transition = Transition.OPENED
        if transition in (Transition.OPENED, Transition.CHANGED):
            self._told.add(key)
        for _, queue in self._channels:
            self._enqueue(queue, _Entry(entry.incident, transition))

    async def _deliver(self, channel: Channel, queue: asyncio.Queue[_Entry]) -> None:
        while True:
            entry = await queue.get()
            delay = RETRY_FIRST_SECONDS
            while True:
                try:
                    await channel.notify(entry.incident, entry.transition)
                    self.undelivered.pop(channel.name, None)
                    break
                except ChannelUnavailable as error:
                    self.undelivered[channel.name] = str(error)
                    log.warning("channel.unavailable", channel=channel.name, error=str(error), retry_seconds=delay)
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, RETRY_LONGEST_SECONDS)
                except ChannelRefused as error:
                    log.error("channel.refused", channel=channel.name, key=entry.incident.key, error=str(error))
                    break
                except Exception:
                    # A task's edge: a defect in one channel must not silence the others.
                    log.exception("channel.failed", channel=channel.name, key=entry.incident.key)
                    break

    def _enqueue(self, queue: asyncio.Queue[Any], entry: _Entry | Event) -> None:
        try:
            queue.put_nowait(entry)
        except asyncio.QueueFull:
            self.overflowed += 1
            log.error("notifier.overflow", entries=queue.qsize(), dropped=self.overflowed)
