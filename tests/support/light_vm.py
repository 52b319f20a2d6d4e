"""One VM of `process_cloud.py`: the real agent shell, supervisor and bus in a process of its own; the Docker Engine and
the disks are pretended. `python -m tests.support.light_vm VM_DIRECTORY`.

Law: while a disk is mounted, a line is appended to its file every few milliseconds, unbuffered: whoever reads the file
sees every VM that ever wrote, in order.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from agent.core.desired import Held, Place
from agent.desired_state import DesiredState, Seen
from agent.logging_setup import set_up_logging
from agent.shell import AgentShell
from agent.supervisor import Supervisor
from protocol import codec
from protocol.ids import DiskCid, DiskName
from protocol.nats_bus import NatsBus
from protocol.settings import AgentSettings
from protocol.spec import ContainerSpec, MountKind
from tests.simulation.disks import Agreed, Hardware, SimulatedCopies, SimulatedDisks, SimulatedDocument
from tests.simulation.engine import MemoryNotes, SimulatedDaemon, SimulatedEngine
from tests.simulation.platters import Content

WRITE_SECONDS = 0.02


class ProcessHardware(Hardware):
    """What the cloud attached, and what this process writes to."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._disks = home.parents[1] / "disks"
        self._files: dict[DiskCid, int] = {}
        self._contents: dict[DiskCid, Content] = {}

    def devices(self) -> frozenset[DiskCid]:
        return frozenset(DiskCid(path.name) for path in (self._home / "attached").glob("*"))

    def mounted(self) -> frozenset[DiskCid]:
        return frozenset(self._files)

    def content(self, disk: DiskCid) -> Content:
        """File system and mark, as the VM that mounted it last left them."""
        if disk not in self._contents:
            kept = self._content_file(disk)
            self._contents[disk] = codec.from_json(Content, kept.read_bytes()) if kept.exists() else Content()
        content = self._contents[disk]
        content.size_mib = json.loads((self._disks / f"{disk}.json").read_text())["size_mib"]
        return content

    def mount(self, disk: DiskCid) -> None:
        if disk not in self._files:
            # Whole or not at all: this process may be killed anywhere.
            written = self._home / f"{disk}.content"
            written.write_bytes(codec.to_json(self.content(disk)))
            os.replace(written, self._content_file(disk))
            self._files[disk] = os.open(self._disks / f"{disk}.raw", os.O_WRONLY | os.O_APPEND)

    def unmount(self, disk: DiskCid) -> None:
        if disk in self._files:
            os.close(self._files.pop(disk))
            self._contents.pop(disk, None)  # whoever has it next may change it

    def _content_file(self, disk: DiskCid) -> Path:
        return self._disks / f"{disk}.content"

    async def write(self) -> None:
        for number in itertools.count():
            for file in self._files.values():
                os.write(file, f"{self._home.name} {number}\n".encode())
            await asyncio.sleep(WRITE_SECONDS)


async def main(home: Path) -> None:
    settings = codec.from_json(AgentSettings, (home / "settings.json").read_bytes())
    hardware = ProcessHardware(home)
    ids = itertools.count(1)
    bus = await NatsBus.open(settings.bus, settings.agent_id)
    boot_id = home.name
    held: SimulatedDocument[Held] = SimulatedDocument()
    seen: SimulatedDocument[Seen] = SimulatedDocument()
    place: SimulatedDocument[Place] = SimulatedDocument()
    desired = DesiredState(held, seen, settings.instance, settings.generation, boot_id, _at_once, place)
    engine = SimulatedEngine()
    supervisor = Supervisor(engine, SimulatedDaemon(engine), engine, MemoryNotes(), _directories)
    disks = SimulatedDisks(
        hardware, Agreed(), Random(home.name), supervisor.set_disks, lambda: shell.heartbeater.changed()
    )
    shell = AgentShell(
        settings,
        "light",
        boot_id,
        bus,
        supervisor,
        desired,
        disks,
        SimulatedCopies(disks, hardware, Random(home.name)),
        NoVitals(),  # type: ignore[arg-type]  # as much of Vitals as the shell uses
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        lambda: f"{home.name}-{next(ids)}",
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(hardware.write(), name="writer")
        group.create_task(supervisor.run(), name="supervisor")
        group.create_task(shell.run(), name="shell")


class NoVitals:
    def latest(self) -> dict[str, Any]:
        return {}

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()


def _directories(container: ContainerSpec, mounts: Mapping[DiskName, str]) -> dict[str, str]:
    """As agent/mount_directories.py, without a file system."""
    return {
        mount.target: f"{mounts[DiskName(mount.source)]}/{container.name}"
        if mount.kind is MountKind.DISK
        else mount.source
        for mount in container.mounts
    }


async def _at_once(write: Callable[[], None]) -> None:
    write()


if __name__ == "__main__":
    set_up_logging(sys.stdout)
    asyncio.run(main(Path(sys.argv[1])))
