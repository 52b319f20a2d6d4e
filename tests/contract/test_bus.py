"""What every bus keeps: run against the simulated one and against the real one on a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Protocol

import pytest

from protocol.bus import (
    BlobReader,
    Blobs,
    BlobsFull,
    Bus,
    BusUnavailable,
    Deleted,
    Entry,
    Extent,
    Inbox,
    InboxEntry,
    Message,
    NoResponders,
    WrongRevision,
)
from protocol.nats_bus import NatsBus, SystemEvents
from protocol.settings import BusSettings
from tests.simulation.bus import SimulatedBus, SimulatedServer, SimulatedSystemEvents
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until


class House(Protocol):
    """A server, and clients of it."""

    async def client(self, name: str) -> Bus: ...

    async def stop_server(self) -> None: ...

    async def start_server(self) -> None: ...

    async def hear_disconnects(self, callback: Callable[[str], None]) -> None: ...


class SimulatedHouse:
    def __init__(self) -> None:
        self.server = SimulatedServer(Random(1))
        self._clients: list[SimulatedBus] = []

    async def client(self, name: str) -> SimulatedBus:
        bus = await self.server.client(name).open()
        self._clients.append(bus)
        await bus.wait_connected(5)
        return bus

    async def stop_server(self) -> None:
        self.server.crash()

    async def start_server(self) -> None:
        self.server.start()

    async def hear_disconnects(self, callback: Callable[[str], None]) -> None:
        await SimulatedSystemEvents(await self.client("system")).on_disconnect(callback)

    async def close(self) -> None:
        for bus in self._clients:
            await bus.close()


class NatsHouse:
    def __init__(self, server: NatsServer) -> None:
        self.server = server
        self._clients: list[NatsBus] = []

    async def client(self, name: str) -> NatsBus:
        return await self._open(BusSettings(urls=(self.server.url,)), name)

    async def stop_server(self) -> None:
        await self.server.stop(kill=True)

    async def start_server(self) -> None:
        await self.server.start()

    async def hear_disconnects(self, callback: Callable[[str], None]) -> None:
        system = BusSettings(
            urls=(self.server.url,), user=self.server.system_user, password=self.server.system_password
        )
        bus = await self._open(system, "system")
        await SystemEvents(bus).on_disconnect(callback)
        await bus.flush(5)

    async def close(self) -> None:
        for bus in self._clients:
            await bus.close()

    async def _open(self, settings: BusSettings, name: str) -> NatsBus:
        bus = await NatsBus.open(settings, name)
        self._clients.append(bus)
        await bus.wait_connected(15)
        return bus


@pytest.fixture(params=["simulated", "nats"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "simulated":
            simulated = SimulatedHouse()
            stack.push_async_callback(simulated.close)
            yield simulated
        else:
            real = NatsHouse(await stack.enter_async_context(nats_server(tmp_path)))
            stack.push_async_callback(real.close)
            yield real


async def test_messages_arrive_in_order_at_every_subscriber(house: House) -> None:
    """What one client publishes reaches every subscriber whose pattern matches, in order, with its subject."""
    sender, one, two = [await house.client(name) for name in ("sender", "one", "two")]
    heard: dict[str, list[Message]] = {"exact": [], "star": [], "tail": [], "other": []}
    await one.subscribe("hm.agent.heartbeat.a", heard["exact"].append)
    await one.subscribe("hm.agent.heartbeat.*", heard["star"].append)
    await two.subscribe("hm.>", heard["tail"].append)
    await two.subscribe("hm.agent.*", heard["other"].append)
    await one.flush(5)
    await two.flush(5)
    for number in range(50):
        await sender.publish("hm.agent.heartbeat.a", str(number).encode())
    await sender.publish("hm.agent.heartbeat.b", b"b")
    await until(lambda: len(heard["star"]) == 51 and len(heard["tail"]) == 51, what="all heard")
    assert [message.payload for message in heard["exact"]] == [str(number).encode() for number in range(50)]
    assert heard["star"][-1] == Message("hm.agent.heartbeat.b", b"b")
    assert heard["other"] == []


async def test_nothing_is_heard_after_unsubscribing(house: House) -> None:
    """An unsubscribed callback is not called for what is published afterwards; others still are."""
    sender, hearer = await house.client("sender"), await house.client("hearer")
    gone: list[Message] = []
    kept: list[Message] = []
    subscription = await hearer.subscribe("x", gone.append)
    await hearer.subscribe("x", kept.append)
    await subscription.unsubscribe()
    await hearer.flush(5)
    await sender.publish("x", b"")
    await until(lambda: kept, what="the kept one heard")
    assert gone == []


async def test_a_request_is_answered(house: House) -> None:
    """The answer published on `reply_to` is what request returns."""
    asker, answerer = await house.client("asker"), await house.client("answerer")
    pending: set[asyncio.Task[None]] = set()

    def answer(message: Message) -> None:
        pending.add(asyncio.ensure_future(answerer.publish(message.reply_to, message.payload.upper())))

    await answerer.subscribe("agent.a", answer)
    await answerer.flush(5)
    assert await asker.request("agent.a", b"ping", 5) == b"PING"


async def test_a_request_that_nobody_hears_fails_at_once(house: House) -> None:
    """NoResponders, long before the time given."""
    asker = await house.client("asker")
    async with asyncio.timeout(5):
        with pytest.raises(NoResponders):
            await asker.request("agent.nobody", b"ping", 60)


async def test_a_request_without_answer_times_out(house: House) -> None:
    """Somebody listens and says nothing: BusUnavailable, the outcome is unknown."""
    asker, silent = await house.client("asker"), await house.client("silent")
    await silent.subscribe("agent.a", lambda message: None)
    await silent.flush(5)
    with pytest.raises(BusUnavailable):
        await asker.request("agent.a", b"ping", 0.2)


async def test_a_bucket_compares_and_sets(house: House) -> None:
    """create, update and delete refuse with WrongRevision what is not as the caller believes, and write nothing."""
    bucket = await (await house.client("one")).bucket("instances")
    assert await bucket.get("shop.db.0") is None
    first = await bucket.create("shop.db.0", b"1")
    with pytest.raises(WrongRevision):
        await bucket.create("shop.db.0", b"other")
    second = await bucket.update("shop.db.0", b"2", first)
    assert second > first
    with pytest.raises(WrongRevision):
        await bucket.update("shop.db.0", b"stale", first)
    with pytest.raises(WrongRevision):
        await bucket.delete("shop.db.0", first)
    entry = await bucket.get("shop.db.0")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("shop.db.0", b"2", second)
    await bucket.delete("shop.db.0", second)
    assert await bucket.get("shop.db.0") is None
    await bucket.delete("shop.db.0")
    assert await bucket.create("shop.db.0", b"again") > second


async def test_two_who_update_the_same_revision_do_not_both_succeed(house: House) -> None:
    """Of many concurrent updates from one revision exactly one is acknowledged."""
    buckets = [await (await house.client(f"c{number}")).bucket("leader") for number in range(4)]
    revision = await buckets[0].create("lease", b"")

    async def take(number: int) -> bool:
        try:
            await buckets[number].update("lease", str(number).encode(), revision)
        except WrongRevision:
            return False
        return True

    won = await asyncio.gather(*(take(number) for number in range(4)))
    assert sum(won) == 1
    entry = await buckets[0].get("lease")
    assert entry is not None
    assert entry.value == str(won.index(True)).encode()


async def test_reading_a_bucket_tells_what_was_written_after_a_revision(house: House) -> None:
    """All of it at first, then only the latest of what changed, deletions too, in their order."""
    bucket = await (await house.client("one")).bucket("read")
    other = await (await house.client("two")).bucket("read")
    told: list[Entry | Deleted] = []
    assert await bucket.read(0, told.append) == Extent(0, 0)
    first = await bucket.create("a", b"1")
    await bucket.create("b.x", b"1")
    third = await bucket.create("c", b"1")
    assert await other.read(0, told.append) == Extent(third, 3)
    assert [(each.key, each.revision) for each in told] == [("a", first), ("b.x", first + 1), ("c", third)]
    assert all(isinstance(each, Entry) and each.value == b"1" for each in told)
    told.clear()
    assert await other.read(third, told.append) == Extent(third, 3)
    assert told == []
    await bucket.update("a", b"2", first)
    latest = await bucket.update("a", b"3", first + 3)
    await bucket.delete("b.x")
    again = await bucket.create("d", b"1")
    await bucket.delete("d")
    assert await other.read(third, told.append) == Extent(again + 1, 4)
    assert told == [Entry("a", b"3", latest), Deleted("b.x", latest + 1), Deleted("d", again + 1)]


async def test_reading_a_large_bucket_to_its_end(house: House) -> None:
    """In pieces, while others write to it."""
    bucket = await (await house.client("one")).bucket("large")
    for n in range(350):
        last = await bucket.put(f"key-{n}", b"x")
    told: dict[str, int] = {}
    written = asyncio.create_task(bucket.put("key-349", b"y"))
    read_up_to = await bucket.read(0, lambda each: told.__setitem__(each.key, each.revision))
    await written
    assert read_up_to.revision >= last
    assert set(told) == {f"key-{n}" for n in range(350)}


async def test_a_revision_that_is_not_reached_tells_of_an_older_copy(house: House) -> None:
    """Nothing is taken, and the revision that there is says so."""
    bucket = await (await house.client("one")).bucket("older")
    only = await bucket.create("a", b"1")
    told: list[Entry | Deleted] = []
    assert await bucket.read(only + 5, told.append) == Extent(only, 1)
    assert told == []


async def test_entries_are_all_that_is_there(house: House) -> None:
    """Everything put and not deleted, with current values and revisions; nothing of an empty bucket."""
    client = await house.client("one")
    bucket = await client.bucket("incidents")
    assert await bucket.entries() == {}
    await bucket.put("a", b"1")
    await bucket.put("b_2.c-3", b"2")
    newest = await bucket.put("a", b"3")
    await bucket.put("gone", b"4")
    await bucket.delete("gone")
    entries = await bucket.entries()
    assert {key: entry.value for key, entry in entries.items()} == {"a": b"3", "b_2.c-3": b"2"}
    assert entries["a"].revision == newest
    assert await (await client.bucket("other")).entries() == {}


async def test_a_log_numbers_keeps_and_reads(house: House) -> None:
    """append gives growing numbers; read continues after one, last gives the newest, oldest first."""
    log = await (await house.client("one")).log("events", max_entries=100, max_bytes=1_000_000)
    assert await log.read() == []
    assert await log.last(3) == []
    numbers = [await log.append(str(number).encode()) for number in range(7)]
    assert numbers == sorted(set(numbers))
    assert [entry.payload for entry in await log.read(after=numbers[4])] == [b"5", b"6"]
    assert [entry.sequence for entry in await log.read(limit=3)] == numbers[:3]
    assert [entry.payload for entry in await log.last(2)] == [b"5", b"6"]


async def test_a_log_keeps_no_more_than_its_limit(house: House) -> None:
    """Beyond max_entries the oldest go."""
    log = await (await house.client("one")).log("small", max_entries=3, max_bytes=1_000_000)
    for number in range(5):
        await log.append(str(number).encode())
    assert [entry.payload for entry in await log.read()] == [b"2", b"3", b"4"]


async def test_a_log_is_followed(house: House) -> None:
    """follow gives what is stored and then what comes, in order, without gaps."""
    log = await (await house.client("one")).log("events", max_entries=100, max_bytes=1_000_000)
    writer = await (await house.client("two")).log("events", max_entries=100, max_bytes=1_000_000)
    await writer.append(b"0")
    followed: list[bytes] = []
    async with asyncio.timeout(20):
        stream = log.follow(after=0)
        async for entry in stream:
            followed.append(entry.payload)
            if len(followed) == 3:
                break
            await writer.append(str(len(followed)).encode())
    assert followed == [b"0", b"1", b"2"]


async def test_what_was_acknowledged_survives_the_server(house: House) -> None:
    """The server is killed and started again: buckets and logs are as acknowledged, revisions go on growing."""
    client = await house.client("one")
    bucket = await client.bucket("operations")
    log = await client.log("events", max_entries=100, max_bytes=1_000_000)
    revision = await bucket.put("a", b"1")
    sequence = await log.append(b"x")
    await house.stop_server()
    await until(lambda: not client.connected, what="the loss noticed")
    with pytest.raises(BusUnavailable):
        await client.publish("x", b"")
    with pytest.raises(BusUnavailable):
        await bucket.get("a")
    await house.start_server()
    await until(lambda: client.connected, what="connected again")
    entry = await bucket.get("a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"1", revision)
    assert await bucket.update("a", b"2", revision) > revision
    assert [item.sequence for item in await log.read()] == [sequence]


async def test_a_subscription_outlives_a_reconnect_and_both_are_told(house: House) -> None:
    """The callback hears loss and return, the epoch grows, and the old subscription hears new messages."""
    client, sender = await house.client("one"), await house.client("two")
    told: list[bool] = []
    heard: list[bytes] = []
    client.on_connection_change(told.append)
    await client.subscribe("x", lambda message: heard.append(message.payload))
    await client.flush(5)
    epoch = client.connection_epoch
    await house.stop_server()
    await until(lambda: told == [False], what="told of the loss")
    await house.start_server()
    await until(lambda: told == [False, True] and sender.connected, what="told of the return")
    assert client.connection_epoch == epoch + 1

    async with asyncio.timeout(15):
        while not heard:
            await sender.publish("x", b"again")
            await sender.flush(5)
            await client.flush(5)


async def test_a_disconnect_is_seen_by_name(house: House) -> None:
    """The server's own events name the client whose connection ended."""
    gone: list[str] = []
    await house.hear_disconnects(gone.append)
    client = await house.client("agent-7")
    await client.flush(5)
    await client.close()
    await until(lambda: "agent-7" in gone, what="the disconnect heard")


