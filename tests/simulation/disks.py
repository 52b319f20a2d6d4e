"""Disks of a simulated VM, behind the port that the agent's commands and heartbeats use (`agent/disk_keeper.py`).

Laws, those of the real keeper: a disk that the specification names, or that was mounted by command, is mounted
whenever its device is there, unless it was unmounted by command since. What was agreed survives a reboot; mounts do
not. A device is formatted and mounted only as `agent/core/disk_safety.py` decides. Every mount is told to the machine,
which is what the checkers look at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from agent.core import disk_safety
from agent.core.disk_safety import Marker, Verdict
from agent.disk_keeper import UnknownDisk
from agent.disk_tools import DiskBusy, DiskMissing, DiskRefused
from protocol.envelope import NO_DEVICE
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec, InstanceSpec
from tests.simulation.platters import Content

T = TypeVar("T")

LOOK_SECONDS = 5.0
MOUNT_SECONDS = (0.02, 0.8)
WAIT_FOR_DEVICE_SECONDS = 10.0
COPY_SECONDS = (0.5, 20.0)


class Hardware(Protocol):
    """The machine, as its guest sees it."""

    def devices(self) -> frozenset[DiskCid]: ...

    def mounted(self) -> frozenset[DiskCid]: ...

    def content(self, disk: DiskCid) -> Content: ...

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
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._hardware = hardware
        self._look_seconds = look_seconds
        self._agreed = agreed
        self._random = random
        self._on_mounts = on_mounts
        self._on_change = on_change
        self._revision = 0
        self._instance: InstanceId | None = None
        self._refused: dict[DiskCid, str] = {}
        self._kept: dict[DiskCid, DiskSpec] = {}
        self._told: dict[DiskName, str] | None = None
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    def set_wanted(self, spec: InstanceSpec | None, instance: InstanceId | None) -> None:
        self._revision = spec.revision if spec is not None else 0
        self._instance = spec.instance if spec is not None else instance
        named = {disk.cid: disk for disk in spec.disks} if spec is not None else {}
        self._kept = {**self._agreed.by_command, **named}
        self._wake.set()

    def reports(self) -> tuple[DiskReport, ...]:
        return tuple(
            DiskReport(name=disk.name, cid=cid, state=self._state(cid)) for cid, disk in sorted(self._kept.items())
        )

    def mounted(self) -> dict[DiskName, str]:
        mounted = self._hardware.mounted()
        return {disk.name: _directory(disk) for cid, disk in self._kept.items() if cid in mounted}

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
                    raise DiskMissing(f"{NO_DEVICE} {disk.cid}")
            await self._mount(disk.cid)
        self._tell()
        return _directory(disk)  # as the real keeper: another command may have unmounted it since

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
                    try:
                        async with self._lock:
                            await self._mount(cid)
                    except (DiskMissing, DiskRefused):
                        self._on_change()  # it stands in the report, and is tried again
            self._tell()
            try:
                async with asyncio.timeout(self._look_seconds):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _mount(self, cid: DiskCid) -> None:
        await asyncio.sleep(self._random.uniform(*MOUNT_SECONDS))
        if cid not in self._hardware.devices():
            raise DiskMissing(f"{NO_DEVICE} {cid}")
        if cid in self._hardware.mounted():
            return
        if cid not in self._kept:
            raise DiskMissing(f"{cid} was taken back meanwhile")
        try:
            self._prepare(self._kept[cid], self._hardware.content(cid))
        except DiskRefused as error:
            self._refused[cid] = str(error)
            raise
        self._refused.pop(cid, None)
        self._hardware.mount(cid)

    def _prepare(self, disk: DiskSpec, content: Content) -> None:
        """As `agent/disk_tools.py`, without a device."""
        decision = disk_safety.decide(content.probe(), disk.filesystem, disk.size_mib)
        if decision.verdict is Verdict.REFUSE:
            raise DiskRefused(f"{disk.cid}: {decision.reason.value}: {decision.detail}")
        if decision.verdict is Verdict.FORMAT:
            content.format(disk.filesystem)
        if self._instance is None:
            raise DiskRefused("this VM fills no instance yet; it cannot own a disk")
        refusal = disk_safety.decide_marker(content.marker, self._instance, disk)
        if refusal is not None:
            raise DiskRefused(f"{disk.cid}: {refusal.reason.value}: {refusal.detail}")
        content.marker = Marker(self._instance, disk.name, disk.cid)

    def _state(self, cid: DiskCid) -> DiskState:
        if cid not in self._hardware.devices():
            return DiskState.MISSING
        if cid in self._refused:
            return DiskState.FAILED
        return DiskState.MOUNTED if cid in self._hardware.mounted() else DiskState.ATTACHED

    def _tell(self) -> None:
        mounted = self.mounted()
        if mounted != self._told:
            self._told = mounted
            self._on_mounts(mounted)
            self._on_change()


class SimulatedCopies:
    """Behind the port of the agent's commands (`agent/copy_methods.py`); the law of the real one: what is copied from
    is let go first, and stays so."""

    def __init__(self, disks: SimulatedDisks, hardware: Hardware, random: Random) -> None:
        self._disks = disks
        self._hardware = hardware
        self._random = random

    def progress(self) -> dict[str, Any] | None:
        return {"phase": "copying", "bytes_done": 1, "bytes_total": 2, "bytes_per_second": 1}

    async def use(self, cid: DiskCid) -> dict[str, Any]:
        return {"used_bytes": 1024} if cid in self._hardware.mounted() else {}

    async def copy(self, source: DiskSpec, target: DiskSpec, instance: InstanceId) -> dict[str, Any]:
        with contextlib.suppress(UnknownDisk):
            await self._disks.unmount(source.cid)
        seconds = self._random.uniform(*COPY_SECONDS)
        await asyncio.sleep(seconds)
        for disk in (source.cid, target.cid):
            if disk not in self._hardware.devices():
                raise DiskMissing(f"{NO_DEVICE} {disk}")
        # Begun again, it is formatted again: nothing that anybody uses is on it yet.
        copied = self._hardware.content(target.cid)
        copied.filesystem, copied.formats = target.filesystem, 1
        copied.marker = Marker(instance, source.name, target.cid, copy_of=source.cid, finished=True)
        return {"used_bytes": 1024, "inodes": 1, "seconds": seconds}

    async def release(self, *cids: DiskCid) -> None:
        """Nothing stays mounted here."""


class SimulatedDocument(Generic[T]):
    """A document of the agent's store: survives the process and a reboot, not the VM."""

    def __init__(self) -> None:
        self._value: T | None = None

    def load(self) -> T | None:
        return self._value

    def save(self, value: T) -> None:
        self._value = value


def _directory(disk: DiskSpec) -> str:
    return f"/var/lib/resurgam/disks/{disk.name}"
