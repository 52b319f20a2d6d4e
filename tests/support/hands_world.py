"""A world for the resurrector: simulated bus and cloud, agents that do as they are told, and monitors that can be
killed at any named point.

The judgement is told from the cloud's truth: a VM that was heard once and does not run is missing. How a monitor
really comes to that is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from healthmonitor.agent_client import AgentClient
from healthmonitor.clouds.cloud import Power
from healthmonitor.core.judgement import Judgement, Missing, Verdict
from healthmonitor.core.maintenance_changes import name_of_open
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest, UpdatePolicy, VmSize
from healthmonitor.core.policy import LeadershipPolicy, Policy, ResurrectionPolicy
from healthmonitor.core.records import (
    DeploymentRecord,
    InstanceRecord,
    Operation,
    RolloutState,
    SpareRecord,
    SpareState,
    VmBinding,
)
from healthmonitor.journal import Journal, Superseded
from healthmonitor.leadership import Leadership
from healthmonitor.resurrector import Resurrector
from protocol import codec, envelope, heartbeat, subjects
from protocol.bus import BusUnavailable, Message
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    DiskReport,
    DiskState,
    EngineState,
    Extension,
    Glance,
    Heartbeat,
)
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    InstanceId,
    MonitorId,
    Revision,
    VmCid,
    instance_id,
)
from protocol.settings import BusSettings
from protocol.spec import ContainerSpec, InstanceSpec, Wanted, spec_hash
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.cloud import Machine, SimulatedCloud, SimulatedVm, settings_of
from tests.simulation.loop import Process, SimulatedLoop

BOOT_SECONDS = 2.0
COPY_SECONDS = 3.0
HEARTBEAT_SECONDS = 1.0
CLOUD = CloudName("local")
SHOP = DeploymentName("shop")
UNIX_EPOCH = 1_700_000_000.0


class Killed(BaseException):
    """The monitor was killed here. Not an Exception: nothing may catch it."""


def policy(**changes: Any) -> Policy:
    resurrection = ResurrectionPolicy(
        enabled=True, agent_boot_seconds=30.0, healthy_seconds=20.0, drain_seconds=5.0, cloud_call_seconds=10.0
    )
    return Policy(
        resurrection=replace(resurrection, **changes), leadership=LeadershipPolicy(ttl_seconds=5.0, renew_seconds=1.0)
    )


def group(
    name: str = "db",
    instances: int = 1,
    image: str = "redis:7",
    disks: Mapping[str, int] | None = None,
    update: UpdatePolicy | None = None,
    **changes: Any,
) -> InstanceGroup:
    sizes = {"data": 1024} if disks is None else disks
    made = InstanceGroup(
        name=name,
        instances=instances,
        vm=VmSize(),
        stemcell="debian-12",
        cloud=CLOUD,
        disks=tuple(DiskRequirement(DiskName(disk), size_mib) for disk, size_mib in sizes.items()),
        containers=(ContainerSpec(ContainerName("redis"), image),),
        update=update or UpdatePolicy(),
    )
    return replace(made, **changes)


def deployment(*groups: InstanceGroup, revision: int = 1) -> DeploymentRecord:
    return DeploymentRecord(
        name=SHOP,
        revision=Revision(revision),
        manifest=Manifest(SHOP, groups),
        manifest_text="",
        deployed_by="anna",
        deployed_at=UNIX_EPOCH,
        rollout=RolloutState.CANARIES,
    )


@dataclass(slots=True)
class FakeVm:
    """A machine whose agent does as it is told: mounts, applies, reports. `breaks`: container images that never run."""

    world: HandsWorld
    vm: SimulatedVm
    agent: Process | None = None
    bus: SimulatedBus | None = None
    mounted: set[str] = field(default_factory=set)
    mounted_with: dict[str, dict[str, Any]] = field(default_factory=dict)  # disk → what the last mount_disk said
    filesystem_mib: dict[str, int] = field(default_factory=dict)  # as large as its disk was when it was mounted (again)
    spec: InstanceSpec | None = None
    released: dict[str, int] = field(default_factory=dict)  # disk → revision at which it was unmounted by command
    copies: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # task → from, to, when it is done
    became: tuple[str, int] | None = None  # of a spare: instance and generation
    images: set[str] = field(default_factory=set)  # that it was told to have
    pins_fetched: set[str] = field(default_factory=set)  # ids of images that it was told to have
    asked: list[str] = field(default_factory=list)  # methods, but pings
    drained: bool = False
    frozen: bool = False
    life: int = 0

    def power_on(self) -> None:
        self.life += 1
        life = self.life
        if self.vm.boots:
            self.world.loop.call_later(BOOT_SECONDS, lambda: self._boot() if life == self.life else None)

    def power_off(self, announced: bool, why: str) -> None:
        self.life += 1
        self.mounted.clear()
        self.copies.clear()
        self.drained = False
        if self.agent is not None:
            self.agent.kill()
            self.agent = None
        if self.bus is not None:
            self.world.server.client_killed(self.bus, announced)
            self.bus = None

    def freeze(self) -> None:
        if self.agent is not None:
            self.agent.freeze()

    def thaw(self) -> None:
        if self.agent is not None:
            self.agent.thaw()

    def attach(self, disk: DiskCid) -> None: ...

    def detach(self, disk: DiskCid) -> None:
        if disk in self.mounted and self.vm.can_write:
            self.world.note_failure(f"{disk} was detached from {self.vm.cid} while it was mounted")
        self.mounted.discard(disk)

    def reboot(self) -> None:
        """By itself: the agent remembers what it was told and which disks it let go, and nothing else."""
        self.power_off(True, "reboots")
        self.power_on()

    @property
    def writing(self) -> bool:
        """Whether its containers run, and write to every disk that is mounted."""
        return self.spec is not None and not self.drained and self.spec.wanted is Wanted.STARTED

    def _write(self) -> None:
        """One transaction, which is acknowledged: on every disk of the specification, when all are mounted."""
        if self.spec is None or not self.writing or not {disk.cid for disk in self.spec.disks} <= self.mounted:
            return
        for disk in self.spec.disks:
            self.world.acknowledged[disk.name] = self.world.acknowledged.get(disk.name, 0) + 1
            self.world.contents[disk.cid] = self.world.contents.get(disk.cid, 0) + 1

    def _mount_named(self) -> None:
        """As the real keeper: what the specification names, unless it was let go since."""
        for disk in self.spec.disks if self.spec is not None else ():
            let_go = self.released.get(disk.cid, -1) >= (self.spec.revision if self.spec is not None else 0)
            if not let_go and disk.cid in self.vm.attached and not self._refusal(disk.cid, disk.replaces):
                self.mounted.add(disk.cid)

    def _refusal(self, cid: str, replaces: str) -> str:
        copy_of, finished = self.world.copies_of.get(cid, ("", True))
        if copy_of and not (finished and replaces == copy_of):
            return f"{cid} is a copy of {copy_of}, {'finished' if finished else 'unfinished'}"
        return ""

    def _boot(self) -> None:
        self.agent = Process(self.world.loop, f"agent {self.vm.cid}")
        self.agent.start(self._main(), self.world.note_failure)

    async def _main(self) -> None:
        settings = settings_of(self.vm)
        bus = self.bus = await self.world.server.client(settings.agent_id).open()
        await bus.wait_connected(30.0)
        told = asyncio.Event()
        answers: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

        def heard(message: Message) -> None:
            request = envelope.decode_request(message.payload)
            ours = settings.generation if self.became is None else self.became[1]
            if request.generation not in (None, ours) and request.method != "become":
                answer = envelope.encode_exception("another generation")
            else:
                answer = self._answer(request.method, request.arguments)
            answers.put_nowait((request.reply_to, answer))
            told.set()

        await bus.subscribe(subjects.to_agent(settings.agent_id), heard)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reply(bus, answers))
            sequence = 0
            while True:
                self._mount_named()
                self._write()
                sequence += 1
                beat = heartbeat.encode(self._heartbeat(sequence))
                with contextlib.suppress(BusUnavailable):  # the next one tells
                    await bus.publish(subjects.to_monitor(subjects.AgentMessage.HEARTBEAT, settings.agent_id), beat)
                told.clear()
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await told.wait()
                except TimeoutError:
                    pass

    async def _reply(self, bus: SimulatedBus, answers: asyncio.Queue[tuple[str, bytes]]) -> None:
        while True:
            reply_to, payload = await answers.get()
            with contextlib.suppress(BusUnavailable):  # whoever asked has a deadline
                await bus.publish(reply_to, payload)

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> bytes:
        if method != "ping":
            self.asked.append(method)
        match method:
            case "ping":
                return envelope.encode_value({"pong": True, "echo": arguments[0]["echo"], "boot_id": "b"})
            case "become":
                place = (arguments[0]["instance"], arguments[0]["generation"])
                if settings_of(self.vm).instance is not None or self.became not in (None, place):
                    return envelope.encode_exception(f"it is {self.became} already")
                self.became = place
                return envelope.encode_value("became")
            case "fetch_images":
                wanted = {each["image"] for each in arguments[0]}
                self.pins_fetched |= {each["pinned"]["image_id"] for each in arguments[0] if each["pinned"]}
                lacking = sorted(wanted & self.world.unobtainable_images)
                self.images |= wanted - self.world.unobtainable_images
                had = {image: f"{image} from its registry" for image in sorted(self.images)}
                return envelope.encode_value({"had": had, "failed": dict.fromkeys(lacking, "no such image")})
            case "mount_disk" if settings_of(self.vm).instance is None and self.became is None:
                return envelope.encode_exception("this VM fills no instance yet")
            case "mount_disk":
                if DiskCid(arguments[0]) not in self.vm.attached - self.vm.half_attached:
                    return envelope.encode_exception(f"{envelope.NO_DEVICE} {arguments[0]}")
                refusal = self._refusal(arguments[0], arguments[1]["replaces"])
                if refusal:
                    self.world.note_failure(f"mounting was asked for, but {refusal}")
                    return envelope.encode_exception(refusal)
                self.world.copies_of.pop(arguments[0], None)
                self.released.pop(arguments[0], None)
                self.mounted.add(arguments[0])
                self.mounted_with[arguments[0]] = arguments[1]
                self.filesystem_mib[arguments[0]] = self.world.cloud.disks[DiskCid(arguments[0])].size_mib
                return envelope.encode_value("")
            case "unmount_disk":
                if arguments[0] in self.mounted and self._is_used(arguments[0]):
                    return envelope.encode_exception(f"disk {arguments[0]} is in use")
                self.released[arguments[0]] = self.spec.revision if self.spec is not None else 0
                self.mounted.discard(arguments[0])
                return envelope.encode_value("")
            case "remove_persistent_disk":
                self.released.pop(arguments[0], None)
                return envelope.encode_value({})
            case "disk_use":
                used = self.world.used_bytes.get(arguments[0], 1024)
                return envelope.encode_value({"used_bytes": used} if arguments[0] in self.mounted else {})
            case "copy_disk":
                return self._copy(arguments[0], arguments[1])
            case "get_task":
                return self._task(arguments[0])
            case "release_copy":
                self.copies.clear()
                return envelope.encode_value("released")
            case "list_disk":
                return envelope.encode_value(sorted(self.mounted))
            case "apply":
                before, self.spec = self.spec, codec.from_plain(InstanceSpec, arguments[0])
                if before is None or self.spec.revision > before.revision:
                    self.drained = False
                return envelope.encode_value("applied")
            case "drain":
                self.drained = True
                return envelope.encode_value(0)
            case _:
                return envelope.encode_exception(f"unknown message {method}")

    def _is_used(self, cid: str) -> bool:
        return self.writing and self.spec is not None and any(disk.cid == cid for disk in self.spec.disks)

    def _copy(self, source: dict[str, Any], target: dict[str, Any]) -> bytes:
        """As the real agent: the source is let go, the target marked; the same copy asked for again is that copy."""
        if self.world.copy_refusal:
            return envelope.encode_exception(self.world.copy_refusal)
        if source["cid"] in self.mounted and self._is_used(source["cid"]):
            return envelope.encode_exception(f"disk {source['cid']} is in use")
        if not {source["cid"], target["cid"]} <= self.vm.attached:
            return envelope.encode_exception("no device for one of them")
        self.released[source["cid"]] = self.spec.revision if self.spec is not None else 0
        self.mounted.discard(source["cid"])
        for task, (known_source, known_target, _) in self.copies.items():
            if (known_source, known_target) == (source["cid"], target["cid"]):
                return self._task(task)
        self.world.copies_of[target["cid"]] = (source["cid"], False)
        task = f"copy-{self.life}-{len(self.asked)}"
        self.copies[task] = (source["cid"], target["cid"], self.world.loop.time() + COPY_SECONDS)
        return self._task(task)

    def _task(self, task: str) -> bytes:
        if task not in self.copies:
            return envelope.encode_exception(f"Task with id {task} could not be found")
        source, target, done_at = self.copies[task]
        if self.world.loop.time() < done_at:
            progress = {"phase": "copying", "bytes_done": 512, "bytes_total": 1024, "bytes_per_second": 256}
            return envelope.encode_value({"agent_task_id": task, "state": "running", "progress": progress})
        self.world.contents[target] = self.world.contents.get(source, 0)
        self.world.copies_of[target] = (source, True)
        return envelope.encode_value({"used_bytes": 1024, "inodes": 1, "seconds": COPY_SECONDS})

    def _heartbeat(self, sequence: int) -> Heartbeat:
        spec = self.spec
        if spec is None:
            return Heartbeat(resurgam=Extension(sequence=sequence, engine=EngineState.UP))
        started = ContainerState.RUNNING if self.writing else ContainerState.STOPPED
        containers = tuple(
            ContainerReport(
                container.name,
                ContainerState.CRASH_LOOP if container.image in self.world.broken_images else started,
                spec_hash=spec_hash(container),
            )
            for container in spec.containers
        )
        return Heartbeat(
            resurgam=Extension(
                generation=spec.generation,
                revision=spec.revision,
                sequence=sequence,
                engine=EngineState.UP,
                containers=containers,
                disks=tuple(self._disk_reports()),
            )
        )

    def _disk_reports(self) -> Iterator[DiskReport]:
        """Of disks that the test has filled."""
        for cid in sorted(self.mounted & set(self.world.filled_mib)):
            size_mib, name = self.filesystem_mib[cid], self.mounted_with[cid]["name"]
            percent = 100.0 * self.world.filled_mib[cid] / size_mib
            yield DiskReport(name, DiskCid(cid), DiskState.MOUNTED, percent, 1.0, size_mib)


class HeardFleet:
    """A FleetView over what one monitor has heard."""

    def __init__(self, on_heard: Callable[[], None]) -> None:
        self._on_heard = on_heard
        self._heard: dict[AgentId, tuple[float, Heartbeat]] = {}

    def hear(self, message: Message) -> None:
        agent = subjects.agent_of(message.subject)
        assert agent is not None
        self._heard[agent] = (asyncio.get_running_loop().time(), heartbeat.decode(message.payload))
        self._on_heard()

    def verdict(self, agent: AgentId) -> Verdict:
        if agent not in self._heard:
            return Verdict.UNHEARD
        silent = asyncio.get_running_loop().time() - self._heard[agent][0]
        return Verdict.ALIVE if silent < 3.0 * HEARTBEAT_SECONDS else Verdict.MISSING

    def last_glance(self, agent: AgentId) -> Glance | None:
        said = self.last_heartbeat(agent)
        return None if said is None else heartbeat.glance(heartbeat.encode(said))

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        entry = self._heard.get(agent)
        return None if entry is None else entry[1]

    def revision(self, agent: AgentId) -> int | None:
        heard = self.last_heartbeat(agent)
        return None if heard is None or heard.resurgam is None else heard.resurgam.revision

    def heard_after(self, agent: AgentId, at_seconds: float) -> bool:
        entry = self._heard.get(agent)
        return entry is not None and entry[0] > at_seconds


@dataclass(slots=True)
class MonitorParts:
    journal: Journal
    leadership: Leadership
    resurrector: Resurrector
    fleet: HeardFleet
    agents: AgentClient
    process: Process
    bus: SimulatedBus


class HandsWorld:
    def __init__(self, seed: int = 0) -> None:
        self.random = Random(seed)
        self.loop = SimulatedLoop()
        self.server = SimulatedServer(self.random)
        self.cloud = SimulatedCloud(self._make_machine, self.random, latency_seconds=(0.01, 0.05))
        self.machines: dict[VmCid, FakeVm] = {}
        self.broken_images: set[str] = set()
        self.contents: dict[str, int] = {}
        """Transactions that are on each disk; `acknowledged`: those that somebody was told are on the disk so named."""
        self.acknowledged: dict[str, int] = {}
        self.copies_of: dict[str, tuple[str, bool]] = {}
        """The marks on disks that are being copied to: from which, and whether the copy is finished."""
        self.used_bytes: dict[str, int] = {}
        self.filled_mib: dict[str, int] = {}  # disk → what its agent says is used of it
        self.copy_refusal = ""
        self.failures: list[str] = []
        self.points: list[str] = []
        self.kill_at: int | None = None
        self.monitor: MonitorParts | None = None
        self.policy = policy()
        self.cannot_tell = ""
        self.meltdowns: dict[str, str] = {}
        self.brewing: set[str] = set()
        self.unobtainable_images: set[str] = set()
        self.stemcell_version = ""
        self.clock_ahead_seconds = 0.0
        """Added to the wall clock: an hour of it passes at once, without an hour of heartbeats."""
        self.next_boots = True
        """False: the next VM that is made never boots."""
        self.judges = True
        self._ids = 0
        self._monitors = 0

    def run(self, main: Any) -> Any:
        try:
            return self.loop.run(main)
        finally:
            # Nothing may keep the tasks of the killed alive beyond the loop that can bury them.
            self.monitor = None
            self.machines.clear()
            self.cloud = SimulatedCloud()
            self.server = SimulatedServer(self.random)
            self.loop.forget()

    def note_failure(self, text: str) -> None:
        if text:
            self.failures.append(text)

    def new_id(self) -> str:
        self._ids += 1
        return f"id{self._ids}"

    def unix_time(self) -> float:
        return UNIX_EPOCH + self.loop.time() + self.clock_ahead_seconds

    # Monitors.

    def start_monitor(self, clouds: Mapping[CloudName, SimulatedCloud] | None = None) -> MonitorParts:
        self._monitors += 1
        name = f"m{self._monitors}"
        process = Process(self.loop, name)
        parts = process.call(self._build, name, process, clouds or {CLOUD: self.cloud})
        self.monitor = parts
        process.start(self._monitor_main(parts), self.note_failure)
        return parts

    def kill_monitor(self) -> None:
        assert self.monitor is not None
        self.monitor.process.kill()
        self.server.client_killed(self.monitor.bus, True)
        self.monitor = None

    async def restart_monitor(self) -> MonitorParts:
        self.kill_monitor()
        return self.start_monitor()

    def _build(self, name: str, process: Process, clouds: Mapping[CloudName, SimulatedCloud]) -> MonitorParts:
        bus = self.server.client(name)
        journal = Journal(bus, self.unix_time)
        leadership = Leadership(bus, MonitorId(name), self.policy.leadership, incarnation=name)
        fleet = HeardFleet(lambda: resurrector.wake())
        agents = AgentClient(bus, MonitorId(name), self.new_id)
        resurrector = Resurrector(
            journal,
            clouds,
            agents,
            fleet,
            leadership,
            self.policy,
            self.unix_time,
            self.new_id,
            lambda agent: BusSettings(("nats://127.0.0.1:4222",)),
            lambda count: bytes(count),
            maintenance=lambda deployment: name_of_open((), journal.maintenance().values(), self.unix_time()),
            crash_point=self._crash_point(process),
            stemcell_version=lambda cloud, stemcell: self.stemcell_version,
        )
        return MonitorParts(journal, leadership, resurrector, fleet, agents, process, bus)

    def _crash_point(self, process: Process) -> Callable[[str], None]:
        def reached(name: str) -> None:
            self.points.append(name)
            if self.kill_at is not None and len(self.points) == self.kill_at:
                self.loop.call_soon(self._killed, context=contextvars.Context())  # the world's
                process.kill()
                raise Killed(name)

        return reached

    def _killed(self) -> None:
        assert self.monitor is not None
        self.server.client_killed(self.monitor.bus, True)
        self.monitor = None
        self.start_monitor()

    async def _monitor_main(self, parts: MonitorParts) -> None:
        await parts.bus.open()
        await parts.bus.wait_connected(30.0)
        await parts.agents.open()
        await parts.journal.open()
        await parts.bus.subscribe(subjects.every_agent(subjects.AgentMessage.HEARTBEAT), parts.fleet.hear)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(parts.leadership.run())
            tasks.create_task(parts.resurrector.run())
            while True:
                if self.judges:
                    parts.resurrector.set_judgement(self._judgement(parts))
                await asyncio.sleep(0.25)

    def _judgement(self, parts: MonitorParts) -> Judgement:
        missing: dict[InstanceId, Missing] = {}
        for instance, record in parts.journal.instances().items():
            if record.vm is None or record.vm.vm_cid is None or self.cannot_tell:
                continue
            vm = self.cloud.vms.get(record.vm.vm_cid)
            if vm is None:
                continue
            heard = self.machines[vm.cid].spec is not None
            if heard and (vm.power is not Power.RUNNING or vm.host_dead):
                missing[instance] = Missing(record.vm.agent_id, self.loop.time(), "silent for 15 s", not vm.host_dead)
        lost_spares = {
            spare.key: "silent for 15 s"
            for spare in parts.journal.spares().values()
            if spare.vm_cid is not None
            and spare.vm_cid in self.cloud.vms
            and self.cloud.vms[spare.vm_cid].power is not Power.RUNNING
        }
        return Judgement(
            self.loop.time(),
            missing,
            self.cannot_tell,
            dict(self.meltdowns),
            brewing=frozenset(self.brewing),
            lost_spares=lost_spares,
        )

    # Looking.

    @property
    def parts(self) -> MonitorParts:
        assert self.monitor is not None, "no monitor runs"
        return self.monitor

    async def until(self, predicate: Callable[[], Any], what: str, seconds: float = 300.0) -> None:
        deadline = self.loop.time() + seconds
        while not (self.monitor is not None and predicate()):
            assert not self.failures, self.failures
            assert self.loop.time() < deadline, f"not within {seconds} s: {what}; {self.describe()}"
            await asyncio.sleep(0.05)

    def describe(self) -> str:
        if self.monitor is None:
            return "no monitor"
        journal = self.monitor.journal
        operations = [
            f"{o.kind.value} at {o.step.value} {o.hold.value} ({o.error})" for o in journal.operations().values()
        ]
        return f"operations {operations}; {self.monitor.leadership.is_leader()}; points {self.points[-8:]}"

    def operation(self, instance: InstanceId) -> Operation | None:
        return self.parts.journal.operation(instance)

    def record(self, instance: InstanceId) -> InstanceRecord:
        record = self.parts.journal.instance(instance)
        assert record is not None
        return record

    def generation(self, instance: InstanceId) -> int:
        """0 while the journal does not know the instance."""
        record = self.parts.journal.instance(instance)
        return 0 if record is None else record.generation

    def vm_of(self, instance: InstanceId) -> SimulatedVm:
        vm: VmBinding | None = self.record(instance).vm
        assert vm is not None
        assert vm.vm_cid is not None
        return self.cloud.vms[vm.vm_cid]

    def spares(self, state: SpareState = SpareState.READY) -> list[SpareRecord]:
        return [spare for spare in self.parts.journal.spares().values() if spare.state is state]

    def idle(self) -> bool:
        return self.parts.leadership.is_leader() and not self.parts.journal.operations()

    async def deploy(self, record: DeploymentRecord) -> None:
        """Writes a deployment, as an operator's action does, and lets the rollout begin."""
        await self.until(lambda: self.parts.leadership.is_leader(), "a leader")
        parts = self.parts

        async def write() -> None:
            while True:
                try:
                    await parts.journal.save_deployment(record, parts.journal.deployment(record.name))
                    return
                except Superseded:
                    pass  # the rollout wrote how far it is; the person's word goes over it

        await parts.process.call(self.loop.create_task, write())
        parts.resurrector.wake()

    async def begin(self, call: Callable[[Resurrector], Any]) -> None:
        """Runs `call` in the monitor's process; it may be killed in it."""
        process, resurrector = self.parts.process, self.parts.resurrector
        done = asyncio.Event()

        async def main() -> None:
            try:
                await call(resurrector)
            finally:
                done.set()

        task = process.call(self.loop.create_task, main())
        while not done.is_set() and process.alive:
            await asyncio.sleep(0.01)
        if task.done() and process.alive:
            await task

    def _make_machine(self, vm: SimulatedVm) -> Machine:
        if not self.next_boots:
            vm.boots, self.next_boots = False, True
        self.machines[vm.cid] = FakeVm(self, vm)
        return self.machines[vm.cid]


def in_world(
    play: Callable[[HandsWorld], Coroutine[Any, Any, None]], seed: int = 0, kill_at: int | None = None
) -> list[str]:
    """Plays in a world of its own and gives the points that were reached; AssertionError with what did not hold."""
    points, error = _played(play, seed, kill_at)
    # Here, and not in the middle of something else: what is collected are coroutines of a loop that is gone.
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
    if error:
        raise AssertionError(error)
    return points


def _played(
    play: Callable[[HandsWorld], Coroutine[Any, Any, None]], seed: int, kill_at: int | None
) -> tuple[list[str], str]:
    """Errors as text: a traceback would keep the frames of the world alive."""
    world = HandsWorld(seed)
    world.kill_at = kill_at
    try:
        world.run(play(world))
    except AssertionError as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return world.points, f"{error} (seed {seed}, {where.name}:{where.lineno}: {where.line})"
    return world.points, ""


def place(group_name: str = "db", index: int = 0) -> InstanceId:
    return instance_id(SHOP, group_name, index)
