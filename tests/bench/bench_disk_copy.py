"""1 GiB copied from one disk to another as a migration does it, against `cp -a` between the same disks in the same run.

    python -m tests.bench.bench_disk_copy --rounds 3

Both are loop devices, made anew for each round, the caches dropped before. Each is counted from a blank disk until what
was copied is on it: formatted, mounted, copied, unmounted. What the migration does after that, reading both disks and
comparing every byte, is printed beside it: `cp` does nothing of the kind. That holes, hard links, owners, ACLs,
extended attributes and times were kept is looked at in each round, for both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.core.copy_progress import Phase
from agent.disk_copy import DiskCopy
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import MAKE, DiskTools
from agent.store import Store
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec

ALLOWED = 0.70
MIB = 1024 * 1024
DISK_MIB = 1536
LARGE_FILES, LARGE_MIB = 12, 64
SMALL_FILES, SMALL_BYTES = 4000, 64 * 1024
HOLE_MIB = 256
INSTANCE = InstanceId("bench/disks/0")
LOOK_SECONDS = 0.005
ANYBODY = 0xFFFFFFFF
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, ANYBODY), (2, 4, 1234), (4, 5, ANYBODY), (16, 5, ANYBODY), (32, 0, ANYBODY))
)
"""system.posix_acl_access: owner rwx, user 1234 r, group r-x, mask r-x, others nothing."""


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds. `compared`: what the migration took after its copy was on the disk."""

    plain: float
    copied: float
    compared: float

    @property
    def ratio(self) -> float:
        """Of the speed of `cp -a`."""
        return self.plain / self.copied


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("loop devices need root")
    with tempfile.TemporaryDirectory(prefix="rsg-copy-", dir="/var/tmp") as directory:
        rounds = asyncio.run(measure(Path(directory), arguments.rounds))
    ratio = statistics.median(each.ratio for each in rounds)
    plain, copied = (statistics.median(values) for values in zip(*((r.plain, r.copied) for r in rounds), strict=True))
    compared = statistics.median(each.compared for each in rounds)
    print(f"  median: cp -a {plain:.2f} s, migration {copied:.2f} s and {compared:.2f} s for comparing every byte")
    within = ratio >= ALLOWED
    print(f"  {ratio:.0%} of the speed of cp -a: {'within' if within else 'LESS THAN'} the {ALLOWED:.0%} asked for")
    return 0 if within else 1


async def measure(directory: Path, count: int) -> list[Round]:
    (directory / "by-id").mkdir()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_disk(directory, "source"))
        await _filled(directory, source)
        rounds = []
        for number in range(count):
            # The first to go finds things as the last left them, so they take turns.
            if number % 2:
                copied, compared = await _migrated(directory, source)
                plain = await _plainly(directory, source)
            else:
                plain = await _plainly(directory, source)
                copied, compared = await _migrated(directory, source)
            rounds.append(Round(plain, copied, compared))
            print(f"  {number + 1}: cp -a {plain:.2f} s, migration {copied:.2f} + {compared:.2f} s", flush=True)
        return rounds


async def _plainly(directory: Path, source: DiskSpec) -> float:
    with _disk(directory, "plain") as target, _mounted(directory, source.device, "ro") as old:
        _drop_caches()
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(_run, *MAKE["ext4"], target.device)
        with _mounted(directory, target.device, "rw") as new:
            await asyncio.to_thread(_run, "cp", "-a", f"{old}/.", f"{new}/")
        seconds = asyncio.get_running_loop().time() - began
        with _mounted(directory, target.device, "ro") as new:
            _same(old, new)
    return seconds


async def _migrated(directory: Path, source: DiskSpec) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    with _disk(directory, "migrated") as target, tempfile.TemporaryDirectory(dir=directory) as state:
        tools = DiskTools(Path(state) / "disks", directory / "by-id")
        keeper = DiskKeeper(tools, Store(Path(state) / "state").document("disks", KnownDisks), lambda mounts: None)
        copies = DiskCopy(tools, keeper, Path(state) / "copying")
        _drop_caches()
        began = loop.time()
        running = asyncio.create_task(copies.copy(source, target, INSTANCE))
        compares_at = began
        while not running.done():
            await asyncio.wait({running}, timeout=LOOK_SECONDS)
            said = copies.progress()
            if compares_at == began and said is not None and said["phase"] == Phase.COMPARING.value:
                compares_at = loop.time()
        await running
        ended = loop.time()
        with _mounted(directory, source.device, "ro") as old, _mounted(directory, target.device, "ro") as new:
            _same(old, new)
    return compares_at - began, ended - compares_at


async def _filled(directory: Path, disk: DiskSpec) -> None:
    """1 GiB in large and in small files, and one of everything that a careless copy loses."""
    chance = random.Random(7)
    await asyncio.to_thread(_run, *MAKE["ext4"], disk.device)
    with _mounted(directory, disk.device, "rw") as place:
        for number in range(LARGE_FILES):
            (place / f"large{number}").write_bytes(chance.randbytes(LARGE_MIB * MIB))
        for number in range(SMALL_FILES):
            inside = place / "small" / str(number % 100)
            inside.mkdir(parents=True, exist_ok=True)
            (inside / str(number)).write_bytes(chance.randbytes(SMALL_BYTES))
        with (place / "hole").open("wb") as file:
            file.seek(HOLE_MIB * MIB)
            file.write(b"end")
        os.link(place / "large0", place / "linked")
        os.symlink("large0", place / "pointing")
        os.chown(place / "large1", 4321, 5432)
        os.setxattr(place / "large1", "user.origin", b"here")
        os.setxattr(place / "large1", "system.posix_acl_access", ACL)
        os.utime(place / "large2", ns=(1_000_000_000_123_456_789, 1_000_000_000_987_654_321))
        used = os.statvfs(place)
        mib = (used.f_blocks - used.f_bfree) * used.f_frsize // MIB
        print(f"  {mib} MiB in {LARGE_FILES} files of {LARGE_MIB} MiB and {SMALL_FILES} of {SMALL_BYTES // 1024} KiB")


def _same(old: Path, new: Path) -> None:
    """Of what is easily lost; that every byte is the same is the migration's own matter. AssertionError."""
    assert (new / "linked").stat().st_ino == (new / "large0").stat().st_ino, "a hard link became a file"
    assert (new / "hole").stat().st_blocks * 512 < MIB, "a hole was filled"
    for name in ("large1", "large2", "hole", "pointing", "small"):
        was, now = (old / name).lstat(), (new / name).lstat()
        for what in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
            if name != "small" or what != "st_size":
                assert getattr(was, what) == getattr(now, what), f"{name}: {what}"
    for key in ("user.origin", "system.posix_acl_access"):
        assert os.getxattr(old / "large1", key) == os.getxattr(new / "large1", key), key
    assert len(os.listdir(old / "small")) == len(os.listdir(new / "small"))


@contextlib.contextmanager
def _disk(directory: Path, name: str) -> Iterator[DiskSpec]:
    image = directory / f"{name}.raw"
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
        os.posix_fallocate(file.fileno(), 0, DISK_MIB * MIB)  # so that no copy pays for the other's blocks
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        yield DiskSpec(DiskName("data"), DiskCid(f"bench-{name}"), device=device, size_mib=DISK_MIB)
    finally:
        _run("losetup", "--detach", device)
        image.unlink()


@contextlib.contextmanager
def _mounted(directory: Path, device: str, how: str) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(dir=directory))
    _run("mount", "-t", "ext4", "-o", how, device, str(place))
    try:
        yield place
    finally:
        _run("umount", str(place))
        place.rmdir()


def _drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
