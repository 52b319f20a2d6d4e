"""Snapshots of disks: taken when asked for and by schedule, kept as long as said, put back; however often cut short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import pytest

from healthmonitor.core import orphans, snapshots
from healthmonitor.core.disk_changes import DiskAbilities
from healthmonitor.core.disk_planning import DiskFacts, refused_disks, refused_new
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, SnapshotSchedule
from healthmonitor.core.operator_changes import FOREVER_SECONDS, NotPossible
from healthmonitor.core.planning import change_of
from healthmonitor.core.records import (
    DiskBinding,
    InstanceRecord,
    OrphanCause,
    OrphanDisk,
    VmBinding,
)
from healthmonitor.operator_actions import NotFound
from protocol.ids import AgentId, DiskCid, DiskName, Generation, Revision, VmCid
from tests.simulation.cloud import Fault
from tests.support.hands_world import CLOUD, SHOP, HandsWorld, group, in_world, place
from tests.unit.test_orphans import ADA, Refusal, asked
from tests.unit.test_resurrector_disks import disk_of, rolled_out, told

DB, DATA = place(), DiskName("data")
HOUR, DAY = 3600.0, 86400.0
HOURLY = SnapshotSchedule(HOUR, 2)
NOW = 1_000_000.0
SNAPSHOTS = DiskAbilities(snapshots=True)
BINDING = DiskBinding(DATA, "key", 100, DiskCid("d-1"))
VM = VmBinding(AgentId("a"), Generation(1), "vm", VmCid("vm-1"))


def with_schedule(schedule: SnapshotSchedule | None) -> InstanceGroup:
    return replace(group(), disks=(DiskRequirement(DATA, 100, snapshots=schedule),))


RECORD = InstanceRecord(
    DB, SHOP, 0, with_schedule(HOURLY), Revision(1), Revision(1), Generation(1), VM, (BINDING,)
)  # fmt: skip


def taken(hours_ago: float, **changes: object) -> OrphanDisk:
    at = NOW - hours_ago * HOUR
    made = snapshots.intended(RECORD, BINDING, DiskCid("d-1"), at, at + FOREVER_SECONDS, scheduled=True)
    return replace(made, **{"cid": DiskCid(f"s-{hours_ago:g}"), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "there", "is_due"),
    [
        (RECORD, (), True),
        (RECORD, (taken(0.9),), False),
        (RECORD, (taken(1.0), taken(5.0)), True),
        (RECORD, (taken(0.9, cid=DiskCid("")), taken(5.0)), False),  # being taken
        (RECORD, (taken(0.5, scheduled=False),), True),  # a person's
        (RECORD, (taken(0.5, name=DiskName("log")),), True),
        (replace(RECORD, group=with_schedule(None)), (), False),
        (replace(RECORD, vm=None), (), False),
        (replace(RECORD, deleting=True), (), False),
        (replace(RECORD, disks=(replace(BINDING, cid=None),)), (), False),
    ],
)  # fmt: skip
def test_when_a_schedule_asks_for_one(record: InstanceRecord, there: Iterable[OrphanDisk], is_due: bool) -> None:
    """So long after the last, of a disk that there is in a VM that there is."""
    found = list(snapshots.due([record], there, NOW))
    assert [(each.snapshot_of, each.scheduled, each.cid) for each in found] == [("d-1", True, "")] * is_due


@pytest.mark.parametrize(
    ("record", "there", "let_go"),
    [
        (RECORD, [taken(1), taken(2)], {}),
        (RECORD, [taken(3), taken(1), taken(2), taken(90)], {"s-3": 0.0, "s-90": 0.0}),
        (RECORD, [taken(1), taken(2), taken(3, scheduled=False)], {}),
        (RECORD, [taken(1), taken(2), taken(3, kept_until=NOW)], {}),  # let go before
        (replace(RECORD, group=with_schedule(None)), [taken(1)], {"s-1": DAY}),
        (None, [taken(1)], {"s-1": DAY}),
    ],
)  # fmt: skip
def test_which_of_a_schedules_snapshots_are_let_go(
    record: InstanceRecord | None, there: list[OrphanDisk], let_go: dict[str, float]
) -> None:
    """All beyond the newest; with nobody to ask for them, each as any orphan. Never the last ones for their age."""
    records = {} if record is None else {DB: record}
    found = {after.cid: after.kept_until - NOW for _, after in snapshots.surplus(records, there, DAY, NOW)}
    assert found == let_go


def test_one_that_is_being_taken_is_not_deleted_for_its_age() -> None:
    """It has no disk yet that could be."""
    assert orphans.due([taken(900, cid=DiskCid(""), kept_until=NOW - DAY)], DAY, NOW) == []


def test_a_cloud_without_snapshots_refuses_the_schedule_and_the_plan_shows_it() -> None:
    """Before anything is changed; where there are some, the plan says how often and how many."""
    before, after = with_schedule(None), with_schedule(HOURLY)
    without = DiskFacts(abilities={CLOUD: DiskAbilities()})
    assert "has no snapshots" in "".join(refused_disks(DB, before, after, without))
    assert "has no snapshots" in "".join(refused_new(DB, after, without))
    assert refused_disks(DB, before, after, DiskFacts(abilities={CLOUD: SNAPSHOTS})) == []
    change = change_of(DB, before, after)
    assert change is not None
    assert "disk data: a snapshot every 1h, the newest 2 kept" in change.details


@pytest.mark.parametrize("fault", [None, Fault.FAILS, Fault.UNANSWERED])
def test_one_is_taken_when_asked_for_and_put_back(fault: Fault | None) -> None:
    """While the containers run, however the cloud fails at first; restored it takes the disk's place, which is kept."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = SNAPSHOTS
        await rolled_out(world, group(disks={"data": 100}))
        before = disk_of(world)
        if fault is not None:
            world.cloud.plan_fault("snapshot_disk", fault, times=2)
        await asked(world, lambda a: a.snapshot(DB, DATA, 30 * DAY, ADA, "before the upgrade"))
        await world.until(lambda: [o.cid for o in world.parts.journal.orphans().values() if o.cid], "taken", 900.0)
        (snapshot,) = world.parts.journal.orphans().values()
        assert (snapshot.cause, snapshot.snapshot_of, snapshot.scheduled) == (OrphanCause.SNAPSHOT, before, False)
        assert snapshot.kept_until == pytest.approx(snapshot.since + 30 * DAY)
        assert len(world.cloud.disks) == 2
        assert "drain" not in world.machines[world.vm_of(DB).cid].asked
        (text,) = await told(world, "disk.snapshot")
        assert text == f"snapshot {snapshot.cid} of disk data ({before}) is taken"
        world.contents[snapshot.cid] = world.contents[before]
        await asked(world, lambda a: a.attach(snapshot.cid, DB, DATA, ADA, "the upgrade failed"))
        await world.until(lambda: world.idle() and disk_of(world) == snapshot.cid, "put back")
        (left,) = world.parts.journal.orphans().values()
        assert (left.cid, left.cause) == (before, OrphanCause.REPLACED)

    in_world(play)


