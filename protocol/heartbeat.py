"""The heartbeat: BOSH's keys, plus one key `resurgam` with ours.

Law: decoding is tolerant (unknown keys ignored, absent keys None, unknown words of a closed choice taken for its
UNKNOWN or OTHER), because agents of other versions and real bosh-agents are heard too: a word that is not known must
never cost a VM its life; a heartbeat that is not JSON, not an object or larger than the limit is `Malformed`.
A heartbeat without `resurgam` keeps BOSH's semantics: it counts as sent when it is received.

Does not know: what a heartbeat means for a lease (healthmonitor/core/liveness.py).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

HEARTBEAT_MAX_BYTES = 256 * 1024
WIRE_VERSION = 1


class ContainerState(Enum):
    """What the agent says of a container that should be there. Only RUNNING and COMPLETED are as they should be
    when the instance is started; STOPPED is, when a person stopped it."""

    PENDING = "pending"  # waits for a dependency, a disk or the engine
    PULLING = "pulling"
    CREATING = "creating"
    STARTING = "starting"  # runs, its health check has not decided yet
    RUNNING = "running"  # runs, and is healthy where it has a health check
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    BACKING_OFF = "backing_off"  # ended or failed to start, and waits for the next try
    CRASH_LOOP = "crash_loop"  # ended too often; still retried, at the longest gap
    COMPLETED = "completed"  # a one-shot container that ended with 0
    FAILED = "failed"  # a one-shot container that ended otherwise and may not be restarted
    STOPPED = "stopped"  # by a person's word
    ORPHANED = "orphaned"  # carries our label, is not in the specification, and is being removed
    UNKNOWN = "unknown"  # the engine does not answer, or a newer agent says what this version does not know

    @classmethod
    def _missing_(cls, value: object) -> ContainerState:
        """A word of a newer agent: its heartbeat counts all the same."""
        return cls.UNKNOWN


class Reason(Enum):
    """Why a container is not running, or why it was last restarted."""

    NONE = ""
    EXITED = "exited"
    OOM_KILLED = "oom_killed"  # its first process
    OOM_CHILD = "oom_child"  # a child process; the container may still run
    UNHEALTHY = "unhealthy"
    MISSING = "missing"
    IMAGE_MISSING = "image_missing"
    PORT_IN_USE = "port_in_use"
    CREATE_FAILED = "create_failed"
    START_FAILED = "start_failed"
    DEPENDENCY = "dependency"  # a container it depends on was restarted or is not ready
    DISK_NOT_MOUNTED = "disk_not_mounted"
    ENGINE_DOWN = "engine_down"
    SPECIFICATION_CHANGED = "specification_changed"
    PAUSED = "paused"
    OPERATOR = "operator"
    ISOLATED = "isolated"  # the centre could not be reached for the lease, and the group says to stop
    OTHER = "other"  # a newer agent says what this version does not know

    @classmethod
    def _missing_(cls, value: object) -> Reason:
        """A word of a newer agent: its heartbeat counts all the same."""
        return cls.OTHER


class EngineState(Enum):
    STARTING = "starting"
    UP = "up"  # answered a real request in time
    HUNG = "hung"  # accepts but does not answer
    DOWN = "down"
    BACKING_OFF = "backing_off"
    UNKNOWN = "unknown"  # a newer agent says what this version does not know

    @classmethod
    def _missing_(cls, value: object) -> EngineState:
        """A word of a newer agent: its heartbeat counts all the same."""
        return cls.UNKNOWN


class DiskState(Enum):
    MOUNTED = "mounted"
    ATTACHED = "attached"  # the device is there, not mounted
    MISSING = "missing"  # no such device
    READ_ONLY = "read_only"
    FAILED = "failed"  # refused: foreign signature, file system needs a person, mount failed
    UNKNOWN = "unknown"  # a newer agent says what this version does not know

    @classmethod
    def _missing_(cls, value: object) -> DiskState:
        """A word of a newer agent: its heartbeat counts all the same."""
        return cls.UNKNOWN


class ContainerReport(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    state: ContainerState
    reason: Reason = Reason.NONE
    restarts: int = 0  # since the agent first saw this container's specification
    exit_code: int | None = None
    spec_hash: str = ""
    image_id: str = ""
    image_digest: str = ""  # `repository@sha256:…`, when it came from a registry
    container_id: str = ""
    since_seconds: float = 0.0  # how long it has been in this state
    detail: str = ""  # one line for people: the engine's error, the limit that was hit; at most 300 characters


class DiskReport(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    cid: str
    state: DiskState
    percent: float = 0.0
    inode_percent: float = 0.0
    size_mib: int = 0
    detail: str = ""
    errors: int = 0  # that the file system has recorded on the disk


class Extension(msgspec.Struct, frozen=True, omit_defaults=True):
    """Our keys. `sent_at_seconds` is seconds since this boot (CLOCK_BOOTTIME); `sequence` grows by one with each
    heartbeat of one agent process."""

    version: int = WIRE_VERSION
    generation: int = 0
    revision: int = 0  # of the specification that the agent holds; 0 before the first apply
    sequence: int = 0
    boot_id: str = ""
    sent_at_seconds: float = 0.0
    instance: str = ""  # instance id, "" for a VM without one
    engine: EngineState = EngineState.STARTING
    containers: tuple[ContainerReport, ...] = ()
    disks: tuple[DiskReport, ...] = ()
    wanted: str = "started"  # started | stopped, as the agent understands it
    isolated: bool = False
    draining: bool = False
    agent_version: str = ""


class Heartbeat(msgspec.Struct, frozen=True):
    deployment: str | None = ""
    job: str | None = None
    index: int | None = None
    job_state: str | None = "unknown"  # BOSH: running, failing, starting, stopped, unknown
    vitals: dict[str, Any] | None = None  # BOSH's shapes: every number a string but uptime.secs
    node_id: str | None = None
    number_of_processes: int | None = None
    resurgam: Extension | None = None


class Malformed(Exception):
    """What was received is not a heartbeat. The text says where it went wrong; the sender's fault; drop it."""


