"""A disk copied to another on real loop devices: everything on it, compared, marked, cut short and begun again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import disk_probe
from agent.core import mount_table
from agent.disk_copy import DiskCopy
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import DiskBusy, DiskRefused, DiskTools
from agent.store import Store
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec
from tests.support.agent import INSTANCE, make_spec
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync (tools/setup.sh test)"),
]

MIB = 1024 * 1024
OLD, NEW = DiskCid("d-old"), DiskCid("d-new")
NOBODY_IN_PARTICULAR = 0xFFFFFFFF
ACL_ENTRIES = ((1, 7, NOBODY_IN_PARTICULAR), (2, 4, 1234), *((tag, 5, NOBODY_IN_PARTICULAR) for tag in (4, 16)))
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry) for entry in (*ACL_ENTRIES, (32, 0, NOBODY_IN_PARTICULAR))
)
"""system.posix_acl_access: owner rwx, user 1234 r, group r-x, mask r-x, others nothing."""


class Bench:
    """Two disks of one VM; everything goes when the test ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loops: list[str] = []
        (directory / "by-id").mkdir()
        self.tools = DiskTools(directory / "disks", directory / "by-id")
        self.document = Store(directory / "state").document("disks", KnownDisks)
        self.keeper = DiskKeeper(self.tools, self.document, lambda _: None)
        self.copies = DiskCopy(self.tools, self.keeper, directory / "copying")

    def disk(self, cid: DiskCid, size_mib: int, filesystem: str = "ext4", **changes: str) -> DiskSpec:
        image = self.directory / f"{cid}.raw"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        loop = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.loops.append(loop)
        return DiskSpec(DiskName("data"), cid, device=loop, filesystem=filesystem, size_mib=size_mib, **changes)  # type: ignore[arg-type]

    async def mounted(self, disk: DiskSpec) -> Path:
        self.keeper.set_wanted(make_spec(disks=(disk,)), INSTANCE)
        return Path(await self.keeper.mount(disk))

    def mounts(self) -> list[str]:
        return [m.target for m in disk_probe.mounts() if m.target.startswith(str(self.directory))]

    def clean(self) -> None:
        for target in reversed(self.mounts()):
            subprocess.run(["umount", "--lazy", target], check=False)
        for loop in self.loops:
            subprocess.run(["losetup", "--detach", loop], check=False, capture_output=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.clean()


def fill(directory: Path) -> None:
    """One of everything that a careless copy loses."""
    (directory / "sub" / "deeper").mkdir(parents=True)
    (directory / "sub" / "plain").write_bytes(os.urandom(3 * MIB + 17))
    with (directory / "hole").open("wb") as file:
        file.seek(24 * MIB)
        file.write(b"end")
    os.link(directory / "sub" / "plain", directory / "sub" / "deeper" / "linked")
    os.symlink("plain", directory / "sub" / "pointing")
    os.mkfifo(directory / "pipe")
    os.mknod(directory / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(directory / "sub", 4321, 5432)
    (directory / "sub").chmod(0o2751)
    os.setxattr(directory / "sub" / "plain", "user.origin", b"here")
    os.setxattr(directory / "sub", "system.posix_acl_access", ACL)
    os.utime(directory / "hole", ns=(1_000_000_000_123_456_789, 1_000_000_000_987_654_321))
    (directory / "ünïcode \n name").write_text("odd")


def seen(directory: Path) -> dict[str, tuple[object, ...]]:
    """What there is to know of each file but its own mark's."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for root, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if name not in (".resurgam", "lost+found"))
        for name in sorted([*directories, *files]):
            path = Path(root, name)
            status = path.lstat()
            relative = str(path.relative_to(directory))
            first = inodes.setdefault(status.st_ino, relative)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = (path.read_bytes(), status.st_blocks * 512 < MIB if name == "hole" else None)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            keys = sorted(key for key in os.listxattr(path, follow_symlinks=False) if not key.startswith("trusted.SGI"))
            attributes = [(key, os.getxattr(path, key, follow_symlinks=False)) for key in keys]
            owner = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev)
            found[relative] = (owner, status.st_mtime_ns, first, content, *attributes)
    return found


@pytest.mark.parametrize(("filesystem", "size_mib"), [("ext4", 40), ("xfs", 320)])
async def test_everything_arrives_and_is_compared(bench: Bench, filesystem: str, size_mib: int) -> None:
    """Smaller or of another file system: holes stay holes, hard links stay links, owners, modes, ACLs, attributes and
    times are the same. The copy is mounted only by who names the disk that it replaces, and is an ordinary one then."""
    if shutil.which(f"mkfs.{filesystem}") is None or filesystem not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this machine has no {filesystem}")
    old, new = bench.disk(OLD, 64), bench.disk(NEW, size_mib, filesystem)
    directory = await bench.mounted(old)
    fill(directory)
    before = seen(directory)
    answer = await bench.copies.copy(old, new, INSTANCE)
    assert answer["used_bytes"] >= 3 * MIB
    assert bench.mounts() == [], "neither is mounted when the copy is over"
    with pytest.raises(DiskRefused, match="copy of d-old"):
        await bench.keeper.mount(new)
    taking = DiskSpec(new.name, NEW, new.device, filesystem, size_mib=size_mib, replaces=OLD)
    after = seen(Path(await bench.keeper.mount(taking)))
    assert after == before
    await bench.keeper.unmount(NEW)
    await bench.keeper.mount(new)
    marker = json.loads((directory / ".resurgam/disk.json").read_text())
    assert (marker["instance"], marker["cid"], marker["copy_of"]) == (INSTANCE, NEW, "")


async def test_a_copy_cut_short_goes_on(bench: Bench) -> None:
    """Its agent is ended in the middle: what is there is no disk to anybody, the old one is not mounted by itself, also
    not after the agent's restart, and the next try finishes it."""
    old, new = bench.disk(OLD, 200), bench.disk(NEW, 190)
    directory = await bench.mounted(old)
    for number in range(150):
        (directory / f"file{number}").write_bytes(os.urandom(MIB))
    before = seen(directory)
    running = asyncio.create_task(bench.copies.copy(old, new, INSTANCE))
    place = bench.directory / "copying" / NEW
    await until(lambda: len(list(place.glob("file*"))) >= 3, what="some files arrived")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    with pytest.raises(DiskRefused, match="unfinished copy of d-old"):
        await bench.keeper.mount(DiskSpec(new.name, NEW, new.device, size_mib=190, replaces=OLD))
    await bench.keeper.unmount(NEW)
    await bench.keeper.remove(NEW)
    again = DiskKeeper(bench.tools, bench.document, lambda _: None)
    again.set_wanted(make_spec(disks=(old,)), INSTANCE)
    keeping = asyncio.create_task(again.run())
    await until(lambda: bool(again.reports()), what="the disk is reported")
    await DiskCopy(bench.tools, again, bench.directory / "copying").copy(old, new, INSTANCE)
    assert str(directory) not in bench.mounts(), "what a copy let go stays so"
    assert seen(Path(await again.mount(DiskSpec(new.name, NEW, new.device, size_mib=190, replaces=OLD)))) == before
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_what_a_killed_agent_left_running_is_ended(bench: Bench) -> None:
    """Its rsync still holds the disk where the copy mounted it: it is ended, nobody else is, and the copy is made."""
    old, new = bench.disk(OLD, 64), bench.disk(NEW, 64)
    directory = await bench.mounted(old)
    (directory / "file").write_text("data")
    place = bench.directory / "copying" / OLD
    place.mkdir(parents=True)
    await bench.keeper.unmount(OLD)
    subprocess.run(["mount", "-o", "ro", old.device, str(place)], check=True)
    sleeping = ["-c", "import time; time.sleep(60)"]
    left = subprocess.Popen(["rsync", *sleeping, f"{place}/"], executable=sys.executable, cwd=place)
    try:
        await bench.copies.copy(old, new, INSTANCE)
        assert left.wait(10) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


async def test_a_disk_in_use_is_not_copied(bench: Bench) -> None:
    """Somebody has a file open on it: refused, it stays mounted, and the other disk is not touched."""
    old, new = bench.disk(OLD, 64), bench.disk(NEW, 64)
    directory = await bench.mounted(old)
    with (directory / "open").open("w"), pytest.raises(DiskBusy):
        await bench.copies.copy(old, new, INSTANCE)
    assert str(directory) in bench.mounts()
    with open(new.device, "rb") as device:
        assert not any(device.read(MIB))


@pytest.mark.parametrize("content", ["files", "foreign", "too small"])
async def test_what_is_not_made_for_it_is_not_copied_to(bench: Bench, content: str) -> None:
    """A disk with files, another instance's, or one that the data do not fit on: refused, nothing on it is changed, and
    the disk that was to be copied is as it was."""
    old = bench.disk(OLD, 64)
    new = bench.disk(NEW, 20 if content == "too small" else 64)
    directory = await bench.mounted(old)
    (directory / "much").write_bytes(os.urandom(30 * MIB))
    if content == "files":
        place = bench.directory / "elsewhere"
        place.mkdir()
        subprocess.run(["mkfs.ext4", "-q", new.device], check=True)
        subprocess.run(["mount", new.device, str(place)], check=True)
        (place / "precious").write_text("data")
        subprocess.run(["umount", str(place)], check=True)
    if content == "foreign":
        await bench.keeper.unmount(OLD)
        bench.keeper.set_wanted(None, InstanceId("shop/other/0"))
        await bench.keeper.mount(new)
        await bench.keeper.unmount(NEW)
        await bench.keeper.remove(NEW)
        bench.keeper.set_wanted(make_spec(disks=(old,)), INSTANCE)
    match = {"files": "bears no mark", "foreign": "shop/other/0", "too small": "do not fit"}[content]
    with pytest.raises(DiskRefused, match=match):
        await bench.copies.copy(old, new, INSTANCE)
    assert bench.mounts() == []
    await bench.mounted(old)
    assert (directory / "much").stat().st_size == 30 * MIB
    assert mount_table.mounted_at(disk_probe.mounts(), str(directory)) is not None


async def test_it_says_how_far_it_is(bench: Bench) -> None:
    """While it runs there is a phase, bytes and a rate; before and after there is nothing."""
    old, new = bench.disk(OLD, 200), bench.disk(NEW, 200)
    directory = await bench.mounted(old)
    for number in range(100):
        (directory / f"file{number}").write_bytes(os.urandom(MIB))
    assert bench.copies.progress() is None
    phases: set[str] = set()
    running = asyncio.create_task(bench.copies.copy(old, new, INSTANCE))

    def look() -> bool:
        said = bench.copies.progress()
        if said is not None:
            phases.add(said["phase"])
            assert 0 <= said["bytes_done"] <= said["bytes_total"]
        return running.done()

    await until(look, 60, "the copy is over")
    assert (await running)["seconds"] > 0
    assert phases == {"copying", "comparing"}
    assert bench.copies.progress() is None
