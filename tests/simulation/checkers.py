"""The sentences that must hold, each a function that looks at the world and says where it does not.

Law: a checker believes nothing that the system says of itself: it reads the hypervisor's truth, the engine's truth
and the bytes in the bus's store. Those named `always_…` look at every change and every second; those named
`finally_…` look when faults have ceased and everybody had time.

Does not know: how the world is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from healthmonitor.channels.channel import Notification
from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    Incident,
    InstanceRecord,
    Operation,
    RolloutState,
    SpareRecord,
    SpareState,
    Step,
)
from protocol.ids import AgentId, DeploymentName, DiskCid, InstanceId, VmCid
from tests.simulation.platters import Content

LATE_TOLERANCE_SECONDS = 2.6
"""How much too young a monitor may hold a heartbeat: `late_seconds` of the policy, and the network's own."""

SILENT_STEP_SECONDS = 200.0
"""Longer than any step may take by its own deadlines in a run (see `world.policy_of`)."""
LEFT_OUT_LEASES = 8
"""For so long a VM that is off may have no operation: for as long as it takes to be missing, and an operation to be
begun."""
ABOUT_THE_FOREIGN = frozenset({"vm_unknown"})
"""What is reported of somebody else's VM, for as long as it is there."""


@dataclass(frozen=True, slots=True)
class MachineTruth:
    """One VM as its hypervisor knows it. `can_write`: it is not off (a frozen one may go on any moment)."""

    vm_cid: VmCid
    agent_id: AgentId
    key: str
    can_write: bool
    frozen: bool
    attached: frozenset[DiskCid]
    mounted: frozenset[DiskCid]
    alive_at: float  # when it last was able to do anything, loop seconds
    foreign: bool = False
    contents: tuple[Content, ...] = ()  # what is mounted in truth
    applied: tuple[int, int] = (0, 0)  # generation and revision of what its agent was told
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Belief:
    """What one monitor holds: when each agent was last certainly alive; and the truth: when the newest message that it
    has from it was sent. Loop seconds. Only agents of whose present boot it has had a message that was not late: of
    late ones alone nobody can know how late they are."""

    monitor: str
    alive_at: Mapping[AgentId, float]
    evidence_at: Mapping[AgentId, float]


@dataclass(frozen=True, slots=True)
class Records:
    """What stands in the bus's store."""

    deployments: tuple[DeploymentRecord, ...]
    instances: Mapping[InstanceId, InstanceRecord]
    operations: Mapping[InstanceId, Operation]
    incidents: tuple[Incident, ...]
    spares: Mapping[str, SpareRecord] = field(default_factory=dict)  # by key


