"""How a disk that is becomes the disk that is wanted: not at all, as it is mounted, unmounted, detached, or by a copy.

Laws: the plan and the steps ask the same function, so that what is shown is what is done. The cheapest way that keeps
every byte is taken; a disk is never formatted again and never made smaller in place.

Does not know: what a cloud is (only what its disks can do), who carries it out (healthmonitor/steps).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from healthmonitor.core.keys import disk_key
from healthmonitor.core.manifest import DiskRequirement
from healthmonitor.core.records import (
    DiskBinding,
    DiskWay,
    InstanceRecord,
    OrphanCause,
    OrphanDisk,
    Successor,
)
from healthmonitor.core.units import size_text
from protocol.ids import CloudName, DiskName, InstanceId

COPY_MIB_PER_SECOND = 60.0
"""What is assumed for saying how long a copy with its verification takes; a guess on the slow side."""
STOP_SECONDS = 10.0
"""… and for stopping and starting containers around a change."""
FITS_SHARE = 0.9
"""Of a new disk, what data may fill at most when it is copied there: a file system takes its own part."""


class Growth(Enum):
    """What a disk must be for being made larger."""

    MOUNTED = "mounted"  # it may stay mounted and be written
    UNMOUNTED = "unmounted"  # it stays attached, its file system is unmounted
    DETACHED = "detached"  # it is attached to nobody
    NEVER = "never"  # a larger disk is another disk, to which the data are copied


@dataclass(frozen=True, slots=True)
class DiskAbilities:
    """What a cloud can do with the disks that it has. `growth`: by file system; one that is not named can grow while it
    is mounted."""

    growth: Mapping[str, Growth] = field(default_factory=dict)
    snapshots: bool = False

    def grows(self, filesystem: str) -> Growth:
        return self.growth.get(filesystem, Growth.MOUNTED)


EVERYTHING = DiskAbilities(snapshots=True)


@dataclass(frozen=True, slots=True)
class DiskChange:
    """`way` NONE with `grows`: larger while it is mounted. `why`: for people."""

    way: DiskWay = DiskWay.NONE
    grows: bool = False
    why: str = ""


UNCHANGED = DiskChange()


def change(binding: DiskBinding, wanted: DiskRequirement, abilities: DiskAbilities) -> DiskChange:
    """From a disk of ours to the one that the manifest asks for. Whether it may be asked for is the plan's matter."""
    if binding.successor is not None and binding.successor.way is DiskWay.TAKE:
        return DiskChange(DiskWay.TAKE, why=f"{binding.successor.cid} takes its place by a person's word")
    if binding.given_up_for == wanted:
        return UNCHANGED
    reasons = []
    if binding.filesystem != wanted.filesystem:
        reasons.append(f"{binding.filesystem} → {wanted.filesystem}")
    if binding.cloud_properties is not None and dict(binding.cloud_properties) != dict(wanted.cloud_properties):
        reasons.append("other cloud_properties")
    if binding.required_mib and wanted.size_mib < binding.required_mib and wanted.size_mib < binding.size_mib:
        reasons.append(f"smaller, {size_text(binding.size_mib)} → {size_text(wanted.size_mib)}")
    grows = wanted.size_mib > binding.size_mib
    how = abilities.grows(binding.filesystem)
    if grows and how is Growth.NEVER:
        reasons.append(f"larger, {size_text(binding.size_mib)} → {size_text(wanted.size_mib)}; no disk grows here")
    if reasons:
        return DiskChange(DiskWay.COPY, why=", ".join(reasons))
    if not grows:
        return UNCHANGED
    size = f"{size_text(binding.size_mib)} → {size_text(wanted.size_mib)}"
    match how:
        case Growth.UNMOUNTED:
            return DiskChange(DiskWay.UNMOUNT, True, f"{size}; {binding.filesystem} grows here only unmounted")
        case Growth.DETACHED:
            return DiskChange(DiskWay.DETACH, True, f"{size}; this cloud grows only detached disks")
        case _:
            return DiskChange(DiskWay.NONE, True, size)


def required(name_of: DiskRequirement) -> DiskBinding:
    """A disk that is just what a manifest asked for: to plan with where the real one is not known."""
    return DiskBinding(
        name=name_of.name,
        key="",
        size_mib=name_of.size_mib,
        filesystem=name_of.filesystem,
        mount_options=name_of.mount_options,
        required_mib=name_of.size_mib,
        cloud_properties=name_of.cloud_properties,
    )


def suits(successor: Successor, wanted: DiskRequirement) -> bool:
    """Whether a copy that was begun is the disk that is wanted now."""
    return successor.way is DiskWay.COPY and (
        successor.size_mib,
        successor.filesystem,
        dict(successor.cloud_properties or {}),
    ) == (wanted.size_mib, wanted.filesystem, dict(wanted.cloud_properties))


def waits(record: InstanceRecord) -> bool:
    """Whether a disk of this instance waits for a change that stops its containers."""
    changing = [disk.name for disk in record.disks if disk.way is not DiskWay.NONE]
    return bool(changing) and any(disk.name in changing for disk in record.group.disks)


Orphans = Mapping[tuple[CloudName, str], OrphanDisk]
"""Disks that no instance uses, by cloud and key."""


def adoptable(orphans: Orphans, cloud: CloudName, instance: InstanceId, name: DiskName) -> OrphanDisk | None:
    """Of the disks that this place let go, the last: it gets that back when it asks for a disk of that name. One whose
    place another disk took is not given back by itself, and neither is a copy that was given up."""
    found = [
        orphan
        for orphan in orphans.values()
        if not orphan.deleting
        and (orphan.cloud, orphan.instance, orphan.name, orphan.cause) == (cloud, instance, name, OrphanCause.RELEASED)
    ]
    return max(found, key=lambda orphan: (orphan.since, orphan.key), default=None)


def key_for_new(
    orphans: Orphans, records: Iterable[InstanceRecord], cloud: CloudName, instance: InstanceId, name: DiskName
) -> str:
    """For a place's new disk: the first key that no orphan has, and no record."""
    taken = {key for where, key in orphans if where == cloud} | named_keys(records, cloud)
    number = 1
    while (key := disk_key(instance, name, number)) in taken:
        number += 1
    return key


def named_keys(records: Iterable[InstanceRecord], cloud: CloudName) -> set[str]:
    """Keys of disks in this cloud that some record names."""
    disks = [disk for record in records if record.group.cloud == cloud for disk in record.disks]
    return {disk.key for disk in disks} | {disk.successor.key for disk in disks if disk.successor is not None}


def fits(used_mib: float, size_mib: int) -> bool:
    return used_mib <= size_mib * FITS_SHARE


def seconds_stopped(way: DiskWay, used_mib: float | None) -> float | None:
    """For about how long containers stand still; None when nothing says how much there is to copy."""
    match way:
        case DiskWay.NONE:
            return 0.0
        case DiskWay.COPY:
            return None if used_mib is None else STOP_SECONDS + used_mib / COPY_MIB_PER_SECOND
        case DiskWay.UNMOUNT | DiskWay.DETACH | DiskWay.TAKE:
            return STOP_SECONDS
