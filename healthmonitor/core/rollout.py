"""Which instances are moved to the deployment's present revision now.

Laws:
- Driven by level: looks at the records as they are, remembers nothing, and may be asked at any time.
- Canaries first; the rest only when every canary is healthy; at most `max_in_flight` of a group at once (new instances
  beside: nobody depends on them yet); what did not change is not touched.
- One failing instance stops the rollout: nothing further is moved, created or removed until somebody deploys again.

Does not know: how an instance is moved; that beginning an operation twice is harmless is the resurrector's law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from healthmonitor.core import disk_changes
from healthmonitor.core.image_pins import pins_kept
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup
from healthmonitor.core.planning import operation_kind
from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    RolloutState,
    Step,
)
from protocol.ids import InstanceId, Revision, instance_id


@dataclass(frozen=True, slots=True)
class Create:
    """Make this record and begin CREATE. (Also when the record stands and its VM was never begun.)"""

    record: InstanceRecord


@dataclass(frozen=True, slots=True)
class Move:
    """Put this record over the present one and begin `kind`."""

    record: InstanceRecord
    kind: OperationKind


@dataclass(frozen=True, slots=True)
class Adopt:
    """Nothing that the VM sees has changed: only note that this instance is of the new revision."""

    record: InstanceRecord


@dataclass(frozen=True, slots=True)
class Remove:
    instance: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class DeploymentGone:
    """Being deleted, and no instance is left: forget it."""


Act = Create | Move | Adopt | Remove | DeploymentGone


@dataclass(frozen=True, slots=True)
class RolloutDecision:
    state: RolloutState
    acts: tuple[Act, ...] = ()
    error: str = ""
    reason: str = ""


def decide(
    deployment: DeploymentRecord,
    instances: Mapping[InstanceId, InstanceRecord],
    operations: Mapping[InstanceId, Operation],
    watched_seconds: Callable[[Operation], float],
) -> RolloutDecision:
    """`instances` and `operations`: all there are; those of other deployments are not looked at. `watched_seconds`: for
    how long an operation has been seen to serve its rollout, by a clock that nobody sets."""
    ours = {key: record for key, record in instances.items() if record.deployment == deployment.name}
    if deployment.deleting:
        return _delete(deployment, ours, operations)
    if deployment.rollout in (RolloutState.FAILED, RolloutState.NONE):
        return RolloutDecision(deployment.rollout, error=deployment.rollout_error, reason="nothing is being rolled out")
    failure = _failure(deployment, ours, operations, watched_seconds)
    if failure:
        return RolloutDecision(RolloutState.FAILED, error=failure, reason="stopped")
    look = _Look(deployment, ours, operations)
    canaries = [group for group in deployment.manifest.groups if not look.canaries_done(group)]
    acts: list[Act] = list(look.adoptions())
    for group in deployment.manifest.groups:
        acts += look.next_of(group, canaries_only=bool(canaries))
    if canaries:
        names = ", ".join(group.name for group in canaries)
        return RolloutDecision(RolloutState.CANARIES, tuple(acts), reason=f"canaries of {names}")
    removals = look.removals()
    acts += [removal for removal in removals if not look.is_going(removal.instance)]
    if acts or removals or look.unfinished():
        return RolloutDecision(RolloutState.REST, tuple(acts), reason="canaries are healthy; the rest")
    return RolloutDecision(RolloutState.DONE, reason=f"everything is at revision {deployment.revision}")


class _Look:
    """One deployment at one moment."""

    def __init__(
        self,
        deployment: DeploymentRecord,
        instances: Mapping[InstanceId, InstanceRecord],
        operations: Mapping[InstanceId, Operation],
    ) -> None:
        self._deployment = deployment
        self._instances = instances
        self._operations = operations
        self._kinds: list[tuple[InstanceGroup, InstanceGroup, OperationKind | None]] = []
        """Instances of a group come from one or two former groups: each pair is compared once."""

    def _kind(self, before: InstanceGroup, after: InstanceGroup) -> OperationKind | None:
        """As the plan says it."""
        for known_before, known_after, known in self._kinds:
            if known_after is after and known_before == before:
                return known
        kind = None if before == after else operation_kind(before, after)
        self._kinds.append((before, after, kind))
        return kind

    def places(self, group: InstanceGroup) -> list[tuple[int, InstanceId]]:
        return [(index, instance_id(self._deployment.name, group.name, index)) for index in range(group.instances)]

    def is_new(self, group: InstanceGroup, instance: InstanceId) -> bool:
        """Whether the instance is of this revision. An equal group is as good: it is the same thing that runs."""
        record = self._instances.get(instance)
        return (
            record is not None
            and not record.deleting
            and (record.deployment_revision == self._deployment.revision or self._kind(record.group, group) is None)
        )

    def is_healthy(self, group: InstanceGroup, instance: InstanceId) -> bool:
        record = self._instances.get(instance)
        return (
            self.is_new(group, instance)
            and record is not None
            and record.vm is not None
            and instance not in self._operations
            and not disk_changes.waits(record)
        )

    def canaries_done(self, group: InstanceGroup) -> bool:
        healthy = sum(self.is_healthy(group, instance) for _, instance in self.places(group))
        return healthy >= min(group.update.canaries, group.instances)

    def adoptions(self) -> list[Act]:
        revision = self._deployment.revision
        return [
            Adopt(replace(record, group=group, deployment_revision=revision))
            for group in self._deployment.manifest.groups
            for _, instance in self.places(group)
            for record in [self._instances.get(instance)]
            if record is not None
            and not record.deleting
            and record.deployment_revision != revision
            and self._kind(record.group, group) is None
        ]

    def next_of(self, group: InstanceGroup, canaries_only: bool) -> list[Act]:
        old, absent, moving, new = [], [], 0, 0
        for index, instance in self.places(group):
            record = self._instances.get(instance)
            if self.is_new(group, instance) and record is not None:
                new += 1
                moving += instance in self._operations or disk_changes.waits(record)
                if record.vm is None and instance not in self._operations:
                    absent.append((index, instance))
                    new -= 1
            elif record is None:
                absent.append((index, instance))
            elif not record.deleting and not record.ignore and not self._is_busy(instance):
                old.append((instance, record))
        if canaries_only:
            room = max(0, min(group.update.canaries, group.instances) - new)
            may_create = room
        else:
            room = len(old)
            may_create = len(absent)
        moves = old[: min(room, max(0, group.update.max_in_flight - moving))]
        creations = absent[: max(0, may_create - (len(moves) if canaries_only else 0))]
        return [
            *(self._move(group, record) for _, record in moves),
            *(self._create(group, index, instance) for index, instance in creations),
        ]

    def _is_busy(self, instance: InstanceId) -> bool:
        """Going, or lost and not fenced yet: let that end first. Whatever builds an older revision is overtaken."""
        operation = self._operations.get(instance)
        if operation is None:
            return False
        if operation.kind is OperationKind.RESURRECT:
            return operation.step in (Step.CONFIRM, Step.GUARD, Step.FENCE)
        return operation.kind is OperationKind.DELETE

    def _move(self, group: InstanceGroup, record: InstanceRecord) -> Move:
        kind = self._kind(record.group, group) or OperationKind.UPDATE
        moved = replace(
            record,
            group=group,
            deployment_revision=self._deployment.revision,
            revision=Revision(record.revision + 1),
            pinned_images=pins_kept(record, group),
        )
        return Move(moved, kind)

    def _create(self, group: InstanceGroup, index: int, instance: InstanceId) -> Create:
        standing = self._instances.get(instance)
        if standing is not None:
            return Create(standing)
        return Create(
            InstanceRecord(
                instance=instance,
                deployment=self._deployment.name,
                index=index,
                group=group,
                deployment_revision=self._deployment.revision,
                revision=Revision(1),
            )
        )

    def removals(self) -> list[Remove]:
        wanted = {instance for group in self._deployment.manifest.groups for _, instance in self.places(group)}
        return [
            Remove(instance, f"not in revision {self._deployment.revision} of {self._deployment.name} any more")
            for instance in sorted(self._instances)
            if instance not in wanted
        ]

    def is_going(self, instance: InstanceId) -> bool:
        operation = self._operations.get(instance)
        return operation is not None and operation.kind is OperationKind.DELETE

    def unfinished(self) -> bool:
        return any(
            not self.is_healthy(group, instance)
            for group in self._deployment.manifest.groups
            for _, instance in self.places(group)
            if instance not in self._instances or not self._instances[instance].ignore
        )


def _delete(
    deployment: DeploymentRecord,
    ours: Mapping[InstanceId, InstanceRecord],
    operations: Mapping[InstanceId, Operation],
) -> RolloutDecision:
    if not ours:
        return RolloutDecision(deployment.rollout, (DeploymentGone(),), reason="all its instances are gone")
    acts = tuple(
        Remove(instance, f"{deployment.name} is being deleted")
        for instance in sorted(ours)
        if (operation := operations.get(instance)) is None or operation.kind is not OperationKind.DELETE
    )
    return RolloutDecision(deployment.rollout, acts, reason=f"{len(ours)} instances are still there")


def _failure(
    deployment: DeploymentRecord,
    ours: Mapping[InstanceId, InstanceRecord],
    operations: Mapping[InstanceId, Operation],
    watched_seconds: Callable[[Operation], float],
) -> str:
    """Why the rollout has failed, or "". Only what this rollout moved can fail it."""
    for group in deployment.manifest.groups:
        for instance, record in sorted(ours.items()):
            if record.group.name == group.name and record.group.cloud != group.cloud:
                return (
                    f"{instance} is in cloud {record.group.cloud}, the manifest says {group.cloud}: disks cannot"
                    " follow; delete the instance and deploy it anew, or put the cloud back"
                )
    for instance, record in sorted(ours.items()):
        for disk in record.disks:
            if disk.given_up_for is not None and disk.given_up_for in _disks_wanted(deployment, record):
                return f"{instance}: disk {disk.name} is not changed: {disk.given_up_why}"
    for instance in sorted(ours):
        operation = operations.get(instance)
        if operation is None or operation.rollout_revision != deployment.revision:
            continue
        seconds = _watch_seconds(deployment, ours[instance])
        if operation.hold is Hold.UNHEALTHY:
            return f"{instance} is not healthy: {operation.error}"
        if watched_seconds(operation) > seconds:
            waiting = operation.error or f"it is at step {operation.step.value}"
            return f"{instance} was not healthy within {seconds:g} s: {waiting}"
    return ""


def _disks_wanted(deployment: DeploymentRecord, record: InstanceRecord) -> tuple[DiskRequirement, ...]:
    return next((group.disks for group in deployment.manifest.groups if group.name == record.group.name), ())


def _watch_seconds(deployment: DeploymentRecord, record: InstanceRecord) -> float:
    update = record.group.update
    if deployment.rollout is RolloutState.CANARIES:
        return update.canary_watch_seconds
    return update.update_watch_seconds
