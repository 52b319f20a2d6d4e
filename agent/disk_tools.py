"""Persistent disks, one step each: find the device, format it when blank, check, mount, grow, mark, unmount.

Laws: every step may be repeated and is read back. A device is formatted only when `disk_safety` says so. The file
system lies on the whole device, without partitions. A disk marked as another instance's is not left mounted.

Does not know: which disks there should be, and when to try again (agent/disk_keeper.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import structlog

from agent import disk_probe, libmount, subprocesses
from agent.core import disk_safety, mount_table
from agent.core.disk_safety import CheckVerdict, Marker, Verdict
from agent.lone_thread import LoneThread, StillHanging
from agent.store import sync_directory
from protocol import codec
from protocol.envelope import NO_DEVICE
from protocol.ids import DiskCid, InstanceId
from protocol.spec import DiskSpec

log = structlog.get_logger(__name__)

FORMAT_SECONDS = 600.0
CHECK_SECONDS = 1800.0
MOUNT_SECONDS = 60.0
UNMOUNT_SECONDS = 60.0
LOOK_INTERVAL_SECONDS = 0.1
MAKE = {"ext4": ("mkfs.ext4", "-q", "-m", "1", "-I", "256"), "xfs": ("mkfs.xfs", "-q")}
"""Inodes of 256 bytes also on a small ext4: in 128 there are no nanoseconds, and no time after 2038."""
MARKER = ".resurgam/disk.json"
BY_ID = Path("/dev/disk/by-id")
GROW_FROM_BYTES = 16 * 1024 * 1024
"""A file system this much smaller than its device is grown; less is rounding."""
EXT4_SUPERBLOCK_OFFSET = 1024
EXT4_SUPERBLOCK_BYTES = 1024
EXT4_MAGIC = b"\x53\xef"
EXT4_INCOMPAT_64BIT = 0x80
"""Offsets and flags as in the kernel's Documentation/filesystems/ext4/super.rst."""


class DiskMissing(Exception):
    """No device for the disk appeared in time. The cloud's side; look again later."""


class DiskRefused(Exception):
    """The disk was looked at and will not be used as it is; the text says why, and a person is needed."""


class DiskBusy(Exception):
    """It cannot be unmounted now; the text names who holds it."""