_decoder = msgspec.json.Decoder(Heartbeat)
_encoder = msgspec.json.Encoder()


def encode(heartbeat: Heartbeat) -> bytes:
    return _encoder.encode(heartbeat)


def decode(payload: bytes) -> Heartbeat:
    """The heartbeat in `payload`; raises Malformed."""
    if len(payload) > HEARTBEAT_MAX_BYTES:
        raise Malformed(f"{len(payload)} bytes, more than {HEARTBEAT_MAX_BYTES}")
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None


class ContainerGlance(msgspec.Struct, frozen=True, gc=False):
    name: str
    state: ContainerState
    reason: Reason = Reason.NONE
    restarts: int = 0
    exit_code: int | None = None
    spec_hash: str = ""
    detail: str = ""


class DiskGlance(msgspec.Struct, frozen=True, gc=False):
    name: str
    state: DiskState
    percent: float = 0.0
    inode_percent: float = 0.0
    errors: int = 0
    detail: str = ""


class ExtensionGlance(msgspec.Struct, frozen=True, gc=False):
    generation: int = 0
    revision: int = 0
    sequence: int = 0
    boot_id: str = ""
    sent_at_seconds: float = 0.0
    instance: str = ""
    engine: EngineState = EngineState.STARTING
    containers: tuple[ContainerGlance, ...] = ()
    disks: tuple[DiskGlance, ...] = ()
    wanted: str = "started"
    isolated: bool = False
    draining: bool = False


class Glance(msgspec.Struct, frozen=True, gc=False):
    """What judging needs of a heartbeat: no vitals, nothing that changes from one heartbeat to the next but sequence
    and time. Taking it costs little more than half of `decode` (measured), and the hot path is this. Never part of a
    reference cycle, so the collector need not follow it (`gc=False`)."""

    deployment: str | None = ""
    job: str | None = None
    job_state: str | None = "unknown"
    resurgam: ExtensionGlance | None = None


_glancer = msgspec.json.Decoder(Glance)


def glance(payload: bytes) -> Glance:
    """The part of the heartbeat in `payload` that judging needs; raises Malformed for what `decode` would, except for
    wrong types in keys that it does not read."""
    if len(payload) > HEARTBEAT_MAX_BYTES:
        raise Malformed(f"{len(payload)} bytes, more than {HEARTBEAT_MAX_BYTES}")
    try:
        return _glancer.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from None
