"""The table of steps and its laws, by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.keys import KEY_MAX_CHARACTERS, disk_key, vm_key
from healthmonitor.core.operation import (
    STEPS,
    AliveAgain,
    Done,
    Failed,
    Held,
    IllegalTransition,
    Outcome,
    VmLost,
)
from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Operation, OperationKind, Step, VmBinding
from protocol.ids import AgentId, DiskName, Generation, InstanceId, OperationId, VmCid, instance_id

DB = InstanceId("shop/db/0")
POLICY = ResurrectionPolicy(retry_first_seconds=1.0, retry_longest_seconds=8.0)
OLD = VmBinding(AgentId("a1"), Generation(1), "shop-db-0-g1", VmCid("vm-1"))
NEW = VmBinding(AgentId("a2"), Generation(2), "shop-db-0-g2", VmCid("vm-2"))


def operation(kind: OperationKind, step: Step | None = None, **changes: object) -> Operation:
    old = None if kind in (OperationKind.CREATE, OperationKind.UPDATE) else OLD
    begun = rules.begin(OperationId("o1"), DB, kind, "test", 100.0, old)
    proof = "reaped" if step in rules.NEEDS_PROOF and old is not None else ""
    return replace(begun, step=step or begun.step, fence_proof=proof, **changes)  # type: ignore[arg-type]


def proof_of(step: Step, subject: Operation) -> Done:
    return Done(proof="reaped") if step is Step.FENCE and subject.old_vm is not None else Done("note")


@pytest.mark.parametrize("kind", OperationKind)
def test_a_kind_goes_through_its_steps_to_the_end(kind: OperationKind) -> None:
    """Each step done leads to the next of the table, and the last is DONE with a timing for every step."""
    subject = operation(kind)
    seen = [subject.step]
    while subject.step is not Step.DONE:
        subject = rules.advance(subject, proof_of(subject.step, subject), 101.0, POLICY)
        seen.append(subject.step)
    assert tuple(seen) == STEPS[kind]
    assert [timing.step for timing in subject.timings] == seen[:-1]
    with pytest.raises(IllegalTransition):
        rules.advance(subject, Done(), 102.0, POLICY)


@pytest.mark.parametrize("kind", OperationKind)
def test_removal_comes_before_building(kind: OperationKind) -> None:
    """FENCE stands before all that touches disks or makes a VM, and FREE_DISKS before ATTACH."""
    steps = STEPS[kind]
    assert steps[-1] is Step.DONE
    if Step.FENCE in steps:
        for later in (Step.DELETE_VM, Step.FREE_DISKS, Step.CREATE_VM, Step.ATTACH, Step.FORGET):
            assert later not in steps or steps.index(later) > steps.index(Step.FENCE)
    if Step.CREATE_VM in steps:
        assert steps.index(Step.FREE_DISKS) < steps.index(Step.CREATE_VM) < steps.index(Step.ATTACH)


ILLEGAL: list[tuple[str, Operation, Outcome]] = [
    ("fence without proof", operation(OperationKind.RESURRECT, Step.FENCE), Done()),
    ("proof where nothing is proven", operation(OperationKind.RESURRECT, Step.GUARD), Done(proof="x")),
    (
        "alive again when it is proven to be fenced",
        replace(operation(OperationKind.RESURRECT, Step.FENCE), fence_proof="its process was reaped"),
        AliveAgain("ping"),
    ),
    ("alive again when fenced", operation(OperationKind.RESURRECT, Step.DELETE_VM), AliveAgain("ping")),
    ("unfenced at apply", operation(OperationKind.RESURRECT, Step.APPLY), Held(Hold.UNFENCED, "x")),
    ("meltdown at fence", operation(OperationKind.RESURRECT, Step.FENCE), Held(Hold.MELTDOWN, "x")),
    ("retrying is no hold", operation(OperationKind.RESURRECT, Step.GUARD), Held(Hold.RETRYING, "x")),
    ("lost before it was made", operation(OperationKind.RESURRECT, Step.MAKE_DISKS), VmLost(NEW, "x")),
    ("the old one is lost again", operation(OperationKind.RESURRECT, Step.HEAR_AGENT), VmLost(OLD, "x")),
    ("an update fences nobody", operation(OperationKind.UPDATE, Step.HEAR_AGENT), VmLost(NEW, "x")),
    ("not a step of its kind", replace(operation(OperationKind.UPDATE), step=Step.FENCE), Done()),
    ("drained without a proof", replace(operation(OperationKind.RECREATE), step=Step.CREATE_VM), Done()),
]


@pytest.mark.parametrize(("subject", "outcome"), [case[1:] for case in ILLEGAL], ids=[case[0] for case in ILLEGAL])
def test_illegal_transitions_raise(subject: Operation, outcome: Outcome) -> None:
    """What would break a law is a defect of ours, and stops."""
    with pytest.raises(IllegalTransition):
        rules.advance(subject, outcome, 101.0, POLICY)


def test_retries_wait_longer_and_longer() -> None:
    """The delay doubles up to its limit; the step stays and the error stands in the record; success clears both."""
    subject = operation(OperationKind.CREATE, Step.CREATE_VM)
    delays = []
    for _ in range(6):
        subject = rules.advance(subject, Failed("quota"), 200.0, POLICY)
        delays.append(subject.next_try_at - 200.0)
        assert (subject.step, subject.hold, subject.error) == (Step.CREATE_VM, Hold.RETRYING, "quota")
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    subject = rules.advance(subject, Done(), 201.0, POLICY)
    assert (subject.attempts, subject.next_try_at, subject.hold, subject.error) == (0, 0.0, Hold.NONE, "")


def test_many_tries_do_not_overflow() -> None:
    """A step that fails for a year still has a finite delay."""
    subject = operation(OperationKind.CREATE, Step.CREATE_VM, attempts=100_000)
    assert rules.advance(subject, Failed("x"), 0.0, POLICY).next_try_at == POLICY.retry_longest_seconds


@pytest.mark.parametrize("step", [Step.CONFIRM, Step.GUARD, Step.FENCE])
def test_alive_again_ends_without_rebuilding(step: Step) -> None:
    """A VM that answers when asked once more, at first or after it was held back, or that is heard before anybody tried
    to fence it, ends the operation, and says so."""
    subject = rules.advance(operation(OperationKind.RESURRECT, step), AliveAgain("pong"), 101.0, POLICY)
    assert subject.step is Step.DONE
    assert "alive again: pong" in subject.timings[-1].note


def test_a_vm_that_could_not_be_fenced_and_came_back_is_spared() -> None:
    """Held for want of a proof, or refused by the cloud, and heard again: the resurrection ends. One recreated on
    purpose is not spared."""
    for hold in (Hold.UNFENCED, Hold.RETRYING):
        tried = operation(OperationKind.RESURRECT, Step.FENCE, hold=hold, attempts=1)
        assert rules.advance(tried, AliveAgain("pong"), 101.0, POLICY).step is Step.DONE
    on_purpose = operation(OperationKind.RECREATE, Step.FENCE, hold=Hold.UNFENCED)
    with pytest.raises(IllegalTransition):
        rules.advance(on_purpose, AliveAgain("pong"), 101.0, POLICY)


@pytest.mark.parametrize("kind", [OperationKind.CREATE, OperationKind.RESURRECT, OperationKind.RECREATE])
@pytest.mark.parametrize("step", [Step.ATTACH, Step.HEAR_AGENT])
def test_a_vm_that_never_comes_up_is_fenced_before_the_next(kind: OperationKind, step: Step) -> None:
    """The lost VM becomes the one to be fenced, without the old one's proof; each loss delays the next VM longer."""
    subject = rules.advance(operation(kind, step), VmLost(NEW, "no agent"), 101.0, POLICY)
    assert (subject.step, subject.old_vm, subject.fence_proof, subject.proof_by) == (Step.FENCE, NEW, "", "")
    with pytest.raises(IllegalTransition):
        rules.advance(subject, Done(), 102.0, POLICY)
    waits = []
    for generation in (3, 4, 5):
        while subject.step is not Step.CREATE_VM:
            subject = rules.advance(subject, proof_of(subject.step, subject), 300.0, POLICY)
        waits.append(subject.next_try_at - 300.0)
        newer = VmBinding(AgentId(f"a{generation}"), Generation(generation), f"g{generation}")
        subject = replace(subject, step=Step.HEAR_AGENT)
        subject = rules.advance(subject, VmLost(newer, "no agent"), 300.0, POLICY)
    assert waits == [1.0, 2.0, 4.0]


