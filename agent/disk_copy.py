"""All that is on one disk of this VM onto another, and the proof that it arrived.

Laws:
- The disk that is copied from is unmounted from its containers, stays so until it is mounted by command, and is
  mounted for the copy at a place of its own, read-only: nothing writes to it from the first byte until whoever asked
  decides.
- The disk that is copied to bears our mark as an unfinished copy before the first byte, and as a finished one only
  after every file was read back from both and compared; in neither state is it mounted as anybody's disk.
- Every step may be repeated, also after the agent or the VM was killed in the middle: what arrived is not sent again.

A blank disk is filled by `cp -a`, which is twice as fast; rsync does it where a copy was begun before, and so makes
right what another left, and compares in either case. Both keep holes, hard links, owners by number, ACLs and extended
attributes.
Does not know: why (the monitor).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from agent import disk_probe, subprocesses
from agent.core import disk_safety, mount_table
from agent.core.copy_progress import CopyProgress, Phase
from agent.core.disk_safety import Marker
from agent.disk_keeper import UnknownDisk
from agent.disk_tools import MARKER, DiskBusy, DiskRefused, DiskTools, read_marker, write_marker
from agent.lone_thread import LoneThread
from protocol.ids import DiskCid, InstanceId
from protocol.spec import DiskSpec

log = structlog.get_logger(__name__)

DIRECTORY = "copying"
"""Beside the directory of the disks; see `root`."""
MOUNT_SECONDS = 60.0
COPY_SECONDS = 7 * 86400.0
LOOK_SECONDS = 1.0
RELEASE_TRIES = 20
RELEASE_PAUSE_SECONDS = 0.1
WAIT_SECONDS = 30.0
ROOM_SHARE = 0.01
"""Of what is copied, kept free beyond it: directories may come out larger."""
DIFFERENCES_SHOWN = 5
LEFT_OUT = ("/.resurgam", "/lost+found")
"""Each file system has its own."""
RSYNC = (
    *("rsync", "-aHAXS", "--numeric-ids", "--delete", "--one-file-system", "--whole-file"),
    "--modify-window=-1",  # times to the nanosecond
    # rsync's own rule for root, and what XFS shows of ACLs beside the ACLs, which are copied as such.
    *("--filter=-x system.*", "--filter=-x trusted.SGI_ACL_*"),
)
CP = ("cp", "-a", "--one-file-system")
ROOT_ONLY = ("rsync", "-dptgoAX", "--numeric-ids", "--modify-window=-1", "--exclude=/*", *RSYNC[-2:])
"""The attributes of the disk's own top directory, which is there before anything is copied."""
NAMES_MAX_BYTES = 64 * 1024
"""Of what lies at the top of a disk, as arguments of one `cp`, so that it sees every hard link; where there is more,
rsync does it all."""
SUMMED_BY = "xxh128"
"""The fastest that rsync has; a copy is compared against accidents, not against attackers."""


class Keeper(Protocol):
    async def unmount(self, cid: DiskCid) -> bool: ...

    def known(self, cid: DiskCid) -> DiskSpec | None: ...

    def mounted_cids(self) -> list[DiskCid]: ...


@dataclass(frozen=True, slots=True)
class Use:
    """Of a mounted file system, in bytes and inodes."""

    used_bytes: int
    free_bytes: int
    used_inodes: int
    free_inodes: int


