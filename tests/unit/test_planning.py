"""Plans: what differs, what restarts, what is refused, and that plan and change agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest, UpdatePolicy, VmSize
from healthmonitor.core.planning import (
    InstanceChange,
    Plan,
    Verb,
    change_of,
    desired_instances,
    operation_kind,
    plan,
    to_plain,
)
from healthmonitor.core.records import DiskBinding, InstanceRecord, OperationKind
from protocol.ids import CloudName, ContainerName, DeploymentName, DiskCid, DiskName, InstanceId, Revision
from protocol.spec import ContainerSpec, Dependency, OnIsolation, Restart

REDIS, EXPORTER, DASHBOARD, OTHER = (ContainerName(name) for name in ("redis", "exporter", "dashboard", "other"))
DATA = DiskName("data")
CONTAINERS = (
    ContainerSpec(REDIS, "redis:7", environment={"MODE": "slow", "REDIS_PASSWORD": "hunter2"}),
    ContainerSpec(EXPORTER, "exporter:1", depends_on=(Dependency(REDIS),)),
    ContainerSpec(DASHBOARD, "dashboard:1", depends_on=(Dependency(EXPORTER),)),
    ContainerSpec(OTHER, "other:1", depends_on=(Dependency(REDIS, restart=False),)),
)
GROUP = InstanceGroup(
    name="db",
    instances=2,
    vm=VmSize(1, 1024, {"zone": "a"}),
    stemcell="debian-12",
    cloud=CloudName("local"),
    disks=(DiskRequirement(DATA, 1024),),
    containers=CONTAINERS,
    update=UpdatePolicy(),
)
SHOP = DeploymentName("shop")


def manifest(*groups: InstanceGroup) -> Manifest:
    return Manifest(SHOP, groups)


def records(wanted: Manifest) -> tuple[InstanceRecord, ...]:
    """As they are after a deployment: disks made."""
    new = desired_instances(wanted, (), Revision(1)).new
    return tuple(
        replace(record, disks=tuple(replace(disk, cid=DiskCid(f"d-{disk.name}")) for disk in record.disks))
        for record in new
    )


def with_container(name: ContainerName, **changes: object) -> InstanceGroup:
    containers = tuple(replace(one, **changes) if one.name == name else one for one in CONTAINERS)  # type: ignore[arg-type]
    return replace(GROUP, containers=containers)


def planned(after: InstanceGroup, before: InstanceGroup = GROUP) -> Plan:
    return plan(records(manifest(before)), manifest(before), manifest(after))


def first(after: InstanceGroup) -> InstanceChange:
    change = change_of(InstanceId("shop/db/0"), GROUP, after)
    assert change is not None
    return change


CHANGES: list[tuple[str, InstanceGroup, Verb, str]] = [
    ("stemcell", replace(GROUP, stemcell="debian-13"), Verb.RECREATE,
     "stemcell: debian-12 → debian-13 (needs a new VM)"),
    ("cpus", replace(GROUP, vm=replace(GROUP.vm, cpus=2)), Verb.RECREATE, "cpus: 1 → 2 (needs a new VM)"),
    ("memory", replace(GROUP, vm=replace(GROUP.vm, memory_mib=2048)), Verb.RECREATE,
     "memory: 1GiB → 2GiB (needs a new VM)"),
    ("properties", replace(GROUP, vm=replace(GROUP.vm, cloud_properties={"zone": "b"})), Verb.RECREATE,
     "cloud_properties: zone: a → b (needs a new VM)"),
    ("cloud", replace(GROUP, cloud=CloudName("far")), Verb.RECREATE, "cloud: local → far (needs a new VM)"),
    ("image", with_container(REDIS, image="redis:7.2"), Verb.RESTART, "redis: image: redis:7 → redis:7.2"),
    ("environment", with_container(REDIS, environment={"MODE": "fast", "REDIS_PASSWORD": "hunter2"}), Verb.RESTART,
     "redis: environment: MODE: slow → fast"),
    ("secret", with_container(REDIS, environment={"MODE": "slow", "REDIS_PASSWORD": "hunter3"}), Verb.RESTART,
     "redis: environment: REDIS_PASSWORD: (hidden) → (hidden)"),
    ("secret argument", with_container(REDIS, command=("redis", "--requirepass", "x")), Verb.RESTART,
     "redis: command: none → (hidden)"),
    ("memory limit", with_container(OTHER, mem_limit_bytes=64), Verb.RESTART, "other: mem_limit: 0 → 64"),
    ("restart policy", with_container(OTHER, restart=Restart.NO), Verb.UPDATE,
     "other: restart: always → no (goes on running)"),
    ("dependency", with_container(OTHER, depends_on=()), Verb.UPDATE,
     'other: depends_on: [{"container": "redis", "restart": false}] → none (goes on running)'),
    ("removed", replace(GROUP, containers=CONTAINERS[:2]), Verb.RESTART, "dashboard: removed"),
    ("added", replace(GROUP, containers=(*CONTAINERS, ContainerSpec(ContainerName("new"), "new:1"))), Verb.UPDATE,
     "new: new, new:1"),
    ("grown", replace(GROUP, disks=(DiskRequirement(DATA, 2048),)), Verb.RESIZE, "disk data: grows 1GiB → 2GiB"),
    ("new disk", replace(GROUP, disks=(*GROUP.disks, DiskRequirement(DiskName("logs"), 512))), Verb.UPDATE,
     "disk logs: new, 512MiB"),
    ("dropped disk", replace(GROUP, disks=()), Verb.UPDATE,
     "disk data: no longer used; it is kept, with its data, as an orphan"),
    ("mount options", replace(GROUP, disks=(DiskRequirement(DATA, 1024, mount_options=("noatime",)),)), Verb.UPDATE,
     "disk data: mount options none → noatime"),
    ("isolation", replace(GROUP, on_isolation=OnIsolation.STOP), Verb.UPDATE, "on_isolation: keep → stop"),
    ("networks", replace(GROUP, networks=("back",)), Verb.UPDATE, "networks: none → back"),
]  # fmt: skip


@pytest.mark.parametrize(("after", "verb", "line"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_is_named_with_its_reason(after: InstanceGroup, verb: Verb, line: str) -> None:
    """One difference between two manifests: what happens to each instance, and the line that says why."""
    found = planned(after)
    assert [change.verb for change in found.changes] == [verb, verb]
    for change in found.changes:
        assert line in change.details
    assert operation_kind(GROUP, after) is (OperationKind.RECREATE if verb is Verb.RECREATE else OperationKind.UPDATE)


@pytest.mark.parametrize(
    "after",
    [
        GROUP,
        replace(GROUP, update=UpdatePolicy(canaries=0)),
        replace(GROUP, resurrection=False),
        replace(GROUP, disks=(DiskRequirement(DATA, 1024, cloud_properties={"type": "ssd"}),)),
    ],
)
def test_what_no_vm_is_told_changes_no_instance(after: InstanceGroup) -> None:
    """The plan is empty; the records take the new group without a new revision of their specification."""
    assert planned(after).empty
    before = records(manifest(GROUP))
    desired = desired_instances(manifest(after), before, Revision(2))
    assert desired.unchanged == tuple(replace(one, group=after, deployment_revision=Revision(2)) for one in before)
    assert (desired.new, desired.changed, desired.removed) == ((), (), ())


def test_dependents_restart_over_all_levels_unless_they_opted_out() -> None:
    """redis changes: exporter and dashboard restart with it, `other` (restart: false) does not."""
    change = first(with_container(REDIS, image="redis:8"))
    assert change.containers.recreated == (REDIS,)
    assert change.containers.restarted == (EXPORTER, DASHBOARD)
    assert change.containers.resupervised == ()
    assert change.containers.interrupted == 3
    assert "dashboard: restarts because exporter does" in change.details


def test_only_what_changed_restarts() -> None:
    """The last of the chain changes: nobody else is touched."""
    change = first(with_container(DASHBOARD, image="dashboard:2"))
    assert (change.containers.recreated, change.containers.restarted) == ((DASHBOARD,), ())


REFUSED = [
    (replace(GROUP, disks=(DiskRequirement(DATA, 512),)), "cannot shrink from 1GiB to 512MiB"),
    (replace(GROUP, disks=(DiskRequirement(DATA, 1024, "xfs"),)), "never formatted again"),
    (replace(GROUP, cloud=CloudName("far")), "cannot move from cloud local to far"),
]


@pytest.mark.parametrize(("after", "fragment"), REFUSED)
def test_what_would_cost_data_is_refused(after: InstanceGroup, fragment: str) -> None:
    """For each instance, with the reason and what to do instead; the plan is not empty then."""
    found = planned(after)
    assert len(found.refusals) == 2
    assert all(fragment in refusal for refusal in found.refusals)
    assert not found.empty
    assert found.summary.startswith("cannot be deployed")
    assert any(warning.startswith("refused: shop/db/0") for warning in to_plain(found)["warnings"])


def test_a_new_deployment_is_created() -> None:
    """Every instance with its VM, disks and containers."""
    found = plan((), None, manifest(GROUP))
    assert [(change.verb, change.instance) for change in found.changes] == [
        (Verb.CREATE, "shop/db/0"),
        (Verb.CREATE, "shop/db/1"),
    ]
    assert found.changes[0].details[:3] == (
        "VM in local from debian-12: 1 CPU, 1GiB",
        "disk data: new, 1GiB",
        "redis: redis:7",
    )
    assert found.summary == "2 created, 0 unchanged"


def test_fewer_instances_delete_the_last_ones_and_keep_their_disks() -> None:
    """Instance 1 goes, instance 0 stays, the disk is named as kept."""
    found = planned(replace(GROUP, instances=1))
    (change,) = found.changes
    assert (change.verb, change.instance) == (Verb.DELETE, "shop/db/1")
    assert change.orphaned_disks == (DATA,)
    assert found.summary == "1 deleted, 1 unchanged"


def test_deleting_a_deployment_deletes_every_instance() -> None:
    """`wanted` None: all go, under the deployment's name."""
    found = plan(records(manifest(GROUP)), manifest(GROUP), None)
    assert [change.verb for change in found.changes] == [Verb.DELETE, Verb.DELETE]
    assert found.deployment == SHOP


