"""Real QEMU virtual machines for system tests. Stemcell, images and warm templates are built once and kept in
`.cache/`, keyed by content; VMs and disks live in the test's own directory and end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from healthmonitor.clouds import demo_images, qemu_process, stemcell_build
from healthmonitor.clouds.cloud import FenceProof
from healthmonitor.clouds.qemu import QemuCloud, QemuOptions
from protocol.ids import CloudName, VmCid

CACHE = Path(__file__).resolve().parents[2] / ".cache"
STEMCELL = "demo"
IMAGES = ("redis", "tools")


class Machines:
    """The cloud `name` on this machine, and ways to hurt its VMs behind its back."""

    def __init__(self, name: CloudName, options: QemuOptions) -> None:
        self.cloud = QemuCloud(name, options)
        self.options = options

    @property
    def yaml(self) -> str:
        """Its entry in a monitor's configuration."""
        options = self.options
        places = f"directory: {options.directory}, stemcells: {options.stemcells}"
        return f"{{provider: qemu, {places}, accel: {options.accel}}}"

    def processes(self, vm: VmCid) -> list[int]:
        return [found.pid for found in qemu_process.find(self.options.directory / "vms" / vm / "qemu.pid")]

    def kill(self, vm: VmCid) -> None:
        """SIGKILL, as a host's failure would; AssertionError when there was nothing to kill."""
        pids = self.processes(vm)
        assert pids, f"{vm} does not run"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    async def freeze(self, vm: VmCid) -> None:
        """QMP stop: the VM stands still, its process lives."""
        await self.cloud.freeze_vm(vm)


@contextlib.asynccontextmanager
async def machines(
    directory: Path,
    name: CloudName,
    sizes: Sequence[tuple[int, int]] = ((1, 512),),
    stemcell: str = STEMCELL,
) -> AsyncIterator[Machines]:
    """`sizes`: (cpus, memory in MiB) to have warm templates for. `stemcell`: the usual one is made here, others are
    their owner's to make. Every VM is ended afterwards."""
    if stemcell == STEMCELL:
        await asyncio.to_thread(build_stemcell)
    (CACHE / "templates").mkdir(parents=True, exist_ok=True)
    cloud_directory = directory / "cloud"
    cloud_directory.mkdir(parents=True)
    (cloud_directory / "templates").symlink_to(CACHE / "templates")
    accel = os.environ.get("RESURGAM_TEST_ACCEL", "auto")
    ours = Machines(name, QemuOptions(directory=cloud_directory, stemcells=CACHE / "stemcells", accel=accel))
    for cpus, memory_mib in sizes:
        await ours.cloud.build_template(stemcell, cpus, memory_mib, _say)
    try:
        yield ours
    finally:
        for summary in await ours.cloud.list_vms():
            assert isinstance(await ours.cloud.fence(summary.vm_cid), FenceProof), summary
            await ours.cloud.delete_vm(summary.vm_cid)


def build_stemcell() -> None:
    images = demo_images.build(IMAGES, CACHE / "images", _say)
    stemcell_build.build(STEMCELL, CACHE / "stemcells", images=images, progress=_say)


_said: set[str] = set()


def _say(what: str, share: float) -> None:
    if what not in _said:
        _said.add(what)
        print(f"{what} …", flush=True)
