"""What only history shows: sentences about acts (who did what, when, and was it written down before), each looked at in
the moment of the act.

Laws: an act is judged by the truth of that moment (who leads, what stands in the store, what the bus has delivered),
never by what the actor says. What stood in the store until an answer that is still on its way counts too: the actor
cannot know better.

Does not know: what a look from outside shows (`checkers.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from healthmonitor.core.meltdown import too_many
from healthmonitor.core.policy import MeltdownPolicy, Policy
from healthmonitor.core.records import DiskBinding, Hold, InstanceRecord, Operation, OperationKind, Step, Switches
from protocol.ids import DiskCid, InstanceId, OperationId, VmCid, split_instance_id
from tests.simulation.centre import MonitorProcess
from tests.simulation.checkers import LATE_TOLERANCE_SECONDS, Breach, Records
from tests.simulation.cloud import SimulatedCloud
from tests.simulation.loop import current_process

ANSWER_SECONDS = 6.0
"""For so long an actor may not know yet what it, or another, has written."""
BUDGET_SECONDS = 3600.0
FLEET = "fleet"

STEPS_OF_CALL: Mapping[str, frozenset[Step]] = MappingProxyType(
    {
        "create_vm": frozenset({Step.CREATE_VM}),
        "fence": frozenset({Step.FENCE}),
        "delete_vm": frozenset({Step.DELETE_VM}),
        "create_disk": frozenset({Step.MAKE_DISKS}),
        "resize_disk": frozenset({Step.MAKE_DISKS, Step.REWORK}),
        "delete_disk": frozenset({Step.FORGET}),
        "attach_disk": frozenset({Step.ATTACH, Step.MOUNT, Step.REWORK}),
        "detach_disk": frozenset({Step.FREE_DISKS, Step.MOUNT, Step.APPLY, Step.HEALTHY, Step.REWORK, Step.SWAP}),
    }
)
"""Calls that change something, and the steps that take them. Whoever adds a step adds it here."""
COMMANDS = frozenset({"apply", "drain", "mount_disk", "unmount_disk"})
"""Requests to agents that only the leader makes."""

ONE_ACTOR = "The leader's acts never interleave with another's: only who leads acts, and no two lead."
WRITTEN_FIRST = "Every act stands in the journal before it is begun."
SPARED = "No VM is taken away whose agent was heard within its lease."
SHARE = "Meltdown never lets more than its share be rebuilt."
BUDGET = "No more VMs are rebuilt within an hour than the budget says."
AT_ONCE = "No more VMs are rebuilt at once than may be."
KEPT = "What was acknowledged is never lost."
OURS = "A VM that is not ours is left alone."


class Surroundings(Protocol):
    monitors: list[MonitorProcess]
    policy: Policy

    @property
    def cloud(self) -> SimulatedCloud: ...

    def now(self) -> float: ...

    def records(self) -> Records: ...

    def switches(self) -> Switches: ...

    def is_foreign(self, vm: VmCid) -> bool: ...

    def thawed_at(self, vm: VmCid) -> float: ...

    def undisturbed_since(self, vm: VmCid) -> float:
        """Since when nothing has befallen the VM or its connection."""
        ...

    def clocks_agree_since(self) -> float: ...

    def violate(self, checker: str, sentence: str, breach: Breach) -> None: ...


class Witness:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._operations: dict[InstanceId, deque[tuple[float, Operation | None]]] = {}
        self._step_since: dict[InstanceId, tuple[OperationId, Step, float]] = {}
        self._admitted: list[tuple[float, Operation, bool]] = []  # when, which, by a person's override
        self._unfenced_at: dict[InstanceId, float] = {}
        self._begun_at: dict[OperationId, float] = {}

    # What is written.

    def operation_written(self, instance: InstanceId, before: Operation | None, after: Operation | None) -> None:
        now = self._world.now()
        history = self._operations.setdefault(instance, deque(maxlen=8))
        history.append((now, after))
        if after is None:
            self._step_since.pop(instance, None)
            return
        self._begun_at.setdefault(after.id, now)
        known = self._step_since.get(instance)
        if known is None or known[:2] != (after.id, after.step):
            self._step_since[instance] = (after.id, after.step, now)
        if after.hold is Hold.UNFENCED:
            self._unfenced_at[instance] = now
        if (
            after.kind is OperationKind.RESURRECT
            and after.step is Step.FENCE
            and not after.vms_lost
            and before is not None
            and before.id == after.id
            and before.step is Step.GUARD
        ):
            self._admission(after, now)

    def at_step_since(self, operation: Operation) -> float:
        known = self._step_since.get(operation.instance)
        return known[2] if known is not None else self._world.now()

    def _admission(self, operation: Operation, now: float) -> None:
        policy = self._world.policy
        overridden = self._world.switches().meltdown_overridden_until > min(
            monitor.unix_time() for monitor in self._world.monitors
        )
        self._admitted.append((now, operation, overridden))
        if policy.meltdown.enabled:
            self._check_share(operation, policy.meltdown, now)
        within = [at for at, _, _ in self._admitted if at > now - BUDGET_SECONDS]
        budget = policy.resurrection.hourly_budget
        if len(within) > budget and self._world.clocks_agree_since() < now - BUDGET_SECONDS:
            self._violate("always_within_budget", BUDGET, f"{len(within)} within an hour, of {budget}", operation)
        others = [
            other.instance
            for other in self._world.records().operations.values()
            if other.kind is OperationKind.RESURRECT
            and other.id != operation.id
            and other.step not in (Step.CONFIRM, Step.GUARD, Step.DONE)
            and now - self._unfenced_at.get(other.instance, float("-inf")) > ANSWER_SECONDS
            and other.hold is not Hold.UNFENCED
        ]
        if len(others) >= policy.resurrection.max_in_flight:
            text = f"{operation.instance} is admitted beside {', '.join(sorted(others))}"
            self._violate("always_few_at_once", AT_ONCE, text, operation)

    def _check_share(self, operation: Operation, policy: MeltdownPolicy, now: float) -> None:
        """In any span as long as a meltdown needs to end by itself. Two VMs of one instance are one loss, as for the
        monitor: an instance whose every VM dies is a crash loop."""
        deployment = split_instance_id(operation.instance)[0]
        instances = self._world.records().instances
        for scope in (FLEET, deployment):
            size = sum(scope in (FLEET, split_instance_id(instance)[0]) for instance in instances)
            # One that is lost over and over is no larger share of the fleet; the budget is for that.
            lost = {
                each.instance
                for at, each, overridden in self._admitted
                # One that was lost long before, and held until a meltdown had ended by itself, is no part of the next.
                if min(at, self._begun_at.get(each.id, at)) > now - policy.calm_seconds
                and not overridden
                and scope in (FLEET, split_instance_id(each.instance)[0])
            }
            if too_many(len(lost), size, policy):
                names = ", ".join(sorted(lost))
                text = f"{len(lost)} of the {size} VMs of {scope} within {policy.calm_seconds:.0f} s: {names}"
                self._violate("always_within_share", SHARE, text, operation)

    # What is done.

    def cloud_called(self, name: str, vm: VmCid | None, disk: DiskCid | None, key: str) -> None:
        actor = self._actor()
        if actor is None or name not in STEPS_OF_CALL:
            return
        what = f"{name} of {vm or ''} {disk or ''} {key}".replace("  ", " ").strip()
        self._check_actor(actor, what, (str(vm or ""), str(disk or "")))
        if vm is not None and self._world.is_foreign(vm) and name in ("fence", "delete_vm", "attach_disk"):
            self._violate("always_ours", OURS, f"{actor.name}: {what}")
        self._check_written(actor, name, vm, disk, key, what)
        if name == "fence" and vm is not None:
            self._check_heard(actor, vm)

    def agent_told(self, actor_process: object, method: str, subject: str) -> None:
        if actor_process is None:
            return  # somebody of the world
        actor = next((each for each in self._world.monitors if each.process is actor_process), None)
        if actor is not None and method in COMMANDS:
            self._check_actor(actor, f"{method} to {subject}", (subject,))

    def _check_actor(self, actor: MonitorProcess, what: str, subjects: tuple[str, ...]) -> None:
        others = [each for each in self._world.monitors if each is not actor and each.leads]
        if actor.leads and not others:
            return
        who = f"{actor.name}, which {'leads' if actor.leads else 'does not lead'}, does {what}"
        also = f", while {', '.join(each.name for each in others)} leads" if others else ""
        self._violate("always_one_actor", ONE_ACTOR, who + also, None, (actor.name, *subjects))

    def _check_written(
        self, actor: MonitorProcess, name: str, vm: VmCid | None, disk: DiskCid | None, key: str, what: str
    ) -> None:
        records = self._world.records()
        instances = set(self._instances(records, name, vm, disk, key))
        steps = STEPS_OF_CALL[name]
        for instance in instances:
            for operation in self._lately(instance, records):
                if operation is not None and operation.step in steps:
                    return
        if name == "create_vm" and key in records.spares:
            return
        if name in ("fence", "delete_vm", "delete_disk") and not instances:
            return  # left over, or an orphan: that it is nobody's is for `always_ours` and `always_attached_once`
        text = f"{actor.name}: {what}, for which nothing at {' or '.join(sorted(step.value for step in steps))} stands"
        self._violate("always_written_first", WRITTEN_FIRST, text, None, tuple(map(str, instances)))

    def _instances(
        self, records: Records, name: str, vm: VmCid | None, disk: DiskCid | None, key: str
    ) -> Iterator[InstanceId]:
        """Whose records or operations name what is acted upon."""
        for instance, record in records.instances.items():
            if _names(record, name, vm, disk, key):
                yield instance
        if vm is not None:
            of_vm = self._world.cloud.vms[vm].request.key if vm in self._world.cloud.vms else ""
            for instance in self._operations:
                for operation in self._lately(instance, records):
                    old = operation.old_vm if operation is not None else None
                    if old is not None and (old.vm_cid == vm or old.key == of_vm):
                        yield instance

    def _lately(self, instance: InstanceId, records: Records) -> Iterator[Operation | None]:
        """What stands, and what stood until an answer that may still be on its way."""
        yield records.operations.get(instance)
        until = float("inf")
        for at, operation in reversed(self._operations.get(instance, ())):
            if until < self._world.now() - ANSWER_SECONDS:
                return
            yield operation
            until = at

    def _check_heard(self, actor: MonitorProcess, vm: VmCid) -> None:
        truth = self._world.cloud.vms.get(vm)
        if truth is None or not truth.can_write:
            return
        operation = next(
            (
                each
                for each in self._world.records().operations.values()
                if each.old_vm is not None and each.old_vm.vm_cid == vm
            ),
            None,
        )
        if operation is None or operation.kind is not OperationKind.RESURRECT or operation.old_vm is None:
            return
        evidence = actor.newest_evidence.get(operation.old_vm.agent_id, float("-inf"))
        if operation.vms_lost:
            return  # one that this operation made, and gave up: whatever it says now, it is too late
        ago = self._world.now() - evidence
        if self._world.now() - self._world.undisturbed_since(vm) < LATE_TOLERANCE_SECONDS:
            return  # thawed a moment ago, it looks late until it was asked
        if evidence - self._world.thawed_at(vm) < LATE_TOLERANCE_SECONDS:
            return  # what was heard last came a moment after it thawed, and then nobody could ask it any more
        # Where an answer set what is late, the lease counts from when it was asked for: by so much too soon.
        if ago < self._world.policy.liveness.lease_seconds - LATE_TOLERANCE_SECONDS:
            text = f"{actor.name} fences {vm}, from which it heard {ago:.1f} s ago"
            self._violate("always_heard_is_spared", SPARED, text, operation)

    # What was acknowledged.

    def check_acknowledged(self, acknowledged: Mapping[str, int], stored: Callable[[str], int]) -> None:
        for bucket, revision in acknowledged.items():
            if stored(bucket) < revision:
                text = f"bucket {bucket} is at {stored(bucket)}, and revision {revision} was acknowledged"
                self._violate("always_kept", KEPT, text)

    def _actor(self) -> MonitorProcess | None:
        process = current_process()
        return next((each for each in self._world.monitors if each.process is process), None) if process else None

    def _violate(
        self, checker: str, sentence: str, text: str, operation: Operation | None = None, subjects: tuple[str, ...] = ()
    ) -> None:
        named = () if operation is None else (str(operation.instance),)
        self._world.violate(checker, sentence, Breach(text, tuple(each for each in (*named, *subjects) if each)))


def _successor(binding: DiskBinding) -> DiskCid | None:
    return binding.successor.cid if binding.successor is not None else None


def _names(record: InstanceRecord, call: str, vm: VmCid | None, disk: DiskCid | None, key: str) -> bool:
    if call == "create_vm":
        return record.vm is not None and record.vm.key == key
    if call == "create_disk":
        return any(key in (each.key, each.successor.key if each.successor else "") for each in record.disks)
    if disk is not None and any(disk in (each.cid, each.replaces, _successor(each)) for each in record.disks):
        return True
    return vm is not None and record.vm is not None and record.vm.vm_cid == vm
