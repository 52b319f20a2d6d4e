"""What the providers of this machine (qemu, docker) keep on disk: a directory for each VM, a file for each disk, a
tombstone for what was.

    <directory>/vms/<vm_cid>/     vm.json, fence.json, and what else the provider has of it
    <directory>/disks/            <disk_cid>.raw, <disk_cid>.json
    <directory>/tombstones/       <vm_cid>.json: that a VM was ended, and the proof
    <directory>/locks/            one lock for each VM, disk and template, so that two monitors do not meet in one

Law: a record is on disk before what it speaks of is done, and is replaced as a whole. A vm_cid is never used twice,
so a proof that was once given for it stays true.

Does not know: how VMs are run.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from healthmonitor.clouds.cloud import CloudRefused, CloudUnavailable, DiskNotFound, DiskRequest
from protocol import codec
from protocol.ids import DiskCid, VmCid

LOCK_POLL_SECONDS = 0.05
TOMBSTONES_MAX = 10_000
"""The oldest are forgotten beyond this number; fencing such a VM again is then `Unfenced`."""
MIB = 1024 * 1024
T = TypeVar("T")


class Stage(Enum):
    CREATING = "creating"  # the intent is written; anything from nothing to everything may have been done
    CREATED = "created"


@dataclass(frozen=True, slots=True)
class VmRecord:
    cid: VmCid
    key: str
    name: str
    stemcell: str
    cpus: int
    memory_mib: int
    stage: Stage = Stage.CREATING
    tags: Mapping[str, str] = field(default_factory=dict)
    forward_ports: tuple[str, ...] = ()
    attachments: tuple[DiskCid, ...] = ()
    """Written before a disk is attached and after it was detached: what a VM that cannot be asked may hold."""
    accel: str = ""
    template: str = ""  # the warm template's key; "": booted cold


@dataclass(frozen=True, slots=True)
class DiskRecord:
    cid: DiskCid
    key: str
    stage: Stage
    size_mib: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tombstone:
    cid: VmCid
    key: str
    evidence: str


class LocalStore:
    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._root = directory.resolve()  # processes are known by their paths, so each has only one
        for name in ("vms", "disks", "tombstones", "locks", "templates"):
            (self._root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def templates(self) -> Path:
        """Resolved, because several clouds may share one directory by a link, and its processes are known by path."""
        return (self._root / "templates").resolve()

    def vm_directory(self, vm: VmCid) -> Path:
        return self._root / "vms" / vm

    def disk_file(self, disk: DiskCid) -> Path:
        return self._root / "disks" / f"{disk}.raw"

    @asynccontextmanager
    async def locked(self, name: str, timeout_seconds: float, directory: Path | None = None) -> AsyncIterator[None]:
        """Only one holder at a time, of whatever process; ended with the process. CloudUnavailable when not in time."""
        place = directory or self._root / "locks"
        descriptor = os.open(place / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = asyncio.get_running_loop().time() + timeout_seconds
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if asyncio.get_running_loop().time() >= deadline:
                        raise CloudUnavailable(
                            f"{name} is busy with another change since {timeout_seconds:g} s; try again"
                        ) from None
                await asyncio.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def read_vm(self, vm: VmCid) -> VmRecord | None:
        return _read(VmRecord, self.vm_directory(vm) / "vm.json")

    async def write_vm(self, record: VmRecord) -> None:
        directory = self.vm_directory(record.cid)
        directory.mkdir(exist_ok=True, mode=0o700)
        await asyncio.to_thread(write_durably, directory / "vm.json", codec.to_json(record))

    def vms(self) -> list[VmRecord]:
        found = (_read(VmRecord, path) for path in sorted((self._root / "vms").glob("*/vm.json")))
        return [record for record in found if record is not None]

    def vm_of_key(self, key: str) -> VmRecord | None:
        return next((record for record in self.vms() if record.key == key), None)

    def new_vm_cid(self, key: str) -> VmCid:
        """Follows from the key alone, and from how often a VM with this key was made and deleted before."""
        number = 0
        while True:
            cid = VmCid("vm-" + _digest(key if number == 0 else f"{key}#{number}"))
            if self.read_tombstone(cid) is None and not self.vm_directory(cid).exists():
                return cid
            number += 1

    async def write_proof(self, vm: VmCid, evidence: str) -> None:
        record = self.read_vm(vm)
        proof = Tombstone(vm, record.key if record else "", evidence)
        await asyncio.to_thread(write_durably, self.vm_directory(vm) / "fence.json", codec.to_json(proof))

    def read_proof(self, vm: VmCid) -> Tombstone | None:
        """The proof given before, also of a VM that was deleted since."""
        return _read(Tombstone, self.vm_directory(vm) / "fence.json") or self.read_tombstone(vm)

    def read_tombstone(self, vm: VmCid) -> Tombstone | None:
        return _read(Tombstone, self._root / "tombstones" / f"{vm}.json")

    async def bury_vm(self, proof: Tombstone) -> None:
        """The tombstone first, then the directory: a crash in between leaves what a repetition clears away."""
        await asyncio.to_thread(self._bury, proof)

    def _bury(self, proof: Tombstone) -> None:
        write_durably(self._root / "tombstones" / f"{proof.cid}.json", codec.to_json(proof))
        shutil.rmtree(self.vm_directory(proof.cid), ignore_errors=False)
        tombstones = sorted((self._root / "tombstones").glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in tombstones[:-TOMBSTONES_MAX]:
            path.unlink(missing_ok=True)
            (self._root / "locks" / f"{path.stem}.lock").unlink(missing_ok=True)

    def disk_cid(self, key: str) -> DiskCid:
        return DiskCid("d-" + _digest(key))

    def read_disk(self, disk: DiskCid) -> DiskRecord | None:
        return _read(DiskRecord, self._root / "disks" / f"{disk}.json")

    async def write_disk(self, record: DiskRecord) -> None:
        path = self._root / "disks" / f"{record.cid}.json"
        await asyncio.to_thread(write_durably, path, codec.to_json(record))

    def disks(self) -> list[DiskRecord]:
        found = (_read(DiskRecord, path) for path in sorted((self._root / "disks").glob("*.json")))
        return [record for record in found if record is not None]

    async def make_disk(self, request: DiskRequest, timeout_seconds: float) -> DiskCid:
        """An empty sparse file, made unless it was; DiskNotFound when it was made once and is gone."""
        if request.size_mib <= 0:
            raise CloudRefused(f"a disk of {request.size_mib} MiB cannot be made")
        if request.cloud_properties:
            unknown = ", ".join(sorted(request.cloud_properties))
            raise CloudRefused(f"unknown disk cloud_properties: {unknown}; none are known here")
        cid = self.disk_cid(request.key)
        async with self.locked(cid, timeout_seconds):
            known = self.read_disk(cid)
            if known is not None and known.stage is Stage.CREATED:
                self.require_disk(cid)
                return cid
            record = DiskRecord(cid, request.key, Stage.CREATING, request.size_mib, dict(request.tags))
            await self.write_disk(record)
            file = self.disk_file(cid)
            with file.open("ab") as opened:
                file.chmod(0o600)
                opened.truncate(request.size_mib * MIB)
            await self.write_disk(dataclasses.replace(record, stage=Stage.CREATED))
        return cid

    def require_disk(self, disk: DiskCid) -> DiskRecord:
        """DiskNotFound when there is no record of it, or no file."""
        record = self.read_disk(disk)
        if record is None or record.stage is not Stage.CREATED:
            raise DiskNotFound(f"no disk {disk}")
        if not self.disk_file(disk).exists():
            raise DiskNotFound(f"disk {disk} is in the records, but its file {self.disk_file(disk)} is gone")
        return record

    async def remove_disk(self, disk: DiskCid) -> None:
        """The record last: as long as it is there, the file is ours to remove."""
        self.disk_file(disk).unlink(missing_ok=True)
        (self._root / "disks" / f"{disk}.json").unlink(missing_ok=True)


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replaces `path` as a whole; on disk when this returns."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read(kind: type[T], path: Path) -> T | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return codec.from_json(kind, content)
    except codec.Invalid as error:
        raise CloudUnavailable(f"{path} cannot be read: {error}; restore it or remove the VM by hand") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
