"""What may be formatted, what may be mounted, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.disk_safety import (
    MIB,
    Blkid,
    CheckVerdict,
    Marker,
    Probe,
    Reason,
    Verdict,
    decide,
    decide_check,
    decide_copy_target,
    decide_marker,
    disk_fault,
)
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec

BLANK = Probe(blkid=Blkid.NOTHING, signatures=(), first_mib_zero=True, last_mib_zero=True, size_bytes=1024 * MIB)
EXT4 = Probe(
    blkid=Blkid.FOUND,
    blkid_type="ext4",
    signatures=("ext4",),
    first_mib_zero=False,
    last_mib_zero=True,
    size_bytes=1024 * MIB,
)


@pytest.mark.parametrize(
    ("probe", "verdict", "reason"),
    [
        (BLANK, Verdict.FORMAT, Reason.BLANK),
        (replace(BLANK, size_bytes=1100 * MIB), Verdict.FORMAT, Reason.BLANK),
        (EXT4, Verdict.MOUNT, Reason.WANTED_FILESYSTEM),
        (replace(EXT4, size_bytes=8 * 1024 * MIB), Verdict.MOUNT, Reason.WANTED_FILESYSTEM),
        (replace(BLANK, size_bytes=9000 * MIB), Verdict.REFUSE, Reason.WRONG_SIZE),
        (replace(BLANK, size_bytes=0), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, size_bytes=None), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, first_mib_zero=False), Verdict.REFUSE, Reason.NOT_ZERO),
        (replace(BLANK, last_mib_zero=False), Verdict.REFUSE, Reason.NOT_ZERO),
        (replace(BLANK, first_mib_zero=None), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, last_mib_zero=None), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, signatures=None), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, signatures=("LVM2_member",)), Verdict.REFUSE, Reason.FOREIGN_SIGNATURE),
        (replace(BLANK, signatures=("ext4",)), Verdict.REFUSE, Reason.FOREIGN_SIGNATURE),
        (replace(BLANK, blkid=Blkid.ERROR), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(BLANK, blkid=Blkid.AMBIVALENT), Verdict.REFUSE, Reason.AMBIVALENT),
        (replace(BLANK, blkid=Blkid.FOUND), Verdict.REFUSE, Reason.FOREIGN_SIGNATURE),
        (replace(BLANK, partitions=("vdb1",)), Verdict.REFUSE, Reason.PARTITIONED),
        (replace(BLANK, blkid=Blkid.FOUND, blkid_partition_table="gpt"), Verdict.REFUSE, Reason.PARTITIONED),
        (replace(BLANK, holders=("dm-0",)), Verdict.REFUSE, Reason.IN_USE),
        (replace(BLANK, mounted_at=("/mnt",)), Verdict.REFUSE, Reason.IN_USE),
        (replace(BLANK, read_only=True), Verdict.REFUSE, Reason.READ_ONLY),
        (replace(EXT4, blkid_type="xfs", signatures=("xfs",)), Verdict.REFUSE, Reason.FOREIGN_SIGNATURE),
        (replace(EXT4, blkid_type="ext2", signatures=("ext2",)), Verdict.REFUSE, Reason.FOREIGN_SIGNATURE),
        (replace(EXT4, signatures=("ext4", "linux_raid_member")), Verdict.REFUSE, Reason.AMBIVALENT),
        (replace(EXT4, signatures=None), Verdict.REFUSE, Reason.UNREADABLE),
        (replace(EXT4, mounted_at=("/mnt",)), Verdict.REFUSE, Reason.IN_USE),
        (replace(EXT4, read_only=True), Verdict.REFUSE, Reason.READ_ONLY),
    ],
)
def test_a_device_is_used_only_when_everything_fits(probe: Probe, verdict: Verdict, reason: Reason) -> None:
    """Formatted when provably blank, mounted when it carries the wanted file system alone, refused otherwise."""
    decision = decide(probe, "ext4", size_mib=1024)
    assert (decision.verdict, decision.reason) == (verdict, reason)
    assert decision.detail


def test_a_size_that_nobody_named_is_no_reason_to_refuse() -> None:
    """BOSH's mount_disk names none."""
    assert decide(BLANK, "xfs", size_mib=0).verdict is Verdict.FORMAT


def test_an_unknown_file_system_is_refused() -> None:
    """Before anything else is asked."""
    assert decide(BLANK, "btrfs", 0).reason is Reason.UNKNOWN_FILESYSTEM


OPTIONAL_BOOL = st.sampled_from([None, True, False])
NAMES = st.lists(st.sampled_from(["ext4", "xfs", "dos", "LVM2_member", "swap"]), max_size=3).map(tuple)
PROBES = st.builds(
    Probe,
    blkid=st.sampled_from(list(Blkid)),
    blkid_type=st.sampled_from(["", "ext4", "xfs", "swap"]),
    blkid_partition_table=st.sampled_from(["", "", "gpt"]),
    signatures=st.one_of(st.none(), NAMES),
    first_mib_zero=OPTIONAL_BOOL,
    last_mib_zero=OPTIONAL_BOOL,
    size_bytes=st.one_of(st.none(), st.sampled_from([0, 1024 * MIB, 10**13])),
    partitions=st.sampled_from([(), (), ("vdb1",)]),
    holders=st.sampled_from([(), (), ("dm-0",)]),
    mounted_at=st.sampled_from([(), (), ("/mnt",)]),
    read_only=st.booleans(),
)


