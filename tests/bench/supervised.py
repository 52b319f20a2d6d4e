"""A supervisor on an own Docker Engine, for measuring."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import structlog

from agent.core.reconcile import SupervisionPolicy
from agent.docker import DockerEngine
from agent.dockerd import DirectDaemon
from agent.mount_directories import prepare
from agent.oom import CgroupOomCounters
from agent.supervisor import Supervisor
from protocol.ids import ContainerName, DeploymentName, Generation, InstanceId, Revision
from protocol.spec import ContainerSpec, InstanceSpec


class NotesInMemory:
    def __init__(self) -> None:
        self._notes: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        return self._notes

    def save(self, notes: dict[str, Any]) -> None:
        self._notes = notes


def quiet() -> None:
    """Only warnings: a line per action would be measured too."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def supervisor(socket_path: str, daemon: DirectDaemon, policy: SupervisionPolicy | None = None) -> Supervisor:
    return Supervisor(
        DockerEngine(socket_path), daemon, CgroupOomCounters(), NotesInMemory(), prepare, policy or SupervisionPolicy()
    )


def instance(image: str, names: list[str], **options: Any) -> InstanceSpec:
    containers = tuple(
        ContainerSpec(
            ContainerName(name),
            image,
            command=("sleep", "1000000"),
            network_mode="none",
            stop_signal="SIGKILL",
            **options,
        )
        for name in names
    )
    return InstanceSpec(
        InstanceId("bench/all/0"), DeploymentName("bench"), "all", 0, Generation(1), Revision(1), containers=containers
    )


async def wait_for(predicate: Callable[[], bool], seconds: float = 120.0, every_seconds: float = 0.005) -> None:
    async with asyncio.timeout(seconds):
        while not predicate():
            await asyncio.sleep(every_seconds)
