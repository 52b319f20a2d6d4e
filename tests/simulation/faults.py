"""How each fault of a plan is carried out, and how what lasts is ended.

Law: whatever a fault changed is as before when its time is over or faults cease; a fault that finds no target does
nothing.

Does not know: which faults there will be (`nemesis.py`), what must hold (`checkers.py`).
"""

from __future__ import annotations

import contextvars
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import Protocol, TypeVar

from protocol.ids import VmCid
from tests.simulation.bus import SimulatedServer, Weather
from tests.simulation.centre import MonitorProcess
from tests.simulation.cloud import Fault as CloudFault
from tests.simulation.cloud import SimulatedDisk
from tests.simulation.loop import SimulatedLoop
from tests.simulation.moods import MoodyCloud
from tests.simulation.nemesis import Fault, FaultKind
from tests.simulation.platters import Platters
from tests.simulation.receivers import Mood, Receiver
from tests.simulation.story import Trace, Voice
from tests.simulation.vm import Machine, PowerState

T = TypeVar("T")

ACTING_POINTS_MAX = 12
"""What strikes while a monitor acts strikes at one of the next this many crash points."""
CLOCK_JUMPS_SECONDS = (-7200.0, -600.0, -30.0, -2.0, 2.0, 30.0, 600.0, 7200.0)
DRIFT_MAX = 500e-6
"""A clock that is disciplined gains or loses no more than this; a worse one is broken, and people are told."""


class Surroundings(Protocol):
    """The world, as far as faults reach."""

    loop: SimulatedLoop
    server: SimulatedServer
    trace: Trace
    cloud: MoodyCloud
    monitors: list[MonitorProcess]
    fleet_of_machines: dict[VmCid, Machine]
    receivers: list[Receiver]
    platters: Platters
    next_boots_never: int
    next_boots_slowly: list[float]

    def disturbed(self) -> None: ...

    def clock_jumped(self) -> None: ...

    def person_later(self, fault: Fault) -> None: ...

    def twin_of(self, monitor: MonitorProcess) -> MonitorProcess: ...

    def say_again(self, machine: Machine, fault: Fault) -> None: ...


