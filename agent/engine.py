"""The Docker engine as the supervisor needs it. `agent/docker.py` is the real one, the simulation has a lying one;
both pass `tests/contract/test_engine.py`.

Laws: every call ends within its deadline; `EngineUnavailable` means the outcome is unknown; only containers that
carry our label are listed; nothing is ever removed that does not carry it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from protocol.ids import ContainerName
from protocol.spec import ContainerSpec

LABEL_INSTANCE = "org.resurgam.instance"
LABEL_CONTAINER = "org.resurgam.container"
LABEL_IMAGE = "org.resurgam.image"
"""The image as the specification names it, where the container itself was made of an id."""
LABEL_HASH = "org.resurgam.spec-hash"


class EngineError(Exception):
    """Base; the text is the engine's own message, cut to a line."""


class EngineUnavailable(EngineError):
    """No answer in time, or no connection: the outcome is unknown. Look again."""


class ImageMissing(EngineError):
    """The image is neither here nor could it be pulled; the text says which registry said what."""


class PortInUse(EngineError):
    """A published port is taken on this VM."""


class EngineRefused(EngineError):
    """A definite no: bad option, no such device. The same request will fail again until something changes."""


class Status(Enum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


class Health(Enum):
    NONE = "none"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class ActualContainer:
    """What the engine says of one container with our label. `run` names one start of it: container id and start
    time; it changes with every start, and stays over restarts of agent and engine."""

    container_id: str
    name: ContainerName
    instance: str
    spec_hash: str
    status: Status
    health: Health = Health.NONE
    run: str = ""
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    image_id: str = ""
    image_digest: str = ""  # `repository@sha256:…` where a registry gave it that name
    error: str = ""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """Only a hint to look again: events may be lost, repeated or late."""

    container: str
    action: str


class Probe(Enum):
    ANSWERED = "answered"
    REFUSED = "refused"  # nobody accepts
    SILENT = "silent"  # accepts, does not answer in time


class Engine(Protocol):
    async def probe(self) -> Probe:
        """A real request (list of our containers) with a deadline; never raises."""
        ...

    async def look(self) -> tuple[ActualContainer, ...]:
        """Every container with our label. EngineUnavailable."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Ends when the stream ends (engine restarted); the caller looks, and opens it anew."""
        ...

    async def image_present(self, image: str) -> bool: ...

    async def pull(self, image: str) -> None:
        """ImageMissing, EngineUnavailable. Has a deadline without progress, not one as a whole."""
        ...

    async def create(self, instance: str, container: ContainerSpec, mounts: dict[str, str]) -> str:
        """Creates (does not start) and returns the container id. `mounts`: target path → directory of the VM.
        A container of ours with that name and another hash must have been removed before."""
        ...

    async def start(self, container_id: str) -> None: ...

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        """Its stop signal, then SIGKILL after the grace. Fine when it is not running or not there."""
        ...

    async def remove(self, container_id: str) -> None:
        """Fine when it is not there. EngineRefused when it does not carry our label."""
        ...

    async def logs(self, container_id: str, lines: int) -> str: ...

    async def ensure_networks(self, names: tuple[str, ...]) -> None: ...

    async def load_image(self, path: str) -> tuple[str, ...]: ...
