"""What a heartbeat says, made from what is known: BOSH's keys and ours.

Laws: nothing is looked up here, so that making a heartbeat cannot wait. A heartbeat always fits: details for people go
first, then ids, then the containers that are as they should be.

Does not know: clocks, the bus, psutil.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol import heartbeat
from protocol.heartbeat import ContainerReport, ContainerState, DiskReport, DiskState, EngineState, Extension, Heartbeat
from protocol.ids import Generation, InstanceId, split_instance_id
from protocol.spec import InstanceSpec, Wanted

_AS_IT_SHOULD_BE = frozenset({ContainerState.RUNNING, ContainerState.COMPLETED, ContainerState.STOPPED})
_ON_THE_WAY = frozenset(
    {
        ContainerState.PENDING,
        ContainerState.PULLING,
        ContainerState.CREATING,
        ContainerState.STARTING,
        ContainerState.STOPPING,
        ContainerState.ORPHANED,
    }
)
_BAD_DISKS = frozenset({DiskState.FAILED, DiskState.READ_ONLY, DiskState.MISSING})


@dataclass(frozen=True, slots=True)
class Facts:
    generation: Generation
    instance: InstanceId | None
    spec: InstanceSpec | None
    engine: EngineState
    containers: tuple[ContainerReport, ...]
    disks: tuple[DiskReport, ...]
    vitals: Mapping[str, Any]
    isolated: bool
    draining: bool
    boot_id: str
    agent_version: str


def compose(facts: Facts, sequence: int, sent_at_seconds: float) -> Heartbeat:
    deployment, job, index = _place(facts)
    return Heartbeat(
        deployment=deployment,
        job=job,
        index=index,
        job_state=job_state(facts),
        vitals=dict(facts.vitals),
        node_id=_instance(facts),
        number_of_processes=len(facts.containers) if facts.engine is EngineState.UP else None,
        resurgam=Extension(
            generation=facts.generation,
            revision=facts.spec.revision if facts.spec is not None else 0,
            sequence=sequence,
            boot_id=facts.boot_id,
            sent_at_seconds=sent_at_seconds,
            instance=_instance(facts),
            engine=facts.engine,
            containers=facts.containers,
            disks=facts.disks,
            wanted=(facts.spec.wanted if facts.spec is not None else Wanted.STARTED).value,
            isolated=facts.isolated,
            draining=facts.draining,
            agent_version=facts.agent_version,
        ),
    )


def job_state(facts: Facts) -> str:
    """BOSH's five words. A failing container outweighs one that is starting: it is what a person must see."""
    if facts.engine is not EngineState.UP:
        return "unknown"
    states = {container.state for container in facts.containers}
    if any(disk.state in _BAD_DISKS for disk in facts.disks) or states - _AS_IT_SHOULD_BE - _ON_THE_WAY:
        return "failing"
    if facts.spec is not None and facts.spec.wanted is Wanted.STOPPED:
        return "stopped"
    expected = {container.name for container in facts.spec.containers} if facts.spec is not None else set()
    if states & _ON_THE_WAY or expected - {container.name for container in facts.containers}:
        return "starting"
    if states and states <= {ContainerState.STOPPED}:
        return "stopped"
    return "running"


def encode_within(content: Heartbeat, limit_bytes: int = heartbeat.HEARTBEAT_MAX_BYTES) -> bytes:
    """`content` as bytes, at most `limit_bytes`; what is given up, is given up in the order the law names."""
    payload = heartbeat.encode(content)
    if len(payload) <= limit_bytes or content.resurgam is None:
        return payload
    extension = content.resurgam
    disks = tuple(msgspec.structs.replace(disk, detail="") for disk in extension.disks)
    containers = tuple(msgspec.structs.replace(item, detail="") for item in extension.containers)
    payload = _encode_with(content, containers, disks)
    if len(payload) <= limit_bytes:
        return payload
    containers = tuple(
        msgspec.structs.replace(item, image_id="", image_digest="", container_id="") for item in containers
    )
    containers = tuple(sorted(containers, key=lambda item: item.state in _AS_IT_SHOULD_BE))
    while True:
        payload = _encode_with(content, containers, disks)
        if len(payload) <= limit_bytes or not containers:
            return payload
        containers = containers[: len(containers) * 3 // 4]


def _encode_with(content: Heartbeat, containers: tuple[ContainerReport, ...], disks: tuple[DiskReport, ...]) -> bytes:
    assert content.resurgam is not None
    extension = msgspec.structs.replace(content.resurgam, containers=containers, disks=disks)
    return heartbeat.encode(msgspec.structs.replace(content, resurgam=extension))


def _place(facts: Facts) -> tuple[str, str | None, int | None]:
    if facts.spec is not None:
        return facts.spec.deployment, facts.spec.group, facts.spec.index
    if facts.instance is None:
        return "", None, None
    try:
        return split_instance_id(facts.instance)
    except ValueError:
        return "", None, None


def _instance(facts: Facts) -> str:
    if facts.spec is not None:
        return facts.spec.instance
    return facts.instance or ""
