"""Disks that no instance uses: kept, deleted after their time, given to an instance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from healthmonitor.core import orphans
from healthmonitor.core.manifest import DiskRequirement
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import DiskBinding, DiskWay, InstanceRecord, OrphanCause, OrphanDisk
from healthmonitor.disk_actions import DiskActions
from healthmonitor.operator_actions import NotFound, Person
from protocol.ids import CloudName, DiskCid, DiskName, InstanceId
from tests.simulation.cloud import Fault
from tests.support.hands_world import CLOUD, SHOP, HandsWorld, deployment, group, in_world, place
from tests.unit.test_resurrector_disks import disk_of, machine, rolled_out, told

DB, DATA = place(), DiskName("data")
DAY = 86400.0
T = TypeVar("T")
Refusal = tuple[Callable[[DiskActions], Coroutine[Any, Any, object]], type[Exception], str]
"""What is asked, the error that it ends with, a part of its text."""

ADA = Person("admin", "ada")
STANDING = DiskBinding(DATA, "k", 100, DiskCid("d-2"))
ORPHAN = OrphanDisk(CLOUD, "shop-db-0-data", DiskCid("d-1"), DATA, 100, "ext4", DB, since=1000.0)


@pytest.mark.parametrize(
    ("orphan", "now", "due"),
    [
        (ORPHAN, 1000.0 + 5 * DAY - 1, False),
        (ORPHAN, 1000.0 + 5 * DAY, True),
        (replace(ORPHAN, kept_until=1000.0 + 30 * DAY), 1000.0 + 29 * DAY, False),
        (replace(ORPHAN, kept_until=2000.0), 2000.0, True),
        (replace(ORPHAN, deleting=True), 1000.0, True),
        (orphans.kept(ORPHAN, None, 1000.0), 1000.0 + 10_000 * DAY, False),
    ],
)
def test_an_orphan_is_kept_for_its_time(orphan: OrphanDisk, now: float, due: bool) -> None:
    """As long as the configuration says, or a person; a deletion that was begun is finished."""
    assert orphans.due([orphan], 5 * DAY, now) == ([orphan] if due else [])


def actions(world: HandsWorld) -> DiskActions:
    parts = world.parts

    class Leader:
        def is_leader(self) -> bool:
            return parts.leadership.is_leader()

        def leader_name(self) -> str:
            return ""

        def leader_address(self) -> str:
            return ""

    return DiskActions(
        parts.journal,
        Leader(),
        {CLOUD: world.cloud},
        lambda record: (),
        lambda: parts.resurrector.policy.disks.keep_orphans_seconds,
        world.unix_time,
        parts.resurrector.wake,
    )


async def with_orphan(world: HandsWorld) -> DiskCid:
    """An instance whose disk was dropped from its manifest, and which has a new one of another name."""
    await rolled_out(world, group(disks={"old": 100}))
    orphan = disk_of(world)
    await rolled_out(world, group(disks={"data": 100}), revision=2)
    return orphan


async def several_looks(world: HandsWorld) -> None:
    until = world.loop.time() + 250.0
    await world.until(lambda: world.loop.time() > until, "several looks")


def asked(world: HandsWorld, call: Callable[[DiskActions], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
    return world.parts.process.call(world.loop.create_task, call(actions(world)))


def test_after_its_time_it_is_deleted() -> None:
    """By the leader, once nobody holds it; not before, and not while a person wants it kept."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        kept = await with_kept(world)
        world.clock_ahead_seconds = 4 * DAY
        await several_looks(world)
        assert orphan in world.cloud.disks
        world.clock_ahead_seconds = 6 * DAY
        await world.until(lambda: orphan not in world.cloud.disks, "deleted")
        await world.until(lambda: len(world.parts.journal.orphans()) == 1, "forgotten")
        assert kept in world.cloud.disks
        (text,) = await told(world, "disk.deleted")
        assert text == f"orphan {orphan} (disk old of {DB}) was deleted: its time was over"

    async def with_kept(world: HandsWorld) -> DiskCid:
        kept = disk_of(world)
        await rolled_out(world, group(disks={"newer": 100}), revision=3)
        await asked(world, lambda a: a.keep(kept, None, ADA, "audit"))
        return kept

    in_world(play)


