"""Clouds under test, each with what a contract needs beside the port: another monitor's view of the same cloud, and
ways to hurt a VM behind the cloud's back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import docker
import docker.errors
import requests

from healthmonitor.clouds import loop_devices, qemu_process, qmp
from healthmonitor.clouds.cloud import Cloud, FenceProof, Power, VmRequest
from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from healthmonitor.clouds.local_store import MIB
from healthmonitor.clouds.qemu import QemuCloud, QemuOptions
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET
from protocol.ids import AgentId, CloudName, DiskCid, VmCid
from protocol.settings import AgentSettings, BusSettings
from tests.simulation.cloud import SimulatedCloud
from tests.support import stemcells
from tests.support.process_cloud import ProcessCloud

T = TypeVar("T")


class HasStemcell(Protocol):
    stemcell: str


class CloudBench(HasStemcell, Protocol):
    @property
    def cloud(self) -> Cloud: ...

    def another(self) -> Cloud:
        """The same cloud as another monitor, or the same one after a restart, sees it."""
        ...

    async def booted(self, vm: VmCid) -> None:
        """Returns when the guest is far enough to take and give back disks."""
        ...

    async def kill(self, vm: VmCid) -> None: ...

    async def freeze(self, vm: VmCid) -> None: ...

    async def lose_disk(self, disk: DiskCid) -> None:
        """Its data is gone, the records are not."""
        ...

    async def seen_mib(self, disk: DiskCid) -> int:
        """How large it is for the VM that holds it."""
        ...


def vm_request(bench: HasStemcell, key: str, **changes: Any) -> VmRequest:
    settings = AgentSettings(agent_id=AgentId(f"agent-{key}"), bus=BusSettings(urls=("nats://127.0.0.1:4222",)))
    fields: dict[str, Any] = {
        "key": key,
        "name": key,
        "stemcell": bench.stemcell,
        "cpus": 1,
        "memory_mib": 256,
        "settings": settings,
    }
    return VmRequest(**(fields | changes))


class SimulatedBench:
    stemcell = "simulated"

    def __init__(self) -> None:
        self.cloud = SimulatedCloud()

    def another(self) -> SimulatedCloud:
        """There is one simulated world, and every monitor in it speaks to the same cloud."""
        return self.cloud

    async def booted(self, vm: VmCid) -> None:
        """It boots in no time."""

    async def kill(self, vm: VmCid) -> None:
        self.cloud.kill_vm(vm)

    async def freeze(self, vm: VmCid) -> None:
        self.cloud.freeze_vm(vm)

    async def lose_disk(self, disk: DiskCid) -> None:
        raise NotImplementedError("simulated disks are not lost")

    async def seen_mib(self, disk: DiskCid) -> int:
        return self.cloud.disks[disk].size_mib


class ProcessBench:
    stemcell = "light"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.cloud = ProcessCloud(directory)

    def another(self) -> ProcessCloud:
        return ProcessCloud(self._directory)

    async def booted(self, vm: VmCid) -> None:
        """Nothing inside takes part in attaching."""

    async def kill(self, vm: VmCid) -> None:
        await self._signalled(vm, signal.SIGKILL, Power.OFF)

    async def freeze(self, vm: VmCid) -> None:
        await self._signalled(vm, signal.SIGSTOP, Power.PAUSED)

    async def lose_disk(self, disk: DiskCid) -> None:
        raise NotImplementedError("disks of processes are not lost")

    async def seen_mib(self, disk: DiskCid) -> int:
        """There is no device: what the cloud says is all that there is."""
        return next(each.size_mib for each in await self.cloud.list_disks() if each.disk_cid == disk)

    async def _signalled(self, vm: VmCid, number: signal.Signals, power: Power) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 10.0
        while (await self.cloud.observe(vm)).power is not power:
            # Each time: a process that was started a moment ago has no command line to find it by yet.
            self.cloud.signal(vm, number)
            assert loop.time() < deadline, f"{vm} is not {power.value}"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def process_bench(directory: Path) -> AsyncIterator[ProcessBench]:
    bench = ProcessBench(directory)
    try:
        yield bench
    finally:
        for summary in await bench.another().list_vms():
            await bench.another().delete_vm(summary.vm_cid)


class QemuBench:
    stemcell = stemcells.BARE

    def __init__(self, directory: Path) -> None:
        self._options = QemuOptions(directory=directory / "qemu", stemcells=directory / "stemcells", accel="tcg")
        stemcells.bare(self._options.stemcells)
        self.cloud = QemuCloud(CloudName("contract"), self._options)

    def another(self) -> QemuCloud:
        return QemuCloud(CloudName("contract"), self._options)

    async def booted(self, vm: VmCid) -> None:
        console = self.cloud.console(vm)
        await until(lambda: stemcells.BARE_READY in console.read_bytes(), 60.0, f"{vm} boots")

    async def kill(self, vm: VmCid) -> None:
        directory = self._options.directory / "vms" / vm
        for process in qemu_process.find(directory / "qemu.pid"):
            os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not qemu_process.is_held(directory / "running.lock"), 10.0, f"{vm} is killed")

    async def freeze(self, vm: VmCid) -> None:
        """The whole process, so that QEMU itself does not answer either."""
        for process in qemu_process.find(self._options.directory / "vms" / vm / "qemu.pid"):
            os.kill(process.pid, signal.SIGSTOP)

    async def lose_disk(self, disk: DiskCid) -> None:
        (self._options.directory / "disks" / f"{disk}.raw").unlink()

    async def write(self, disk: DiskCid, content: bytes) -> None:
        """To the beginning of a disk that nobody holds."""
        with (self._options.directory / "disks" / f"{disk}.raw").open("r+b") as file:
            file.write(content)

    async def read(self, disk: DiskCid, size: int) -> bytes:
        with (self._options.directory / "disks" / f"{disk}.raw").open("rb") as file:
            return file.read(size)

    async def seen_mib(self, disk: DiskCid) -> int:
        """By QEMU's word of the device that it shows to its guest."""
        (vm,) = await self.cloud.disk_holders(disk)
        async with qmp.connect(self._options.directory / "vms" / vm / CONTROL_SOCKET) as machine:
            devices = await machine.execute("query-block")
        (size,) = [each["inserted"]["image"]["virtual-size"] for each in devices if f"disk-{disk}" in each["qdev"]]
        return int(size) // MIB


