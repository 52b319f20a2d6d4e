"""What probes of a device must say before it may be formatted or mounted.

Laws: a device is formatted only when everything that was asked says that it is blank: blkid finds nothing, wipefs
finds nothing, its first and last MiB are zeros, no partition lies on it, and its size is the expected one. Whatever
cannot be read, is ambiguous or does not fit is refused, with the reason; nothing is ever formatted to get further.
A disk that carries the mark of another instance is not used.

Does not know: how probes are made (agent/disk_probe.py), what mounting is (agent/disks.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from protocol.ids import DiskName, InstanceId, is_name
from protocol.spec import DiskSpec

MIB = 1024 * 1024
SIZE_TOLERANCE = 0.1
"""A device may be this share smaller or larger than the disk was ordered (clouds round up, some to whole GiB)."""
SIZE_TOLERANCE_MIB = 1024
FILESYSTEMS = ("ext4", "xfs")


class Blkid(Enum):
    """Exit of `blkid -p`: 0 found, 2 nothing, 8 several contradict each other, all else an error."""

    FOUND = 0
    NOTHING = 2
    AMBIVALENT = 8
    ERROR = -1


@dataclass(frozen=True, slots=True)
class Probe:
    """What was read from a device. None: could not be read, which is never taken for blank."""

    blkid: Blkid
    blkid_type: str = ""  # TYPE, the file system or container format
    blkid_partition_table: str = ""  # PTTYPE
    signatures: tuple[str, ...] | None = None  # wipefs -n, one type each
    first_mib_zero: bool | None = None
    last_mib_zero: bool | None = None
    size_bytes: int | None = None
    partitions: tuple[str, ...] = ()  # kernel names of partitions on it
    holders: tuple[str, ...] = ()  # kernel names of devices stacked on it (LVM, RAID, crypt)
    mounted_at: tuple[str, ...] = ()  # where it is mounted already
    read_only: bool = False
    errors: tuple[str, ...] = field(default=())


class Verdict(Enum):
    FORMAT = "format"
    MOUNT = "mount"  # carries the wanted file system; check it, then mount it
    REFUSE = "refuse"


class Reason(Enum):
    BLANK = "provably blank"
    WANTED_FILESYSTEM = "carries the wanted file system"
    UNKNOWN_FILESYSTEM = "this file system is not supported"
    IN_USE = "is in use by something else"
    PARTITIONED = "has a partition table"
    FOREIGN_SIGNATURE = "carries a foreign signature"
    AMBIVALENT = "carries contradicting signatures"
    UNREADABLE = "could not be read in full"
    NOT_ZERO = "has no signature, but is not empty"
    WRONG_SIZE = "is not of the expected size"
    READ_ONLY = "is read-only"
    OTHER_INSTANCE = "belongs to another instance"
    OTHER_DISK = "is another disk of this instance"
    COPY = "is not to be used in its own right"


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: Verdict
    reason: Reason
    detail: str  # for people: what was seen


def decide(probe: Probe, filesystem: str, size_mib: int) -> Decision:
    """What may be done with a device that should hold a `filesystem` of `size_mib` (0: not known)."""
    if filesystem not in FILESYSTEMS:
        return _refuse(Reason.UNKNOWN_FILESYSTEM, f"{filesystem}; expected one of {', '.join(FILESYSTEMS)}")
    if probe.mounted_at:
        return _refuse(Reason.IN_USE, f"mounted at {', '.join(probe.mounted_at)}")
    if probe.holders:
        return _refuse(Reason.IN_USE, f"{', '.join(probe.holders)} is stacked on it")
    if probe.partitions or probe.blkid_partition_table:
        seen = probe.blkid_partition_table or ", ".join(probe.partitions)
        return _refuse(Reason.PARTITIONED, f"{seen}; a file system on the whole device was expected")
    match probe.blkid:
        case Blkid.AMBIVALENT:
            return _refuse(Reason.AMBIVALENT, "blkid finds several contradicting signatures")
        case Blkid.ERROR:
            return _refuse(Reason.UNREADABLE, "; ".join(probe.errors) or "blkid failed")
        case Blkid.FOUND:
            return _decide_signed(probe, filesystem)
        case Blkid.NOTHING:
            return _decide_blank(probe, size_mib)


def decide_marker(marker: Marker | None, instance: InstanceId, disk: DiskSpec) -> Decision | None:
    """None: the disk is ours, or bears no mark yet. Otherwise why it must not be used. A copy is used only once it is
    finished, and by who names the disk that it was copied from; another's disk only by who names the other."""
    if marker is None:
        return None
    if marker.copy_of and (not marker.finished or marker.copy_of != disk.replaces):
        state = "a copy" if marker.finished else "an unfinished copy"
        return _refuse(Reason.COPY, f"{state} of {marker.copy_of}")
    name = disk.name
    if marker.instance == instance and marker.disk == name:
        return None
    if disk.taken_from == f"{marker.instance}/{marker.disk}":
        return None
    if marker.instance != instance:
        return _refuse(Reason.OTHER_INSTANCE, f"marked as disk {marker.disk} of {marker.instance}, not of {instance}")
    return _refuse(Reason.OTHER_DISK, f"marked as disk {marker.disk}, not {name}")


