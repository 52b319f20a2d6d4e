"""Snapshots of disks of container VMs while their file systems are written to: whole, and nothing is left standing
still."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from healthmonitor.clouds import file_copies
from healthmonitor.clouds.cloud import CloudUnavailable, DiskRequest
from healthmonitor.clouds.docker_disks import DockerPlugs
from healthmonitor.clouds.docker_snapshots import DockerSnapshots
from healthmonitor.clouds.local_store import LocalStore
from healthmonitor.clouds.still_filesystem import standing_still
from protocol.ids import VmCid
from tests.support import clouds
from tests.support.clouds import DockerBench, OwnEngine, vm_request

pytestmark = pytest.mark.docker

DISK_MIB = 64
SECONDS = 60.0
WRITER = "n=0; while true; do n=$((n+1)); echo line $n >> {place}/log; /bin/busybox sync; done"
HOLDER = """
import sys, time
from pathlib import Path
from healthmonitor.clouds.still_filesystem import standing_still
with standing_still(Path(sys.argv[1]), 300.0):
    print("stands still", flush=True)
    time.sleep(300.0)
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[DockerBench]:
    with tempfile.TemporaryDirectory(prefix="rsc-", dir="/tmp") as directory:
        engine = OwnEngine(Path(directory, "engine"))
        async with clouds.docker_bench(tmp_path / "cloud", engine) as made:
            yield made
        engine.close()


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
async def test_a_snapshot_of_what_is_written_to(bench: DockerBench, tmp_path: Path, filesystem: str) -> None:
    """The file system in it is whole without any repair, what was written before is in it, nothing that came after,
    and the one that it was taken of goes on."""
    size_mib = {"ext4": DISK_MIB, "xfs": 320}[filesystem]
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", size_mib))
    file = bench.file(disk)
    run(f"mkfs.{filesystem}", "-q", str(file))
    with in_vm(bench, vm, await bench.cloud.attach_disk(vm, disk)) as enter:
        run(*enter, "/bin/busybox", "touch", "/mnt/log")
        writer = subprocess.Popen([*enter, "/bin/busybox", "sh", "-c", WRITER.format(place="/mnt")])
        try:
            log = ["/bin/busybox", "cat", "/mnt/log"]
            await until(lambda: lines(run(*enter, *log)) > 20, "lines are written")
            before = lines(run(*enter, *log))
            taken = await bench.cloud.snapshot_disk(disk, DiskRequest("d-at-1", size_mib))
            after = lines(run(*enter, *log))
            await until(lambda: lines(run(*enter, *log)) > after + 20, "lines are written after it too")
        finally:
            writer.kill()
            writer.wait()
    copy = bench.file(taken)
    if filesystem == "ext4":
        run("e2fsck", "-fn", str(copy))
    with mounted(copy, tmp_path / "looked-at") as place:
        found = (place / "log").read_text().splitlines()
    if filesystem == "xfs":  # its checker wants the log of a file system that stood still to be taken in by a mount
        run("xfs_repair", "-n", str(copy))
    assert before <= len(found) <= after
    assert found == [f"line {number}" for number in range(1, len(found) + 1)]


