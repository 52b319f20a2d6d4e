"""Disks that grow by themselves: when, how far, and what a deploy changes in that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from healthmonitor.core import disk_changes, disk_growth
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from healthmonitor.core.manifest import DiskGrowth, DiskRequirement, InstanceGroup
from healthmonitor.core.manifest_file import parse_manifest
from healthmonitor.core.planning import Verb, change_of
from healthmonitor.core.policy import DiskPolicy
from healthmonitor.core.records import DiskBinding, DiskWay, InstanceRecord, OperationKind
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import DeploymentName, DiskCid, DiskName, Revision
from tests.support.hands_world import HandsWorld, group, in_world, place
from tests.unit.test_resurrector_disks import rolled_out

DB, DATA = place(), DiskName("data")
GROW = DiskGrowth(at_share=0.8, by_share=0.25, up_to_mib=2000)
WANTED = DiskRequirement(DATA, 1000, grow=GROW)
BINDING = DiskBinding(DATA, "key", 1000, DiskCid("d-1"), required_mib=1000, cloud_properties={})
SMALL = replace(BINDING, size_mib=300, required_mib=300)
REPORT = DiskReport(DATA, "d-1", DiskState.MOUNTED, 85.0, 1.0, 970)
NOW, APART = 100_000.0, DiskPolicy().grow_apart_seconds
IN_PLACE, FIXED = DiskAbilities(), DiskAbilities({"ext4": Growth.NEVER})


def with_report(**changes: object) -> DiskReport:
    fields = {name: getattr(REPORT, name) for name in ("name", "cid", "state", "percent", "inode_percent", "size_mib")}
    return DiskReport(**{**fields, **changes})


@pytest.mark.parametrize(
    ("binding", "wanted", "report", "abilities", "size_mib"),
    [
        (BINDING, WANTED, REPORT, IN_PLACE, 1250),
        (BINDING, WANTED, REPORT, DiskAbilities({"ext4": Growth.UNMOUNTED}), 1250),
        (BINDING, WANTED, with_report(percent=80.0), IN_PLACE, 1250),
        (BINDING, WANTED, with_report(percent=79.9), IN_PLACE, None),
        (BINDING, replace(WANTED, grow=None), REPORT, IN_PLACE, None),
        (SMALL, replace(WANTED, size_mib=300), with_report(size_mib=236), IN_PLACE, 375),
        (BINDING, replace(WANTED, grow=replace(GROW, up_to_mib=1100)), REPORT, IN_PLACE, 1100),
        (BINDING, replace(WANTED, grow=replace(GROW, by_share=0.0001)), REPORT, IN_PLACE, 1001),
        (replace(BINDING, size_mib=2000), WANTED, with_report(size_mib=1950), IN_PLACE, None),
        # The last growth must be on the file system, and some time must have passed since.
        (replace(BINDING, size_mib=1400, grown_mib=1400), WANTED, REPORT, IN_PLACE, None),
        (replace(BINDING, grown_mib=1250), WANTED, REPORT, IN_PLACE, None),
        (replace(BINDING, grown_at=NOW - APART + 1), WANTED, REPORT, IN_PLACE, None),
        (replace(BINDING, grown_at=NOW - APART), WANTED, REPORT, IN_PLACE, 1250),
        # What is being changed, was given up, is not mounted or is not reported waits; no disk is copied for this.
        (replace(BINDING, way=DiskWay.COPY), WANTED, REPORT, IN_PLACE, None),
        (replace(BINDING, given_up_for=WANTED), WANTED, REPORT, IN_PLACE, None),
        (BINDING, WANTED, with_report(state=DiskState.READ_ONLY), IN_PLACE, None),
        (BINDING, WANTED, None, IN_PLACE, None),
        (BINDING, WANTED, REPORT, FIXED, None),
    ],
)  # fmt: skip
def test_when_a_disk_grows_and_to_what_size(
    binding: DiskBinding,
    wanted: DiskRequirement,
    report: DiskReport | None,
    abilities: DiskAbilities,
    size_mib: int | None,
) -> None:
    """Used as far as it says, by as much as it says, never beyond where it may; one step at a time."""
    record = InstanceRecord(
        DB, DeploymentName("shop"), 0, replace(group(), disks=(wanted,)), Revision(1), Revision(1), disks=(binding,)
    )

    def reports() -> Mapping[DiskName, DiskReport]:
        return {} if report is None else {DATA: report}

    steps = disk_growth.due(record, reports, abilities, DiskPolicy(), NOW)
    assert [step.size_mib for step in steps] == ([] if size_mib is None else [size_mib])
    if steps:
        (after,) = disk_growth.grown(record, steps, NOW).disks
        assert (after.grown_mib, after.grown_at, after.size_mib) == (size_mib, NOW, binding.size_mib)
        assert disk_growth.with_growth(wanted, after).size_mib == size_mib


@pytest.mark.parametrize(
    ("asked_mib", "counts_mib", "way"),
    [(1000, 1500, DiskWay.NONE), (1200, 1500, DiskWay.NONE), (1800, 1800, DiskWay.NONE), (900, 900, DiskWay.COPY)],
)
def test_a_deploy_does_not_shrink_what_grew(asked_mib: int, counts_mib: int, way: DiskWay) -> None:
    """The manifest's size is the least; only one that asks for less than the last did is a person's word to shrink."""
    binding = replace(BINDING, size_mib=1500, grown_mib=1500)
    wanted = disk_growth.with_growth(replace(WANTED, size_mib=asked_mib), binding)
    assert wanted.size_mib == counts_mib
    assert disk_changes.change(binding, wanted, IN_PLACE).way is way


@pytest.mark.parametrize(
    ("size_mib", "percent", "ended"), [(2000, 85.0, True), (2000, 70.0, False), (1500, 85.0, False)]
)
def test_the_end_of_growth_is_said(size_mib: int, percent: float, ended: bool) -> None:
    """Only where it would grow once more and may not."""
    assert bool(disk_growth.at_limit(replace(BINDING, size_mib=size_mib), WANTED, percent)) is ended


def test_the_manifest_says_it_and_the_plan_shows_it() -> None:
    """A change of it alone is made in place and restarts nothing."""
    text = """