def test_a_person_may_vouch_only_for_what_waits() -> None:
    """The word of a person is a proof with a name; nobody can vouch anonymously, nor for what is not being fenced."""
    waiting = rules.advance(operation(OperationKind.RESURRECT, Step.FENCE), Held(Hold.UNFENCED, "?"), 101.0, POLICY)
    vouched = rules.vouch(waiting, "anna", 102.0, POLICY)
    assert (vouched.step, vouched.proof_by) == (Step.DELETE_VM, "anna")
    assert "anna" in vouched.fence_proof
    for refused, person in ((waiting, ""), (operation(OperationKind.RESURRECT, Step.GUARD), "anna"), (vouched, "anna")):
        with pytest.raises(IllegalTransition):
            rules.vouch(refused, person, 103.0, POLICY)


def test_rewinding_repeats_building_and_keeps_the_proof() -> None:
    """A changed record sends an operation back to MAKE_DISKS with its proof; what is before it stays where it is."""
    late = rules.rewind(operation(OperationKind.RESURRECT, Step.HEALTHY, hold=Hold.UNHEALTHY, attempts=4), 150.0)
    assert (late.step, late.fence_proof, late.hold, late.attempts) == (Step.MAKE_DISKS, "reaped", Hold.NONE, 0)
    early = operation(OperationKind.RESURRECT, Step.GUARD, hold=Hold.MELTDOWN)
    assert rules.rewind(early, 150.0) == early
    leaving = operation(OperationKind.DELETE, Step.FREE_DISKS)
    assert rules.rewind(leaving, 150.0) == leaving


