"""The journal: typed records in the bus's buckets, written with compare-and-set, and the timeline of events.

Laws:
- Reading is from memory and never waits. What is in memory was read from the bus or acknowledged by it.
- A record is written only over the very value that its writer had before it (`replacing`); otherwise `Superseded`.
- No answer is neither yes nor no: it is read back before anything is tried again.
- What cannot be read is named, kept and never overwritten (`CorruptRecord`).

Does not know: what the records mean, who leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

import structlog

from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import (
    DeploymentRecord,
    Event,
    Incident,
    InstanceRecord,
    Operation,
    OrphanDisk,
    Silence,
    Switches,
)
from protocol import codec
from protocol.bus import Bucket, Bus, BusUnavailable, Entry, Log, WrongRevision
from protocol.ids import CloudName, DeploymentName, InstanceId, instance_key

T = TypeVar("T")

DEPLOYMENTS = "deployments"
INSTANCES = "instances"
OPERATIONS = "operations"
INCIDENTS = "incidents"
ORPHANS = "orphans"
SWITCHES = "switches"
SILENCES = "silences"
EVENTS = "events"

_WRITE_TRIES = 3
_PAUSE_BETWEEN_TRIES_SECONDS = 0.2
_EVENTS_PAGE = 1000

log = structlog.get_logger("journal")


class Superseded(Exception):
    """Somebody else wrote this record since it was read: stop this work, and look again."""


class CorruptRecord(Exception):
    """A record that cannot be read. It is kept as it is; a person must look at it."""

    def __init__(self, bucket: str, key: str, problem: str) -> None:
        super().__init__(
            f"record {key} in bucket {bucket} cannot be read, and is kept as it is: {problem};"
            " put a valid value there (or delete the key) and restart the monitor"
        )
        self.bucket = bucket
        self.key = key


@dataclass(frozen=True, slots=True)
class EventEntry:
    sequence: int
    event: Event


class Journal:
    def __init__(self, bus: Bus, unix_time: Callable[[], float], policy: ResurrectionPolicy | None = None) -> None:
        self._bus = bus
        self._unix_time = unix_time
        self._policy = policy or ResurrectionPolicy()
        self._deployments = _Table(DEPLOYMENTS, DeploymentRecord)
        self._instances = _Table(INSTANCES, InstanceRecord)
        self._operations = _Table(OPERATIONS, Operation)
        self._incidents = _Table(INCIDENTS, Incident)
        self._orphans = _Table(ORPHANS, OrphanDisk)
        self._switches = _Table(SWITCHES, Switches)
        self._silences = _Table(SILENCES, Silence)
        self._tables: tuple[_Table[object], ...] = (
            self._deployments,
            self._instances,
            self._operations,
            self._incidents,
            self._orphans,
            self._switches,
            self._silences,
        )  # type: ignore[assignment]  # read together, written apart
        self._log: Log | None = None

    async def open(self) -> None:
        """Opens (or makes) the buckets and the log, and reads everything."""
        for table in self._tables:
            table.bucket = await self._bus.bucket(table.name)
        self._log = await self._bus.log(EVENTS, self._policy.events_max, self._policy.events_max_bytes)
        await self.reload()

    async def reload(self) -> None:
        """Reads everything anew: when leadership is gained, and now and then where another leads."""
        for table in self._tables:
            await table.reload()

    # Reading, from memory.

    def deployments(self) -> Mapping[DeploymentName, DeploymentRecord]:
        return {record.name: record for record in self._deployments.values.values()}

    def deployment(self, name: DeploymentName) -> DeploymentRecord | None:
        return self._deployments.values.get(_escaped(name))

    def instances(self) -> Mapping[InstanceId, InstanceRecord]:
        return {record.instance: record for record in self._instances.values.values()}

    def instance(self, instance: InstanceId) -> InstanceRecord | None:
        return self._instances.values.get(instance_key(instance))

    def operations(self) -> Mapping[InstanceId, Operation]:
        return {operation.instance: operation for operation in self._operations.values.values()}

    def operation(self, instance: InstanceId) -> Operation | None:
        return self._operations.values.get(instance_key(instance))

    def incidents(self) -> Mapping[str, Incident]:
        return {incident.key: incident for incident in self._incidents.values.values()}

    async def read_incidents(self) -> Mapping[str, Incident]:
        """From the bus, without touching what is in memory, which may be older; what cannot be read is left out."""
        read: dict[str, Incident] = {}
        for entry in (await self._incidents.opened().entries()).values():
            try:
                incident = codec.from_json(Incident, entry.value)
            except codec.Invalid:
                continue  # `corrupt` names it
            read[incident.key] = incident
        return read

    def silences(self) -> Mapping[str, Silence]:
        return dict(self._silences.values)

    def orphans(self) -> Mapping[tuple[CloudName, str], OrphanDisk]:
        """Disks that no instance uses, by cloud and key."""
        return {(orphan.cloud, orphan.key): orphan for orphan in self._orphans.values.values()}

    def switches(self) -> Switches:
        return self._switches.values.get(SWITCHES, Switches())

    def corrupt(self) -> tuple[CorruptRecord, ...]:
        return tuple(error for table in self._tables for error in table.corrupt.values())

    def is_corrupt(self, instance: InstanceId) -> bool:
        """Whether a record of this instance cannot be read: then nothing may be done with it."""
        key = instance_key(instance)
        return key in self._instances.corrupt or key in self._operations.corrupt

    # Writing. `replacing`: the value that the writer had read; None: there was none.

    async def save_deployment(self, record: DeploymentRecord, replacing: DeploymentRecord | None) -> None:
        await self._deployments.save(_escaped(record.name), record, replacing)

    async def delete_deployment(self, record: DeploymentRecord) -> None:
        await self._deployments.delete(_escaped(record.name), record)

    async def save_instance(self, record: InstanceRecord, replacing: InstanceRecord | None) -> None:
        await self._instances.save(instance_key(record.instance), record, replacing)

    async def delete_instance(self, record: InstanceRecord) -> None:
        await self._instances.delete(instance_key(record.instance), record)

    async def save_operation(self, operation: Operation, replacing: Operation | None) -> None:
        await self._operations.save(instance_key(operation.instance), operation, replacing)

    async def delete_operation(self, operation: Operation) -> None:
        await self._operations.delete(instance_key(operation.instance), operation)

    async def save_incident(self, incident: Incident) -> None:
        """Only the leader's monitor writes incidents, one at a time: what is in memory is what it replaces."""
        key = _escaped(incident.key)
        await self._incidents.save(key, incident, self._incidents.values.get(key))

    async def delete_incident(self, incident_key: str) -> None:
        key = _escaped(incident_key)
        held = self._incidents.values.get(key)
        if held is not None:
            await self._incidents.delete(key, held)

    async def save_orphan(self, orphan: OrphanDisk) -> None:
        """Over whatever is known of this disk: the latest word of where it is counts."""
        key = _orphan_key(orphan)
        await self._orphans.save(key, orphan, self._orphans.values.get(key))

    async def delete_orphan(self, orphan: OrphanDisk) -> None:
        key = _orphan_key(orphan)
        held = self._orphans.values.get(key)
        if held is not None:
            await self._orphans.delete(key, held)

    async def save_switches(self, switches: Switches, replacing: Switches | None = None) -> None:
        """`replacing` left out: over whatever this monitor has in memory."""
        held = self._switches.values.get(SWITCHES)
        await self._switches.save(SWITCHES, switches, held if replacing is None or held is None else replacing)

    async def save_silence(self, silence: Silence, replacing: Silence | None) -> None:
        await self._silences.save(silence.id, silence, replacing)

    async def delete_silence(self, silence: Silence) -> None:
        await self._silences.delete(silence.id, silence)

    # The timeline.

    async def append_event(self, event: Event) -> int:
        """Its sequence number. May stand twice when the answer to the first try was lost."""
        payload = codec.to_json(event)
        for attempt in range(_WRITE_TRIES):
            try:
                return await self._opened_log().append(payload)
            except BusUnavailable:
                if attempt + 1 == _WRITE_TRIES:
                    raise
                await asyncio.sleep(_PAUSE_BETWEEN_TRIES_SECONDS)
        raise AssertionError("unreachable")

    async def record(self, kind: str, subject: str, text: str, fields: Mapping[str, str] | None = None) -> int:
        return await self.append_event(Event(self._unix_time(), kind, subject, text, dict(fields or {})))

    async def last_events(self, limit: int) -> list[EventEntry]:
        return [_event(entry.sequence, entry.payload) for entry in await self._opened_log().last(limit)]

    async def events_after(self, sequence: int, limit: int = _EVENTS_PAGE) -> list[EventEntry]:
        return [_event(entry.sequence, entry.payload) for entry in await self._opened_log().read(sequence, limit)]

    async def events_since(self, unix_time: float) -> list[EventEntry]:
        """All that happened since then, oldest first; reads back as far as it must."""
        limit = _EVENTS_PAGE
        while True:
            entries = await self.last_events(limit)
            if len(entries) < limit or entries[0].event.at <= unix_time or limit >= self._policy.events_max:
                return [entry for entry in entries if entry.event.at > unix_time]
            limit *= 10

    async def follow_events(self, after: int) -> AsyncIterator[EventEntry]:
        async for entry in self._opened_log().follow(after):
            yield _event(entry.sequence, entry.payload)

    def _opened_log(self) -> Log:
        if self._log is None:
            raise BusUnavailable("the journal is not open yet")
        return self._log


