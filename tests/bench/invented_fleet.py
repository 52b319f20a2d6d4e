"""A fleet that does not exist: names, records and heartbeats of agent number n, the same in every process of a bench.

100 instances a deployment, one group, four containers and a disk each; ids as long as real ones.
"""

from __future__ import annotations

import hashlib

from healthmonitor.core.manifest import InstanceGroup, Manifest, UpdatePolicy, VmSize
from healthmonitor.core.records import DeploymentRecord, DiskBinding, InstanceRecord, RolloutState, VmBinding
from protocol import heartbeat as wire
from protocol.heartbeat import ContainerReport, ContainerState, DiskReport, DiskState, EngineState, Extension, Heartbeat
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec, Healthcheck, spec_hash

PER_DEPLOYMENT = 100
CONTAINERS = tuple(
    ContainerSpec(
        ContainerName(f"service-{n}"),
        f"registry.example/service-{n}:1",
        environment={"MODE": "production", "PEERS": "db-0.example,db-1.example,db-2.example"},
        healthcheck=Healthcheck(("CMD", "check", "--quick"), interval_seconds=5.0),
    )
    for n in range(4)
)
HASHES = tuple(spec_hash(each) for each in CONTAINERS)
GROUP = InstanceGroup("web", PER_DEPLOYMENT, VmSize(), "debian-12", CloudName("local"), (), CONTAINERS, UpdatePolicy())
SENT_AT, SEQUENCE = "1234567.125", '"sequence":987654321'
"""What stands in a template where each heartbeat has its own."""


def deployment(n: int) -> DeploymentName:
    return DeploymentName(f"shop-{n // PER_DEPLOYMENT}")


def instance(n: int) -> InstanceId:
    return InstanceId(f"{deployment(n)}/web/{n % PER_DEPLOYMENT}")


def agent(n: int) -> AgentId:
    return AgentId(f"agent-{n:06d}-{_hex('agent', n, 16)}")


def boot_id(n: int) -> str:
    text = _hex("boot", n, 32)
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def record(n: int) -> InstanceRecord:
    return InstanceRecord(
        instance=instance(n),
        deployment=deployment(n),
        index=n % PER_DEPLOYMENT,
        group=GROUP,
        deployment_revision=Revision(1),
        revision=Revision(1),
        generation=Generation(1),
        vm=VmBinding(agent(n), Generation(1), f"resurgam-{instance(n).replace('/', '-')}-1", VmCid(f"vm-{n:08x}")),
        disks=(DiskBinding(DiskName("data"), f"key-{n:08x}", 1024, DiskCid(f"disk-{n:08x}"), "/dev/vdb"),),
    )


def deployment_record(name: DeploymentName) -> DeploymentRecord:
    return DeploymentRecord(
        name, Revision(1), Manifest(name, (GROUP,)), f"name: {name}\n", "bench", 0.0, RolloutState.DONE
    )


def template(n: int, containers: int = 4) -> tuple[bytes, bytes, bytes]:
    """Subject, and the heartbeat before and after its sequence and time: `head % (sequence, sent_at) + tail`."""
    beat = Heartbeat(
        deployment=deployment(n),
        job="web",
        index=n % PER_DEPLOYMENT,
        job_state="running",
        vitals={
            "cpu": {"sys": "0.3", "user": f"{n % 97 / 10:.1f}", "wait": "0.0"},
            "disk": {
                "system": {"inode_percent": "31", "percent": "42"},
                "ephemeral": {"inode_percent": "1", "percent": "3"},
                "persistent": {"inode_percent": "0", "percent": str(n % 80)},
            },
            "load": ["0.09", "0.04", "0.01"],
            "mem": {"kb": str(145996 + n), "percent": "14"},
            "swap": {"kb": "0", "percent": "0"},
            "uptime": {"secs": 86400 + n},
        },
        node_id=instance(n),
        number_of_processes=containers,
        resurgam=Extension(
            generation=1,
            revision=1,
            sequence=987654321,
            boot_id=boot_id(n),
            sent_at_seconds=float(SENT_AT),
            instance=instance(n),
            engine=EngineState.UP,
            containers=tuple(
                ContainerReport(
                    each.name,
                    ContainerState.RUNNING,
                    spec_hash=known,
                    container_id=_hex(each.name, n, 64),
                    since_seconds=n,
                )
                for each, known in zip(CONTAINERS, HASHES, strict=True)
            )[:containers],
            disks=(DiskReport("data", f"disk-{n:08x}", DiskState.MOUNTED, 12.0, 1.0, 1024),),
            agent_version="0.1.0",
        ),
    )
    encoded = wire.encode(beat).replace(b"%", b"%%")
    assert encoded.count(SEQUENCE.encode()) == encoded.count(SENT_AT.encode()) == 1
    head, tail = encoded.replace(SEQUENCE.encode(), b'"sequence":%d').split(SENT_AT.encode())
    return f"hm.agent.heartbeat.{agent(n)}".encode(), head + b"%.6f", tail.replace(b"%%", b"%")


def _hex(what: str, n: int, digits: int) -> str:
    return hashlib.sha256(f"{what}-{n}".encode()).hexdigest()[:digits]