class DiskTools:
    def __init__(self, root: Path, by_id: Path = BY_ID) -> None:
        """`root`: where disks are mounted, each under its name."""
        self._root = root
        self._by_id = by_id

    def directory(self, disk: DiskSpec) -> str:
        return str(self._root / disk.name)

    async def mount(self, disk: DiskSpec, instance: InstanceId, thread: LoneThread, wait_seconds: float) -> str:
        """The directory where it is mounted now. DiskMissing, DiskRefused, MountFailed,
        CommandFailed, OSError, TimeoutError."""
        directory = self.directory(disk)
        device = await self.find_device(disk, wait_seconds)
        number = disk_probe.device_number(device)
        already = mount_table.mounted_at(disk_probe.mounts(), directory)
        if already is not None:
            if already.device != number:
                raise DiskRefused(f"{directory} holds device {already.device} already, not {device} ({number})")
            await self._accept_marker(disk, instance, thread)
            await self._grow_mounted(disk, device, thread)
            return directory
        await self.prepare(disk, device, thread)
        os.makedirs(directory, exist_ok=True)
        options = ",".join(_options(disk))
        await thread.call(lambda: libmount.mount(device, directory, disk.filesystem, options), MOUNT_SECONDS)
        back = mount_table.mounted_at(disk_probe.mounts(), directory)
        if back is None or back.device != number:
            raise DiskRefused(f"mount succeeded, but {directory} does not show {device}")
        try:
            await self._accept_marker(disk, instance, thread)
        except DiskRefused:
            await subprocesses.run(["umount", directory], UNMOUNT_SECONDS)
            raise
        if disk.filesystem == "xfs":
            await subprocesses.run(["xfs_growfs", directory], MOUNT_SECONDS)
        log.info("disk.mounted", disk=disk.name, cid=disk.cid, device=device, directory=directory)
        return directory

    async def unmount(self, disk: DiskSpec, thread: LoneThread) -> bool:
        """False when it was not mounted. Returns once nobody at all holds the device; DiskBusy, CommandFailed."""
        directory = self.directory(disk)
        mounted = mount_table.mounted_at(disk_probe.mounts(), directory)
        if mounted is None:
            return False
        number = mounted.device
        finished = await subprocesses.run(["umount", directory], UNMOUNT_SECONDS, ok=None)
        if finished.status != 0:
            raise DiskBusy(f"{disk.name} is in use by {await self._holders(number)}: {finished.said}")
        if mount_table.mounted_at(disk_probe.mounts(), directory) is not None:
            raise DiskBusy(f"{directory} is still mounted: it was mounted more than once")
        if disk_probe.device_is_there(number) and await disk_probe.in_use(_node(number), thread):
            raise DiskBusy(f"{disk.name} is unmounted here, but still in use by {await self._holders(number)}")
        log.info("disk.unmounted", disk=disk.name, cid=disk.cid)
        return True

    def mounted_anywhere(self, cid: DiskCid) -> tuple[str, ...]:
        """Where a disk with this serial number is mounted, by whomever."""
        table = disk_probe.mounts()
        return tuple(
            target
            for device in sorted(self._by_serial(cid))
            for target in mount_table.targets_of(table, disk_probe.device_number(device))
        )

    async def find_device(self, disk: DiskSpec, wait_seconds: float) -> str:
        """The device by the cloud's hint and by its serial number. DiskMissing after the time; DiskRefused when the
        two disagree."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            devices = _by_hint(disk.device) | self._by_serial(disk.cid)
            if len(devices) > 1:
                raise DiskRefused(f"{disk.cid}: several devices claim to be it: {', '.join(sorted(devices))}")
            if devices:
                return devices.pop()
            if loop.time() >= deadline:
                hint = disk.device or "no hint"
                raise DiskMissing(f"{NO_DEVICE} {disk.cid} ({hint}) within {wait_seconds:g} s; is it attached?")
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)

    def _by_serial(self, cid: DiskCid) -> set[str]:
        """Names end with the serial number: virtio-<cid>, scsi-0QEMU_QEMU_HARDDISK_<cid>."""
        ends = re.compile(rf"(^|[-_]){re.escape(cid)}$")
        try:
            return {os.path.realpath(entry) for entry in self._by_id.iterdir() if ends.search(entry.name)}
        except OSError:
            return set()

    async def prepare(self, disk: DiskSpec, device: str, thread: LoneThread) -> None:
        """Formatted if blank, checked, and as large as its device. DiskRefused."""
        decision = disk_safety.decide(await disk_probe.probe(device, thread), disk.filesystem, disk.size_mib)
        log.info(
            "disk.probed",
            disk=disk.name,
            cid=disk.cid,
            device=device,
            verdict=decision.verdict.value,
            reason=decision.reason.value,
            detail=decision.detail,
        )
        match decision.verdict:
            case Verdict.REFUSE:
                raise DiskRefused(f"{device} {decision.reason.value}: {decision.detail}")
            case Verdict.FORMAT:
                await self._format(disk, device)
            case Verdict.MOUNT if disk.filesystem == "ext4":
                await self._check(device)
                await self._grow_unmounted(device, thread)
            case Verdict.MOUNT:
                pass  # xfs replays its log when it is mounted, and refuses by itself what is corrupt

    async def _format(self, disk: DiskSpec, device: str) -> None:
        """Without any force option: mkfs's own look at the device is one more guard. Half a file system is neither
        blank nor sound, so an agent that ends leaves mkfs running; the next finds the device in use until it is done.
        """
        argv = [*MAKE[disk.filesystem], device]
        await subprocesses.run(argv, FORMAT_SECONDS, outlives=True)
        log.info("disk.formatted", disk=disk.name, cid=disk.cid, device=device, filesystem=disk.filesystem)

    async def _check(self, device: str) -> None:
        finished = await subprocesses.run(["e2fsck", "-p", device], CHECK_SECONDS, ok=None)
        match disk_safety.decide_check(finished.status):
            case CheckVerdict.NEEDS_PERSON:
                raise DiskRefused(
                    f"e2fsck -p {device} ended with {finished.status}: {finished.said}; repair it by hand"
                )
            case CheckVerdict.REPAIRED:
                log.warning("disk.repaired", device=device, said=finished.said)
            case CheckVerdict.CLEAN:
                pass

    async def _grow_unmounted(self, device: str, thread: LoneThread) -> None:
        if await _ext4_is_smaller(device, thread):
            forced = await subprocesses.run(["e2fsck", "-f", "-p", device], CHECK_SECONDS, ok=None)
            if disk_safety.decide_check(forced.status) is CheckVerdict.NEEDS_PERSON:
                raise DiskRefused(f"e2fsck -f -p {device} ended with {forced.status}: {forced.said}; repair it by hand")
            await subprocesses.run(["resize2fs", device], FORMAT_SECONDS, outlives=True)
            log.info("disk.grown", device=device)

    async def _grow_mounted(self, disk: DiskSpec, device: str, thread: LoneThread) -> None:
        if disk.filesystem == "xfs":
            await subprocesses.run(["xfs_growfs", self.directory(disk)], MOUNT_SECONDS)
        elif await _ext4_is_smaller(device, thread):
            await subprocesses.run(["resize2fs", device], FORMAT_SECONDS, outlives=True)
            log.info("disk.grown", device=device, online=True)

    async def _accept_marker(self, disk: DiskSpec, instance: InstanceId, thread: LoneThread) -> None:
        path = Path(self.directory(disk), MARKER)
        marker = await read_marker(thread, path)
        refusal = disk_safety.decide_marker(marker, instance, disk)
        if refusal is not None:
            raise DiskRefused(f"{disk.cid} {refusal.reason.value}: {refusal.detail}")
        wanted = Marker(instance=instance, disk=disk.name, cid=disk.cid)
        ours = marker is not None and not marker.copy_of and (marker.instance, marker.disk) == (instance, disk.name)
        if not ours and "ro" not in disk.mount_options:
            await thread.call(lambda: write_marker(path, wanted), MOUNT_SECONDS)

    async def _holders(self, number: str) -> str:
        names = await asyncio.to_thread(_who_holds, number)
        return ", ".join(names) or "somebody who could not be found"


def _by_hint(path: str) -> set[str]:
    """The device behind the cloud's path, once it is there."""
    return {os.path.realpath(path)} if path and os.path.exists(path) else set()


