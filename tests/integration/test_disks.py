"""Persistent disks on real loop devices: formatted when blank and never else, checked, mounted, grown, unmounted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import disk_probe
from agent.core import mount_table
from agent.disk_keeper import DiskKeeper, KnownDisks, UnknownDisk
from agent.disk_tools import DiskBusy, DiskMissing, DiskRefused, DiskTools
from agent.lone_thread import LoneThread
from agent.store import Store
from protocol.heartbeat import DiskState
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec
from tests.support.agent import INSTANCE, make_spec
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")

MIB = 1024 * 1024
SIZE_MIB = 64
XFS_MIB = 400


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()


class Bench:
    """Loop devices and a place to mount them; everything goes when the test ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "disks"
        self.by_id = directory / "by-id"
        self.by_id.mkdir()
        self.tools = DiskTools(self.root, self.by_id)
        self.thread = LoneThread("test")
        self.loops: list[str] = []

    def device(self, size_mib: int = SIZE_MIB, name: str = "disk") -> str:
        image = self.directory / f"{name}.raw"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        return self.attach(image)

    def attach(self, image: Path) -> str:
        loop = run("losetup", "--find", "--show", str(image))
        self.loops.append(loop)
        return loop

    def detach(self, loop: str) -> None:
        run("losetup", "--detach", loop)
        self.loops.remove(loop)

    async def mount(self, disk: DiskSpec, instance: InstanceId = INSTANCE) -> str:
        return await self.tools.mount(disk, instance, self.thread, 0.5)

    async def unmount(self, disk: DiskSpec) -> bool:
        return await self.tools.unmount(disk, self.thread)

    def is_mounted(self, disk: DiskSpec) -> bool:
        return mount_table.mounted_at(disk_probe.mounts(), self.tools.directory(disk)) is not None

    def clean(self) -> None:
        for mounted in reversed(disk_probe.mounts()):
            if mounted.target.startswith(str(self.directory)):
                subprocess.run(["umount", "--lazy", mounted.target], check=False)
        for loop in self.loops:
            subprocess.run(["losetup", "--detach", loop], check=False, capture_output=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.clean()


def disk(device: str, **changes: object) -> DiskSpec:
    values = {"size_mib": SIZE_MIB, **changes}
    return DiskSpec(DiskName("data"), DiskCid("d-1"), device=device, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("filesystem", "size_mib"), [("ext4", SIZE_MIB), ("xfs", XFS_MIB)])
async def test_a_blank_disk_is_formatted_once_and_keeps_its_data(bench: Bench, filesystem: str, size_mib: int) -> None:
    """Blank: formatted, marked, mounted. Unmounted and mounted again: the data is there, nothing is formatted."""
    if shutil.which(f"mkfs.{filesystem}") is None or not _kernel_has(filesystem):
        pytest.skip(f"this machine has no {filesystem}")
    wanted = disk(bench.device(size_mib), filesystem=filesystem, size_mib=size_mib)
    directory = await bench.mount(wanted)
    Path(directory, "precious").write_text("data")
    marker = json.loads(Path(directory, ".resurgam/disk.json").read_text())
    assert (marker["instance"], marker["disk"], marker["cid"]) == (INSTANCE, "data", "d-1")
    assert await bench.mount(wanted) == directory, "mounting again is fine"
    assert await bench.unmount(wanted)
    assert not bench.is_mounted(wanted)
    assert not await bench.unmount(wanted), "unmounting again is fine"
    await bench.mount(wanted)
    assert Path(directory, "precious").read_text() == "data"


def write_at(device: str, offset: int, payload: bytes) -> None:
    with open(device, "r+b", buffering=0) as file:
        file.seek(offset)
        file.write(payload)
        os.fsync(file.fileno())


def partition_table(device: str) -> None:
    """An MBR with one Linux partition from sector 2048."""
    entry = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (65536).to_bytes(4, "little")
    write_at(device, 0, (b"\0" * 446 + entry).ljust(510, b"\0") + b"\x55\xaa")


def broken_ext4(device: str) -> None:
    """Without its superblock."""
    run("mkfs.ext4", "-q", device)
    write_at(device, 1024, b"\0" * 512)


FOREIGN: dict[str, tuple[Callable[[str], object], str]] = {
    "another file system": (lambda device: run("mkfs.ext2", "-q", device), "foreign signature: ext2"),
    "swap": (lambda device: run("mkswap", device), "foreign signature"),
    "a partition table": (partition_table, "partition table"),
    "a disk of LUKS": (lambda device: write_at(device, 0, b"LUKS\xba\xbe\x00\x01" + b"\0" * 500), "signature|empty"),
    "data at its start": (lambda device: write_at(device, 4096, b"precious"), "not empty: its first MiB"),
    "data at its end": (lambda device: write_at(device, SIZE_MIB * MIB - 8, b"precious"), "not empty: its last MiB"),
    "a broken ext4": (broken_ext4, "not empty|signature"),
}


@pytest.mark.parametrize("what", FOREIGN)
async def test_a_disk_that_holds_anything_else_is_refused_untouched(bench: Bench, what: str) -> None:
    """Not one byte is changed, nothing is mounted, and the reason is said."""
    prepare, reason = FOREIGN[what]
    device = bench.device()
    prepare(device)
    before = Path(device).read_bytes()
    with pytest.raises(DiskRefused, match=reason):
        await bench.mount(disk(device))
    assert Path(device).read_bytes() == before
    assert not bench.is_mounted(disk(device))


async def test_a_blank_disk_of_another_size_is_not_formatted(bench: Bench) -> None:
    """What is attached is not what was ordered: it may be another's."""
    device = bench.device()
    with pytest.raises(DiskRefused, match="expected about 100000 MiB"):
        await bench.mount(disk(device, size_mib=100_000))
    assert not any(Path(device).read_bytes())


async def test_another_instances_disk_is_not_left_mounted(bench: Bench) -> None:
    """The mark of its first owner stands, whatever the hint says."""
    wanted = disk(bench.device())
    await bench.mount(wanted, InstanceId("shop/db/1"))
    await bench.unmount(wanted)
    with pytest.raises(DiskRefused, match="marked as disk data of shop/db/1, not of shop/db/0"):
        await bench.mount(wanted)
    assert not bench.is_mounted(wanted)


async def test_a_disk_in_use_elsewhere_is_refused(bench: Bench) -> None:
    """Mounted at another place already: a second mount would be a second writer's door."""
    wanted = disk(bench.device())
    await bench.mount(wanted)
    with pytest.raises(DiskRefused, match="in use by something else: mounted at"):
        await bench.mount(DiskSpec(DiskName("other"), DiskCid("d-1"), device=wanted.device))


async def test_a_disk_is_found_by_its_serial_number(bench: Bench) -> None:
    """Without a hint, or with one that is not there, the name under by-id tells; a wrong hint is a contradiction."""
    device = bench.device()
    (bench.by_id / "virtio-d-1").symlink_to(device)
    (bench.by_id / "virtio-xd-1").symlink_to("/dev/null")
    assert await bench.tools.find_device(disk(""), 0) == device
    assert await bench.tools.find_device(disk("/dev/nothing"), 0) == device
    other = bench.device(name="other")
    with pytest.raises(DiskRefused, match="several devices claim"):
        await bench.tools.find_device(disk(other), 0)


async def test_a_disk_that_somebody_else_mounted_is_not_called_unmounted(bench: Bench, tmp_path: Path) -> None:
    """Said of a disk that this agent knows nothing of, "not mounted" must be true: the cloud detaches next."""
    device = bench.device()
    (bench.by_id / "virtio-d-1").symlink_to(device)
    keeper = DiskKeeper(bench.tools, Store(tmp_path / "state").document("disks", KnownDisks), lambda _: None)
    with pytest.raises(UnknownDisk):
        await keeper.unmount(DiskCid("d-1"))
    run("mkfs.ext4", "-q", device)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("mount", device, str(elsewhere))
    with pytest.raises(DiskBusy, match="elsewhere, and not by this agent"):
        await keeper.unmount(DiskCid("d-1"))


async def test_a_disk_that_comes_late_is_waited_for(bench: Bench) -> None:
    """Attaching takes a moment in every cloud; after the deadline it is missing."""
    with pytest.raises(DiskMissing, match="is it attached"):
        await bench.tools.find_device(disk(""), 0.2)
    finding = asyncio.create_task(bench.tools.find_device(disk(""), 10))
    device = bench.device()
    (bench.by_id / "scsi-0QEMU_QEMU_HARDDISK_d-1").symlink_to(device)
    assert await finding == device


async def test_a_held_disk_is_not_unmounted_and_its_holder_is_named(bench: Bench) -> None:
    """Nobody can tell a person what to do about "target is busy" but with the process's name."""
    wanted = disk(bench.device())
    directory = await bench.mount(wanted)
    holder = await asyncio.create_subprocess_exec("sleep", "60", cwd=directory)
    try:
        with pytest.raises(DiskBusy, match=rf"in use by sleep \(pid {holder.pid}\)"):
            await bench.unmount(wanted)
        assert bench.is_mounted(wanted)
    finally:
        holder.kill()
        await holder.wait()
    assert await bench.unmount(wanted)


async def test_a_disk_held_in_another_namespace_is_not_called_free(bench: Bench) -> None:
    """A container's copy of the mount keeps the file system alive after ours: detaching it would cut a writer."""
    wanted = disk(bench.device())
    directory = await bench.mount(wanted)
    let_go_of_others = (
        "grep ^/dev/loop /proc/self/mounts | cut -d' ' -f2 |"
        f' while read at; do [ "$at" = "{directory}" ] || umount -l "$at"; done; exec sleep 60'
    )
    holder = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--propagation", "private", "sh", "-c", let_go_of_others
    )
    try:
        own = os.readlink("/proc/self/ns/mnt")
        await until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n")
        assert os.readlink(f"/proc/{holder.pid}/ns/mnt") != own
        with pytest.raises(DiskBusy, match=rf"still in use by sleep \(pid {holder.pid}\)"):
            await bench.unmount(wanted)
    finally:
        holder.kill()
        await holder.wait()


