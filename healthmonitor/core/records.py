"""What the monitor writes down: deployments, instances, operations, incidents. One JSON value per key, per bucket.

Law: an operation's `step` is the step about to be taken, written before it is taken; every step may be repeated, so
whoever reads the record can go on. A record carries all that its step needs: nothing lives only in memory.
Times are Unix seconds: they are for people and for delays, never for verdicts.

Buckets: `deployments` (key: name), `instances` and `operations` (key: protocol.ids.instance_key), `incidents`
(key: Incident.key escaped), `orphans` (key: cloud and disk key escaped), `silences` and `maintenance` (key: id),
`spares` (key: the cloud's key, escaped), `leader` (key `lease`), `switches` (key `switches`). Log: `events`. Queues:
`outbox` and `threads` (healthmonitor/outbox.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from healthmonitor.core.maintenance import Window
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.spec import IMAGE_RATE_BYTES, ContainerSpec, DiskSpec, ImagePin, InstanceSpec, Wanted


@dataclass(frozen=True, slots=True)
class VmBinding:
    """The VM that fills an instance. `vm_cid` is None between the intent to create it and the cloud's answer; `key`
    is the idempotency key under which the cloud knows it either way."""

    agent_id: AgentId
    generation: Generation
    key: str
    vm_cid: VmCid | None = None
    spare: bool = False  # it was booted before anybody needed it, and its agent has to be told whom it is now


class SpareState(Enum):
    MAKING = "making"  # its intent is written; until its agent was heard and its engine is up
    READY = "ready"
    TAKEN = "taken"  # by `taken_by`, whose record may name it already
    RETIRING = "retiring"  # to be fenced and deleted


@dataclass(frozen=True, slots=True)
class SparePool:
    """What spares have in common: any of them can be the VM of any instance that asks for just this."""

    cloud: CloudName
    stemcell: str
    cpus: int
    memory_mib: int
    properties: str = "{}"  # JSON, sorted: those that a VM has to be made with

    def __str__(self) -> str:
        return f"{self.cloud}: {self.stemcell}, {self.cpus} CPU, {self.memory_mib} MiB"


@dataclass(frozen=True, slots=True)
class SpareRecord:
    """A VM with an agent and without an instance. `key`: under which its cloud knows it, and it is known here."""

    key: str
    pool: SparePool
    agent_id: AgentId
    made_at: float  # Unix seconds
    version: str = ""  # of the stemcell; "" where that cannot be told
    state: SpareState = SpareState.MAKING
    vm_cid: VmCid | None = None
    images: tuple[str, ...] = ()  # that it was told to have, and has
    images_error: str = ""
    taken_by: InstanceId | None = None
    taken_generation: Generation = Generation(0)
    fence_proof: str = ""
    error: str = ""  # of the last try, for people
    attempts: int = 0
    next_try_at: float = 0.0  # Unix seconds


class DiskWay(Enum):
    """How a disk waits to be changed, where that needs its containers stopped (`core/disk_changes.py`)."""

    NONE = ""
    UNMOUNT = "unmount"  # grows while it is unmounted
    DETACH = "detach"  # grows while it is attached to nobody
    COPY = "copy"  # another disk is made, and takes its place once it has all of the data
    TAKE = "take"  # another disk, which has data, takes its place


@dataclass(frozen=True, slots=True)
class Successor:
    """The disk that will take another's place. `ready`: it has all of the data, read back, and nobody has mounted the
    other one since. `taken_from`: `instance/disk` whose mark it bears, when a person gave it to this place."""

    way: DiskWay
    key: str
    size_mib: int
    filesystem: str
    cid: DiskCid | None = None
    device: str = ""
    cloud_properties: Mapping[str, Any] | None = None
    taken_from: str = ""
    ready: bool = False
    made_at: float = 0.0


@dataclass(frozen=True, slots=True)
class DiskBinding:
    """`required_mib`: the size that the manifest asked for when this was last seen to; the disk may be larger. 0, and
    None for `cloud_properties`: not known, so nothing is concluded from it. `replaces`: the disk that this one was
    copied from."""

    name: DiskName
    key: str
    size_mib: int
    cid: DiskCid | None = None
    device: str = ""
    filesystem: str = "ext4"
    mount_options: tuple[str, ...] = ()
    required_mib: int = 0
    cloud_properties: Mapping[str, Any] | None = None
    replaces: DiskCid = DiskCid("")
    taken_from: str = ""
    way: DiskWay = DiskWay.NONE
    why: str = ""  # it waits to be changed, for people
    successor: Successor | None = None
    given_up_for: DiskRequirement | None = None
    """What was asked for and could not be done; it is tried again when something else is asked for."""
    given_up_why: str = ""
    made_at: float = 0.0  # Unix seconds; 0: not known
    grown_mib: int = 0  # what it was last told to grow to by itself (core/disk_growth.py)
    grown_at: float = 0.0  # Unix seconds

    def unplugged(self) -> DiskBinding:
        """As it is known while it is in no VM. A copy is not trusted over that."""
        successor = None if self.successor is None else replace(self.successor, device="", ready=False)
        return replace(self, device="", successor=successor)


@dataclass(frozen=True, slots=True)
class InstanceRecord:
    """The expected state of one instance. `group` is the manifest's group that this instance has been moved to, which
    during a rollout may be older than the deployment's."""

    instance: InstanceId
    deployment: DeploymentName
    index: int
    group: InstanceGroup
    deployment_revision: Revision  # of the deployment whose group this is
    revision: Revision  # of the specification given to the agent; grows with every change of it
    generation: Generation = Generation(0)  # of the latest VM; 0: none yet
    vm: VmBinding | None = None
    disks: tuple[DiskBinding, ...] = ()
    wanted: Wanted = Wanted.STARTED
    stopped_containers: tuple[str, ...] = ()
    deleting: bool = False
    ignore: bool = False  # a person said: leave it alone
    pinned_images: Mapping[ContainerName, ImagePin] = field(default_factory=dict)


