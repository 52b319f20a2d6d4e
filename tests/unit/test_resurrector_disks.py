"""What becomes of an instance's disks when its manifest changes: made, grown, mounted otherwise, let go, adopted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.clouds.cloud import DiskRequest
from healthmonitor.core.disk_planning import DiskFacts
from healthmonitor.core.keys import disk_key
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, Manifest
from healthmonitor.core.planning import Plan, Verb, change_of, plan
from healthmonitor.core.records import OperationKind, OrphanCause, RolloutState
from protocol.ids import DiskCid, DiskName
from tests.simulation.cloud import Fault
from tests.support.hands_world import SHOP, FakeVm, HandsWorld, deployment, group, in_world, place

DB = place()
DATA = DiskName("data")


async def rolled_out(world: HandsWorld, wanted: InstanceGroup, revision: int = 1) -> None:
    if revision == 1:
        world.start_monitor()
    await world.deploy(deployment(wanted, revision=revision))
    await world.until(
        lambda: (
            world.idle()
            and (standing := world.parts.journal.deployment(SHOP)) is not None
            and (standing.revision, standing.rollout) == (revision, RolloutState.DONE)
        ),
        f"revision {revision} rolled out",
    )


def machine(world: HandsWorld) -> FakeVm:
    return world.machines[world.vm_of(DB).cid]


def disk_of(world: HandsWorld) -> DiskCid:
    (disk,) = world.record(DB).disks
    assert disk.cid is not None
    return disk.cid


def test_the_agent_is_told_how_large_a_disk_should_be() -> None:
    """mount_disk names the size: a device of another size is not formatted."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 777}))
        assert machine(world).mounted_with[disk_of(world)]["size_mib"] == 777

    in_world(play)


@pytest.mark.parametrize("fault", [None, *Fault])
def test_a_disk_grows_under_running_containers(fault: Fault | None) -> None:
    """Planned as RESIZE, carried out in place: the cloud's disk grows, then the agent grows the file system on it;
    same VM, never drained, never restarted. However growing fails, it is repeated until it is done."""

    async def play(world: HandsWorld) -> None:
        before, after = group(disks={"data": 100}), group(disks={"data": 250})
        await rolled_out(world, before)
        change = change_of(DB, before, after)
        assert change is not None
        assert (change.verb, change.grown_disks) == (Verb.RESIZE, (DATA,))
        vm, disk, spec = world.vm_of(DB), disk_of(world), machine(world).spec
        assert spec is not None
        if fault is not None:
            world.cloud.plan_fault("resize_disk", fault, times=2)
        await world.deploy(deployment(after, revision=2))
        await world.until(lambda: world.operation(DB) is not None, "begun")
        begun = world.operation(DB)
        assert begun is not None
        await rolled_out(world, after, revision=2)
        assert begun.kind is OperationKind.UPDATE
        assert world.cloud.disks[disk].size_mib == 250
        assert machine(world).filesystem_mib[disk] == 250
        assert world.record(DB).disks[0].size_mib == 250
        assert world.vm_of(DB) is vm
        assert world.cloud.created == [vm.cid]
        assert (machine(world).life, machine(world).drained) == (1, False)
        told = machine(world).spec
        assert told is not None
        assert told.containers == spec.containers
        assert told.disks[0].size_mib == 250
        assert "unmount_disk" not in machine(world).asked
        assert "detach_disk" not in world.cloud.calls

    in_world(play)