class DiskCopy:
    """One at a time: two would only slow each other down."""

    def __init__(self, tools: DiskTools, keeper: Keeper, root: Path) -> None:
        """`root`: where both disks are mounted for the copy, apart from where containers see disks."""
        self._tools = tools
        self._keeper = keeper
        self._root = root
        self._lock = asyncio.Lock()
        self._progress: CopyProgress | None = None

    def progress(self) -> dict[str, Any] | None:
        return None if self._progress is None else self._progress.plain()

    async def use(self, cid: DiskCid) -> dict[str, Any]:
        """Bytes and inodes of a disk that is mounted for its containers; {} when it is not. OSError, TimeoutError."""
        disk = self._keeper.known(cid)
        if disk is None or cid not in self._keeper.mounted_cids():
            return {}
        directory = self._tools.directory(disk)
        return asdict(await LoneThread("disk-use").call(lambda: _use(directory), MOUNT_SECONDS))

    async def copy(self, source: DiskSpec, target: DiskSpec, instance: InstanceId) -> dict[str, Any]:
        """What was copied. DiskBusy, DiskRefused, DiskMissing, CommandFailed, OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with self._lock:
            with contextlib.suppress(UnknownDisk):  # then it is mounted nowhere, and nothing here wants it mounted
                await self._keeper.unmount(source.cid)
            await self.release(source.cid, target.cid)
            thread = LoneThread("disk-copy")
            await self._prepare(target, thread)
            async with self._mounted(source, "ro", thread) as source_at:
                await self._check_marker(source, source_at, instance, thread)
                used = await thread.call(lambda: _use(source_at), MOUNT_SECONDS)
                marker = Marker(instance, source.name, target.cid, copy_of=source.cid)
                try:
                    async with self._mounted(target, "rw", thread) as target_at:
                        await self._mark_unfinished(marker, target_at, thread)
                        _check_room(used, await thread.call(lambda: _use(target_at), MOUNT_SECONDS), source, target)
                        await self._fill(source_at, target_at, used)
                    # Mounted anew, so that what is compared is what is on the disk, and nothing in memory.
                    async with self._mounted(target, "rw", thread) as target_at:
                        await self._compare(source_at, target_at, used)
                        finished = replace(marker, finished=True)
                        await thread.call(lambda: write_marker(Path(target_at, MARKER), finished), MOUNT_SECONDS)
                finally:
                    self._progress = None
        seconds = loop.time() - began
        log.info("disk.copied", source=source.cid, target=target.cid, bytes=used.used_bytes, seconds=round(seconds, 1))
        return {"used_bytes": used.used_bytes, "inodes": used.used_inodes, "seconds": seconds}

    async def release(self, *cids: DiskCid) -> None:
        """Unmounts what a copy that was cut short has left mounted, and ends its cp or rsync if that still runs: an
        agent that was killed leaves it. DiskBusy when somebody else holds it."""
        for cid in cids:
            place = self._place(cid)
            tries = 0
            while mount_table.mounted_at(disk_probe.mounts(), place) is not None:
                finished = await subprocesses.run(["umount", place], MOUNT_SECONDS, ok=None)
                if finished.status == 0:
                    continue
                tries += 1
                left = await asyncio.to_thread(_copying_at, place)
                if tries > RELEASE_TRIES or not left:
                    raise DiskBusy(f"{cid} is still in use where it was mounted for a copy: {finished.said}")
                log.warning("disk_copy.leftover_ended", cid=cid, processes=left)
                for process in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                await asyncio.sleep(RELEASE_PAUSE_SECONDS)
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _place(self, cid: DiskCid) -> str:
        return str(self._root / cid)

    @asynccontextmanager
    async def _mounted(self, disk: DiskSpec, how: str, thread: LoneThread) -> AsyncIterator[str]:
        """At its place for the copy."""
        device = await self._tools.find_device(disk, WAIT_SECONDS)
        if how == "ro":
            await self._tools.prepare(disk, device, thread)
        place = self._place(disk.cid)
        os.makedirs(place, mode=0o700, exist_ok=True)
        await subprocesses.run(["mount", "-t", disk.filesystem, "-o", how, device, place], MOUNT_SECONDS)
        try:
            mounted = mount_table.mounted_at(disk_probe.mounts(), place)
            if mounted is None or mounted.device != disk_probe.device_number(device):
                raise DiskRefused(f"mount succeeded, but {place} does not show {device}")
            yield place
        finally:
            await self.release(disk.cid)

    async def _prepare(self, target: DiskSpec, thread: LoneThread) -> None:
        """Formatted when it is blank; what an earlier try made is checked."""
        device = await self._tools.find_device(target, WAIT_SECONDS)
        await self._tools.prepare(target, device, thread)

    async def _check_marker(self, source: DiskSpec, source_at: str, instance: InstanceId, thread: LoneThread) -> None:
        refusal = disk_safety.decide_marker(await read_marker(thread, Path(source_at, MARKER)), instance, source)
        if refusal is not None:
            raise DiskRefused(f"{source.cid} {refusal.reason.value}: {refusal.detail}")

    async def _mark_unfinished(self, marker: Marker, target_at: str, thread: LoneThread) -> None:
        path = Path(target_at, MARKER)
        found = await read_marker(thread, path)
        empty = await thread.call(lambda: not (set(os.listdir(target_at)) - {"lost+found"}), MOUNT_SECONDS)
        refusal = disk_safety.decide_copy_target(found, empty, marker.instance, marker.disk, marker.copy_of)
        if refusal:
            raise DiskRefused(f"{marker.cid} is not copied to: {refusal}")
        await thread.call(lambda: write_marker(path, marker), MOUNT_SECONDS)

    async def _fill(self, source_at: str, target_at: str, used: Use) -> None:
        base = os.statvfs(target_at)
        before = (base.f_blocks - base.f_bfree) * base.f_frsize

        def done() -> int:
            now = os.statvfs(target_at)
            return max(0, (now.f_blocks - now.f_bfree) * now.f_frsize - before)

        if (names := await asyncio.to_thread(_to_fill_with, source_at, target_at)) is not None:
            await self._run([*CP, "-t", f"{target_at}/", "--", *names], Phase.COPYING, used.used_bytes, done)
            argv = [*ROOT_ONLY, f"{source_at}/", f"{target_at}/"]
        else:
            argv = [*RSYNC, "--checksum-choice=none", *_left_out(), f"{source_at}/", f"{target_at}/"]
        await self._run(argv, Phase.COPYING, used.used_bytes, done)

    async def _compare(self, source_at: str, target_at: str, used: Use) -> None:
        """Every byte of both, every attribute."""
        argv = [*RSYNC, "--dry-run", "--checksum", f"--checksum-choice={SUMMED_BY}", "--itemize-changes", *_left_out()]
        said = await self._run([*argv, f"{source_at}/", f"{target_at}/"], Phase.COMPARING, 2 * used.used_bytes, None)
        differing = [line for line in said.splitlines() if line]
        if differing:
            shown = "; ".join(differing[:DIFFERENCES_SHOWN])
            raise DiskRefused(f"the copy differs from the disk in {len(differing)} files: {shown}")

    async def _run(self, argv: list[str], phase: Phase, total: int, done: Callable[[], int] | None) -> str:
        """rsync's output. While it runs, how far it is: by what the target holds, or else by what rsync has read."""
        loop = asyncio.get_running_loop()
        self._progress = CopyProgress(phase, total, loop.time())
        running = asyncio.create_task(subprocesses.run(argv, COPY_SECONDS))
        try:
            while not running.done():
                await asyncio.wait({running}, timeout=LOOK_SECONDS)
                count = await asyncio.to_thread(done or (lambda: _read_by_rsync(argv)))
                self._progress = self._progress.at(loop.time(), count)
            return running.result().stdout
        finally:
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


