"""The simulated world of one run: server, cloud, VMs, monitors, faults, a person, and the checkers that look on.

Laws: everything random comes from the seed; the system under test is real, everything around it is simulated.
Implements what checkers, witness, faults and the person need of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NoReturn, Protocol

import structlog

from healthmonitor.channels.channel import Notification
from healthmonitor.clouds.cloud import VmRequest
from healthmonitor.core.policy import (
    IncidentPolicy,
    LivenessPolicy,
    MeltdownPolicy,
    Policy,
    ResurrectionPolicy,
    SparePolicy,
)
from healthmonitor.core.records import (
    Incident,
    Operation,
    OperationKind,
    RolloutState,
    SpareRecord,
    Step,
    Switches,
)
from healthmonitor.journal import SWITCHES
from protocol import codec, envelope
from protocol.ids import AgentId, CloudName, DiskCid, InstanceId, VmCid
from protocol.settings import AgentSettings, BusSettings
from protocol.spec import Wanted, spec_hash
from protocol.subjects import AgentMessage, to_agent, to_monitor
from tests.simulation import manifests, nemesis
from tests.simulation.bus import SimulatedBus, SimulatedServer, Weather
from tests.simulation.centre import MonitorProcess
from tests.simulation.checkers import (
    ALWAYS,
    FINALLY,
    HELD_SENTENCE,
    RESTART_SENTENCE,
    Belief,
    Breach,
    MachineTruth,
    Records,
)
from tests.simulation.cloud import SimulatedVm
from tests.simulation.faults import Faults
from tests.simulation.loop import Condition, Deadlock, OutOfBudget, Process, RealIo, SimulatedLoop, current_process
from tests.simulation.manifests import Shape
from tests.simulation.moods import MoodyCloud
from tests.simulation.nemesis import Fault, FaultKind
from tests.simulation.person import Person
from tests.simulation.platters import Content, Platters
from tests.simulation.receivers import Receiver, ReceiverChannel
from tests.simulation.records_in_store import RecordsInStore, incident_line, operation_line, spare_line
from tests.simulation.story import Trace, Violation, Voice
from tests.simulation.vm import Machine, Pace, PowerState
from tests.simulation.witness import Witness

CALM_CHECK_SECONDS = 30.0
"""Everything must be as expected at two looks this far apart."""
SETTLE_SECONDS = 2400.0
PERSON_LOOKS_SECONDS = 30.0
VIOLATIONS_MAX = 10
OLD_COMMANDS_MAX = 50
LOOKS = 24
"""How often an onlooker looks in a run."""


class Onlooker(Protocol):
    """Looks now and then while a run goes on."""

    def look(self) -> None: ...

    def end(self) -> None: ...

    def figures(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a run is about. Times are virtual."""

    databases: int = 3
    fronts: int = 2
    monitors: int = 1
    build_seconds: float = 300.0  # at most, until the first deployment stands
    storm_seconds: float = 1500.0
    faults_per_minute: float = 1.0
    only: frozenset[FaultKind] | None = None
    meltdown: bool = True
    cloud_seconds: tuple[float, float] = (0.01, 0.4)  # on the way to the cloud, and as much back
    harmless: bool = False  # nothing happens to any VM, so none may be rebuilt
    spares: int = 0  # for each size of VM
    held: bool = False  # all VMs die at once, so none may be rebuilt before a person overrides the meltdown
    hourly_budget: int = 1000
    max_in_flight: int = 3
    liveness: LivenessPolicy = field(default_factory=LivenessPolicy)
    pace: Pace = field(default_factory=Pace)
    check_seconds: float = 1.0
    real_seconds: float = 900.0
    steps_max: int = 50_000_000
    settles: bool = True  # otherwise the run ends with the storm
    looks_at: Callable[[World], Onlooker] | None = None


@dataclass(slots=True)
class Result:
    seed: int
    digest: str
    violations: list[Violation]
    trace: Trace
    virtual_seconds: float
    steps: int
    counts: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    figures: str = ""


