"""The steps that change a disk which its containers must let go of: QUIESCE, REWORK, SWAP.

Laws:
- The old disk is only read. It stays the instance's disk until one write of the record puts the new one in its place,
  and then it is kept as an orphan. Cut short anywhere before, the instance goes on with the old disk.
- Before that write the new disk has all of the data, read back by the agent, and the old one was not mounted since:
  the agent keeps it unmounted over its own restarts and the VM's, and whoever mounts it after all says first that the
  copy is no longer good (new_vm.mount).
- What the agent refuses several times over is given up: the instance goes on with the old disk, which is said, until
  the manifest asks for something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, assert_never

from healthmonitor.agent_client import RequestRefused
from healthmonitor.core import disk_changes
from healthmonitor.core.disk_growth import with_growth
from healthmonitor.core.manifest import DiskRequirement
from healthmonitor.core.operation import Done, Failed, Outcome
from healthmonitor.core.records import DiskBinding, DiskWay, OrphanCause, Successor
from healthmonitor.core.units import size_text
from healthmonitor.steps.context import StepContext
from healthmonitor.steps.disk_records import (
    attach_read_back,
    binding_of,
    detach_until_free,
    forget_orphan,
    keep_as_orphan,
    save_binding,
)
from healthmonitor.steps.disk_steps import drop_successor
from protocol.ids import DiskCid, Revision

REFUSALS_MAX = 3
BYTES_PER_MIB = 1024 * 1024


async def quiesce(context: StepContext) -> Outcome:
    """The containers are stopped in order, when a disk waits for that and its data will fit."""
    waiting = list(_waiting(context))
    if not waiting:
        return Done("no disk waits for it")
    for disk in waiting:
        successor = disk.successor
        if disk.way is not DiskWay.COPY or successor is None:
            continue
        used_mib = await _used_mib(context, disk)
        if used_mib is not None and not disk_changes.fits(used_mib, successor.size_mib):
            return await _give_up(
                context,
                disk,
                f"{size_text(int(used_mib) + 1)} of data do not fit on {size_text(successor.size_mib)}",
            )
    # A newer revision is what starts the containers again: the agent keeps them stopped until it is told one.
    record = context.record()
    await context.save_record(replace(record, revision=Revision(record.revision + 1)), record, "revision raised")
    await _stop_containers(context)
    return Done("containers are stopped for " + ", ".join(f"disk {disk.name}" for disk in waiting))


async def rework(context: StepContext) -> Outcome:
    """Disks grow unmounted or detached, or are copied to new ones and compared."""
    notes: list[str] = []
    for disk in list(_waiting(context)):
        await _stop_containers(context)  # they run again where the VM was restarted meanwhile
        try:
            match disk.way:
                case DiskWay.UNMOUNT:
                    failed = await _grow_unmounted(context, disk)
                case DiskWay.DETACH:
                    failed = await _grow_detached(context, disk)
                case DiskWay.COPY:
                    failed = await _copy(context, disk, notes)
                case DiskWay.TAKE:
                    failed = await _make_way(context, disk)
                case DiskWay.NONE:
                    failed = None
                case _:
                    assert_never(disk.way)
        except RequestRefused as error:
            if context.operation.attempts + 1 < REFUSALS_MAX:
                raise
            return await _give_up(context, disk, str(error))
        if failed is not None:
            return failed
    return Done("; ".join(notes) or "no disk was copied")


async def swap(context: StepContext) -> Outcome:
    """Where a new disk is ready, it takes the old one's place in the record; the old one is kept as an orphan."""
    notes: list[str] = []
    for disk in list(_waiting(context)):
        successor, old = disk.successor, disk.cid
        if successor is None or successor.cid is None or old is None or not successor.ready:
            return Failed(f"disk {disk.name} has no copy that is ready; a defect, please report it")
        await context.call_agent("unmount_disk", old)
        failed = await detach_until_free(context, disk.name, old)
        if failed is not None:
            return failed
        await context.call_agent("remove_persistent_disk", old)
        await keep_as_orphan(context, context.record(), disk, old, OrphanCause.REPLACED)
        await save_binding(context, await _taken(context, disk, successor), f"disk {disk.name} swapped")
        await forget_orphan(context, successor.key, disk.name)
        note = f"disk {disk.name}: {successor.cid} takes the place of {old}, which is kept as an orphan"
        await context.event("disk.swapped", note, {"disk": successor.cid, "before": old})
        notes.append(note)
    return Done("; ".join(notes))


def _waiting(context: StepContext) -> Iterator[DiskBinding]:
    record = context.record()
    wanted = {disk.name for disk in record.group.disks}
    return (disk for disk in record.disks if disk.way is not DiskWay.NONE and disk.name in wanted)


async def _stop_containers(context: StepContext) -> None:
    seconds = context.policy.drain_seconds
    await context.call_agent("drain", "update", {"deadline_seconds": seconds}, timeout_seconds=seconds)


async def _used_mib(context: StepContext, disk: DiskBinding) -> float | None:
    """Of the disk that is there, by the agent's own look at it; None when it is not mounted (any more): the agent looks
    again before it copies."""
    answer = await context.call_agent("disk_use", disk.cid)
    return float(answer["used_bytes"]) / BYTES_PER_MIB if answer else None