class Faults:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._endings: dict[int, Callable[[], object]] = {}
        self._numbers = 0
        self._acting: list[Fault] = []
        self._calm = copy.copy(world.server.weather)
        self._cuts: dict[Machine | MonitorProcess, list[tuple[int, bool, bool]]] = {}
        self._all_cuts: list[list[Callable[[], None]]] = []  # what ends each cut of everybody

    def strike(self, fault: Fault) -> None:
        if fault.acting or fault.kind is FaultKind.MONITOR_KILLED_ACTING:
            self._acting.append(fault)
        elif fault.kind in _OF_PERSONS:
            self._world.person_later(fault)
        elif fault.kind in _ON_MACHINES:
            self._on_machine(fault, lambda machine: _ON_MACHINES[fault.kind](self, machine, fault))
        elif fault.kind in _ON_MONITORS:
            found = _pick([monitor for monitor in self._world.monitors if not monitor.is_twin], fault)
            if found is not None:
                _ON_MONITORS[fault.kind](self, found, fault)
        else:
            _ON_ALL[fault.kind](self, fault)

    def cease(self) -> None:
        """Ends whatever still lasts."""
        self._acting.clear()
        self._world.next_boots_never = 0
        self._world.next_boots_slowly.clear()
        for number in list(self._endings):
            self._endings.pop(number)()
        for monitor in self._world.monitors:
            monitor.start()

    def at_crash_point(self, monitor: MonitorProcess, name: str) -> None:
        """The monitor has just written, called or asked. Perhaps this is the worst moment for what comes next."""
        if not self._acting or monitor.process is None:
            return
        fault = self._acting[0]
        if fault.depth % ACTING_POINTS_MAX:
            self._acting[0] = replace(fault, depth=fault.depth - 1)
            return
        self._acting.pop(0)
        self._world.trace.tell(Voice.FAULT, monitor.name, f"has just done {name}: {fault.kind.value}")
        if fault.kind is FaultKind.MONITOR_KILLED_ACTING:
            self._world.disturbed()
            monitor.process.kill_after(int(fault.target * 40))
            monitor.stays_down_seconds = fault.lasts_seconds + 0.5
        elif fault.kind in _ON_MONITORS:
            _ON_MONITORS[fault.kind](self, monitor, fault)
        else:
            # In no process: what befalls the world does not end with the monitor in which it was noticed.
            self._world.loop.call_soon(self.strike, replace(fault, acting=False), context=contextvars.Context())

    def weather_is_calm(self) -> bool:
        """False while messages are lost, doubled or slow: then silence is the bus's doing as long as that lasts."""
        return self._world.server.weather == self._calm

    def monitor_died_acting(self, monitor: MonitorProcess) -> None:
        self._world.disturbed()
        self._end_at(monitor.stays_down_seconds, monitor.start)

    # On a VM.

    def _kill(self, machine: Machine, fault: Fault) -> None:
        self._world.cloud.kill_vm(machine.vm_cid, fault.kind is FaultKind.VM_KILLED)

    def _kill_all(self, fault: Fault) -> None:
        """One after the other, as a host's processes end."""
        random = Random(f"all {fault.depth} {fault.target}")
        for machine in self._machines():
            self._world.loop.call_later(
                random.uniform(0.0, 0.1), self._world.cloud.kill_vm, machine.vm_cid, True, context=contextvars.Context()
            )

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

    def _lose_events(self, machine: Machine, fault: Fault) -> None:
        machine.engine.loses_events = True
        machine.crash_container(fault.depth)
        self._end(fault, lambda: setattr(machine.engine, "loses_events", False))

    def _lie_events(self, machine: Machine, fault: Fault) -> None:
        machine.engine.events_lie = True
        machine.crash_container(fault.depth)
        self._end(fault, lambda: setattr(machine.engine, "events_lie", False))

    def _answer_late(self, machine: Machine, fault: Fault) -> None:
        machine.engine.lies_late = 1 + fault.depth % 5
        machine.crash_container(fault.depth)

    def _vm_clock(self, machine: Machine, fault: Fault) -> None:
        machine.clock.drift(DRIFT_MAX if fault.depth % 2 else -DRIFT_MAX)
        self._end(fault, lambda: machine.clock.drift(0.0))

    def _cut(self, place: Machine | MonitorProcess, fault: Fault, to_server: bool = True, back: bool = True) -> None:
        self._end(fault, self._begin_cut(place, to_server, back))

    def _begin_cut(self, place: Machine | MonitorProcess, to_server: bool, back: bool) -> Callable[[], None]:
        """Cut off until the returned is called; where cuts overlap, each lasts its own time."""
        self._numbers += 1
        cut = (self._numbers, to_server, back)
        cuts = self._cuts.setdefault(place, [])

        def changed() -> None:
            self._world.disturbed()
            place.set_cut(any(there for _, there, _ in cuts), any(here for _, _, here in cuts))

        def heal() -> None:
            cuts.remove(cut)
            changed()

        cuts.append(cut)
        changed()
        return heal

    def _cut_one_way(self, place: Machine | MonitorProcess, fault: Fault) -> None:
        out = fault.depth % 2 == 0
        self._cut(place, fault, out, not out)

    def _host_dead(self, machine: Machine, fault: Fault) -> None:
        """The cloud cannot reach the host. Half the time the VM is gone with it."""
        vm = self._world.cloud.vms[machine.vm_cid]
        vm.host_dead = True
        heals: list[Callable[[], object]] = [lambda: self._world.cloud.thaw_vm(machine.vm_cid)]
        if fault.depth % 2:
            self._world.cloud.kill_vm(machine.vm_cid, announced=False)
        elif fault.depth % 4 == 0:
            heals.append(self._begin_cut(machine, True, True))
        elif fault.depth % 8 == 2:
            self._world.cloud.freeze_vm(machine.vm_cid)

        def back() -> None:
            vm.host_dead = False
            for heal in reversed(heals):
                heal()

        self._end(fault, back)

    # On a monitor.

    def _kill_monitor(self, monitor: MonitorProcess, fault: Fault) -> None:
        self._world.disturbed()
        monitor.killed("by a fault")
        self._end_at(fault.lasts_seconds + 0.1, monitor.start)

    def _freeze_monitor(self, monitor: MonitorProcess, fault: Fault) -> None:
        self._world.disturbed()
        self._world.trace.tell(Voice.MONITOR, monitor.name, "frozen")
        monitor.freeze()

        def thaw() -> None:
            self._world.disturbed()
            self._world.trace.tell(Voice.MONITOR, monitor.name, "thawed")
            monitor.thaw()

        self._end(fault, thaw)

    def _step_down(self, monitor: MonitorProcess, fault: Fault) -> None:
        self._world.disturbed()
        self._world.trace.tell(Voice.MONITOR, monitor.name, "is told to step down")
        monitor.step_down()

    def _twice(self, monitor: MonitorProcess, fault: Fault) -> None:
        twin = self._world.twin_of(monitor)
        self._world.disturbed()
        for heals in self._all_cuts:
            heals.append(self._begin_cut(twin, True, True))
        twin.start()

        def end() -> None:
            self._world.disturbed()
            twin.killed("one is enough")
            twin.retired = True

        self._end(fault, end)

    def _clock_jumps(self, monitor: MonitorProcess, fault: Fault) -> None:
        """It is set wrong, and set right again: two jumps."""
        seconds = Random(f"clock {fault.depth} {fault.target}").choice(
            (-7200.0, -600.0, -30.0, -2.0, 2.0, 30.0, 600.0, 7200.0)
        )
        self._world.clock_jumped()
        self._world.trace.tell(Voice.MONITOR, monitor.name, f"its wall clock jumps by {seconds:g} s")
        monitor.clock.jump(seconds)

        def right() -> None:
            self._world.clock_jumped()
            monitor.clock.set_right()

        self._end(fault, right)

    def _clock_drifts(self, monitor: MonitorProcess, fault: Fault) -> None:
        monitor.clock.drift(DRIFT_MAX if fault.depth % 2 else -DRIFT_MAX)
        self._end(fault, monitor.clock.set_right)

    # On all, and on the cloud.

    def _boots_never(self, fault: Fault) -> None:
        self._world.next_boots_never += 1

    def _boots_slowly(self, fault: Fault) -> None:
        self._world.next_boots_slowly.append(20.0 + 60.0 * fault.target)

    def _all_cut(self, fault: Fault) -> None:
        """Also who comes while it lasts."""
        places: list[Machine | MonitorProcess] = [*self._machines(), *self._world.monitors]
        heals = [self._begin_cut(place, True, True) for place in places]
        self._all_cuts.append(heals)

        def heal() -> None:
            self._all_cuts.remove(heals)
            for each in heals:
                each()

        self._end(fault, heal)

    def _server_restarted(self, fault: Fault) -> None:
        self._world.disturbed()
        self._world.server.crash()
        self._end(fault, self._server_back)

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

    def _slow(self, fault: Fault) -> None:
        self._world.cloud.slow_seconds = 1.0 + fault.target * 40.0
        self._mood(fault, CloudFault.SLOW, 0.6)

    def _failing(self, fault: Fault) -> None:
        self._mood(fault, CloudFault.FAILS if fault.depth % 3 else CloudFault.REFUSED, 0.3 + 0.7 * fault.target)

    def _unsure(self, fault: Fault) -> None:
        kinds = (CloudFault.UNANSWERED, CloudFault.HANGS, CloudFault.HALF_DONE)
        self._mood(fault, kinds[fault.depth % 3], 0.5)

    def _mood(self, fault: Fault, mood: CloudFault, chance: float) -> None:
        self._world.cloud.moods[mood] = chance
        self._end(fault, lambda: self._world.cloud.moods.pop(mood, None))

    def _delete_lies(self, fault: Fault) -> None:
        self._world.cloud.delete_lies = True
        self._end(fault, lambda: setattr(self._world.cloud, "delete_lies", False))

    def _quota(self, fault: Fault) -> None:
        cloud = self._world.cloud
        before = cloud.vms_max
        cloud.vms_max = len(cloud.recorded())
        self._end(fault, lambda: setattr(cloud, "vms_max", max(before, 10_000)))

    def _disk_stuck(self, fault: Fault) -> None:
        self._with_disk(fault, "stuck")

    def _disk_slips(self, fault: Fault) -> None:
        for disk in self._world.cloud.disks.values():
            disk.slips = True
        self._end(fault, self._nothing_slips)

    def _nothing_slips(self) -> None:
        for disk in self._world.cloud.disks.values():
            disk.slips = False

    def _with_disk(self, fault: Fault, what: str) -> None:
        disk: SimulatedDisk | None = _pick(list(self._world.cloud.disks.values()), fault)
        if disk is not None:
            setattr(disk, what, True)
            self._end(fault, lambda: setattr(disk, what, False))

    def _disk_swapped(self, fault: Fault) -> None:
        """Devices that turn up are another's; when it is over, they are what they should be again."""
        self._world.platters.swapped = True

        def right() -> None:
            self._world.platters.swapped = False
            for machine in self._world.fleet_of_machines.values():
                machine.devices_anew()

        self._end(fault, right)

    def _disk_unreadable(self, fault: Fault) -> None:
        disk: SimulatedDisk | None = _pick(list(self._world.cloud.disks.values()), fault)
        if disk is not None:
            content = self._world.platters.of(disk.cid)
            content.unreadable = True
            self._end(fault, lambda: setattr(content, "unreadable", False))

    def _receiver(self, fault: Fault) -> None:
        receiver = _pick(self._world.receivers, fault)
        if receiver is not None:
            receiver.mood = Mood.AWAY if fault.kind is FaultKind.RECEIVER_AWAY else Mood.DOUBTFUL
            self._end(fault, lambda: setattr(receiver, "mood", Mood.WELL))

    # Targets and endings.

    def _machines(self) -> list[Machine]:
        return [m for m in self._world.fleet_of_machines.values() if m.power is not PowerState.OFF and not m.foreign]

    def _on_machine(self, fault: Fault, strike: Callable[[Machine], object]) -> None:
        found = _pick(self._machines(), fault)
        if found is not None:
            self._world.trace.tell(Voice.FAULT, f"{found.vm_cid} ({found.key})", fault.kind.value)
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


