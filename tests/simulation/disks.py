"""Disks of a simulated VM, behind the port that the agent's commands and heartbeats use (`agent/disk_keeper.py`).

Laws, those of the real keeper: a disk that the specification names, or that was mounted by command, is mounted
whenever its device is there, unless it was unmounted by command since. What was agreed survives a reboot; mounts do
not. Every mount is told to the machine, which is what the checkers look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Generic, Protocol, TypeVar

from agent.disk_keeper import UnknownDisk
from agent.disk_tools import DiskBusy, DiskMissing
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec, InstanceSpec

T = TypeVar("T")

LOOK_SECONDS = 1.0
MOUNT_SECONDS = (0.02, 0.8)
WAIT_FOR_DEVICE_SECONDS = 10.0


class Hardware(Protocol):
    """The machine, as its guest sees it."""

    def devices(self) -> frozenset[DiskCid]: ...

    def mounted(self) -> frozenset[DiskCid]: ...

    def mount(self, disk: DiskCid) -> None: ...

    def unmount(self, disk: DiskCid) -> None: ...


@dataclass(slots=True)
class Agreed:
    """What the keeper remembers on the system disk."""

    by_command: dict[DiskCid, DiskSpec] = field(default_factory=dict)
    released: dict[DiskCid, int] = field(default_factory=dict)  # cid → revision at which it was unmounted


class SimulatedDisks:
    def __init__(
        self,
        hardware: Hardware,
        agreed: Agreed,
        random: Random,
        on_mounts: Callable[[Mapping[DiskName, str]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._hardware = hardware
        self._agreed = agreed
        self._random = random
        self._on_mounts = on_mounts
        self._on_change = on_change
        self._revision = 0
        self._kept: dict[DiskCid, DiskSpec] = {}
        self._told: dict[DiskName, str] | None = None
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def set_wanted(self, spec: InstanceSpec | None, instance: InstanceId | None) -> None:
        self._revision = spec.revision if spec is not None else 0
        named = {disk.cid: disk for disk in spec.disks} if spec is not None else {}
        self._kept = {**self._agreed.by_command, **named}
        self._wake.set()

    def reports(self) -> tuple[DiskReport, ...]:
        return tuple(
            DiskReport(name=disk.name, cid=cid, state=self._state(cid)) for cid, disk in sorted(self._kept.items())
        )

    def mounted(self) -> dict[DiskName, str]:
        mounted = self._hardware.mounted()
        return {disk.name: f"/var/lib/resurgam/disks/{disk.name}" for cid, disk in self._kept.items() if cid in mounted}

    def first_mounted(self) -> str | None:
        return next(iter(sorted(self.mounted().values())), None)

    def mounted_cids(self) -> list[DiskCid]:
        return sorted(self._hardware.mounted())

    def known(self, cid: DiskCid) -> DiskSpec | None:
        return self._kept.get(cid)

    async def add(self, disk: DiskSpec) -> None:
        self._agreed.by_command[disk.cid] = disk
        self._agreed.released.setdefault(disk.cid, self._revision)
        self._kept[disk.cid] = disk

    async def mount(self, disk: DiskSpec) -> str:
        self._agreed.by_command[disk.cid] = disk
        self._agreed.released.pop(disk.cid, None)
        self._kept[disk.cid] = disk
        async with self._lock:
            async with asyncio.timeout(WAIT_FOR_DEVICE_SECONDS + 1.0):
                for _ in range(int(WAIT_FOR_DEVICE_SECONDS / 0.1)):
                    if disk.cid in self._hardware.devices():
                        break
                    await asyncio.sleep(0.1)
                else:
                    raise DiskMissing(f"no device for {disk.cid}")
            await self._mount(disk.cid)
        self._tell()
        return self.mounted()[disk.name]

    async def unmount(self, cid: DiskCid) -> bool:
        if cid not in self._kept:
            raise UnknownDisk(f"no disk {cid} is known here")
        self._agreed.released[cid] = self._revision
        async with self._lock:
            was_mounted = cid in self._hardware.mounted()
            await asyncio.sleep(self._random.uniform(*MOUNT_SECONDS))
            self._hardware.unmount(cid)
        self._tell()
        return was_mounted

    async def remove(self, cid: DiskCid) -> None:
        if cid in self._hardware.mounted():
            raise DiskBusy(f"{cid} is mounted; unmount it first")
        self._agreed.by_command.pop(cid, None)
        self._agreed.released.pop(cid, None)
        self._kept.pop(cid, None)
        self._on_change()

    async def run(self) -> None:
        while True:
            self._wake.clear()
            for cid in list(self._kept):
                wanted = self._agreed.released.get(cid, -1) < self._revision
                if wanted and cid in self._hardware.devices() and cid not in self._hardware.mounted():
                    async with self._lock:
                        await self._mount(cid)
            self._tell()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _mount(self, cid: DiskCid) -> None:
        await asyncio.sleep(self._random.uniform(*MOUNT_SECONDS))
        if cid not in self._hardware.devices():
            raise DiskMissing(f"no device for {cid}")
        self._hardware.mount(cid)

    def _state(self, cid: DiskCid) -> DiskState:
        if cid not in self._hardware.devices():
            return DiskState.MISSING
        return DiskState.MOUNTED if cid in self._hardware.mounted() else DiskState.ATTACHED

    def _tell(self) -> None:
        mounted = self.mounted()
        if mounted != self._told:
            self._told = mounted
            self._on_mounts(mounted)
            self._on_change()


class SimulatedDocument(Generic[T]):
    """A document of the agent's store: survives the process and a reboot, not the VM."""

    def __init__(self) -> None:
        self._value: T | None = None

    def load(self) -> T | None:
        return self._value

    def save(self, value: T) -> None:
        self._value = value
