"""Spare VMs: booted, with an agent and without an instance, so that whoever needs a VM has one at once.

Laws:
- How many there should be follows from what is deployed: so many for each stemcell and size that is asked for.
- A spare goes to one instance and never comes back once a record has named it: what may have held a disk is fenced and
  deleted, not kept. Only one that was taken, and that no record can have named, is given back.
- One that is lost, that nobody wants any more, or whose stemcell was built anew is retired: fenced with proof, deleted.
- Filling up waits while an operation in the same cloud is under way: who needs a VM now goes first.

Does not know: how a VM is made or removed, who leads (healthmonitor/spares.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.manifest import InstanceGroup
from healthmonitor.core.policy import Policy, SparePolicy
from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    RolloutState,
    SparePool,
    SpareRecord,
    SpareState,
    Step,
)
from protocol.ids import AgentId, CloudName, ContainerName, Generation, InstanceId, instance_id
from protocol.spec import ImagePin, PullPolicy

KEY_PREFIX = "spare-"
RETIRED_EVENT = "spare.retired"
KINDS = frozenset({"spare_not_made"})
_PLACE_PREFIX = "spare:"
_BEFORE_VM = frozenset(
    {Step.CONFIRM, Step.DRAIN, Step.FENCE, Step.DELETE_VM, Step.MAKE_DISKS, Step.FREE_DISKS, Step.CREATE_VM}
)
_AFTER_VM = frozenset({Step.ATTACH, Step.HEAR_AGENT, Step.MOUNT, Step.APPLY, Step.HEALTHY})

Lasting = Callable[[CloudName, Mapping[str, Any]], Mapping[str, Any]]
"""Of a cloud's properties those that a VM has to be made with; the others can be given to it later."""


@dataclass(frozen=True, slots=True, order=True)
class SpareImage:
    """An image that a spare should have. `pinned`: the very one that an instance runs, where its name may mean another
    by now."""

    image: str
    policy: PullPolicy = field(default=PullPolicy.MISSING, compare=False)
    pinned: ImagePin | None = field(default=None, compare=False)
    pinned_id: str = ""

    @property
    def key(self) -> str:
        """Under which a spare is known to have it."""
        return f"{self.image} {self.pinned_id}" if self.pinned_id else self.image


@dataclass(frozen=True, slots=True)
class Want:
    count: int
    images: tuple[SpareImage, ...]
    version: str  # of the stemcell, as it is now; "": not known


@dataclass(frozen=True, slots=True)
class Make:
    pool: SparePool
    version: str


@dataclass(frozen=True, slots=True)
class Retire:
    key: str
    why: str


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Taken, and never anybody's."""

    key: str


@dataclass(frozen=True, slots=True)
class Forget:
    """It is somebody's VM now: its record says nothing more."""

    key: str


Act = Make | Retire | GiveBack | Forget


@dataclass(frozen=True, slots=True)
class Inputs:
    policy: SparePolicy
    wanted: Mapping[SparePool, Want]
    spares: Mapping[str, SpareRecord]
    instances: Mapping[InstanceId, InstanceRecord] = field(default_factory=dict)
    operations: Mapping[InstanceId, Operation] = field(default_factory=dict)
    deployments: tuple[DeploymentRecord, ...] = ()
    lost: Mapping[str, str] = field(default_factory=dict)  # key → evidence
    held_pools: frozenset[SparePool] = frozenset()  # whose last spare never came up, a short while ago


def decide(inputs: Inputs) -> tuple[Act, ...]:
    acts: list[Act] = []
    kept: dict[SparePool, list[SpareRecord]] = {pool: [] for pool in inputs.wanted}
    making = 0
    for spare in inputs.spares.values():
        making += spare.state is SpareState.MAKING
        match spare.state:
            case SpareState.TAKEN:
                acts += _of_taken(spare, inputs)
            case SpareState.MAKING | SpareState.READY:
                why = _why_not_kept(spare, inputs)
                if why:
                    acts.append(Retire(spare.key, why))
                else:
                    kept[spare.pool].append(spare)
            case SpareState.RETIRING:
                pass
    for pool, spares in kept.items():
        want = inputs.wanted[pool]
        spares.sort(key=lambda spare: (spare.state is not SpareState.READY, spare.made_at))
        acts += [Retire(spare.key, f"there are more than {want.count}") for spare in spares[want.count :]]
        if pool in inputs.held_pools or _is_busy(pool.cloud, inputs):
            continue
        for _ in range(len(spares), want.count):
            if making >= inputs.policy.making_max:
                break
            making += 1
            acts.append(Make(pool, want.version))
    return tuple(acts)


def wanted(
    deployments: Iterable[DeploymentRecord],
    records: Iterable[InstanceRecord],
    policy: SparePolicy,
    lasting: Lasting,
    version_of: Callable[[CloudName, str], str],
) -> dict[SparePool, Want]:
    """What spares there should be, and which images each should have: those that manifests name, and those that
    instances are pinned to."""
    instances: Counter[SparePool] = Counter()
    images: dict[SparePool, set[SpareImage]] = {}
    for deployment in deployments:
        if deployment.deleting:
            continue
        for group in deployment.manifest.groups:
            if policy.per_size.get(group.cloud, 0) > 0 and group.instances > 0:
                pool = pool_of(group, lasting)
                instances[pool] += group.instances
                images.setdefault(pool, set()).update(images_of(group))
    pools_of_groups: dict[int, SparePool] = {}  # instances share their groups, and there may be thousands
    for record in records:
        if not record.deleting and policy.per_size.get(record.group.cloud, 0) > 0:
            pool = pools_of_groups.get(id(record.group)) or pool_of(record.group, lasting)
            pools_of_groups[id(record.group)] = pool
            if pool in images:
                images[pool].update(images_of(record.group, record.pinned_images))
    pools = sorted(instances, key=lambda pool: (-instances[pool], str(pool), pool.properties))[: policy.pools_max]
    return {
        pool: Want(
            policy.per_size[pool.cloud],
            tuple(sorted(images[pool])[: policy.images_max]),
            version_of(pool.cloud, pool.stemcell),
        )
        for pool in pools
    }