@given(PROBES, st.sampled_from(["ext4", "xfs", "ntfs"]), st.sampled_from([0, 1024]))
def test_nothing_but_a_blank_device_is_ever_formatted(probe: Probe, filesystem: str, size_mib: int) -> None:
    """Whatever the probes say: format implies that every one of them said blank, and that nobody uses it."""
    if decide(probe, filesystem, size_mib).verdict is Verdict.FORMAT:
        assert probe.blkid is Blkid.NOTHING
        assert probe.signatures == ()
        assert probe.first_mib_zero is True
        assert probe.last_mib_zero is True
        assert not (probe.partitions)
        assert not (probe.holders)
        assert not (probe.mounted_at)
        assert not (probe.blkid_partition_table)
        assert not probe.read_only
        assert probe.size_bytes


def mark(instance: str = "shop/db/0", disk: str = "data", **changes: object) -> Marker:
    return Marker(InstanceId(instance), DiskName(disk), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("marker", "said", "reason"),
    [
        (None, {}, None),
        (mark(), {}, None),
        (mark(cid="another-cid-after-a-copy"), {}, None),
        (mark("shop/db/1"), {}, Reason.OTHER_INSTANCE),
        (mark(disk="logs"), {}, Reason.OTHER_DISK),
        (mark("shop/db/1"), {"taken_from": "shop/db/1/data"}, None),
        (mark(disk="logs"), {"taken_from": "shop/db/0/logs"}, None),
        (mark("shop/db/1"), {"taken_from": "shop/db/1/logs"}, Reason.OTHER_INSTANCE),
        (mark(copy_of="d-1"), {}, Reason.COPY),
        (mark(copy_of="d-1"), {"replaces": "d-1"}, Reason.COPY),
        (mark(copy_of="d-1", finished=True), {}, Reason.COPY),
        (mark(copy_of="d-1", finished=True), {"replaces": "d-2"}, Reason.COPY),
        (mark(copy_of="d-1", finished=True), {"replaces": "d-1"}, None),
        (mark("shop/db/1", copy_of="d-1", finished=True), {"replaces": "d-1"}, Reason.OTHER_INSTANCE),
    ],
)
def test_a_mark_binds_a_disk_to_its_place(marker: Marker | None, said: dict[str, str], reason: Reason | None) -> None:
    """Without a mark it is new; with one it is ours or it is not used. A copy is used when it is finished, in the place
    of the very disk that it was made from; another's disk when a person gave that very one to this place."""
    disk = DiskSpec(DiskName("data"), DiskCid("d-9"), **said)  # type: ignore[arg-type]
    decision = decide_marker(marker, InstanceId("shop/db/0"), disk)
    assert (decision and decision.reason) == reason


@pytest.mark.parametrize(
    ("marker", "empty", "fragment"),
    [
        (None, True, ""),
        (None, False, "holds files"),
        (mark(copy_of="d-1"), False, ""),
        (mark(copy_of="d-1", finished=True), False, ""),
        (mark(copy_of="d-2"), False, "a copy of d-2"),
        (mark(), False, "disk data of shop/db/0"),
        (mark("shop/db/1", copy_of="d-1"), False, "a copy of d-1"),
    ],
)
def test_only_a_disk_that_was_made_for_it_is_copied_to(marker: Marker | None, empty: bool, fragment: str) -> None:
    """Blank, or begun before from the same disk for the same place; everything else may be somebody's data."""
    refusal = decide_copy_target(marker, empty, InstanceId("shop/db/0"), DiskName("data"), "d-1")
    assert bool(refusal) == bool(fragment)
    assert fragment in refusal


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (0, CheckVerdict.CLEAN),
        (1, CheckVerdict.REPAIRED),
        (2, CheckVerdict.REPAIRED),
        (3, CheckVerdict.REPAIRED),
        (4, CheckVerdict.NEEDS_PERSON),
        (8, CheckVerdict.NEEDS_PERSON),
        (12, CheckVerdict.NEEDS_PERSON),
        (32, CheckVerdict.NEEDS_PERSON),
        (-9, CheckVerdict.NEEDS_PERSON),
    ],
)
def test_a_check_that_leaves_errors_needs_a_person(status: int, verdict: CheckVerdict) -> None:
    """e2fsck(8): 4 and more, and being killed, leave the file system as it must not be mounted."""
    assert decide_check(status) is verdict


DISK = DiskSpec(DiskName("data"), DiskCid("d-1"), device="/dev/disk/by-id/virtio-d-1", mount_options=("noatime",))


@pytest.mark.parametrize(
    ("disk", "fault"),
    [
        (DISK, None),
        (replace(DISK, device=""), None),
        (replace(DISK, cid=DiskCid("0b8a7d3e-6f0e-4a53-9f6c-2f6c1a7f3b11")), None),
        (replace(DISK, mount_options=("discard", "commit=30")), None),
        (replace(DISK, name=DiskName("../data")), "disk name"),
        (replace(DISK, name=DiskName("")), "disk name"),
        (replace(DISK, cid=DiskCid("a/b")), "cid"),
        (replace(DISK, device="/tmp/x"), "below /dev"),
        (replace(DISK, device="/dev/../tmp/x"), "below /dev"),
        (replace(DISK, filesystem="vfat"), "ext4, xfs"),
        (replace(DISK, mount_options=("noatime,suid",)), "mount option"),
        (replace(DISK, mount_options=("-o",)), "mount option"),
    ],
)
def test_names_that_become_paths_and_arguments_are_checked(disk: DiskSpec, fault: str | None) -> None:
    """What comes over the bus becomes a directory and arguments of mount."""
    found = disk_fault(disk)
    assert found is None if fault is None else (found is not None and fault in found)
