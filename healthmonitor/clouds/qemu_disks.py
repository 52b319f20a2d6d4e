"""Persistent disks of the QEMU provider: raw files, plugged in and out of running VMs.

Law: who holds a disk is read from the kernel: the processes of VMs that have the file open, whether or not their
QEMU answers. A disk is plugged into a VM only when no other holds it, and QEMU locks the image on top of that.
Data disks honour the guest's flushes.

Does not know: how VMs are made or fenced.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

from healthmonitor.clouds import qemu_process, qmp
from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
    DiskHeld,
    DiskRequest,
    DiskSummary,
    VmNotFound,
)
from healthmonitor.clouds.local_store import MIB, LocalStore, VmRecord
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET, DISK_PORTS, MONITOR_SOCKET, port_name
from protocol.ids import DiskCid, VmCid

LOCK_SECONDS = 30.0
UNPLUG_SECONDS = 15.0
"""The guest must let go of the device; one that runs does so in a tenth of a second."""
UNPLUG_RETRY_SECONDS = 3.0
"""A guest that is still booting loses the request, so it is made again."""
ASK_SECONDS = 2.0
FOREIGN = VmCid("unknown-process")
"""Stands for a holder of the image's lock that is none of our VMs."""


def device_path(disk: DiskCid) -> str:
    return f"/dev/disk/by-id/virtio-{disk}"


