"""What every engine keeps: the real one and the simulated one pass the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agent.engine import (
    ActualContainer,
    Engine,
    EngineEvent,
    EngineRefused,
    EngineUnavailable,
    Health,
    ImageMissing,
    PortInUse,
    Probe,
    Status,
)
from protocol.ids import ContainerName
from protocol.spec import ContainerSpec, Healthcheck, Port, spec_hash
from tests.simulation.engine import SimulatedEngine
from tests.support.dockerd import IMAGE, SECOND_IMAGE, OwnDocker, own_docker
from tests.support.waiting import until

INSTANCE = "shop/db/0"


class Simulated:
    """The world around a simulated engine, as these tests need it."""

    def __init__(self) -> None:
        self.engine = SimulatedEngine(images={IMAGE, SECOND_IMAGE})

    def end_daemon(self) -> None:
        self.engine.kill_daemon()

    def take_port(self, number: int) -> None:
        self.engine.ports_taken.add(number)

    async def close(self) -> None:
        """Nothing to give back."""


class Real:
    def __init__(self, docker: OwnDocker) -> None:
        self._docker = docker
        self.engine = docker.engine()

    def end_daemon(self) -> None:
        self._docker.kill_daemon()

    def take_port(self, number: int) -> None:
        self._docker.hold_port(number)

    async def close(self) -> None:
        self._docker.release_ports()
        await self._docker.start()
        self._docker.remove_all()


@pytest.fixture(scope="module")
def docker() -> Iterator[OwnDocker]:
    with own_docker() as docker:
        yield docker


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.docker)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[Simulated | Real]:
    world = Simulated() if request.param == "simulated" else Real(request.getfixturevalue("docker"))
    yield world
    await world.close()


@pytest.fixture
def engine(world: Simulated | Real) -> Engine:
    return world.engine


def container(name: str = "redis", **options: Any) -> ContainerSpec:
    options.setdefault("command", ("sleep", "100000"))
    options.setdefault("network_mode", "none")
    options.setdefault("stop_signal", "SIGKILL")
    return ContainerSpec(ContainerName(name), options.pop("image", IMAGE), **options)


async def only(engine: Engine) -> ActualContainer:
    (found,) = await engine.look()
    return found


async def test_the_life_of_a_container(engine: Engine) -> None:
    """Created, running, stopped, started again, removed: what `look` says of each; a run has a name of its own."""
    assert await engine.probe() is Probe.ANSWERED
    assert await engine.look() == ()
    container_id = await engine.create(INSTANCE, container(), {})
    created = await only(engine)
    assert (created.container_id, created.name, created.instance) == (container_id, "redis", INSTANCE)
    assert (created.status, created.run, created.spec_hash) == (Status.CREATED, "", spec_hash(container()))
    await engine.start(container_id)
    first = await only(engine)
    assert (first.status, first.health) == (Status.RUNNING, Health.NONE)
    assert first.run != ""
    assert first.pid > 0
    await engine.stop(container_id, 1.0)
    stopped = await only(engine)
    assert (stopped.status, stopped.run) == (Status.EXITED, first.run)
    assert stopped.exit_code != 0
    await engine.start(container_id)
    second = await only(engine)
    assert second.run not in ("", first.run)
    await engine.stop(container_id, 1.0)
    await engine.remove(container_id)
    assert await engine.look() == ()


async def test_calls_may_be_repeated(engine: Engine) -> None:
    """Creating the same gives the same id; starting what runs, stopping and removing what is not there are fine."""
    container_id = await engine.create(INSTANCE, container(), {})
    assert await engine.create(INSTANCE, container(), {}) == container_id
    await engine.start(container_id)
    run = (await only(engine)).run
    await engine.start(container_id)
    assert (await only(engine)).run == run
    for _ in range(2):
        await engine.stop(container_id, 1.0)
    for _ in range(2):
        await engine.remove(container_id)
    await engine.stop(container_id, 1.0)


async def test_definite_refusals(engine: Engine) -> None:
    """Another specification under a taken name, the removal of what runs, the start of what is not there."""
    container_id = await engine.create(INSTANCE, container(), {})
    with pytest.raises(EngineRefused, match="taken"):
        await engine.create(INSTANCE, container(image=SECOND_IMAGE), {})
    await engine.start(container_id)
    with pytest.raises(EngineRefused):
        await engine.remove(container_id)
    with pytest.raises(EngineRefused):
        await engine.start("f" * 64)


async def test_missing_images(engine: Engine) -> None:
    """Present or not; creation from a missing one, and pulling what no registry has, name it."""
    assert await engine.image_present(IMAGE)
    assert not await engine.image_present("localhost:1/none:1")
    with pytest.raises(ImageMissing, match="none:1"):
        await engine.create(INSTANCE, container(image="localhost:1/none:1"), {})
    with pytest.raises(ImageMissing, match="none:1"):
        await engine.pull("localhost:1/none:1")


async def test_a_taken_port(engine: Engine, world: Simulated | Real) -> None:
    """Starting a container whose port somebody holds."""
    world.take_port(28765)
    spec = container(network_mode="", ports=(Port(80, 28765),))
    container_id = await engine.create(INSTANCE, spec, {})
    with pytest.raises(PortInUse, match="28765"):
        await engine.start(container_id)


async def test_health(engine: Engine) -> None:
    """Starting first, then what the check says."""
    check = Healthcheck(("CMD", "true"), interval_seconds=0.5, timeout_seconds=5.0)
    container_id = await engine.create(INSTANCE, container(healthcheck=check), {})
    await engine.start(container_id)
    assert (await only(engine)).health is Health.STARTING

    async def is_healthy() -> bool:
        return (await only(engine)).health is Health.HEALTHY

    await until(is_healthy, 15, "healthy")


async def test_events_begin_with_the_open_stream_and_name_the_container(engine: Engine) -> None:
    """The first event says that the stream is open; a start is told after it."""
    container_id = await engine.create(INSTANCE, container(), {})
    stream = engine.events()
    assert await anext(stream) == EngineEvent("", "connected")
    await engine.start(container_id)
    async with asyncio.timeout(10):
        event = await anext(stream)
        while event.action != "start":
            event = await anext(stream)
    assert event.container == container_id
    await stream.aclose()  # type: ignore[attr-defined]


async def test_without_a_daemon(engine: Engine, world: Simulated | Real) -> None:
    """Nobody accepts: the probe says so, calls are unavailable, the event stream ends."""
    stream = engine.events()
    await anext(stream)
    world.end_daemon()
    async with asyncio.timeout(10):
        async for _ in stream:
            pass
    assert await engine.probe() is Probe.REFUSED
    with pytest.raises(EngineUnavailable):
        await engine.look()
    with pytest.raises(EngineUnavailable):
        await engine.create(INSTANCE, container(), {})


async def test_networks_and_logs(engine: Engine) -> None:
    """Networks may be asked for again; logs of a container that is not there are refused."""
    await engine.ensure_networks(("resurgam-test",))
    await engine.ensure_networks(("resurgam-test",))
    container_id = await engine.create(INSTANCE, container(network_mode="", networks=("resurgam-test",)), {})
    await engine.start(container_id)
    assert await engine.logs(container_id, 10) == ""
    with pytest.raises(EngineRefused):
        await engine.logs("f" * 64, 10)
