"""A Docker Engine in memory, on the loop's clock, that lies as real ones do: it hangs, dies, loses events, answers
after it acted and then says it did not.

Law: it keeps the port's promises (`tests/contract/test_engine.py`) as long as nobody asks for a fault.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from agent.engine import (
    ActualContainer,
    EngineEvent,
    EngineRefused,
    EngineUnavailable,
    Health,
    ImageMissing,
    PortInUse,
    Probe,
    Status,
)
from agent.image_tasks import Fetching, ImagesOneByOne, WantedImage
from agent.images import Images
from protocol.ids import ContainerName
from protocol.spec import ContainerSpec, spec_hash


class EngineFault(Enum):
    NONE = "none"
    DEAD = "dead"  # nobody accepts
    HUNG = "hung"  # accepts, never answers


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of the loop."""

    look: float = 0.01
    call: float = 0.05
    start: float = 0.2
    pull: float = 2.0
    stop: float = 0.1
    deadline: float = 10.0  # after which a call on a hung engine is EngineUnavailable
    health_after: float = 1.0  # from start to the first word of a health check


@dataclass
class Behaviour:
    """How containers of one image behave. `ends_after_seconds`: by themselves, with `exit_code`."""

    ends_after_seconds: float | None = None
    exit_code: int = 0
    becomes: Health = Health.HEALTHY
    ignores_stop: bool = False  # until SIGKILL after the grace


@dataclass
class _Container:
    seen: ActualContainer
    spec: ContainerSpec
    mounts: dict[str, str] = field(default_factory=dict)
    oom_kills: int = 0