def test_a_schedule_goes_on_for_days() -> None:
    """One after another, the newest kept, the others deleted; without the schedule the rest go as any orphan."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = SNAPSHOTS
        await rolled_out(world, with_schedule(HOURLY))

        def taken_since(unix_seconds: float) -> bool:
            return any(o.cid and o.since >= unix_seconds for o in world.parts.journal.orphans().values())

        for hours in range(4):
            began = world.unix_time() + HOUR * (hours > 0)
            world.clock_ahead_seconds = hours * HOUR
            await world.until(partial(taken_since, began if hours else 0.0), f"hour {hours}", 2 * HOUR)
        journal = world.parts.journal
        await world.until(
            lambda: len(journal.orphans()) == 2 and len(world.cloud.disks) == 3, "only the newest two are kept", 900.0
        )
        await rolled_out(world, with_schedule(None), revision=2)

        def nobody_asks() -> bool:
            return all(o.kept_until < world.unix_time() + 6 * DAY for o in journal.orphans().values())

        await world.until(nobody_asks, "they are kept as any orphan", 900.0)
        assert len(journal.orphans()) == 2
        world.clock_ahead_seconds += 6 * DAY
        await world.until(lambda: not journal.orphans() and len(world.cloud.disks) == 1, "gone as any orphan", 900.0)

    in_world(play)


@pytest.mark.parametrize("kill_at", range(1, 4))
def test_a_monitor_killed_while_one_is_taken(kill_at: int) -> None:
    """Wherever: the next one has one snapshot in the end, and the cloud no disk that nobody knows."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = SNAPSHOTS
        await rolled_out(world, group(disks={"data": 100}))
        world.points.clear()
        world.kill_at = kill_at
        try:
            await asked(world, lambda a: a.snapshot(DB, DATA, None, ADA, ""))
        except BaseException as error:
            if type(error).__name__ not in ("Killed", "CancelledError"):
                raise
        await world.until(
            lambda: [o for o in world.parts.journal.orphans().values() if o.cid] and world.idle(), "taken", 900.0
        )
        assert len(world.parts.journal.orphans()) == 1
        assert len(world.cloud.disks) == 2

    in_world(play)


def test_what_cannot_be_taken_is_refused_or_given_up() -> None:
    """No such instance, no such disk, a cloud without; one that cannot be taken in time, or whose disk is gone: said,
    and nothing of it is left."""

    async def play(world: HandsWorld) -> None:
        await rolled_out(world, group(disks={"data": 100}))
        cases: tuple[Refusal, ...] = (
            (lambda a: a.snapshot(place("web"), DATA, None, ADA, ""), NotFound, "no instance"),
            (lambda a: a.snapshot(DB, DiskName("log"), None, ADA, ""), NotPossible, "has no disk log"),
            (lambda a: a.snapshot(DB, DATA, None, ADA, ""), NotPossible, "has no snapshots"),
        )
        for call, error, fragment in cases:
            with pytest.raises(error, match=fragment):
                await asked(world, call)
        assert not world.parts.journal.orphans()
        world.cloud.disk_abilities = SNAPSHOTS
        world.cloud.plan_fault("snapshot_disk", Fault.FAILS, times=1000)
        await asked(world, lambda a: a.snapshot(DB, DATA, None, ADA, ""))
        world.clock_ahead_seconds += 2 * HOUR
        await world.until(lambda: not world.parts.journal.orphans(), "given up", 900.0)
        (text,) = await told(world, "disk.snapshot_failed")
        assert "no snapshot of disk data was taken" in text
        assert set(world.cloud.disks) == {disk_of(world)}

    in_world(play)