def policy_of(scenario: Scenario) -> Policy:
    return Policy(
        liveness=scenario.liveness,
        meltdown=MeltdownPolicy(enabled=scenario.meltdown),
        resurrection=ResurrectionPolicy(
            enabled=True,
            max_in_flight=scenario.max_in_flight,
            hourly_budget=scenario.hourly_budget,
            agent_boot_seconds=60.0,
            fence_seconds=20.0,
            cloud_call_seconds=30.0,
            healthy_seconds=120.0,
            drain_seconds=60.0,
            retry_longest_seconds=30.0,
        ),
        incidents=IncidentPolicy(),
        spares=SparePolicy(per_size={CloudName(manifests.CLOUD): scenario.spares} if scenario.spares else {}),
    )


class World:
    def __init__(
        self,
        seed: int,
        scenario: Scenario,
        faults: tuple[Fault, ...] | None = None,
        ends_with: Callable[[Violation], bool] = lambda violation: False,
    ) -> None:
        """`ends_with`: the violation after which there is nothing more to find out."""
        self.seed = seed
        self.scenario = scenario
        self.policy = policy_of(scenario)
        self.loop = SimulatedLoop(scenario.steps_max, scenario.real_seconds)
        self.random = Random(f"world {seed}")
        self.trace = Trace(self.loop.time)
        self.violations: list[Violation] = []
        self.counts: dict[str, int] = {}
        self.planned = planned(seed, scenario) if faults is None else faults
        self.server = SimulatedServer(Random(f"bus {seed}"), Weather())
        self.fleet_of_machines: dict[VmCid, Machine] = {}
        self._by_agent: dict[AgentId, Machine] = {}
        self.platters = Platters()
        self.receivers = [Receiver(name, Random(f"{name} {seed}"), self.trace) for name in ("mail", "pager")]
        self.next_boots_never = 0
        self.next_boots_slowly: list[float] = []
        self.monitors: list[MonitorProcess] = []
        self.in_store = RecordsInStore(self.server.store)
        self.witness = Witness(self)
        self.person = Person(self, Shape(scenario.databases, scenario.fronts))
        self._before: dict[tuple[str, str], object] = {}
        self._opened: dict[tuple[str, float], Incident] = {}
        self._applied: dict[VmCid, tuple[int, int]] = {}
        self._looked_at: tuple[MachineTruth, ...] | None = None  # all, for as long as one look of the checkers takes
        self._truths: dict[VmCid, tuple[int, MachineTruth]] = {}  # of those that are off
        self._old_commands: dict[str, list[bytes]] = {}  # instance → what its agents were told
        self._violated: set[tuple[str, str]] = set()
        self._undisturbed_since = self.loop.time()
        self._clocks_agree_since = float("-inf")
        self._leading: tuple[str, float] = ("", 0.0)
        self._defects: list[str] = []
        self._twins = 0
        self.quiet = False  # faults have ceased
        self._onlooker = scenario.looks_at(self) if scenario.looks_at is not None else None
        self._ends_with = ends_with
        self._over: asyncio.Future[None] = self.loop.create_future()

    def run(self) -> Result:
        structlog.configure(processors=[self._logged], cache_logger_on_first_use=False)
        try:
            self.loop.run(self._until_over())
        except (Deadlock, OutOfBudget, RealIo) as error:
            self.violate("run", "The run comes to its end.", Breach(f"{type(error).__name__}: {error}"))
        finally:
            self._failures_are_violations()
            result = Result(
                self.seed,
                f"{self.trace.digest:08x}-{self.server.digest:08x}",
                self.violations,
                self.trace,
                self.loop.time() - 1000.0,
                self.loop.steps,
                dict(sorted(self.counts.items())),
                len(self.planned),
                self._onlooker.figures() if self._onlooker is not None else "",
            )
            self.trace.close()
            with no_logs():
                self.loop.forget()
        return result

    # What checkers read.

    def now(self) -> float:
        return self.loop.time()

    def machines(self) -> tuple[MachineTruth, ...]:
        if self._looked_at is not None:
            return self._looked_at
        return tuple(self._truth_of(machine) for machine in self.fleet_of_machines.values())

    def _truth_of(self, machine: Machine) -> MachineTruth:
        known = self._truths.get(machine.vm_cid)
        if known is not None and known[0] == machine.changes:
            return known[1]
        truth = MachineTruth(
            vm_cid=machine.vm_cid,
            agent_id=machine.settings.agent_id,
            key=machine.key,
            can_write=machine.power is not PowerState.OFF,
            frozen=machine.power is PowerState.FROZEN,
            attached=machine.devices(),
            mounted=machine.mounted(),
            alive_at=machine.alive_at(),
            foreign=machine.foreign,
            contents=machine.mounted_contents(),
            applied=machine.applied(),
            generation=machine.generation,
        )
        if machine.power is PowerState.OFF:
            self._truths[machine.vm_cid] = (machine.changes, truth)
        return truth

    def records(self) -> Records:
        return self.in_store.all()

    def beliefs(self) -> tuple[Belief, ...]:
        now = self.loop.time()
        found = []
        for monitor in self.monitors:
            if monitor.running is None:
                continue
            alive_at = {}
            for agent, boots in monitor.heard_freshly:
                machine = self._by_agent.get(agent)
                if machine is None or machine.boots_done != boots:
                    continue  # it has booted since: how late the first word of a boot is, nobody can know either
                view = monitor.running.fleet.view(agent, now)
                if view is not None:
                    alive_at[agent] = now - view.silent_seconds
            found.append(Belief(monitor.name, alive_at, monitor.newest_evidence))
        return tuple(found)

    def lease_seconds(self) -> float:
        return self.policy.liveness.lease_seconds

    def wanted_spares(self) -> int:
        """All VMs of a run are of one size."""
        return self.scenario.spares

    def running(self, vm: VmCid) -> Mapping[str, str]:
        return self.fleet_of_machines[vm].running_containers()

    def expected_containers(self, instance: InstanceId) -> Mapping[str, str]:
        record = self.records().instances[instance]
        if record.wanted is Wanted.STOPPED:
            return {}
        return {
            container.name: spec_hash(container)
            for container in record.group.containers
            if container.name not in record.stopped_containers
        }

    def contents(self) -> Mapping[DiskCid, Content]:
        return self.platters.contents

    def size_mib(self, disk: DiskCid) -> int:
        known = self.cloud.disks.get(disk)
        return known.size_mib if known is not None else 0

    def applied_before(self, vm: VmCid) -> tuple[int, int]:
        return self._applied.get(vm, (0, 0))

    def at_step_since(self, operation: Operation) -> float:
        return self.witness.at_step_since(operation)

    def leaders(self) -> tuple[str, ...]:
        return tuple(monitor.name for monitor in self.monitors if monitor.leads)

    def leading_undisturbed_since(self) -> float:
        if not self.faults.weather_is_calm() or not self.server.up or self.cloud.moods:
            return self.loop.time()
        return max(self._leading[1], self._undisturbed_since, self._leader_undisturbed_since())

    def person_acknowledged(self) -> Mapping[str, str | None]:
        return self.person.acknowledged

    def opened_incidents(self) -> Mapping[tuple[str, float], Incident]:
        return self._opened

    def alarms_of_the_gone(self) -> frozenset[str]:
        gone = [(each.name, each.alarm_note.load()) for each in self.monitors if each.retired]
        return frozenset(f"bus-lost-{name}-{alarm.opened_at:.0f}" for name, alarm in gone if alarm is not None)

    def told(self) -> Mapping[str, list[Notification]]:
        return {receiver.name: receiver.taken for receiver in self.receivers}

    def switches(self) -> Switches:
        bucket = self.server.store.buckets.get(SWITCHES)
        entry = bucket.entries.get(SWITCHES) if bucket is not None else None
        return codec.from_json(Switches, entry.value) if entry is not None else Switches()

    def is_foreign(self, vm: VmCid) -> bool:
        machine = self.fleet_of_machines.get(vm)
        return machine is not None and machine.foreign

    def thawed_at(self, vm: VmCid) -> float:
        return self.fleet_of_machines[vm].thawed_at

    def undisturbed_since(self, vm: VmCid) -> float:
        return self.fleet_of_machines[vm].undisturbed_since()

    def monitor_parts(self) -> list[object]:
        living = [each for each in self.monitors if each.running is not None and each.process is not None]
        coroutines = [each for monitor in living if monitor.process for each in monitor.process.coroutines()]
        return [*(monitor.running for monitor in living), *coroutines]

    def agent_parts(self) -> list[object]:
        living = [each for each in self.fleet_of_machines.values() if each.shell is not None]
        coroutines = [each for machine in living if machine.agent for each in machine.agent.coroutines()]
        return [*(machine.shell for machine in living), *coroutines]

    def clocks_agree_since(self) -> float:
        return self._clocks_agree_since

    # The run.

    async def _until_over(self) -> None:
        run = asyncio.create_task(self._main())
        await asyncio.wait({run, self._over}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            run.result()

    async def _main(self) -> None:
        self.loop.on_kill = self._killed_at_await
        self.server.on_write = self._written
        self.server.on_delivered = self._delivered
        self.server.on_sent = self._sent
        self.cloud = MoodyCloud(self._make_machine, Random(f"cloud {self.seed}"), CloudName(manifests.CLOUD))
        self.cloud.latency_seconds = self.scenario.cloud_seconds
        self.cloud.on_call = self.witness.cloud_called
        self.platters.size_mib_of = lambda disk: self.size_mib(disk) or 1024
        await self._make_foreign_vm()
        for number in range(self.scenario.monitors):
            self.monitors.append(self._monitor(f"monitor-{'abc'[number]}", number))
        self.faults = Faults(self)
        watching = asyncio.create_task(self._watch())
        for monitor in self.monitors:
            monitor.start()
        await self._build()
        await self._storm()
        self.quiet = True
        self.faults.cease()
        if self.scenario.settles:
            await self._settle()
        if self._onlooker is not None:
            self._onlooker.end()
        watching.cancel()

    def _monitor(self, name: str, number: int, twin: str = "") -> MonitorProcess:
        return MonitorProcess(
            self.loop,
            self.server,
            {CloudName(manifests.CLOUD): self.cloud},
            self.policy,
            name,
            Random(f"monitor {self.seed} {number}"),
            self.trace,
            self._at_crash_point,
            lambda: tuple(ReceiverChannel(receiver) for receiver in self.receivers),
            twin,
        )

    async def _make_foreign_vm(self) -> None:
        """Another site's, in the same cloud, with tags like ours: nobody here knows its instance."""
        tags = {"instance": "other/db/0", "generation": "3"}
        settings = AgentSettings(AgentId("foreign"), BusSettings(("another site's",)), hostname="other-db-0")
        self.next_boots_never = 1  # its agent would speak on another bus
        cid = await self.cloud.create_vm(
            VmRequest("other-db-0-g3", "other-db-0", "debian-12", 1, 1024, settings, {}, tags)
        )
        self.fleet_of_machines[cid].foreign = True

    async def _build(self) -> None:
        await self.person.begins()
        began = self.loop.time()
        while breaches := self.breaches_now():
            if self.loop.time() - began > self.scenario.build_seconds:
                self.violate("build", "An undisturbed deployment is built.", breaches[0][0])
                return
            await asyncio.sleep(2.0)
        self.trace.tell(Voice.CHECK, "world", f"built in {self.loop.time() - began:.0f} s")

    async def _storm(self) -> None:
        began = self.loop.time()
        for fault in self.planned:
            await asyncio.sleep(max(0.0, began + fault.at_seconds - self.loop.time()))
            self.trace.tell(Voice.FAULT, "nemesis", str(fault))
            self.count(f"fault {fault.kind.value}")
            self.faults.strike(fault)
        await asyncio.sleep(max(0.0, began + self.scenario.storm_seconds - self.loop.time()))
        self.trace.tell(Voice.FAULT, "nemesis", "faults cease")

    async def _settle(self) -> None:
        """Until everything is as expected, and still is a while later."""
        began = self.loop.time()
        calm_since: float | None = None
        looked = began
        while True:
            breaches = self.breaches_now()
            now = self.loop.time()
            if not breaches:
                calm_since = now if calm_since is None else calm_since
                if now - calm_since >= CALM_CHECK_SECONDS:
                    self.trace.tell(
                        Voice.CHECK, "world", f"as expected {calm_since - began:.0f} s after the last fault"
                    )
                    self.count("settled after seconds", int(calm_since - began))
                    return
            else:
                calm_since = None
            if now - began > SETTLE_SECONDS:
                for breach, checker in breaches[:5]:
                    self.violate(checker.__name__, checker.__doc__ or "", breach)
                return
            if now - looked >= PERSON_LOOKS_SECONDS:
                looked = now
                await self.person.looks()
            await asyncio.sleep(5.0)

    def breaches_now(self) -> list[tuple[Breach, Callable[..., list[Breach]]]]:
        records = self.records()
        names = {record.name for record in records.deployments}
        wanted = [
            (Breach(f"deployment {name} is not there"), FINALLY[0]) for name in self.person.wanted if name not in names
        ]
        wanted += [
            (Breach(f"deployment {record.name} is not what the person deployed last"), FINALLY[0])
            for record in records.deployments
            if self.person.wanted.get(record.name) != record.manifest_text or record.rollout is not RolloutState.DONE
        ]
        with self._one_look():
            return wanted + [(breach, checker) for checker in FINALLY for breach in checker(self)]

    async def _watch(self) -> None:
        next_look = self.loop.time()
        while True:
            self._watch_leader()
            self.check()
            self.witness.check_acknowledged(self.server.acknowledged, self.in_store.revision)
            if self._onlooker is not None and self.loop.time() >= next_look:
                next_look += self.scenario.storm_seconds / LOOKS
                self._onlooker.look()
            await asyncio.sleep(self.scenario.check_seconds)

    def check(self) -> None:
        with self._one_look():
            for checker in ALWAYS:
                for breach in checker(self):
                    self.violate(checker.__name__, checker.__doc__ or "", breach)
        for machine in self.fleet_of_machines.values():
            if machine.power is not PowerState.OFF:
                self._applied[machine.vm_cid] = machine.applied()

    @contextlib.contextmanager
    def _one_look(self) -> Iterator[None]:
        """Nothing changes inside."""
        self._looked_at = self.machines()
        try:
            yield
        finally:
            self._looked_at = None

    def _watch_leader(self) -> None:
        leading = [monitor for monitor in self.monitors if monitor.leads]
        name = ""
        if len(leading) == 1:
            process = leading[0].process
            if process is not None and process.condition is Condition.RUNNING:
                name = f"{leading[0].name} {leading[0].started_at}"
        if name != self._leading[0] or not name:
            self._leading = (name, self.loop.time())

    # What faults and people need.

    def person_later(self, fault: Fault) -> None:
        """A person's whim, as a fault of the plan: a task of the world, in no process."""
        self.loop.create_task(self.person.whim(fault), context=contextvars.Context())

    def twin_of(self, monitor: MonitorProcess) -> MonitorProcess:
        self._twins += 1
        twin = self._monitor(monitor.name, 100 + self._twins, f"-twin{self._twins}")
        self.monitors.append(twin)
        return twin

    def say_again(self, machine: Machine, fault: Fault) -> None:
        """Somebody who holds an old copy of what was said to the instance's agents says it to the present one."""
        heard = [
            payload
            for payload in self._old_commands.get(str(machine.instance), [])
            if (request := envelope.decode_request(payload)).method == "apply"
            or request.generation != machine.generation  # this VM was drained on purpose, or not at all
        ]
        if not heard:
            return
        payload = heard[int(fault.target * len(heard))]
        self.trace.tell(Voice.FAULT, f"{machine.vm_cid} ({machine.key})", "is told again what was said long ago")
        self.loop.create_task(self._say(machine, payload), context=contextvars.Context())

    async def _say(self, machine: Machine, payload: bytes) -> None:
        bus = await self.server.client("an old copy").open()
        with contextlib.suppress(Exception):  # a stranger's trouble with the bus is nobody's
            await bus.wait_connected(5.0)
            await bus.publish(to_agent(machine.settings.agent_id), payload)
            await asyncio.sleep(5.0)
        await bus.close()

    def disturbed(self) -> None:
        """Something befell the bus or the monitors."""
        self._undisturbed_since = self.loop.time()

    def clock_jumped(self) -> None:
        self._clocks_agree_since = self.loop.time()
        self.disturbed()

    # What the world is told.

    def _make_machine(self, vm: SimulatedVm) -> Machine:
        cid, request = vm.cid, vm.request
        boots = self.next_boots_never <= 0
        if not boots:
            self.next_boots_never -= 1
        slow = self.next_boots_slowly.pop() if boots and self.next_boots_slowly else 0.0
        machine = Machine(
            self.loop,
            self.server,
            self.trace,
            Random(f"vm {self.seed} {cid}"),
            cid,
            request.key,
            replace(request.settings, vm_cid=cid),
            self.platters,
            boots,
            slow,
            self.scenario.pace,
        )
        machine.on_mount = self.check
        self.fleet_of_machines[cid] = self._by_agent[machine.settings.agent_id] = machine
        self.count("vms made")
        return machine

    def _at_crash_point(self, monitor: MonitorProcess, name: str) -> None:
        self.count("crash points")
        self.faults.at_crash_point(monitor, name)

    def _killed_at_await(self, process: Process) -> None:
        for monitor in self.monitors:
            if monitor.process is process:
                monitor.killed("in the middle of what it did")
                self.faults.monitor_died_acting(monitor)

    def _sent(self, client: SimulatedBus, subject: str, payload: bytes) -> None:
        if not subject.startswith(_COMMANDS):
            return
        try:
            request = envelope.decode_request(payload)
        except envelope.BadRequest:
            return
        self.witness.agent_told(client.process, request.method, subject)
        if request.method in ("apply", "drain"):
            machine = self._by_agent.get(AgentId(subject[len(_COMMANDS) :]))
            if machine is not None:
                heard = self._old_commands.setdefault(str(machine.instance), [])
                heard.append(payload)
                del heard[:-OLD_COMMANDS_MAX]

    def _delivered(self, client: SimulatedBus, subject: str, published_at: float) -> None:
        if subject.startswith(_HEARTBEATS):
            agent = AgentId(subject[len(_HEARTBEATS) :])
        elif subject.startswith("director."):
            agent = AgentId(subject.split(".")[2])
        else:
            return
        for monitor in self.monitors:
            if monitor.bus is client:
                newest = monitor.newest_evidence.get(agent, 0.0)
                monitor.newest_evidence[agent] = max(newest, published_at)
                if self.loop.time() - published_at < 0.5:
                    machine = self._by_agent.get(agent)
                    if machine is not None and subject.startswith(
                        _HEARTBEATS
                    ):  # an answer shows how late no heartbeat is
                        monitor.heard_freshly.add((agent, machine.boots_done))
                else:
                    self.count("messages delivered late")
                    self.loop.call_soon(self.check, context=contextvars.Context())

    def _written(self, bucket: str, key: str, value: bytes | None, revision: int) -> None:
        before = self._before.get((bucket, key))
        match bucket:
            case "operations":
                assert before is None or isinstance(before, Operation)
                after = None if value is None else codec.from_json(Operation, value)
                self._before[bucket, key] = after
                self._operation_written(before, after)
            case "incidents":
                assert before is None or isinstance(before, Incident)
                incident = None if value is None else codec.from_json(Incident, value)
                self._before[bucket, key] = incident
                self._incident_written(before, incident)
            case "spares":
                assert before is None or isinstance(before, SpareRecord)
                spare = None if value is None else codec.from_json(SpareRecord, value)
                self._before[bucket, key] = spare
                self._tell_record(key, spare_line(before, spare))

    def _operation_written(self, before: Operation | None, after: Operation | None) -> None:
        present = after or before
        if present is None:
            return
        self.witness.operation_written(present.instance, before, after)
        self._tell_record(present.instance, operation_line(before, after))
        if after is None or after.kind is not OperationKind.RESURRECT:
            return
        if before is None or before.id != after.id:
            self.count("resurrections begun")
        if after.step is Step.FENCE and (before is None or before.step is Step.GUARD) and after.old_vm is not None:
            self.count("resurrections admitted")
            self._check_spared(after)
            if self.scenario.harmless:
                breach = Breach(f"{after.instance} is to be rebuilt: {after.reason}", (str(after.instance),))
                self.violate("never_rebuilt", RESTART_SENTENCE, breach)
            if self.scenario.held and not self.quiet:
                breach = Breach(f"{after.instance} is to be rebuilt: {after.reason}", (str(after.instance),))
                self.violate("all_held", HELD_SENTENCE, breach)

    def _incident_written(self, before: Incident | None, after: Incident | None) -> None:
        if after is None:
            return
        if after.resolved_at is None and not after.inhibited_by:
            self._opened.setdefault((after.key, after.opened_at), after)
        elif after.inhibited_by:
            self._opened.pop((after.key, after.opened_at), None)  # another one explains it
        self._tell_record(after.key, incident_line(before, after))

    def _tell_record(self, subject: str, line: str) -> None:
        if line:
            self.trace.tell(Voice.RECORD, subject, line)

    def _check_spared(self, operation: Operation) -> None:
        """The VM about to be fenced must not be one of which nothing bad has happened for longer than a lease."""
        assert operation.old_vm is not None
        if not self.faults.weather_is_calm():
            return  # a bus that loses every third message is a disturbance for as long as it does (mixed, seed 7)
        for machine in self.fleet_of_machines.values():
            if machine.key != operation.old_vm.key or machine.power is not PowerState.RUNNING:
                continue
            since = max(self._undisturbed_since, machine.undisturbed_since(), self._leader_undisturbed_since())
            if self.loop.time() - since > self.policy.liveness.lease_seconds + 1.0:
                breach = Breach(
                    f"{operation.instance}: {machine.vm_cid} is to be fenced ({operation.reason}), though it, the bus"
                    f" and the monitor were undisturbed for {self.loop.time() - since:.1f} s",
                    (str(operation.instance), str(machine.vm_cid)),
                )
                self.violate("always_spared", RESTART_SENTENCE, breach)

    def _leader_undisturbed_since(self) -> float:
        since = [
            max(monitor.started_at, monitor.bus.connected_since if monitor.bus is not None else self.loop.time())
            for monitor in self.monitors
            if monitor.leads
        ]
        return max(since, default=self.loop.time())

    def _logged(self, logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        """structlog's only processor: every line is a line of the trace."""
        process = current_process()
        name = process.name if process is not None else "world"
        error = event.pop("exc_info", None)
        text = str(event.pop("event", ""))
        said = " ".join(f"{key}={value}" for key, value in sorted(event.items()))
        if method == "exception" or error:
            raised = sys.exc_info()[1]
            lines = "".join(traceback.format_exception(raised)).splitlines() if raised is not None else []
            self._defects.append(f"{name}: {text} {said}: {' | '.join(line.strip() for line in lines[-8:])}")
        self.trace.tell(Voice.LOG, name, f"{method}: {text} {said}")
        raise structlog.DropEvent

    def _failures_are_violations(self) -> None:
        """An error that nobody expected is a defect, whatever came of it."""
        for text in [*self._defects, *self.loop.failures]:
            self.violate("no_defects", "No part of the system meets an error that it did not expect.", Breach(text))

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def violate(self, checker: str, sentence: str, breach: Breach) -> None:
        if (checker, breach.text) in self._violated or len(self.violations) >= VIOLATIONS_MAX:
            return
        self._violated.add((checker, breach.text))
        at = self.loop.time() - 1000.0
        self.trace.tell(Voice.CHECK, checker, f"VIOLATED: {breach.text}")
        violation = Violation(at, checker, " ".join(sentence.split()), breach.text, breach.subjects)
        self.violations.append(violation)
        if self._ends_with(violation) and not self._over.done():
            self._over.set_result(None)


def planned(seed: int, scenario: Scenario) -> tuple[Fault, ...]:
    return nemesis.plan(seed, 5.0, scenario.storm_seconds, scenario.faults_per_minute, scenario.only)


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Whatever is logged inside is dropped."""

    def drop(logger: object, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        raise structlog.DropEvent

    structlog.configure(processors=[drop], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.reset_defaults()


_HEARTBEATS = to_monitor(AgentMessage.HEARTBEAT, AgentId(""))
_COMMANDS = to_agent(AgentId(""))
