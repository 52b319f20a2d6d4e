"""The steps that deal with persistent disks in the cloud: MAKE_DISKS, FREE_DISKS, ATTACH, and what becomes of disks
that are not wanted any more.

Laws: a disk that cannot be found is never replaced by a new one; a disk is attached only when the hypervisor's side
says that nobody but this VM holds it, and that is read back; no disk is deleted but on a person's word. A disk that
is let go stays known as an orphan, and the place that it belonged to gets it back, which is said.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from healthmonitor.clouds.cloud import DiskHeld, DiskNotFound, DiskRequest, VmNotFound
from healthmonitor.core.keys import disk_key
from healthmonitor.core.manifest import DiskRequirement
from healthmonitor.core.operation import STEPS, Done, Failed, Outcome, VmLost
from healthmonitor.core.records import DiskBinding, InstanceRecord, OrphanDisk, Step, VmBinding
from healthmonitor.core.strays import FORGOTTEN_EVENT, GENERATION_FIELD
from healthmonitor.steps.context import StepContext
from protocol.ids import DiskCid, VmCid


async def make_disks(context: StepContext) -> Outcome:
    """Every disk that the group asks for: its intent written, made under its key, grown where it is too small."""
    notes: list[str] = []
    for wanted in context.record().group.disks:
        record = context.record()
        binding = _binding(record, wanted)
        if binding is None:
            intended = await _intend(context, record, wanted, notes)
            if isinstance(intended, Failed):
                return intended
            binding, record = intended, context.record()
        if binding.cid is None:
            request = _request(record, wanted, binding)
            cid = await context.call_cloud("create_disk", lambda r=request: context.cloud().create_disk(r))  # type: ignore[misc]
            await _save_binding(context, replace(binding, cid=cid), f"disk {wanted.name} made")
            await _forget_orphan(context, binding)
            notes.append(f"{wanted.name} is {cid}")
            continue
        await _forget_orphan(context, binding)
        if binding.size_mib < wanted.size_mib:
            disk, size_mib = binding.cid, wanted.size_mib
            await context.call_cloud(
                "resize_disk",
                lambda d=disk, s=size_mib: context.cloud().resize_disk(d, s),  # type: ignore[misc]
            )
            binding = replace(binding, size_mib=size_mib)
            await _save_binding(context, binding, f"disk {wanted.name} grown")
            notes.append(f"{wanted.name} grown to {size_mib} MiB")
        if binding.mount_options != wanted.mount_options:
            # The agent mounts with them the next time: a mounted disk is not taken from its containers for this.
            await _save_binding(
                context, replace(binding, mount_options=wanted.mount_options), f"disk {wanted.name} options"
            )
            notes.append(f"{wanted.name} has other mount options from its next mount on")
    return Done("; ".join(notes))


async def _intend(
    context: StepContext, record: InstanceRecord, wanted: DiskRequirement, notes: list[str]
) -> DiskBinding | Failed:
    """Written down before the cloud is asked for it. What is there under its key by then is no disk that we have just
    made: it is the one that this place had before, which is said, and its own size counts."""
    binding = DiskBinding(
        name=wanted.name,
        key=disk_key(record.instance, wanted.name),
        size_mib=wanted.size_mib,
        filesystem=wanted.filesystem,
        mount_options=wanted.mount_options,
    )
    listed = await context.call_cloud("list_disks", lambda: context.cloud().list_disks())
    found = next((disk for disk in listed if disk.key == binding.key), None)
    orphan = context.tools.journal.orphans().get((record.group.cloud, binding.key))
    if found is not None:
        if orphan is not None and orphan.filesystem != wanted.filesystem:
            return Failed(
                f"orphan {found.disk_cid} of disk {wanted.name} has {orphan.filesystem} and is never formatted as"
                f" {wanted.filesystem}: declare a disk of another name, or put {orphan.filesystem} back"
            )
        note = f"disk {wanted.name}: adopts orphan {found.disk_cid} with its data"
        await context.event("disk.adopted", f"{note} ({found.size_mib} MiB)", {"disk": found.disk_cid})
        notes.append(note)
        binding = replace(binding, cid=found.disk_cid, size_mib=found.size_mib)
    elif orphan is not None:
        await context.event(
            "disk.orphan_gone",
            f"disk {wanted.name}: orphan {orphan.cid} is not in the cloud any more; a new one is made",
            {"disk": orphan.cid},
        )
    await context.save_record(replace(record, disks=(*record.disks, binding)), record, f"disk {wanted.name} intended")
    return binding


async def _forget_orphan(context: StepContext, binding: DiskBinding) -> None:
    """A record names the disk again (or another in its place)."""
    orphan = context.tools.journal.orphans().get((context.record().group.cloud, binding.key))
    if orphan is not None:
        context.check_ours()
        await context.tools.journal.delete_orphan(orphan)
        context.tools.crash_point(f"journal:orphan {binding.name} adopted")
        context.check_ours()


async def _keep_as_orphan(context: StepContext, record: InstanceRecord, disk: DiskBinding, cid: DiskCid) -> None:
    """Before the record that names it forgets it: what is kept stays known."""
    context.check_ours()
    await context.tools.journal.save_orphan(
        OrphanDisk(
            cloud=record.group.cloud,
            key=disk.key,
            cid=cid,
            name=disk.name,
            size_mib=disk.size_mib,
            filesystem=disk.filesystem,
            instance=record.instance,
            since=context.tools.unix_time(),
        )
    )
    context.tools.crash_point(f"journal:disk {disk.name} orphaned")
    context.check_ours()


async def free_disks(context: StepContext) -> Outcome:
    """Nobody may hold our disks but the VM that fills the instance now. The old VM, proven off, is detached."""
    record = context.record()
    old = context.operation.old_vm
    for disk in record.disks:
        if disk.cid is None:
            continue
        try:
            others = await _other_holders(context, disk.cid, record.vm)
            if old is not None and old.vm_cid is not None and old.vm_cid in others:
                await _detach(context, old.vm_cid, disk.cid)
                others = await _other_holders(context, disk.cid, record.vm)
        except DiskNotFound as error:
            return _disk_lost(disk, error)
        if others:
            return _held_by_others(context, disk, others)
    return Done()


async def attach(context: StepContext) -> Outcome:
    """Our disks to our VM, each read back."""
    vm = context.vm()
    if vm.vm_cid is None:
        return Failed("the VM has no id yet; a defect, please report it")
    cid = vm.vm_cid
    notes: list[str] = []
    for wanted in context.record().group.disks:
        binding = _binding(context.record(), wanted)
        if binding is None or binding.cid is None:
            return Failed(f"disk {wanted.name} was not made; a defect, please report it")
        disk = binding.cid
        try:
            others = await _other_holders(context, disk, vm)
            if others:
                return _held_by_others(context, binding, others)
            device = await context.call_cloud("attach_disk", lambda d=disk: context.cloud().attach_disk(cid, d))  # type: ignore[misc]
            holders = await context.call_cloud("disk_holders", lambda d=disk: context.cloud().disk_holders(d))  # type: ignore[misc]
        except DiskHeld as error:
            return _held_by_others(context, binding, error.holders)
        except DiskNotFound as error:
            return _disk_lost(binding, error)
        except VmNotFound as error:
            return _vm_gone(context, vm, str(error))
        if holders != frozenset({cid}):
            return Failed(
                f"disk {wanted.name} ({disk}) was attached to {cid}, but read back it is held by"
                f" {_names(holders)}; attaching is tried again"
            )
        if binding.device != device:
            await _save_binding(context, replace(binding, device=device), f"disk {wanted.name} attached")
        notes.append(f"{wanted.name} at {device}")
    return Done("; ".join(notes))


async def release_unwanted(context: StepContext) -> str:
    """Disks that the group does not ask for any more: unmounted, detached, and left in the cloud as they are. The
    note for people."""
    notes: list[str] = []
    wanted = {disk.name for disk in context.record().group.disks}
    vm = context.vm()
    for disk in [disk for disk in context.record().disks if disk.name not in wanted]:
        if disk.cid is not None:
            if disk.device and vm.vm_cid is not None:
                await context.call_agent("unmount_disk", disk.cid)
                await _detach(context, vm.vm_cid, disk.cid)
            await _keep_as_orphan(context, context.record(), disk, disk.cid)
            await context.event("disk.orphaned", f"disk {disk.name} ({disk.cid}) is not wanted any more, and is kept")
            notes.append(f"{disk.name} ({disk.cid}) kept as an orphan")
        record = context.record()
        kept = tuple(other for other in record.disks if other.name != disk.name)
        await context.save_record(replace(record, disks=kept), record, f"disk {disk.name} released")
    return "; ".join(notes)


async def forget(context: StepContext) -> Outcome:
    """The end of a deleted instance: its disks kept as orphans, or deleted when the deployment's deletion says so."""
    record = context.tools.journal.instance(context.instance)
    if record is None:
        return Done("forgotten before")
    deployment = context.tools.journal.deployment(record.deployment)
    delete = deployment is not None and deployment.deleting and deployment.delete_disks
    for disk in record.disks:
        if disk.cid is None:
            continue
        cid = disk.cid
        if delete:
            await context.call_cloud("delete_disk", lambda c=cid: context.cloud().delete_disk(c))  # type: ignore[misc]
            await _forget_orphan(context, disk)
            await context.event("disk.deleted", f"disk {disk.name} ({cid}) was deleted with its deployment")
        else:
            await _keep_as_orphan(context, record, disk, cid)
            await context.event("disk.orphaned", f"disk {disk.name} ({cid}) is kept without an instance")
    # The timeline is what tells a VM of this instance that turns up later from one of a journal that was lost.
    await context.event(
        FORGOTTEN_EVENT, "the instance is forgotten; nothing runs for it", {GENERATION_FIELD: str(record.generation)}
    )
    context.check_ours()
    await context.tools.journal.delete_instance(record)
    context.tools.crash_point("journal:instance forgotten")
    return Done()