class World(Protocol):
    def now(self) -> float: ...

    def machines(self) -> tuple[MachineTruth, ...]: ...

    def records(self) -> Records: ...

    def beliefs(self) -> tuple[Belief, ...]: ...

    def lease_seconds(self) -> float: ...

    def wanted_spares(self) -> int: ...

    def running(self, vm: VmCid) -> Mapping[str, str]:
        """Container name → specification hash, of those that run and are healthy by the engine's own word."""
        ...

    def expected_containers(self, instance: InstanceId) -> Mapping[str, str]: ...

    def contents(self) -> Mapping[DiskCid, Content]: ...

    def size_mib(self, disk: DiskCid) -> int: ...

    def applied_before(self, vm: VmCid) -> tuple[int, int]:
        """The generation and revision that its agent was seen to hold at the look before this one."""
        ...

    def leading_undisturbed_since(self) -> float:
        """Since when one and the same monitor has led, with nothing happening to it, to the bus or to the cloud."""
        ...

    def at_step_since(self, operation: Operation) -> float: ...

    def leaders(self) -> tuple[str, ...]: ...

    def person_acknowledged(self) -> Mapping[str, str | None]:
        """Deployment → the manifest of which the last acknowledgement was; None: not known which counts."""
        ...

    def opened_incidents(self) -> Mapping[tuple[str, float], Incident]:
        """By key and time of opening: all that were ever written as open and explained by no other."""
        ...

    def alarms_of_the_gone(self) -> frozenset[str]:
        """Threads about the loss of the bus whose monitor was taken away for ever while it stood in its note."""
        ...

    def told(self) -> Mapping[str, list[Notification]]:
        """Receiver → what it took, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Breach:
    text: str
    subjects: tuple[str, ...] = ()


def always_one_writer(world: World) -> list[Breach]:
    """A disk never has two writers."""
    writers: dict[DiskCid, list[MachineTruth]] = {}
    for machine in world.machines():
        if machine.can_write:
            for disk in sorted(machine.attached & machine.mounted):
                writers.setdefault(disk, []).append(machine)
    return [
        Breach(
            f"{disk} is attached and mounted in {', '.join(f'{one.vm_cid} ({one.key})' for one in together)}",
            (str(disk), *(str(one.vm_cid) for one in together), *(one.key for one in together)),
        )
        for disk, together in sorted(writers.items())
        if len(together) > 1
    ]


def always_attached_once(world: World) -> list[Breach]:
    """A disk is never attached to a VM while another that may still write has it (fence before attach)."""
    holders: dict[DiskCid, list[MachineTruth]] = {}
    for machine in world.machines():
        if machine.can_write:
            for disk in sorted(machine.attached):
                holders.setdefault(disk, []).append(machine)
    return [
        Breach(
            f"{disk} is attached to {', '.join(f'{one.vm_cid} ({one.key})' for one in together)}",
            (str(disk), *(str(one.vm_cid) for one in together), *(one.key for one in together)),
        )
        for disk, together in sorted(holders.items())
        if len(together) > 1
    ]


def always_young_enough(world: World) -> list[Breach]:
    """A heartbeat never renews what it is too old for."""
    return [
        Breach(
            f"{belief.monitor} holds that {agent} lived {believed - belief.evidence_at.get(agent, 0.0):.1f} s after the"
            " newest message that it has from it was sent",
            (str(agent),),
        )
        for belief in world.beliefs()
        for agent, believed in belief.alive_at.items()
        if believed > belief.evidence_at.get(agent, 0.0) + LATE_TOLERANCE_SECONDS
    ]


def always_proven_before_replaced(world: World) -> list[Breach]:
    """No VM of an instance is made while an older one of it has no fence proof and may still write."""
    records = world.records()
    machines = {machine.key: machine for machine in world.machines()}
    breaches = []
    for instance, operation in records.operations.items():
        if operation.old_vm is None or operation.step not in _BEHIND_FENCE:
            continue
        old = machines.get(operation.old_vm.key)
        if old is not None and old.can_write:
            breaches.append(
                Breach(
                    f"{instance}: the operation is at {operation.step.value}, and {old.vm_cid} still runs"
                    f" (proof: {operation.fence_proof!r} by {operation.proof_by!r})",
                    (str(instance), str(old.vm_cid), old.key),
                )
            )
    return breaches


def always_nobodys(world: World) -> list[Breach]:
    """A spare is no instance's VM and has no disk, and no VM is two instances'."""
    records = world.records()
    machines = {machine.key: machine for machine in world.machines()}
    named: dict[str, list[str]] = {}
    for instance, record in sorted(records.instances.items()):
        if record.vm is not None:
            named.setdefault(record.vm.key, []).append(instance)
    breaches = [
        Breach(f"{key} is the VM of {' and of '.join(instances)}", (key, *instances))
        for key, instances in named.items()
        if len(instances) > 1
    ]
    for key, spare in records.spares.items():
        if spare.state not in (SpareState.MAKING, SpareState.READY):
            continue
        holds = machines[key].attached if key in machines else frozenset()
        if key in named or holds:
            whose = " and of ".join(named.get(key, ["nobody"]))
            breaches.append(
                Breach(f"{key} is {spare.state.value}, the VM of {whose}, and holds {sorted(holds)}", (key,))
            )
    return breaches


def always_own_disk(world: World) -> list[Breach]:
    """No VM has another's disk mounted, whatever device it came by."""
    return [
        Breach(
            f"{machine.vm_cid} ({machine.key}) has mounted a disk that is another site's",
            (str(machine.vm_cid), machine.key),
        )
        for machine in world.machines()
        for content in machine.contents
        if content.foreign
    ]


def always_formatted_once(world: World) -> list[Breach]:
    """A disk that holds something is never formatted."""
    return [
        Breach(f"{disk} was formatted {content.formats} times", (str(disk),))
        for disk, content in world.contents().items()
        if content.formats > 1
    ]


def always_newest_applied(world: World) -> list[Breach]:
    """What an agent was told is never taken back by something older, or by what was meant for another generation."""
    breaches = []
    for machine in world.machines():
        generation, revision = machine.applied
        before = world.applied_before(machine.vm_cid)
        if revision and generation != machine.generation:
            text = f"is of generation {machine.generation}, and holds what is for {generation}"
            breaches.append(Breach(f"{machine.vm_cid} ({machine.key}) {text}", (str(machine.vm_cid), machine.key)))
        elif revision < before[1]:
            text = f"holds revision {revision}, and held {before[1]} before"
            breaches.append(Breach(f"{machine.vm_cid} ({machine.key}) {text}", (str(machine.vm_cid), machine.key)))
    return breaches