async def test_a_file_system_that_needs_a_person_is_not_mounted(bench: Bench) -> None:
    """e2fsck -p leaves errors uncorrected: the answer is a refusal that says so, not a mount."""
    wanted = disk(bench.device())
    await bench.mount(wanted)
    await bench.unmount(wanted)
    run("debugfs", "-w", "-R", "clri <2>", wanted.device)
    run("debugfs", "-w", "-R", "ssv state 2", wanted.device)
    with pytest.raises(DiskRefused, match="repair it by hand"):
        await bench.mount(wanted)
    assert not bench.is_mounted(wanted)


async def test_a_grown_disk_gets_a_grown_file_system(bench: Bench) -> None:
    """After the cloud made it larger, mounting brings the file system to the device's size; the data stays."""
    wanted = disk(bench.device())
    directory = await bench.mount(wanted)
    Path(directory, "precious").write_text("data")
    before = os.statvfs(directory).f_blocks
    await bench.unmount(wanted)
    bench.detach(wanted.device)
    image = bench.directory / "disk.raw"
    os.truncate(image, 2 * SIZE_MIB * MIB)
    larger = disk(bench.attach(image), size_mib=2 * SIZE_MIB)
    await bench.mount(larger)
    assert os.statvfs(directory).f_blocks > 1.8 * before
    assert Path(directory, "precious").read_text() == "data"


