"""The steps that deal with persistent disks in the cloud: MAKE_DISKS, FREE_DISKS, ATTACH, and what becomes of disks
that are not wanted any more.

Laws: a disk that cannot be found is never replaced by a new one; a disk is attached only when the hypervisor's side
says that nobody but this VM holds it, and that is read back; no disk is deleted but on a person's word. A disk that
is let go stays known as an orphan, and the place that it belonged to gets it back, which is said.

Does not know: how a disk is changed that its containers must let go of first (disk_rework.py).
"""

from __future__ import annotations

from dataclasses import replace

from healthmonitor.clouds.cloud import DiskNotFound, DiskRequest
from healthmonitor.core import disk_changes
from healthmonitor.core.disk_growth import with_growth
from healthmonitor.core.manifest import DiskRequirement
from healthmonitor.core.operation import IN_PLACE, Done, Failed, Outcome
from healthmonitor.core.records import (
    DiskBinding,
    DiskWay,
    InstanceRecord,
    OperationKind,
    OrphanCause,
    OrphanDisk,
    Successor,
)
from healthmonitor.core.strays import FORGOTTEN_EVENT, GENERATION_FIELD
from healthmonitor.steps.context import StepContext
from healthmonitor.steps.disk_records import (
    attach_read_back,
    binding_of,
    cids_of,
    detach,
    detach_until_free,
    disk_lost,
    forget_orphan,
    free_key,
    held_by_others,
    keep_as_orphan,
    other_holders,
    save_binding,
)
from protocol.ids import DiskCid


async def make_disks(context: StepContext) -> Outcome:
    """Every disk that the group asks for: its intent written, made under its key, grown where it is too small. A change
    for which containers must stop is only noted here."""
    notes: list[str] = []
    for required in context.record().group.disks:
        record = context.record()
        binding = binding_of(record, required.name)
        if binding is None:
            intended = await _intend(context, record, required, notes)
            if isinstance(intended, Failed):
                return intended
            binding = intended
        if binding.cid is None:
            await _make(context, required, binding, notes)
            continue
        await forget_orphan(context, binding.key, binding.name)
        await _see_to(context, required, binding, notes)
    return Done("; ".join(notes))


async def _make(context: StepContext, wanted: DiskRequirement, binding: DiskBinding, notes: list[str]) -> None:
    request = _request(context.record(), wanted, binding.key)
    cid = await context.call_cloud("create_disk", lambda: context.cloud().create_disk(request))
    made = replace(
        binding,
        cid=cid,
        cloud_properties=wanted.cloud_properties,
        required_mib=wanted.size_mib,
        made_at=context.tools.unix_time(),
    )
    await save_binding(context, made, f"disk {wanted.name} made")
    await forget_orphan(context, binding.key, binding.name)
    notes.append(f"{wanted.name} is {cid}")


async def _see_to(context: StepContext, required: DiskRequirement, binding: DiskBinding, notes: list[str]) -> None:
    """A disk that is there, against what is wanted now: by the manifest, and by its own growth."""
    wanted = with_growth(required, binding)
    change = disk_changes.change(binding, wanted, context.cloud().disk_abilities)
    successor = binding.successor
    useful = successor is None or (
        change.way is DiskWay.TAKE or (change.way is DiskWay.COPY and disk_changes.suits(successor, wanted))
    )
    if not useful:
        binding = await drop_successor(context, binding)
        notes.append(f"{wanted.name}: the copy that was begun is not wanted any more")
    if change.grows and change.way is DiskWay.NONE and binding.cid is not None:
        disk, size_mib = binding.cid, wanted.size_mib
        await context.call_cloud("resize_disk", lambda: context.cloud().resize_disk(disk, size_mib))
        binding = replace(binding, size_mib=size_mib)
        await save_binding(context, binding, f"disk {wanted.name} grown")
        notes.append(f"{wanted.name} grown to {size_mib} MiB")
    if binding.mount_options != wanted.mount_options:
        # The agent mounts with them the next time: a mounted disk is not taken from its containers for this.
        binding = replace(binding, mount_options=wanted.mount_options)
        notes.append(f"{wanted.name} has other mount options from its next mount on")
    if change.way is not DiskWay.COPY:
        binding = replace(binding, required_mib=required.size_mib)
    if binding.given_up_for is not None and binding.given_up_for != required:
        binding = replace(binding, given_up_for=None, given_up_why="")
    binding = replace(binding, way=change.way, why=change.why if change.way is not DiskWay.NONE else "")
    await save_binding(context, binding, f"disk {wanted.name} noted")
    if binding.way is not DiskWay.NONE:
        notes.append(f"{wanted.name} waits for a change: {binding.why}")
    if binding.way is DiskWay.COPY and context.operation.kind is OperationKind.CHANGE_DISKS:
        await _make_successor(context, wanted, binding, notes)