async def test_a_queue_keeps_what_was_put_until_it_is_removed(house: House) -> None:
    """In order, over a killed server, whoever reads it; nothing is left of what was removed."""
    bus = await house.client("one")
    queue = await bus.queue("outbox", 1024 * 1024)
    first, second, third = [await queue.put(text, text.decode()) for text in (b"a", b"b", b"c")]
    await queue.remove(second)
    await queue.remove(second)
    assert [entry.payload for entry in await queue.entries()] == [b"a", b"c"]
    assert await queue.get(second) is None
    await house.stop_server()
    await house.start_server()
    other = await (await house.client("two")).queue("outbox", 1024 * 1024)
    assert [(entry.sequence, entry.payload) for entry in await other.entries()] == [(first, b"a"), (third, b"c")]
    assert await other.get(third) == b"c"
    await other.remove(first)
    await other.remove(third)
    await other.remove(third)
    assert await other.entries() == []
    await other.remove(first)


async def test_a_put_that_is_repeated_is_stored_once(house: House) -> None:
    """So that one whose answer was lost may be tried again."""
    queue = await (await house.client("one")).queue("outbox", 1024 * 1024)
    first = await queue.put(b"x", "key")
    assert await queue.put(b"x", "key") == first
    assert await queue.put(b"x", "other") != first
    assert len(await queue.entries()) == 2


