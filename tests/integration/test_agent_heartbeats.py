"""Heartbeats over a real nats-server: on time, fresh, and never saved up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.core.vitals_shape import Sample
from protocol.heartbeat import ContainerReport, ContainerState, EngineState
from protocol.ids import ContainerName
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.spec import OnIsolation
from tests.support.agent import (
    AGENT,
    ScriptedReport,
    ScriptedSupervisor,
    listen,
    make_settings,
    make_spec,
    running_agent,
    sample,
)
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as running:
        yield running


async def connect(server: NatsServer, name: str) -> NatsBus:
    bus = await NatsBus.open(BusSettings(urls=(server.url,)), name)
    await bus.wait_connected(10)
    return bus


@pytest.fixture
async def monitor(server: NatsServer) -> AsyncIterator[NatsBus]:
    bus = await connect(server, "monitor")
    yield bus
    await bus.close()


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    opened = await connect(server, "agent")
    yield opened
    await opened.close()


async def test_a_heartbeat_carries_boshs_keys_and_ours(monitor: NatsBus, bus: NatsBus, tmp_path: Path) -> None:
    """On the agent's own subject, with strings for vitals, and with what the supervisor reports."""
    heard = await listen(monitor)
    async with running_agent(bus, tmp_path) as agent:
        await agent.desired.apply(make_spec(7))
        last = await until(
            lambda: heard[-1] if heard and heard[-1].beat.vitals and heard[-1].ours.revision == 7 else None
        )
        assert last.subject == f"hm.agent.heartbeat.{AGENT}"
        beat = last.beat
        assert (beat.deployment, beat.job, beat.index, beat.job_state) == ("shop", "db", 0, "running")
        assert beat.number_of_processes == 2
        assert beat.vitals is not None
        assert beat.vitals["load"] == ["0.50", "0.25", "0.12"]
        assert beat.vitals["mem"] == {"kb": "512", "percent": "50"}
        assert beat.vitals["uptime"] == {"secs": 1234}
        assert last.ours.engine is EngineState.UP
        assert [item.name for item in last.ours.containers] == ["redis", "exporter"]


async def test_the_sequence_grows_by_one_and_over_restarts(monitor: NatsBus, bus: NatsBus, tmp_path: Path) -> None:
    """A restarted agent goes on above where it was, or the monitor would take its heartbeats for old ones."""
    heard = await listen(monitor)
    async with running_agent(bus, tmp_path):
        await until(lambda: len(heard) >= 3)
    first = [item.sequence for item in heard]
    assert first == list(range(first[0], first[0] + len(first)))
    async with running_agent(bus, tmp_path):
        await until(lambda: len(heard) > len(first))
    assert heard[-1].sequence > first[-1]


async def test_a_change_is_told_at_once_but_not_as_often_as_it_comes(
    monitor: NatsBus, bus: NatsBus, tmp_path: Path
) -> None:
    """With a long interval, a change brings one more heartbeat at once; a hundred changes do not bring a hundred."""
    heard = await listen(monitor)
    settings = make_settings(heartbeat_interval_seconds=60.0, lease_seconds=180.0)
    supervisor = ScriptedSupervisor()
    async with running_agent(bus, tmp_path, supervisor, settings):
        await until(lambda: heard)
        supervisor.engine = EngineState.HUNG
        supervisor.tell()
        await until(lambda: heard[-1].ours.engine is EngineState.HUNG, seconds=2)
        before, began = len(heard), asyncio.get_running_loop().time()
        for _ in range(100):
            supervisor.tell()
            await asyncio.sleep(0)
        supervisor.engine = EngineState.UP
        supervisor.tell()
        await until(lambda: heard[-1].ours.engine is EngineState.UP, seconds=2)
        elapsed = asyncio.get_running_loop().time() - began
        assert len(heard) - before <= 1 + elapsed / 0.5


async def test_heartbeats_stay_on_time_while_vitals_and_docker_hang(
    monitor: NatsBus, bus: NatsBus, tmp_path: Path
) -> None:
    """A read of vitals that never returns, and an engine that is hung: the gaps stay what they were, and the
    heartbeat says what is known."""
    heard = await listen(monitor)
    release, reading = threading.Event(), threading.Event()

    def hanging() -> Sample:
        reading.set()
        release.wait(60)
        return sample()

    try:
        async with running_agent(bus, tmp_path, ScriptedSupervisor(engine=EngineState.HUNG), read_vitals=hanging):
            await until(reading.is_set)
            before = len(heard)
            await until(lambda: len(heard) >= before + 10)
            gaps = [later.at - earlier.at for earlier, later in zip(heard[before:], heard[before + 1 :], strict=False)]
            assert max(gaps) < 0.2 * 3, f"interval 0.2 s, gaps {gaps}"
            assert heard[-1].beat.job_state == "unknown"
            assert heard[-1].beat.vitals == {}
    finally:
        release.set()