def test_the_summary_counts_what_is_interrupted() -> None:
    """Two instances, three containers each."""
    assert planned(with_container(REDIS, image="redis:8")).summary == (
        "2 updated in place (6 containers interrupted), 0 unchanged"
    )
    assert planned(with_container(OTHER, restart=Restart.NO)).summary == (
        "2 updated in place (no container interrupted), 0 unchanged"
    )


def test_records_of_a_changed_group_keep_their_disks_and_count_up() -> None:
    """A grown disk keeps its cid, a new one has none yet, a dropped one is given back as an orphan."""
    logs = DiskName("logs")
    before = records(manifest(replace(GROUP, disks=(*GROUP.disks, DiskRequirement(DiskName("old"), 64)))))
    after = replace(GROUP, disks=(DiskRequirement(DATA, 2048), DiskRequirement(logs, 512)))
    desired = desired_instances(manifest(after), before, Revision(2))
    record = desired.changed[0]
    assert record.revision == before[0].revision + 1
    assert record.deployment_revision == 2
    assert [(disk.name, disk.size_mib, disk.cid) for disk in record.disks] == [
        ("data", 2048, "d-data"),
        ("logs", 512, None),
    ]
    assert record.disks[1].key
    assert [(name, disk.cid) for name, disk in desired.orphaned_disks] == [
        ("shop/db/0", "d-old"),
        ("shop/db/1", "d-old"),
    ]


