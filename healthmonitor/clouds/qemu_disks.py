"""How the QEMU provider plugs disks: raw files, into and out of running VMs.

Laws:
- Who holds a disk is read from the kernel: the processes of VMs that have the file open, whether or not their QEMU
  answers. QEMU's lock on the image is the backstop. Data disks honour the guest's flushes.
- A snapshot never keeps a disk in its VM: one that is being taken of a disk that is unplugged is ended first.

Does not know: when a disk may be plugged in (local_disks.py), how VMs are made or fenced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from healthmonitor.clouds import qemu_process, qmp
from healthmonitor.clouds.cloud import CloudRefused, CloudUnavailable
from healthmonitor.clouds.local_disks import FOREIGN, LOCK_SECONDS, held
from healthmonitor.clouds.local_store import MIB, LocalStore, VmRecord
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET, DISK_PORTS, MONITOR_SOCKET, port_name
from protocol.ids import DiskCid, VmCid

UNPLUG_SECONDS = 15.0
"""The guest must let go of the device; one that runs does so in a tenth of a second."""
UNPLUG_RETRY_SECONDS = 3.0
"""A guest that is still booting loses the request, so it is made again."""
ASK_SECONDS = 2.0
CANCEL_SECONDS = 10.0
CANCEL_POLL_SECONDS = 0.05
SNAPSHOT_JOB = "snapshot-"


class QemuPlugs:
    def __init__(self, store: LocalStore) -> None:
        self._store = store

    def device_path(self, disk: DiskCid) -> str:
        return f"/dev/disk/by-id/virtio-{disk}"

    async def is_on(self, vm: VmCid) -> bool:
        return qemu_process.is_held(self._store.vm_directory(vm) / "running.lock")

    async def let_go(self, disk: DiskCid) -> None:
        """Nothing of a file but what has it open, and nobody has."""

    async def grow(self, disk: DiskCid, from_mib: int, to_mib: int) -> None:
        if to_mib == from_mib:
            return
        holders = await self.holders(disk)
        if FOREIGN in holders:
            raise held(disk, holders)
        if holders:
            (vm,) = holders
            async with self._store.locked(vm, LOCK_SECONDS):
                await self._resize_plugged(vm, disk, to_mib)
        else:
            with self._store.disk_file(disk).open("r+b") as opened:
                opened.truncate(to_mib * MIB)

    async def holders(self, disk: DiskCid) -> frozenset[VmCid]:
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

    async def plug(self, record: VmRecord, disk: DiskCid) -> None:
        try:
            async with qmp.connect(self._control(record.cid)) as machine:
                devices = await _disk_devices(machine)
                if not await has_node(machine, disk):
                    await machine.execute(
                        "blockdev-add",
                        driver="raw",
                        node_name=disk_node(disk),
                        discard="unmap",
                        file={"driver": "file", "filename": str(self._store.disk_file(disk)), "locking": "on"},
                    )
                if _device(disk) not in devices:
                    await _add_device(machine, disk, record.cid, devices)
        except qmp.QmpRefused as error:
            if "lock" in error.description:
                raise held(disk, frozenset({FOREIGN})) from None
            raise CloudUnavailable(f"attaching {disk} to {record.cid}: {error}") from None
        except qmp.QmpUnanswered as error:
            raise CloudUnavailable(f"attaching {disk} to {record.cid}: {error}; look again, then repeat") from None

    async def unplug(self, record: VmRecord, disk: DiskCid) -> None:
        vm = record.cid
        if vm not in await self.holders(disk):
            return
        try:
            async with qmp.connect(self._control(vm)) as machine:
                await end_snapshots(machine, lambda snapshot, source: source == disk)
                if _device(disk) in await _disk_devices(machine):
                    await self._remove_device(machine, vm, disk)
                if await has_node(machine, disk):
                    await machine.execute("blockdev-del", node_name=disk_node(disk))
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
                await machine.execute("block_resize", node_name=disk_node(disk), size=size_mib * MIB)
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
            drive=disk_node(disk),
            bus=_free_port(vm, devices),
            serial=disk,
        )
    except (qmp.QmpRefused, CloudRefused):
        await machine.execute("blockdev-del", node_name=disk_node(disk))
        raise


def disk_node(disk: DiskCid) -> str:
    return f"node-{disk}"


def snapshot_job(snapshot: DiskCid, source: DiskCid) -> str:
    """A disk's cid has no dot in it, so both are found again in the job's name."""
    return f"{SNAPSHOT_JOB}{snapshot}.{source}"


async def end_snapshots(machine: qmp.Qmp, which: Callable[[DiskCid, DiskCid], bool]) -> None:
    """Ends the jobs of which `which(snapshot, source)` holds, and has QEMU close the files that they wrote."""
    for job in await machine.execute("query-jobs"):
        name = str(job["id"])
        snapshot, _, source = name.removeprefix(SNAPSHOT_JOB).partition(".")
        if not name.startswith(SNAPSHOT_JOB) or not which(DiskCid(snapshot), DiskCid(source)):
            continue
        await _end_job(machine, name)
        if await has_node(machine, DiskCid(snapshot)):
            await machine.execute("blockdev-del", node_name=disk_node(DiskCid(snapshot)))


async def _end_job(machine: qmp.Qmp, name: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CANCEL_SECONDS
    cancelled = False
    while True:
        status = {job["id"]: job["status"] for job in await machine.execute("query-jobs")}.get(name)
        if status is None:
            return
        if status == "concluded":
            await machine.execute("job-dismiss", id=name)
            return
        if not cancelled:
            await machine.execute("job-cancel", id=name)
            cancelled = True
        if loop.time() > deadline:
            raise CloudUnavailable(f"job {name} is {status} {CANCEL_SECONDS:g} s after it was cancelled; tried again")
        await asyncio.sleep(CANCEL_POLL_SECONDS)


def _device(disk: DiskCid) -> str:
    return f"disk-{disk}"


def _is_removal(name: str, found: dict[str, Any], disk: DiskCid) -> bool:
    return name == "DEVICE_DELETED" and found.get("device") == _device(disk)


async def has_node(machine: qmp.Qmp, disk: DiskCid) -> bool:
    nodes = await machine.execute("query-named-block-nodes", flat=True)
    return any(node.get("node-name") == disk_node(disk) for node in nodes)


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
