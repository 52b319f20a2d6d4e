"""An agent without Docker: the real shell, with a scripted supervisor and scripted disks."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.core.desired import Held, Place
from agent.core.mount_table import Mounted
from agent.core.vitals_shape import CpuTimes, Sample
from agent.desired_state import DesiredState, Seen
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import DiskBusy, DiskMissing
from agent.lone_thread import LoneThread
from agent.shell import AgentShell
from agent.store import Store
from agent.vitals import Vitals
from protocol import envelope, heartbeat
from protocol.bus import Bus, Message
from protocol.envelope import Request
from protocol.heartbeat import ContainerReport, ContainerState, EngineState, Extension, Heartbeat
from protocol.ids import (
    AgentId,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    Revision,
    VmCid,
)
from protocol.settings import AgentSettings, BusSettings
from protocol.spec import ContainerSpec, DiskSpec, InstanceSpec, Wanted
from tests.simulation.engine import FetchedImages, SimulatedEngine

AGENT = AgentId("agent-1")
INSTANCE = InstanceId("shop/db/0")
GENERATION = Generation(3)
BOOT = "11111111-2222-3333-4444-555555555555"


def make_spec(revision: int = 1, **changes: Any) -> InstanceSpec:
    spec = InstanceSpec(
        instance=INSTANCE,
        deployment=DeploymentName("shop"),
        group="db",
        index=0,
        generation=GENERATION,
        revision=Revision(revision),
        containers=(
            ContainerSpec(ContainerName("redis"), "redis:7"),
            ContainerSpec(ContainerName("exporter"), "exporter:1"),
        ),
        heartbeat_interval_seconds=0.2,
        lease_seconds=1.0,
    )
    return replace(spec, **changes)


def make_settings(**changes: Any) -> AgentSettings:
    settings = AgentSettings(
        agent_id=AGENT,
        bus=BusSettings(urls=("nats://127.0.0.1:4222",)),
        generation=GENERATION,
        instance=INSTANCE,
        vm_cid=VmCid("vm-1"),
        heartbeat_interval_seconds=0.2,
        lease_seconds=1.0,
    )
    return replace(settings, **changes)


@dataclass(frozen=True)
class ScriptedReport:
    containers: tuple[ContainerReport, ...]
    engine: EngineState
    settled: bool


@dataclass
class ScriptedSupervisor:
    """Does at once what it is told, and writes down what that was."""

    engine: EngineState = EngineState.UP
    spec: InstanceSpec | None = None
    disks: dict[DiskName, str] = field(default_factory=dict)
    isolated: bool = False
    draining: bool = False
    restarted: list[tuple[ContainerName, ...]] = field(default_factory=list)
    states: dict[ContainerName, ContainerState] = field(default_factory=dict)
    slow_to_stop: bool = False
    hold_drain: asyncio.Event | None = None
    _callbacks: list[Callable[[], None]] = field(default_factory=list)

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def set_desired(self, spec: InstanceSpec | None) -> None:
        self.spec = spec
        self.draining = False
        self.states = {}
        for container in spec.containers if spec is not None else ():
            stopped = spec is not None and (spec.wanted is Wanted.STOPPED or container.name in spec.stopped_containers)
            stopping = ContainerState.STOPPING if self.slow_to_stop else ContainerState.STOPPED
            self.states[container.name] = stopping if stopped else ContainerState.RUNNING
        self.tell()

    def set_disks(self, mounts: Mapping[DiskName, str]) -> None:
        self.disks = dict(mounts)

    def set_isolated(self, isolated: bool) -> None:
        self.isolated = isolated

    def report(self) -> ScriptedReport:
        reports = tuple(ContainerReport(name, state) for name, state in self.states.items())
        return ScriptedReport(reports, self.engine, settled=True)

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def tell(self) -> None:
        for callback in self._callbacks:
            callback()

    async def drain(self, deadline_seconds: float) -> None:
        self.draining = True
        if self.hold_drain is not None:
            await self.hold_drain.wait()
        self.states = dict.fromkeys(self.states, ContainerState.STOPPED)

    def undrain(self) -> None:
        self.draining = False

    def request_restart(self, names: tuple[ContainerName, ...]) -> None:
        self.restarted.append(names)

    async def logs(self, name: ContainerName, lines: int) -> str:
        return "".join(f"{name} line {number}\n" for number in range(lines))

    def current(self) -> InstanceSpec | None:
        return self.spec


class ScriptedDiskTools:
    """Mounts whatever it is asked to, unless the disk's cid says otherwise: `missing…`, `busy…`."""

    def __init__(self) -> None:
        self.mounts: dict[str, Mounted] = {}
        self.attempts: list[str] = []
        self.number = itertools.count(1)

    def directory(self, disk: DiskSpec) -> str:
        return f"/disks/{disk.name}"

    async def mount(self, disk: DiskSpec, instance: InstanceId, thread: LoneThread, wait_seconds: float) -> str:
        self.attempts.append(disk.cid)
        if disk.cid.startswith("missing"):
            raise DiskMissing(f"no device for {disk.cid} within 0 s; is it attached?")
        directory = self.directory(disk)
        self.mounts[directory] = Mounted("1:3", "/", directory, frozenset({"rw"}), "ext4", disk.device)
        return directory

    async def unmount(self, disk: DiskSpec, thread: LoneThread) -> bool:
        if disk.cid.startswith("busy"):
            raise DiskBusy(f"{disk.name} is in use by bash (pid 1)")
        return self.mounts.pop(self.directory(disk), None) is not None

    def mounted_anywhere(self, cid: DiskCid) -> tuple[str, ...]:
        return ()

    def table(self) -> tuple[Mounted, ...]:
        return tuple(self.mounts.values())


