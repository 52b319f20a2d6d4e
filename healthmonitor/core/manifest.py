"""What a deployment's YAML says, as values. The parser with its errors is in `manifest_file.py` and `compose.py`.

Law: a Manifest that exists is valid as a whole: every reference in it resolves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.ids import CloudName, DeploymentName, DiskName
from protocol.spec import ContainerSpec, OnIsolation


@dataclass(frozen=True, slots=True)
class VmSize:
    cpus: int = 1
    memory_mib: int = 1024
    cloud_properties: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskGrowth:
    """When `at_share` of it is used a disk becomes larger by `by_share` of itself, at most `up_to_mib`."""

    at_share: float
    by_share: float
    up_to_mib: int


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """A snapshot every so often; the newest `keep` are kept."""

    every_seconds: float
    keep: int


@dataclass(frozen=True, slots=True)
class DiskRequirement:
    name: DiskName
    size_mib: int
    filesystem: str = "ext4"
    mount_options: tuple[str, ...] = ()
    cloud_properties: Mapping[str, Any] = field(default_factory=dict)
    grow: DiskGrowth | None = None
    snapshots: SnapshotSchedule | None = None


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    canaries: int = 1
    max_in_flight: int = 1
    canary_watch_seconds: float = 300.0  # an instance that is not healthy by then has failed
    update_watch_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    name: str
    instances: int
    vm: VmSize
    stemcell: str
    cloud: CloudName
    disks: tuple[DiskRequirement, ...]
    containers: tuple[ContainerSpec, ...]
    update: UpdatePolicy
    networks: tuple[str, ...] = ()
    on_isolation: OnIsolation = OnIsolation.KEEP
    resurrection: bool = True


@dataclass(frozen=True, slots=True)
class Manifest:
    name: DeploymentName
    groups: tuple[InstanceGroup, ...]