name: shop
stemcell: s
cloud: local
instance_groups:
  - name: db
    persistent_disks: {data: {size: 10GiB, grow: {at: 85%, by: 25%, up_to: 100GiB}}}
    containers: {redis: {image: "redis:7"}}
"""
    (read,) = parse_manifest(text, "m.yml").manifest.groups
    assert read.disks[0].grow == DiskGrowth(0.85, 0.25, 102400)
    before = with_growing(None)
    change = change_of(DB, before, with_growing(GROW))
    assert change is not None
    assert change.verb is Verb.UPDATE
    assert "disk data: grows by itself, by 25% whenever 80% of it is used, up to 2000MiB" in change.details
    back = change_of(DB, with_growing(GROW), before)
    assert back is not None
    assert "disk data: does not grow by itself any more; it stays as large as it is" in back.details


def with_growing(grow: DiskGrowth | None, size_mib: int = 100) -> InstanceGroup:
    return replace(group(), disks=(DiskRequirement(DATA, size_mib, grow=grow),))


@pytest.mark.parametrize("growth", [Growth.MOUNTED, Growth.UNMOUNTED])
def test_a_disk_grows_as_it_fills_until_it_may_no_more(growth: Growth) -> None:
    """Each time by an operation of its own, in the timeline with its reason; a deploy leaves what grew; no VM is made
    anew, and where disks grow mounted no container is stopped."""

    async def play(world: HandsWorld) -> None:
        world.cloud.disk_abilities = DiskAbilities({"ext4": growth})
        grow = DiskGrowth(0.8, 0.5, 200)
        await rolled_out(world, with_growing(grow))
        vm = world.vm_of(DB)
        (disk,) = world.record(DB).disks
        assert disk.cid is not None
        cid = disk.cid
        for filled_mib, size_mib in ((90, 150), (140, 200)):
            world.filled_mib[cid] = filled_mib
            await world.until(
                lambda size=size_mib: world.idle() and world.cloud.disks[cid].size_mib == size,  # type: ignore[misc]
                f"{filled_mib} MiB are used, it grows to {size_mib}",
                seconds=3 * APART,
            )
            assert world.machines[vm.cid].filesystem_mib[cid] == size_mib
            assert world.record(DB).disks[0].required_mib == 100
        await rolled_out(world, with_growing(grow, size_mib=120), revision=2)
        await rolled_out(world, with_growing(None, size_mib=120), revision=3)
        assert (world.record(DB).disks[0].size_mib, world.cloud.disks[cid].size_mib) == (200, 200)
        assert world.cloud.created == [vm.cid]
        assert ("drain" in world.machines[vm.cid].asked) is (growth is Growth.UNMOUNTED)
        begun = [
            entry.event.text
            for entry in await world.parts.journal.events_since(0.0)
            if entry.event.kind == "operation.begun" and "grows by itself" in entry.event.text
        ]
        assert ["100MiB → 150MiB" in text or "150MiB → 200MiB" in text for text in begun] == [True, True]
        assert world.operation(DB) is None or world.operation(DB).kind is OperationKind.UPDATE  # type: ignore[union-attr]

    in_world(play)
