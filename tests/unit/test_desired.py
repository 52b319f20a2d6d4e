"""What should run: the centre's specification, and what a person said since."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import desired
from agent.core.desired import Held, Place, Refused, accept, become, belongs, effective
from protocol.ids import ContainerName, DiskCid, DiskName, Generation, InstanceId, Revision
from protocol.spec import ContainerSpec, Dependency, DiskSpec, InstanceSpec, Wanted
from tests.support.agent import GENERATION, INSTANCE, make_spec

REDIS, EXPORTER = ContainerName("redis"), ContainerName("exporter")


def take(held: Held, spec: InstanceSpec, seen: int = 0) -> Held:
    return accept(held, Revision(seen), spec, INSTANCE, GENERATION)


def circle() -> tuple[ContainerSpec, ...]:
    return (
        ContainerSpec(REDIS, "redis:7", depends_on=(Dependency(EXPORTER),)),
        ContainerSpec(EXPORTER, "exporter:1", depends_on=(Dependency(REDIS),)),
    )


@pytest.mark.parametrize(
    ("spec", "seen", "message"),
    [
        (make_spec(1, instance=InstanceId("shop/db/1")), 0, "this VM is shop/db/0"),
        (make_spec(1, generation=Generation(GENERATION + 1)), 0, "generation"),
        (make_spec(1, generation=Generation(GENERATION - 1)), 0, "generation"),
        (make_spec(4), 5, "revision 4 is older than revision 5"),
        (make_spec(1, containers=make_spec().containers * 2), 0, "exporter, redis are specified twice"),
        (make_spec(1, containers=circle()), 0, "redis"),
        (make_spec(1, disks=(DiskSpec(DiskName("a/b"), DiskCid("d")),)), 0, "disk name"),
    ],
)
def test_what_is_not_for_this_vm_is_refused(spec: InstanceSpec, seen: int, message: str) -> None:
    """Also what could not be carried out: it must not be kept."""
    with pytest.raises(Refused, match=message):
        take(Held(), spec, seen)


def test_a_vm_that_fills_no_instance_takes_the_first_and_stays_with_it() -> None:
    """Settings written by hand may name none."""
    held = accept(Held(), Revision(0), make_spec(1), None, GENERATION)
    with pytest.raises(Refused, match="this VM is shop/db/0"):
        accept(held, Revision(1), make_spec(2, instance=InstanceId("shop/db/1")), None, GENERATION)


def test_an_equal_revision_may_bring_what_was_not_known_before() -> None:
    """The device of a disk, once it is attached; a person's word stays."""
    held = desired.stop(take(Held(), make_spec(3)), (REDIS,))
    disk = DiskSpec(DiskName("data"), DiskCid("d-1"), device="/dev/vdb")
    again = take(held, make_spec(3, disks=(disk,)), 3)
    spec = effective(again)
    assert spec is not None
    assert (spec.disks, spec.stopped_containers) == ((disk,), (REDIS,))


def test_a_newer_revision_says_itself_what_is_stopped() -> None:
    """A person's word, and a drain, belong to the revision they were said under."""
    held = replace(desired.stop(take(Held(), make_spec(3)), (REDIS,)), drained_boot="b")
    newer = take(held, make_spec(4, stopped_containers=(EXPORTER,)), 3)
    assert effective(newer) == make_spec(4, stopped_containers=(EXPORTER,))
    assert newer.drained_boot == ""


@pytest.mark.parametrize(
    ("steps", "wanted", "stopped"),
    [
        ([], Wanted.STARTED, ()),
        (["stop"], Wanted.STOPPED, ()),
        (["stop", "start"], Wanted.STARTED, ()),
        (["stop redis"], Wanted.STARTED, (REDIS,)),
        (["stop redis", "stop redis"], Wanted.STARTED, (REDIS,)),
        (["stop redis", "stop exporter"], Wanted.STARTED, (EXPORTER, REDIS)),
        (["stop redis", "start redis"], Wanted.STARTED, ()),
        (["stop redis", "start"], Wanted.STARTED, ()),
        (["stop", "start redis"], Wanted.STARTED, (EXPORTER,)),
        (["stop", "start redis", "start exporter"], Wanted.STARTED, ()),
        (["stop redis", "stop", "start exporter"], Wanted.STARTED, (REDIS,)),
    ],
)
def test_words_add_up(steps: list[str], wanted: Wanted, stopped: tuple[ContainerName, ...]) -> None:
    """Each is said about what holds at that moment."""
    held = take(Held(), make_spec(3))
    for step in steps:
        verb, *names = step.split()
        say = desired.start if verb == "start" else desired.stop
        held = say(held, tuple(ContainerName(name) for name in names))
    spec = effective(held)
    assert spec is not None
    assert (spec.wanted, spec.stopped_containers) == (wanted, stopped)


