"""Persistent disks of the providers of this machine: raw files, each held by one VM at most.

Laws:
- A disk and its VM are locked, in this order, while one is given to or taken from the other.
- Who holds a disk is what the provider reads from the kernel. It is read before a disk is plugged in, and again after.
- That a VM is given a disk is written before it is plugged in, and forgotten after it was unplugged.

Does not know: how a provider plugs (`Plugs`: qemu_disks.py, docker_disks.py), how VMs are made or fenced.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
    DiskHeld,
    DiskRequest,
    DiskSummary,
    VmNotFound,
)
from healthmonitor.clouds.local_store import MIB, LocalStore, VmRecord
from protocol.ids import DiskCid, VmCid

LOCK_SECONDS = 30.0
FOREIGN = VmCid("unknown-process")
"""Stands for a holder that is none of our VMs."""


class Plugs(Protocol):
    """How one provider plugs its disks. The caller holds the locks of the disk, and of the VM where there is one."""

    def device_path(self, disk: DiskCid) -> str:
        """By which the guest finds it."""
        ...

    async def holders(self, disk: DiskCid) -> frozenset[VmCid]:
        """Also a VM that may hold it and cannot be asked."""
        ...

    async def is_on(self, vm: VmCid) -> bool: ...

    async def plug(self, record: VmRecord, disk: DiskCid) -> None:
        """Nothing, where it is plugged in already."""
        ...

    async def unplug(self, record: VmRecord, disk: DiskCid) -> None:
        """Nothing, where it is not plugged in."""
        ...

    async def grow(self, disk: DiskCid, from_mib: int, to_mib: int) -> None:
        """Also told when both are the same: whoever has it open may not know yet. Locks its holder itself."""
        ...

    async def let_go(self, disk: DiskCid) -> None:
        """What this machine has made of the file. DiskHeld when it is in use."""
        ...


class LocalDisks:
    def __init__(self, store: LocalStore, plugs: Plugs) -> None:
        self._store = store
        self._plugs = plugs

    async def create(self, request: DiskRequest) -> DiskCid:
        return await self._store.make_disk(request, LOCK_SECONDS)

    async def delete(self, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            if self._store.read_disk(disk) is None:
                return
            holders = await self._plugs.holders(disk)
            if holders:
                raise held(disk, holders)
            await self._plugs.let_go(disk)
            await self._store.remove_disk(disk)

    async def list(self) -> list[DiskSummary]:
        return [
            DiskSummary(record.cid, record.key, record.size_mib, await self._plugs.holders(record.cid), record.tags)
            for record in self._store.disks()
        ]

    async def holders(self, disk: DiskCid) -> frozenset[VmCid]:
        self._store.require_disk(disk)
        return await self._plugs.holders(disk)

    async def attach(self, vm: VmCid, disk: DiskCid) -> str:
        async with self._store.locked(disk, LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            self._store.require_disk(disk)
            record = self._store.read_vm(vm)
            if record is None:
                raise VmNotFound(f"no VM {vm} to attach {disk} to")
            others = await self._plugs.holders(disk) - {vm}
            if others:
                raise held(disk, others)
            if not await self._plugs.is_on(vm):
                raise CloudRefused(f"VM {vm} is off and stays off: make a new one, then attach {disk} to that")
            if disk not in record.attachments:
                record = dataclasses.replace(record, attachments=(*record.attachments, disk))
                await self._store.write_vm(record)
            await self._plugs.plug(record, disk)
            if vm not in await self._plugs.holders(disk):
                raise CloudUnavailable(f"{disk} was attached to {vm}, which does not hold it; try again")
        return self._plugs.device_path(disk)

    async def detach(self, vm: VmCid, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            record = self._store.read_vm(vm)
            if record is None:
                return
            await self._plugs.unplug(record, disk)
            if vm in await self._plugs.holders(disk):
                raise CloudUnavailable(f"{vm} still holds {disk} after it was unplugged; try again, or fence the VM")
            if disk in record.attachments:
                rest = tuple(attached for attached in record.attachments if attached != disk)
                await self._store.write_vm(dataclasses.replace(record, attachments=rest))

    async def resize(self, disk: DiskCid, size_mib: int) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            record = self._store.require_disk(disk)
            size = self._store.disk_file(disk).stat().st_size // MIB
            if size_mib < size:
                raise CloudRefused(f"{disk} has {size} MiB and cannot be made smaller ({size_mib} MiB)")
            await self._plugs.grow(disk, size, size_mib)
            if record.size_mib != size_mib:
                await self._store.write_disk(dataclasses.replace(record, size_mib=size_mib))


def held(disk: DiskCid, holders: frozenset[VmCid]) -> DiskHeld:
    return DiskHeld(f"{disk} is held by {', '.join(sorted(holders))}; fence that VM or detach the disk first", holders)
