"""What becomes of an instance's disks when its manifest changes, in words for people, before anything is done.

Law: what is said is what the steps do, because both ask `core/disk_changes.py`. What would cost data, or is not known
to fit, is refused here, with the reason, and nothing of it is begun.

Does not know: containers and VMs (`core/planning.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from healthmonitor.core import disk_changes
from healthmonitor.core.differences import shown
from healthmonitor.core.disk_changes import EVERYTHING, DiskAbilities, DiskChange, Orphans
from healthmonitor.core.disk_growth import with_growth
from healthmonitor.core.manifest import DiskGrowth, DiskRequirement, InstanceGroup, SnapshotSchedule
from healthmonitor.core.records import DiskBinding, DiskWay, InstanceRecord, OrphanDisk
from healthmonitor.core.units import duration_text, size_text
from protocol.ids import CloudName, DiskName, InstanceId

REMOUNT_NOTE = "; from its next mount on: a mounted disk is left as it is until its VM restarts or is recreated"


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What is known beside the manifests. `used_mib`: what is on a disk, by its agent's last word. `migrate`: a person
    allows that a disk is made smaller by copying it."""

    orphans: Orphans = field(default_factory=lambda: MappingProxyType({}))
    abilities: Mapping[CloudName, DiskAbilities] = field(default_factory=lambda: MappingProxyType({}))
    used_mib: Mapping[tuple[InstanceId, DiskName], float] = field(default_factory=lambda: MappingProxyType({}))
    migrate: bool = False

    def of(self, cloud: CloudName) -> DiskAbilities:
        return self.abilities.get(cloud, EVERYTHING)


NOTHING_KNOWN = DiskFacts()


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """`stops`: containers stand still for it."""

    lines: tuple[str, ...] = ()
    made: tuple[DiskName, ...] = ()
    grown: tuple[DiskName, ...] = ()
    copied: tuple[DiskName, ...] = ()
    orphaned: tuple[DiskName, ...] = ()
    adopted: tuple[DiskName, ...] = ()
    stops: bool = False


def plan_disks(
    instance: InstanceId,
    before: InstanceGroup,
    after: InstanceGroup,
    new_vm: bool,
    facts: DiskFacts = NOTHING_KNOWN,
    record: InstanceRecord | None = None,
) -> DiskPlan:
    """`record`: of the instance, where it is known; its disks may be larger than the manifest says."""
    old = {disk.name: disk for disk in before.disks}
    new = {disk.name: disk for disk in after.disks}
    made = [disk for disk in after.disks if disk.name not in old]
    adopted = adoptions(instance, after, made, facts.orphans)
    changes = {name: _change(old[name], new[name], after, facts, record) for name in new if name in old}
    grown = tuple(name for name, change in changes.items() if change.grows)
    copied = tuple(name for name, change in changes.items() if change.way is DiskWay.COPY)
    orphaned = tuple(name for name in old if name not in new)
    lines = [
        *(disk_line(disk, adopted) for disk in made),
        *(
            _changed_line(instance, name, old[name], new[name], change, after, facts)
            for name, change in changes.items()
            if change != disk_changes.UNCHANGED
        ),
        *(f"disk {name}: no longer used; it is kept, with its data, as an orphan" for name in orphaned),
        *(
            f"disk {name}: mount options {shown(name, old[name].mount_options)} → "
            f"{shown(name, new[name].mount_options)}" + ("" if new_vm or name in copied else REMOUNT_NOTE)
            for name in changes
            if new[name].mount_options != old[name].mount_options
        ),
        *(f"disk {name}: {growth_text(new[name].grow)}" for name in changes if new[name].grow != old[name].grow),
        *(
            f"disk {name}: {snapshots_text(new[name].snapshots)}"
            for name in changes
            if new[name].snapshots != old[name].snapshots
        ),
    ]
    return DiskPlan(
        lines=tuple(lines),
        made=tuple(disk.name for disk in made if disk.name not in adopted),
        grown=grown,
        copied=copied,
        orphaned=orphaned,
        adopted=tuple(adopted),
        stops=any(change.way is not DiskWay.NONE for change in changes.values()),
    )


def refused_disks(
    instance: InstanceId,
    before: InstanceGroup,
    after: InstanceGroup,
    facts: DiskFacts = NOTHING_KNOWN,
    record: InstanceRecord | None = None,
) -> list[str]:
    """What cannot be done to the disks of an instance that is there, each with what to do instead."""
    old = {disk.name: disk for disk in before.disks}
    refusals = []
    for disk in after.disks:
        was = old.get(disk.name)
        if was is None:
            continue
        change = _change(was, disk, after, facts, record)
        used = facts.used_mib.get((instance, disk.name))
        smaller = f"{size_text(was.size_mib)} to {size_text(disk.size_mib)}"
        if disk.size_mib < was.size_mib and not facts.migrate:
            refusals.append(
                f"{instance}: disk {disk.name} cannot shrink from {smaller} in place; with --migrate it is copied to a"
                " smaller one, if its data fit"
            )
        elif change.way is DiskWay.COPY and used is None:
            refusals.append(
                f"{instance}: disk {disk.name} cannot be copied ({change.why}): its agent has not said how much is on"
                " it; try again when the instance is healthy"
            )
        elif change.way is DiskWay.COPY and used is not None and not disk_changes.fits(used, disk.size_mib):
            refusals.append(
                f"{instance}: disk {disk.name} has {size_text(int(used) + 1)} of data, which do not fit on"
                f" {size_text(disk.size_mib)}; ask for a larger one"
            )
    refusals += _refused_snapshots(instance, after, facts)
    refusals += _refused_orphans(instance, after, [disk for disk in after.disks if disk.name not in old], facts.orphans)
    return refusals


