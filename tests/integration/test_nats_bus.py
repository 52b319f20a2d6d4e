"""What NatsBus adds to the contract: background connection, no late sending, system events."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from protocol.bus import BusUnavailable, Message
from protocol.nats_bus import NatsBus, SystemEvents
from protocol.settings import BusSettings
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until


async def test_subscriptions_outlive_a_server_restart_and_nothing_is_sent_late(tmp_path: Path) -> None:
    """A bus opened before the server exists connects when it does; while it is gone publishing raises; afterwards old
    subscriptions hear again, and only what was published since."""
    server = NatsServer(tmp_path / "nats")
    bus = await NatsBus.open(BusSettings(urls=(server.url,)), "one")
    heard: list[bytes] = []
    changes: list[bool] = []
    bus.on_connection_change(changes.append)
    await bus.subscribe("a.b", lambda message: heard.append(message.payload))
    with pytest.raises(BusUnavailable):
        await bus.publish("a.b", b"too early")
    await server.start()
    try:
        await bus.wait_connected(10)
        await bus.publish("a.b", b"1")
        await until(lambda: heard == [b"1"])
        await server.stop(kill=True)
        await until(lambda: not bus.connected)
        with pytest.raises(BusUnavailable):
            await bus.publish("a.b", b"lost")
        await server.start()
        await until(lambda: bus.connected)
        await bus.publish("a.b", b"2")
        await until(lambda: heard == [b"1", b"2"])
        assert changes == [True, False, True]
        assert bus.connection_epoch == 2
    finally:
        await bus.close()
        await server.stop()


async def test_a_move_leads_to_another_server_each_time(tmp_path: Path) -> None:
    """Of three servers none is come back to before the others were tried, however often one moves: the one that was
    left may be cut off from the others, and answers all the same. One that is gone is passed over."""
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(nats_server(tmp_path / name)) for name in "abc"]
        bus = await NatsBus.open(BusSettings(urls=tuple(server.url for server in servers)), "one")
        stack.push_async_callback(bus.close)
        await bus.wait_connected(10)
        visited = [bus.server]
        for _ in range(8):

            def moved(epoch: int = bus.connection_epoch) -> bool:
                return bus.connected and bus.connection_epoch > epoch

            await bus.move("for this test")
            await until(moved)
            visited.append(bus.server)
        assert all(len(set(visited[at : at + 3])) == 3 for at in range(len(visited) - 2)), visited
        gone = next(server for server in servers if server.url.endswith(visited[-3]))
        await gone.stop(kill=True)
        await bus.move("for this test")
        await until(lambda: bus.connected and bus.server == visited[-2], what=f"on {visited[-2]}")


async def test_the_disconnect_of_another_client_is_heard_by_its_name(tmp_path: Path) -> None:
    """A user of the system account hears at once that the client named after an agent has gone."""
    async with nats_server(tmp_path) as server:
        system = await NatsBus.open(
            BusSettings(urls=(server.url,), user=server.system_user, password=server.system_password), "monitor"
        )
        gone: list[str] = []
        await SystemEvents(system).on_disconnect(gone.append)
        await system.wait_connected(10)
        agent = await NatsBus.open(BusSettings(urls=(server.url,)), "agent-7")
        await agent.wait_connected(10)
        await agent.close()
        await until(lambda: "agent-7" in gone)
        await system.close()


async def test_a_callback_that_raises_does_not_end_its_subscription(tmp_path: Path) -> None:
    """One bad message must not make the monitor deaf."""
    async with nats_server(tmp_path) as server:
        bus = await NatsBus.open(BusSettings(urls=(server.url,)), "one")
        await bus.wait_connected(10)
        heard: list[bytes] = []

        def callback(message: Message) -> None:
            if message.payload == b"bad":
                raise ValueError("bad")
            heard.append(message.payload)

        await bus.subscribe("a", callback)
        await bus.publish("a", b"bad")
        await bus.publish("a", b"good")
        await until(lambda: heard == [b"good"])
        await bus.close()


async def test_log_reads_pages_and_follows(tmp_path: Path) -> None:
    """What was appended is read back in order, in pages, from the end, and as it comes."""
    async with nats_server(tmp_path) as server:
        bus = await NatsBus.open(BusSettings(urls=(server.url,)), "one")
        await bus.wait_connected(10)
        log = await bus.log("events", max_entries=1000, max_bytes=1 << 20)
        for number in range(5):
            assert await log.append(b"%d" % number) == number + 1
        assert [entry.payload for entry in await log.read(after=2)] == [b"2", b"3", b"4"]
        assert [entry.sequence for entry in await log.last(2)] == [4, 5]
        assert await log.read(after=5) == []
        followed: list[bytes] = []

        async def follow() -> None:
            async for entry in log.follow(after=4):
                followed.append(entry.payload)

        task = asyncio.create_task(follow())
        await until(lambda: followed == [b"4"])
        await log.append(b"new")
        await until(lambda: followed == [b"4", b"new"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()