SMALLER = group(disks={"data": 60})


@pytest.mark.parametrize("fault", [None, Fault.FAILS, Fault.UNANSWERED])
def test_one_is_taken_before_a_migration(fault: Fault | None) -> None:
    """While the containers still run, and kept as any orphan beside the old disk, however the cloud fails at first; the
    timeline and the operation's step say so. The next migration has one of its own."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = SNAPSHOTS
        await rolled_out(world, group(disks={"data": 100}))
        before = disk_of(world)
        if fault is not None:
            world.cloud.plan_fault("snapshot_disk", fault, times=2)
        await rolled_out(world, SMALLER, revision=2)
        await world.until(lambda: world.idle() and disk_of(world) != before, "migrated", 7 * HOUR)
        found = {orphan.cause: orphan for orphan in world.parts.journal.orphans().values()}
        snapshot = found[OrphanCause.SNAPSHOT]
        assert (snapshot.snapshot_of, snapshot.before_migration, snapshot.kept_until) == (before, True, 0.0)
        assert snapshot.cid in world.cloud.disks
        assert found[OrphanCause.REPLACED].cid == before
        assert snapshot.since < found[OrphanCause.REPLACED].since
        assert await told(world, "disk.snapshot") == [
            f"snapshot {snapshot.cid} of disk data ({before}) is taken before its migration"
        ]
        asked_of_agent = world.machines[world.vm_of(DB).cid].asked
        assert "drain" in asked_of_agent
        second = disk_of(world)
        await rolled_out(world, group(disks={"data": 50}), revision=3)
        await world.until(lambda: world.idle() and disk_of(world) != second, "migrated again", HOUR)
        sources = [o.snapshot_of for o in world.parts.journal.orphans().values() if o.before_migration]
        assert sorted(sources) == sorted([before, second])

    in_world(play)


@pytest.mark.parametrize("abilities", [DiskAbilities(), SNAPSHOTS], ids=["no snapshots", "none to be had"])
def test_without_one_the_way_back_is_named(abilities: DiskAbilities) -> None:
    """A cloud that has no snapshots, or will not take one: the migration goes on, because the old disk is kept, and
    that disk is named with what to say to get it back. Nothing is left of the snapshot."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = abilities
        await rolled_out(world, group(disks={"data": 100}))
        before = disk_of(world)
        world.cloud.plan_fault("snapshot_disk", Fault.FAILS, times=1000)
        await rolled_out(world, SMALLER, revision=2)
        await world.until(lambda: world.idle() and disk_of(world) != before, "migrated", HOUR)
        (text,) = await told(world, "disk.way_back")
        assert f"resurgam disks attach {before} {DB} data" in text
        (kept,) = world.parts.journal.orphans().values()
        assert (kept.cid, kept.cause) == (before, OrphanCause.REPLACED)
        assert set(world.cloud.disks) == {before, disk_of(world)}

    in_world(play)


@pytest.mark.parametrize(("abilities", "says"), [(SNAPSHOTS, True), (DiskAbilities(), False)])
def test_the_plan_of_a_migration_names_the_way_back(abilities: DiskAbilities, says: bool) -> None:
    """The snapshot where there will be one, and the old disk in each case."""
    after = replace(group(), disks=(DiskRequirement(DATA, 100, "xfs"),))
    facts = DiskFacts(abilities={CLOUD: abilities}, used_mib={(DB, DATA): 10.0})
    change = change_of(DB, with_schedule(None), after, facts)
    assert change is not None
    text = "\n".join(change.details)
    assert ("a snapshot is taken before" in text) is says
    assert "the old one is kept as an orphan, as the way back" in text


def test_none_is_begun_while_something_is_done_with_the_instance() -> None:
    """Its disk may be about to be unplugged: one that is asked for waits until that is over."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = SNAPSHOTS
        await rolled_out(world, group(disks={"data": 100}))
        world.cloud.plan_fault("create_vm", Fault.FAILS, times=6)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.operation(DB) is not None, "being rebuilt")
        await asked(world, lambda a: a.snapshot(DB, DATA, None, ADA, ""))

        def taken_now() -> bool:
            return any(orphan.cid for orphan in world.parts.journal.orphans().values())

        await world.until(lambda: taken_now() or world.idle(), "rebuilt, or taken", 900.0)
        assert not taken_now()
        await world.until(taken_now, "taken", 900.0)

    in_world(play)
