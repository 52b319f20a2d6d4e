"""One simulated VM: hardware that can be cut, frozen, killed and rebooted, and the real agent shells in it.

Laws: the hypervisor's truth (power, what is attached and mounted) is kept here and nowhere else. Power off ends every
process and unmounts everything at once; what was on the system disk survives a reboot, not the VM.

Does not know: the monitor, the checkers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Any

from agent.core.desired import Held, Place
from agent.core.engine_watch import WatchPolicy
from agent.core.reconcile import SupervisionPolicy
from agent.desired_state import DesiredState, Seen
from agent.engine import Health, Status
from agent.shell import AgentShell
from agent.supervisor import Supervisor
from protocol.ids import DiskCid, DiskName, Generation, InstanceId, VmCid
from protocol.settings import AgentSettings
from protocol.spec import ContainerSpec, MountKind
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.clocks import Clock
from tests.simulation.disks import LOOK_SECONDS, Agreed, SimulatedCopies, SimulatedDisks, SimulatedDocument
from tests.simulation.engine import EngineFault, FetchedImages, MemoryNotes, SimulatedDaemon, SimulatedEngine
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.platters import Content, Platters
from tests.simulation.story import Trace, Voice

BOOT_SECONDS = (4.0, 12.0)
AGENT_RESTART_SECONDS = 1.0
"""systemd's RestartSec."""