class SimulatedEngine:
    """One VM's engine. `writers(directory)` tells who has a directory mounted now."""

    def __init__(self, timing: Timing | None = None, images: set[str] | None = None) -> None:
        self.timing = timing or Timing()
        self.images: set[str] | None = images  # None: every image is here
        self.registry: set[str] = set()
        self.behaviours: dict[str, Behaviour] = {}
        self.ports_taken: set[int] = set()
        self.fault = EngineFault.NONE
        self.loses_events = False
        self.events_lie = False
        """Events come twice, of containers that are not there, and say the opposite of what happened."""
        self.lies_late = 0
        """So many calls from now on take effect and then say EngineUnavailable."""
        self.starts: list[tuple[float, str]] = []  # when which container ran anew
        self.stops: list[tuple[float, str]] = []
        self._containers: dict[str, _Container] = {}
        self._networks: set[str] = set()
        self._listeners: list[asyncio.Queue[EngineEvent | None]] = []
        self._serial = 0

    # The port.

    async def probe(self) -> Probe:
        if self.fault is EngineFault.DEAD:
            return Probe.REFUSED
        if self.fault is EngineFault.HUNG:
            await asyncio.sleep(3.0)
            return Probe.SILENT
        await asyncio.sleep(self.timing.look)
        return Probe.ANSWERED

    async def look(self) -> tuple[ActualContainer, ...]:
        await self._answer(self.timing.look)
        return tuple(container.seen for container in self._containers.values())

    async def events(self) -> AsyncIterator[EngineEvent]:
        await self._answer(self.timing.look)
        queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield EngineEvent("", "connected")
            while (event := await queue.get()) is not None:
                yield event
        finally:
            if queue in self._listeners:
                self._listeners.remove(queue)

    async def image_present(self, image: str) -> bool:
        await self._answer(self.timing.look)
        return self.images is None or image in self.images

    async def pull(self, image: str) -> None:
        await self._answer(self.timing.pull)
        if self.images is not None and image not in self.registry:
            raise ImageMissing(f"{image}: not in the registry")
        if self.images is not None:
            self.images.add(image)
        self._maybe_lie()

    async def create(self, instance: str, container: ContainerSpec, mounts: dict[str, str]) -> str:
        await self._answer(self.timing.call)
        if self.images is not None and container.image not in self.images:
            raise ImageMissing(f"No such image: {container.image}")
        for other in self._containers.values():
            if other.seen.name == container.name:
                if other.seen.instance == instance and other.seen.spec_hash == spec_hash(container):
                    return other.seen.container_id
                raise EngineRefused(f"the name {container.name} is taken")
        self._serial += 1
        container_id = f"{self._serial:064x}"
        seen = ActualContainer(
            container_id, container.name, instance, spec_hash(container), Status.CREATED, image_id=container.image
        )
        self._containers[container_id] = _Container(seen, container, dict(mounts))
        self._tell(container_id, "create")
        self._maybe_lie()
        return container_id

    async def start(self, container_id: str) -> None:
        await self._answer(self.timing.start)
        container = self._containers.get(container_id)
        if container is None:
            raise EngineRefused(f"no such container {container_id[-12:]}")
        if container.seen.status is Status.RUNNING:
            return
        wanted = {port.host_port for port in container.spec.ports if port.host_port}
        held = self.ports_taken | {
            port.host_port
            for other in self._containers.values()
            if other.seen.status is Status.RUNNING
            for port in other.spec.ports
        }
        if wanted & held:
            raise PortInUse(f"port {min(wanted & held)} is already allocated")
        self._run(container)
        self._maybe_lie()

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        await self._answer(self.timing.stop)
        container = self._containers.get(container_id)
        if container is None or container.seen.status not in (Status.RUNNING, Status.PAUSED):
            return
        run = container.seen.run
        ignores = self._behaviour(container).ignores_stop
        if ignores:
            await asyncio.sleep(grace_seconds)
        if container.seen.run == run and container.seen.status in (Status.RUNNING, Status.PAUSED):
            self.stops.append((asyncio.get_running_loop().time(), container.seen.name))
            self._end(container, 137 if ignores else 143)
        self._maybe_lie()

    async def remove(self, container_id: str) -> None:
        await self._answer(self.timing.call)
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.seen.status in (Status.RUNNING, Status.PAUSED):
            raise EngineRefused("cannot remove a running container")
        self._forget(container_id)
        self._maybe_lie()

    async def logs(self, container_id: str, lines: int) -> str:
        await self._answer(self.timing.call)
        if container_id not in self._containers:
            raise EngineRefused(f"no such container {container_id[-12:]}")
        return ""

    async def ensure_networks(self, names: tuple[str, ...]) -> None:
        await self._answer(self.timing.call)
        self._networks |= set(names)

    async def load_image(self, path: str) -> tuple[str, ...]:
        await self._answer(self.timing.call)
        if self.images is not None:
            self.images.add(path)
        return (path,)

    # Its daemon (agent/dockerd.py) and its kill counters (agent/oom.py).

    async def restart_daemon(self) -> None:
        """Containers survive, streams end."""
        self.kill_daemon()
        await asyncio.sleep(self.timing.start)
        self.fault = EngineFault.NONE

    def kills(self, pid: int) -> int | None:
        for container in self._containers.values():
            if container.seen.pid == pid and pid:
                return container.oom_kills
        return None

    # What befalls it.

    def kill_daemon(self) -> None:
        self.fault = EngineFault.DEAD
        listeners, self._listeners = self._listeners, []
        for queue in listeners:
            queue.put_nowait(None)

    def hang_daemon(self) -> None:
        self.fault = EngineFault.HUNG

    def crash(self, name: str, exit_code: int = 137, oom: bool = False) -> None:
        container = self._named(name)
        if container.seen.status is Status.RUNNING:
            container.seen = replace(container.seen, oom_killed=oom)
            self._end(container, exit_code)

    def kill_child_for_memory(self, name: str) -> None:
        container = self._named(name)
        container.oom_kills += 1
        self._tell(container.seen.container_id, "oom")

    def set_health(self, name: str, health: Health) -> None:
        container = self._named(name)
        container.seen = replace(container.seen, health=health)
        self._tell(container.seen.container_id, f"health_status: {health.value}")

    def set_status(self, name: str, status: Status) -> None:
        container = self._named(name)
        container.seen = replace(container.seen, status=status)
        self._tell(container.seen.container_id, status.value)

    def delete(self, name: str) -> None:
        """As `docker rm -f` by a person."""
        self._forget(self._named(name).seen.container_id)

    def reboot(self) -> None:
        """Everything ends at once, as when the VM is reset; the daemon is up again."""
        for container in self._containers.values():
            if container.seen.status in (Status.RUNNING, Status.PAUSED):
                self._end(container, 255)
        self.fault = EngineFault.NONE

    def running(self) -> dict[str, str]:
        """Run by name."""
        return {
            container.seen.name: container.seen.run
            for container in self._containers.values()
            if container.seen.status is Status.RUNNING
        }

    def all(self) -> tuple[ActualContainer, ...]:
        return tuple(container.seen for container in self._containers.values())

    def writers(self, directory: str) -> set[str]:
        return {
            container.seen.container_id
            for container in self._containers.values()
            if container.seen.status is Status.RUNNING and directory in container.mounts.values()
        }

    # Inside.

    async def _answer(self, seconds: float) -> None:
        if self.fault is EngineFault.DEAD:
            raise EngineUnavailable("connection refused")
        if self.fault is EngineFault.HUNG:
            await asyncio.sleep(self.timing.deadline)
            raise EngineUnavailable(f"no answer within {self.timing.deadline:g} s")
        await asyncio.sleep(seconds)
        if self.fault is not EngineFault.NONE:
            raise EngineUnavailable("connection reset")

    def _maybe_lie(self) -> None:
        if self.lies_late > 0:
            self.lies_late -= 1
            raise EngineUnavailable("the answer came too late")

    def _run(self, container: _Container) -> None:
        loop = asyncio.get_running_loop()
        self._serial += 1
        behaviour = self._behaviour(container)
        has_check = container.spec.healthcheck is not None
        container.oom_kills = 0
        container.seen = replace(
            container.seen,
            status=Status.RUNNING,
            health=Health.STARTING if has_check else Health.NONE,
            run=f"{container.seen.container_id[-12:]}@{self._serial:08d}",
            pid=self._serial,
            exit_code=0,
            oom_killed=False,
        )
        self.starts.append((loop.time(), container.seen.name))
        self._tell(container.seen.container_id, "start")
        run = container.seen.run
        if has_check:
            self._later(self.timing.health_after, self._when_same, container, run, self._first_health)
        if behaviour.ends_after_seconds is not None:
            code = behaviour.exit_code
            self._later(
                behaviour.ends_after_seconds, self._when_same, container, run, lambda which: self._end(which, code)
            )

    def _later(self, seconds: float, what: Callable[..., None], *arguments: object) -> None:
        """In nobody's context: what happens to a container does not hang on the agent that started it."""
        asyncio.get_running_loop().call_later(seconds, what, *arguments, context=contextvars.Context())

    def _when_same(self, container: _Container, run: str, then: Callable[[_Container], None]) -> None:
        if container.seen.run == run and container.seen.status is Status.RUNNING:
            then(container)

    def _first_health(self, container: _Container) -> None:
        if container.seen.health is Health.STARTING:
            self.set_health(container.seen.name, self._behaviour(container).becomes)

    def _end(self, container: _Container, exit_code: int) -> None:
        container.seen = replace(container.seen, status=Status.EXITED, health=Health.NONE, pid=0, exit_code=exit_code)
        self._tell(container.seen.container_id, "die")

    def _forget(self, container_id: str) -> None:
        del self._containers[container_id]
        self._tell(container_id, "destroy")

    def _behaviour(self, container: _Container) -> Behaviour:
        return self.behaviours.get(container.spec.image, Behaviour())

    def _named(self, name: str) -> _Container:
        for container in self._containers.values():
            if container.seen.name == ContainerName(name):
                return container
        raise KeyError(name)

    def _tell(self, container_id: str, action: str) -> None:
        if self.loses_events or self.fault is not EngineFault.NONE:
            return
        for queue in self._listeners:
            queue.put_nowait(EngineEvent(container_id, action))
            if self.events_lie:
                queue.put_nowait(EngineEvent(container_id, action))
                queue.put_nowait(EngineEvent(container_id, "start" if action == "die" else "die"))
                queue.put_nowait(EngineEvent(f"{self._serial + 7:064x}", "destroy"))


class FetchedImages:
    """`agent.image_tasks.FetchImages` where there is no store."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._images = Images(engine)

    def begin(self, wanted: tuple[WantedImage, ...], rate_bytes: int) -> Fetching:
        return ImagesOneByOne(self._images, wanted)


class SimulatedDaemon:
    """`agent.dockerd.DockerDaemon` for a SimulatedEngine."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self.starts = 0
        self.hard_restarts = 0

    async def start(self) -> None:
        self.starts += 1
        if self._engine.fault is EngineFault.DEAD:
            await self._engine.restart_daemon()

    async def restart_hard(self) -> None:
        self.hard_restarts += 1
        await self._engine.restart_daemon()


class MemoryNotes:
    """`agent.supervisor.NotesStore` that outlives a supervisor."""

    def __init__(self) -> None:
        self.notes: dict[str, object] = {}
        self.saves = 0

    def load(self) -> dict[str, object]:
        return dict(self.notes)

    def save(self, notes: dict[str, object]) -> None:
        self.notes = dict(notes)
        self.saves += 1
