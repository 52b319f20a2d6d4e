"""What a block device says of itself when asked by every means there is: libblkid, the kernel, its own bytes.

Laws: nothing here writes. What cannot be read is None in the probe, never "blank". Its own bytes are read only where
libblkid found nothing at all: nobody asks how blank a disk is that carries a file system.

Does not know: what follows from it (agent/core/disk_safety.py).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

from agent import libblkid
from agent.core import mount_table
from agent.core.disk_safety import MIB, Blkid, Probe
from agent.lone_thread import LoneThread, StillHanging

PROBE_SECONDS = 30.0
SYS_DEV_BLOCK = Path("/sys/dev/block")
SYS_FS_EXT4 = Path("/sys/fs/ext4")


class NotADevice(Exception):
    """The path is not a block device of this VM. The text names it."""


def device_number(device: str) -> str:
    """`major:minor`; NotADevice."""
    try:
        status = os.stat(device)
    except OSError as error:
        raise NotADevice(f"{device}: {error.strerror}") from None
    if not stat.S_ISBLK(status.st_mode):
        raise NotADevice(f"{device} is not a block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def device_is_there(number: str) -> bool:
    return (SYS_DEV_BLOCK / number).exists()


def recorded_errors(number: str) -> int:
    """That a mounted ext4 has recorded on the disk; 0 where the file system keeps no count."""
    try:
        name = (SYS_DEV_BLOCK / number).resolve().name
        return int((SYS_FS_EXT4 / name / "errors_count").read_text())
    except (OSError, ValueError):
        return 0


def mounts() -> tuple[mount_table.Mounted, ...]:
    """This VM's mounts as the agent sees them; the kernel answers from memory."""
    return mount_table.parse(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


async def probe(device: str, thread: LoneThread) -> Probe:
    """Everything that decides over `device`; NotADevice. `thread` reads it, which may hang."""
    number = device_number(device)
    busy: tuple[str, ...] = ()
    try:
        found = await thread.call(lambda: _read(device), PROBE_SECONDS)
    except (TimeoutError, StillHanging):
        found = Probe(Blkid.ERROR, errors=(f"reading {device} did not end within {PROBE_SECONDS:g} s",))
    except libblkid.LibraryFailed as error:
        found = Probe(Blkid.ERROR, errors=(f"reading {device}: {error}",))
    except OSError as error:
        found = Probe(Blkid.ERROR, errors=(f"reading {device}: {error.strerror}",))
        if error.errno == errno.EBUSY:
            busy = ("something that has opened it for itself alone",)
    system = SYS_DEV_BLOCK / number
    targets = mount_table.targets_of(mounts(), number)
    return replace(
        found,
        partitions=_partitions(system),
        holders=_names(system / "holders") or (() if targets else busy),
        mounted_at=targets,
        read_only=_flag(system / "ro"),
    )


async def in_use(device: str, thread: LoneThread) -> bool:
    """Whether somebody holds it for himself alone: a mount in any namespace, LVM, RAID, swap. TimeoutError, OSError."""

    def look() -> bool:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise
        return False

    return await thread.call(look, PROBE_SECONDS)


def _read(device: str) -> Probe:
    """O_EXCL: fails with EBUSY when the device is in use by the kernel, whoever mounted it."""
    descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        verdict, filesystem, partition_table = libblkid.identify(descriptor)
        found = Probe(
            blkid=verdict,
            blkid_type=filesystem,
            blkid_partition_table=partition_table,
            signatures=libblkid.signatures(descriptor),
            size_bytes=size,
        )
        if verdict is not Blkid.NOTHING:
            return found
        first = _read_at(descriptor, 0, min(MIB, size))
        last = _read_at(descriptor, max(0, size - MIB), min(MIB, size))
        return replace(found, first_mib_zero=_is_zero(first), last_mib_zero=_is_zero(last))
    finally:
        os.close(descriptor)


def _is_zero(content: bytes) -> bool:
    """Counted by C: looked at one by one, a million bytes take a third of a second where a VM is emulated."""
    return content.count(0) == len(content)


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise OSError(errno.EIO, "device ended early")
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def _partitions(system: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in system.iterdir() if (entry / "partition").exists()))
    except OSError:
        return ()


def _names(directory: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in directory.iterdir()))
    except OSError:
        return ()


def _flag(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:
        return False
