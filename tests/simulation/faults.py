"""How each fault of a plan is carried out, and how what lasts is ended.

Law: whatever a fault changed is as before when its time is over or faults cease; a fault that finds no target does
nothing, and says so.

Does not know: which faults there will be (`nemesis.py`), what must hold (`checkers.py`).
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar

from protocol.ids import CloudName, VmCid
from tests.simulation.bus import SimulatedServer, Weather
from tests.simulation.centre import MonitorProcess
from tests.simulation.cloud import Fault as CloudFault
from tests.simulation.cloud import Machine as CloudMachine
from tests.simulation.cloud import SimulatedCloud, SimulatedVm
from tests.simulation.loop import SimulatedLoop
from tests.simulation.nemesis import Fault, FaultKind
from tests.simulation.story import Trace, Voice
from tests.simulation.vm import Machine, PowerState

T = TypeVar("T")

ACTING_POINTS_MAX = 12
"""A monitor that is to be killed while it acts is killed at one of the next this many crash points."""


class MoodyCloud(SimulatedCloud):
    """A cloud with a mood: for as long as it lasts, calls go wrong with some chance."""

    def __init__(self, make_machine: Callable[[SimulatedVm], CloudMachine], random: Random, name: CloudName) -> None:
        super().__init__(make_machine, random, latency_seconds=(0.01, 0.4), name=name)
        self.moods: dict[CloudFault, float] = {}  # fault → chance

    def _peek(self, name: str) -> CloudFault | None:
        self._drawn = super()._peek(name) or self._draw()
        return self._drawn

    def _take_fault(self, name: str) -> CloudFault | None:
        planned = super()._take_fault(name)
        if planned is not None:
            return planned
        if name == "create_vm":  # which looked before
            return self._drawn
        return self._draw()

    _drawn: CloudFault | None = None

    def _draw(self) -> CloudFault | None:
        return next((fault for fault, chance in self.moods.items() if self._random.random() < chance), None)


class Surroundings(Protocol):
    """The world, as far as faults reach."""

    loop: SimulatedLoop
    server: SimulatedServer
    trace: Trace
    cloud: MoodyCloud
    monitors: list[MonitorProcess]
    fleet_of_machines: dict[VmCid, Machine]
    next_boots_never: int

    def disturbed(self) -> None: ...

    def person_later(self, act: str, fault: Fault) -> None: ...


class Faults:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._endings: dict[int, Callable[[], object]] = {}
        self._numbers = 0
        self._acting: list[Fault] = []
        self._calm = copy.copy(world.server.weather)
        self._ceased = False

    def strike(self, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.VM_KILLED | FaultKind.VM_LOST_SILENTLY:
                self._on_machine(fault, lambda m: self._kill(m, fault.kind is FaultKind.VM_KILLED))
            case FaultKind.VM_FROZEN:
                self._on_machine(fault, lambda m: self._freeze(m, fault))
            case FaultKind.VM_REBOOTED:
                self._on_machine(fault, lambda m: m.reboot(fault.lasts_seconds))
            case FaultKind.NEXT_VM_BOOTS_NEVER:
                self._world.next_boots_never += 1
            case FaultKind.AGENT_KILLED:
                self._on_machine(fault, lambda m: m.kill_agent(fault.lasts_seconds))
            case FaultKind.CONTAINER_CRASHED:
                self._on_machine(fault, lambda m: m.crash_container(fault.depth))
            case FaultKind.CONTAINER_OOM:
                self._on_machine(fault, lambda m: m.oom_container(fault.depth))
            case FaultKind.CONTAINER_UNHEALTHY:
                self._on_machine(fault, lambda m: self._unhealthy(m, fault))
            case FaultKind.ENGINE_HUNG:
                self._on_machine(fault, lambda m: self._hang_engine(m, fault))
            case FaultKind.ENGINE_DOWN:
                self._on_machine(fault, lambda m: m.stop_engine())
            case FaultKind.AGENT_CUT:
                self._on_machine(fault, lambda m: self._cut(m, fault, True, True))
            case FaultKind.AGENT_CUT_ONE_WAY:
                out = fault.depth % 2 == 0
                self._on_machine(fault, lambda m: self._cut(m, fault, out, not out))
            case FaultKind.MONITOR_CUT:
                self._on_monitor(fault, lambda m: self._cut(m, fault, True, True))
            case FaultKind.MONITOR_CUT_ONE_WAY:
                out = fault.depth % 2 == 0
                self._on_monitor(fault, lambda m: self._cut(m, fault, out, not out))
            case FaultKind.ALL_CUT:
                for machine in self._machines():
                    self._cut(machine, fault, True, True)
                for monitor in self._world.monitors:
                    self._cut(monitor, fault, True, True)
            case FaultKind.SERVER_RESTARTED:
                self._world.disturbed()
                self._world.server.crash()
                self._end(fault, self._server_back)
            case FaultKind.BAD_WEATHER:
                self._bad_weather(fault)
            case FaultKind.CLOUD_SLOW:
                self._world.cloud.slow_seconds = 1.0 + fault.target * 40.0
                self._mood(fault, CloudFault.SLOW, 0.6)
            case FaultKind.CLOUD_FAILING:
                self._mood(fault, CloudFault.FAILS if fault.depth % 3 else CloudFault.REFUSED, 0.3 + 0.7 * fault.target)
            case FaultKind.CLOUD_UNSURE:
                kinds = (CloudFault.UNANSWERED, CloudFault.HANGS, CloudFault.HALF_DONE)
                self._mood(fault, kinds[fault.depth % 3], 0.5)
            case FaultKind.CLOUD_DELETE_LIES:
                self._world.cloud.delete_lies = True
                self._end(fault, lambda: setattr(self._world.cloud, "delete_lies", False))
            case FaultKind.HOST_DEAD:
                self._on_machine(fault, lambda m: self._host_dead(m, fault))
            case FaultKind.MONITOR_KILLED:
                self._on_monitor(fault, lambda m: self._kill_monitor(m, fault.lasts_seconds, "by a fault"))
            case FaultKind.MONITOR_KILLED_ACTING:
                self._acting.append(fault)
            case FaultKind.MONITOR_FROZEN:
                self._on_monitor(fault, lambda m: self._freeze_monitor(m, fault))
            case FaultKind.DEPLOYED | FaultKind.RECREATED | FaultKind.PAUSED:
                self._world.person_later(fault.kind.name, fault)
            case FaultKind.SWITCHED_OFF | FaultKind.DELETED:
                self._world.person_later(fault.kind.name, fault)

    def cease(self) -> None:
        """Ends whatever still lasts."""
        self._ceased = True
        self._acting.clear()
        self._world.next_boots_never = 0
        for number in list(self._endings):
            self._endings.pop(number)()
        for monitor in self._world.monitors:
            monitor.start()

    def at_crash_point(self, monitor: MonitorProcess, name: str) -> None:
        """The monitor has just written, called or asked. Perhaps it does not live to see what comes next."""
        if not self._acting or monitor.process is None:
            return
        fault = self._acting[0]
        if fault.depth % ACTING_POINTS_MAX:
            self._acting[0] = Fault(fault.at_seconds, fault.kind, fault.lasts_seconds, fault.target, fault.depth - 1)
            return
        self._acting.pop(0)
        self._world.trace.tell(Voice.FAULT, monitor.name, f"will die soon after {name}")
        self._world.disturbed()
        monitor.process.kill_after(int(fault.target * 40))
        monitor.stays_down_seconds = fault.lasts_seconds + 0.5

    def weather_is_calm(self) -> bool:
        """False while messages are lost, doubled or slow: then silence is the bus's doing as long as that lasts."""
        return self._world.server.weather == self._calm

    # One fault each.

    def _kill(self, machine: Machine, announced: bool) -> None:
        self._world.cloud.kill_vm(machine.vm_cid, announced)

    def _freeze(self, machine: Machine, fault: Fault) -> None:
        self._world.cloud.freeze_vm(machine.vm_cid)
        self._end(fault, lambda: self._world.cloud.thaw_vm(machine.vm_cid))

    def _unhealthy(self, machine: Machine, fault: Fault) -> None:
        name = machine.make_unhealthy(fault.depth)
        if name:
            self._end(fault, lambda: machine.make_healthy(name))

    def _hang_engine(self, machine: Machine, fault: Fault) -> None:
        machine.hang_engine()
        self._end(fault, machine.unhang_engine)

    def _cut(self, place: Machine | MonitorProcess, fault: Fault, to_server: bool, from_server: bool) -> None:
        self._world.disturbed()
        place.set_cut(to_server, from_server)

        def heal() -> None:
            self._world.disturbed()
            place.set_cut(False, False)

        self._end(fault, heal)

    def _server_back(self) -> None:
        self._world.disturbed()
        self._world.server.start()

    def _bad_weather(self, fault: Fault) -> None:
        random = Random(f"weather {fault.depth} {fault.target}")
        weather = self._world.server.weather
        self._world.disturbed()
        weather.latency_seconds = random.choice([(0.0002, 0.002), (0.01, 0.3), (0.001, 1.5)])
        weather.core_loss = random.choice([0.0, 0.05, 0.3])
        weather.core_double = random.choice([0.0, 0.2])
        weather.acknowledgement_loss = random.choice([0.0, 0.0, 0.1])
        weather.sync_seconds = random.choice([(0.0002, 0.003), (0.01, 0.5)])
        weather.notice_cut_seconds = random.choice([(4.0, 6.5), (10.0, 30.0)])

        def clear_up() -> None:
            self._world.disturbed()
            for name in Weather.__slots__:
                setattr(weather, name, getattr(self._calm, name))

        self._end(fault, clear_up)

    def _mood(self, fault: Fault, mood: CloudFault, chance: float) -> None:
        self._world.cloud.moods[mood] = chance
        self._end(fault, lambda: self._world.cloud.moods.pop(mood, None))

    def _host_dead(self, machine: Machine, fault: Fault) -> None:
        """The cloud cannot reach the host. Half the time the VM is gone with it."""
        vm = self._world.cloud.vms[machine.vm_cid]
        vm.host_dead = True
        if fault.depth % 2:
            self._world.cloud.kill_vm(machine.vm_cid, announced=False)
        elif fault.depth % 4 == 0:
            machine.set_cut(True, True)
        self._end(fault, lambda: self._host_back(vm, machine))

    def _host_back(self, vm: SimulatedVm, machine: Machine) -> None:
        vm.host_dead = False
        machine.set_cut(False, False)

    def monitor_died_acting(self, monitor: MonitorProcess) -> None:
        self._world.disturbed()
        self._end_at(monitor.stays_down_seconds, monitor.start)

    def _kill_monitor(self, monitor: MonitorProcess, seconds: float, why: str) -> None:
        self._world.disturbed()
        monitor.killed(why)
        self._end_at(seconds + 0.1, monitor.start)

    def _freeze_monitor(self, monitor: MonitorProcess, fault: Fault) -> None:
        self._world.disturbed()
        self._world.trace.tell(Voice.MONITOR, monitor.name, "frozen")
        monitor.freeze()

        def thaw() -> None:
            self._world.disturbed()
            self._world.trace.tell(Voice.MONITOR, monitor.name, "thawed")
            monitor.thaw()

        self._end(fault, thaw)

    # Targets and endings.

    def _machines(self) -> list[Machine]:
        return [m for m in self._world.fleet_of_machines.values() if m.power is not PowerState.OFF]

    def _on_machine(self, fault: Fault, strike: Callable[[Machine], object]) -> None:
        found = _pick(self._machines(), fault)
        if found is not None:
            self._world.trace.tell(Voice.FAULT, f"{found.vm_cid} ({found.key})", fault.kind.value)
            strike(found)

    def _on_monitor(self, fault: Fault, strike: Callable[[MonitorProcess], object]) -> None:
        found = _pick(self._world.monitors, fault)
        if found is not None:
            strike(found)

    def _end(self, fault: Fault, ending: Callable[[], object]) -> None:
        self._end_at(fault.lasts_seconds, ending)

    def _end_at(self, seconds: float, ending: Callable[[], object]) -> None:
        self._numbers += 1
        number = self._numbers

        def end() -> None:
            if self._endings.pop(number, None) is not None:
                ending()

        self._endings[number] = ending
        # In no process: an ending outlives whoever was running when it was planned.
        self._world.loop.call_later(seconds, end, context=contextvars.Context())


def _pick(found: list[T], fault: Fault) -> T | None:
    return found[int(fault.target * len(found))] if found else None
