"""A cloud whose VMs are processes of this machine, each the real agent with a pretended Docker Engine
(`tests/support/light_vm.py`), perhaps in a network namespace of its own. It passes the suite that the real providers
pass (`tests/contract/test_cloud.py`); several monitors, each a process of its own, may use one at once.

    vms/<cid>/  record.json, settings.json, started, running.lock (held by the process for life), attached/<disk cid>
    disks/<cid>.json, disks/<cid>.raw (a line for each write: the VM that wrote it), disks/<cid>.content (file system
    and mark)
    proofs/<cid>  what fencing saw        lock: held during each change

Law: off is what the kernel says: nobody holds `running.lock` any more. A disk's file shows who wrote to it in which
order, so that two writers are seen, whatever anybody believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from healthmonitor.clouds.cloud import (
    CloudRefused,
    DiskHeld,
    DiskNotFound,
    DiskRequest,
    DiskSummary,
    FenceProof,
    Power,
    Unfenced,
    VmNotFound,
    VmObservation,
    VmRequest,
    VmSummary,
)
from healthmonitor.core.disk_changes import DiskAbilities
from protocol import codec
from protocol.ids import CloudName, DiskCid, VmCid

REPOSITORY = Path(__file__).resolve().parents[2]
NAMESPACES = "namespaces.json"
"""A file in the directory: names of network namespaces that VMs may use, one each; without it VMs share the host's."""
FENCE_SECONDS = 10.0