@dataclass(frozen=True, slots=True)
class Marker:
    """Written to `.resurgam/disk.json` on the disk at its first mount. `copy_of`: it is being copied to, from that
    disk, or was, and has not taken its place yet; `finished` when it has all of the data, read back."""

    instance: InstanceId
    disk: DiskName
    cid: str = ""
    copy_of: str = ""
    finished: bool = False


class CheckVerdict(Enum):
    CLEAN = "clean"
    REPAIRED = "repaired"
    NEEDS_PERSON = "needs a person"


def decide_check(status: int) -> CheckVerdict:
    """What an exit status of `e2fsck -p` means: 1 repaired, 2 repaired and a reboot is advised (only for a mounted
    file system), 4 and more: errors are left, or it could not run."""
    if status == 0:
        return CheckVerdict.CLEAN
    return CheckVerdict.REPAIRED if 0 < status < 4 else CheckVerdict.NEEDS_PERSON


def disk_fault(disk: DiskSpec) -> str | None:
    """What is wrong with how a disk is named: names become directories, the rest arguments of mount. None: nothing."""
    if not is_name(disk.name):
        return f"disk name {disk.name!r}: expected lower-case letters, digits, - and _"
    if not _CID.fullmatch(disk.cid):
        return f"disk {disk.name}: cid {disk.cid!r}: expected letters, digits, . - and _"
    if disk.device and (not disk.device.startswith("/dev/") or ".." in disk.device.split("/")):
        return f"disk {disk.name}: device {disk.device!r}: expected a path below /dev"
    if disk.filesystem not in FILESYSTEMS:
        return f"disk {disk.name}: file system {disk.filesystem!r}: expected one of {', '.join(FILESYSTEMS)}"
    if disk.replaces and not _CID.fullmatch(disk.replaces):
        return f"disk {disk.name}: replaces {disk.replaces!r}: expected letters, digits, . - and _"
    wrong = [option for option in disk.mount_options if not _OPTION.fullmatch(option)]
    return f"disk {disk.name}: mount option {wrong[0]!r} is not one" if wrong else None


_CID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Clouds' own ids too: ours are shorter, a volume's UUID is longer."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_.:=-]{0,63}")


def _decide_signed(probe: Probe, filesystem: str) -> Decision:
    if probe.blkid_type != filesystem:
        return _refuse(Reason.FOREIGN_SIGNATURE, f"{probe.blkid_type or 'unknown'}, expected {filesystem}")
    if probe.signatures is None:
        return _refuse(Reason.UNREADABLE, "; ".join(probe.errors) or "wipefs failed")
    foreign = tuple(signature for signature in probe.signatures if signature != filesystem)
    if foreign:
        return _refuse(Reason.AMBIVALENT, f"{filesystem}, but also {', '.join(foreign)}")
    if probe.read_only:
        return _refuse(Reason.READ_ONLY, "the device does not take writes")
    return Decision(Verdict.MOUNT, Reason.WANTED_FILESYSTEM, filesystem)


def _decide_blank(probe: Probe, size_mib: int) -> Decision:
    if probe.signatures is None:
        return _refuse(Reason.UNREADABLE, "; ".join(probe.errors) or "wipefs failed")
    if probe.signatures:
        return _refuse(Reason.FOREIGN_SIGNATURE, ", ".join(probe.signatures))
    if probe.first_mib_zero is None or probe.last_mib_zero is None or not probe.size_bytes:
        return _refuse(Reason.UNREADABLE, "; ".join(probe.errors) or "its first or last MiB could not be read")
    if not (probe.first_mib_zero and probe.last_mib_zero):
        where = "first" if not probe.first_mib_zero else "last"
        return _refuse(Reason.NOT_ZERO, f"its {where} MiB holds data; if it is worthless, `blkdiscard -z` or dd zeros")
    actual_mib = probe.size_bytes / MIB
    if size_mib and abs(actual_mib - size_mib) > max(size_mib * SIZE_TOLERANCE, min(SIZE_TOLERANCE_MIB, size_mib)):
        return _refuse(Reason.WRONG_SIZE, f"{actual_mib:.0f} MiB, expected about {size_mib} MiB")
    if probe.read_only:
        return _refuse(Reason.READ_ONLY, "the device does not take writes")
    return Decision(Verdict.FORMAT, Reason.BLANK, f"{actual_mib:.0f} MiB of nothing")


def _refuse(reason: Reason, detail: str) -> Decision:
    return Decision(Verdict.REFUSE, reason, detail)


def decide_copy_target(marker: Marker | None, empty: bool, instance: InstanceId, name: DiskName, source: str) -> str:
    """Why a disk that has a file system already may not be copied to; "" when it may. It is one that an earlier try
    made and did not come to mark, or one that is being copied to from the same disk."""
    if marker is None:
        return "" if empty else "it holds files and bears no mark: it is not a disk that was made for this copy"
    if marker.copy_of == source and (marker.instance, marker.disk) == (instance, name):
        return ""
    what = f"a copy of {marker.copy_of}" if marker.copy_of else f"disk {marker.disk} of {marker.instance}"
    return f"it is marked as {what}"