@asynccontextmanager
async def qemu_bench(directory: Path) -> AsyncIterator[QemuBench]:
    bench = QemuBench(directory)
    try:
        yield bench
    finally:
        for summary in await bench.another().list_vms():
            assert isinstance(await bench.another().fence(summary.vm_cid), FenceProof)
        shutil.rmtree(directory, ignore_errors=True)


class OwnEngine:
    """A Docker Engine with everything in `directory`, and a bridge of its own when one is named."""

    def __init__(self, directory: Path, bridge: str = "none") -> None:
        self._directory = directory
        self.host = f"unix://{directory / 'docker.sock'}"
        directory.mkdir(parents=True)
        (directory / "daemon.json").write_text("{}")
        log = (directory / "log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [
                    *("dockerd", f"--host={self.host}", f"--data-root={directory / 'data'}"),
                    *(f"--exec-root={directory / 'exec'}", f"--pidfile={directory / 'pid'}"),
                    *("--iptables=false", "--storage-driver=overlay2", f"--bridge={bridge}"),
                    f"--config-file={directory / 'daemon.json'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._await_answer()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + 60.0
        while True:
            client = docker.APIClient(base_url=self.host, timeout=5, version="1.41")
            try:
                client.ping()
                return
            except (docker.errors.DockerException, requests.RequestException):
                said = (self._directory / "log").read_text()[-2000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
            finally:
                client.close()

    def client(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.host, timeout=30, version="auto")

    def close(self) -> None:
        client = self.client()
        for container in client.containers(all=True):
            client.remove_container(container["Id"], force=True, v=True)
        client.close()
        self._process.terminate()
        self._process.wait(30.0)
        shutil.rmtree(self._directory, ignore_errors=True)


class DockerBench:
    stemcell = stemcells.BARE

    def __init__(self, directory: Path, engine: OwnEngine) -> None:
        self._options = DockerOptions(
            directory=directory / "docker",
            stemcells=directory / "stemcells",
            docker_host=engine.host,
            network="none",
            bus_host="",
        )
        self._engine = engine
        stemcells.bare(self._options.stemcells)
        self._clouds = [DockerCloud(CloudName("contract"), self._options)]
        self.cloud = self._clouds[0]

    def another(self) -> DockerCloud:
        self._clouds.append(DockerCloud(CloudName("contract"), self._options))
        return self._clouds[-1]

    async def booted(self, vm: VmCid) -> None:
        """Nothing inside takes part in attaching."""

    async def kill(self, vm: VmCid) -> None:
        client = self._engine.client()
        os.kill(client.inspect_container(vm)["State"]["Pid"], signal.SIGKILL)
        await until(lambda: not client.inspect_container(vm)["State"]["Running"], 10.0, f"{vm} is killed")
        client.close()

    async def freeze(self, vm: VmCid) -> None:
        await self.cloud.freeze_vm(vm)

    async def lose_disk(self, disk: DiskCid) -> None:
        (self._options.directory / "disks" / f"{disk}.raw").unlink()

    def file(self, disk: DiskCid) -> Path:
        return self._options.directory / "disks" / f"{disk}.raw"

    def first_process(self, vm: VmCid) -> int:
        client = self._engine.client()
        try:
            return int(client.inspect_container(vm)["State"]["Pid"])
        finally:
            client.close()

    async def write(self, disk: DiskCid, content: bytes) -> None:
        """To the beginning of a disk that nobody holds."""
        with self.file(disk).open("r+b") as file:
            file.write(content)

    async def read(self, disk: DiskCid, size: int) -> bytes:
        with self.file(disk).open("rb") as file:
            return file.read(size)

    async def seen_mib(self, disk: DiskCid) -> int:
        """Of the loop device, which is what the VM has in its /dev."""
        (device,) = await loop_devices.of_file(self._options.directory / "disks" / f"{disk}.raw")
        return int((Path("/sys/block") / device.name / "size").read_text()) * 512 // MIB

    async def close(self) -> None:
        for summary in await self.cloud.list_vms():
            await self.cloud.delete_vm(summary.vm_cid)
        for cloud in self._clouds:
            await cloud.close()


@asynccontextmanager
async def docker_bench(directory: Path, engine: OwnEngine) -> AsyncIterator[DockerBench]:
    bench = DockerBench(directory, engine)
    try:
        yield bench
    finally:
        await bench.close()
        shutil.rmtree(directory, ignore_errors=True)


async def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a state, at most `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not holds():
        assert loop.time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


class Crash(BaseException):
    """Thrown into a call where a monitor might die."""


async def interrupted(call: Coroutine[Any, Any, T], suspensions: int) -> bool:
    """Runs `call` until it has waited for something `suspensions` times, then ends it there. False: it was done
    before."""
    try:
        await _Interrupted(call, suspensions)
    except Crash:
        return True
    return False


class _Interrupted(Awaitable[Any]):
    def __init__(self, call: Coroutine[Any, Any, Any], suspensions: int) -> None:
        self._call = call
        self._suspensions = suspensions

    def __await__(self) -> Generator[Any, None, Any]:
        """Hands on what the call waits for; what it still waits for in its `finally` blocks is let through."""
        steps: Any = self._call.__await__()
        thrown: BaseException | None = None
        count = 0
        while True:
            if count == self._suspensions:
                thrown = Crash()
            try:
                waited_for = next(steps) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            thrown = None
            count += 1
            try:
                yield waited_for
            except BaseException as error:  # a deadline inside the call: it belongs to the call
                thrown = error
