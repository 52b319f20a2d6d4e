"""Snapshots of disks: disks of their own, kept among the orphans; when one is due, which were kept long enough.

Laws: a snapshot's intent is an orphan without a cid, written before the cloud is asked; it is tried until it is there
or its time (`DiskPolicy.snapshot_seconds`) is over. Of those taken by a schedule the newest `keep` stay, however old;
once nothing asks for the schedule any more they stay as long as any orphan. Those before a migration stay as long as
any orphan, and so do those that a person took, unless the person says otherwise.

Does not know: clouds, who takes them (healthmonitor/disk_care.py), how one takes a disk's place (core/orphans.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from healthmonitor.core.keys import snapshot_key
from healthmonitor.core.manifest import SnapshotSchedule
from healthmonitor.core.operator_changes import FOREVER_SECONDS
from healthmonitor.core.records import DiskBinding, InstanceRecord, Operation, OrphanCause, OrphanDisk
from protocol.ids import DiskCid, DiskName, InstanceId

Place = tuple[InstanceId, DiskName]


def intended(
    record: InstanceRecord, disk: DiskBinding, source: DiskCid, now: float, kept_until: float, scheduled: bool
) -> OrphanDisk:
    """What is written down before the cloud is asked. `now`, `kept_until`: Unix seconds; 0: as any orphan."""
    return OrphanDisk(
        cloud=record.group.cloud,
        key=snapshot_key(record.instance, disk.name, now),
        cid=DiskCid(""),
        name=disk.name,
        size_mib=disk.size_mib,
        filesystem=disk.filesystem,
        instance=record.instance,
        since=now,
        cause=OrphanCause.SNAPSHOT,
        kept_until=kept_until,
        cloud_properties=disk.cloud_properties,
        taken_from=disk.taken_from,
        made_at=now,
        snapshot_of=source,
        scheduled=scheduled,
    )


def is_being_taken(orphan: OrphanDisk) -> bool:
    return orphan.cause is OrphanCause.SNAPSHOT and not orphan.cid


def before_migration(
    orphans: Iterable[OrphanDisk], record: InstanceRecord, source: DiskCid, operation: Operation
) -> OrphanDisk | None:
    """The snapshot of `source` that this operation asked for before it copies; one that an earlier operation asked for
    and did not live to see counts too."""
    found = [
        orphan
        for orphan in orphans
        if (orphan.before_migration, orphan.cloud, orphan.instance) == (True, record.group.cloud, record.instance)
        and orphan.snapshot_of == source
        and not orphan.deleting
        and (not orphan.cid or orphan.since >= operation.started_at)
    ]
    return max(found, key=lambda orphan: orphan.since, default=None)


def due(records: Iterable[InstanceRecord], orphans: Iterable[OrphanDisk], now: float) -> Iterator[OrphanDisk]:
    """Intents of those that a schedule asks for now. One at a time of a disk."""
    latest: dict[Place, float] = {}
    for orphan in orphans:
        if orphan.scheduled:
            place = (orphan.instance, orphan.name)
            latest[place] = max(orphan.since, latest.get(place, 0.0))
    for record in records:
        if record.deleting or record.vm is None or record.vm.vm_cid is None:
            continue
        for disk, schedule in _scheduled(record):
            if disk.cid is not None and now >= latest.get((record.instance, disk.name), 0.0) + schedule.every_seconds:
                yield intended(record, disk, disk.cid, now, now + FOREVER_SECONDS, scheduled=True)


def surplus(
    records: Mapping[InstanceId, InstanceRecord], orphans: Iterable[OrphanDisk], keep_seconds: float, now: float
) -> Iterator[tuple[OrphanDisk, OrphanDisk]]:
    """Those of a schedule that are kept differently from now on: (as it is, as it is to be)."""
    taken: dict[Place, list[OrphanDisk]] = {}
    for orphan in orphans:
        if orphan.scheduled and orphan.cid and not orphan.deleting:
            taken.setdefault((orphan.instance, orphan.name), []).append(orphan)
    for (instance, name), those in taken.items():
        record = records.get(instance)
        schedules = {disk.name: schedule for disk, schedule in _scheduled(record)} if record is not None else {}
        schedule = schedules.get(name)
        for number, orphan in enumerate(sorted(those, key=lambda each: each.since, reverse=True)):
            lasts = orphan.kept_until > now + FOREVER_SECONDS / 2
            if schedule is not None and number >= schedule.keep and lasts:
                yield orphan, replace(orphan, kept_until=now)
            elif schedule is None and lasts:
                yield orphan, replace(orphan, kept_until=now + keep_seconds)


def source_of(orphan: OrphanDisk, record: InstanceRecord | None) -> DiskCid | None:
    """The disk to take it of; None when the instance has it no more."""
    if record is None or record.deleting or record.group.cloud != orphan.cloud:
        return None
    return next((disk.cid for disk in record.disks if disk.cid and disk.cid == orphan.snapshot_of), None)


def _scheduled(record: InstanceRecord) -> Iterator[tuple[DiskBinding, SnapshotSchedule]]:
    wanted = {disk.name: disk.snapshots for disk in record.group.disks if disk.snapshots is not None}
    return ((disk, schedule) for disk in record.disks if (schedule := wanted.get(disk.name)) is not None)
