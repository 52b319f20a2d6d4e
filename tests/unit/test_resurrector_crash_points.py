"""The monitor is killed at every point of every operation, once after each journal write, cloud call and agent call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from healthmonitor.core import disk_changes
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from healthmonitor.core.manifest import DiskGrowth, DiskRequirement, InstanceGroup
from healthmonitor.core.records import OperationKind
from protocol.ids import DiskName, Revision
from tests.support.hands_world import HandsWorld, deployment, group, in_world, place

DB = place()
Scenario = Callable[[HandsWorld], Awaitable[None]]


async def create(world: HandsWorld) -> None:
    await world.until(world.idle, "a leader")
    world.points.clear()
    await world.deploy(deployment(group(disks={"data": 100, "log": 50})))


async def _created(world: HandsWorld) -> None:
    kill_at, world.kill_at = world.kill_at, None
    await create(world)
    await world.until(lambda: world.idle() and DB in world.parts.journal.instances(), "created")
    await world.until(lambda: world.cloud.running(), "running")
    world.points.clear()
    world.kill_at = kill_at


async def resurrect(world: HandsWorld) -> None:
    await _created(world)
    world.cloud.kill_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.generation(DB) > 1, "a second VM")


async def resurrect_frozen(world: HandsWorld) -> None:
    await _created(world)
    world.cloud.freeze_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.generation(DB) > 1, "a second VM")


async def recreate(world: HandsWorld) -> None:
    await _created(world)
    await world.begin(lambda resurrector: resurrector.begin_recreate(DB, "asked"))


async def update(world: HandsWorld) -> None:
    await _created(world)
    await world.deploy(deployment(group(image="redis:8", disks={"data": 200, "more": 10}), revision=2))
    await world.until(lambda: _moved(world), "moved")


def _moved(world: HandsWorld, revision: int = 2) -> bool:
    record = world.parts.journal.instance(DB)
    return record is not None and record.deployment_revision == Revision(revision)


async def delete(world: HandsWorld) -> None:
    await _created(world)
    await world.begin(lambda resurrector: resurrector.begin_delete(DB, "asked"))


async def delete_deployment(world: HandsWorld) -> None:
    await _created(world)
    standing = world.parts.journal.deployments()[deployment().name]
    await world.deploy(replace(standing, deleting=True, delete_disks=True))


async def adopt(world: HandsWorld) -> None:
    kill_at, world.kill_at = world.kill_at, None
    await _created(world)
    await world.deploy(deployment(group(disks={"data": 100}), revision=2))
    await world.until(lambda: world.idle() and _moved(world), "log let go")
    world.points.clear()
    world.kill_at = kill_at
    await world.deploy(deployment(group(disks={"data": 100, "log": 80}), revision=3))
    await world.until(lambda: _moved(world, 3), "moved")


async def _change_disks(world: HandsWorld, wanted: InstanceGroup) -> None:
    """Undisturbed until the disks are about to be changed; what comes before is an update, which is killed above."""
    kill_at, world.kill_at = world.kill_at, None
    await _created(world)
    await world.deploy(deployment(wanted, revision=2))
    await world.until(
        lambda: (o := world.operation(DB)) is not None and o.kind is OperationKind.CHANGE_DISKS, "disks being changed"
    )
    world.points.clear()
    world.kill_at = kill_at


async def grow_by_itself(world: HandsWorld) -> None:
    kill_at, world.kill_at = world.kill_at, None
    await create(world)
    growing = replace(group(), disks=(DiskRequirement(DiskName("data"), 100, grow=DiskGrowth(0.8, 0.5, 200)),))
    await world.deploy(deployment(growing, revision=2))
    await world.until(lambda: world.idle() and _moved(world), "moved")
    world.points.clear()
    world.kill_at = kill_at
    (disk,) = world.record(DB).disks
    world.filled_mib[disk.cid or ""] = 90
    await world.until(
        lambda: (r := world.parts.journal.instance(DB)) is not None and r.disks[0].grown_mib, "it is to grow"
    )


async def grow_unmounted(world: HandsWorld) -> None:
    world.cloud.disk_abilities = DiskAbilities({"ext4": Growth.UNMOUNTED})
    await _change_disks(world, group(disks={"data": 200, "log": 50}))


async def grow_detached(world: HandsWorld) -> None:
    world.cloud.disk_abilities = DiskAbilities({"ext4": Growth.DETACHED})
    await _change_disks(world, group(disks={"data": 200, "log": 50}))


async def change_disks(world: HandsWorld) -> None:
    await _change_disks(world, group(disks={"data": 60, "log": 50}))


async def change_disks_with_snapshots(world: HandsWorld) -> None:
    world.cloud.disk_abilities = DiskAbilities(snapshots=True)
    await change_disks(world)
    await world.until(lambda: len(world.parts.journal.orphans()) == 2, "the old disk and its snapshot are kept")


async def _copying(world: HandsWorld) -> None:
    kill_at, world.kill_at = world.kill_at, None
    await change_disks(world)
    await world.until(lambda: any(machine.copies for machine in world.machines.values()), "a copy under way")
    world.points.clear()
    world.kill_at = kill_at


async def change_disks_vm_lost(world: HandsWorld) -> None:
    await _copying(world)
    world.cloud.kill_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.generation(DB) > 1, "a second VM")


async def change_disks_vm_reboots(world: HandsWorld) -> None:
    await _copying(world)
    world.machines[world.vm_of(DB).cid].reboot()


async def change_disks_taken_back(world: HandsWorld) -> None:
    await _copying(world)
    await world.deploy(deployment(group(disks={"data": 100, "log": 50}), revision=3))
    await world.until(lambda: _moved(world, 3), "moved back")


SCENARIOS: dict[str, tuple[Scenario, set[str]]] = {
    "create": (create, {"data", "log"}),
    "resurrect": (resurrect, {"data", "log"}),
    "resurrect_frozen": (resurrect_frozen, {"data", "log"}),
    "recreate": (recreate, {"data", "log"}),
    "update": (update, {"data", "more"}),
    "adopt": (adopt, {"data", "log"}),
    "grow_by_itself": (grow_by_itself, {"data"}),
    "grow_unmounted": (grow_unmounted, {"data", "log"}),
    "grow_detached": (grow_detached, {"data", "log"}),
    "change_disks": (change_disks, {"data", "log"}),
    "change_disks_with_snapshots": (change_disks_with_snapshots, {"data", "log"}),
    "change_disks_vm_lost": (change_disks_vm_lost, {"data", "log"}),
    "change_disks_vm_reboots": (change_disks_vm_reboots, {"data", "log"}),
    "change_disks_taken_back": (change_disks_taken_back, {"data", "log"}),
    "delete": (delete, set()),
    "delete_deployment": (delete_deployment, set()),
}

SIZES = {
    "grow_unmounted": 200,
    "grow_detached": 200,
    "change_disks": 60,
    "change_disks_with_snapshots": 60,
    "change_disks_vm_lost": 60,
    "change_disks_vm_reboots": 60,
    "change_disks_taken_back": 100,
}
"""What disk `data` has in the end."""

SHARES = 4


async def _play(world: HandsWorld, name: str) -> None:
    scenario, disks = SCENARIOS[name]
    world.start_monitor()
    await scenario(world)
    if name == "delete":
        # Cut short before its operation was written, nobody knows of the wish: whoever asked had no answer.
        await world.until(lambda: world.idle(), "over")
        if DB in world.parts.journal.instances() and not world.record(DB).deleting:
            await world.begin(lambda resurrector: resurrector.begin_delete(DB, "asked again"))
    if disks:
        await world.until(lambda: world.idle() and DB in world.parts.journal.instances(), "idle")
        await world.until(lambda: _as_it_should_be(world, disks), "one VM with its disks")
    else:
        await world.until(lambda: world.idle() and DB not in world.parts.journal.instances(), "forgotten")
        await world.until(lambda: not world.cloud.recorded(), "no VM left")
    # What a late call or a second leader might still spoil.
    await asyncio.sleep(15.0)
    _check(world, name, disks)
    entries = await world.parts.process.call(world.loop.create_task, world.parts.journal.last_events(1000))
    adopted = {entry.event.text for entry in entries if entry.event.kind == "disk.adopted"}
    assert len(adopted) == (name == "adopt"), f"only what was let go is adopted: {adopted}"


def _as_it_should_be(world: HandsWorld, disks: set[str]) -> bool:
    record = world.parts.journal.instance(DB)
    return (
        record is not None
        and world.idle()
        and not disk_changes.waits(record)
        and record.vm is not None
        and {disk.name for disk in record.disks} == disks
        and len(world.cloud.running()) == 1
    )


def _check(world: HandsWorld, name: str, disks: set[str]) -> None:
    assert not world.failures
    assert not world.cloud.violations
    running = world.cloud.running()
    if not disks:
        assert not running
        assert not world.cloud.recorded()
        assert all(not vm.attached for vm in world.cloud.vms.values())
        return
    record = world.record(DB)
    assert [vm.cid for vm in running] == [vm.cid for vm in world.cloud.recorded()], "exactly one VM, and no remains"
    (vm,) = running
    assert record.vm is not None
    assert record.vm.vm_cid == vm.cid
    ours = {disk.cid for disk in record.disks}
    for disk in record.disks:
        assert disk.cid is not None
        acknowledged, there = world.acknowledged.get(disk.name, 0), world.contents.get(disk.cid, 0)
        assert there >= acknowledged > 0, f"{disk.name}: {acknowledged} were acknowledged, {there} are there"
        assert disk.successor is None
        assert disk.size_mib >= next(item.size_mib for item in record.group.disks if item.name == disk.name)
        assert disk.name != "data" or name not in SIZES or disk.size_mib == SIZES[name]
        assert world.cloud.disks[disk.cid].size_mib == disk.size_mib
    assert vm.attached == ours
    assert world.machines[vm.cid].mounted == ours
    assert not {orphan.cid for orphan in world.parts.journal.orphans().values()} & ours
    spec = world.machines[vm.cid].spec
    assert spec is not None
    assert (spec.revision, spec.generation) == (record.revision, record.generation)


@pytest.mark.parametrize("name", SCENARIOS)
def test_undisturbed(name: str) -> None:
    """Every scenario ends as it should, and is made of enough points for killing to mean something."""
    points = in_world(lambda world: _play(world, name))
    assert len(points) >= 10, points


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_point(name: str, share: int) -> None:
    """Whatever point of the operation the monitor is killed at, the next one ends it with one VM, one attachment for
    each disk, and never two writers. (In shares, which several processes can run.)"""
    failures = []
    points = list(enumerate(in_world(lambda world: _play(world, name)), start=1))
    for number, point in points[share::SHARES]:
        try:
            in_world(lambda world: _play(world, name), seed=number, kill_at=number)
        except AssertionError as error:
            failures.append(f"killed at point {number}, {point}: {error}")
    assert not failures, "\n".join(failures)


def test_the_kinds_are_all_here() -> None:
    """No kind of operation is left out of the table above."""
    assert {kind.value for kind in OperationKind} <= set(SCENARIOS)