def test_an_instance_left_alone_or_being_deleted_is_said_to_be() -> None:
    """Both are warnings: the plan does not silently count on them."""
    one, two = records(manifest(GROUP))
    found = plan((replace(one, ignore=True), replace(two, deleting=True)), manifest(GROUP), manifest(GROUP))
    assert any("shop/db/0 is left alone" in warning for warning in found.warnings)
    assert any("shop/db/1 is being deleted" in warning for warning in found.warnings)


def test_the_plan_for_programs_has_what_the_command_shows() -> None:
    """Verb, subject, details, summary and warnings, all plain."""
    found = to_plain(planned(with_container(REDIS, image="redis:8")))
    assert found["deployment"] == "shop"
    assert found["empty"] is False
    assert found["changes"][0]["verb"] == "restart"
    assert found["changes"][0]["subject"] == "shop/db/0"
    assert found["changes"][0]["containers"]["restarted"] == ["exporter", "dashboard"]
    assert found["summary"].startswith("2 updated in place")


SECRETS: list[Callable[[str], ContainerSpec]] = [
    lambda secret: ContainerSpec(REDIS, "a", environment={"DB_PASSWORD": secret}),
    lambda secret: ContainerSpec(REDIS, "a", environment={"API_TOKEN": secret}),
    lambda secret: ContainerSpec(REDIS, "a", environment={"DATABASE": f"postgres://me:{secret}@db/x"}),
    lambda secret: ContainerSpec(REDIS, "a", environment={"X": f"{secret}aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF"}),
    lambda secret: ContainerSpec(REDIS, "a", command=("run", f"--auth-token={secret}")),
    lambda secret: ContainerSpec(REDIS, "a", labels={"secret": secret}),
    lambda secret: ContainerSpec(REDIS, "a", command=("sh", "-c", f"login --password {secret}")),
]


