"""How a disk becomes the one that is wanted, and how the plan says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from healthmonitor.core import disk_changes
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from healthmonitor.core.disk_planning import DiskFacts, plan_disks, refused_disks
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup
from healthmonitor.core.progress import read_progress
from healthmonitor.core.records import DiskBinding, DiskWay, OrphanCause, OrphanDisk, Successor
from protocol.ids import CloudName, DiskCid, DiskName, InstanceId
from tests.support.hands_world import CLOUD, group

DATA, DB = DiskName("data"), InstanceId("shop/db/0")
BINDING = DiskBinding(DATA, "shop-db-0-data", 1024, DiskCid("d-1"), required_mib=1024, cloud_properties={})
SAME = DiskRequirement(DATA, 1024)
LESS = DiskRequirement(DATA, 512)
SLOW = DiskAbilities({"ext4": Growth.UNMOUNTED})
DETACHING = DiskAbilities({"ext4": Growth.DETACHED})
FIXED = DiskAbilities({"ext4": Growth.NEVER})
TAKEN = Successor(DiskWay.TAKE, "other", 10, "ext4", DiskCid("d-7"))


@pytest.mark.parametrize(
    ("binding", "wanted", "abilities", "way", "grows"),
    [
        (BINDING, SAME, DiskAbilities(), DiskWay.NONE, False),
        (BINDING, replace(SAME, mount_options=("noatime",)), DiskAbilities(), DiskWay.NONE, False),
        (BINDING, replace(SAME, size_mib=2048), DiskAbilities(), DiskWay.NONE, True),
        (BINDING, replace(SAME, size_mib=2048), SLOW, DiskWay.UNMOUNT, True),
        (BINDING, replace(SAME, size_mib=2048), DETACHING, DiskWay.DETACH, True),
        (BINDING, replace(SAME, size_mib=2048), FIXED, DiskWay.COPY, False),
        (BINDING, replace(SAME, size_mib=512), DiskAbilities(), DiskWay.COPY, False),
        (BINDING, replace(SAME, filesystem="xfs"), DiskAbilities(), DiskWay.COPY, False),
        (BINDING, replace(SAME, filesystem="xfs", size_mib=2048), DiskAbilities(), DiskWay.COPY, False),
        (BINDING, replace(SAME, cloud_properties={"type": "fast"}), DiskAbilities(), DiskWay.COPY, False),
        # Adopted larger than it was asked for: not made smaller for that, nor when less is asked for than it has.
        (replace(BINDING, size_mib=4096), SAME, DiskAbilities(), DiskWay.NONE, False),
        (replace(BINDING, size_mib=4096), replace(SAME, size_mib=2048), DiskAbilities(), DiskWay.NONE, False),
        (replace(BINDING, size_mib=4096), replace(SAME, size_mib=512), DiskAbilities(), DiskWay.COPY, False),
        # What is not known is no difference.
        (replace(BINDING, cloud_properties=None), replace(SAME, cloud_properties={"a": 1}), SLOW, DiskWay.NONE, False),
        (replace(BINDING, required_mib=0), replace(SAME, size_mib=512), DiskAbilities(), DiskWay.NONE, False),
        (replace(BINDING, successor=TAKEN), SAME, DiskAbilities(), DiskWay.TAKE, False),
        (replace(BINDING, given_up_for=LESS), LESS, SLOW, DiskWay.NONE, False),
    ],
)  # fmt: skip
def test_the_cheapest_way_that_keeps_every_byte(
    binding: DiskBinding, wanted: DiskRequirement, abilities: DiskAbilities, way: DiskWay, grows: bool
) -> None:
    """Mounted where it can, else unmounted, else detached, else by a copy; every way has a reason for people."""
    found = disk_changes.change(binding, wanted, abilities)
    assert (found.way, found.grows) == (way, grows)
    assert bool(found.why) == (way is not DiskWay.NONE or grows)


def facts(used_mib: float | None = None, **changes: Any) -> DiskFacts:
    used = {} if used_mib is None else {(DB, DATA): used_mib}
    return DiskFacts(used_mib=used, **changes)


def with_disk(**changes: Any) -> InstanceGroup:
    return replace(group(), disks=(replace(SAME, **changes),))


@pytest.mark.parametrize(
    ("after", "known", "line"),
    [
        (with_disk(size_mib=2048), facts(), "disk data: grows 1GiB → 2GiB"),
        (
            with_disk(size_mib=2048),
            facts(abilities={CLOUD: SLOW}),
            "disk data: grows 1GiB → 2GiB; ext4 grows here only unmounted, redis stops for about 10 s",
        ),
        (
            with_disk(size_mib=2048),
            facts(abilities={CLOUD: DETACHING}),
            "disk data: grows 1GiB → 2GiB; this cloud grows only detached disks, redis stops for about 10 s",
        ),
        (
            with_disk(filesystem="xfs"),
            facts(600),
            "disk data: its data are copied to a new one (ext4 → xfs), redis stops for about 20 s;"
            " a snapshot is taken before, and the old one is kept as an orphan, as the way back",
        ),
        (
            with_disk(size_mib=512),
            facts(migrate=True),
            "disk data: its data are copied to a new one (smaller, 1GiB → 512MiB), redis stops for as long as that"
            " takes; a snapshot is taken before, and the old one is kept as an orphan, as the way back",
        ),
    ],
)
def test_the_plan_says_what_stops_and_for_how_long(after: InstanceGroup, known: DiskFacts, line: str) -> None:
    """One line for each disk that changes, with the reason."""
    assert plan_disks(DB, group(), after, False, known).lines == (line,)


@pytest.mark.parametrize(
    ("after", "known", "fragment"),
    [
        (with_disk(size_mib=512), facts(1), "cannot shrink"),
        (with_disk(size_mib=512), facts(1, migrate=True), ""),
        (with_disk(size_mib=512), facts(500, migrate=True), "501MiB of data, which do not fit on 512MiB"),
        (with_disk(size_mib=512), facts(migrate=True), "has not said how much is on it"),
        (with_disk(filesystem="xfs"), facts(1), ""),
        (with_disk(filesystem="xfs"), facts(1000), "do not fit"),
        (with_disk(size_mib=2048), facts(), ""),
    ],
)
def test_what_is_not_known_to_fit_is_refused(after: InstanceGroup, known: DiskFacts, fragment: str) -> None:
    """Before anything is begun: a shrink without a person's word, data that are too many, data that nobody counted."""
    refusals = refused_disks(DB, group(), after, known)
    assert len(refusals) == bool(fragment)
    assert all(fragment in refusal for refusal in refusals)


