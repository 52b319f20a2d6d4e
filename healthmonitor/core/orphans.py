"""Disks that no instance uses: until when each is kept, and what a person's word changes.

Law: an orphan is deleted only after its time, only while no record names it and nothing is being done with the instance
that it belonged to; a person's word goes over the configuration's.

Does not know: clouds, who deletes (healthmonitor/disk_care.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from healthmonitor.core.operator_changes import FOREVER_SECONDS, NotPossible
from healthmonitor.core.records import (
    DiskBinding,
    DiskWay,
    InstanceRecord,
    Operation,
    OrphanCause,
    OrphanDisk,
    Step,
    Successor,
)
from protocol.ids import DiskCid, DiskName, InstanceId


def ends_at(orphan: OrphanDisk, keep_seconds: float) -> float:
    """Unix seconds."""
    return orphan.kept_until or orphan.since + keep_seconds


def due(orphans: Iterable[OrphanDisk], keep_seconds: float, now_unix: float) -> list[OrphanDisk]:
    """Those whose time is over, the oldest first."""
    there = [orphan for orphan in orphans if orphan.cid]  # and no snapshot that is being taken
    over = [orphan for orphan in there if orphan.deleting or ends_at(orphan, keep_seconds) <= now_unix]
    return sorted(over, key=lambda orphan: (orphan.since, orphan.key))


def spared(orphan: OrphanDisk, records: Iterable[InstanceRecord], operations: Mapping[InstanceId, Operation]) -> str:
    """Why it is not deleted all the same; "" when nothing speaks against it."""
    for record in records:
        for disk in record.disks:
            if orphan.cid in (disk.cid, disk.successor.cid if disk.successor is not None else None):
                return f"it is disk {disk.name} of {record.instance}"
    operation = operations.get(orphan.instance)
    if operation is not None and operation.step is not Step.DONE:
        return f"something is being done with {orphan.instance}, which may ask for it"
    return ""


def kept(orphan: OrphanDisk, seconds: float | None, now_unix: float) -> OrphanDisk:
    """`seconds` None: for good. NotPossible when it is being deleted."""
    _check_there(orphan)
    return replace(orphan, kept_until=now_unix + (FOREVER_SECONDS if seconds is None else seconds))


def let_go(orphan: OrphanDisk, now_unix: float) -> OrphanDisk:
    """To be deleted at the next look."""
    return replace(orphan, kept_until=now_unix)


def given(orphan: OrphanDisk, record: InstanceRecord, name: DiskName) -> InstanceRecord:
    """The record in which the orphan waits to take the place of disk `name`. NotPossible, with the reason."""
    _check_there(orphan)
    if record.deleting:
        raise NotPossible(f"{record.instance} is being deleted")
    if record.group.cloud != orphan.cloud:
        raise NotPossible(f"{orphan.cid} is in cloud {orphan.cloud}, {record.instance} in {record.group.cloud}")
    if orphan.cause is OrphanCause.UNFINISHED:
        raise NotPossible(f"{orphan.cid} is a copy that was given up, and has only a part of the data")
    standing = _disk(record.disks, name)
    if standing is None or standing.cid is None or name not in {disk.name for disk in record.group.disks}:
        names = ", ".join(disk.name for disk in record.group.disks) or "none"
        raise NotPossible(
            f"{record.instance} has no disk {name} (it has {names})", "deploy a manifest that declares it"
        )
    if standing.successor is not None or standing.way is not DiskWay.NONE:
        raise NotPossible(
            f"disk {name} of {record.instance} is being changed: {standing.why}", "wait until that is over"
        )
    wanted = next(disk for disk in record.group.disks if disk.name == name)
    if wanted.filesystem != orphan.filesystem:
        raise NotPossible(
            f"{orphan.cid} has {orphan.filesystem}, and the manifest asks for {wanted.filesystem}",
            "deploy a manifest with its file system first",
        )
    own = orphan.instance == record.instance and orphan.name == name
    successor = Successor(
        way=DiskWay.TAKE,
        key=orphan.key,
        size_mib=orphan.size_mib,
        filesystem=orphan.filesystem,
        cid=orphan.cid,
        cloud_properties=None,
        taken_from=orphan.taken_from or ("" if own else f"{orphan.instance}/{orphan.name}"),
        made_at=orphan.made_at,
    )
    waiting = replace(
        standing, successor=successor, way=DiskWay.TAKE, why=f"{orphan.cid} takes its place by a person's word"
    )
    return replace(record, disks=tuple(waiting if disk.name == name else disk for disk in record.disks))


def find(orphans: Iterable[OrphanDisk], cid: str) -> OrphanDisk | None:
    return next((orphan for orphan in orphans if orphan.cid == DiskCid(cid)), None)


def _disk(disks: Sequence[DiskBinding], name: DiskName) -> DiskBinding | None:
    return next((disk for disk in disks if disk.name == name), None)


def _check_there(orphan: OrphanDisk) -> None:
    if orphan.deleting:
        raise NotPossible(f"{orphan.cid} is being deleted already")
