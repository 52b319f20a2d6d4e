"""Persistent disks of the Docker provider: raw files, as loop devices inside the containers that are VMs.

Law: who holds a disk is read from the kernel: the VMs in whose /dev the device stands, and, as long as the loop device
is in use, the VM that was given it. A loop device that outlived its VM is released only when that VM has no process.

Does not know: how containers are made or fenced.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

from healthmonitor.clouds import loop_devices
from healthmonitor.clouds.cloud import CloudRefused, CloudUnavailable, DiskHeld, DiskSummary, VmNotFound
from healthmonitor.clouds.local_store import MIB, LocalStore, VmRecord
from protocol.ids import DiskCid, VmCid

LOCK_SECONDS = 30.0
RELEASE_SECONDS = 5.0
POLL_SECONDS = 0.05
FOREIGN = VmCid("unknown-process")
"""Stands for a holder that is none of our VMs."""


def device_path(disk: DiskCid) -> str:
    return f"/dev/disk/by-id/resurgam-{disk}"


class DockerDisks:
    def __init__(self, store: LocalStore, pid_of: Callable[[VmCid], Awaitable[int]]) -> None:
        """`pid_of`: the VM's first process on this machine, 0 when it has none; CloudUnavailable."""
        self._store = store
        self._pid_of = pid_of

    async def delete(self, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            if self._store.read_disk(disk) is None:
                return
            holders = await self._holders(disk)
            if holders:
                raise _held(disk, holders)
            if not await loop_devices.release(self._store.disk_file(disk)):
                raise _held(disk, frozenset({FOREIGN}))
            await self._store.remove_disk(disk)

    async def list(self) -> list[DiskSummary]:
        return [
            DiskSummary(record.cid, record.key, record.size_mib, await self._holders(record.cid), record.tags)
            for record in self._store.disks()
        ]

    async def holders(self, disk: DiskCid) -> frozenset[VmCid]:
        self._store.require_disk(disk)
        return await self._holders(disk)

    async def attach(self, vm: VmCid, disk: DiskCid) -> str:
        async with self._store.locked(disk, LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            self._store.require_disk(disk)
            record = self._store.read_vm(vm)
            if record is None:
                raise VmNotFound(f"no VM {vm} to attach {disk} to")
            others = await self._holders(disk) - {vm}
            if others:
                raise _held(disk, others)
            pid = await self._pid_of(vm)
            if not pid or self._store.read_proof(vm) is not None:
                raise CloudRefused(f"VM {vm} is off and stays off: make a new one, then attach {disk} to that")
            if disk not in record.attachments:
                await self._store.write_vm(dataclasses.replace(record, attachments=(*record.attachments, disk)))
            device = await loop_devices.attach(self._store.disk_file(disk))
            await asyncio.to_thread(loop_devices.make_node, device, _node(pid, disk))
            if vm not in await self._holders(disk):
                raise CloudUnavailable(f"{disk} was attached to {vm}, but it does not stand in its /dev; try again")
        return device_path(disk)

    async def detach(self, vm: VmCid, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            record = self._store.read_vm(vm)
            if record is None or disk not in record.attachments:
                return
            pid = await self._pid_of(vm)
            if pid:
                await asyncio.to_thread(_node(pid, disk).unlink, True)
            await self._release(vm, disk)
            await self._forget(record, disk)

    async def release_all(self, record: VmRecord) -> None:
        """After the VM's last process ended; CloudUnavailable when a disk is still in use."""
        for disk in record.attachments:
            await self._release(record.cid, disk)

    async def resize(self, disk: DiskCid, size_mib: int) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            record = self._store.require_disk(disk)
            file = self._store.disk_file(disk)
            size = file.stat().st_size // MIB
            if size_mib < size:
                raise CloudRefused(f"{disk} has {size} MiB and cannot be made smaller ({size_mib} MiB)")
            if size_mib > size:
                with file.open("r+b") as opened:
                    opened.truncate(size_mib * MIB)
            await loop_devices.reread_size(file)
            if record.size_mib != size_mib:
                await self._store.write_disk(dataclasses.replace(record, size_mib=size_mib))

    async def _holders(self, disk: DiskCid) -> frozenset[VmCid]:
        looped = bool(await loop_devices.of_file(self._store.disk_file(disk)))
        found = set()
        given = False
        for record in self._store.vms():
            if disk not in record.attachments:
                continue
            given = True
            try:
                pid = await self._pid_of(record.cid)
            except CloudUnavailable:
                found.add(record.cid)  # the engine does not say, so it may run and hold what it was given
                continue
            if pid and (looped or await asyncio.to_thread(_node(pid, disk).exists)):
                found.add(record.cid)
        if looped and not given:
            found.add(FOREIGN)
        return frozenset(found)

    async def _release(self, vm: VmCid, disk: DiskCid) -> None:
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while not await loop_devices.release(self._store.disk_file(disk)):
            if asyncio.get_running_loop().time() > deadline:
                raise CloudUnavailable(
                    f"{disk} of {vm} is still in use (mounted?); unmount it and try again, or fence the VM"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _forget(self, record: VmRecord, disk: DiskCid) -> None:
        rest = tuple(attached for attached in record.attachments if attached != disk)
        await self._store.write_vm(dataclasses.replace(record, attachments=rest))


def _held(disk: DiskCid, holders: frozenset[VmCid]) -> DiskHeld:
    return DiskHeld(f"{disk} is held by {', '.join(sorted(holders))}; fence that VM or detach the disk first", holders)


def _node(pid: int, disk: DiskCid) -> Path:
    """In the VM's own /dev, seen from outside."""
    return Path(f"/proc/{pid}/root{device_path(disk)}")