_ON_MACHINES: Mapping[FaultKind, Callable[[Faults, Machine, Fault], object]] = MappingProxyType(
    {
        FaultKind.VM_KILLED: Faults._kill,
        FaultKind.VM_LOST_SILENTLY: Faults._kill,
        FaultKind.VM_FROZEN: Faults._freeze,
        FaultKind.VM_REBOOTED: lambda _, machine, fault: machine.reboot(fault.lasts_seconds),
        FaultKind.VM_CLOCK_DRIFTS: Faults._vm_clock,
        FaultKind.AGENT_KILLED: lambda _, machine, fault: machine.kill_agent(fault.lasts_seconds),
        FaultKind.CONTAINER_CRASHED: lambda _, machine, fault: machine.crash_container(fault.depth),
        FaultKind.CONTAINER_OOM: lambda _, machine, fault: machine.oom_container(fault.depth),
        FaultKind.CONTAINER_UNHEALTHY: Faults._unhealthy,
        FaultKind.ENGINE_HUNG: Faults._hang_engine,
        FaultKind.ENGINE_DOWN: lambda _, machine, fault: machine.stop_engine(),
        FaultKind.ENGINE_LOSES_EVENTS: Faults._lose_events,
        FaultKind.ENGINE_EVENTS_LIE: Faults._lie_events,
        FaultKind.ENGINE_ANSWERS_LATE: Faults._answer_late,
        FaultKind.AGENT_CUT: Faults._cut,
        FaultKind.AGENT_CUT_ONE_WAY: Faults._cut_one_way,
        FaultKind.OLD_COMMAND: lambda faults, machine, fault: faults._world.say_again(machine, fault),
        FaultKind.HOST_DEAD: Faults._host_dead,
    }
)
_ON_MONITORS: Mapping[FaultKind, Callable[[Faults, MonitorProcess, Fault], object]] = MappingProxyType(
    {
        FaultKind.MONITOR_CUT: Faults._cut,
        FaultKind.MONITOR_CUT_ONE_WAY: Faults._cut_one_way,
        FaultKind.MONITOR_KILLED: Faults._kill_monitor,
        FaultKind.MONITOR_FROZEN: Faults._freeze_monitor,
        FaultKind.MONITOR_STEPS_DOWN: Faults._step_down,
        FaultKind.MONITOR_TWICE: Faults._twice,
        FaultKind.MONITOR_CLOCK_JUMPS: Faults._clock_jumps,
        FaultKind.MONITOR_CLOCK_DRIFTS: Faults._clock_drifts,
    }
)
_ON_ALL: Mapping[FaultKind, Callable[[Faults, Fault], object]] = MappingProxyType(
    {
        FaultKind.NEXT_VM_BOOTS_NEVER: Faults._boots_never,
        FaultKind.NEXT_VM_BOOTS_SLOWLY: Faults._boots_slowly,
        FaultKind.ALL_CUT: Faults._all_cut,
        FaultKind.FLEET_KILLED: Faults._kill_all,
        FaultKind.SERVER_RESTARTED: Faults._server_restarted,
        FaultKind.BAD_WEATHER: Faults._bad_weather,
        FaultKind.CLOUD_SLOW: Faults._slow,
        FaultKind.CLOUD_FAILING: Faults._failing,
        FaultKind.CLOUD_UNSURE: Faults._unsure,
        FaultKind.CLOUD_DELETE_LIES: Faults._delete_lies,
        FaultKind.CLOUD_QUOTA: Faults._quota,
        FaultKind.DISK_STUCK: Faults._disk_stuck,
        FaultKind.DISK_SLIPS: Faults._disk_slips,
        FaultKind.DISK_SWAPPED: Faults._disk_swapped,
        FaultKind.DISK_UNREADABLE: Faults._disk_unreadable,
        FaultKind.RECEIVER_AWAY: Faults._receiver,
        FaultKind.RECEIVER_DOUBTFUL: Faults._receiver,
    }
)
_OF_PERSONS = frozenset(
    {
        FaultKind.DEPLOYED,
        FaultKind.SCALED,
        FaultKind.RESIZED,
        FaultKind.RECREATED,
        FaultKind.STOPPED,
        FaultKind.IGNORED,
        FaultKind.PAUSED,
        FaultKind.SWITCHED_OFF,
        FaultKind.DELETED,
    }
)


def _pick(found: list[T], fault: Fault) -> T | None:
    return found[int(fault.target * len(found))] if found else None