def test_a_disk_may_grow_and_be_mounted_otherwise_at_once() -> None:
    """Size and mount options changed together: neither is forgotten over the other."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 100}))
        wanted = DiskRequirement(DATA, 200, mount_options=("noatime",))
        await rolled_out(world, replace(group(), disks=(wanted,)), revision=2)
        (disk,) = world.record(DB).disks
        assert (disk.size_mib, disk.mount_options) == (200, ("noatime",))
        hint = machine(world).mounted_with[disk_of(world)]
        assert (hint["size_mib"], hint["mount_options"]) == (200, ["noatime"])

    in_world(play)


CHANGED = {
    "file system": DiskRequirement(DATA, 1024, filesystem="xfs"),
    "properties": DiskRequirement(DATA, 1024, cloud_properties={"type": "fast"}),
    "smaller": DiskRequirement(DATA, 512),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_disk_that_must_become_another_is_copied(what: str) -> None:
    """The containers are stopped once, the data copied beside, the new disk takes the old one's place in the same VM,
    and the old one is kept as an orphan that no plan gives back."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        vm, old = world.vm_of(DB), disk_of(world)
        wanted = replace(group(), disks=(CHANGED[what],))
        await rolled_out(world, wanted, revision=2)
        (disk,) = world.record(DB).disks
        assert disk.cid is not None
        assert disk.cid != old
        asked = CHANGED[what]
        assert (disk.filesystem, disk.size_mib, disk.replaces) == (asked.filesystem, asked.size_mib, old)
        assert dict(disk.cloud_properties or {}) == dict(CHANGED[what].cloud_properties)
        assert world.cloud.disks[disk.cid].request.cloud_properties == CHANGED[what].cloud_properties
        assert world.vm_of(DB) is vm
        assert vm.attached == {disk.cid}
        (orphan,) = world.parts.journal.orphans().values()
        assert (orphan.cid, orphan.cause) == (old, OrphanCause.REPLACED)
        assert world.contents[disk.cid] >= world.acknowledged[DATA] > 0
        assert machine(world).asked.count("copy_disk") == 1
        assert planned(world, wanted).empty

    in_world(play)


def test_the_place_of_a_replaced_disk_gets_the_newer_one_back() -> None:
    """Copied, then dropped, then asked for again: what comes back is the disk that was in use last."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        fast = group()
        fast = replace(fast, disks=(DiskRequirement(DATA, 1024, cloud_properties={"type": "fast"}),))
        await rolled_out(world, fast, revision=2)
        newer = disk_of(world)
        await rolled_out(world, group(disks={}), revision=3)
        assert len(world.parts.journal.orphans()) == 2
        await rolled_out(world, fast, revision=4)
        assert disk_of(world) == newer
        assert len(world.parts.journal.orphans()) == 1

    in_world(play)


def test_what_the_agent_will_not_copy_is_given_up() -> None:
    """Refused several times: the instance goes on with its old disk, the rollout fails with the reason, and the same
    manifest begins nothing again; one that asks for something else does."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        old = disk_of(world)
        world.copy_refusal = "a file cannot be read"
        wanted = replace(group(), disks=(CHANGED["smaller"],))
        await world.deploy(deployment(wanted, revision=2))
        await world.until(
            lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.FAILED, "failed"
        )
        assert "a file cannot be read" in world.parts.journal.deployments()[SHOP].rollout_error
        assert disk_of(world) == old
        assert machine(world).writing
        assert machine(world).mounted == {old}
        assert planned(world, wanted).empty
        world.copy_refusal = ""
        await rolled_out(world, replace(group(), disks=(DiskRequirement(DATA, 600),)), revision=3)
        assert disk_of(world) != old

    in_world(play)


def test_what_does_not_fit_stops_no_container() -> None:
    """The agent says that more is on the disk than the new one holds: given up before anything is stopped."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        world.used_bytes[disk_of(world)] = 600 * 1024 * 1024
        await world.deploy(deployment(replace(group(), disks=(CHANGED["smaller"],)), revision=2))
        await world.until(
            lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.FAILED, "failed"
        )
        assert "do not fit" in world.parts.journal.deployments()[SHOP].rollout_error
        assert "drain" not in machine(world).asked

    in_world(play)


async def let_go(world: HandsWorld, how: str) -> None:
    """Leaves a disk without an instance to use it: dropped from the manifest, or its whole deployment deleted."""
    if how == "dropped":
        await rolled_out(world, group(disks={}), revision=2)
        return
    standing = world.parts.journal.deployments()[SHOP]
    await world.deploy(replace(standing, deleting=True))
    await world.until(lambda: world.idle() and not world.parts.journal.deployments(), "deleted")


def planned(world: HandsWorld, wanted: InstanceGroup) -> Plan:
    journal = world.parts.journal
    return plan(list(journal.instances().values()), None, Manifest(SHOP, (wanted,)), DiskFacts(journal.orphans()))


async def told(world: HandsWorld, kind: str) -> list[str]:
    entries = await world.parts.process.call(world.loop.create_task, world.parts.journal.last_events(1000))
    return [entry.event.text for entry in entries if entry.event.kind == kind]


@pytest.mark.parametrize("how", ["dropped", "deleted"])
@pytest.mark.parametrize(
    ("size_mib", "said", "in_the_end_mib"),
    [(100, "(100MiB)", 100), (250, "(grows 100MiB → 250MiB)", 250), (50, "(100MiB)", 100)],
)
def test_a_disk_asked_for_again_is_adopted_and_said_to_be(
    how: str, size_mib: int, said: str, in_the_end_mib: int
) -> None:
    """The plan and the timeline say that the old disk comes back with its data; one that is smaller than asked for is
    grown before its VM is told of it, a larger one stays as large."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 100}))
        disk = disk_of(world)
        await let_go(world, how)
        wanted = group(disks={"data": size_mib})
        (change,) = planned(world, wanted).changes
        assert f"disk data: adopts orphan {disk} with its data {said}" in change.details
        assert (change.adopted_disks, change.new_disks) == ((DATA,), ())
        await rolled_out(world, wanted, revision=3)
        assert disk_of(world) == disk
        assert await told(world, "disk.adopted") == [f"disk data: adopts orphan {disk} with its data (100 MiB)"]
        assert world.cloud.disks[disk].size_mib == in_the_end_mib
        assert world.record(DB).disks[0].size_mib == in_the_end_mib
        assert machine(world).filesystem_mib[disk] == in_the_end_mib
        assert machine(world).mounted_with[disk]["size_mib"] == in_the_end_mib
        assert not world.parts.journal.orphans()
        assert planned(world, wanted).empty

    in_world(play)


