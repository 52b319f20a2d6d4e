"""Clouds under test, each with what a contract needs beside the port: another monitor's view of the same cloud, and
ways to hurt a VM behind the cloud's back."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from healthmonitor.clouds import qemu_process
from healthmonitor.clouds.cloud import Cloud, FenceProof, VmRequest
from healthmonitor.clouds.qemu import QemuCloud, QemuOptions
from protocol.ids import AgentId, CloudName, DiskCid, VmCid
from protocol.settings import AgentSettings, BusSettings
from tests.support import stemcells

T = TypeVar("T")
SIMULATED_CLOUD = importlib.util.find_spec("tests.simulation.cloud")


class CloudBench(Protocol):
    cloud: Cloud
    stemcell: str

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


def vm_request(bench: CloudBench, key: str, **changes: Any) -> VmRequest:
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


@asynccontextmanager
async def qemu_bench(directory: Path) -> AsyncIterator[QemuBench]:
    bench = QemuBench(directory)
    try:
        yield bench
    finally:
        for summary in await bench.another().list_vms():
            assert isinstance(await bench.another().fence(summary.vm_cid), FenceProof)
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
        steps = self._call.__await__()
        waited_for: Any = None
        count = 0
        while True:
            try:
                waited_for = steps.throw(Crash()) if count == self._suspensions else next(steps)  # type: ignore[attr-defined]
            except StopIteration as end:
                return end.value
            count += 1
            yield waited_for