@pytest.mark.parametrize(
    ("held", "names", "message"),
    [
        (Held(), (), "no specification yet"),
        (
            Held(make_spec()),
            (ContainerName("postgres"),),
            "no container postgres in shop/db/0; there are exporter, redis",
        ),
    ],
)
def test_words_about_nothing_are_refused(held: Held, names: tuple[ContainerName, ...], message: str) -> None:
    """With the names there are."""
    for say in (desired.start, desired.stop, desired.restartable):
        with pytest.raises(Refused, match=message):
            say(held, names)


def test_only_what_runs_by_a_persons_word_restarts() -> None:
    """All of those, or those named; nothing of a stopped instance."""
    held = desired.stop(take(Held(), make_spec(3)), (REDIS,))
    assert desired.restartable(held, ()) == (EXPORTER,)
    with pytest.raises(Refused, match="redis is stopped"):
        desired.restartable(held, (REDIS,))
    with pytest.raises(Refused, match="shop/db/0 is stopped"):
        desired.restartable(desired.stop(held, ()), ())


@pytest.mark.parametrize(
    ("instance", "generation", "ours"),
    [
        (INSTANCE, GENERATION, True),
        (None, GENERATION, True),
        (InstanceId("shop/db/1"), GENERATION, False),
        (INSTANCE, Generation(GENERATION + 1), False),
        (INSTANCE, Generation(GENERATION - 1), False),
    ],
)
def test_what_was_kept_is_ours_only_for_this_vm(
    instance: InstanceId | None, generation: Generation, ours: bool
) -> None:
    """A state directory may come with an image, or from before a rebuild."""
    assert belongs(Held(make_spec()), instance, generation) is ours
    assert belongs(Held(), instance, generation)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12))
def test_the_revision_never_falls(steps: list[tuple[int, bool]]) -> None:
    """Whatever is applied and said in between, what is held is the highest revision that was accepted."""
    held, highest = Held(), 0
    for revision, stops in steps:
        try:
            held = take(held, make_spec(revision), highest)
            highest = max(highest, revision)
        except Refused:
            assert revision < highest
        if stops and held.spec is not None:
            held = desired.stop(held, ())
        assert (held.spec.revision if held.spec is not None else 0) == highest


MINE = Place(INSTANCE, Generation(7), "shop-db-0")


def test_a_spare_becomes_what_it_is_told_once() -> None:
    """Told again it is the same; the host name may come later."""
    assert become(None, None, MINE) == MINE
    assert become(None, MINE, MINE) == MINE
    assert become(None, Place(INSTANCE, Generation(7)), MINE) == MINE


@pytest.mark.parametrize(
    ("settled", "present", "wanted", "message"),
    [
        (InstanceId("shop/db/1"), None, MINE, "made for shop/db/1; it is no spare"),
        (INSTANCE, None, MINE, "it is no spare"),
        (None, MINE, replace(MINE, instance=InstanceId("shop/db/1")), "is shop/db/0, generation 7, already"),
        (None, MINE, replace(MINE, generation=Generation(8)), "is shop/db/0, generation 7, already"),
        (None, None, replace(MINE, generation=Generation(0)), "generation 0"),
        (None, None, replace(MINE, instance=InstanceId("../etc")), "no instance's id"),
    ],
)
def test_no_vm_is_two_instances(settled: InstanceId | None, present: Place | None, wanted: Place, message: str) -> None:
    """One that was made for an instance, or has become one, is refused to any other, and to another generation."""
    with pytest.raises(Refused, match=message):
        become(settled, present, wanted)
