"""The simulator's own parts: virtual time, processes that die and freeze, and the network's lies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from protocol.bus import BusUnavailable, Message
from tests.simulation.bus import SimulatedBus, SimulatedServer, SimulatedSystemEvents, Weather, matches
from tests.simulation.loop import Deadlock, OutOfBudget, Process, RealIo, SimulatedLoop


def run(main: Callable[[SimulatedLoop], Awaitable[None]], **limits: int) -> SimulatedLoop:
    loop = SimulatedLoop(**limits)

    async def begin() -> None:
        await main(loop)

    try:
        loop.run(begin())
    finally:
        loop.forget()
    return loop


def test_a_day_passes_at_once() -> None:
    """Sleeping costs no real time, and the clock shows what was slept."""

    async def main(loop: SimulatedLoop) -> None:
        began = loop.time()
        await asyncio.sleep(86_400)
        assert loop.time() == began + 86_400

    began = time.perf_counter()
    run(main)
    assert time.perf_counter() - began < 5


def test_a_killed_process_takes_no_further_step() -> None:
    """Neither its loop nor its clean-up runs after the kill, and other processes go on."""
    did: list[str] = []
    seen: list[str] = []

    async def work(name: str) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                did.append(name)
        finally:
            did.append(f"{name} cleaned up")

    async def grouped(name: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work(name))

    async def main(loop: SimulatedLoop) -> None:
        killed, other = Process(loop, "killed"), Process(loop, "other")
        killed.start(grouped("a"))
        other.start(grouped("b"))
        await asyncio.sleep(2.5)
        killed.kill()
        await asyncio.sleep(2)
        seen.extend(did)  # before the loop is thrown away, and with it the coroutines

    run(main)
    assert sorted(seen) == ["a", "a", "b", "b", "b", "b"]


def test_a_process_can_be_killed_at_any_await() -> None:
    """kill_after(n) strikes before the step n + 1, whatever it would have been."""
    for steps in range(6):
        did: list[int] = []

        async def work(done: list[int]) -> None:
            for number in range(5):
                done.append(number)
                await asyncio.sleep(0)

        async def main(loop: SimulatedLoop, steps: int = steps, done: list[int] = did) -> None:
            process = Process(loop, "p")
            process.kill_after(steps)
            process.start(work(done))
            await asyncio.sleep(1)
            assert not process.alive or steps > 5

        run(main)
        assert did == list(range(min(steps, 5)))


def test_a_frozen_process_goes_on_when_thawed() -> None:
    """What came due while it was frozen happens at the thaw, all at once."""
    at: list[float] = []

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(4):
            await asyncio.sleep(1)
            at.append(loop.time())

    async def main(loop: SimulatedLoop) -> None:
        process = Process(loop, "p")
        process.start(work())
        await asyncio.sleep(1.5)
        process.freeze()
        await asyncio.sleep(10)
        process.thaw()
        await asyncio.sleep(5)

    run(main)
    assert [round(moment - 1000, 3) for moment in at] == [1.0, 11.5, 12.5, 13.5]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: asyncio.Event().wait(), Deadlock),
        (lambda: asyncio.open_connection("127.0.0.1", 1), RealIo),
        (lambda: asyncio.create_subprocess_exec("true"), (RealIo, NotImplementedError)),
    ],
    ids=["deadlock", "socket", "subprocess"],
)
def test_what_cannot_be_simulated_is_said(
    wrong: Callable[[], Awaitable[object]], error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    """Waiting for nothing and asking for real I/O end the run with a reason."""

    async def main(loop: SimulatedLoop) -> None:
        await wrong()

    with pytest.raises(error):
        run(main)


def test_a_spin_ends() -> None:
    """A loop that never lets time pass runs out of its budget of steps."""

    async def main(loop: SimulatedLoop) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(OutOfBudget):
        run(main, max_steps=20_000)


async def connected(server: SimulatedServer, name: str) -> SimulatedBus:
    bus = await server.client(name).open()
    await bus.wait_connected(5)
    return bus


def test_a_cut_that_heals_early_delivers_late_and_all_at_once() -> None:
    """What was published into an unnoticed cut arrives in one burst, in order, without a disconnect."""

    async def main(loop: SimulatedLoop) -> None:
        server = SimulatedServer(Random(1), Weather(notice_cut_seconds=(20.0, 20.0)))
        agent, monitor = await connected(server, "agent"), await connected(server, "monitor")
        heard: list[tuple[float, bytes]] = []
        await monitor.subscribe("x", lambda message: heard.append((loop.time(), message.payload)))
        await monitor.flush(5)
        server.cut(agent)
        for number in range(10):
            await agent.publish("x", str(number).encode())
            await asyncio.sleep(1)
        assert heard == []
        server.heal(agent)
        await asyncio.sleep(1)
        assert [payload for _, payload in heard] == [str(number).encode() for number in range(10)]
        assert heard[-1][0] - heard[0][0] < 0.1
        assert agent.connection_epoch == 1

    run(main)


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_a_cut_that_lasts_is_noticed_by_both_sides(kept: float) -> None:
    """After its pings each side gives the connection up; the client comes back with the next epoch; what it had sent
    into the cut is lost, since the server had given up as well."""

    async def main(loop: SimulatedLoop) -> None:
        server = SimulatedServer(Random(2), Weather(kept_after_giving_up=kept))
        agent, monitor = await connected(server, "agent"), await connected(server, "monitor")
        heard: list[Message] = []
        gone: list[str] = []
        await monitor.subscribe("x", heard.append)
        await SimulatedSystemEvents(monitor).on_disconnect(gone.append)
        server.cut(agent)
        await agent.publish("x", b"late")
        await asyncio.sleep(10)
        assert not agent.connected
        assert gone == ["agent"]
        with pytest.raises(BusUnavailable):
            await agent.publish("x", b"refused")
        server.heal(agent)
        await asyncio.sleep(2)
        assert agent.connection_epoch == 2
        assert heard == []

    run(main)


def test_an_operation_that_timed_out_may_have_been_done() -> None:
    """Cut on the way back: BusUnavailable for the writer, and the value is there."""

    async def main(loop: SimulatedLoop) -> None:
        server = SimulatedServer(Random(3), Weather(notice_cut_seconds=(60.0, 60.0)))
        client, other = await connected(server, "client"), await connected(server, "other")
        bucket = await client.bucket("b")
        server.cut(client, to_server=False, from_server=True)
        with pytest.raises(BusUnavailable):
            await bucket.put("k", b"v")
        entry = await (await other.bucket("b")).get("k")
        assert entry is not None
        assert entry.value == b"v"

    run(main)


def test_a_killed_server_keeps_what_it_acknowledged_and_a_prefix_of_the_rest() -> None:
    """Over many seeds: every acknowledged write is there, those under way survive as a prefix, and not always all."""
    survived: set[int] = set()
    for seed in range(30):

        async def main(loop: SimulatedLoop, seed: int = seed) -> None:
            server = SimulatedServer(Random(seed), Weather(sync_seconds=(0.05, 0.05)))
            client = await connected(server, "client")
            bucket = await client.bucket("b")
            await bucket.put("acknowledged", b"")
            writes = [asyncio.create_task(bucket.put(str(number), b"")) for number in range(5)]
            await asyncio.sleep(0.04)
            server.crash()
            server.start()
            await asyncio.gather(*writes, return_exceptions=True)
            keys = list(server.store.buckets["b"].entries)
            assert keys == ["acknowledged", *(str(number) for number in range(len(keys) - 1))]
            survived.add(len(keys) - 1)

        run(main)
    assert {0, 5} <= survived


def test_the_same_seed_does_the_same() -> None:
    """Two runs of one seed in bad weather have one digest; another seed has another."""

    def digest(seed: int) -> int:
        found: list[int] = []

        async def main(loop: SimulatedLoop) -> None:
            server = SimulatedServer(Random(seed), Weather(core_loss=0.2, core_double=0.2))
            clients = [await connected(server, f"c{number}") for number in range(4)]
            for client in clients:
                await client.subscribe("x.*", lambda message: None)
            for number in range(50):
                await clients[number % 4].publish(f"x.{number}", b"")
            await asyncio.sleep(5)
            found.append(server.digest)

        run(main)
        return found[0]

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.parametrize(
    ("pattern", "subject", "does"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.b", "a.b", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_subjects_match_as_in_nats(pattern: str, subject: str, does: bool) -> None:
    """`*` is one token, `>` one or more at the end."""
    assert matches(pattern, subject) is does
