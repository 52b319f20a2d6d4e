"""A disk of a container VM as it was at one moment, as a disk of its own: a copy of its file.

Laws:
- A file system that is mounted stands still while its copy is completed, and goes on after `STILL_SECONDS` at the
  latest, whatever becomes of this process (still_filesystem.py). Where the host's file system shares blocks (xfs,
  btrfs) that is a moment; elsewhere the disk is copied while it is written to, then brought up to date standing still.
- One that is not mounted is copied as it is; when it was written to meanwhile, that is no snapshot, and is begun anew.
- The new disk's record says that it is being made until all of it is in its file and on this machine's disk.

Does not know: why, how long a snapshot is kept (healthmonitor/core/snapshots.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from healthmonitor.clouds import file_copies, loop_devices
from healthmonitor.clouds.cloud import CloudUnavailable, DiskRequest
from healthmonitor.clouds.local_disks import FOREIGN, LOCK_SECONDS, Plugs, held
from healthmonitor.clouds.local_store import MIB, DiskRecord, LocalStore, Stage
from healthmonitor.clouds.still_filesystem import mount_point, standing_still
from protocol.ids import DiskCid, VmCid

T = TypeVar("T")

STILL_SECONDS = 10.0
"""For so long, at most, a database's writes wait."""


class Stopped(Exception):
    """Nobody waits for this copy any more."""


class DockerSnapshots:
    def __init__(self, store: LocalStore, plugs: Plugs, pid_of: Callable[[VmCid], Awaitable[int]]) -> None:
        self._store = store
        self._plugs = plugs
        self._pid_of = pid_of

    async def take(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        """As `Snapshotting.snapshot_disk`."""
        cid = self._store.disk_cid(request.key)
        async with self._store.locked(cid, LOCK_SECONDS):
            known = self._store.read_disk(cid)
            if known is not None and known.stage is Stage.CREATED:
                self._store.require_disk(cid)
                return cid
            size_mib = self._store.require_disk(disk).size_mib
            record = DiskRecord(cid, request.key, Stage.CREATING, size_mib, dict(request.tags))
            await self._store.write_disk(record)
            target = self._store.disk_file(cid)
            try:
                await self._copy(disk, target, size_mib)
            except OSError as error:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(_empty, target, size_mib)  # where it did not fit nothing else would either
                raise CloudUnavailable(f"snapshot of {disk}: {error.strerror or error}; begun anew") from None
            size_mib = target.stat().st_size // MIB
            await self._store.write_disk(dataclasses.replace(record, stage=Stage.CREATED, size_mib=size_mib))
        return cid

    async def drop(self, key: str) -> None:
        """As `Snapshotting.drop_snapshot`. Whoever makes one holds its lock."""
        cid = self._store.disk_cid(key)
        async with self._store.locked(cid, LOCK_SECONDS):
            if self._store.read_disk(cid) is None:
                return
            holders = await self._plugs.holders(cid)
            if holders:
                raise held(cid, holders)
            await self._plugs.let_go(cid)
            await self._store.remove_disk(cid)

    async def _copy(self, disk: DiskCid, target: Path, size_mib: int) -> None:
        source = self._store.disk_file(disk)
        await asyncio.to_thread(_empty, target, size_mib)
        shares = await asyncio.to_thread(file_copies.can_share, target.parent)
        if not shares:
            await _in_thread(lambda check: file_copies.renew(source, target, check))
        async with self._store.locked(disk, LOCK_SECONDS):  # nobody gets or loses it meanwhile
            place = await self._mounted_at(disk)
            await _in_thread(lambda check: _complete(source, target, place, shares, check))
        await asyncio.to_thread(file_copies.sync, target)

    async def _mounted_at(self, disk: DiskCid) -> Path | None:
        holders = await self._plugs.holders(disk)
        if FOREIGN in holders:
            raise held(disk, holders)
        devices = await loop_devices.of_file(self._store.disk_file(disk))
        for vm in holders:
            pid = await self._pid_of(vm)
            for device in devices:
                place = await asyncio.to_thread(mount_point, pid, device) if pid else None
                if place is not None:
                    return place
        return None


def _complete(source: Path, target: Path, place: Path | None, shares: bool, check: Callable[[], None]) -> None:
    if place is None:
        before = source.stat().st_mtime_ns
        _copy(source, target, shares, check)
        if source.stat().st_mtime_ns != before:
            raise CloudUnavailable(f"{source.stem} was written to while it was copied; begun anew")
        return
    with standing_still(place, STILL_SECONDS) as ends_at:

        def in_time() -> None:
            check()
            if time.monotonic() > ends_at:
                raise CloudUnavailable(
                    f"{source.stem} cannot be compared with its copy within the {STILL_SECONDS:g} s for which it may"
                    f" stand still: keep {source.parent} on a file system that shares blocks (xfs, btrfs); begun anew"
                )

        _copy(source, target, shares, in_time)


def _copy(source: Path, target: Path, shares: bool, check: Callable[[], None]) -> None:
    if not (shares and file_copies.share(source, target)):
        file_copies.renew(source, target, check)


async def _in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """`work` in a thread, which is told when nobody waits for it any more, and waited for: nothing writes to the files
    once their locks are given back."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    working = asyncio.ensure_future(asyncio.to_thread(work, check))
    try:
        return await asyncio.shield(working)
    finally:
        stopped.set()
        if not working.done():
            await asyncio.wait([working])
            working.exception()  # looked at: nobody is left to be told


def _empty(file: Path, size_mib: int) -> None:
    """Nothing of an earlier try stays in it."""
    with file.open("wb") as opened:
        file.chmod(0o600)
        opened.truncate(size_mib * MIB)
