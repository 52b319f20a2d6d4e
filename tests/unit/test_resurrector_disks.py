"""What becomes of an instance's disks when its manifest changes: made, grown, mounted otherwise, let go, found again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core.manifest import DiskRequirement, InstanceGroup
from healthmonitor.core.planning import Verb, change_of
from healthmonitor.core.records import OperationKind, RolloutState
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
        kinds = []
        await world.deploy(deployment(after, revision=2))
        await world.until(lambda: (o := world.operation(DB)) is not None and not kinds.append(o.kind), "begun")
        await rolled_out(world, after, revision=2)
        assert kinds == [OperationKind.UPDATE]
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


def test_changed_properties_of_a_disk_begin_nothing() -> None:
    """They count when a disk is made: the plan says unchanged, and no operation is begun for it."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group())
        asked = list(machine(world).asked)
        fast = DiskRequirement(DATA, 1024, cloud_properties={"type": "fast"})
        await rolled_out(world, replace(group(), disks=(fast,)), revision=2)
        assert world.record(DB).group.disks == (fast,)
        assert machine(world).asked == asked

    in_world(play)