class ProcessCloud:
    def __init__(self, directory: Path, name: str = "local") -> None:
        self.disk_abilities = DiskAbilities()
        self._directory = directory
        self._name = CloudName(name)
        for part in ("vms", "disks", "proofs"):
            (directory / part).mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> CloudName:
        return self._name

    async def create_vm(self, request: VmRequest) -> VmCid:
        with self._locked():
            vm = self._vm_of(request.key)
            if vm is None:
                vm = VmCid(f"vm-{os.urandom(6).hex()}")
                home = self._home(vm)
                (home / "attached").mkdir(parents=True)
                (home / "settings.json").write_bytes(codec.to_json(request.settings))
                record = {"key": request.key, "tags": dict(request.tags), "namespace": self._free_namespace()}
                _write(home / "record.json", record)
            self._start_once(vm)
            return vm

    async def find_vm(self, key: str) -> VmCid | None:
        with self._locked():
            return self._vm_of(key)

    async def observe(self, vm: VmCid) -> VmObservation:
        power = self._power(vm)
        return VmObservation(power, f"{self._home(vm)}: {power.value}")

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        proof = self._directory / "proofs" / vm
        if proof.exists():
            return FenceProof(vm, proof.read_text())
        home = self._home(vm)
        if not (home / "record.json").exists():
            return Unfenced(vm, "there is no record of it; look for its process")
        try:
            async with asyncio.timeout(FENCE_SECONDS):
                while _is_held(home / "running.lock"):
                    # Each time: a process that was started a moment ago has no command line to find it by yet.
                    self.signal(vm, signal.SIGKILL)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return Unfenced(vm, "its process does not end")
        proof.write_text(f"its process is gone: nobody holds {home / 'running.lock'}")
        return FenceProof(vm, proof.read_text())

    async def delete_vm(self, vm: VmCid) -> None:
        home = self._home(vm)
        if not home.exists():
            return
        await self.fence(vm)
        with self._locked():
            for disk in list((home / "attached").glob("*")):
                disk.unlink()
            for name in ("record.json", "settings.json", "running.lock"):
                (home / name).unlink(missing_ok=True)

    async def list_vms(self) -> list[VmSummary]:
        with self._locked():
            return [
                VmSummary(VmCid(home.name), record["key"], self._power(VmCid(home.name)), record["tags"])
                for home, record in self._records()
            ]

    async def create_disk(self, request: DiskRequest) -> DiskCid:
        with self._locked():
            disk = DiskCid("d-" + hashlib.sha256(request.key.encode()).hexdigest()[:12])
            if not self._disk(disk).exists():
                self._disk(disk).with_suffix(".raw").touch()
                _write(self._disk(disk), {"key": request.key, "size_mib": request.size_mib, "tags": dict(request.tags)})
            return disk

    async def delete_disk(self, disk: DiskCid) -> None:
        with self._locked():
            if not self._disk(disk).exists():
                return
            if holders := self._holders(disk):
                raise DiskHeld(f"{disk} is attached", holders)
            self._disk(disk).unlink()
            self._disk(disk).with_suffix(".raw").unlink()
            self._disk(disk).with_suffix(".content").unlink(missing_ok=True)

    async def list_disks(self) -> list[DiskSummary]:
        with self._locked():
            found = []
            for path in sorted((self._directory / "disks").glob("*.json")):
                record, disk = _read(path), DiskCid(path.stem)
                found.append(DiskSummary(disk, record["key"], record["size_mib"], self._holders(disk), record["tags"]))
            return found

    async def attach_disk(self, vm: VmCid, disk: DiskCid) -> str:
        with self._locked():
            self._need_disk(disk)
            if not (self._home(vm) / "record.json").exists():
                raise VmNotFound(f"there is no VM {vm}")
            if others := self._holders(disk) - {vm}:
                raise DiskHeld(f"{disk} is attached to {', '.join(sorted(others))}", others)
            (self._home(vm) / "attached" / disk).touch()
            return f"/dev/disk/by-id/process-{disk}"

    async def detach_disk(self, vm: VmCid, disk: DiskCid) -> None:
        with self._locked():
            (self._home(vm) / "attached" / disk).unlink(missing_ok=True)

    async def disk_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        with self._locked():
            self._need_disk(disk)
            return self._holders(disk)

    async def resize_disk(self, disk: DiskCid, size_mib: int) -> None:
        with self._locked():
            self._need_disk(disk)
            record = _read(self._disk(disk))
            if size_mib < record["size_mib"]:
                raise CloudRefused(f"{disk} has {record['size_mib']} MiB; disks do not shrink")
            _write(self._disk(disk), record | {"size_mib": size_mib})

    async def close(self) -> None:
        """VMs go on."""

    # Behind the monitors' backs, for tests.

    def signal(self, vm: VmCid, number: signal.Signals) -> None:
        """To the VM's process, if it runs."""
        for pid in _pids(self._home(vm)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def namespace_of(self, vm: VmCid) -> str:
        return str(_read(self._home(vm) / "record.json")["namespace"])

    def writers(self, disk: DiskCid) -> list[str]:
        """The VMs that wrote to the disk, in order, each once for as long as nobody else wrote between."""
        found: list[str] = []
        for line in self._disk(disk).with_suffix(".raw").read_text().splitlines():
            vm = line.split()[0]
            if not found or found[-1] != vm:
                found.append(vm)
        return found

    def log(self, vm: VmCid) -> str:
        return (self._home(vm) / "log").read_text()

    def _power(self, vm: VmCid) -> Power:
        home = self._home(vm)
        if not (home / "record.json").exists():
            return Power.GONE
        if not _is_held(home / "running.lock"):
            return Power.OFF
        return Power.PAUSED if any(_state(pid) in ("T", "t") for pid in _pids(home)) else Power.RUNNING

    def _start_once(self, vm: VmCid) -> None:
        """A monitor may be killed anywhere in here: whoever repeats it goes on."""
        home = self._home(vm)
        if not (home / "started").exists() and not _is_held(home / "running.lock"):
            _start(home, self.namespace_of(vm))
        (home / "started").touch()

    def _vm_of(self, key: str) -> VmCid | None:
        return next((VmCid(home.name) for home, record in self._records() if record["key"] == key), None)

    def _records(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted((self._directory / "vms").glob("*/record.json")):
            yield path.parent, _read(path)

    def _holders(self, disk: DiskCid) -> frozenset[VmCid]:
        return frozenset(VmCid(path.parts[-3]) for path in (self._directory / "vms").glob(f"*/attached/{disk}"))

    def _need_disk(self, disk: DiskCid) -> None:
        if not self._disk(disk).exists():
            raise DiskNotFound(f"there is no disk {disk}")

    def _free_namespace(self) -> str:
        path = self._directory / NAMESPACES
        if not path.exists():
            return ""
        taken = {
            record["namespace"] for home, record in self._records() if self._power(VmCid(home.name)) is not Power.OFF
        }
        # Round and round: a place that was just left may be left because it is cut off
        names = _read(path)["names"]
        made = sum(1 for _ in (self._directory / "vms").iterdir())
        free = [name for name in names[made % len(names) :] + names[: made % len(names)] if name not in taken]
        if not free:
            raise CloudRefused("no network namespace is free")
        return str(free[0])

    def _home(self, vm: VmCid) -> Path:
        return self._directory / "vms" / vm

    def _disk(self, disk: DiskCid) -> Path:
        return self._directory / "disks" / f"{disk}.json"

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Nobody is in the middle of a call: a monitor that is frozen here takes no lock of this cloud with it."""
        with self._locked():
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _start(home: Path, namespace: str) -> None:
    """The VM's process. The lock is taken here and inherited, so it is held for as long as the process lives."""
    lock = os.open(home / "running.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.support.light_vm", str(home)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        _started[:] = [process, *(each for each in _started if each.poll() is None)]
    finally:
        os.close(lock)


_started: list[subprocess.Popen[bytes]] = []
"""Of this process, to be reaped once they have ended."""


def _pids(home: Path) -> list[int]:
    """The VM's process, by its command line."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                if b"tests.support.light_vm" in words and str(home).encode() in words:
                    found.append(int(entry.name))
    return found


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(value))
    draft.rename(path)


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
