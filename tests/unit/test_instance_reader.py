"""Instance records read with their groups shared are the records that were written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor import instance_reader
from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.records import DiskBinding, InstanceRecord, VmBinding
from healthmonitor.instance_reader import InstanceReader
from protocol import codec
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskName,
    Generation,
    InstanceId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec, Healthcheck, ImagePin, Wanted


def record(n: int, image: str = "redis:7") -> InstanceRecord:
    container = ContainerSpec(
        ContainerName("redis"), image, environment={"A": "ü"}, healthcheck=Healthcheck(("CMD", "x"))
    )
    group = InstanceGroup("db", 3, VmSize(), "debian-12", CloudName("local"), (), (container,), UpdatePolicy())
    return InstanceRecord(
        instance=InstanceId(f"shop/db/{n}"),
        deployment=DeploymentName("shop"),
        index=n,
        group=group,
        deployment_revision=Revision(1),
        revision=Revision(2),
        generation=Generation(3),
        vm=VmBinding(AgentId(f"a-{n}"), Generation(3), "key", VmCid(f"vm-{n}")),
        disks=(DiskBinding(DiskName("data"), "key", 10, mount_options=("noatime",)),),
        wanted=Wanted.STOPPED,
        stopped_containers=(ContainerName("redis"),),
        pinned_images={ContainerName("redis"): ImagePin(image, "sha256:1")},
    )


def test_what_is_read_is_what_was_written() -> None:
    """The first of a group, the next ones, and those of another group."""
    reader = InstanceReader()
    for written in (record(0), record(1), record(2, "redis:8"), replace(record(3), vm=None, disks=())):
        assert reader.read(codec.to_json(written)) == written


def test_a_group_is_kept_once() -> None:
    """And another one is another one."""
    reader = InstanceReader()
    first, second, other = (reader.read(codec.to_json(each)) for each in (record(0), record(1), record(2, "redis:8")))
    assert first.group is second.group
    assert other.group is not first.group


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(b'{"instance": "shop/db/0"}', id="no-group"),
        pytest.param(b'{"group": 5}', id="a-wrong-group"),
        pytest.param(codec.to_json(record(0)).replace(b'"index":0', b'"index":"x"'), id="wrong-beside-a-known-group"),
        pytest.param(codec.to_json(record(0)).replace(b'"wanted":"stopped"', b'"wanted":"?"'), id="wrong-enum"),
        pytest.param(b"\xff\xfe", id="not-utf-8"),
    ],
)
def test_what_cannot_be_read_is_said_to_be_so(payload: bytes) -> None:
    """With the same error as without sharing."""
    reader = InstanceReader()
    reader.read(codec.to_json(record(1)))
    with pytest.raises(codec.Invalid) as shared:
        reader.read(payload)
    with pytest.raises(codec.Invalid) as plain:
        codec.from_json(InstanceRecord, payload)
    assert str(shared.value).splitlines()[0].split(":")[0] == str(plain.value).splitlines()[0].split(":")[0]


def test_a_flood_of_groups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered to be shared is forgotten beyond a limit; records are read all the same."""
    monkeypatch.setattr(instance_reader, "GROUPS_MAX", 3)
    reader = InstanceReader()
    for n in range(10):
        assert reader.read(codec.to_json(record(n, f"redis:{n}"))) == record(n, f"redis:{n}")
    assert len(reader._groups) <= 3
