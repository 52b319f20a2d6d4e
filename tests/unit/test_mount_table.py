"""What /proc/self/mountinfo says."""

from __future__ import annotations

import pytest

from agent.core.mount_table import mounted_at, parse, targets_of

TEXT = """\
22 28 0:20 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda rw,errors=remount-ro
40 28 254:16 / /var/lib/resurgam/disks/data rw,noatime shared:20 master:3 - ext4 /dev/vdb ro
41 28 254:16 /redis/data /with\\040space rw - ext4 /dev/vdb rw
42 28 7:0 / /mnt rw - ext4 /dev/loop0 rw
43 28 7:1 / /mnt ro - xfs /dev/loop1 rw
this is no line of it
44 28 7:2
"""
TABLE = parse(TEXT)


@pytest.mark.parametrize(
    ("target", "device", "read_only"),
    [
        ("/", "254:1", False),
        ("/var/lib/resurgam/disks/data", "254:16", True),
        ("/with space", "254:16", False),
        ("/mnt", "7:1", True),
        ("/nothing", None, None),
    ],
)
def test_what_is_seen_at_a_place(target: str, device: str | None, read_only: bool | None) -> None:
    """The mount's options and the file system's count alike; of several mounts on one another, the last is seen."""
    mounted = mounted_at(TABLE, target)
    assert (mounted.device if mounted else None, mounted.read_only if mounted else None) == (device, read_only)


def test_every_place_of_a_device() -> None:
    """Bind mounts too: each is a use of the disk."""
    assert targets_of(TABLE, "254:16") == ("/var/lib/resurgam/disks/data", "/with space")
    assert targets_of(TABLE, "9:9") == ()


def test_a_kernels_own_table_is_read() -> None:
    """This machine's, with a root in it."""
    with open("/proc/self/mountinfo") as file:
        text = file.read()
    assert mounted_at(parse(text), "/") is not None
    assert len(parse(text)) == len(text.splitlines())


@pytest.mark.parametrize(
    ("options", "read_only"),
    [("rw,relatime", False), ("ro", True), ("rw,emergency_ro,errors=remount-ro", True), ("rw,shutdown", True)],
)
def test_read_only_in_the_words_of_old_and_new_kernels(options: str, read_only: bool) -> None:
    """The file system's own options say that it takes no more writes, whatever the mount's flags say."""
    (mounted,) = parse(f"36 35 254:16 / /data rw,noatime - ext4 /dev/vda {options}")
    assert mounted.read_only is read_only
