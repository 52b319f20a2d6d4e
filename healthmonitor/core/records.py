"""What the monitor writes down: deployments, instances, operations, incidents. One JSON value per key, per bucket.

Law: an operation's `step` is the step about to be taken, written before it is taken; every step may be repeated, so
whoever reads the record can go on. A record carries all that its step needs: nothing lives only in memory.
Times are Unix seconds: they are for people and for delays, never for verdicts.

Buckets: `deployments` (key: name), `instances` and `operations` (key: protocol.ids.instance_key), `incidents`
(key: Incident.key escaped), `orphans` (key: cloud and disk key escaped), `silences` (key: id), `leader` (key `lease`),
`switches` (key `switches`). Log: `events`. Queues: `outbox` and `threads` (healthmonitor/outbox.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from healthmonitor.core.manifest import InstanceGroup, Manifest
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
from protocol.spec import DiskSpec, InstanceSpec, Wanted


@dataclass(frozen=True, slots=True)
class VmBinding:
    """The VM that fills an instance. `vm_cid` is None between the intent to create it and the cloud's answer; `key`
    is the idempotency key under which the cloud knows it either way."""

    agent_id: AgentId
    generation: Generation
    key: str
    vm_cid: VmCid | None = None


@dataclass(frozen=True, slots=True)
class DiskBinding:
    name: DiskName
    key: str
    size_mib: int
    cid: DiskCid | None = None
    device: str = ""
    filesystem: str = "ext4"
    mount_options: tuple[str, ...] = ()


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
    pinned_images: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OrphanDisk:
    """A disk that no instance uses any more, kept with its data. The place that it belonged to adopts it when it asks
    for a disk of that name again."""

    cloud: CloudName
    key: str
    cid: DiskCid
    name: DiskName
    size_mib: int
    filesystem: str
    instance: InstanceId
    since: float  # Unix seconds


class OperationKind(Enum):
    CREATE = "create"
    RESURRECT = "resurrect"
    RECREATE = "recreate"  # a healthy or unhealthy VM replaced on purpose
    UPDATE = "update"  # in place
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


def instance_spec(
    record: InstanceRecord,
    heartbeat_interval_seconds: float,
    lease_seconds: float,
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
        containers=record.group.containers,
        disks=tuple(
            DiskSpec(
                name=disk.name,
                cid=disk.cid,
                device=disk.device,
                filesystem=disk.filesystem,
                mount_options=disk.mount_options,
                size_mib=disk.size_mib,
            )
            for disk in record.disks
            if disk.cid is not None
        ),
        networks=record.group.networks,
        on_isolation=record.group.on_isolation,
        heartbeat_interval_seconds=heartbeat_interval_seconds,
        lease_seconds=lease_seconds,
    )