def orphan(key: str, since: float, cause: OrphanCause = OrphanCause.RELEASED, instance: InstanceId = DB) -> OrphanDisk:
    return OrphanDisk(CLOUD, key, DiskCid(f"d-{key}"), DATA, 10, "ext4", instance, since, cause)


def test_a_place_gets_back_what_it_let_go_last() -> None:
    """Not what another disk took the place of, not a copy that was given up, not another's; and a new disk gets a key
    that nobody has."""
    kept = [
        orphan("shop-db-0-data", 1.0, OrphanCause.REPLACED),
        orphan("shop-db-0-data-2", 2.0),
        orphan("shop-db-0-data-3", 3.0),
        orphan("shop-db-0-data-4", 4.0, OrphanCause.UNFINISHED),
        orphan("shop-db-1-data", 5.0, instance=InstanceId("shop/db/1")),
    ]
    orphans = {(item.cloud, item.key): item for item in kept}
    found = disk_changes.adoptable(orphans, CLOUD, DB, DATA)
    assert found is not None
    assert found.key == "shop-db-0-data-3"
    assert disk_changes.adoptable(orphans, CloudName("far"), DB, DATA) is None
    assert disk_changes.key_for_new(orphans, (), CLOUD, DB, DATA) == "shop-db-0-data-5"
    assert disk_changes.key_for_new({}, (), CLOUD, DB, DATA) == "shop-db-0-data"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (None, None),
        ("half", None),
        ({"bytes_done": "many"}, None),
        (
            {"phase": "copying", "bytes_done": 300 << 20, "bytes_total": 1 << 30, "bytes_per_second": 50 << 20,
             "seconds_left": 14.5},
            "copying disk data: 300MiB of 1GiB, 50 MiB/s, about 14 s left",
        ),
        (
            {"phase": "comparing", "bytes_done": 0, "bytes_total": 1 << 30, "bytes_per_second": 0},
            "copying disk data (comparing): 0MiB of 1GiB, 0 MiB/s",
        ),
    ],
)  # fmt: skip
def test_progress_is_what_can_be_read(said: Any, text: str | None) -> None:
    """An agent's word for how far it is, or nothing."""
    found = read_progress("copying disk data", said)
    assert (found.text if found else None) == text