def images_of(group: InstanceGroup, pins: Mapping[ContainerName, ImagePin] | None = None) -> Iterator[SpareImage]:
    """What VMs of this group need; with an instance's pins, its VM. What is never to be fetched is in the stemcell or
    nowhere."""
    for container in group.containers:
        if container.pull_policy is PullPolicy.NEVER:
            continue
        pin = (pins or {}).get(container.name)
        if pin is None or pin.image != container.image:
            yield SpareImage(container.image, container.pull_policy)
        else:
            yield SpareImage(container.image, container.pull_policy, pin, pin.image_id)


def pool_of(group: InstanceGroup, lasting: Lasting) -> SparePool:
    properties = json.dumps(lasting(group.cloud, group.vm.cloud_properties), sort_keys=True, default=str)
    return SparePool(group.cloud, group.stemcell, group.vm.cpus, group.vm.memory_mib, properties)


def choose(
    spares: Iterable[SpareRecord],
    pool: SparePool,
    version: str,
    instance: InstanceId,
    generation: Generation,
    images: frozenset[str],
    is_alive: Callable[[AgentId], bool],
) -> SpareRecord | None:
    """The spare for this VM of this instance: one that it has taken already, or the best that there is."""
    fitting: list[SpareRecord] = []
    for spare in spares:
        if spare.state is SpareState.TAKEN and (spare.taken_by, spare.taken_generation) == (instance, generation):
            return spare
        if spare.state is SpareState.READY and spare.pool == pool and not _is_outdated(spare, version):
            fitting.append(spare)
    fitting = [spare for spare in fitting if is_alive(spare.agent_id)]
    return min(fitting, key=lambda spare: (len(images.difference(spare.images)), spare.made_at), default=None)


def place(key: str) -> InstanceId:
    """What stands for a spare where its agent is expected. No instance's id has a colon."""
    return InstanceId(_PLACE_PREFIX + key)


def key_of_place(place: InstanceId) -> str:
    """ "" for an instance."""
    return place.removeprefix(_PLACE_PREFIX) if place.startswith(_PLACE_PREFIX) else ""


def evaluate_spares(spares: Iterable[SpareRecord], policy: Policy) -> Iterator[Deviation]:
    for spare in spares:
        if spare.error:
            doing = "is not removed" if spare.state is SpareState.RETIRING else "is not made"
            yield deviation("spare_not_made", spare.key, f"{spare.pool}: it {doing}: {spare.error}", policy)
        elif spare.images_error:
            yield deviation("spare_not_made", spare.key, f"{spare.pool}: lacks images: {spare.images_error}", policy)


def _of_taken(spare: SpareRecord, inputs: Inputs) -> list[Act]:
    assert spare.taken_by is not None
    record = inputs.instances.get(spare.taken_by)
    operation = inputs.operations.get(spare.taken_by)
    bound = [record.vm if record is not None else None, operation.old_vm if operation is not None else None]
    if any(vm is not None and vm.key == spare.key for vm in bound):
        return [Forget(spare.key)]
    if operation is not None and operation.step is not Step.DONE:
        return []  # it may be about to name it
    if record is not None and record.generation < spare.taken_generation:
        return [GiveBack(spare.key)]
    return [Retire(spare.key, f"{spare.taken_by} had taken it")]


def _why_not_kept(spare: SpareRecord, inputs: Inputs) -> str:
    if spare.key in inputs.lost:
        return f"lost: {inputs.lost[spare.key]}"
    want = inputs.wanted.get(spare.pool)
    if want is None:
        return "nobody asks for VMs like it any more"
    if _is_outdated(spare, want.version):
        return f"stemcell {spare.pool.stemcell} was built anew"
    return ""


def _is_outdated(spare: SpareRecord, version: str) -> bool:
    return bool(version) and spare.version != version


def _is_busy(cloud: CloudName, inputs: Inputs) -> bool:
    """Whether somebody needs a VM there now, or is about to. One that waits for its VM counts as long as it waits, also
    where the cloud has no room; what has its VM and fails later holds up nobody."""
    for instance, operation in inputs.operations.items():
        record = inputs.instances.get(instance)
        if record is None or record.group.cloud != cloud or operation.kind is OperationKind.UPDATE:
            continue
        waits = operation.step in _BEFORE_VM and operation.hold in (Hold.NONE, Hold.RETRYING)
        if waits or (operation.step in _AFTER_VM and operation.hold is Hold.NONE):
            return True
    return any(
        instance_id(deployment.name, group.name, index) not in inputs.instances
        for deployment in inputs.deployments
        if not deployment.deleting and deployment.rollout is not RolloutState.FAILED
        for group in deployment.manifest.groups
        if group.cloud == cloud
        for index in range(group.instances)
    )