def always_one_leader(world: World) -> list[Breach]:
    """No two monitors may act at the same time."""
    leaders = world.leaders()
    return [Breach(f"{' and '.join(leaders)} lead", leaders)] if len(leaders) > 1 else []


def always_visible(world: World) -> list[Breach]:
    """Every operation ends or is visible: one that does not go on says why."""
    now, calm_since = world.now(), world.leading_undisturbed_since()
    return [
        Breach(
            f"{instance}: {operation.kind.value} stands at {operation.step.value} for"
            f" {now - world.at_step_since(operation):.0f} s and says nothing",
            (str(instance),),
        )
        for instance, operation in world.records().operations.items()
        if now - max(calm_since, world.at_step_since(operation)) > SILENT_STEP_SECONDS
        and not visible_hold(operation)
        and operation.step is not Step.DONE
    ]


def always_taken_care_of(world: World) -> list[Breach]:
    """No expected VM is left out for ever: one that does not run has an operation, or says why it has none."""
    now, calm_since = world.now(), world.leading_undisturbed_since()
    longest_seconds = LEFT_OUT_LEASES * world.lease_seconds()
    if now - calm_since < longest_seconds:
        return []
    records = world.records()
    machines = {machine.key: machine for machine in world.machines()}
    rolling = {record.name for record in records.deployments if record.rollout is not RolloutState.DONE}
    breaches = []
    for instance, record in records.instances.items():
        if record.ignore or record.deleting or instance in records.operations or record.deployment in rolling:
            continue
        machine = machines.get(record.vm.key) if record.vm is not None else None
        if machine is None or (not machine.can_write and now - machine.alive_at > longest_seconds):
            what = "has no VM" if machine is None else f"{machine.vm_cid} is off for {now - machine.alive_at:.0f} s"
            breaches.append(Breach(f"{instance}: {what}, and nothing is done about it", (str(instance),)))
    return breaches


def always_as_acknowledged(world: World) -> list[Breach]:
    """What was acknowledged is never lost: the deployment that a person was told is taken stands in the store."""
    stands = {record.name: record.manifest_text for record in world.records().deployments}
    return [
        Breach(f"deployment {name} was acknowledged, and another one stands", (name,))
        for name, text in world.person_acknowledged().items()
        if text is not None and stands.get(DeploymentName(name)) != text
    ]


def always_left_alone(world: World) -> list[Breach]:
    """A VM that is not ours runs on, whatever its tags say."""
    return [
        Breach(f"{machine.vm_cid} ({machine.key}) is somebody else's, and does not run any more", (machine.key,))
        for machine in world.machines()
        if machine.foreign and not machine.can_write
    ]


def finally_as_expected(world: World) -> list[Breach]:
    """After faults cease the fleet converges to what is expected."""
    records = world.records()
    machines = [machine for machine in world.machines() if machine.can_write]
    by_key = {machine.key: machine for machine in machines}
    breaches = []
    wanted_keys = set()
    for instance, record in sorted(records.instances.items()):
        if record.vm is not None:
            wanted_keys.add(record.vm.key)
        breaches += [
            Breach(f"{instance}: {problem}", (str(instance), *(() if record.vm is None else (record.vm.key,))))
            for problem in _instance_problems(world, record, by_key)
        ]
    for deployment in records.deployments:
        for group in deployment.manifest.groups:
            for index in range(group.instances):
                instance = InstanceId(f"{deployment.name}/{group.name}/{index}")
                if instance not in records.instances:
                    breaches.append(Breach(f"{instance}: is in the manifest and in no record", (str(instance),)))
    ready = {key for key, spare in records.spares.items() if spare.state is SpareState.READY and key in by_key}
    wanted_keys |= ready
    if len(ready) != world.wanted_spares() or ready != set(records.spares):
        states = ", ".join(f"{key} {spare.state.value} {spare.error}" for key, spare in records.spares.items())
        breaches.append(Breach(f"{len(ready)} spares are there instead of {world.wanted_spares()}: {states or 'none'}"))
    breaches += [
        Breach(f"{machine.vm_cid} ({machine.key}) runs and belongs to no instance", (str(machine.vm_cid), machine.key))
        for machine in machines
        if machine.key not in wanted_keys and not machine.foreign
    ]
    breaches += [
        Breach(
            f"{instance}: the operation {operation.kind.value} is still at {operation.step.value}"
            f" ({operation.hold.value or 'no hold'}): {operation.error}",
            (str(instance),),
        )
        for instance, operation in sorted(records.operations.items())
        if operation.step is not Step.DONE
    ]
    return breaches