class QemuDisks:
    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def create(self, request: DiskRequest) -> DiskCid:
        return await self._store.make_disk(request, LOCK_SECONDS)

    async def delete(self, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            if self._store.read_disk(disk) is None:
                return
            holders = await self._holders(disk)
            if holders:
                raise _held(disk, holders)
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
            holders = await self._holders(disk)
            if holders - {vm}:
                raise _held(disk, holders - {vm})
            if not qemu_process.is_held(self._store.vm_directory(vm) / "running.lock"):
                raise CloudRefused(f"VM {vm} is off and stays off: make a new one, then attach {disk} to that")
            if disk not in record.attachments:
                record = dataclasses.replace(record, attachments=(*record.attachments, disk))
                await self._store.write_vm(record)
            await self._plug(record, disk)
            if vm not in await self._holders(disk):
                raise CloudUnavailable(f"{disk} was attached to {vm}, but its process does not have it open; try again")
        return device_path(disk)

    async def detach(self, vm: VmCid, disk: DiskCid) -> None:
        async with self._store.locked(disk, LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            record = self._store.read_vm(vm)
            if record is None:
                return
            if vm in await self._holders(disk):
                await self._unplug(vm, disk)
                if vm in await self._holders(disk):
                    raise CloudUnavailable(
                        f"{vm} still has {disk} open after it was unplugged; try again, or fence the VM"
                    )
            if disk in record.attachments:
                rest = tuple(attached for attached in record.attachments if attached != disk)
                await self._store.write_vm(dataclasses.replace(record, attachments=rest))

    async def resize(self, disk: DiskCid, size_mib: int) -> None:
        async with self._store.locked(disk, LOCK_SECONDS):
            record = self._store.require_disk(disk)
            file = self._store.disk_file(disk)
            size = file.stat().st_size // MIB
            if size_mib < size:
                raise CloudRefused(f"{disk} has {size} MiB and cannot be made smaller ({size_mib} MiB)")
            if size_mib > size:
                holders = await self._holders(disk)
                if FOREIGN in holders:
                    raise _held(disk, holders)
                if holders:
                    (vm,) = holders
                    async with self._store.locked(vm, LOCK_SECONDS):
                        await self._resize_plugged(vm, disk, size_mib)
                else:
                    with file.open("r+b") as opened:
                        opened.truncate(size_mib * MIB)
            if record.size_mib != size_mib:
                await self._store.write_disk(dataclasses.replace(record, size_mib=size_mib))

    async def _holders(self, disk: DiskCid) -> frozenset[VmCid]:
        """Also a VM that runs, was to be given the disk, and cannot be asked: the order may still lie before it."""
        open_in = await asyncio.to_thread(self._read_holders, disk)
        unasked = set()
        for record in self._store.vms():
            if record.cid in open_in or disk not in record.attachments:
                continue
            if qemu_process.is_held(self._store.vm_directory(record.cid) / "running.lock") and not await self._answers(
                record.cid
            ):
                unasked.add(record.cid)
        return open_in | unasked

    async def _answers(self, vm: VmCid) -> bool:
        try:
            async with qmp.connect(self._store.vm_directory(vm) / MONITOR_SOCKET, ASK_SECONDS) as machine:
                await machine.execute("query-status", timeout_seconds=ASK_SECONDS)
        except qmp.QmpUnanswered:
            return False
        return True

    def _read_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        file = self._store.disk_file(disk)
        processes = qemu_process.scan()
        found = set()
        for record in self._store.vms():
            for process in processes.get(self._store.vm_directory(record.cid) / "qemu.pid", ()):
                if qemu_process.has_open(process.pid, [file]):
                    found.add(record.cid)
        if not found and qemu_process.image_is_locked(file):
            found.add(FOREIGN)
        return frozenset(found)

    async def _plug(self, record: VmRecord, disk: DiskCid) -> None:
        try:
            async with qmp.connect(self._control(record.cid)) as machine:
                devices = await _disk_devices(machine)
                if not await _has_node(machine, disk):
                    await machine.execute(
                        "blockdev-add",
                        driver="raw",
                        node_name=_node(disk),
                        discard="unmap",
                        file={"driver": "file", "filename": str(self._store.disk_file(disk)), "locking": "on"},
                    )
                if _device(disk) not in devices:
                    await _add_device(machine, disk, record.cid, devices)
        except qmp.QmpRefused as error:
            if "lock" in error.description:
                raise _held(disk, frozenset({FOREIGN})) from None
            raise CloudUnavailable(f"attaching {disk} to {record.cid}: {error}") from None
        except qmp.QmpUnanswered as error:
            raise CloudUnavailable(f"attaching {disk} to {record.cid}: {error}; look again, then repeat") from None

    async def _unplug(self, vm: VmCid, disk: DiskCid) -> None:
        try:
            async with qmp.connect(self._control(vm)) as machine:
                if _device(disk) in await _disk_devices(machine):
                    await self._remove_device(machine, vm, disk)
                if await _has_node(machine, disk):
                    await machine.execute("blockdev-del", node_name=_node(disk))
        except qmp.QmpRefused as error:
            raise CloudUnavailable(f"detaching {disk} from {vm}: {error}") from None
        except qmp.QmpUnanswered as error:
            raise CloudUnavailable(f"detaching {disk} from {vm}: {error}; look again, then repeat") from None

    async def _remove_device(self, machine: qmp.Qmp, vm: VmCid, disk: DiskCid) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNPLUG_SECONDS
        while loop.time() < deadline:
            try:
                await machine.execute("device_del", id=_device(disk))
            except qmp.QmpRefused as error:
                if error.kind == "DeviceNotFound":
                    return
                if "process of unplug" not in error.description:
                    raise
            wait_seconds = min(UNPLUG_RETRY_SECONDS, max(deadline - loop.time(), 0.0))
            if (
                await machine.wait_for_event(lambda name, found: _is_removal(name, found, disk), wait_seconds)
                is not None
            ):
                return
        raise CloudUnavailable(
            f"the guest of {vm} did not let go of {disk} within {UNPLUG_SECONDS:g} s; try again, or fence the VM"
        )

    async def _resize_plugged(self, vm: VmCid, disk: DiskCid, size_mib: int) -> None:
        try:
            async with qmp.connect(self._control(vm)) as machine:
                await machine.execute("block_resize", node_name=_node(disk), size=size_mib * MIB)
        except qmp.QmpRefused as error:
            raise CloudRefused(f"growing {disk}, attached to {vm}: {error}") from None
        except qmp.QmpUnanswered as error:
            raise CloudUnavailable(f"growing {disk}, attached to {vm}: {error}; look again, then repeat") from None

    def _control(self, vm: VmCid) -> Path:
        return self._store.vm_directory(vm) / CONTROL_SOCKET


async def _add_device(machine: qmp.Qmp, disk: DiskCid, vm: VmCid, devices: dict[str, str]) -> None:
    """QEMU asks for the image's write lock only here; refused, the image is closed again, or this VM would seem to
    hold it."""
    try:
        await machine.execute(
            "device_add",
            driver="virtio-blk-pci",
            id=_device(disk),
            drive=_node(disk),
            bus=_free_port(vm, devices),
            serial=disk,
        )
    except (qmp.QmpRefused, CloudRefused):
        await machine.execute("blockdev-del", node_name=_node(disk))
        raise


def _held(disk: DiskCid, holders: frozenset[VmCid]) -> DiskHeld:
    return DiskHeld(f"{disk} is held by {', '.join(sorted(holders))}; fence that VM or detach the disk first", holders)


def _node(disk: DiskCid) -> str:
    return f"node-{disk}"


def _device(disk: DiskCid) -> str:
    return f"disk-{disk}"


def _is_removal(name: str, found: dict[str, Any], disk: DiskCid) -> bool:
    return name == "DEVICE_DELETED" and found.get("device") == _device(disk)


async def _has_node(machine: qmp.Qmp, disk: DiskCid) -> bool:
    nodes = await machine.execute("query-named-block-nodes", flat=True)
    return any(node.get("node-name") == _node(disk) for node in nodes)


async def _disk_devices(machine: qmp.Qmp) -> dict[str, str]:
    """Device id -> port, of what is plugged into the hot-plug ports."""
    found = {}
    for bus in await machine.execute("query-pci"):
        for bridge in bus.get("devices", ()):
            for device in bridge.get("pci_bridge", {}).get("devices", ()):
                if device.get("qdev_id"):
                    found[str(device["qdev_id"])] = str(bridge.get("qdev_id", ""))
    return found


def _free_port(vm: VmCid, devices: dict[str, str]) -> str:
    taken = set(devices.values())
    for number in range(1, DISK_PORTS + 1):
        if port_name(number) not in taken:
            return port_name(number)
    raise CloudRefused(f"{vm} has all its {DISK_PORTS} disk ports in use")
