"""The journal on a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.records import Incident, InstanceRecord, OperationKind, Severity, Switches
from healthmonitor.journal import CorruptRecord, EventEntry, Journal, Superseded
from protocol.ids import InstanceId, OperationId, Revision, instance_key
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


async def change_raw(bus: NatsBus, bucket: str, key: str, change: Callable[[dict[str, Any]], None]) -> None:
    """As a newer monitor would have written it."""
    opened_bucket = await bus.bucket(bucket)
    entry = await opened_bucket.get(key)
    assert entry is not None
    plain = json.loads(entry.value)
    change(plain)
    await opened_bucket.update(key, json.dumps(plain).encode(), entry.revision)


async def test_what_a_newer_monitor_wrote_beside_is_kept(bus: NatsBus) -> None:
    """Keys that this monitor does not know stay, at every depth, when it changes the record: several times, and when
    it changes what stands beside them."""
    journal = await opened(bus)
    await journal.save_instance(RECORD, None)

    def newer(plain: dict[str, Any]) -> None:
        plain["colour"] = "blue"
        plain["group"]["containers"][0]["shape"] = {"round": True}

    await change_raw(bus, "instances", instance_key(DB), newer)
    await journal.reload()
    held = journal.instance(DB)
    assert held == RECORD
    for revision in (2, 3):
        before = journal.instance(DB)
        assert before is not None
        await journal.save_instance(replace(before, revision=Revision(revision), ignore=True), before)
    entry = await (await bus.bucket("instances")).get(instance_key(DB))
    assert entry is not None
    plain = json.loads(entry.value)
    assert (plain["revision"], plain["ignore"], plain["colour"]) == (3, True, "blue")
    assert plain["group"]["containers"][0]["shape"] == {"round": True}
    fresh = (await opened(bus)).instance(DB)
    assert fresh == replace(RECORD, revision=Revision(3), ignore=True)


async def test_a_step_that_only_a_newer_monitor_knows_stops_nothing_else(bus: NatsBus) -> None:
    """Its instance is left alone, the record is kept byte for byte, and the reason names the way out."""
    journal = await opened(bus)
    await journal.save_instance(RECORD, None)
    await journal.save_operation(OPERATION, None)
    await change_raw(bus, "operations", instance_key(DB), lambda plain: plain.update(step="levitate"))
    await journal.reload()
    assert journal.is_corrupt(DB)
    assert journal.has_corrupt_instances(SHOP)
    assert journal.operation(DB) is None
    with pytest.raises(CorruptRecord, match="if a newer monitor wrote it, upgrade this one"):
        await journal.save_operation(OPERATION, None)
    entry = await (await bus.bucket("operations")).get(instance_key(DB))
    assert entry is not None
    assert json.loads(entry.value)["step"] == "levitate"
    await change_raw(bus, "operations", instance_key(DB), lambda plain: plain.update(step="confirm"))
    await journal.reload()
    assert not journal.is_corrupt(DB)


async def test_switches_that_cannot_be_read_switch_off(bus: NatsBus) -> None:
    """A person may have said that nothing is to be rebuilt: that holds while nobody can read it."""
    journal = await opened(bus)
    await journal.save_switches(Switches())
    await change_raw(bus, "switches", "switches", lambda plain: plain.update(resurrection="at full moon"))
    await journal.reload()
    assert not journal.switches().resurrection


async def test_a_reader_that_reads_along_takes_in_what_was_written_deleted_and_purged(
    server: NatsServer, bus: NatsBus
) -> None:
    """Each reload reads only what was written since; a record that was purged by hand, which leaves no trace, is missed
    all the same, and so is one of which only the deletion is stored."""
    writer, reader = await opened(bus), await opened(bus)
    other = replace(RECORD, instance=InstanceId("shop/db/7"), index=7)
    await writer.save_instance(RECORD, None)
    await writer.save_instance(other, None)
    await reader.reload()
    assert set(reader.instances()) == {DB, other.instance}
    changed = replace(RECORD, ignore=True)
    await writer.save_instance(changed, RECORD)
    await writer.delete_instance(other)
    await reader.reload()
    assert reader.instances() == {DB: changed}
    await writer.save_instance(other, None)
    await reader.reload()
    assert set(reader.instances()) == {DB, other.instance}
    client = await nats.connect(server.url)
    await client.jetstream().purge_stream("KV_instances", subject="$KV.instances.shop.db.7")
    await client.close()
    for each in (reader, writer):
        await each.reload()
        assert each.instances() == {DB: changed}


async def test_a_bucket_whose_last_write_was_purged_is_read_all_the_same(server: NatsServer, bus: NatsBus) -> None:
    """The last write is gone, by hand: what is there is what there is."""
    journal = await opened(bus)
    await journal.save_instance(RECORD, None)
    await journal.save_operation(OPERATION, None)
    client = await nats.connect(server.url)
    await client.jetstream().purge_stream("KV_operations")
    await client.close()
    await journal.reload()
    assert journal.operations() == {}
    assert journal.instance(DB) == RECORD