class OrphanCause(Enum):
    RELEASED = "released"  # no longer asked for, or its instance is gone
    REPLACED = "replaced"  # another disk took its place
    SNAPSHOT = "snapshot"  # what a disk held at one moment (core/snapshots.py)
    UNFINISHED = "unfinished"  # a copy that was given up; nothing was ever written to it but a part of the data


@dataclass(frozen=True, slots=True)
class OrphanDisk:
    """A disk that no instance uses any more, kept with its data. When it was RELEASED, the place that it belonged to
    adopts it when it asks for a disk of that name again."""

    cloud: CloudName
    key: str
    cid: DiskCid
    name: DiskName
    size_mib: int
    filesystem: str
    instance: InstanceId
    since: float  # Unix seconds
    cause: OrphanCause = OrphanCause.RELEASED
    kept_until: float = 0.0  # Unix seconds; a person's word. 0: as long as the configuration says
    cloud_properties: Mapping[str, Any] | None = None
    taken_from: str = ""  # whose mark it still bears, when that is not `instance` and `name`
    deleting: bool = False  # its deletion has begun: nobody gets it any more
    made_at: float = 0.0  # Unix seconds; 0: not known
    snapshot_of: DiskCid = DiskCid("")  # of a snapshot; `cid` is "" until it is taken
    scheduled: bool = False  # it was taken by a schedule, and is kept by that
    before_migration: bool = False  # it was taken before `snapshot_of` was copied to another disk


class OperationKind(Enum):
    CREATE = "create"
    RESURRECT = "resurrect"
    RECREATE = "recreate"  # a healthy or unhealthy VM replaced on purpose
    UPDATE = "update"  # in place
    CHANGE_DISKS = "change_disks"  # in place, with its containers stopped
    DELETE = "delete"


class Step(Enum):
    """In this order; which of them a kind takes stands in `core/operation.py`."""

    CONFIRM = "confirm"  # ask once more before anything irreversible
    GUARD = "guard"  # meltdown, budget, switches, concurrency
    DRAIN = "drain"
    FENCE = "fence"
    DELETE_VM = "delete_vm"
    MAKE_DISKS = "make_disks"
    FREE_DISKS = "free_disks"  # nobody may hold them
    CREATE_VM = "create_vm"
    ATTACH = "attach"  # while the VM boots
    HEAR_AGENT = "hear_agent"
    SNAPSHOT = "snapshot"  # of disks that are to be copied
    QUIESCE = "quiesce"  # containers are stopped
    REWORK = "rework"  # disks grow offline, or are copied
    SWAP = "swap"  # copies take their places
    MOUNT = "mount"
    APPLY = "apply"
    HEALTHY = "healthy"
    FORGET = "forget"  # a deleted instance's record
    DONE = "done"


class Hold(Enum):
    """Why an operation does not go on by itself, or goes slowly. NONE: it is under way."""

    NONE = ""
    RETRYING = "retrying"
    UNFENCED = "unfenced"
    DISABLED = "resurrection_disabled"
    PAUSED = "paused"
    MELTDOWN = "meltdown"
    BUDGET = "budget"
    CONCURRENCY = "concurrency"
    MAINTENANCE = "maintenance"
    CANNOT_TELL = "cannot_tell"
    UNHEALTHY = "unhealthy"  # everything was done, the containers are not healthy (yet)


