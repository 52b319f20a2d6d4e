"""The journal: typed records in the bus's buckets, written with compare-and-set, and the timeline of events.

Laws:
- Reading is from memory and never waits. What is in memory was read from the bus or acknowledged by it.
- A record is written only over the very value that its writer had before it (`replacing`); otherwise `Superseded`.
- No answer is neither yes nor no: it is read back before anything is tried again.
- What cannot be read is named, kept and never overwritten (`CorruptRecord`); while the switches cannot be read,
  resurrection counts as switched off.
- Keys that a newer monitor wrote and this one does not know are kept when it changes a record (`core/carried_keys`).

Does not know: what the records mean, who leads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import structlog

from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import (
    DeploymentRecord,
    Event,
    Incident,
    InstanceRecord,
    Maintenance,
    Operation,
    OrphanDisk,
    Silence,
    SpareRecord,
    Switches,
)
from healthmonitor.instance_reader import InstanceReader
from healthmonitor.journal_table import CorruptRecord, Superseded, Table
from protocol import codec
from protocol.bus import Bus, BusUnavailable, Log
from protocol.ids import CloudName, DeploymentName, InstanceId, instance_key

__all__ = ["CorruptRecord", "EventEntry", "Journal", "Superseded"]

DEPLOYMENTS = "deployments"
INSTANCES = "instances"
OPERATIONS = "operations"
INCIDENTS = "incidents"
ORPHANS = "orphans"
SPARES = "spares"
SWITCHES = "switches"
SILENCES = "silences"
MAINTENANCE = "maintenance"
EVENTS = "events"

_WRITE_TRIES = 3
_PAUSE_BETWEEN_TRIES_SECONDS = 0.2
_EVENTS_PAGE = 1000

log = structlog.get_logger("journal")


@dataclass(frozen=True, slots=True)
class EventEntry:
    sequence: int
    event: Event


class Journal:
    def __init__(self, bus: Bus, unix_time: Callable[[], float], policy: ResurrectionPolicy | None = None) -> None:
        self._bus = bus
        self._unix_time = unix_time
        self._policy = policy or ResurrectionPolicy()
        self._deployments = Table(DEPLOYMENTS, DeploymentRecord, lambda record: record.name)
        self._instances = Table(INSTANCES, InstanceRecord, lambda record: record.instance, InstanceReader().read)
        self._operations = Table(OPERATIONS, Operation, lambda operation: operation.instance)
        self._incidents = Table(INCIDENTS, Incident, lambda incident: incident.key)
        self._orphans = Table(ORPHANS, OrphanDisk, lambda orphan: (orphan.cloud, orphan.key))
        self._spares = Table(SPARES, SpareRecord, lambda spare: spare.key)
        self._switches = Table(SWITCHES, Switches, lambda switches: SWITCHES)
        self._silences = Table(SILENCES, Silence, lambda silence: silence.id)
        self._maintenance = Table(MAINTENANCE, Maintenance, lambda maintenance: maintenance.id)
        self._tables: tuple[Table[object, object], ...] = (
            self._deployments,
            self._instances,
            self._operations,
            self._incidents,
            self._orphans,
            self._spares,
            self._switches,
            self._silences,
            self._maintenance,
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
        return self._deployments.snapshot()

    def deployment(self, name: DeploymentName) -> DeploymentRecord | None:
        return self._deployments.values.get(_escaped(name))

    def instances(self) -> Mapping[InstanceId, InstanceRecord]:
        """The same object as before when nothing changed since."""
        return self._instances.snapshot()

    def instance(self, instance: InstanceId) -> InstanceRecord | None:
        return self._instances.values.get(instance_key(instance))

    def operations(self) -> Mapping[InstanceId, Operation]:
        """The same object as before when nothing changed since."""
        return self._operations.snapshot()

    def operation(self, instance: InstanceId) -> Operation | None:
        return self._operations.values.get(instance_key(instance))

    def incidents(self) -> Mapping[str, Incident]:
        return self._incidents.snapshot()

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

    def maintenance(self) -> Mapping[str, Maintenance]:
        """Windows that people added, by id; those of the configuration file are not among them."""
        return dict(self._maintenance.values)

    def orphans(self) -> Mapping[tuple[CloudName, str], OrphanDisk]:
        """Disks that no instance uses, by cloud and key."""
        return self._orphans.snapshot()

    def spares(self) -> Mapping[str, SpareRecord]:
        """VMs without an instance, by their key."""
        return self._spares.snapshot()

    def spare(self, key: str) -> SpareRecord | None:
        return self._spares.values.get(_escaped(key))

    def switches(self) -> Switches:
        if SWITCHES in self._switches.corrupt:
            return Switches(resurrection=False)  # a person may have said so
        return self._switches.values.get(SWITCHES, Switches())

    def corrupt(self) -> tuple[CorruptRecord, ...]:
        return tuple(error for table in self._tables for error in table.corrupt.values())

    def is_corrupt(self, instance: InstanceId) -> bool:
        """Whether a record of this instance cannot be read: then nothing may be done with it."""
        key = instance_key(instance)
        return key in self._instances.corrupt or key in self._operations.corrupt

    def corrupt_of(self, instance: InstanceId) -> CorruptRecord | None:
        key = instance_key(instance)
        return self._instances.corrupt.get(key) or self._operations.corrupt.get(key)

    def has_corrupt_instances(self, deployment: DeploymentName) -> bool:
        """Whether something of this deployment cannot be read: then nobody knows what is left to do for it."""
        prefix = instance_key(InstanceId(f"{deployment}/"))
        return any(key.startswith(prefix) for table in (self._instances, self._operations) for key in table.corrupt)

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

    async def change_orphan(self, orphan: OrphanDisk, replacing: OrphanDisk) -> None:
        """Only over this very value: whoever gives it away and whoever deletes it do not both succeed."""
        await self._orphans.save(_orphan_key(orphan), orphan, replacing)

    async def delete_orphan(self, orphan: OrphanDisk) -> None:
        key = _orphan_key(orphan)
        held = self._orphans.values.get(key)
        if held is not None:
            await self._orphans.delete(key, held)

    async def save_spare(self, spare: SpareRecord, replacing: SpareRecord | None) -> None:
        await self._spares.save(_escaped(spare.key), spare, replacing)

    async def delete_spare(self, spare: SpareRecord) -> None:
        await self._spares.delete(_escaped(spare.key), spare)

    async def save_switches(self, switches: Switches, replacing: Switches | None = None) -> None:
        """`replacing` left out: over whatever this monitor has in memory."""
        held = self._switches.values.get(SWITCHES)
        await self._switches.save(SWITCHES, switches, held if replacing is None or held is None else replacing)

    async def save_silence(self, silence: Silence, replacing: Silence | None) -> None:
        await self._silences.save(silence.id, silence, replacing)

    async def delete_silence(self, silence: Silence) -> None:
        await self._silences.delete(silence.id, silence)

    async def save_maintenance(self, window: Maintenance, replacing: Maintenance | None) -> None:
        await self._maintenance.save(window.id, window, replacing)

    async def delete_maintenance(self, window: Maintenance) -> None:
        await self._maintenance.delete(window.id, window)

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