async def _make_successor(
    context: StepContext, wanted: DiskRequirement, binding: DiskBinding, notes: list[str]
) -> None:
    """The disk that will take this one's place, blank, under a key of its own."""
    successor = binding.successor
    if successor is None:
        successor = Successor(
            way=DiskWay.COPY,
            key=await free_key(context, wanted.name),
            size_mib=wanted.size_mib,
            filesystem=wanted.filesystem,
            cloud_properties=wanted.cloud_properties,
        )
        binding = replace(binding, successor=successor)
        await save_binding(context, binding, f"disk {wanted.name} copy intended")
    if successor.cid is None:
        request = _request(context.record(), wanted, successor.key)
        cid = await context.call_cloud("create_disk", lambda: context.cloud().create_disk(request))
        made = replace(successor, cid=cid, made_at=context.tools.unix_time())
        await save_binding(context, replace(binding, successor=made), f"disk {wanted.name} copy made")
        notes.append(f"{wanted.name} is to be copied to {cid}")


async def drop_successor(context: StepContext, binding: DiskBinding) -> DiskBinding:
    """What was to take the disk's place is let go, and kept as an orphan; the disk itself stays as it is."""
    successor = binding.successor
    if successor is None:
        return binding
    cid = successor.cid
    if cid is None:  # the cloud may have made it without our having heard of it
        listed = await context.call_cloud("list_disks", lambda: context.cloud().list_disks())
        cid = next((disk.disk_cid for disk in listed if disk.key == successor.key), None)
    if cid is not None:
        vm = context.record().vm
        if successor.device and vm is not None and vm.vm_cid is not None and context.operation.kind in IN_PLACE:
            await context.call_agent("release_copy", binding.cid, cid)
            await detach(context, vm.vm_cid, cid)
        if successor.way is DiskWay.COPY:
            left = replace(
                binding,
                key=successor.key,
                size_mib=successor.size_mib,
                filesystem=successor.filesystem,
                cloud_properties=successor.cloud_properties,
                made_at=successor.made_at,
            )
            await keep_as_orphan(context, context.record(), left, cid, OrphanCause.UNFINISHED)
            await context.event("disk.orphaned", f"disk {binding.name}: the copy begun on {cid} is given up, and kept")
    dropped = replace(binding, successor=None, way=DiskWay.NONE, why="")
    await save_binding(context, dropped, f"disk {binding.name} copy dropped")
    return dropped


async def _intend(
    context: StepContext, record: InstanceRecord, wanted: DiskRequirement, notes: list[str]
) -> DiskBinding | Failed:
    """Written down before the cloud is asked for it. What is there under its key by then is no disk that we have just
    made: it is the one that this place had before, which is said, and its own size counts."""
    orphan = adoptable(context, wanted)
    key = orphan.key if orphan is not None else _key_for_new(context, wanted)
    binding = DiskBinding(
        name=wanted.name,
        key=key,
        size_mib=wanted.size_mib,
        filesystem=wanted.filesystem,
        mount_options=wanted.mount_options,
        required_mib=wanted.size_mib,
    )
    listed = await context.call_cloud("list_disks", lambda: context.cloud().list_disks())
    found = next((disk for disk in listed if disk.key == binding.key), None)
    if found is not None:
        if orphan is not None and orphan.filesystem != wanted.filesystem:
            return Failed(
                f"orphan {found.disk_cid} of disk {wanted.name} has {orphan.filesystem} and is never formatted as"
                f" {wanted.filesystem}: declare a disk of another name, or put {orphan.filesystem} back"
            )
        note = f"disk {wanted.name}: adopts orphan {found.disk_cid} with its data"
        await context.event("disk.adopted", f"{note} ({found.size_mib} MiB)", {"disk": found.disk_cid})
        notes.append(note)
        binding = replace(
            binding,
            cid=found.disk_cid,
            size_mib=found.size_mib,
            cloud_properties=orphan.cloud_properties if orphan is not None else None,
            taken_from=orphan.taken_from if orphan is not None else "",
            made_at=orphan.made_at if orphan is not None else 0.0,
        )
    elif orphan is not None:
        await context.event(
            "disk.orphan_gone",
            f"disk {wanted.name}: orphan {orphan.cid} is not in the cloud any more; a new one is made",
            {"disk": orphan.cid},
        )
    await context.save_record(replace(record, disks=(*record.disks, binding)), record, f"disk {wanted.name} intended")
    return binding


def adoptable(context: StepContext, wanted: DiskRequirement) -> OrphanDisk | None:
    record = context.record()
    return disk_changes.adoptable(context.tools.journal.orphans(), record.group.cloud, record.instance, wanted.name)


def _key_for_new(context: StepContext, wanted: DiskRequirement) -> str:
    """The first that neither an orphan nor a record has."""
    record = context.record()
    return disk_changes.key_for_new(
        context.tools.journal.orphans(),
        context.tools.journal.instances().values(),
        record.group.cloud,
        record.instance,
        wanted.name,
    )