def boot_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def sample() -> Sample:
    return Sample(CpuTimes(1, 2, 3, 10), (0.5, 0.25, 0.125), 512 * 1024, 1024 * 1024, 0, 0, 1234.5)


class ScriptedCopies:
    """Copies that take as long as the test lets them. `copied`: each pair that was asked for."""

    def __init__(self) -> None:
        self.copied: list[tuple[DiskCid, DiskCid]] = []
        self.released: list[tuple[DiskCid, ...]] = []
        self.may_end = asyncio.Event()
        self.done = 0

    def progress(self) -> dict[str, Any] | None:
        return {"bytes_done": self.done, "bytes_total": 100, "bytes_per_second": 10}

    async def use(self, cid: DiskCid) -> dict[str, Any]:
        return {"used_bytes": 1024}

    async def copy(self, source: DiskSpec, target: DiskSpec, instance: InstanceId) -> dict[str, Any]:
        self.copied.append((source.cid, target.cid))
        await self.may_end.wait()
        return {"used_bytes": 1024, "inodes": 1, "seconds": 1.0}

    async def release(self, *cids: DiskCid) -> None:
        self.released.append(cids)


class RunningAgent:
    def __init__(
        self,
        bus: Bus,
        directory: Path,
        supervisor: ScriptedSupervisor,
        settings: AgentSettings,
        read_vitals: Callable[[], Sample] = sample,
    ) -> None:
        store = Store(directory)
        self.supervisor = supervisor
        self.tools = ScriptedDiskTools()
        self.copies = ScriptedCopies()
        self.hostnames: list[str] = []
        self.desired = DesiredState(
            store.document("held", Held),
            store.document("seen", Seen),
            settings.instance,
            settings.generation,
            BOOT,
            place=store.document("place", Place),
        )
        self.disks = DiskKeeper(
            self.tools,
            store.document("disks", KnownDisks),
            on_mounts=supervisor.set_disks,
            on_change=supervisor.tell,
            read_mounts=self.tools.table,
        )
        ids = itertools.count(1)
        self.engine = SimulatedEngine(images=set())
        self.shell = AgentShell(
            settings=settings,
            version="0.test",
            boot_id=BOOT,
            bus=bus,
            supervisor=supervisor,
            desired=self.desired,
            disks=self.disks,
            copies=self.copies,
            vitals=Vitals(read_vitals),
            boot_seconds=boot_seconds,
            new_id=lambda: f"task-{next(ids)}",
            images=FetchedImages(self.engine),
            set_hostname=self.hostnames.append,
        )


@asynccontextmanager
async def running_agent(
    bus: Bus,
    directory: Path,
    supervisor: ScriptedSupervisor | None = None,
    settings: AgentSettings | None = None,
    read_vitals: Callable[[], Sample] = sample,
) -> AsyncIterator[RunningAgent]:
    agent = RunningAgent(bus, directory, supervisor or ScriptedSupervisor(), settings or make_settings(), read_vitals)
    task = asyncio.create_task(agent.shell.run(), name="agent")
    try:
        yield agent
    finally:
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(outcome, asyncio.CancelledError):
            raise AssertionError(f"the agent ended by itself: {outcome!r}") from outcome


class Caller:
    """The centre's side of commands: sends a body, waits for the answer on a subject of its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = itertools.count(1)
        self._answers: dict[str, asyncio.Queue[bytes]] = {}

    async def open(self) -> Caller:
        await self._bus.subscribe("director.test.>", self._heard)
        return self

    async def call(self, method: str, *arguments: Any, generation: int | None = None, seconds: float = 10) -> Any:
        """The value; RequestRefused with the agent's message."""
        subject = self.new_subject()
        request = Request(method, arguments, subject, generation=None if generation is None else Generation(generation))
        return envelope.decode_reply(await self.send(envelope.encode_request(request), subject, seconds))

    async def call_to_end(self, method: str, *arguments: Any) -> Any:
        """The value of a task, once it is done."""
        value = await self.call(method, *arguments)
        if not (isinstance(value, dict) and value.get("state") == "running"):
            raise AssertionError(f"{method} did not begin a task: {value!r}")
        return await self.call("get_task", value["agent_task_id"], {"wait_seconds": 10}, seconds=15)

    def new_subject(self) -> str:
        subject = f"director.test.{AGENT}.{next(self._numbers)}"
        self._answers[subject] = asyncio.Queue()
        return subject

    async def send(self, payload: bytes, subject: str, seconds: float = 10) -> bytes:
        await self._bus.publish(f"agent.{AGENT}", payload)
        async with asyncio.timeout(seconds):
            return await self._answers[subject].get()

    def answers_left(self, subject: str) -> int:
        return self._answers[subject].qsize()

    def _heard(self, message: Message) -> None:
        queue = self._answers.get(message.subject)
        if queue is not None:
            queue.put_nowait(message.payload)


@dataclass
class Heard:
    at: float  # loop seconds
    subject: str
    beat: Heartbeat

    @property
    def ours(self) -> Extension:
        """Our keys, which every heartbeat of our agent has."""
        assert self.beat.resurgam is not None
        return self.beat.resurgam

    @property
    def sequence(self) -> int:
        return self.ours.sequence


async def listen(bus: Bus) -> list[Heard]:
    """Every heartbeat from now on, in the list that is returned."""
    heard: list[Heard] = []

    def note(message: Message) -> None:
        now = asyncio.get_running_loop().time()
        heard.append(Heard(now, message.subject, heartbeat.decode(message.payload)))

    await bus.subscribe("hm.agent.heartbeat.*", note)
    return heard


def captured(directory: Path, pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """Real messages of a bosh-agent: file name and content."""
    return [(path.name, json.loads(path.read_text())) for path in sorted(directory.glob(pattern))]
