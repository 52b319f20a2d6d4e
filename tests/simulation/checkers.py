"""The sentences that must hold, each a function that looks at the world and says where it does not.

Law: a checker believes nothing that the system says of itself: it reads the hypervisor's truth, the engine's truth
and the bytes in the bus's store. Those named `always_…` look at every change and every second; those named
`finally_…` look when faults have ceased and everybody had time.

Does not know: how the world is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    Incident,
    InstanceRecord,
    Operation,
    Step,
)
from protocol.ids import AgentId, DiskCid, InstanceId, VmCid

LATE_TOLERANCE_SECONDS = 2.6
"""How much too young a monitor may hold a heartbeat: `late_seconds` of the policy, and the network's own."""


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


@dataclass(frozen=True, slots=True)
class Belief:
    """What one monitor holds: when each agent was last certainly alive; and the truth: when the newest message that it
    has from it was sent. Loop seconds. Only agents of which it has had a message that was not late: of late ones alone
    nobody can know how late they are."""

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


class World(Protocol):
    def now(self) -> float: ...

    def machines(self) -> tuple[MachineTruth, ...]: ...

    def records(self) -> Records: ...

    def beliefs(self) -> tuple[Belief, ...]: ...

    def running(self, vm: VmCid) -> Mapping[str, str]:
        """Container name → specification hash, of those that run and are healthy by the engine's own word."""
        ...

    def expected_containers(self, instance: InstanceId) -> Mapping[str, str]: ...


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
    breaches += [
        Breach(f"{machine.vm_cid} ({machine.key}) runs and belongs to no instance", (str(machine.vm_cid), machine.key))
        for machine in machines
        if machine.key not in wanted_keys
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
        if incident.resolved_at is None
    ]


def visible_hold(operation: Operation) -> bool:
    """Whether an operation that does not go on says so: a hold with a sentence for people."""
    return operation.hold is not Hold.NONE and bool(operation.error)


ALWAYS: tuple[Callable[[World], list[Breach]], ...] = (
    always_one_writer,
    always_attached_once,
    always_young_enough,
    always_proven_before_replaced,
)
FINALLY: tuple[Callable[[World], list[Breach]], ...] = (finally_as_expected, finally_incidents_resolved)

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
