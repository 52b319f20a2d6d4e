"""How many spares there should be, which goes, which is taken: by table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from healthmonitor.core.policy import Policy, SparePolicy
from healthmonitor.core.records import (
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    RolloutState,
    SparePool,
    SpareRecord,
    SpareState,
    Step,
    VmBinding,
)
from healthmonitor.core.spares import (
    Act,
    Forget,
    GiveBack,
    Inputs,
    Make,
    Retire,
    SpareImage,
    Want,
    choose,
    decide,
    evaluate_spares,
    images_of,
    key_of_place,
    place,
    wanted,
)
from protocol.ids import AgentId, CloudName, ContainerName, Generation, InstanceId, OperationId, Revision
from protocol.spec import ImagePin, PullPolicy
from tests.support.hands_world import CLOUD, deployment, group

DB = InstanceId("shop/db/0")
POOL = SparePool(CLOUD, "debian-12", 1, 1024)
SMALL = replace(POOL, memory_mib=512)


def spare(key: str, state: SpareState = SpareState.READY, **changes: Any) -> SpareRecord:
    made = SpareRecord(key, POOL, AgentId(f"agent-{key}"), made_at=100.0, version="one", state=state)
    return replace(made, **changes)


def taken(key: str, generation: int = 2) -> SpareRecord:
    return spare(key, SpareState.TAKEN, taken_by=DB, taken_generation=Generation(generation))


def record(generation: int = 1, key: str = "shop-db-0-g1") -> InstanceRecord:
    vm = VmBinding(AgentId("a"), Generation(generation), key)
    return InstanceRecord(DB, deployment().name, 0, group(), Revision(1), Revision(1), Generation(generation), vm)


def operation(step: Step, kind: OperationKind = OperationKind.RESURRECT, hold: Hold = Hold.NONE) -> Operation:
    return Operation(OperationId("o"), DB, kind, step, "", 0.0, hold=hold)


def inputs(*spares: SpareRecord, want: int = 1, **changes: Any) -> Inputs:
    given = Inputs(
        SparePolicy(per_size={CLOUD: want}),
        {POOL: Want(want, (), "one")},
        {each.key: each for each in spares},
        {DB: record()},
    )
    return replace(given, **changes)


MAKING = SpareState.MAKING
TABLE: dict[str, tuple[Inputs, list[Act]]] = {
    "as it should be": (inputs(spare("a")), []),
    "one is lacking": (inputs(), [Make(POOL, "one")]),
    "one that is being made counts": (inputs(spare("a", MAKING)), []),
    "one that is removed does not": (inputs(spare("a", SpareState.RETIRING)), [Make(POOL, "one")]),
    "one that was taken does not": (
        inputs(taken("a"), operations={DB: operation(Step.HEALTHY, hold=Hold.UNHEALTHY)}),
        [Make(POOL, "one")],
    ),
    "not too many at once": (inputs(want=5), [Make(POOL, "one")] * 2),
    "too many: those that are ready stay": (
        inputs(spare("a", MAKING), spare("b"), spare("c", made_at=50.0)),
        [Retire("b", "there are more than 1"), Retire("a", "there are more than 1")],
    ),
    "lost": (inputs(spare("a"), lost={"a": "silent"}), [Retire("a", "lost: silent"), Make(POOL, "one")]),
    "of a former stemcell": (
        inputs(spare("a", version="zero")),
        [Retire("a", "stemcell debian-12 was built anew"), Make(POOL, "one")],
    ),
    "a version that cannot be told is none": (inputs(spare("a", version="x"), wanted={POOL: Want(1, (), "")}), []),
    "nobody asks for it": (
        inputs(spare("a"), wanted={}),
        [Retire("a", "nobody asks for VMs like it any more")],
    ),
    "of another size": (
        inputs(spare("a", pool=SMALL)),
        [Retire("a", "nobody asks for VMs like it any more"), Make(POOL, "one")],
    ),
    "one that never came up a moment ago": (inputs(held_pools=frozenset({POOL})), []),
    "taken, and about to be named": (inputs(taken("a"), spare("b"), operations={DB: operation(Step.CREATE_VM)}), []),
    "taken and named": (
        inputs(taken("a"), spare("b"), instances={DB: record(2, "a")}, operations={DB: operation(Step.HEALTHY)}),
        [Forget("a")],
    ),
    "taken, named, lost, and about to be fenced": (
        inputs(
            taken("a"),
            spare("b"),
            instances={DB: record(2, "a")},
            operations={DB: replace(operation(Step.FENCE), old_vm=VmBinding(AgentId("agent-a"), Generation(2), "a"))},
        ),
        [Forget("a")],
    ),
    "taken, and its operation is gone": (inputs(taken("a"), spare("b")), [GiveBack("a")]),
    "taken, and something else is done with the instance": (
        inputs(taken("a"), spare("b"), operations={DB: operation(Step.APPLY, OperationKind.UPDATE)}),
        [],
    ),
    "taken, and perhaps once named": (
        inputs(taken("a"), spare("b"), instances={DB: record(2, "other")}),
        [Retire("a", "shop/db/0 had taken it")],
    ),
    "taken by an instance that is no more": (
        inputs(taken("a"), spare("b"), instances={}),
        [Retire("a", "shop/db/0 had taken it")],
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_follows(name: str) -> None:
    """From what there is and what there should be."""
    given, expected = TABLE[name]
    assert list(decide(given)) == expected


@pytest.mark.parametrize(
    ("busy", "change"),
    [
        (True, {"operations": {DB: operation(Step.FENCE)}}),
        (True, {"operations": {DB: operation(Step.CREATE_VM, hold=Hold.RETRYING)}}),
        (True, {"operations": {DB: operation(Step.HEALTHY)}}),
        (False, {"operations": {DB: operation(Step.GUARD, hold=Hold.MELTDOWN)}}),
        (False, {"operations": {DB: operation(Step.FENCE, hold=Hold.UNFENCED)}}),
        (False, {"operations": {DB: operation(Step.MOUNT, hold=Hold.RETRYING)}}),
        (False, {"operations": {DB: operation(Step.HEALTHY, hold=Hold.UNHEALTHY)}}),
        (False, {"operations": {DB: operation(Step.APPLY, OperationKind.UPDATE)}}),
        (True, {"deployments": (deployment(group(instances=2)),)}),
        (False, {"deployments": (deployment(group()),)}),
        (False, {"deployments": (replace(deployment(group(instances=2)), rollout=RolloutState.FAILED),)}),
        (False, {"deployments": (replace(deployment(group(instances=2)), deleting=True),)}),
        (False, {"deployments": (deployment(group(instances=2, cloud=CloudName("other"))),)}),
    ],
)
def test_who_needs_a_vm_now_goes_first(busy: bool, change: Mapping[str, Any]) -> None:
    """Filling up waits while somebody waits for a VM in the same cloud, and not for what may take days."""
    assert (decide(inputs(**change)) == ()) is busy


def test_what_there_should_be_follows_from_what_is_deployed() -> None:
    """So many for each stemcell and size in the clouds that have spares, with all images that instances there need."""
    big = group("big")
    big = replace(big, vm=replace(big.vm, memory_mib=2048, cloud_properties={"type": "m5", "port": 1}))
    given = deployment(group(), group("other", image="web:2"), big, group("elsewhere", cloud=CloudName("far")))
    going = replace(deployment(replace(big, name="going")), deleting=True)

    def lasting(cloud: CloudName, properties: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in properties.items() if name != "port"}

    def of(policy: SparePolicy, *records: InstanceRecord) -> dict[SparePool, Want]:
        return wanted([given, going], records, policy, lasting, lambda cloud, stemcell: f"{stemcell}@1")

    redis, web = SpareImage("redis:7"), SpareImage("web:2")
    assert of(SparePolicy(per_size={CLOUD: 2})) == {
        POOL: Want(2, (redis, web), "debian-12@1"),
        replace(POOL, memory_mib=2048, properties='{"type": "m5"}'): Want(2, (redis,), "debian-12@1"),
    }
    assert not of(SparePolicy(per_size={CLOUD: 0}))
    fewest = of(SparePolicy(per_size={CLOUD: 1}, pools_max=1))
    assert list(fewest) == [POOL], "that of the most instances"


def test_a_spare_has_the_very_images_that_instances_run() -> None:
    """Also where the name means another by now; what is never to be fetched is not; a spare that has them is the better
    one for that instance."""
    redis = replace(group().containers[0], pull_policy=PullPolicy.STORE)
    baked = replace(redis, name=ContainerName("baked"), image="baked:1", pull_policy=PullPolicy.NEVER)
    runs = replace(group(), containers=(redis, baked))
    pin = ImagePin("redis:7", "sha256:" + "a" * 64, "sha256:" + "b" * 64)
    moved_on = ImagePin("redis:6", "sha256:" + "c" * 64)
    record = InstanceRecord(DB, deployment().name, 0, runs, Revision(1), Revision(1))

    def of(image_pin: ImagePin) -> tuple[SpareImage, ...]:
        pinned = replace(record, pinned_images={redis.name: image_pin})
        policy = SparePolicy(per_size={CLOUD: 1})
        found = wanted([deployment(runs)], [pinned], policy, lambda cloud, properties: properties, lambda *_: "")
        return found[POOL].images

    named = SpareImage("redis:7", PullPolicy.STORE)
    assert of(moved_on) == (named,)
    assert of(pin) == (named, SpareImage("redis:7", PullPolicy.STORE, pin, pin.image_id))
    assert [each.pinned for each in of(pin)] == [None, pin]
    keys = frozenset(image.key for image in images_of(runs, {redis.name: pin}))
    assert pick(spare("a", images=tuple(keys)), spare("b", made_at=50.0, images=("redis:7",)), images=keys) == "a"


def pick(*spares: SpareRecord, alive: bool = True, images: frozenset[str] = frozenset()) -> str | None:
    found = choose(spares, POOL, "one", DB, Generation(2), images, lambda agent: alive)
    return None if found is None else found.key


def test_the_best_spare_is_taken() -> None:
    """Ready, alive, of this very kind and build; with the images that are needed; the oldest of those."""
    assert pick() is None
    assert pick(spare("a", MAKING), spare("b", SpareState.RETIRING)) is None
    assert pick(spare("a", pool=SMALL), spare("b", version="zero")) is None
    assert pick(spare("a"), alive=False) is None
    assert pick(spare("a"), spare("b", made_at=50.0)) == "b"
    assert pick(spare("a", images=("x",)), spare("b", made_at=50.0), images=frozenset({"x"})) == "a"


def test_one_that_it_has_taken_already_is_taken_again_and_no_other() -> None:
    """Also when it does not seem to live: that is found out in the next step. Another's is never taken."""
    assert pick(spare("a"), taken("b"), alive=False) == "b"
    assert pick(taken("b", generation=3)) is None
    assert pick(replace(taken("b"), taken_by=InstanceId("shop/db/1"))) is None


def test_a_spare_stands_for_no_instance() -> None:
    """Where its agent is expected it has a name that no instance can have."""
    assert key_of_place(place("spare-1")) == "spare-1"
    assert key_of_place(DB) == ""


def test_what_fails_is_told() -> None:
    """Once for each spare; one that is as it should be is not told of."""
    found = list(
        evaluate_spares(
            [
                spare("a"),
                spare("b", MAKING, error="quota"),
                spare("c", SpareState.RETIRING, error="no proof"),
                spare("d", images_error="redis:7: gone"),
            ],
            Policy(),
        )
    )
    assert [each.subject for each in found] == ["b", "c", "d"]
    assert "is not made: quota" in found[0].detail
    assert "is not removed: no proof" in found[1].detail
    assert "lacks images: redis:7: gone" in found[2].detail
