"""The lease on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import RECORDS_FORMAT
from healthmonitor.leadership import Leadership, Manners
from protocol.bus import Bus
from protocol.ids import MonitorId
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until

POLICY = LeadershipPolicy(ttl_seconds=1.5, renew_seconds=0.3)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as made:
        yield made


@pytest.fixture
async def buses(server: NatsServer) -> AsyncIterator[list[Bus]]:
    made: list[Bus] = [await connected(server, f"m{number}") for number in range(2)]
    yield made
    for bus in made:
        await bus.close()


async def connected(server: NatsServer, name: str) -> Bus:
    bus = await NatsBus.open(BusSettings(urls=(server.url,)), name)
    await bus.wait_connected(10)
    return bus


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def test_one_leads_and_the_other_takes_over_at_once_when_it_ends_well(buses: list[Bus]) -> None:
    """Of two monitors one leads; stopped gracefully it gives the lease back, and the other need not wait the TTL."""
    first, second = (Leadership(bus, MonitorId(f"m{n}"), POLICY, f"i{n}") for n, bus in enumerate(buses))
    changes: list[bool] = []
    first.on_change(changes.append)
    running = asyncio.create_task(first.run())
    await until(first.is_leader, what="the first leads")
    waiting = asyncio.create_task(second.run())
    await until(lambda: second.holder() is not None, what="the second has seen it")
    assert not second.is_leader()
    assert (seen := second.holder()) is not None
    assert seen.holder == "m0"
    at = asyncio.get_running_loop().time()
    await stop(running)
    await until(second.is_leader, what="the second leads")
    assert asyncio.get_running_loop().time() - at < POLICY.ttl_seconds
    assert changes == [True, False]
    await stop(waiting)


async def test_a_server_that_is_gone_ends_leading_in_time(server: NatsServer, buses: list[Bus]) -> None:
    """Killed, the server renews nobody's lease: the leader stops acting before the TTL is over, and leads again when
    the server is back."""
    leader = Leadership(buses[0], MonitorId("m0"), POLICY, "i0")
    running = asyncio.create_task(leader.run())
    await until(leader.is_leader, what="it leads")
    at = asyncio.get_running_loop().time()
    await server.stop(kill=True)
    await until(lambda: not leader.is_leader(), what="it stopped")
    assert asyncio.get_running_loop().time() - at < POLICY.ttl_seconds
    await server.start()
    await until(leader.is_leader, what="it leads again")
    await stop(running)


async def test_who_steps_down_leaves_it_to_others_for_as_long_as_one_is_ready(buses: list[Bus]) -> None:
    """Asked to step down for a minute, a monitor does not lead again while another could; when that one is gone, it
    does, after the TTL and long before the minute is over. Why stands in the lease."""
    there = [True, True]
    first, second = (
        Leadership(bus, MonitorId(f"m{n}"), POLICY, f"i{n}", manners=Manners(lambda newest, n=n: there[1 - n]))  # type: ignore[misc]
        for n, bus in enumerate(buses)
    )
    tasks = [asyncio.create_task(first.run())]
    await until(first.is_leader, what="the first leads")
    tasks.append(asyncio.create_task(second.run()))
    first.on_given_back(second.wake)
    await until(lambda: second.holder() is not None, what="the second has seen it")
    assert await first.step_down(60.0, "m0 stepped down: a new kernel")
    await until(second.is_leader, what="the second leads")
    assert (lease := second.holder()) is not None
    assert lease.why == "m0 stepped down: a new kernel"
    assert first.refusal().startswith("stepped down, for another")
    there[1] = False
    tasks[1].cancel()
    await asyncio.wait({tasks[1]})
    await until(first.is_leader, 10, "the first leads again: nobody else is there")
    await stop(tasks[0])


async def test_a_lease_with_records_of_a_newer_format_is_not_taken(buses: list[Bus]) -> None:
    """An older monitor waits and says why; the newer one takes it at once."""
    newer = Leadership(buses[0], MonitorId("m0"), POLICY, "i0", version="9", records_format=RECORDS_FORMAT + 1)
    running = asyncio.create_task(newer.run())
    await until(newer.is_leader, what="the newer one leads")
    await stop(running)
    older = Leadership(buses[1], MonitorId("m1"), POLICY, "i1")
    waiting = asyncio.create_task(older.run())
    await until(lambda: older.refusal(), what="the older one says why it does not lead")
    assert "newer monitor (9)" in older.refusal()
    again = Leadership(buses[0], MonitorId("m0"), POLICY, "i2", records_format=RECORDS_FORMAT + 1)
    running = asyncio.create_task(again.run())
    await until(again.is_leader, what="the newer one leads again")
    assert not older.is_leader()
    await stop(running)
    await stop(waiting)


async def test_never_two_leaders(buses: list[Bus]) -> None:
    """Two monitors that step down in turn: at no look do both lead, and each gets its turn."""
    monitors = [Leadership(bus, MonitorId(f"m{n}"), POLICY, f"i{n}") for n, bus in enumerate(buses)]
    running = [asyncio.create_task(monitor.run()) for monitor in monitors]
    led: list[int] = []

    def looked() -> bool:
        leaders = [number for number, monitor in enumerate(monitors) if monitor.is_leader()]
        assert len(leaders) < 2
        if leaders and (not led or led[-1] != leaders[0]):
            led.append(leaders[0])
        return bool(leaders)

    for _ in range(4):
        before = len(led)
        await until(lambda before=before: looked() and len(led) > before, what="the other leads")  # type: ignore[misc]
        await monitors[led[-1]].step_down()
    assert set(led) == {0, 1}
    for task in running:
        await stop(task)
