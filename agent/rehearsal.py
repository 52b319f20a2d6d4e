"""What a VM does first once it is somebody, gone through once by its template, while nobody waits for it.

A snapshot keeps what was loaded, built and cached by then: programs and libraries in memory, codecs, the tables of
Docker's networks. What is gone through here does not have to be fetched while a database is down.

Law: nothing of it is left behind, and nothing depends on it: what fails is named in the log, and is done for the first
time when it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from agent import disk_tools, libblkid, libmount, subprocesses
from agent.core.disk_safety import Marker
from agent.core.reconcile import spec_hashes
from agent.docker_options import instance_network
from agent.engine import EngineError
from protocol import codec, envelope, heartbeat
from protocol.heartbeat import Extension, Heartbeat
from protocol.ids import ContainerName, DeploymentName, DiskCid, DiskName, Generation, InstanceId, Revision
from protocol.spec import ContainerSpec, DiskSpec, InstanceSpec, Port

log = structlog.get_logger(__name__)

DISK_BYTES = 16 * 1024 * 1024
PROGRAM_SECONDS = 60.0
INSTANCE = InstanceId("template/rehearsal/0")
NO_PROGRAM = "/nothing-to-run"
"""What an image holds is its owner's, and is not run before he asks for it: everything up to there is gone through."""


class Engine(Protocol):
    async def create(self, instance: str, container: ContainerSpec, mounts: dict[str, str]) -> str: ...
    async def start(self, container_id: str) -> None: ...
    async def remove(self, container_id: str) -> None: ...
    async def remove_network(self, name: str) -> None: ...


async def of_disks(directory: Path) -> None:
    """`directory`: where this VM keeps what it knows; an empty one is made in it and removed again."""
    try:
        with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=directory) as place:
            await _of_disks(Path(place))
    except (OSError, libblkid.LibraryFailed, libmount.MountFailed, subprocesses.CommandFailed) as error:
        log.warning("rehearsal.disks_failed", error=str(error), next="looked for again when a disk is mounted")


async def _of_disks(place: Path) -> None:
    image, directory = place / "disk", place / "mounted"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    directory.mkdir()
    await subprocesses.run([*disk_tools.MAKE["ext4"], str(image)], PROGRAM_SECONDS)
    await asyncio.to_thread(_probe, image)
    await subprocesses.run(["e2fsck", "-p", str(image)], PROGRAM_SECONDS)
    await asyncio.to_thread(libmount.mount, "rehearsal", str(directory), "tmpfs", "size=64k,nodev,noatime")
    try:
        marker = directory / disk_tools.MARKER
        written = Marker(INSTANCE, DiskName("data"), "none")
        await asyncio.to_thread(disk_tools.write_marker, marker, written)
        codec.from_json(Marker, marker.read_bytes())
    finally:
        await subprocesses.run(["umount", str(directory)], PROGRAM_SECONDS)


def _probe(image: Path) -> None:
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libblkid.identify(descriptor)
        libblkid.signatures(descriptor)
    finally:
        os.close(descriptor)


async def of_containers(engine: Engine, image: str) -> None:
    """A container of `image` on its instance's network, with a published port, up to the start of its program."""
    container = dataclasses.replace(SPECIFICATION.containers[0], image=image)
    try:
        try:
            container_id = await engine.create(INSTANCE, container, {})
            with contextlib.suppress(EngineError):  # of course: there is no such program
                await engine.start(container_id)
            await engine.remove(container_id)
        finally:
            await engine.remove_network(instance_network(INSTANCE))
    except EngineError as error:
        log.warning("rehearsal.containers_failed", image=image, error=str(error), next="done when one is started")


def of_documents(kinds: Sequence[type[object]]) -> None:
    """Builds the codec of everything that is read and written on the way: each takes a tenth of a second and more where
    a VM is emulated."""
    for kind in kinds:
        codec.prepare(kind)
    heartbeat.decode(heartbeat.encode(Heartbeat(resurgam=Extension())))
    envelope.encode_value("pong")
    spec_hashes(codec.from_json(InstanceSpec, codec.to_json(SPECIFICATION)))


SPECIFICATION = InstanceSpec(
    instance=INSTANCE,
    deployment=DeploymentName("template"),
    group="rehearsal",
    index=0,
    generation=Generation(1),
    revision=Revision(1),
    containers=(
        ContainerSpec(
            ContainerName("rehearsal"), "rehearsal", entrypoint=(NO_PROGRAM,), ports=(Port(1, published=True),)
        ),
    ),
    disks=(DiskSpec(DiskName("data"), DiskCid("none"), "", "ext4", (), 16),),
)