def refused_new(instance: InstanceId, group: InstanceGroup, facts: DiskFacts) -> list[str]:
    """… and of an instance that is made anew."""
    return [
        *_refused_snapshots(instance, group, facts),
        *_refused_orphans(instance, group, group.disks, facts.orphans),
    ]


def _refused_snapshots(instance: InstanceId, group: InstanceGroup, facts: DiskFacts) -> list[str]:
    if facts.of(group.cloud).snapshots:
        return []
    return [
        f"{instance}: disk {disk.name}: cloud {group.cloud} has no snapshots; take `snapshots` out of the manifest"
        for disk in group.disks
        if disk.snapshots is not None
    ]


def adoptions(
    instance: InstanceId, group: InstanceGroup, disks: Sequence[DiskRequirement], orphans: Orphans
) -> dict[DiskName, OrphanDisk]:
    """Of the disks that a place newly asks for, those that it had before and that were kept."""
    found = ((disk.name, disk_changes.adoptable(orphans, group.cloud, instance, disk.name)) for disk in disks)
    return {name: orphan for name, orphan in found if orphan is not None}


def growth_text(grow: DiskGrowth | None) -> str:
    if grow is None:
        return "does not grow by itself any more; it stays as large as it is"
    return (
        f"grows by itself, by {grow.by_share:.0%} whenever {grow.at_share:.0%} of it is used, up to"
        f" {size_text(grow.up_to_mib)}"
    )


def snapshots_text(schedule: SnapshotSchedule | None) -> str:
    if schedule is None:
        return "no more snapshots by schedule; those that there are stay as long as any orphan"
    return f"a snapshot every {duration_text(schedule.every_seconds)}, the newest {schedule.keep} kept"


def disk_line(disk: DiskRequirement, adopted: Mapping[DiskName, OrphanDisk]) -> str:
    orphan = adopted.get(disk.name)
    if orphan is None:
        grows = f", {growth_text(disk.grow)}" if disk.grow is not None else ""
        snapshots = f", {snapshots_text(disk.snapshots)}" if disk.snapshots is not None else ""
        return f"disk {disk.name}: new, {size_text(disk.size_mib)}{grows}{snapshots}"
    size = size_text(orphan.size_mib)
    if orphan.size_mib < disk.size_mib:
        size = f"grows {size_text(orphan.size_mib)} → {size_text(disk.size_mib)}"
    return f"disk {disk.name}: adopts orphan {orphan.cid} with its data ({size})"


def _change(
    was: DiskRequirement,
    disk: DiskRequirement,
    after: InstanceGroup,
    facts: DiskFacts,
    record: InstanceRecord | None,
) -> DiskChange:
    standing = None
    if record is not None:
        standing = next((item for item in record.disks if item.name == disk.name), None)
    return disk_changes.change(_as_known(standing, was), with_growth(disk, standing), facts.of(after.cloud))


def _as_known(standing: DiskBinding | None, was: DiskRequirement) -> DiskBinding:
    return disk_changes.required(was) if standing is None or standing.cid is None else standing


def _changed_line(
    instance: InstanceId,
    name: DiskName,
    was: DiskRequirement,
    disk: DiskRequirement,
    change: DiskChange,
    after: InstanceGroup,
    facts: DiskFacts,
) -> str:
    if change.way is DiskWay.NONE:
        return f"disk {name}: grows {change.why}"
    seconds = disk_changes.seconds_stopped(change.way, facts.used_mib.get((instance, name)))
    stopped = ", ".join(container.name for container in after.containers) or "nothing"
    long = "for as long as that takes" if seconds is None else f"for about {_duration(seconds)}"
    if change.way is DiskWay.COPY:
        before = "a snapshot is taken before, and " if facts.of(after.cloud).snapshots else ""
        return (
            f"disk {name}: its data are copied to a new one ({change.why}), {stopped} stops {long};"
            f" {before}the old one is kept as an orphan, as the way back"
        )
    if change.way is DiskWay.TAKE:
        return f"disk {name}: {change.why}, {stopped} stops {long}"
    return f"disk {name}: grows {change.why}, {stopped} stops {long}"


def _refused_orphans(
    instance: InstanceId, group: InstanceGroup, disks: Sequence[DiskRequirement], orphans: Orphans
) -> list[str]:
    adopted = adoptions(instance, group, disks, orphans)
    return [
        f"{instance}: disk {disk.name}: orphan {adopted[disk.name].cid} of that name has "
        f"{adopted[disk.name].filesystem} and is never formatted as {disk.filesystem}; declare a disk of another name"
        for disk in disks
        if disk.name in adopted and adopted[disk.name].filesystem != disk.filesystem
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