ABSORBED = [
    # existing kind, at step, the new kind, whether the existing one does it too
    (OperationKind.DELETE, Step.FENCE, OperationKind.UPDATE, True),
    (OperationKind.DELETE, Step.FENCE, OperationKind.RESURRECT, True),
    (OperationKind.CREATE, Step.HEAR_AGENT, OperationKind.UPDATE, True),
    (OperationKind.CREATE, Step.HEAR_AGENT, OperationKind.RESURRECT, True),
    (OperationKind.CREATE, Step.HEALTHY, OperationKind.RESURRECT, False),
    (OperationKind.RESURRECT, Step.GUARD, OperationKind.RESURRECT, True),
    (OperationKind.RESURRECT, Step.APPLY, OperationKind.RESURRECT, False),
    (OperationKind.UPDATE, Step.APPLY, OperationKind.RESURRECT, False),
    (OperationKind.UPDATE, Step.APPLY, OperationKind.UPDATE, True),
    (OperationKind.UPDATE, Step.APPLY, OperationKind.RECREATE, False),
    (OperationKind.RESURRECT, Step.GUARD, OperationKind.RECREATE, False),
    (OperationKind.RESURRECT, Step.FENCE, OperationKind.RECREATE, True),
    (OperationKind.RESURRECT, Step.HEALTHY, OperationKind.RECREATE, False),
    (OperationKind.CREATE, Step.HEALTHY, OperationKind.DELETE, False),
]


@pytest.mark.parametrize(("existing", "step", "kind", "absorbed"), ABSORBED)
def test_what_an_unfinished_operation_does_too(
    existing: OperationKind, step: Step, kind: OperationKind, absorbed: bool
) -> None:
    """A table of which operation replaces which."""
    assert rules.absorbs(operation(existing, step), kind) is absorbed


@pytest.mark.parametrize(
    ("before_vm", "proof", "record_vm", "old_vm", "kept"),
    [
        (OLD, "reaped", OLD, OLD, "reaped"),  # proven, not yet forgotten
        (OLD, "reaped", None, OLD, "reaped"),  # proven and forgotten: its disks may still be freed
        (OLD, "reaped", NEW, NEW, ""),  # the new VM has no proof from the old one's
        (OLD, "", OLD, OLD, ""),
    ],
)
def test_a_replaced_operation_hands_its_proof_over(
    before_vm: VmBinding, proof: str, record_vm: VmBinding | None, old_vm: VmBinding, kept: str
) -> None:
    """A proof is of one VM: it goes over with that VM and with no other."""
    before = replace(operation(OperationKind.RESURRECT, Step.DELETE_VM), old_vm=before_vm, fence_proof=proof)
    begun = rules.begin(OperationId("o2"), DB, OperationKind.DELETE, "asked", 1.0, record_vm, before)
    assert (begun.old_vm, begun.fence_proof) == (old_vm, kept)


def test_timings_are_bounded() -> None:
    """A VM that is lost a thousand times does not make its record grow without end."""
    policy = replace(POLICY, timings_max=10)
    subject = operation(OperationKind.CREATE, Step.HEAR_AGENT)
    for generation in range(2, 60):
        vm = VmBinding(AgentId("a"), Generation(generation), f"g{generation}")
        subject = replace(rules.advance(subject, VmLost(vm, "x"), 1.0, policy), step=Step.HEAR_AGENT, fence_proof="x")
    assert len(subject.timings) == 10


KEYED = [
    ("shop", "db", 0),
    ("shop-db", "x", 0),
    ("shop", "db-x", 0),
    ("shop", "db_x", 0),
    ("s" * 60, "d" * 60, 123),
    ("s" * 60, "d" * 60, 124),
    ("a", "b", 1),
    ("a-b", "1", 1),
]


def test_keys_are_short_and_never_shared() -> None:
    """Names with dashes, underscores and of any length give keys of at most 60 of [a-z0-9-], all different."""
    instances = [instance_id(*parts) for parts in KEYED]
    keys = [vm_key(instance, Generation(g)) for instance in instances for g in (1, 2, 11)]
    assert len(set(keys)) == len(keys)
    disks = [disk_key(instance, DiskName(name)) for instance in instances for name in ("data", "data-1", "data_1")]
    assert len(set(disks)) == len(disks)
    for key in keys + disks:
        assert len(key) <= KEY_MAX_CHARACTERS
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert vm_key(InstanceId("shop/db/0"), Generation(3)) == "shop-db-0-g3"
