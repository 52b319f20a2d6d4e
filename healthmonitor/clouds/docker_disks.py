"""How the Docker provider plugs disks: raw files, as loop devices inside the containers that are VMs.

Law: who holds a disk is read from the kernel: the VMs in whose /dev the device stands, and, as long as the loop device
is in use, the VM that was given it. A loop device that outlived its VM is released only when that VM has no process.

Does not know: when a disk may be plugged in (local_disks.py), how containers are made or fenced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from healthmonitor.clouds import loop_devices
from healthmonitor.clouds.cloud import CloudUnavailable
from healthmonitor.clouds.local_disks import FOREIGN, held
from healthmonitor.clouds.local_store import MIB, LocalStore, VmRecord
from protocol.ids import DiskCid, VmCid

RELEASE_SECONDS = 5.0
POLL_SECONDS = 0.05


class DockerPlugs:
    def __init__(self, store: LocalStore, pid_of: Callable[[VmCid], Awaitable[int]]) -> None:
        """`pid_of`: the VM's first process on this machine, 0 when it has none; CloudUnavailable."""
        self._store = store
        self._pid_of = pid_of

    def device_path(self, disk: DiskCid) -> str:
        return f"/dev/disk/by-id/resurgam-{disk}"

    async def is_on(self, vm: VmCid) -> bool:
        return bool(await self._pid_of(vm)) and self._store.read_proof(vm) is None

    async def plug(self, record: VmRecord, disk: DiskCid) -> None:
        pid = await self._pid_of(record.cid)
        if not pid:
            raise CloudUnavailable(f"{record.cid} ended while {disk} was attached to it; look again")
        device = await loop_devices.attach(self._store.disk_file(disk))
        await asyncio.to_thread(loop_devices.make_node, device, self._node(pid, disk))

    async def unplug(self, record: VmRecord, disk: DiskCid) -> None:
        if disk not in record.attachments:
            return
        pid = await self._pid_of(record.cid)
        if pid:
            await asyncio.to_thread(self._node(pid, disk).unlink, True)
        await self._release(record.cid, disk)

    async def let_go(self, disk: DiskCid) -> None:
        if not await loop_devices.release(self._store.disk_file(disk)):
            raise held(disk, frozenset({FOREIGN}))

    async def grow(self, disk: DiskCid, from_mib: int, to_mib: int) -> None:
        file = self._store.disk_file(disk)
        if to_mib > from_mib:
            with file.open("r+b") as opened:
                opened.truncate(to_mib * MIB)
        await loop_devices.reread_size(file)

    async def release_all(self, record: VmRecord) -> None:
        """After the VM's last process ended; CloudUnavailable when a disk is still in use."""
        for disk in record.attachments:
            await self._release(record.cid, disk)

    async def holders(self, disk: DiskCid) -> frozenset[VmCid]:
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
            if pid and (looped or await asyncio.to_thread(self._node(pid, disk).exists)):
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

    def _node(self, pid: int, disk: DiskCid) -> Path:
        """In the VM's own /dev, seen from outside."""
        return Path(f"/proc/{pid}/root{self.device_path(disk)}")
