"""What a block device says of itself when asked by every means there is: blkid, wipefs, the kernel, its own bytes.

Law: nothing here writes. What cannot be read is None in the probe, never "blank".

Does not know: what follows from it (agent/core/disk_safety.py).
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from agent import subprocesses
from agent.core import mount_table
from agent.core.disk_safety import MIB, Blkid, Probe
from agent.lone_thread import LoneThread, StillHanging

PROBE_SECONDS = 30.0
SYS_DEV_BLOCK = Path("/sys/dev/block")


class NotADevice(Exception):
    """The path is not a block device of this VM. The text names it."""


@dataclass(frozen=True, slots=True)
class _Content:
    first_mib_zero: bool
    last_mib_zero: bool
    size_bytes: int


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


def mounts() -> tuple[mount_table.Mounted, ...]:
    """This VM's mounts as the agent sees them; the kernel answers from memory."""
    return mount_table.parse(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


async def probe(device: str, thread: LoneThread) -> Probe:
    """Everything that decides over `device`; NotADevice. `thread` reads its bytes, which may hang."""
    number = device_number(device)
    found, (signatures, complaint) = await asyncio.gather(_blkid(device), _wipefs(device))
    errors = list(found.errors)
    if complaint:
        errors.append(complaint)
    content: _Content | None = None
    busy: tuple[str, ...] = ()
    try:
        content = await thread.call(lambda: _read_content(device), PROBE_SECONDS)
    except (TimeoutError, StillHanging):
        errors.append(f"reading {device} did not end within {PROBE_SECONDS:g} s")
    except OSError as error:
        if error.errno == errno.EBUSY:
            busy = ("something that has opened it for itself alone",)
        else:
            errors.append(f"reading {device}: {error.strerror}")
    system = SYS_DEV_BLOCK / number
    targets = mount_table.targets_of(mounts(), number)
    return replace(
        found,
        signatures=signatures,
        first_mib_zero=None if content is None else content.first_mib_zero,
        last_mib_zero=None if content is None else content.last_mib_zero,
        size_bytes=None if content is None else content.size_bytes,
        partitions=_partitions(system),
        holders=_names(system / "holders") or (() if targets else busy),
        mounted_at=targets,
        read_only=_flag(system / "ro"),
        errors=tuple(errors),
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


async def _blkid(device: str) -> Probe:
    try:
        finished = await subprocesses.run(["blkid", "-p", "-o", "export", device], PROBE_SECONDS, ok=None)
    except subprocesses.CommandFailed as error:
        return Probe(blkid=Blkid.ERROR, errors=(str(error),))
    if finished.status not in (0, 2, 8):
        complaint = f"blkid ended with {finished.status}: {finished.said}"
        return Probe(blkid=Blkid.ERROR, errors=(complaint,))
    values = dict(line.partition("=")[::2] for line in finished.stdout.splitlines())
    return Probe(
        blkid=Blkid(finished.status),
        blkid_type=values.get("TYPE", ""),
        blkid_partition_table=values.get("PTTYPE", ""),
    )


async def _wipefs(device: str) -> tuple[tuple[str, ...] | None, str]:
    """The signatures' types, and what went wrong."""
    try:
        argv = ["wipefs", "--no-act", "--noheadings", "--output", "TYPE", device]
        finished = await subprocesses.run(argv, PROBE_SECONDS)
    except subprocesses.CommandFailed as error:
        return None, str(error)
    return tuple(finished.stdout.split()), ""


def _read_content(device: str) -> _Content:
    """O_EXCL: fails with EBUSY when the device is in use by the kernel, whoever mounted it."""
    descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        first = _read_at(descriptor, 0, min(MIB, size))
        last = _read_at(descriptor, max(0, size - MIB), min(MIB, size))
    finally:
        os.close(descriptor)
    return _Content(first_mib_zero=not any(first), last_mib_zero=not any(last), size_bytes=size)


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