class _Table(Generic[T]):
    """One bucket in memory: key → value, and the revision at which it was read or written."""

    def __init__(self, name: str, kind: type[T]) -> None:
        self.name = name
        self.bucket: Bucket | None = None
        self.values: dict[str, T] = {}
        self.corrupt: dict[str, CorruptRecord] = {}
        self._kind = kind
        self._revisions: dict[str, int] = {}
        self._uncertain: set[str] = set()
        """Keys whose last write had no answer, even after reading back failed."""
        self._written_during_reload: set[str] = set()

    async def reload(self) -> None:
        # What is written while the entries are on their way is newer than they may be, and stays.
        self._written_during_reload.clear()
        held_before = set(self._revisions)
        entries = await self.opened().entries()
        for key in held_before - set(entries) - self._written_during_reload:
            self._forget(key)
        for key, entry in entries.items():
            if key not in self._written_during_reload and entry.revision != self._revisions.get(key):
                self._take(entry)
        self._uncertain -= set(self._uncertain) - self._written_during_reload

    async def save(self, key: str, value: T, replacing: T | None) -> None:
        await self._settle(key)
        if key in self.corrupt:
            raise self.corrupt[key]
        if self.values.get(key) != replacing:
            raise Superseded(f"{self.name}/{key} was changed meanwhile")
        payload = codec.to_json(value)
        revision = self._revisions.get(key)
        bucket = self.opened()
        for _ in range(_WRITE_TRIES):
            try:
                if revision is None:
                    written = await bucket.create(key, payload)
                else:
                    written = await bucket.update(key, payload, revision)
            except WrongRevision:
                await self._read_back(key)
                raise Superseded(f"{self.name}/{key} was written by somebody else") from None
            except BusUnavailable:
                self._uncertain.add(key)
                await asyncio.sleep(_PAUSE_BETWEEN_TRIES_SECONDS)
                entry = await bucket.get(key)
                if entry is not None and entry.value == payload:
                    written = entry.revision
                elif (None if entry is None else entry.revision) == revision:
                    continue
                else:
                    await self._read_back(key)
                    raise Superseded(f"{self.name}/{key} was written by somebody else") from None
            self._held(key, value, written)
            return
        raise BusUnavailable(f"{self.name}/{key}: not written, or not known to be, in {_WRITE_TRIES} tries")

    async def delete(self, key: str, replacing: T) -> None:
        await self._settle(key)
        held = self.values.get(key)
        if held is None:
            return
        if held != replacing:
            raise Superseded(f"{self.name}/{key} was changed meanwhile")
        try:
            await self.opened().delete(key, self._revisions[key])
        except WrongRevision:
            await self._read_back(key)
            raise Superseded(f"{self.name}/{key} was written by somebody else") from None
        except BusUnavailable:
            self._uncertain.add(key)
            raise
        self._written_during_reload.add(key)
        self._forget(key)

    async def _settle(self, key: str) -> None:
        if key in self._uncertain:
            await self._read_back(key)

    async def _read_back(self, key: str) -> None:
        entry = await self.opened().get(key)
        self._written_during_reload.add(key)
        self._uncertain.discard(key)
        if entry is None:
            self._forget(key)
        elif entry.revision != self._revisions.get(key):
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        self._revisions[entry.key] = entry.revision
        try:
            self.values[entry.key] = codec.from_json(self._kind, entry.value)
            self.corrupt.pop(entry.key, None)
        except codec.Invalid as error:
            self.values.pop(entry.key, None)
            self.corrupt[entry.key] = CorruptRecord(self.name, entry.key, str(error))
            log.error("corrupt record", bucket=self.name, key=entry.key, problem=str(error))

    def _held(self, key: str, value: T, revision: int) -> None:
        self._written_during_reload.add(key)
        self._uncertain.discard(key)
        self.values[key] = value
        self._revisions[key] = revision

    def _forget(self, key: str) -> None:
        self.values.pop(key, None)
        self.corrupt.pop(key, None)
        self._revisions.pop(key, None)
        self._uncertain.discard(key)

    def opened(self) -> Bucket:
        if self.bucket is None:
            raise BusUnavailable("the journal is not open yet")
        return self.bucket


def _orphan_key(orphan: OrphanDisk) -> str:
    return _escaped(f"{orphan.cloud}/{orphan.key}")


def _escaped(text: str) -> str:
    """Any text as a bucket's key: what is not [A-Za-z0-9.-] becomes `_` and two hex digits for each byte."""
    return "".join(
        character if character.isascii() and (character.isalnum() or character in ".-") else _hex(character)
        for character in text
    )


def _hex(character: str) -> str:
    return "".join(f"_{byte:02x}" for byte in character.encode())


_UNREADABLE: Mapping[str, str] = MappingProxyType({})


def _event(sequence: int, payload: bytes) -> EventEntry:
    """A line that cannot be read stands in the timeline as such: hiding it would hide a defect."""
    try:
        return EventEntry(sequence, codec.from_json(Event, payload))
    except codec.Invalid as error:
        return EventEntry(sequence, Event(0.0, "journal.unreadable", "journal", str(error), _UNREADABLE))