async def test_a_full_queue_refuses_and_loses_nothing(house: House) -> None:
    """Unlike a log it never drops the oldest."""
    queue = await (await house.client("one")).queue("outbox", 3000)
    await queue.put(b"x" * 2000, "1")
    with pytest.raises(BusUnavailable):
        await queue.put(b"y" * 2000, "2")
    assert [entry.payload for entry in await queue.entries()] == [b"x" * 2000]


LARGE = bytes(range(256)) * 4096
"""1 MiB: several chunks on every bus."""


async def read_whole(reader: BlobReader, name: str) -> bytes:
    blob = await reader.find(name)
    assert blob is not None
    parts: list[bytes] = []
    position = 0
    while (chunk := await reader.chunk(blob, position)) is not None:
        parts.append(chunk.payload)
        position = chunk.position
    content = b"".join(parts)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (blob.size_bytes, blob.sha256)
    return content


async def test_a_blob_is_read_as_it_was_put_over_a_killed_server(house: House) -> None:
    """In chunks, by one who never opened the store; an empty one too, and names with every allowed character."""
    blobs = await (await house.client("one")).blobs("images", 64 * 1024 * 1024)
    assert await blobs.find("sha256:abc") is None
    await blobs.put("sha256:abc", io.BytesIO(LARGE))
    await blobs.put("of/registry.example:5000/team/app@1_.-", io.BytesIO(b"small"))
    await blobs.put("empty", io.BytesIO(b""))
    await house.stop_server()
    await house.start_server()
    reader = (await house.client("two")).blob_reader("images")
    assert await read_whole(reader, "sha256:abc") == LARGE
    assert await read_whole(reader, "of/registry.example:5000/team/app@1_.-") == b"small"
    assert await read_whole(reader, "empty") == b""