async def _grow_unmounted(context: StepContext, disk: DiskBinding) -> Failed | None:
    await context.call_agent("unmount_disk", disk.cid)
    return await _resize(context, disk)


async def _grow_detached(context: StepContext, disk: DiskBinding) -> Failed | None:
    if disk.cid is None:
        return Failed(f"disk {disk.name} was not made; a defect, please report it")
    await context.call_agent("unmount_disk", disk.cid)
    failed = await detach_until_free(context, disk.name, disk.cid)
    return failed or await _resize(context, disk)


async def _resize(context: StepContext, disk: DiskBinding) -> Failed | None:
    cid, required = disk.cid, _required(context, disk)
    size_mib = with_growth(required, disk).size_mib
    if cid is None:
        return Failed(f"disk {disk.name} was not made; a defect, please report it")
    await context.call_cloud("resize_disk", lambda: context.cloud().resize_disk(cid, size_mib))
    device = await attach_read_back(context, disk.name, cid)
    if not isinstance(device, str):
        return device if isinstance(device, Failed) else Failed(f"disk {disk.name} was not attached again; tried again")
    grown = replace(disk, size_mib=size_mib, required_mib=required.size_mib, device=device, way=DiskWay.NONE, why="")
    await save_binding(context, grown, f"disk {disk.name} grown")
    return None


async def _copy(context: StepContext, disk: DiskBinding, notes: list[str]) -> Failed | None:
    successor = disk.successor
    if successor is None or successor.cid is None or not successor.device:
        return Failed(f"disk {disk.name} has no disk to be copied to; a defect, please report it")
    answer = await context.call_agent_long(
        f"copying disk {disk.name}",
        "copy_disk",
        _source(disk),
        {
            "name": disk.name,
            "cid": successor.cid,
            "device": successor.device,
            "filesystem": successor.filesystem,
            "size_mib": successor.size_mib,
        },
    )
    ready = replace(disk, successor=replace(successor, ready=True))
    await save_binding(context, ready, f"disk {disk.name} copied")
    notes.append(f"disk {disk.name}: {_copied(answer)}")
    return None


async def _make_way(context: StepContext, disk: DiskBinding) -> Failed | None:
    """For a disk that has its data already."""
    successor = disk.successor
    if successor is None:
        return Failed(f"disk {disk.name} has no disk to take its place; a defect, please report it")
    await context.call_agent("unmount_disk", disk.cid)
    await save_binding(context, replace(disk, successor=replace(successor, ready=True)), f"disk {disk.name} lets go")
    return None


async def _taken(context: StepContext, disk: DiskBinding, successor: Successor) -> DiskBinding:
    """The entry with the new disk in it; grown, where it is smaller than what is wanted."""
    required = _required(context, disk)
    taken = replace(
        disk,
        key=successor.key,
        size_mib=successor.size_mib,
        cid=successor.cid,
        device=successor.device,
        filesystem=successor.filesystem,
        required_mib=required.size_mib,
        grown_mib=min(disk.grown_mib, successor.size_mib),
        cloud_properties=successor.cloud_properties,
        replaces=(disk.cid or DiskCid("")) if successor.way is DiskWay.COPY else DiskCid(""),
        taken_from=successor.taken_from,
        made_at=successor.made_at,
        way=DiskWay.NONE,
        why="",
        successor=None,
    )
    wanted = with_growth(required, taken)
    again = disk_changes.change(taken, wanted, context.cloud().disk_abilities)
    if again.way is not DiskWay.NONE:
        return replace(taken, way=again.way, why=again.why)  # begun once this is over
    if again.grows and taken.cid is not None:
        cid, size_mib = taken.cid, wanted.size_mib
        await context.call_cloud("resize_disk", lambda: context.cloud().resize_disk(cid, size_mib))
        return replace(taken, size_mib=size_mib)
    return taken


async def _give_up(context: StepContext, disk: DiskBinding, why: str) -> Outcome:
    """The old disk stays the instance's disk, and is not changed until something else is asked for."""
    record = context.record()
    dropped = await drop_successor(context, binding_of(record, disk.name) or disk)
    given_up = replace(
        dropped,
        way=DiskWay.NONE,
        why="",
        given_up_for=_required(context, disk),
        given_up_why=why,
        grown_mib=min(dropped.grown_mib, dropped.size_mib),
    )
    await save_binding(context, given_up, f"disk {disk.name} change given up")
    text = f"disk {disk.name} is not changed and goes on as it was: {why}"
    await context.event("disk.change_given_up", text)
    return Failed(f"{text}. Deploy a manifest that asks for what is possible")


def _required(context: StepContext, disk: DiskBinding) -> DiskRequirement:
    """By the manifest."""
    return next(item for item in context.record().group.disks if item.name == disk.name)


def _source(disk: DiskBinding) -> dict[str, Any]:
    return {
        "name": disk.name,
        "cid": disk.cid,
        "device": disk.device,
        "filesystem": disk.filesystem,
        "size_mib": disk.size_mib,
        "replaces": disk.replaces,
        "taken_from": disk.taken_from,
    }


def _copied(answer: Any) -> str:
    seconds = float(answer["seconds"])
    mib = float(answer["used_bytes"]) / BYTES_PER_MIB
    return f"{size_text(int(mib) or 1)} copied and compared in {seconds:.1f} s"
