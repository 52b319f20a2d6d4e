"""The journal on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.records import Incident, InstanceRecord, OperationKind, Severity, Switches
from healthmonitor.journal import CorruptRecord, EventEntry, Journal, Superseded
from protocol.ids import OperationId, Revision
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support.hands_world import SHOP, UNIX_EPOCH, deployment, group, place
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until

DB = place()
RECORD = InstanceRecord(DB, SHOP, 0, group(), Revision(1), Revision(1))
OPERATION = rules.begin(OperationId("o1"), DB, OperationKind.CREATE, "test", UNIX_EPOCH, None)
INCIDENT = Incident("vm_missing:shop/db/0", "vm_missing", DB, Severity.CRITICAL, "gone", "", 1.0, 1.0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as made:
        yield made


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    made = await NatsBus.open(BusSettings(urls=(server.url,)), "m1")
    await made.wait_connected(10)
    yield made
    await made.close()


async def opened(bus: NatsBus) -> Journal:
    journal = Journal(bus, lambda: UNIX_EPOCH)
    await journal.open()
    return journal


async def test_what_was_saved_is_there_after_a_killed_server(server: NatsServer, bus: NatsBus) -> None:
    """Every kind of record, written and acknowledged, is read again by a new journal after kill -9 of the server."""
    journal = await opened(bus)
    record, switches = deployment(group()), Switches(resurrection=False, paused_by="anna")
    await journal.save_deployment(record, None)
    await journal.save_instance(RECORD, None)
    await journal.save_operation(OPERATION, None)
    await journal.save_incident(INCIDENT)
    await journal.save_switches(switches)
    await journal.record("operator.paused", "fleet", "paused", {"by": "anna"})
    await server.stop(kill=True)
    await server.start()
    await until(lambda: bus.connected, what="connected again")
    again = await opened(bus)
    assert again.deployments() == {SHOP: record}
    assert again.instances() == {DB: RECORD}
    assert again.operations() == {DB: OPERATION}
    assert again.incidents() == {INCIDENT.key: INCIDENT}
    assert again.switches() == switches
    assert [entry.event.text for entry in await again.last_events(10)] == ["paused"]


async def test_the_second_writer_is_superseded_and_sees_what_the_first_wrote(bus: NatsBus) -> None:
    """Two journals hold the same record; one writes; the other's write is refused and its memory is put right."""
    first = await opened(bus)
    await first.save_instance(RECORD, None)
    second = await opened(bus)
    changed = replace(RECORD, revision=Revision(2))
    await first.save_instance(changed, RECORD)
    with pytest.raises(Superseded):
        await second.save_instance(replace(RECORD, ignore=True), RECORD)
    assert second.instance(DB) == changed
    with pytest.raises(Superseded):
        await second.save_instance(replace(RECORD, ignore=True), RECORD)
    await second.save_instance(replace(changed, ignore=True), changed)
    with pytest.raises(Superseded):
        await first.delete_instance(changed)
    assert first.instance(DB) == replace(changed, ignore=True)


async def test_a_record_made_by_another_is_not_made_again(bus: NatsBus) -> None:
    """Creating over what exists already is refused too, and so is a record that was deleted meanwhile."""
    first, second = await opened(bus), await opened(bus)
    await first.save_operation(OPERATION, None)
    with pytest.raises(Superseded):
        await second.save_operation(replace(OPERATION, reason="mine"), None)
    assert second.operation(DB) == OPERATION
    await first.delete_operation(OPERATION)
    with pytest.raises(Superseded):
        await second.save_operation(replace(OPERATION, attempts=1), OPERATION)
    assert second.operation(DB) is None
    await second.save_operation(OPERATION, None)


async def test_reloading_follows_what_another_writes_and_deletes(bus: NatsBus) -> None:
    """A monitor that does not lead reads along."""
    leader, follower = await opened(bus), await opened(bus)
    await leader.save_instance(RECORD, None)
    await leader.save_operation(OPERATION, None)
    await follower.reload()
    assert (follower.instance(DB), follower.operation(DB)) == (RECORD, OPERATION)
    await leader.delete_operation(OPERATION)
    await leader.save_instance(replace(RECORD, ignore=True), RECORD)
    await follower.reload()
    assert follower.operation(DB) is None
    assert follower.instance(DB) == replace(RECORD, ignore=True)


async def test_a_corrupt_record_is_named_and_kept(bus: NatsBus) -> None:
    """What cannot be read does not hide the others, is not overwritten, and is read once it was mended."""
    journal = await opened(bus)
    await journal.save_operation(OPERATION, None)
    bucket = await bus.bucket("instances")
    await bucket.put("shop.db.0", b'{"instance": 5}')
    await journal.reload()
    assert journal.instances() == {}
    assert journal.operations() == {DB: OPERATION}
    assert journal.is_corrupt(DB)
    (error,) = journal.corrupt()
    assert "record shop.db.0 in bucket instances" in str(error)
    with pytest.raises(CorruptRecord):
        await journal.save_instance(RECORD, None)
    entry = await bucket.get("shop.db.0")
    assert entry is not None
    assert entry.value == b'{"instance": 5}'


async def test_any_incident_key_can_be_kept(bus: NatsBus) -> None:
    """Keys with slashes, colons, underscores and letters of any language are kept apart and found again."""
    journal = await opened(bus)
    keys = ["a:b/c/0", "a:b/c_0", "a_b", "a.b", "ä:ö", "a_2fb", "a/b"]
    for key in keys:
        await journal.save_incident(replace(INCIDENT, key=key))
    again = await opened(bus)
    assert set(again.incidents()) == set(keys)
    for key in keys:
        await again.delete_incident(key)
    assert (await opened(bus)).incidents() == {}


async def test_events_are_followed_from_where_one_left_off(bus: NatsBus) -> None:
    """Those after a sequence number, stored and to come, in order; those since a time, without the older."""
    journal = await opened(bus)
    sequences = [await journal.record("test", "fleet", str(number)) for number in range(3)]
    heard: list[EventEntry] = []

    async def follow() -> None:
        async with aclosing(journal.follow_events(sequences[0])) as entries:  # type: ignore[type-var]
            async for entry in entries:
                heard.append(entry)

    following = asyncio.create_task(follow())
    await until(lambda: len(heard) == 2, what="those stored")
    await journal.record("test", "fleet", "3")
    await until(lambda: len(heard) == 3, what="the one that came")
    following.cancel()
    await asyncio.wait({following})
    assert [entry.event.text for entry in heard] == ["1", "2", "3"]
    assert [entry.event.text for entry in await journal.events_after(sequences[1])] == ["2", "3"]
    assert len(await journal.events_since(UNIX_EPOCH - 1.0)) == 4
    assert await journal.events_since(UNIX_EPOCH + 1.0) == []