async def test_a_blob_put_again_is_the_new_one_and_takes_no_more_room(house: House) -> None:
    """The name moves at once; the old chunks are gone."""
    blobs = await (await house.client("one")).blobs("images", 64 * 1024 * 1024)
    await blobs.put("a", io.BytesIO(LARGE))
    used = await blobs.used_bytes()
    old = await blobs.find("a")
    assert old is not None
    await blobs.put("a", io.BytesIO(LARGE[::-1]))
    assert await read_whole(blobs, "a") == LARGE[::-1]
    assert await blobs.chunk(old) is None
    assert await blobs.used_bytes() <= used + 4096


async def test_all_blobs_are_listed_and_removed_ones_are_gone(house: House) -> None:
    """Removing leaves nothing of it, and twice is fine."""
    blobs = await (await house.client("one")).blobs("images", 64 * 1024 * 1024)
    assert await blobs.all() == {}
    for name in ("a", "b", "c"):
        await blobs.put(name, io.BytesIO(LARGE))
    await blobs.remove("b")
    await blobs.remove("b")
    assert {name: blob.size_bytes for name, blob in (await blobs.all()).items()} == {"a": len(LARGE), "c": len(LARGE)}
    await blobs.remove("a")
    await blobs.remove("c")
    assert await blobs.all() == {}
    assert await blobs.used_bytes() < 4096


