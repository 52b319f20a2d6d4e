"""The cloud as the resurrector needs it. Every provider passes `tests/contract/test_cloud.py`.

Laws:
- Every call may be repeated: creating with the same idempotency key gives the same thing; deleting, detaching and
  attaching what already is so succeed.
- A fence proof is a state that the hypervisor's side reports, not the absence of a record. No proof in time is
  `Unfenced`, never an exception, and never a proof.
- A call that ends in `CloudUnavailable` has an unknown outcome: observe, then repeat.
- `attach_disk` refuses a disk that another VM holds (`DiskHeld`), whatever state that VM is in.

Does not know: instances, plans, incidents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from healthmonitor.core.disk_changes import DiskAbilities
from protocol.ids import CloudName, DiskCid, VmCid
from protocol.settings import AgentSettings


class CloudError(Exception):
    """Base. The text says what the cloud said and what to do; whether to retry is the subclass."""


class CloudUnavailable(CloudError):
    """No answer, or a passing refusal (rate limit, busy). Outcome unknown. Retry later with the same key."""


class CloudRefused(CloudError):
    """A definite no: bad properties, no such stemcell, quota. Retrying unchanged will not help, but quotas change:
    retried with growing delay, and shown."""


class VmNotFound(CloudError):
    """The cloud has no record of it. NOT a proof that it does not run."""


class DiskNotFound(CloudError):
    """The cloud has no such disk. Never answered by making a new one in its place."""


class DiskHeld(CloudError):
    """Another VM holds the disk; `holders` names them."""

    def __init__(self, message: str, holders: frozenset[VmCid]) -> None:
        super().__init__(message)
        self.holders = holders


class Power(Enum):
    RUNNING = "running"
    PAUSED = "paused"  # exists, executes nothing at the moment, may go on
    STARTING = "starting"
    STOPPING = "stopping"
    OFF = "off"  # reported by the hypervisor's side: cannot write
    GONE = "gone"  # no record; proves nothing by itself
    UNKNOWN = "unknown"  # the cloud cannot say (host unreachable)


@dataclass(frozen=True, slots=True)
class VmObservation:
    power: Power
    evidence: str  # one line: what was looked at and what it said


@dataclass(frozen=True, slots=True)
class FenceProof:
    """The VM can no longer write. `evidence` is kept in the journal."""

    vm_cid: VmCid
    evidence: str


@dataclass(frozen=True, slots=True)
class Unfenced:
    vm_cid: VmCid
    reason: str  # what was tried, what is missing for a proof, what a person can do


@dataclass(frozen=True, slots=True)
class VmRequest:
    key: str
    """Idempotency key, at most 60 characters of [a-z0-9-]: the same key never makes a second VM."""
    name: str  # for people, in the cloud's console
    stemcell: str
    cpus: int
    memory_mib: int
    settings: AgentSettings
    cloud_properties: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiskRequest:
    key: str  # idempotency key, as above
    size_mib: int
    cloud_properties: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VmSummary:
    vm_cid: VmCid
    key: str
    power: Power
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DiskSummary:
    disk_cid: DiskCid
    key: str
    size_mib: int
    holders: frozenset[VmCid]
    tags: Mapping[str, str]


@runtime_checkable
class Reshaping(Protocol):
    """What a cloud may offer beside `Cloud`: to give a running VM, made before it was known for whom, what it lacks.
    Where it is missing, a spare has to be made with everything, and keeps the tags it was made with."""

    def lasting_properties(self, cloud_properties: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those that a VM has to be made with. Never raises: wrong ones are `create_vm`'s to refuse."""
        ...

    async def reshape_vm(self, vm: VmCid, cloud_properties: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """The other properties, and other tags. May be repeated; a VM that stands still is not woken by it. VmNotFound,
        CloudRefused, CloudUnavailable."""
        ...


@runtime_checkable
class Snapshotting(Protocol):
    """What a cloud may offer beside `Cloud`, and says so in `disk_abilities`."""

    @property
    def disk_abilities(self) -> DiskAbilities: ...

    async def snapshot_disk(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        """A disk of its own with what `disk` held at one moment, also while a VM writes to it: as after a power cut.
        Returns when all of it is there. The same key gives the same one; one that was begun is finished, or begun
        anew. `request` says key and tags; size and properties are the disk's. DiskNotFound, CloudUnavailable (also
        when it cannot be taken just now)."""
        ...

    async def drop_snapshot(self, key: str) -> None:
        """Ends what is on its way of the snapshot with this key, then removes what there is of it. One that is not
        there is fine. DiskHeld, CloudUnavailable."""
        ...


def snapshots_of(cloud: object) -> Snapshotting | None:
    """The cloud, where it has snapshots."""
    return cloud if isinstance(cloud, Snapshotting) and cloud.disk_abilities.snapshots else None


class Cloud(Protocol):
    """One configured cloud. All calls are coroutines with a deadline of their own inside; none blocks the loop."""

    @property
    def name(self) -> CloudName: ...

    @property
    def disk_abilities(self) -> DiskAbilities:
        """What this cloud can do with its disks."""
        ...

    async def create_vm(self, request: VmRequest) -> VmCid: ...

    async def find_vm(self, key: str) -> VmCid | None:
        """The VM made with this key, if there is one, in whatever state."""
        ...

    async def observe(self, vm: VmCid) -> VmObservation: ...

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        """Switches the VM off hard and reports the proof. Fencing what is off gives the proof again, also long after;
        a VM whose record is gone is `Unfenced` unless the provider kept the proof."""
        ...

    async def delete_vm(self, vm: VmCid) -> None:
        """Frees everything but its persistent disks. A missing VM is fine."""
        ...

    async def list_vms(self) -> list[VmSummary]:
        """Those that Resurgam made in this cloud."""
        ...

    async def create_disk(self, request: DiskRequest) -> DiskCid: ...

    async def delete_disk(self, disk: DiskCid) -> None:
        """DiskHeld when attached. A missing disk is fine."""
        ...

    async def list_disks(self) -> list[DiskSummary]: ...

    async def attach_disk(self, vm: VmCid, disk: DiskCid) -> str:
        """The device path by which the guest finds it. DiskHeld, VmNotFound, DiskNotFound."""
        ...

    async def detach_disk(self, vm: VmCid, disk: DiskCid) -> None: ...

    async def disk_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        """Read from the hypervisor's side, not from our own record. DiskNotFound."""
        ...

    async def resize_disk(self, disk: DiskCid, size_mib: int) -> None:
        """Grows it, attached or not as `disk_abilities` says. Smaller than it is: CloudRefused. DiskNotFound."""
        ...

    async def close(self) -> None:
        """Releases connections. VMs keep running."""
        ...
