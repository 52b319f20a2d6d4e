"""The lease on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import RECORDS_FORMAT
from healthmonitor.leadership import BUCKET, KEY, Leadership, Manners
from protocol.bus import Bucket, Bus, BusUnavailable, Entry
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


class CutOff:
    """A bucket on a server that was cut off from the others: it answers what it knew, and writes nothing."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.frozen: Entry | None = None

    async def cut(self) -> None:
        self.frozen = await self._bucket.get(KEY)

    async def get(self, key: str) -> Entry | None:
        return self.frozen or await self._bucket.get(key)

    async def create(self, key: str, value: bytes) -> int:
        return await self._bucket.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        if self.frozen is not None:
            raise BusUnavailable("no quorum")
        return await self._bucket.update(key, value, revision)


async def test_who_reads_a_lease_that_nobody_writes_is_not_in_touch(
    buses: list[Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In touch: leading, and reading along while another renews. Where the lease can be read and is never written, the
    monitor is on a server that was cut off, and says no longer to agents that the centre is there."""
    first, second = (Leadership(bus, MonitorId(f"m{n}"), POLICY, f"i{n}") for n, bus in enumerate(buses))
    far = CutOff(await buses[1].bucket(BUCKET))
    monkeypatch.setattr(second, "_bucket", far)
    running = asyncio.create_task(first.run())
    await until(first.is_leader, what="the first leads")
    waiting = asyncio.create_task(second.run())
    await until(lambda: first.in_touch() and second.in_touch(), what="both are in touch")
    await far.cut()
    await until(lambda: not second.in_touch(), what="the second is out of touch")
    assert first.in_touch()
    assert not second.is_leader()
    far.frozen = None
    await until(second.in_touch, what="it is back")
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

    async def another_led(before: int) -> bool:
        """One that was slow to take what was left to it is let go first again."""
        if looked() and len(led) == before and before:
            await monitors[led[-1]].step_down()
        return len(led) > before

    for _ in range(5):
        before = len(led)
        await until(lambda before=before: another_led(before), 60, "another leads")  # type: ignore[misc]
    assert led == [led[0], 1 - led[0]] * 2 + [led[0]]
    for task in running:
        await stop(task)
