"""Plans: what differs, what restarts, what is refused, and that plan and change agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from healthmonitor.core import rollout
from healthmonitor.core.keys import disk_key
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest, UpdatePolicy, VmSize
from healthmonitor.core.planning import (
    InstanceChange,
    Plan,
    Verb,
    change_of,
    operation_kind,
    plan,
    to_plain,
)
from healthmonitor.core.records import (
    DeploymentRecord,
    DiskBinding,
    InstanceRecord,
    OperationKind,
    RolloutState,
    VmBinding,
)
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
    instance_id,
)
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
    """As they are after a deployment: VMs and disks made."""
    return tuple(
        InstanceRecord(
            instance=(name := instance_id(wanted.name, group.name, index)),
            deployment=wanted.name,
            index=index,
            group=group,
            deployment_revision=Revision(1),
            revision=Revision(1),
            generation=Generation(1),
            vm=VmBinding(AgentId(f"a{index}"), Generation(1), f"k{index}", VmCid(f"vm-{index}")),
            disks=tuple(
                DiskBinding(disk.name, disk_key(name, disk.name), disk.size_mib, DiskCid(f"d-{disk.name}"))
                for disk in group.disks
            ),
        )
        for group in wanted.groups
        for index in range(group.instances)
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
     "disk data: mount options none → noatime; from its next mount on: a mounted disk is left as it is until its VM"
     " restarts or is recreated"),
    ("mount options of a new VM",
     replace(GROUP, vm=VmSize(2, 1024, {"zone": "a"}),
             disks=(DiskRequirement(DATA, 1024, mount_options=("noatime",)),)), Verb.RECREATE,
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
    ],
)
def test_what_no_vm_is_told_changes_no_instance(after: InstanceGroup) -> None:
    """The plan is empty."""
    assert planned(after).empty


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
    (replace(GROUP, disks=(DiskRequirement(DATA, 512),)), "cannot shrink from 1GiB to 512MiB in place; with --migrate"),
    (replace(GROUP, disks=(DiskRequirement(DATA, 1024, "xfs"),)), "its agent has not said how much is on it"),
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
def test_the_plan_shows_what_the_rollout_does(before: InstanceGroup, after: InstanceGroup) -> None:
    """Whatever the two manifests: created, changed and deleted in the plan are the ones that a rollout without canaries
    begins with, by the same kind of operation; a refused plan is never rolled out."""
    current = records(manifest(before))
    found = plan(current, manifest(before), manifest(after))
    assume(not found.refusals)
    quick = replace(after, update=UpdatePolicy(canaries=0, max_in_flight=100))
    deployment = DeploymentRecord(SHOP, Revision(2), manifest(quick), "", "me", 0.0, RolloutState.REST)
    acts = rollout.decide(deployment, {record.instance: record for record in current}, {}, lambda operation: 0.0).acts
    done: dict[InstanceId, Verb | OperationKind] = {}
    for act in acts:
        match act:
            case rollout.Create(record=record):
                done[record.instance] = Verb.CREATE
            case rollout.Move(record=record, kind=kind):
                done[record.instance] = kind
            case rollout.Remove(instance=instance):
                done[instance] = Verb.DELETE
    kinds = {Verb.RECREATE: OperationKind.RECREATE, Verb.CREATE: Verb.CREATE, Verb.DELETE: Verb.DELETE}
    assert done == {change.instance: kinds.get(change.verb, OperationKind.UPDATE) for change in found.changes}


@given(GROUPS)
def test_nothing_is_planned_for_what_is_there(group: InstanceGroup) -> None:
    """The same manifest again: an empty plan."""
    assert plan(records(manifest(group)), manifest(group), manifest(group)).empty
