"""What the steps that deal with disks share: a disk's entry in its instance's record, who holds it, keeping what is let
go known as an orphan.

Laws: what is kept stays known before the record that names it forgets it; a disk is let go of a VM by the cloud's word,
which is read back by whoever needs it free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from healthmonitor.clouds.cloud import DiskHeld, DiskNotFound, VmNotFound
from healthmonitor.core.disk_changes import named_keys
from healthmonitor.core.keys import disk_key
from healthmonitor.core.operation import STEPS, Failed, Outcome, VmLost
from healthmonitor.core.records import DiskBinding, InstanceRecord, OrphanCause, OrphanDisk, Step, VmBinding
from healthmonitor.steps.context import StepContext
from protocol.ids import DiskCid, DiskName, VmCid


def binding_of(record: InstanceRecord, name: DiskName) -> DiskBinding | None:
    return next((disk for disk in record.disks if disk.name == name), None)


def cids_of(record: InstanceRecord) -> Iterator[tuple[DiskName, DiskCid]]:
    """Every disk that the record names, also those that are to take another's place."""
    for disk in record.disks:
        if disk.cid is not None:
            yield disk.name, disk.cid
        if disk.successor is not None and disk.successor.cid is not None:
            yield disk.name, disk.successor.cid


async def save_binding(context: StepContext, binding: DiskBinding, why: str) -> None:
    record = context.record()
    disks = tuple(binding if disk.name == binding.name else disk for disk in record.disks)
    if disks != record.disks:
        await context.save_record(replace(record, disks=disks), record, why)


async def free_key(context: StepContext, name: DiskName) -> str:
    """A key under which this place has no disk: none that a record names, no orphan, none in the cloud."""
    record = context.record()
    listed = {disk.key for disk in await context.call_cloud("list_disks", lambda: context.cloud().list_disks())}
    orphans = {key for cloud, key in context.tools.journal.orphans() if cloud == record.group.cloud}
    taken = listed | orphans | named_keys(context.tools.journal.instances().values(), record.group.cloud)
    number = 1
    while (key := disk_key(record.instance, name, number)) in taken:
        number += 1
    return key


async def keep_as_orphan(
    context: StepContext, record: InstanceRecord, disk: DiskBinding, cid: DiskCid, cause: OrphanCause
) -> None:
    """Before the record that names it forgets it."""
    orphan = OrphanDisk(
        cloud=record.group.cloud,
        key=disk.key,
        cid=cid,
        name=disk.name,
        size_mib=disk.size_mib,
        filesystem=disk.filesystem,
        instance=record.instance,
        since=context.tools.unix_time(),
        cause=cause,
        cloud_properties=disk.cloud_properties,
        taken_from=disk.taken_from,
        made_at=disk.made_at,
    )
    context.check_ours()
    await context.tools.journal.save_orphan(orphan)
    context.tools.crash_point(f"journal:disk {disk.name} orphaned")
    context.check_ours()


async def forget_orphan(context: StepContext, key: str, name: DiskName) -> None:
    """A record names the disk again (or another in its place)."""
    orphan = context.tools.journal.orphans().get((context.record().group.cloud, key))
    if orphan is not None:
        context.check_ours()
        await context.tools.journal.delete_orphan(orphan)
        context.tools.crash_point(f"journal:orphan {name} adopted")
        context.check_ours()


async def other_holders(context: StepContext, disk: DiskCid, vm: VmBinding | None) -> frozenset[VmCid]:
    holders = await context.call_cloud("disk_holders", lambda: context.cloud().disk_holders(disk))
    old = context.operation.old_vm
    # In a removal the record still names the old VM; it is no rightful holder any more.
    ours = vm is not None and vm.vm_cid is not None and (old is None or old.key != vm.key)
    return holders - {vm.vm_cid} if ours and vm is not None and vm.vm_cid is not None else holders


async def detach(context: StepContext, vm: VmCid, disk: DiskCid) -> None:
    with contextlib.suppress(VmNotFound):  # then it holds nothing, which the reading back shows
        await context.call_cloud("detach_disk", lambda: context.cloud().detach_disk(vm, disk))


async def detach_until_free(context: StepContext, name: DiskName, disk: DiskCid) -> Failed | None:
    """From our VM, and read back that nobody holds it."""
    vm = context.vm()
    if vm.vm_cid is not None:
        await detach(context, vm.vm_cid, disk)
    holders = await context.call_cloud("disk_holders", lambda: context.cloud().disk_holders(disk))
    if holders:
        return Failed(f"disk {name} ({disk}) was detached, but read back it is held by {names(holders)}; tried again")
    return None


async def attach_read_back(context: StepContext, name: DiskName, disk: DiskCid) -> str | Outcome:
    """To our VM, and nobody else's; the device."""
    vm = context.vm()
    if vm.vm_cid is None:
        return Failed("the VM has no id yet; a defect, please report it")
    cid = vm.vm_cid
    try:
        others = await other_holders(context, disk, vm)
        if others:
            return held_by_others(context, name, disk, others)
        device = await context.call_cloud("attach_disk", lambda: context.cloud().attach_disk(cid, disk))
        holders = await context.call_cloud("disk_holders", lambda: context.cloud().disk_holders(disk))
    except DiskHeld as error:
        return held_by_others(context, name, disk, error.holders)
    except DiskNotFound as error:
        return disk_lost(name, disk, error)
    except VmNotFound as error:
        return vm_gone(context, vm, str(error))
    if holders != frozenset({cid}):
        return Failed(
            f"disk {name} ({disk}) was attached to {cid}, but read back it is held by"
            f" {names(holders)}; attaching is tried again"
        )
    return device


def held_by_others(context: StepContext, name: DiskName, disk: DiskCid, holders: frozenset[VmCid]) -> Failed:
    return Failed(
        f"disk {name} ({disk}) is held by {names(holders)}; nothing is attached while that is so."
        f" If that is not a VM of {context.instance}, find out who attached it there, and detach it in the cloud"
    )


def disk_lost(name: DiskName, disk: DiskCid, error: DiskNotFound) -> Failed:
    return Failed(
        f"disk {name} ({disk}) is not in the cloud: {error}; none is made in its place. Restore it there under"
        " the same id; this goes on by itself then"
    )


def vm_gone(context: StepContext, vm: VmBinding, error: str) -> Outcome:
    if Step.FENCE in STEPS[context.operation.kind]:
        return VmLost(vm, f"the cloud does not know the VM any more: {error}")
    return Failed(f"the cloud does not know the VM any more: {error}; it is rebuilt when it counts as missing")


def names(holders: frozenset[VmCid]) -> str:
    return ", ".join(sorted(holders)) or "nobody"
