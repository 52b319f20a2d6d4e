"""A disk of a running VM as it was at one moment, as a disk of its own: QEMU's own backup job.

Laws:
- The moment is when the job begins; what the guest writes later is kept out of it, and the guest goes on meanwhile.
- The new disk's record says that it is being made until all of it is in its file and on this machine's disk. One that
  was begun and not finished is begun anew, with an empty file.
- QEMU answers one connection at a time, so none is held while the job runs.

Does not know: why, how long a snapshot is kept (healthmonitor/core/snapshots.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path
from typing import Any

import structlog

from healthmonitor.clouds import qemu_process, qmp
from healthmonitor.clouds.cloud import CloudUnavailable, DiskRequest
from healthmonitor.clouds.local_disks import FOREIGN, LOCK_SECONDS, held
from healthmonitor.clouds.local_store import MIB, DiskRecord, LocalStore, Stage
from healthmonitor.clouds.qemu_disks import QemuPlugs, disk_node, end_snapshots, has_node, snapshot_job
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET
from protocol.ids import DiskCid, VmCid

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
BYTES_PER_SECOND = 256 * MIB
"""What a backup may take of the host's disks: the guest writes to them too."""


class QemuSnapshots:
    def __init__(self, store: LocalStore, plugs: QemuPlugs) -> None:
        self._store = store
        self._plugs = plugs

    async def take(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        """As `Snapshotting.snapshot_disk`. Waits for the job; whoever calls again waits for the same one."""
        cid = self._store.disk_cid(request.key)
        async with self._store.locked(cid, LOCK_SECONDS):
            known = self._store.read_disk(cid)
            if known is not None and known.stage is Stage.CREATED:
                self._store.require_disk(cid)
                return cid
            size_mib = self._store.require_disk(disk).size_mib
            record = DiskRecord(cid, request.key, Stage.CREATING, size_mib, dict(request.tags))
            await self._store.write_disk(record)
            vm = await self._holder(disk)
            while not await self._step(vm, disk, record):  # noqa: ASYNC110 QEMU's events need a connection, see above
                await asyncio.sleep(POLL_SECONDS)
            await asyncio.to_thread(_sync, self._store.disk_file(cid))
            await self._store.write_disk(dataclasses.replace(record, stage=Stage.CREATED))
        return cid

    async def drop(self, key: str) -> None:
        """As `Snapshotting.drop_snapshot`. QEMU's job is ended before its file goes."""
        cid = self._store.disk_cid(key)
        async with self._store.locked(cid, LOCK_SECONDS):
            if self._store.read_disk(cid) is None:
                return
            for vm in [record.cid for record in self._store.vms()]:
                if qemu_process.is_held(self._store.vm_directory(vm) / "running.lock"):
                    await self._end(vm, cid)
            holders = await self._plugs.holders(cid)
            if holders:
                raise held(cid, holders)
            await self._store.remove_disk(cid)

    async def _end(self, vm: VmCid, snapshot: DiskCid) -> None:
        """What does not answer is found among the holders, where it has to do with this snapshot."""
        try:
            async with qmp.connect(self._store.vm_directory(vm) / CONTROL_SOCKET) as machine:
                await end_snapshots(machine, lambda cid, source: cid == snapshot)
        except qmp.QmpRefused as error:
            raise CloudUnavailable(f"ending snapshot {snapshot} in {vm}: {error}; tried again") from None
        except qmp.QmpUnanswered as error:
            log.warning("snapshot.not_ended", vm=vm, snapshot=snapshot, reason=str(error))

    async def _holder(self, disk: DiskCid) -> VmCid:
        holders = await self._plugs.holders(disk)
        if FOREIGN in holders:
            raise held(disk, holders)
        if len(holders) != 1:
            raise CloudUnavailable(f"{disk} is in no VM just now; its snapshot is taken when it is")
        (vm,) = holders
        return vm

    async def _step(self, vm: VmCid, disk: DiskCid, record: DiskRecord) -> bool:
        """Begins the job, or looks at it. True once all is in the file, and QEMU has let go of that."""
        job, node = snapshot_job(record.cid, disk), disk_node(record.cid)
        try:
            async with qmp.connect(self._store.vm_directory(vm) / CONTROL_SOCKET) as machine:
                found = await _job(machine, job)
                if found is None:
                    await self._begin(machine, job, disk, record)
                    return False
                if found["status"] != "concluded":
                    return False
                await machine.execute("job-dismiss", id=job)
                await machine.execute("blockdev-del", node_name=node)
        except qmp.QmpRefused as error:
            raise CloudUnavailable(f"snapshot of {disk} in {vm}: {error}; begun anew") from None
        except qmp.QmpUnanswered as error:
            raise CloudUnavailable(f"snapshot of {disk} in {vm}: {error}; looked at again") from None
        if found.get("error"):
            raise CloudUnavailable(f"snapshot of {disk} in {vm} failed: {found['error']}; begun anew")
        return True

    async def _begin(self, machine: qmp.Qmp, job: str, disk: DiskCid, record: DiskRecord) -> None:
        node, file = disk_node(record.cid), self._store.disk_file(record.cid)
        if await has_node(machine, record.cid):  # of a job that was dismissed, its record not yet written
            await machine.execute("blockdev-del", node_name=node)
        await asyncio.to_thread(_empty, file, record.size_mib)
        await machine.execute(
            "blockdev-add",
            driver="raw",
            node_name=node,
            discard="unmap",
            detect_zeroes="unmap",
            file={"driver": "file", "filename": str(file), "locking": "on", "discard": "unmap"},
        )
        await machine.execute(
            "blockdev-backup",
            job_id=job,
            device=disk_node(disk),
            target=node,
            sync="full",
            speed=BYTES_PER_SECOND,
            auto_dismiss=False,
        )


async def _job(machine: qmp.Qmp, job: str) -> dict[str, Any] | None:
    jobs = await machine.execute("query-jobs")
    return next((each for each in jobs if each["id"] == job), None)


def _empty(file: Path, size_mib: int) -> None:
    """Nothing of an earlier try may stay in it: what the job does not write reads as zeros."""
    with file.open("wb") as opened:
        file.chmod(0o600)
        opened.truncate(size_mib * MIB)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