def finally_incidents_resolved(world: World) -> list[Breach]:
    """Every incident that opened is resolved once over."""
    return [
        Breach(f"{incident.key} is still open: {incident.title}", (incident.subject,))
        for incident in world.records().incidents
        if incident.resolved_at is None and incident.kind not in ABOUT_THE_FOREIGN
    ]


def finally_delivered(world: World) -> list[Breach]:
    """Every incident that opened is delivered, and its end too."""
    breaches = []
    for receiver, taken in world.told().items():
        last_told: dict[str, bool] = {}  # incident → over
        told: dict[str, float] = {}  # incident → the latest opening that was told
        counted_only = any(each.left_out for each in taken)
        for notification in taken:
            for item in notification.items:
                incident = item.incident
                if incident.kind == "bus_lost":  # each monitor's own, written nowhere
                    last_told[notification.thread] = incident.resolved_at is not None
                    continue
                told[incident.key] = max(incident.opened_at, told.get(incident.key, 0.0))
                over = incident.resolved_at is not None
                if over or not incident.inhibited_by:  # else it is only listed beside what explains it
                    last_told[incident.key] = over
        if counted_only:
            continue
        breaches += [
            Breach(f"{receiver} was never told of {key} ({opened_at:.3f}): {incident.title}", (incident.subject, key))
            for (key, opened_at), incident in world.opened_incidents().items()
            # One that was over and opened again before it could be told is told as what it is then.
            # That a channel fails is told by the others.
            if told.get(key, 0.0) < opened_at and key != f"channel_failing:{receiver}"
        ]
        forsaken = world.alarms_of_the_gone()
        open_now = {incident.key for incident in world.records().incidents if incident.resolved_at is None}
        breaches += [
            Breach(f"{receiver} was told of {key}, and not of its end", (key,))
            for key, over in last_told.items()
            if not over and key not in open_now and key not in forsaken
        ]
    return breaches


def visible_hold(operation: Operation) -> bool:
    """Whether an operation that does not go on says so: a hold with a sentence for people."""
    return operation.hold is not Hold.NONE and bool(operation.error)


ALWAYS: tuple[Callable[[World], list[Breach]], ...] = (
    always_one_writer,
    always_attached_once,
    always_young_enough,
    always_proven_before_replaced,
    always_nobodys,
    always_own_disk,
    always_formatted_once,
    always_newest_applied,
    always_one_leader,
    always_visible,
    always_taken_care_of,
    always_as_acknowledged,
    always_left_alone,
)
FINALLY: tuple[Callable[[World], list[Breach]], ...] = (
    finally_as_expected,
    finally_incidents_resolved,
    finally_delivered,
)

HELD_SENTENCE = "Of a fleet that dies at once not one VM is rebuilt without a person's word."
RESTART_SENTENCE = "A monitor's restart alone causes no resurrection."

_BEHIND_FENCE = frozenset(
    {
        Step.DELETE_VM,
        Step.MAKE_DISKS,
        Step.FREE_DISKS,
        Step.CREATE_VM,
        Step.ATTACH,
        Step.HEAR_AGENT,
        Step.MOUNT,
        Step.APPLY,
        Step.HEALTHY,
        Step.FORGET,
    }
)


def _instance_problems(world: World, record: InstanceRecord, machines: Mapping[str, MachineTruth]) -> list[str]:
    if record.vm is None:
        return ["has no VM"]
    machine = machines.get(record.vm.key)
    if machine is None:
        return [f"its VM {record.vm.key} does not run"]
    problems = []
    if machine.frozen:
        problems.append("its VM is frozen")
    if machine.agent_id != record.vm.agent_id:
        problems.append(f"its VM has agent {machine.agent_id}, the record says {record.vm.agent_id}")
    for disk in record.disks:
        if disk.cid is None:
            problems.append(f"disk {disk.name} was never made")
        elif disk.cid not in machine.attached:
            problems.append(f"disk {disk.cid} is not attached")
        elif disk.cid not in machine.mounted:
            problems.append(f"disk {disk.cid} is not mounted")
        elif world.size_mib(disk.cid) < disk.size_mib:
            problems.append(f"disk {disk.cid} has {world.size_mib(disk.cid)} MiB, not {disk.size_mib}")
    containers = world.expected_containers(record.instance)
    running = world.running(machine.vm_cid)
    for name, wanted_hash in sorted(containers.items()):
        actual = running.get(name)
        if actual is None:
            problems.append(f"container {name} does not run healthy")
        elif actual != wanted_hash:
            problems.append(f"container {name} runs with specification {actual}, not {wanted_hash}")
    problems += [f"container {name} should not be there" for name in sorted(set(running) - set(containers))]
    return problems