def _binding(record: InstanceRecord, wanted: DiskRequirement) -> DiskBinding | None:
    return next((disk for disk in record.disks if disk.name == wanted.name), None)


async def _save_binding(context: StepContext, binding: DiskBinding, why: str) -> None:
    record = context.record()
    disks = tuple(binding if disk.name == binding.name else disk for disk in record.disks)
    await context.save_record(replace(record, disks=disks), record, why)


def _request(record: InstanceRecord, wanted: DiskRequirement, binding: DiskBinding) -> DiskRequest:
    return DiskRequest(
        key=binding.key,
        size_mib=wanted.size_mib,
        cloud_properties=wanted.cloud_properties,
        tags={"instance": record.instance, "deployment": record.deployment, "disk": wanted.name},
    )


async def _other_holders(context: StepContext, disk: DiskCid, vm: VmBinding | None) -> frozenset[VmCid]:
    holders = await context.call_cloud("disk_holders", lambda: context.cloud().disk_holders(disk))
    old = context.operation.old_vm
    # In a removal the record still names the old VM; it is no rightful holder any more.
    ours = vm is not None and vm.vm_cid is not None and (old is None or old.key != vm.key)
    return holders - {vm.vm_cid} if ours and vm is not None and vm.vm_cid is not None else holders


async def _detach(context: StepContext, vm: VmCid, disk: DiskCid) -> None:
    with contextlib.suppress(VmNotFound):  # then it holds nothing, which the reading back shows
        await context.call_cloud("detach_disk", lambda: context.cloud().detach_disk(vm, disk))


def _held_by_others(context: StepContext, disk: DiskBinding, holders: frozenset[VmCid]) -> Failed:
    return Failed(
        f"disk {disk.name} ({disk.cid}) is held by {_names(holders)}; nothing is attached while that is so."
        f" If that is not a VM of {context.instance}, find out who attached it there, and detach it in the cloud"
    )


def _disk_lost(disk: DiskBinding, error: DiskNotFound) -> Failed:
    return Failed(
        f"disk {disk.name} ({disk.cid}) is not in the cloud: {error}; none is made in its place. Restore it there under"
        " the same id; this goes on by itself then"
    )


def _vm_gone(context: StepContext, vm: VmBinding, error: str) -> Outcome:
    if Step.FENCE in STEPS[context.operation.kind]:
        return VmLost(vm, f"the cloud does not know the VM any more: {error}")
    return Failed(f"the cloud does not know the VM any more: {error}; it is rebuilt when it counts as missing")


def _names(holders: frozenset[VmCid]) -> str:
    return ", ".join(sorted(holders)) or "nobody"