def test_what_somebody_holds_is_not_deleted() -> None:
    """Attached to a VM in the cloud's console: it stays, which is said once, and goes when it is let go."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        world.vm_of(DB).attached.add(orphan)
        await asked(world, lambda a: a.delete(orphan, ADA, ""))
        await several_looks(world)
        assert orphan in world.cloud.disks
        (text,) = await told(world, "disk.not_deleted")
        assert "is held by" in text
        world.vm_of(DB).attached.discard(orphan)
        await world.until(lambda: orphan not in world.cloud.disks, "deleted")

    in_world(play)


@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.UNANSWERED, Fault.REFUSED])
def test_a_deletion_is_finished(fault: Fault) -> None:
    """However the cloud fails at first."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        world.cloud.plan_fault("delete_disk", fault, times=2)
        await asked(world, lambda a: a.delete(orphan, ADA, ""))
        await world.until(lambda: not world.parts.journal.orphans(), "forgotten")
        assert orphan not in world.cloud.disks

    in_world(play)


def test_an_orphan_is_given_to_an_instance() -> None:
    """Also to another one: the containers stop once, it takes the disk's place with its data, and the disk that was
    there is an orphan now."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        before = disk_of(world)
        written = world.contents[orphan]
        await asked(world, lambda a: a.attach(orphan, DB, DATA, ADA, "wrong one"))
        await world.until(lambda: world.idle() and disk_of(world) == orphan, "taken")
        assert world.vm_of(DB).attached == {orphan}
        assert world.contents[orphan] >= written
        assert machine(world).mounted_with[orphan]["taken_from"] == f"{DB}/old"
        (left,) = world.parts.journal.orphans().values()
        assert (left.cid, left.cause) == (before, OrphanCause.REPLACED)
        assert machine(world).asked.count("drain") >= 1

    in_world(play)


def test_what_cannot_be_is_refused_before_anything_changes() -> None:
    """A disk that somebody has, one that is not there, an instance without such a disk, a copy that was given up."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        before = dict(world.parts.journal.orphans()), world.record(DB)
        cases: tuple[Refusal, ...] = (
            (lambda a: a.attach(orphan, DB, DiskName("logs"), ADA, ""), NotPossible, "has no disk logs"),
            (lambda a: a.attach(DiskCid("d-99"), DB, DATA, ADA, ""), NotFound, "no orphan"),
            (lambda a: a.attach(disk_of(world), DB, DATA, ADA, ""), NotPossible, "and no orphan"),
            (lambda a: a.attach(orphan, InstanceId("shop/db/7"), DATA, ADA, ""), NotFound, "no instance"),
            (lambda a: a.delete(disk_of(world), ADA, ""), NotPossible, "and no orphan"),
            (lambda a: a.keep(DiskCid("d-99"), None, ADA, ""), NotFound, "no orphan"),
            (lambda a: a.keep(orphan, 0.0, ADA, ""), NotPossible, "would delete it"),
        )
        for call, error, fragment in cases:
            with pytest.raises(error, match=fragment):
                await asked(world, call)
        assert (dict(world.parts.journal.orphans()), world.record(DB)) == before

    in_world(play)


def record(**changes: object) -> InstanceRecord:
    made = InstanceRecord(DB, SHOP, 0, group(disks={"data": 100}), deployment(group()).revision, 1)  # type: ignore[arg-type]
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("orphan", "changes", "fragment"),
    [
        (replace(ORPHAN, cloud=CloudName("far")), {}, "is in cloud far"),
        (replace(ORPHAN, cause=OrphanCause.UNFINISHED), {}, "only a part of the data"),
        (replace(ORPHAN, deleting=True), {}, "being deleted"),
        (replace(ORPHAN, filesystem="xfs"), {}, "asks for ext4"),
        (ORPHAN, {"deleting": True}, "is being deleted"),
        (ORPHAN, {"disks": ()}, "has no disk data"),
        (ORPHAN, {"disks": (replace(STANDING, way=DiskWay.COPY, why="smaller"),)}, "is being changed"),
    ],
)  # fmt: skip
def test_an_orphan_that_does_not_suit_is_not_given(
    orphan: OrphanDisk, changes: dict[str, object], fragment: str
) -> None:
    """Each with its reason."""
    standing = record(disks=(STANDING,))
    with pytest.raises(NotPossible, match=fragment):
        orphans.given(orphan, replace(standing, **changes), DATA)  # type: ignore[arg-type]


def test_the_list_has_every_disk() -> None:
    """In use, orphaned, and one that the cloud has and no record names; each with who holds it."""

    async def play(world: HandsWorld) -> None:
        orphan = await with_orphan(world)
        listed = await asked(world, lambda a: a.disks())
        found = {disk.cid: (disk.role, disk.holders) for disk in listed}
        vm = world.vm_of(DB).cid
        assert found == {disk_of(world): ("in use", frozenset({vm})), orphan: ("orphan", frozenset())}
        assert DiskRequirement(DATA, 100) in world.record(DB).group.disks

    in_world(play)