async def test_a_full_store_refuses_shows_nothing_and_can_be_emptied(house: House) -> None:
    """What did not fit leaves nothing behind; what was there stays; removing works though it is full."""
    blobs = await (await house.client("one")).blobs("images", 1536 * 1024)
    await blobs.put("first", io.BytesIO(LARGE))
    used = await blobs.used_bytes()
    with pytest.raises(BlobsFull):
        await blobs.put("second", io.BytesIO(LARGE))
    assert await blobs.find("second") is None
    assert await blobs.used_bytes() == used
    assert await read_whole(blobs, "first") == LARGE
    await blobs.remove("first")
    await blobs.put("second", io.BytesIO(LARGE))
    assert await read_whole(blobs, "second") == LARGE


async def test_the_limit_of_a_store_can_be_changed(house: House) -> None:
    """Opened with another limit, that one holds."""
    client = await house.client("one")
    with pytest.raises(BlobsFull):
        await (await client.blobs("images", 512 * 1024)).put("a", io.BytesIO(LARGE))
    await (await client.blobs("images", 4 * 1024 * 1024)).put("a", io.BytesIO(LARGE))


async def test_a_put_that_was_cut_off_is_not_visible_and_is_swept(house: House) -> None:
    """Its writer ends in the middle: no name, and once it is old enough nothing in the store."""

    class EndsInTheMiddle(io.BytesIO):
        reads = 0

        def interrupt(self) -> None:
            self.reads += 1
            if self.reads == 3:
                writing.cancel()

        def read(self, size: int | None = -1, /) -> bytes:
            self.interrupt()
            return super().read(size)

        def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]
            loop.call_soon_threadsafe(self.interrupt)
            return super().readinto(buffer)

    loop = asyncio.get_running_loop()
    blobs: Blobs = await (await house.client("one")).blobs("images", 64 * 1024 * 1024)
    await blobs.put("whole", io.BytesIO(LARGE))
    used = await blobs.used_bytes()
    writing = asyncio.ensure_future(blobs.put("half", EndsInTheMiddle(LARGE * 4)))
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await blobs.find("half") is None
    assert await blobs.used_bytes() > used
    assert await blobs.sweep(3600.0) == 0
    assert await blobs.sweep(0.0) == 1
    assert await blobs.used_bytes() == used
    assert await read_whole(blobs, "whole") == LARGE