async def test_nothing_is_saved_up_while_the_bus_is_away(server: NatsServer, tmp_path: Path) -> None:
    """After an outage the first heartbeat is fresh: none of those that could not be sent comes late."""
    bus, monitor = await connect(server, "agent"), await connect(server, "monitor")
    heard = await listen(monitor)
    try:
        async with running_agent(bus, tmp_path) as agent:
            await until(lambda: len(heard) >= 2)
            await server.stop()
            await until(lambda: not bus.connected)
            await until(lambda: agent.shell.contact.isolated, what="the lease is over")
            assert agent.shell.facts().isolated, "what a heartbeat would say now"
            during, count = agent.shell.heartbeater.sequence, len(heard)
            await server.start()
            await until(lambda: len(heard) > count, seconds=20)
            assert heard[count].sequence > during, "made after the outage, not before"
            await until(lambda: not heard[-1].ours.isolated, what="contact is proven again")
    finally:
        await bus.close()
        await monitor.close()


@pytest.mark.parametrize("on_isolation", list(OnIsolation))
async def test_isolation_stops_containers_only_where_the_group_says_so(
    server: NatsServer, tmp_path: Path, on_isolation: OnIsolation
) -> None:
    """`keep` changes nothing on the VM; `stop` stops the writers until the centre is back."""
    bus = await connect(server, "agent")
    try:
        async with running_agent(bus, tmp_path) as agent:
            await agent.desired.apply(make_spec(on_isolation=on_isolation))
            await server.stop()
            await until(lambda: agent.shell.contact.isolated)
            assert agent.supervisor.isolated is (on_isolation is OnIsolation.STOP)
            await server.start()
            await until(lambda: not agent.shell.contact.isolated, seconds=20)
            assert not agent.supervisor.isolated
    finally:
        await bus.close()


async def test_supervision_does_not_wait_for_the_bus(tmp_path: Path) -> None:
    """Nobody listens at the bus's address: what was kept is handed to the supervisor all the same."""
    bus = await NatsBus.open(BusSettings(urls=("nats://127.0.0.1:1",)), "agent")
    try:
        async with running_agent(bus, tmp_path) as first:
            await first.desired.apply(make_spec(3))
        supervisor = ScriptedSupervisor()
        async with running_agent(bus, tmp_path, supervisor):
            await until(lambda: supervisor.spec == make_spec(3))
    finally:
        await bus.close()


async def test_a_heartbeat_of_very_many_containers_still_goes_out(
    monitor: NatsBus, bus: NatsBus, tmp_path: Path
) -> None:
    """Beyond the limit, details and then healthy containers are left out: the failing one is always told of."""

    class Crowded(ScriptedSupervisor):
        def report(self) -> ScriptedReport:
            crowd = tuple(
                ContainerReport(f"container-{number}", ContainerState.RUNNING, detail="x" * 300, image_id="y" * 71)
                for number in range(3000)
            )
            failing = ContainerReport("sick", ContainerState.CRASH_LOOP, detail="z" * 300)
            return ScriptedReport((*crowd, failing), EngineState.UP, settled=True)

    heard = await listen(monitor)
    async with running_agent(bus, tmp_path, Crowded()):
        await until(lambda: heard)
        first = heard[0]
        names = [item.name for item in first.ours.containers]
        assert "sick" in names
        assert len(names) > 1000
        assert first.beat.number_of_processes == 3001
        assert first.beat.job_state == "failing"


async def test_the_interval_of_the_specification_is_taken_up_at_once(
    monitor: NatsBus, bus: NatsBus, tmp_path: Path
) -> None:
    """From once a minute to five times a second, without waiting for the minute to pass."""
    heard = await listen(monitor)
    settings = make_settings(heartbeat_interval_seconds=60.0, lease_seconds=180.0)
    async with running_agent(bus, tmp_path, settings=settings) as agent:
        await until(lambda: heard)
        await agent.desired.apply(replace(make_spec(), heartbeat_interval_seconds=0.2))
        before = len(heard)
        await until(lambda: len(heard) >= before + 5, seconds=5)


async def test_a_stopped_container_is_no_failure(monitor: NatsBus, bus: NatsBus, tmp_path: Path) -> None:
    """What a person stopped is as it should be; job_state stays running while others run."""
    heard = await listen(monitor)
    async with running_agent(bus, tmp_path) as agent:
        await agent.desired.apply(make_spec())
        await agent.desired.stop((ContainerName("exporter"),))
        await until(
            lambda: (
                heard
                and ContainerState.STOPPED in [item.state for item in heard[-1].ours.containers]
                and heard[-1].beat.job_state == "running"
            )
        )
        await agent.desired.stop(())
        await until(lambda: heard[-1].beat.job_state == "stopped" and heard[-1].ours.wanted == "stopped")
