"""Instances as they are and the manifest wanted → what would change, shown before it is made.

Law: what is shown is what the rollout does (a test holds the two together). Nothing here destroys data: a disk that is
no longer named is kept and said to be; what becomes of the others stands in `core/disk_planning.py`.

Does not know: in which order and how fast instances change (rollout), how a change is carried out (operation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from healthmonitor.core.differences import container_differences, mapping_differences, shown
from healthmonitor.core.disk_planning import (
    NOTHING_KNOWN,
    DiskFacts,
    adoptions,
    disk_line,
    plan_disks,
    refused_disks,
    refused_new,
)
from healthmonitor.core.manifest import InstanceGroup, Manifest, VmSize
from healthmonitor.core.records import InstanceRecord, OperationKind
from healthmonitor.core.units import size_text
from protocol.ids import ContainerName, DeploymentName, DiskName, InstanceId, instance_id
from protocol.spec import ContainerSpec, spec_hash


class Verb(Enum):
    CREATE = "create"
    RECREATE = "recreate"  # the VM is replaced; its disks go with it
    RESTART = "restart"  # in place; some containers restart
    RESIZE = "resize"  # in place; a disk grows, no container restarts
    MIGRATE = "migrate"  # in place; a disk's data are copied to a new one, with the containers stopped
    UPDATE = "update"  # in place; nothing restarts
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class ContainerChanges:
    """Each container in at most one of these."""

    added: tuple[ContainerName, ...] = ()
    removed: tuple[ContainerName, ...] = ()
    recreated: tuple[ContainerName, ...] = ()  # its specification's hash changed
    restarted: tuple[ContainerName, ...] = ()  # depends, over any number of levels, on one that is recreated
    resupervised: tuple[ContainerName, ...] = ()  # only what the agent acts upon changed; it goes on running

    @property
    def interrupted(self) -> int:
        return len(self.recreated) + len(self.restarted) + len(self.removed)


@dataclass(frozen=True, slots=True)
class InstanceChange:
    instance: InstanceId
    verb: Verb
    details: tuple[str, ...] = ()
    containers: ContainerChanges = field(default_factory=ContainerChanges)
    new_disks: tuple[DiskName, ...] = ()
    grown_disks: tuple[DiskName, ...] = ()
    copied_disks: tuple[DiskName, ...] = ()
    orphaned_disks: tuple[DiskName, ...] = ()
    adopted_disks: tuple[DiskName, ...] = ()  # orphans of the same place and name, with their data


@dataclass(frozen=True, slots=True)
class Plan:
    """`refusals`: why this manifest cannot be deployed on what is there; nothing of it is begun then."""

    deployment: DeploymentName
    changes: tuple[InstanceChange, ...]
    unchanged: int
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.changes and not self.refusals

    @property
    def summary(self) -> str:
        """`1 created, 2 in place (3 containers interrupted), 1 deleted, 4 unchanged`."""
        if self.refusals:
            return f"cannot be deployed: {len(self.refusals)} thing{'s' if len(self.refusals) > 1 else ''} refused"
        counts: dict[str, int] = {}
        for change in self.changes:
            word = _SUMMARY_WORDS[change.verb]
            counts[word] = counts.get(word, 0) + 1
        interrupted = sum(
            change.containers.interrupted for change in self.changes if _SUMMARY_WORDS[change.verb] == _IN_PLACE
        )
        if _IN_PLACE in counts and interrupted:
            text = f"{interrupted} container{'s' if interrupted > 1 else ''} interrupted"
        else:
            text = "no container interrupted"
        parts = [f"{n} {word}" + (f" ({text})" if word == _IN_PLACE else "") for word, n in counts.items()]
        return ", ".join([*parts, f"{self.unchanged} unchanged"])


def plan(
    current: Sequence[InstanceRecord],
    now: Manifest | None,
    wanted: Manifest | None,
    facts: DiskFacts = NOTHING_KNOWN,
) -> Plan:
    """`wanted` None: the deployment is deleted. `current`: the deployment's instances, each with the group that it has
    been moved to; during a rollout these may lag behind `now`."""
    records = {record.instance: record for record in current}
    changes: list[InstanceChange] = []
    warnings: list[str] = []
    refusals: list[str] = []
    unchanged = 0
    for group in wanted.groups if wanted else ():
        for index in range(group.instances):
            assert wanted is not None  # it has groups
            name = instance_id(wanted.name, group.name, index)
            record = records.pop(name, None)
            if record is None:
                changes.append(_creation(name, group, facts))
                refusals.extend(refused_new(name, group, facts))
                continue
            warnings.extend(_warnings(record))
            refusals.extend(refusals_of(name, record.group, group, facts, record))
            if record.deleting:
                warnings.append(
                    f"{name} is being deleted; it is made anew once it is gone, and adopts the disks that it leaves"
                )
            change = change_of(name, record.group, group, facts, record)
            if change is None:
                unchanged += 1
            else:
                changes.append(change)
    changes.extend(_deletion(record) for record in records.values() if wanted is None or not record.deleting)
    return Plan(
        deployment=_name(current, now, wanted),
        changes=tuple(changes),
        unchanged=unchanged,
        warnings=tuple(dict.fromkeys([*warnings, *_group_warnings(now, wanted)])),
        refusals=tuple(dict.fromkeys(refusals)),
    )


def to_plain(plan: Plan) -> dict[str, Any]:
    """For the API and `--output json`."""
    return {
        "deployment": plan.deployment,
        "empty": plan.empty,
        "changes": [
            {
                "verb": change.verb.value,
                "subject": change.instance,
                "details": list(change.details),
                "containers": {
                    name: list(getattr(change.containers, name))
                    for name in ("added", "removed", "recreated", "restarted", "resupervised")
                },
                "disks": {
                    "new": list(change.new_disks),
                    "grown": list(change.grown_disks),
                    "copied": list(change.copied_disks),
                    "orphaned": list(change.orphaned_disks),
                    "adopted": list(change.adopted_disks),
                },
            }
            for change in plan.changes
        ],
        "unchanged": plan.unchanged,
        "summary": plan.summary,
        "warnings": [*(f"refused: {text}" for text in plan.refusals), *plan.warnings],
        "refusals": list(plan.refusals),
    }


def operation_kind(before: InstanceGroup, after: InstanceGroup) -> OperationKind | None:
    """What moves an instance from one group to the other; None: nothing has to be done on its VM."""
    change = change_of(InstanceId(""), before, after)
    if change is None:
        return None
    return OperationKind.RECREATE if change.verb is Verb.RECREATE else OperationKind.UPDATE


def change_of(
    instance: InstanceId,
    before: InstanceGroup,
    after: InstanceGroup,
    facts: DiskFacts = NOTHING_KNOWN,
    record: InstanceRecord | None = None,
) -> InstanceChange | None:
    """What differs for the VM and its agent; None when nothing does."""
    vm = _vm_differences(before, after)
    containers, lines = _container_changes(before.containers, after.containers)
    disks = plan_disks(instance, before, after, bool(vm), facts, record)
    other = _agent_differences(before, after)
    details = (*vm, *disks.lines, *lines, *other)
    if not details:
        return None
    if disks.stops:
        containers = _all_stopped(containers, before, after)
    if vm:
        verb = Verb.RECREATE
    elif disks.copied:
        verb = Verb.MIGRATE
    elif containers.interrupted:
        verb = Verb.RESTART
    elif disks.grown and len(details) == len(disks.grown):
        verb = Verb.RESIZE
    else:
        verb = Verb.UPDATE
    return InstanceChange(
        instance, verb, details, containers, disks.made, disks.grown, disks.copied, disks.orphaned, disks.adopted
    )


def _all_stopped(changes: ContainerChanges, before: InstanceGroup, after: InstanceGroup) -> ContainerChanges:
    """Every container that goes on being there stands still once, for a disk."""
    there = {container.name for container in before.containers}
    stopped = tuple(
        container.name
        for container in after.containers
        if container.name in there and container.name not in changes.recreated
    )
    return replace(changes, restarted=stopped, resupervised=())


def refusals_of(
    instance: InstanceId,
    before: InstanceGroup,
    after: InstanceGroup,
    facts: DiskFacts = NOTHING_KNOWN,
    record: InstanceRecord | None = None,
) -> tuple[str, ...]:
    """What cannot be done to an instance that is there."""
    refusals = refused_disks(instance, before, after, facts, record)
    if before.cloud != after.cloud:
        refusals.append(
            f"{instance}: cannot move from cloud {before.cloud} to {after.cloud}: its VM and disks are known there; "
            "declare a group of another name in the other cloud"
        )
    return tuple(refusals)


def _creation(instance: InstanceId, group: InstanceGroup, facts: DiskFacts) -> InstanceChange:
    adopted = adoptions(instance, group, group.disks, facts.orphans)
    names = [container.name for container in group.containers]
    return InstanceChange(
        instance,
        Verb.CREATE,
        (
            f"VM in {group.cloud} from {group.stemcell}: {_size(group.vm)}",
            *(disk_line(disk, adopted) for disk in group.disks),
            *(f"{container.name}: {container.image}" for container in group.containers),
        ),
        ContainerChanges(added=tuple(names)),
        new_disks=tuple(disk.name for disk in group.disks if disk.name not in adopted),
        adopted_disks=tuple(adopted),
    )


def _deletion(record: InstanceRecord) -> InstanceChange:
    containers = tuple(container.name for container in record.group.containers)
    return InstanceChange(
        record.instance,
        Verb.DELETE,
        (
            *([f"VM {record.vm.vm_cid}"] if record.vm is not None and record.vm.vm_cid is not None else []),
            *([f"containers: {', '.join(containers)}"] if containers else []),
            *(f"disk {disk.name} is kept, with its data, as an orphan" for disk in record.disks),
        ),
        ContainerChanges(removed=containers),
        orphaned_disks=tuple(disk.name for disk in record.disks),
    )


def _vm_differences(before: InstanceGroup, after: InstanceGroup) -> list[str]:
    lines = [
        f"{name}: {old} → {new} (needs a new VM)"
        for name, old, new in (
            ("cloud", before.cloud, after.cloud),
            ("stemcell", before.stemcell, after.stemcell),
            ("cpus", str(before.vm.cpus), str(after.vm.cpus)),
            ("memory", size_text(before.vm.memory_mib), size_text(after.vm.memory_mib)),
        )
        if old != new
    ]
    properties = mapping_differences("cloud_properties", before.vm.cloud_properties, after.vm.cloud_properties)
    return lines + [f"{line} (needs a new VM)" for line in properties]


def _container_changes(
    before: Sequence[ContainerSpec], after: Sequence[ContainerSpec]
) -> tuple[ContainerChanges, list[str]]:
    old: Mapping[ContainerName, ContainerSpec] = {container.name: container for container in before}
    new: Mapping[ContainerName, ContainerSpec] = {container.name: container for container in after}
    recreated = tuple(name for name in new if name in old and spec_hash(new[name]) != spec_hash(old[name]))
    causes = _restarted_with(new, recreated)
    lines: list[str] = []
    resupervised: list[ContainerName] = []
    for name, container in new.items():
        if name not in old:
            lines.append(f"{name}: new, {container.image}")
            continue
        differences = container_differences(old[name], container)
        if name in recreated:
            lines.extend(f"{name}: {line}" for line in differences)
            continue
        lines.extend(f"{name}: {line} (goes on running)" for line in differences)
        if name in causes:
            lines.append(f"{name}: restarts because {causes[name]} does")
        elif differences:
            resupervised.append(name)
    lines.extend(f"{name}: removed" for name in old if name not in new)
    changes = ContainerChanges(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        recreated=recreated,
        restarted=tuple(name for name in new if name in causes and name in old),
        resupervised=tuple(resupervised),
    )
    return changes, lines


def _restarted_with(
    containers: Mapping[ContainerName, ContainerSpec], recreated: Sequence[ContainerName]
) -> dict[ContainerName, ContainerName]:
    """Dependents over all levels → the dependency that each restarts because of."""
    causes: dict[ContainerName, ContainerName] = {}
    stale = set(recreated)
    while True:
        found = {
            name: dependency.container
            for name, container in containers.items()
            if name not in stale
            for dependency in container.depends_on
            if dependency.restart and dependency.container in stale
        }
        if not found:
            return causes
        causes.update(found)
        stale.update(found)


def _agent_differences(before: InstanceGroup, after: InstanceGroup) -> list[str]:
    lines = []
    if before.networks != after.networks:
        lines.append(f"networks: {shown('', before.networks)} → {shown('', after.networks)}")
    if before.on_isolation != after.on_isolation:
        lines.append(f"on_isolation: {before.on_isolation.value} → {after.on_isolation.value}")
    return lines


def _warnings(record: InstanceRecord) -> list[str]:
    if not record.ignore:
        return []
    return [f"{record.instance} is left alone by a person's word until `resurgam start {record.instance}`"]


def _group_warnings(now: Manifest | None, wanted: Manifest | None) -> list[str]:
    before = {group.name: group for group in now.groups} if now else {}
    warnings = []
    for group in wanted.groups if wanted else ():
        if not group.resurrection and (group.name not in before or before[group.name].resurrection):
            warnings.append(
                f"{group.name}: resurrection is off; a lost VM of this group stays lost until a person acts"
            )
    return warnings


def _name(current: Sequence[InstanceRecord], now: Manifest | None, wanted: Manifest | None) -> DeploymentName:
    manifest = wanted or now
    if manifest is not None:
        return manifest.name
    return current[0].deployment if current else DeploymentName("")


def _size(vm: VmSize) -> str:
    return f"{vm.cpus} CPU{'s' if vm.cpus > 1 else ''}, {size_text(vm.memory_mib)}"


_IN_PLACE = "updated in place"
_SUMMARY_WORDS: Mapping[Verb, str] = {
    Verb.CREATE: "created",
    Verb.RECREATE: "recreated",
    Verb.RESTART: _IN_PLACE,
    Verb.RESIZE: _IN_PLACE,
    Verb.MIGRATE: _IN_PLACE,
    Verb.UPDATE: _IN_PLACE,
    Verb.DELETE: "deleted",
}