async def read_marker(thread: LoneThread, path: Path) -> Marker | None:
    def read() -> Marker | None:
        try:
            return codec.from_json(Marker, path.read_bytes()[:4096])
        except FileNotFoundError:
            return None
        except codec.Invalid as error:
            raise DiskRefused(f"{path} cannot be read: {error}; correct it by hand") from None

    try:
        return await thread.call(read, MOUNT_SECONDS)
    except StillHanging as error:
        raise TimeoutError(str(error)) from None


def write_marker(path: Path, marker: Marker) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(codec.to_plain(marker), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)
    sync_directory(path.parent.parent)


async def _ext4_is_smaller(device: str, thread: LoneThread) -> bool:
    """Whether the file system leaves a good part of its device unused. Read from the superblock itself: starting a
    program for it is felt where a VM is emulated."""

    def superblock() -> bytes:
        with open(device, "rb", buffering=0) as file:
            return os.pread(file.fileno(), EXT4_SUPERBLOCK_BYTES, EXT4_SUPERBLOCK_OFFSET)

    header = await thread.call(superblock, MOUNT_SECONDS)
    if len(header) < EXT4_SUPERBLOCK_BYTES or header[0x38:0x3A] != EXT4_MAGIC:
        raise DiskRefused(f"{device} has no ext4 superblock where one was found a moment ago; look at it by hand")
    blocks = int.from_bytes(header[0x4:0x8], "little")
    if int.from_bytes(header[0x60:0x64], "little") & EXT4_INCOMPAT_64BIT:
        blocks |= int.from_bytes(header[0x150:0x154], "little") << 32
    block_bytes = 1024 << int.from_bytes(header[0x18:0x1C], "little")
    sectors = (disk_probe.SYS_DEV_BLOCK / disk_probe.device_number(device) / "size").read_text()
    return int(sectors) * 512 - blocks * block_bytes >= GROW_FROM_BYTES


def _options(disk: DiskSpec) -> tuple[str, ...]:
    """An ext4 that sees an error turns read-only, which is then reported, instead of going on."""
    return (*disk.mount_options, *(("errors=remount-ro",) if disk.filesystem == "ext4" else ())) or ("defaults",)


def _node(number: str) -> str:
    """The device's node by its number: its other names may have gone with the cloud's hint. OSError."""
    uevent = (disk_probe.SYS_DEV_BLOCK / number / "uevent").read_text()
    values = dict(line.partition("=")[::2] for line in uevent.splitlines())
    return f"/dev/{values['DEVNAME']}"


def _who_holds(number: str) -> list[str]:
    """Processes that have the device mounted in a namespace of their own, or a file open on it. Best effort: what
    ends meanwhile, or may not be read, is passed over."""
    found: dict[str, None] = {}
    major, _, minor = number.partition(":")
    wanted = os.makedev(int(major), int(minor))
    own = os.readlink("/proc/self/ns/mnt")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            name = f"{(process / 'comm').read_text().strip()} (pid {process.name})"
            elsewhere = os.readlink(process / "ns/mnt") != own
            table = mount_table.parse((process / "mountinfo").read_text(errors="replace")) if elsewhere else ()
            if mount_table.targets_of(table, number) or _has_open(process, wanted):
                found[name] = None
        except OSError:
            continue
        if len(found) >= 10:
            break
    return list(found)


def _has_open(process: Path, wanted: int) -> bool:
    places = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    for place in places:
        try:
            if os.stat(place).st_dev == wanted:
                return True
        except OSError:
            continue
    return False