def test_a_disk_that_the_journal_does_not_know_is_adopted_no_less_loudly() -> None:
    """An orphan from before the journal was lost: the cloud has it under the key, smaller than asked for. It is not
    taken for the new disk that was ordered."""

    async def play(world: HandsWorld) -> None:
        old = await world.cloud.create_disk(DiskRequest(disk_key(DB, DATA), 100))
        await rolled_out(world, group(disks={"data": 400}))
        assert disk_of(world) == old
        assert await told(world, "disk.adopted") == [f"disk data: adopts orphan {old} with its data (100 MiB)"]
        assert machine(world).filesystem_mib[old] == 400

    in_world(play)


def test_a_new_disk_is_not_said_to_be_adopted() -> None:
    """The first of its name, also when its making had to be tried again: no word of an orphan."""

    async def play(world: HandsWorld) -> None:
        world.cloud.plan_fault("create_disk", Fault.UNANSWERED, times=2)
        await rolled_out(world, group())
        assert await told(world, "disk.adopted") == []
        assert not world.parts.journal.orphans()

    in_world(play)


def test_an_orphan_with_another_file_system_is_refused() -> None:
    """The plan refuses it; a rollout that is under way all the same neither formats nor mounts it."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 100}))
        await let_go(world, "dropped")
        wanted = replace(group(), disks=(DiskRequirement(DATA, 100, filesystem="xfs"),))
        (refusal,) = planned(world, wanted).refusals
        assert "has ext4 and is never formatted as xfs" in refusal
        await world.deploy(deployment(wanted, revision=3))
        await world.until(lambda: (o := world.operation(DB)) is not None and "never formatted" in o.error, "refused")
        assert world.record(DB).disks == ()

    in_world(play)


def test_an_orphan_that_somebody_deleted_is_missed_aloud() -> None:
    """The plan promised the old disk; it is not in the cloud any more: a new one is made, and that is said."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 100}))
        disk = disk_of(world)
        await let_go(world, "dropped")
        await world.cloud.delete_disk(disk)
        await rolled_out(world, group(disks={"data": 100}), revision=3)
        assert await told(world, "disk.orphan_gone") == [
            f"disk data: orphan {disk} is not in the cloud any more; a new one is made"
        ]
        assert not world.parts.journal.orphans()

    in_world(play)


def test_disks_deleted_with_their_deployment_leave_no_orphans() -> None:
    """On a person's word: gone from the cloud, and not promised by any plan."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        standing = world.parts.journal.deployments()[SHOP]
        await world.deploy(replace(standing, deleting=True, delete_disks=True))
        await world.until(lambda: world.idle() and not world.parts.journal.deployments(), "deleted")
        assert not world.cloud.disks
        assert not world.parts.journal.orphans()
        assert planned(world, group()).changes[0].new_disks == (DATA,)

    in_world(play)
