"""The supervisor as the rest of the agent needs it. `agent/supervisor.py` is the real one; tests have a scripted one.

Law: everything but `drain`, `logs` and `run` returns at once and touches neither the engine nor a disk, because the
heartbeat is made from `report()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from protocol.heartbeat import ContainerReport, EngineState
from protocol.ids import ContainerName, DiskName
from protocol.spec import InstanceSpec


class Report(Protocol):
    @property
    def containers(self) -> tuple[ContainerReport, ...]: ...

    @property
    def engine(self) -> EngineState: ...

    @property
    def settled(self) -> bool:
        """Nothing is left to do: actual is desired, as far as the agent can bring it there."""
        ...


class SupervisorPort(Protocol):
    async def run(self) -> None: ...

    def set_desired(self, spec: InstanceSpec | None) -> None: ...

    def set_disks(self, mounts: Mapping[DiskName, str]) -> None:
        """Mount directory of each persistent disk that is mounted, and of no other."""
        ...

    def set_isolated(self, isolated: bool) -> None:
        """True stops the containers; the caller asks for it only where the group says `on_isolation: stop`."""
        ...

    def report(self) -> Report: ...

    def on_change(self, callback: Callable[[], None]) -> None: ...

    async def drain(self, deadline_seconds: float) -> None:
        """Returns when every container is stopped, dependents first; they stay stopped until `undrain`."""
        ...

    def undrain(self) -> None: ...

    def request_restart(self, names: tuple[ContainerName, ...]) -> None: ...

    async def logs(self, name: ContainerName, lines: int) -> str: ...

    def current(self) -> InstanceSpec | None: ...