async def test_the_keeper_mounts_reports_and_remounts(bench: Bench, tmp_path: Path) -> None:
    """From the specification alone: mounted, its filling reported, mounted again when somebody unmounts it, left
    alone once it was unmounted by command, also by the next process."""
    wanted = disk(bench.device())
    told: list[dict[DiskName, str]] = []
    document = Store(tmp_path / "state").document("disks", KnownDisks)
    keeper = DiskKeeper(bench.tools, document, on_mounts=lambda mounts: told.append(dict(mounts)))
    keeper.set_wanted(make_spec(disks=(wanted,)), INSTANCE)
    task = asyncio.create_task(keeper.run())
    try:
        await until(lambda: keeper.mounted(), what="the disk is mounted")
        report = await until(lambda: next((each for each in keeper.reports() if each.size_mib), None))
        assert (report.state, report.percent < 50) == (DiskState.MOUNTED, True)
        run("umount", bench.tools.directory(wanted))
        await until(lambda: {} in told[1:], what="the loss is told", seconds=20)
        await until(lambda: bench.is_mounted(wanted) and keeper.mounted(), what="it is mounted again", seconds=20)
        run("mount", "-o", "remount,ro", bench.tools.directory(wanted))
        await until(lambda: keeper.reports()[0].state is DiskState.READ_ONLY, seconds=20)
        assert await keeper.unmount(wanted.cid)
        assert told[-1] == {}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    again = DiskKeeper(bench.tools, document, on_mounts=lambda _: None)
    again.set_wanted(make_spec(disks=(wanted,)), INSTANCE)
    task = asyncio.create_task(again.run())
    try:
        await again.add(DiskSpec(DiskName("other"), DiskCid("d-2"), device="/dev/nothing"))
        await until(lambda: again.known(DiskCid("d-2")))
        assert not bench.is_mounted(wanted)
        again.set_wanted(make_spec(2, disks=(wanted,)), INSTANCE)
        await until(lambda: bench.is_mounted(wanted), what="a newer specification names it again")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_disk_waits_for_its_vm_to_be_somebodys(bench: Bench, tmp_path: Path) -> None:
    """Until then it says what it waits for, and is not tried over and over; then it is mounted at once."""
    wanted = disk(bench.device())
    document = Store(tmp_path / "state").document("disks", KnownDisks)
    keeper = DiskKeeper(bench.tools, document, on_mounts=lambda _: None)
    keeper.set_wanted(None, None)
    task = asyncio.create_task(keeper.run())
    try:
        with pytest.raises(DiskRefused, match="fills no instance yet"):
            await keeper.mount(wanted)
        assert keeper.reports()[0].state is DiskState.FAILED
        assert "fills no instance yet" in keeper.reports()[0].detail
        keeper.set_wanted(None, INSTANCE)
        await until(lambda: bench.is_mounted(wanted), what="it is mounted once the VM is somebody's")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _kernel_has(filesystem: str) -> bool:
    return filesystem in Path("/proc/filesystems").read_text().split()