@dataclass(frozen=True, slots=True)
class StepTiming:
    step: Step
    started_at: float  # Unix seconds
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    id: OperationId
    instance: InstanceId
    kind: OperationKind
    step: Step
    reason: str  # one sentence for people: why it was begun
    started_at: float
    old_vm: VmBinding | None = None  # to be fenced
    fence_proof: str = ""  # evidence; empty until there is one
    proof_by: str = ""  # "cloud", or the person who vouched
    attempts: int = 0  # of the present step
    next_try_at: float = 0.0  # Unix seconds
    hold: Hold = Hold.NONE
    error: str = ""  # of the last try, with what to do next
    timings: tuple[StepTiming, ...] = ()
    rollout_revision: Revision = Revision(0)  # >0: part of a rollout of this deployment revision
    step_started_at: float = 0.0  # Unix seconds; of the present step's first try
    vms_lost: int = 0  # VMs that this operation made and that never came up; each one delays the next


class RolloutState(Enum):
    NONE = "none"
    CANARIES = "canaries"
    REST = "rest"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    name: DeploymentName
    revision: Revision
    manifest: Manifest
    manifest_text: str
    deployed_by: str
    deployed_at: float
    rollout: RolloutState = RolloutState.NONE
    rollout_error: str = ""
    deleting: bool = False
    delete_disks: bool = False


class Severity(Enum):
    """BOSH's numbers."""

    ALERT = 1
    CRITICAL = 2
    ERROR = 3
    WARNING = 4


@dataclass(frozen=True, slots=True)
class Incident:
    """A deviation that lasts. `key` stays the same from opening to resolution."""

    key: str  # "<kind>:<subject>", e.g. "vm_missing:shop/db/0"
    kind: str
    subject: str  # an instance id, "instance/container", a deployment, or "fleet"
    severity: Severity
    title: str
    detail: str
    opened_at: float
    updated_at: float
    resolved_at: float | None = None
    resolution: str = ""
    inhibited_by: str = ""  # the key of the incident that explains this one
    next_step: str = ""  # what a person may type
    lasted_seconds: float | None = None
    """By a clock that nobody sets, where one and the same monitor saw it begin and end."""

    def took_seconds(self, until: float) -> float | None:
        """How long it lasted, or until then; None: nobody can know, because the clock was set back meanwhile."""
        if self.lasted_seconds is not None:
            return self.lasted_seconds
        seconds = until - self.opened_at
        return seconds if seconds >= 0.0 else None


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the timeline."""

    at: float
    kind: str  # dotted: operation.step, incident.opened, operator.paused, …
    subject: str
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Switches:
    """What people switched at run time; the configuration file's switches stand beside them and both must be on."""

    resurrection: bool = True
    paused_until: float = 0.0  # Unix seconds; while in the future nothing is begun
    paused_by: str = ""
    meltdown_overridden_until: float = 0.0  # a person's word lets resurrection go on in spite of a meltdown
    overridden_by: str = ""


@dataclass(frozen=True, slots=True)
class Silence:
    """What nobody is told of until it ends. Globs; "" matches everything, but not all four may be "" at once."""

    id: str
    ends_at: float  # Unix seconds, as the following
    created_at: float
    created_by: str
    because: str
    deployment: str = ""
    group: str = ""
    instance: str = ""
    kind: str = ""
    ended_by: str = ""  # who ended it before its time


@dataclass(frozen=True, slots=True)
class Maintenance:
    """A window that a person added. `window.reason` is what they said; it stands in holds and explanations."""

    id: str
    window: Window
    created_at: float  # Unix seconds
    created_by: str
    ended_at: float | None = None  # by a person, before its time
    ended_by: str = ""


def instance_spec(
    record: InstanceRecord,
    heartbeat_interval_seconds: float,
    lease_seconds: float,
    image_rate_bytes: int = IMAGE_RATE_BYTES,
) -> InstanceSpec:
    """What the agent of this instance is told by `apply`."""
    return InstanceSpec(
        instance=record.instance,
        deployment=record.deployment,
        group=record.group.name,
        index=record.index,
        generation=record.generation,
        revision=record.revision,
        wanted=record.wanted,
        stopped_containers=tuple(ContainerName(name) for name in record.stopped_containers),
        containers=tuple(_pinned(container, record) for container in record.group.containers),
        disks=tuple(
            DiskSpec(
                name=disk.name,
                cid=disk.cid,
                device=disk.device,
                filesystem=disk.filesystem,
                mount_options=disk.mount_options,
                size_mib=disk.size_mib,
                replaces=disk.replaces,
                taken_from=disk.taken_from,
            )
            for disk in record.disks
            if disk.cid is not None
        ),
        networks=record.group.networks,
        on_isolation=record.group.on_isolation,
        heartbeat_interval_seconds=heartbeat_interval_seconds,
        lease_seconds=lease_seconds,
        image_rate_bytes=image_rate_bytes,
    )


def _pinned(container: ContainerSpec, record: InstanceRecord) -> ContainerSpec:
    pin = record.pinned_images.get(container.name)
    return container if pin is None or pin.image != container.image else replace(container, pinned=pin)