async def free_disks(context: StepContext) -> Outcome:
    """Nobody may hold our disks but the VM that fills the instance now. The old VM, proven off, is detached."""
    record = context.record()
    old = context.operation.old_vm
    for name, cid in cids_of(record):
        try:
            others = await other_holders(context, cid, record.vm)
            if old is not None and old.vm_cid is not None and old.vm_cid in others:
                await detach(context, old.vm_cid, cid)
                others = await other_holders(context, cid, record.vm)
        except DiskNotFound as error:
            return disk_lost(name, cid, error)
        if others:
            return held_by_others(context, name, cid, others)
    return Done()


async def attach(context: StepContext) -> Outcome:
    """Our disks to our VM, each read back; where disks are copied, the new ones beside the old."""
    notes: list[str] = []
    for wanted in context.record().group.disks:
        binding = binding_of(context.record(), wanted.name)
        if binding is None or binding.cid is None:
            return Failed(f"disk {wanted.name} was not made; a defect, please report it")
        device = await attach_read_back(context, wanted.name, binding.cid)
        if not isinstance(device, str):
            return device
        if binding.device != device:
            binding = replace(binding, device=device)
            await save_binding(context, binding, f"disk {wanted.name} attached")
        notes.append(f"{wanted.name} at {device}")
        successor = binding.successor
        if context.operation.kind is not OperationKind.CHANGE_DISKS or successor is None or successor.cid is None:
            continue
        device = await attach_read_back(context, wanted.name, successor.cid)
        if not isinstance(device, str):
            return device
        if successor.device != device:
            changed = replace(binding, successor=replace(successor, device=device))
            await save_binding(context, changed, f"disk {wanted.name} copy attached")
        notes.append(f"beside it {successor.cid} at {device}")
    return Done("; ".join(notes))


async def plug_again(context: StepContext, binding: DiskBinding) -> Outcome:
    """The cloud calls it attached, and a new VM has never seen it, so that nothing there can have it mounted: taken out
    and put in again. A cloud may have recorded an attachment that it never carried out, nor ever will."""
    if binding.cid is None:
        return Failed(f"disk {binding.name} was not made; a defect, please report it")
    held = await detach_until_free(context, binding.name, binding.cid)
    if held is not None:
        return held
    device = await attach_read_back(context, binding.name, binding.cid)
    if not isinstance(device, str):
        return device
    await save_binding(context, replace(binding, device=device), f"disk {binding.name} attached again")
    return Failed(
        f"disk {binding.name} ({binding.cid}) was attached by the cloud's word and its VM did not see it; it was"
        " detached and attached again, and mounting is tried again"
    )


async def release_unwanted(context: StepContext) -> str:
    """Disks that the group does not ask for any more: unmounted, detached, and left in the cloud as they are. The
    note for people."""
    notes: list[str] = []
    wanted = {disk.name for disk in context.record().group.disks}
    vm = context.vm()
    for standing in [disk for disk in context.record().disks if disk.name not in wanted]:
        disk = await drop_successor(context, standing)
        if disk.cid is not None:
            if disk.device and vm.vm_cid is not None:
                await context.call_agent("unmount_disk", disk.cid)
                await detach(context, vm.vm_cid, disk.cid)
            await keep_as_orphan(context, context.record(), disk, disk.cid, OrphanCause.RELEASED)
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
    for standing in record.disks:
        successor = standing.successor
        if successor is not None:
            disk = await drop_successor(context, standing)
            if delete and successor.cid is not None and successor.way is DiskWay.COPY:
                await _delete(context, disk, successor.cid, successor.key)
        else:
            disk = standing
        if disk.cid is None:
            continue
        if delete:
            await _delete(context, disk, disk.cid, disk.key)
        else:
            await keep_as_orphan(context, context.record(), disk, disk.cid, OrphanCause.RELEASED)
            await context.event("disk.orphaned", f"disk {disk.name} ({disk.cid}) is kept without an instance")
    # The timeline is what tells a VM of this instance that turns up later from one of a journal that was lost.
    await context.event(
        FORGOTTEN_EVENT, "the instance is forgotten; nothing runs for it", {GENERATION_FIELD: str(record.generation)}
    )
    context.check_ours()
    await context.tools.journal.delete_instance(context.record())
    context.tools.crash_point("journal:instance forgotten")
    return Done()


async def _delete(context: StepContext, disk: DiskBinding, cid: DiskCid, key: str) -> None:
    await context.call_cloud("delete_disk", lambda: context.cloud().delete_disk(cid))
    await forget_orphan(context, key, disk.name)
    await context.event("disk.deleted", f"disk {disk.name} ({cid}) was deleted with its deployment")


def _request(record: InstanceRecord, wanted: DiskRequirement, key: str) -> DiskRequest:
    return DiskRequest(
        key=key,
        size_mib=wanted.size_mib,
        cloud_properties=wanted.cloud_properties,
        tags={"instance": record.instance, "deployment": record.deployment, "disk": wanted.name},
    )