def _to_fill_with(source_at: str, target_at: str) -> list[str] | None:
    """What is at the top of the disk; None unless all of it is to go, at once, to a disk that has nothing yet."""
    own = {path.strip("/") for path in LEFT_OUT}
    if set(os.listdir(target_at)) - own:
        return None
    names = [f"{source_at}/{name}" for name in sorted(os.listdir(source_at)) if name not in own]
    return names if names and sum(len(os.fsencode(name)) + 1 for name in names) <= NAMES_MAX_BYTES else None


def _left_out() -> list[str]:
    return [f"--exclude={path}" for path in LEFT_OUT]


def _use(directory: str) -> Use:
    stat = os.statvfs(directory)
    return Use(
        used_bytes=(stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        free_bytes=stat.f_bavail * stat.f_frsize,
        used_inodes=stat.f_files - stat.f_ffree,
        free_inodes=stat.f_favail,
    )


def _check_room(used: Use, there: Use, source: DiskSpec, target: DiskSpec) -> None:
    have_bytes = there.free_bytes + there.used_bytes  # what an earlier try copied is there already
    if used.used_bytes * (1 + ROOM_SHARE) > have_bytes:
        mib = 1024 * 1024
        raise DiskRefused(
            f"{used.used_bytes // mib} MiB on {source.cid} do not fit on {target.cid} with {have_bytes // mib} MiB"
        )
    if used.used_inodes > there.free_inodes + there.used_inodes:
        raise DiskRefused(f"{used.used_inodes} files on {source.cid} are more than {target.cid} has inodes for")


def _copying_at(place: str, programs: tuple[bytes, ...] = (b"cp", b"rsync")) -> list[int]:
    """Processes that copy to or from this directory of ours."""
    start = os.fsencode(f"{place}/")
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                line = (process / "cmdline").read_bytes().split(b"\0")
                if line[0] in programs and any(word.startswith(start) for word in line):
                    found.append(int(process.name))
    return found


def _read_by_rsync(argv: list[str]) -> int:
    """Bytes that the processes of this very command have read so far."""
    count = 0
    for process in _copying_at(argv[-1].rstrip("/"), (b"rsync",)):
        with contextlib.suppress(OSError, ValueError, KeyError):  # it ended meanwhile
            values = dict(part.split(": ") for part in Path(f"/proc/{process}/io").read_text().splitlines())
            count += int(values["rchar"])
    return count