async def test_a_store_that_is_not_there_says_so_at_once(house: House) -> None:
    """A reader of a site without images waits for nothing."""
    reader = (await house.client("one")).blob_reader("images")
    async with asyncio.timeout(5):
        with pytest.raises(NoResponders):
            await reader.find("a")


async def test_an_inbox_keeps_what_anybody_publishes(house: House) -> None:
    """Whether somebody listens or not, over a killed server, until it is removed; what is on no subject of it is not
    its business."""
    reader, agent = await house.client("one"), await house.client("two")
    inbox = await reader.inbox("alerts", ["word.*", "other"], 1024 * 1024, 1000)
    for subject, payload in (("word.a", b"1"), ("word.b", b"2"), ("nothing", b"3"), ("other", b"4"), ("word.c", b"5")):
        await agent.publish(subject, payload)
    await agent.publish("word.a", b"x" * 1001)
    await agent.flush(5.0)
    found = await _read(inbox, 4)
    assert [(each.subject, each.payload) for each in found] == [
        ("word.a", b"1"),
        ("word.b", b"2"),
        ("other", b"4"),
        ("word.c", b"5"),
    ]
    await inbox.remove(found[1].sequence)
    await inbox.remove(found[1].sequence)
    assert [each.payload for each in await inbox.read(0, 2)] == [b"1", b"4"]
    assert [each.payload for each in await inbox.read(found[2].sequence, 10)] == [b"5"]
    await house.stop_server()
    await house.start_server()
    again = await (await house.client("three")).inbox("alerts", ["word.*", "other"], 1024 * 1024, 1000)
    assert [each.payload for each in await again.read(0, 10)] == [b"1", b"4", b"5"]


async def test_a_full_inbox_drops_the_oldest(house: House) -> None:
    """Nobody can be told to wait: the newest is what matters more."""
    bus = await house.client("one")
    inbox = await bus.inbox("alerts", ["word.*"], 3000, 2000)
    for letter in (b"a", b"b", b"c"):
        await bus.publish("word.a", letter * 1200)
    await bus.flush(5.0)
    found = await _read(inbox, 2)
    assert [each.payload[:1] for each in found] == [b"b", b"c"]


async def _read(inbox: Inbox, count: int) -> list[InboxEntry]:
    """What is published is kept a moment later."""
    deadline = asyncio.get_running_loop().time() + 10.0
    while len(found := await inbox.read(0, 100)) != count or found[-1].payload[:1] not in (b"5", b"c"):
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.01)
    return found