@pytest.mark.parametrize("make", SECRETS, ids=range(len(SECRETS)))
def test_a_plan_shows_no_secret(make: Callable[[str], ContainerSpec]) -> None:
    """Neither the old nor the new value of what looks like a secret stands anywhere in it."""
    before, after = (replace(GROUP, containers=(make(secret),)) for secret in ("xyzzy1old", "xyzzy2new"))
    text = repr(to_plain(planned(after, before)))
    assert "hidden" in text
    assert "xyzzy" not in text


GROUPS = st.builds(
    lambda instances, stemcell, size, image, kept: replace(
        GROUP,
        instances=instances,
        stemcell=stemcell,
        disks=(DiskRequirement(DATA, size),),
        containers=(replace(CONTAINERS[0], image=image), *CONTAINERS[1 : kept + 1]),
    ),
    st.integers(0, 4),
    st.sampled_from(["a", "b"]),
    st.sampled_from([512, 1024]),
    st.sampled_from(["x:1", "x:2"]),
    st.integers(0, 3),
)


@settings(deadline=None)
@given(GROUPS, GROUPS)
def test_the_plan_is_what_the_change_makes(before: InstanceGroup, after: InstanceGroup) -> None:
    """Whatever the two manifests: creations, changes and deletions shown are the records made; then nothing is left."""
    current = records(manifest(before))
    found = plan(current, manifest(before), manifest(after))
    desired = desired_instances(manifest(after), current, Revision(2))
    shown = {change.instance: change.verb for change in found.changes}
    assert {record.instance for record in desired.new} == {one for one, verb in shown.items() if verb is Verb.CREATE}
    assert {record.instance for record in desired.removed} == {
        one for one, verb in shown.items() if verb is Verb.DELETE
    }
    assert {record.instance for record in desired.changed} == {
        one for one, verb in shown.items() if verb not in (Verb.CREATE, Verb.DELETE)
    }
    assert found.unchanged == len(desired.unchanged)
    assert plan((*desired.new, *desired.changed, *desired.unchanged), manifest(after), manifest(after)).empty


def test_no_disk_ever_becomes_smaller() -> None:
    """Even when a refused plan were carried out, the record keeps the larger size."""
    desired = desired_instances(
        manifest(replace(GROUP, disks=(DiskRequirement(DATA, 512),))), records(manifest(GROUP)), Revision(2)
    )
    sizes = [disk.size_mib for record in (*desired.changed, *desired.unchanged) for disk in record.disks]
    assert sizes == [1024, 1024]
    assert all(isinstance(disk, DiskBinding) for record in desired.changed for disk in record.disks)