class PowerState(Enum):
    OFF = "off"
    BOOTING = "booting"
    RUNNING = "running"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often an agent looks by itself."""

    supervision: SupervisionPolicy = field(default_factory=SupervisionPolicy)
    watch: WatchPolicy = field(default_factory=WatchPolicy)
    disks_seconds: float = LOOK_SECONDS


@dataclass(slots=True)
class SystemDisk:
    """What survives a reboot."""

    held: SimulatedDocument[Held] = field(default_factory=SimulatedDocument)
    seen: SimulatedDocument[Seen] = field(default_factory=SimulatedDocument)
    place: SimulatedDocument[Place] = field(default_factory=SimulatedDocument)
    agreed: Agreed = field(default_factory=Agreed)
    notes: MemoryNotes = field(default_factory=MemoryNotes)


class Machine:
    """Implements `disks.Hardware`. To be powered on by the cloud that made it."""

    def __init__(
        self,
        loop: SimulatedLoop,
        server: SimulatedServer,
        trace: Trace,
        random: Random,
        vm_cid: VmCid,
        key: str,
        settings: AgentSettings,
        platters: Platters,
        boots: bool = True,
        slow_seconds: float = 0.0,
        pace: Pace | None = None,
    ) -> None:
        """`slow_seconds`: longer than usual, at its first boot."""
        self._pace = pace or Pace()
        self.vm_cid = vm_cid
        self.key = key
        self.settings = settings
        self.power = PowerState.OFF
        self.boots = boots
        self.bus: SimulatedBus | None = None
        self.agent: Process | None = None
        self.shell: AgentShell | None = None
        self.engine = SimulatedEngine()
        self.foreign = False  # somebody else's, whom we must leave alone
        self.on_mount: Callable[[], None] = lambda: None
        self._loop = loop
        self._server = server
        self._trace = trace
        self._random = random
        self._platters = platters
        self._slow_seconds = slow_seconds
        self._devices: dict[DiskCid, Content] = {}
        self.changes = 0
        """Grows with everything that befalls it: what was read of a VM that is off stays true while it does not."""
        self._attached: set[DiskCid] = set()
        self._mounted: set[DiskCid] = set()
        self._system_disk = SystemDisk()
        self.boots_done = 0
        self._booted_at = 0.0
        self._frozen_seconds = 0.0
        self._frozen_at = 0.0
        self.thawed_at = 0.0
        self._alive_at = loop.time()
        self._cut = (False, False)
        self._ids = 0
        self.clock = Clock(self._true_uptime)
        self._life = 0  # grows with each power-on, so that timers of a former life do nothing

    # The hypervisor's side.

    def power_on(self) -> None:
        if self.power is not PowerState.OFF:
            return
        self.power = PowerState.BOOTING
        self._life += 1
        self._tell("powered on" if self.boots else "powered on, and will never boot")
        if self.boots:
            slow, self._slow_seconds = self._slow_seconds, 0.0
            self._later(slow + self._random.uniform(*BOOT_SECONDS), self._booted)

    def power_off(self, announced: bool, why: str) -> None:
        """`announced`: its kernel or its host closed its connections; otherwise they just fall silent."""
        if self.power is PowerState.OFF:
            return
        self._alive_at = self.alive_at()
        self.power = PowerState.OFF
        self._life += 1
        self._mounted.clear()
        self._tell(f"off: {why}")
        self._end_agent(announced)
        self.engine.reboot()

    def reboot(self, seconds: float) -> None:
        """By itself: to the hypervisor it runs all the time."""
        if self.power is PowerState.RUNNING:
            self.power_off(announced=True, why="reboots by itself")
            self.power = PowerState.BOOTING
            self._later(seconds + self._random.uniform(*BOOT_SECONDS), self._booted)

    def freeze(self) -> None:
        if self.power is PowerState.RUNNING:
            self._alive_at = self._frozen_at = self._loop.time()
            self.power = PowerState.FROZEN
            self._tell("frozen")
            if self.agent is not None:
                self.agent.freeze()
            if self.bus is not None:
                self._server.reconsider(self.bus)

    def thaw(self) -> None:
        if self.power is PowerState.FROZEN:
            self._frozen_seconds += self._loop.time() - self._frozen_at
            self.power = PowerState.RUNNING
            self.thawed_at = self._loop.time()
            self._tell("thawed")
            if self.agent is not None:
                self.agent.thaw()
            if self.bus is not None:
                self._server.reconsider(self.bus)

    def set_cut(self, to_server: bool, from_server: bool) -> None:
        """Its network, whatever agent runs in it."""
        self._cut = (to_server, from_server)
        if self.bus is not None:
            self._server.cut(self.bus, to_server, from_server)

    def attach(self, disk: DiskCid) -> None:
        self._attached.add(disk)
        self._devices[disk] = self._platters.behind(disk)
        self._tell(f"{disk} attached")
        self.on_mount()

    def detach(self, disk: DiskCid) -> None:
        if disk in self._attached:
            self._attached.discard(disk)
            self._mounted.discard(disk)
            self._devices.pop(disk, None)
            self._tell(f"{disk} detached")

    def devices_anew(self) -> None:
        """What was swapped is put right; nothing that is mounted changes under its containers."""
        for disk in self._devices:
            if disk not in self._mounted:
                self._devices[disk] = self._platters.behind(disk)

    def mounted_contents(self) -> tuple[Content, ...]:
        return tuple(self._devices[disk] for disk in sorted(self._mounted) if disk in self._devices)

    def alive_at(self) -> float:
        """When it last was able to do anything."""
        return self._loop.time() if self.power is PowerState.RUNNING else self._alive_at

    # What befalls its containers and its engine.

    def running_containers(self) -> dict[str, str]:
        """Name → specification hash, of those that run, and are healthy where they have a check."""
        return {
            str(seen.name): seen.spec_hash
            for seen in self.engine.all()
            if seen.status is Status.RUNNING and seen.health in (Health.NONE, Health.HEALTHY)
        }

    def crash_container(self, choice: int) -> None:
        if name := self._some_container(choice):
            self._tell(f"container {name} crashes")
            self.engine.crash(name, exit_code=1 + choice % 3)

    def oom_container(self, choice: int) -> None:
        if name := self._some_container(choice):
            self._tell(f"container {name} is out of memory")
            if choice % 2:
                self.engine.crash(name, oom=True)
            else:
                self.engine.kill_child_for_memory(name)

    def make_unhealthy(self, choice: int) -> str:
        name = self._some_container(choice)
        if name:
            self._tell(f"container {name} is unhealthy")
            self.engine.set_health(name, Health.UNHEALTHY)
        return name

    def make_healthy(self, name: str) -> None:
        if any(seen.name == name and seen.health is Health.UNHEALTHY for seen in self.engine.all()):
            self.engine.set_health(name, Health.HEALTHY)

    def hang_engine(self) -> None:
        if self.power is PowerState.RUNNING:
            self._tell("engine hangs")
            self.engine.hang_daemon()

    def unhang_engine(self) -> None:
        if self.engine.fault is EngineFault.HUNG:
            self.engine.fault = EngineFault.NONE

    def stop_engine(self) -> None:
        if self.power is PowerState.RUNNING:
            self._tell("engine dies")
            self.engine.kill_daemon()

    def _some_container(self, choice: int) -> str:
        names = sorted(self.engine.running())
        return str(names[choice % len(names)]) if names and self.power is PowerState.RUNNING else ""

    # The guest's side.

    def devices(self) -> frozenset[DiskCid]:
        return frozenset(self._attached)

    def mounted(self) -> frozenset[DiskCid]:
        return frozenset(self._mounted)

    def content(self, disk: DiskCid) -> Content:
        return self._devices[disk]

    @property
    def generation(self) -> Generation:
        """What its settings say, or what it was told when it ceased to be a spare."""
        place = self._system_disk.place.load()
        return self.settings.generation if place is None else place.generation

    @property
    def instance(self) -> InstanceId | None:
        place = self._system_disk.place.load()
        return self.settings.instance if place is None else place.instance

    def applied(self) -> tuple[int, int]:
        """Generation and revision of what its agent was told, as kept on its system disk; (0, 0): nothing yet."""
        held = self._system_disk.held.load()
        return (0, 0) if held is None or held.spec is None else (held.spec.generation, held.spec.revision)

    def mount(self, disk: DiskCid) -> None:
        if disk not in self._mounted:
            self._mounted.add(disk)
            self._tell(f"{disk} mounted")
            self.on_mount()

    def unmount(self, disk: DiskCid) -> None:
        if disk in self._mounted:
            self._mounted.discard(disk)
            self._tell(f"{disk} unmounted")

    def undisturbed_since(self) -> float:
        """Since when nothing has befallen the VM, its agent or its connection."""
        connected = self.bus.connected_since if self.bus is not None and self.bus.connected else self._loop.time()
        return max(connected, self.thawed_at)

    def uptime_seconds(self) -> float:
        """By its own clock, which may drift."""
        return max(0.0, self.clock.show())

    def _true_uptime(self) -> float:
        frozen = self._loop.time() - self._frozen_at if self.power is PowerState.FROZEN else 0.0
        return self._loop.time() - self._booted_at - self._frozen_seconds - frozen

    def kill_agent(self, restart_seconds: float = AGENT_RESTART_SECONDS) -> None:
        if self.power is PowerState.RUNNING and self.agent is not None and self.agent.alive:
            self._tell("agent killed")
            self._end_agent(announced=True)
            self._later(restart_seconds, self._start_agent)

    def _booted(self) -> None:
        self.power = PowerState.RUNNING
        self.boots_done += 1
        self._booted_at = self._loop.time()
        self._frozen_seconds = 0.0
        self.clock.set_right()
        self._tell(f"booted ({self.boots_done})")
        self._start_agent()

    def _start_agent(self) -> None:
        if self.power is PowerState.FROZEN:  # systemd is frozen too
            self._later(AGENT_RESTART_SECONDS, self._start_agent)
            return
        self.agent = Process(self._loop, f"agent {self.vm_cid}")
        self.agent.start(self._agent_main(), self._agent_ended)

    def _agent_ended(self, text: str) -> None:
        self._loop.failures.append(f"{self._loop.time():.3f} agent of {self.vm_cid} ended: {text or 'returned'}")
        self._end_agent(announced=True)
        self._later(AGENT_RESTART_SECONDS, self._start_agent)

    def _end_agent(self, announced: bool) -> None:
        if self.agent is not None:
            self.agent.kill()
            self.agent = self.shell = None
        if self.bus is not None:
            self._server.client_killed(self.bus, announced)
            self.bus = None

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        life = self._life
        self._loop.call_later(seconds, lambda: what() if self._life == life else None)

    def _tell(self, text: str) -> None:
        self.changes += 1
        self._trace.tell(Voice.VM, f"{self.vm_cid} ({self.key})", text)

    async def _agent_main(self) -> None:
        """As `agent/__main__.py` puts it together."""
        settings = self.settings
        bus = self.bus = self._server.client(settings.agent_id)
        self._server.cut(bus, *self._cut)
        await bus.open()
        boot_id = f"{self.vm_cid}-boot-{self.boots_done}"
        desired = DesiredState(
            self._system_disk.held,
            self._system_disk.seen,
            settings.instance,
            settings.generation,
            boot_id,
            _write_at_once,
            self._system_disk.place,
        )
        supervisor = Supervisor(
            self.engine,
            SimulatedDaemon(self.engine),
            self.engine,
            self._system_disk.notes,
            _directories,
            self._pace.supervision,
            self._pace.watch,
        )
        disks = SimulatedDisks(
            self,
            self._system_disk.agreed,
            self._random,
            supervisor.set_disks,
            lambda: shell.heartbeater.changed(),
            self._pace.disks_seconds,
        )
        shell = AgentShell(
            settings,
            "simulated",
            boot_id,
            bus,
            supervisor,
            desired,
            disks,
            SimulatedCopies(disks, self, self._random),
            NoVitals(),  # type: ignore[arg-type]  # as much of Vitals as the shell uses
            self.uptime_seconds,
            self._new_id,
            FetchedImages(self.engine),
        )
        self.shell = shell
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(), name="supervisor")
            group.create_task(shell.run(), name="shell")

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self.vm_cid}-{self._ids}"


class NoVitals:
    """psutil would show this machine's."""

    def latest(self) -> dict[str, Any]:
        return {}

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()


def _directories(container: ContainerSpec, mounts: Mapping[DiskName, str]) -> dict[str, str]:
    """As agent/mount_directories.py, without a file system."""
    return {
        mount.target: f"{mounts[DiskName(mount.source)]}/{container.name}"
        if mount.kind is MountKind.DISK
        else mount.source
        for mount in container.mounts
    }


async def _write_at_once(write: Callable[[], None]) -> None:
    write()
