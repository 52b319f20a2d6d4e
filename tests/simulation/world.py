"""The simulated world of one run: server, cloud, VMs, monitors, faults, a person, and the checkers that look on.

Laws: everything random comes from the seed; the system under test is real, everything around it is simulated; the
person does what the system asks of people (ends a pause, vouches for a VM after pulling its plug, deploys again after
a failed rollout), and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NoReturn

import structlog

from healthmonitor.core.policy import IncidentPolicy, LivenessPolicy, MeltdownPolicy, Policy, ResurrectionPolicy
from healthmonitor.core.records import (
    Hold,
    Incident,
    Operation,
    OperationKind,
    RolloutState,
    Step,
    Switches,
)
from healthmonitor.journal import SWITCHES
from healthmonitor.operator_actions import ManifestUpload, OperatorActions, Person
from protocol import codec
from protocol.ids import AgentId, CloudName, InstanceId, VmCid
from protocol.spec import Wanted, spec_hash
from protocol.subjects import AgentMessage, to_monitor
from tests.simulation import manifests, nemesis
from tests.simulation.bus import SimulatedBus, SimulatedServer, Weather
from tests.simulation.centre import MonitorProcess
from tests.simulation.checkers import ALWAYS, FINALLY, RESTART_SENTENCE, Belief, Breach, MachineTruth, Records
from tests.simulation.cloud import SimulatedVm
from tests.simulation.faults import Faults, MoodyCloud
from tests.simulation.loop import Deadlock, OutOfBudget, Process, RealIo, SimulatedLoop, current_process
from tests.simulation.nemesis import Fault, FaultKind
from tests.simulation.records_in_store import RecordsInStore, incident_line, operation_line
from tests.simulation.story import Trace, Violation, Voice
from tests.simulation.vm import Machine, PowerState

CHECK_SECONDS = 1.0
CALM_CHECK_SECONDS = 30.0
"""Everything must be as expected at two looks this far apart."""
SETTLE_SECONDS = 2400.0
PERSON_LOOKS_SECONDS = 30.0
PERSON = Person("admin", "ada")


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
    harmless: bool = False  # nothing happens to any VM, so none may be rebuilt


@dataclass(slots=True)
class Result:
    seed: int
    digest: str
    violations: list[Violation]
    trace: Trace
    virtual_seconds: float
    steps: int
    counts: dict[str, int] = field(default_factory=dict)


def policy_of(scenario: Scenario) -> Policy:
    return Policy(
        liveness=LivenessPolicy(),
        meltdown=MeltdownPolicy(enabled=scenario.meltdown),
        resurrection=ResurrectionPolicy(
            enabled=True,
            hourly_budget=1000,
            agent_boot_seconds=60.0,
            fence_seconds=20.0,
            cloud_call_seconds=30.0,
            healthy_seconds=120.0,
            drain_seconds=60.0,
            retry_longest_seconds=30.0,
        ),
        incidents=IncidentPolicy(),
    )


class World:
    """Implements `checkers.World`."""

    def __init__(self, seed: int, scenario: Scenario, faults: tuple[Fault, ...] | None = None) -> None:
        self.seed = seed
        self.scenario = scenario
        self.loop = SimulatedLoop()
        self.random = Random(f"world {seed}")
        self.trace = Trace(self.loop.time)
        self.violations: list[Violation] = []
        self.counts: dict[str, int] = {}
        self._planned = faults
        self._weather = Weather()
        self.server = SimulatedServer(Random(f"bus {seed}"), self._weather)
        self.fleet_of_machines: dict[VmCid, Machine] = {}
        self.next_boots_never = 0
        self.monitors: list[MonitorProcess] = []
        self.in_store = RecordsInStore(self.server.store)
        self._before: dict[tuple[str, str], object] = {}
        self._deployed: dict[str, str] = {}
        self._violated: set[tuple[str, str]] = set()
        self._undisturbed_since = self.loop.time()
        self.quiet = False
        self._defects: list[str] = []

    def run(self) -> Result:
        structlog.configure(processors=[self._logged], cache_logger_on_first_use=False)
        try:
            self.loop.run(self._main())
        except (Deadlock, OutOfBudget, RealIo) as error:
            self._violate("run", "The run comes to its end.", Breach(f"{type(error).__name__}: {error}"))
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
            )
            self.trace.close()
            with no_logs():
                self.loop.forget()
        return result

    # What checkers read.

    def now(self) -> float:
        return self.loop.time()

    def machines(self) -> tuple[MachineTruth, ...]:
        return tuple(
            MachineTruth(
                vm_cid=machine.vm_cid,
                agent_id=machine.settings.agent_id,
                key=machine.key,
                can_write=machine.power is not PowerState.OFF,
                frozen=machine.power is PowerState.FROZEN,
                attached=machine.devices(),
                mounted=machine.mounted(),
                alive_at=machine.alive_at(),
            )
            for machine in self.fleet_of_machines.values()
        )

    def records(self) -> Records:
        return self.in_store.all()

    def beliefs(self) -> tuple[Belief, ...]:
        now = self.loop.time()
        found = []
        for monitor in self.monitors:
            if monitor.running is None:
                continue
            alive_at = {}
            for agent in monitor.heard_freshly:
                view = monitor.running.fleet.view(agent, now)
                if view is not None:
                    alive_at[agent] = now - view.silent_seconds
            found.append(Belief(monitor.name, alive_at, monitor.newest_evidence))
        return tuple(found)

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

    # The run.

    async def _main(self) -> None:
        self.loop.on_kill = self._killed_at_await
        self.server.on_write = self._written
        self.server.on_delivered = self._delivered
        self.cloud = MoodyCloud(self._make_machine, Random(f"cloud {self.seed}"), CloudName(manifests.CLOUD))
        policy = policy_of(self.scenario)
        for number in range(self.scenario.monitors):
            self.monitors.append(
                MonitorProcess(
                    self.loop,
                    self.server,
                    {CloudName(manifests.CLOUD): self.cloud},
                    policy,
                    f"monitor-{'abc'[number]}",
                    Random(f"monitor {self.seed} {number}"),
                    self.trace,
                    self._at_crash_point,
                )
            )
        self.faults = Faults(self)
        watching = asyncio.create_task(self._watch())
        for monitor in self.monitors:
            monitor.start()
        await self._build()
        await self._storm()
        self.quiet = True
        self.faults.cease()
        await self._settle()
        watching.cancel()

    async def _build(self) -> None:
        shop = manifests.shop(self.scenario.databases, self.scenario.fronts, 0)
        await self.deploy(manifests.DISKY, shop)
        await self.deploy(manifests.SMALL, manifests.blog())
        began = self.loop.time()
        while breaches := self.breaches_now():
            if self.loop.time() - began > self.scenario.build_seconds:
                self._violate("build", "An undisturbed deployment is built.", breaches[0][0])
                return
            await asyncio.sleep(2.0)
        self.trace.tell(Voice.CHECK, "world", f"built in {self.loop.time() - began:.0f} s")

    async def _storm(self) -> None:
        began = self.loop.time()
        planned = self._planned
        if planned is None:
            planned = nemesis.plan(
                self.seed, 5.0, self.scenario.storm_seconds, self.scenario.faults_per_minute, self.scenario.only
            )
        for fault in planned:
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
                    self._violate(checker.__name__, checker.__doc__ or "", breach)
                return
            if now - looked >= PERSON_LOOKS_SECONDS:
                looked = now
                await self._person_looks()
            await asyncio.sleep(5.0)

    def breaches_now(self) -> list[tuple[Breach, Callable[..., list[Breach]]]]:
        wanted = [
            (Breach(f"deployment {name} is not there"), FINALLY[0])
            for name in self._deployed
            if name not in {record.name for record in self.records().deployments}
        ]
        wanted += [
            (Breach(f"deployment {record.name} is not what the person deployed last"), FINALLY[0])
            for record in self.records().deployments
            if self._deployed.get(record.name) != record.manifest_text or record.rollout is not RolloutState.DONE
        ]
        return wanted + [(breach, checker) for checker in FINALLY for breach in checker(self)]

    async def _watch(self) -> None:
        while True:
            self.check()
            await asyncio.sleep(CHECK_SECONDS)

    def check(self) -> None:
        for checker in ALWAYS:
            for breach in checker(self):
                self._violate(checker.__name__, checker.__doc__ or "", breach)

    # The person.

    async def deploy(self, name: str, text: str) -> None:
        self._deployed[name] = text
        await self.person(
            f"deploys {name}", lambda actions: actions.deploy(name, ManifestUpload(text), PERSON, "", None)
        )

    async def person(self, what: str, request: Callable[[OperatorActions], Awaitable[object]], tries: int = 60) -> bool:
        """Asks the leader, again and again until it acknowledges."""
        self.trace.tell(Voice.PERSON, PERSON.name, what)
        text = "nobody leads"
        for _ in range(tries):
            for monitor in self.monitors:
                if monitor.leads:
                    text = await self._asked(monitor, request)
                    if not text:
                        self.trace.tell(Voice.PERSON, PERSON.name, f"{what}: acknowledged")
                        return True
            await asyncio.sleep(1.0)
        self.trace.tell(Voice.PERSON, PERSON.name, f"{what}: gives up: {text}")
        return False

    async def _asked(self, monitor: MonitorProcess, request: Callable[[OperatorActions], Awaitable[object]]) -> str:
        answer = monitor.ask(request, 20.0)
        await asyncio.wait({answer}, timeout=30.0)
        return answer.result() if answer.done() else "no answer"

    async def _person_looks(self) -> None:
        """Does what the system asks of people, and says so in its records."""
        records = self.records()
        switches = self._switches()
        if not switches.resurrection:
            await self.person("switches resurrection on", lambda a: a.switch_resurrection(True, PERSON, ""))
        if switches.paused_until > self.monitors[0].unix_time():
            await self.person("ends the pause", lambda a: a.resume(PERSON, ""))
        if any(operation.hold is Hold.MELTDOWN for operation in records.operations.values()):
            await self.person("overrides the meltdown", lambda a: a.override_meltdown(3600.0, PERSON, "looked"))
        for instance, operation in records.operations.items():
            if operation.hold is Hold.UNFENCED and operation.old_vm is not None:
                self._pull_the_plug(operation.old_vm.key)
                await self.person(
                    f"vouches for {operation.old_vm.key}",
                    lambda a, i=instance: a.confirm_fence(i, PERSON, "pulled its plug"),  # type: ignore[misc]
                    tries=3,
                )
            if "is held by" in operation.error:
                self._detach_from_what_is_off()
        names = {record.name for record in records.deployments}
        for name, text in list(self._deployed.items()):
            failed = any(
                record.name == name and (record.rollout is RolloutState.FAILED or record.manifest_text != text)
                for record in records.deployments
            )
            if name not in names or failed:
                await self.deploy(name, text)

    def _pull_the_plug(self, key: str) -> None:
        for machine in self.fleet_of_machines.values():
            if machine.key == key:
                self.cloud.kill_vm(machine.vm_cid)

    def _detach_from_what_is_off(self) -> None:
        """In the cloud's console: a VM that the cloud forgot, and that is off, gives back its disks."""
        for vm in self.cloud.vms.values():
            if not vm.can_write:
                for disk in sorted(vm.attached):
                    self.trace.tell(Voice.PERSON, PERSON.name, f"detaches {disk} from {vm.cid}, which is off")
                    vm.attached.discard(disk)
                    vm.machine.detach(disk)

    def _switches(self) -> Switches:
        bucket = self.server.store.buckets.get(SWITCHES)
        entry = bucket.entries.get(SWITCHES) if bucket is not None else None
        return codec.from_json(Switches, entry.value) if entry is not None else Switches()

    def person_later(self, act: str, fault: Fault) -> None:
        """A person's whim, as a fault of the plan."""
        self.outside(self._whim(act, fault))

    async def _whim(self, act: str, fault: Fault) -> None:
        scenario = self.scenario
        match act:
            case "DEPLOYED":
                fronts = scenario.fronts + fault.depth % 2
                text = manifests.shop(scenario.databases, fronts, fault.depth % 7)
                await self.deploy(manifests.DISKY, text)
            case "RECREATED":
                instances = sorted(self.records().instances)
                if instances:
                    chosen = instances[int(fault.target * len(instances))]
                    await self.person(
                        f"recreates {chosen}", lambda a: a.act("recreate", chosen, (), PERSON, "whim"), tries=5
                    )
            case "PAUSED":
                await self.person("pauses", lambda a: a.pause(fault.lasts_seconds, PERSON, "whim"), tries=5)
            case "SWITCHED_OFF":
                await self.person("switches off", lambda a: a.switch_resurrection(False, PERSON, "whim"), tries=5)
                await asyncio.sleep(fault.lasts_seconds)
                await self.person("switches on", lambda a: a.switch_resurrection(True, PERSON, "whim"))
            case "DELETED":
                disks = fault.depth % 2 == 0
                await self.person(
                    f"deletes {manifests.SMALL}", lambda a: a.delete(manifests.SMALL, disks, PERSON, "whim"), tries=5
                )
                await asyncio.sleep(fault.lasts_seconds)
                await self.person(
                    f"deploys {manifests.SMALL} again",
                    lambda a: a.deploy(manifests.SMALL, ManifestUpload(manifests.blog()), PERSON, "", None),
                    tries=5,
                )

    # What the world is told.

    def _make_machine(self, vm: SimulatedVm) -> Machine:
        cid, request = vm.cid, vm.request
        boots = self.next_boots_never <= 0
        if not boots:
            self.next_boots_never -= 1
        settings = replace(request.settings, vm_cid=cid)
        machine = Machine(
            self.loop, self.server, self.trace, Random(f"vm {self.seed} {cid}"), cid, request.key, settings, boots
        )
        machine.on_mount = self.check
        self.fleet_of_machines[cid] = machine
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
                    monitor.heard_freshly.add(agent)
                else:
                    self.count("messages delivered late")
                    self.loop.call_soon(self.check, context=contextvars.Context())

    def _written(self, bucket: str, key: str, value: bytes | None, revision: int) -> None:
        before = self._before.get((bucket, key))
        match bucket:
            case "operations":
                after = None if value is None else codec.from_json(Operation, value)
                assert before is None or isinstance(before, Operation)
                self._operation_written(before, after)
                line = operation_line(before, after)
                subject = str((after or before).instance) if (after or before) is not None else key  # type: ignore[union-attr]
            case "incidents":
                incident = None if value is None else codec.from_json(Incident, value)
                assert before is None or isinstance(before, Incident)
                after = incident  # type: ignore[assignment]
                line = incident_line(before, incident)
                subject = incident.key if incident is not None else key
            case _:
                return
        self._before[bucket, key] = after
        if line:
            self.trace.tell(Voice.RECORD, subject, line)

    def _operation_written(self, before: Operation | None, after: Operation | None) -> None:
        if after is None or after.kind is not OperationKind.RESURRECT:
            return
        if before is None or before.id != after.id:
            self.count("resurrections begun")
        if after.step is Step.FENCE and (before is None or before.step is Step.GUARD) and after.old_vm is not None:
            self.count("resurrections admitted")
            self._check_spared(after)
            if self.scenario.harmless:
                breach = Breach(f"{after.instance} is to be rebuilt: {after.reason}", (str(after.instance),))
                self._violate("never_rebuilt", RESTART_SENTENCE, breach)

    def _check_spared(self, operation: Operation) -> None:
        """The VM about to be fenced must not be one of which nothing bad has happened for longer than a lease."""
        assert operation.old_vm is not None
        if not self.faults.weather_is_calm():
            return  # a bus that loses every third message is a disturbance for as long as it does (mixed, seed 7)
        for machine in self.fleet_of_machines.values():
            if machine.key != operation.old_vm.key or machine.power is not PowerState.RUNNING:
                continue
            since = max(self._undisturbed_since, machine.undisturbed_since(), self._leader_undisturbed_since())
            lease = policy_of(self.scenario).liveness.lease_seconds
            if self.loop.time() - since > lease + 1.0:
                breach = Breach(
                    f"{operation.instance}: {machine.vm_cid} is to be fenced ({operation.reason}), though it, the bus"
                    f" and the monitor were undisturbed for {self.loop.time() - since:.1f} s",
                    (str(operation.instance), str(machine.vm_cid)),
                )
                self._violate("always_spared", RESTART_SENTENCE, breach)

    def _leader_undisturbed_since(self) -> float:
        since = [
            max(monitor.started_at, monitor.bus.connected_since if monitor.bus is not None else self.loop.time())
            for monitor in self.monitors
            if monitor.leads
        ]
        return max(since, default=self.loop.time())

    def disturbed(self) -> None:
        """Something befell the bus or the monitors."""
        self._undisturbed_since = self.loop.time()

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
            self._violate("no_defects", "No part of the system meets an error that it did not expect.", Breach(text))

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def outside(self, work: Awaitable[object]) -> asyncio.Task[object]:
        """A task of the world, in no process."""
        return self.loop.create_task(_run(work), context=contextvars.Context())

    def _violate(self, checker: str, sentence: str, breach: Breach) -> None:
        if (checker, breach.text) in self._violated or len(self.violations) >= 10:
            return
        self._violated.add((checker, breach.text))
        at = self.loop.time() - 1000.0
        self.trace.tell(Voice.CHECK, checker, f"VIOLATED: {breach.text}")
        self.violations.append(Violation(at, checker, " ".join(sentence.split()), breach.text, breach.subjects))


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


async def _run(work: Awaitable[object]) -> object:
    return await work
