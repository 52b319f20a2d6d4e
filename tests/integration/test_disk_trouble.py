"""What an agent says of a disk that is full, has no inodes left, became read-only or fails, on real loop devices; and
that another disk beside it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent import disk_probe
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import DiskTools
from agent.store import Store
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import DiskCid, DiskName
from protocol.spec import DiskSpec
from tests.support.agent import INSTANCE, make_spec
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")

MIB = 1024 * 1024


@dataclass
class Pair:
    """The disk that is tormented, and one beside it."""

    keeper: DiskKeeper
    image: Path
    directory: Path
    beside: Path

    def report(self, name: str = "data") -> DiskReport:
        return next(report for report in self.keeper.reports() if report.name == name)

    async def until(self, predicate: Callable[[DiskReport], bool], what: str) -> DiskReport:
        await until(lambda: predicate(self.report()), 30, what)
        return self.report()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    (tmp_path / "by-id").mkdir()
    loops, disks = [], []
    for name, size_mib in (("data", 20), ("other", 20)):
        image = tmp_path / f"{name}.raw"
        with image.open("wb") as file:
            file.truncate(size_mib * MIB)
        made = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
        loops.append(made.stdout.strip())
        disks.append(DiskSpec(DiskName(name), DiskCid(f"d-{name}"), device=loops[-1], size_mib=size_mib))
    keeper = DiskKeeper(
        DiskTools(tmp_path / "disks", tmp_path / "by-id"),
        Store(tmp_path / "s").document("disks", KnownDisks),
        lambda _: None,
    )
    keeper.set_wanted(make_spec(disks=tuple(disks)), INSTANCE)
    running = asyncio.create_task(keeper.run())
    try:
        await until(lambda: len(keeper.mounted()) == 2, 30, "both are mounted")
        yield Pair(keeper, tmp_path / "data.raw", tmp_path / "disks/data", tmp_path / "disks/other")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for name in ("data", "other"):
            subprocess.run(["umount", "--lazy", str(tmp_path / "disks" / name)], check=False, capture_output=True)
        for loop in loops:
            subprocess.run(["losetup", "--detach", loop], check=False, capture_output=True)


def fill(directory: Path) -> None:
    with (directory / "filler").open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(MIB))
            file.flush()


def goes_on(pair: Pair) -> bool:
    (pair.beside / "written").write_text("still")
    return pair.report("other").state is DiskState.MOUNTED


async def test_full_and_out_of_inodes_are_told_apart(pair: Pair) -> None:
    """First no space, then no inodes are left: the percentages say which; the disk beside is written all the same."""
    await asyncio.to_thread(fill, pair.directory)
    full = await pair.until(lambda report: report.percent >= 95, "full")
    assert full.inode_percent < 50
    (pair.directory / "filler").unlink()

    def create() -> None:
        with contextlib.suppress(OSError):
            for number in range(100_000):
                (pair.directory / f"file{number}").touch()

    await asyncio.to_thread(create)
    crowded = await pair.until(lambda report: report.inode_percent >= 99, "out of inodes")
    assert crowded.percent < 90
    assert (crowded.state, crowded.errors) == (DiskState.MOUNTED, 0)
    assert goes_on(pair)


async def test_a_disk_that_was_remounted_read_only_is_said_to_be(pair: Pair) -> None:
    """By whoever: it is read from the kernel's own table."""
    subprocess.run(["mount", "-o", "remount,ro", str(pair.directory)], check=True)
    report = await pair.until(lambda report: report.state is DiskState.READ_ONLY, "read-only")
    assert "read-only" in report.detail
    assert goes_on(pair)


async def test_an_error_of_the_file_system_is_seen(pair: Pair) -> None:
    """ext4 notes an error (its own handle for tests) and turns read-only: both are said, the disk beside goes on."""
    device = next(mount.source for mount in disk_probe.mounts() if mount.target == str(pair.directory))
    handle = disk_probe.SYS_FS_EXT4 / Path(device).name / "trigger_fs_error"
    if not os.access(handle, os.W_OK):
        pytest.skip("this machine's /sys cannot be written")
    await asyncio.to_thread(handle.write_text, "torment")
    report = await pair.until(lambda report: report.state is DiskState.READ_ONLY, "it is read-only")
    assert report.errors > 0
    assert goes_on(pair)
