"""The instance specification: what one VM should be running. Made by the monitor from the manifest, held by the agent.

Law: every value is normalised here (seconds, bytes, absolute paths), so that two ways to write the same thing hash
the same. `spec_hash` covers only what needs a new container, and only what differs from its default, so that a
newer version with more fields computes the same hash for an old specification.

Does not know: the Compose format (healthmonitor/core/compose.py), the engine (agent/docker.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from protocol.ids import (
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    Revision,
)

IMAGE_RATE_BYTES = 32 * 1024 * 1024
"""A second, that a VM may load from the image store unless the centre says otherwise."""


class Condition(Enum):
    """When a dependency counts as met (Compose's words)."""

    STARTED = "service_started"
    HEALTHY = "service_healthy"
    COMPLETED = "service_completed_successfully"


class Restart(Enum):
    NO = "no"
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    UNLESS_STOPPED = "unless-stopped"


class PullPolicy(Enum):
    """Where an image is looked for, in which order: agent/core/image_places.py."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"
    STORE = "store"  # the image store, never a registry


class MountKind(Enum):
    DISK = "disk"  # a directory of its own on a persistent disk
    BIND = "bind"  # a path of the VM


class OnIsolation(Enum):
    KEEP = "keep"
    STOP = "stop"


class Wanted(Enum):
    STARTED = "started"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Mount:
    """`source`: the disk's name, or an absolute path of the VM. `subdirectory`: for a disk, an explicit directory on
    it (`data/shared:/x` in the manifest) that containers may share; "" gives this mount a directory of its own."""

    kind: MountKind
    source: str
    target: str
    subdirectory: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Port:
    container_port: int
    host_port: int = 0  # 0: exposed, and published on a free port when `published`
    host_ip: str = ""
    protocol: str = "tcp"
    published: bool = False  # with host_port 0: on a free port (Compose's `ports: ["80"]`)


@dataclass(frozen=True, slots=True)
class Dependency:
    container: ContainerName
    condition: Condition = Condition.STARTED
    restart: bool = True
    """Restart this container when that one was restarted. Compose's default is false; ours is true, because a
    dependent that keeps a dead connection is the commoner harm."""


@dataclass(frozen=True, slots=True)
class Healthcheck:
    test: tuple[str, ...]  # ("CMD", …) or ("CMD-SHELL", "…"); ("NONE",) switches the image's own off
    interval_seconds: float = 30.0
    timeout_seconds: float = 30.0
    retries: int = 3
    start_period_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Device:
    host_path: str
    container_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True)
class Logging:
    """Bounded by default: 5 files of 10 MiB."""

    driver: str = "json-file"
    options: Mapping[str, str] = field(default_factory=lambda: {"max-size": "10m", "max-file": "5"})


@dataclass(frozen=True, slots=True)
class ImagePin:
    """The very image that `image` was when a container was made of it. `image_id`: the engine's id of it. `digest`:
    what a registry calls it (`sha256:…`), "" for one that came from no registry."""

    image: str
    image_id: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    name: ContainerName
    image: str
    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[str, ...] = ()  # "/run" or "/run:size=64m,mode=1777"
    depends_on: tuple[Dependency, ...] = ()
    healthcheck: Healthcheck | None = None
    restart: Restart = Restart.ALWAYS
    restart_limit: int = 0  # on-failure:N; 0 is no limit
    stop_signal: str = ""
    stop_grace_period_seconds: float = 30.0
    user: str = ""
    group_add: tuple[str, ...] = ()
    working_dir: str = ""
    hostname: str = ""
    domainname: str = ""
    extra_hosts: tuple[str, ...] = ()  # "name:address"
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opt: tuple[str, ...] = ()
    network_mode: str = ""  # "", host, none, bridge, container:<name>
    networks: tuple[str, ...] = ()  # of the VM; () with network_mode "" is the instance's own network
    mac_address: str = ""
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    read_only: bool = False
    security_opt: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    shm_size_bytes: int = 0
    init: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    logging: Logging = field(default_factory=Logging)
    cpus: float = 0.0
    cpu_shares: int = 0
    cpu_period_microseconds: int = 0
    cpu_quota_microseconds: int = 0
    blkio_weight: int = 0
    mem_limit_bytes: int = 0
    mem_reservation_bytes: int = 0
    memswap_limit_bytes: int = 0
    mem_swappiness: int | None = None
    oom_kill_disable: bool = False
    pids_limit: int = 0
    pull_policy: PullPolicy = PullPolicy.MISSING
    volume_driver: str = ""
    volumes_from: tuple[str, ...] = ()
    pid: str = ""  # "", host
    ipc: str = ""
    userns_mode: str = ""
    tty: bool = False
    stdin_open: bool = False
    on_oom: str = "alert"  # of a child process: alert | restart | ignore
    pinned: ImagePin | None = None  # set by the centre

    @property
    def pin(self) -> ImagePin | None:
        """`pinned`, while it is of the image that is named here."""
        return self.pinned if self.pinned is not None and self.pinned.image == self.image else None


SUPERVISED_FIELDS = frozenset(
    {"depends_on", "restart", "restart_limit", "stop_grace_period_seconds", "pull_policy", "on_oom", "pinned"}
)
"""What the agent alone acts upon: changing it needs no new container."""


@dataclass(frozen=True, slots=True)
class DiskSpec:
    name: DiskName
    cid: DiskCid
    device: str = ""  # the cloud's hint, a path such as /dev/disk/by-id/virtio-<cid>; "" before it is attached
    filesystem: str = "ext4"  # or xfs
    mount_options: tuple[str, ...] = ()
    size_mib: int = 0
    replaces: DiskCid = DiskCid("")  # the disk that it is a finished copy of: a mark that says so is accepted
    taken_from: str = ""  # "instance/disk" whose mark is accepted, and overwritten, by a person's word


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    instance: InstanceId
    deployment: DeploymentName
    group: str
    index: int
    generation: Generation
    revision: Revision
    wanted: Wanted = Wanted.STARTED
    stopped_containers: tuple[ContainerName, ...] = ()  # by a person's word
    containers: tuple[ContainerSpec, ...] = ()
    disks: tuple[DiskSpec, ...] = ()
    networks: tuple[str, ...] = ()  # user-defined bridge networks to make on the VM, beside the instance's own
    on_isolation: OnIsolation = OnIsolation.KEEP
    heartbeat_interval_seconds: float = 5.0
    lease_seconds: float = 15.0
    image_rate_bytes: int = IMAGE_RATE_BYTES


def spec_hash(container: ContainerSpec) -> str:
    """16 hex digits over what a container is created from. Equal hashes: the running container may stay."""
    parts: dict[str, Any] = {}
    for item in dataclasses.fields(container):
        value = getattr(container, item.name)
        if item.name in SUPERVISED_FIELDS or value == _default(item):
            continue
        parts[item.name] = _plain(value)
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return dataclasses.MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: _plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if getattr(value, item.name) != _default(item)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