async def test_a_snapshot_that_does_not_fit_leaves_no_part_of_it(tmp_path: Path) -> None:
    """It is said, the space is there again for those who write, and it can be dropped."""
    directory = tmp_path / "small"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(directory))
    try:
        store = LocalStore(directory)
        plugs = DockerPlugs(store, _no_process)
        disk = await store.make_disk(DiskRequest("d", 16), 1.0)
        store.disk_file(disk).write_bytes(bytes(range(1, 256)) * (16 * 1024 * 1024 // 255))
        snapshots = DockerSnapshots(store, plugs, _no_process)
        with pytest.raises(CloudUnavailable, match="No space left"):
            await snapshots.take(disk, DiskRequest("d-at-1", 16))
        assert store.disk_file(store.disk_cid("d-at-1")).stat().st_blocks == 0
        await snapshots.drop("d-at-1")
        assert [record.cid for record in store.disks()] == [disk]
    finally:
        run("umount", str(directory))


async def _no_process(vm: VmCid) -> int:
    return 0


async def test_whoever_dies_leaves_nothing_standing_still(tmp_path: Path) -> None:
    """SIGKILL of the process that made a file system stand still: it goes on at once."""
    with formatted(tmp_path) as place:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(place)], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"stands still\n"
        writing = subprocess.Popen(["/bin/sh", "-c", f"echo 1 > {place}/file && sync {place}/file"])
        assert writing.poll() is None
        holder.kill()
        holder.wait()
        assert writing.wait(SECONDS) == 0


async def test_a_file_system_stands_still_no_longer_than_it_may(tmp_path: Path) -> None:
    """After its time it goes on while whoever stopped it still works; that is told, so nothing is made of the copy."""
    with formatted(tmp_path) as place:

        def write() -> None:
            with standing_still(place, 0.5):
                (place / "file").write_text("waits, and is not refused")

        with pytest.raises(CloudUnavailable, match="did not stand still"):
            await asyncio.to_thread(write)
        assert (place / "file").read_text() == "waits, and is not refused"


async def test_what_stands_still_already_is_left_alone(tmp_path: Path) -> None:
    """Another's doing: refused, and not ended by us."""
    with formatted(tmp_path) as place:
        run("fsfreeze", "--freeze", str(place))
        try:
            refused = pytest.raises(CloudUnavailable, match="cannot be made to stand still")
            with refused, standing_still(place, 5.0):
                pytest.fail("it was stopped twice")
        finally:
            assert subprocess.run(["fsfreeze", "--unfreeze", str(place)], check=False).returncode == 0


def test_a_copy_is_renewed(tmp_path: Path) -> None:
    """Whatever the copy held before: equal, with holes where the source has them."""
    source, target = tmp_path / "source", tmp_path / "target"
    mib = 1024 * 1024
    with source.open("wb") as file:
        file.truncate(12 * mib)
        file.seek(3 * mib + 5)
        file.write(b"some")
        file.seek(9 * mib)
        file.write(bytes(range(256)) * 8192)
    target.write_bytes(b"x" * (5 * mib))
    file_copies.renew(source, target, lambda: None)
    assert target.read_bytes() == source.read_bytes()
    empty = tmp_path / "empty"
    empty.touch()
    file_copies.renew(source, empty, lambda: None)
    assert empty.read_bytes() == source.read_bytes()
    assert empty.stat().st_blocks * 512 < 4 * mib


@contextmanager
def in_vm(bench: DockerBench, vm: VmCid, device: str) -> Iterator[list[str]]:
    """The disk mounted as the VM's agent would, in the VM's own mount namespace; the words that lead there."""
    pid = bench.first_process(vm)
    enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt"]
    run(*enter, "/bin/busybox", "mkdir", "-p", "/mnt")
    run(*enter, "/bin/busybox", "mount", device, "/mnt")
    try:
        yield enter
    finally:
        run(*enter, "/bin/busybox", "umount", "/mnt")


@contextmanager
def formatted(directory: Path) -> Iterator[Path]:
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_MIB * 1024 * 1024)
    run("mkfs.ext4", "-q", str(image))
    with mounted(image, directory / "mounted") as place:
        yield place


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    run("mount", "-o", "loop,nouuid" if is_xfs(image) else "loop", str(image), str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


def is_xfs(image: Path) -> bool:
    with image.open("rb") as file:
        return file.read(4) == b"XFSB"


def lines(text: str) -> int:
    return text.count("\n")


def run(*command: str) -> str:
    program = shutil.which(command[0]) or command[0]
    done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout} {done.stderr}"
    return done.stdout


async def until(holds: Callable[[], bool], what: str) -> None:
    await clouds.until(holds, SECONDS, what)
