"""The steps of an operation: which comes next, after what, and when a failed one is tried again.

Laws:
- The steps of a kind stand in `STEPS`; only `advance`, `vouch`, `rewind` and `begin` change an operation.
- No step behind FENCE is reached while `old_vm` is set and there is no `fence_proof` for it.
- A failure never ends an operation: it is tried again after a growing delay, and says what failed.
- Every step may be repeated, so going back to an earlier one is always allowed; skipping one never is.

Does not know: how a step is taken (healthmonitor/steps), who leads, what the journal is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import assert_never

from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Operation, OperationKind, Step, StepTiming, VmBinding
from protocol.ids import InstanceId, OperationId, Revision

_BUILD = (
    Step.MAKE_DISKS,
    Step.FREE_DISKS,
    Step.CREATE_VM,
    Step.ATTACH,
    Step.HEAR_AGENT,
    Step.MOUNT,
    Step.APPLY,
    Step.HEALTHY,
    Step.DONE,
)
_REMOVE = (Step.FENCE, Step.DELETE_VM)

STEPS: Mapping[OperationKind, tuple[Step, ...]] = MappingProxyType(
    {
        # Removal stands in CREATE too: a VM that never came up is fenced before the next one is made.
        OperationKind.CREATE: (*_REMOVE, *_BUILD),
        OperationKind.RESURRECT: (Step.CONFIRM, Step.GUARD, *_REMOVE, *_BUILD),
        OperationKind.RECREATE: (Step.DRAIN, *_REMOVE, *_BUILD),
        OperationKind.UPDATE: (
            Step.MAKE_DISKS,
            Step.ATTACH,
            Step.HEAR_AGENT,
            Step.MOUNT,
            Step.APPLY,
            Step.HEALTHY,
            Step.DONE,
        ),
        # An update with the containers stopped in the middle. A VM that is lost meanwhile is rebuilt at once, with its
        # old disks; what was begun here is begun again after that.
        OperationKind.CHANGE_DISKS: (
            Step.MAKE_DISKS,
            Step.ATTACH,
            Step.HEAR_AGENT,
            Step.SNAPSHOT,
            Step.QUIESCE,
            Step.REWORK,
            Step.SWAP,
            Step.MOUNT,
            Step.APPLY,
            Step.HEALTHY,
            Step.DONE,
        ),
        OperationKind.DELETE: (Step.DRAIN, *_REMOVE, Step.FREE_DISKS, Step.FORGET, Step.DONE),
    }
)

NEEDS_PROOF = frozenset(Step) - {Step.CONFIRM, Step.GUARD, Step.DRAIN, Step.FENCE}
"""Steps that may not be reached with an unfenced old VM (but by one that ends before: alive again)."""

IN_PLACE = frozenset({OperationKind.UPDATE, OperationKind.CHANGE_DISKS})
"""Kinds that leave the VM as it is: they have no old one, and fence nothing."""

NEW_VM_STEPS = frozenset(
    {
        Step.ATTACH,
        Step.HEAR_AGENT,
        Step.SNAPSHOT,
        Step.QUIESCE,
        Step.REWORK,
        Step.SWAP,
        Step.MOUNT,
        Step.APPLY,
        Step.HEALTHY,
    }
)
"""Steps in which the instance's present VM is needed; it may be lost in them."""

SETTLED_STEPS = frozenset({Step.SNAPSHOT, Step.QUIESCE, Step.REWORK, Step.SWAP, Step.MOUNT, Step.APPLY, Step.HEALTHY})
"""Steps in which the new VM's agent was heard: from here on the monitor judges whether it is missing. Before, the
step's own deadline does."""

GUARD_HOLDS = frozenset(
    {Hold.DISABLED, Hold.PAUSED, Hold.MELTDOWN, Hold.BUDGET, Hold.CONCURRENCY, Hold.MAINTENANCE, Hold.CANNOT_TELL}
)
"""Holds that end when circumstances change, not when time passes: looked at again whenever something happens."""

NO_ROLLOUT = Revision(0)
_DOUBLINGS_MAX = 30


class IllegalTransition(Exception):
    """A defect of ours: the outcome does not fit the step, or a law above would be broken."""


@dataclass(frozen=True, slots=True)
class Done:
    """The step is taken. `note` goes into the timeline. `proof`: the evidence, for FENCE."""

    note: str = ""
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """Not taken, or not known to be. `error`: what happened and what to do next."""

    error: str


@dataclass(frozen=True, slots=True)
class Held:
    """The step may not be taken (yet), for a reason that has a name."""

    hold: Hold
    error: str


@dataclass(frozen=True, slots=True)
class AliveAgain:
    """Only at CONFIRM, after having been held at GUARD, and at FENCE while it is not fenced: the VM is there after all;
    nothing is rebuilt."""

    evidence: str


@dataclass(frozen=True, slots=True)
class VmLost:
    """The VM that this operation made never came up, or is off again: it is fenced and another one made."""

    vm: VmBinding
    error: str


Outcome = Done | Failed | Held | AliveAgain | VmLost


def first_step(kind: OperationKind) -> Step:
    return STEPS[kind][0]


def following(kind: OperationKind, step: Step) -> Step:
    steps = STEPS[kind]
    if step not in steps or step is Step.DONE:
        raise IllegalTransition(f"{kind.value} has nothing after {step.value}")
    return steps[steps.index(step) + 1]


def begin(
    operation_id: OperationId,
    instance: InstanceId,
    kind: OperationKind,
    reason: str,
    now_unix: float,
    old_vm: VmBinding | None,
    before: Operation | None = None,
    rollout_revision: Revision = NO_ROLLOUT,
) -> Operation:
    """A new operation at its first step. `old_vm`: the VM that fills the instance now, for kinds that remove it.

    `before` is the unfinished operation that this one replaces. A proof that it already has is kept: the cloud's record
    of that VM may be deleted by now, and could not be proven off again.
    """
    proof, proof_by = "", ""
    if before is not None and before.fence_proof and (old_vm is None or before.old_vm == old_vm):
        old_vm, proof, proof_by = before.old_vm, before.fence_proof, before.proof_by
    if kind in IN_PLACE:
        old_vm, proof, proof_by = None, "", ""
    return Operation(
        id=operation_id,
        instance=instance,
        kind=kind,
        step=first_step(kind),
        reason=reason,
        started_at=now_unix,
        old_vm=old_vm,
        fence_proof=proof,
        proof_by=proof_by,
        rollout_revision=rollout_revision,
        step_started_at=now_unix,
    )


def absorbs(existing: Operation, kind: OperationKind) -> bool:
    """Whether `existing`, rewound, does all that a new operation of `kind` would: it builds from the newest record."""
    if existing.kind is OperationKind.DELETE:
        return True
    match kind:
        case OperationKind.UPDATE | OperationKind.CHANGE_DISKS:
            return True  # one that changes no disks leaves them waiting, and they are begun again after it
        case OperationKind.CREATE:
            return existing.kind not in IN_PLACE
        case OperationKind.RESURRECT:
            # The VM that it is about to remove anyway, or has removed; a lost new one is another matter.
            return existing.kind not in IN_PLACE and existing.step not in SETTLED_STEPS
        case OperationKind.RECREATE:
            # It is past its guard, and has not begun to build: what it will build is the newest record's VM.
            return existing.step in (Step.FENCE, Step.DELETE_VM, Step.MAKE_DISKS, Step.FREE_DISKS) and (
                existing.kind not in IN_PLACE
            )
        case OperationKind.DELETE:
            return False
        case _:
            assert_never(kind)


def rewind(operation: Operation, now_unix: float) -> Operation:
    """The same operation, back at MAKE_DISKS when it is past it, because the record that it builds from was changed."""
    steps = STEPS[operation.kind]
    if Step.MAKE_DISKS not in steps or steps.index(operation.step) <= steps.index(Step.MAKE_DISKS):
        return operation
    return _checked(
        replace(
            operation,
            step=Step.MAKE_DISKS,
            attempts=0,
            next_try_at=0.0,
            hold=Hold.NONE,
            error="",
            step_started_at=now_unix,
        )
    )


def vouch(operation: Operation, person: str, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    """A person says that the old VM cannot write any more. IllegalTransition unless it waits for just that."""
    if operation.step is not Step.FENCE or operation.old_vm is None:
        raise IllegalTransition(
            f"{operation.instance} is at step {operation.step.value}: there is no VM whose fencing waits for a word"
        )
    if not person:
        raise IllegalTransition("a word without a name proves nothing: say who vouches")
    vouched = replace(operation, proof_by=person)
    return advance(vouched, Done(proof=f"{person} vouches that it is off", note=f"by {person}"), now_unix, policy)


def advance(operation: Operation, outcome: Outcome, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    """The operation after `outcome` of its present step. Raises IllegalTransition when it does not fit."""
    if operation.step is Step.DONE:
        raise IllegalTransition("the operation is over")
    match outcome:
        case Done(note=note, proof=proof):
            return _checked(_done(operation, note, proof, now_unix, policy))
        case Failed(error=error):
            return _again(operation, Hold.RETRYING, error, now_unix, policy)
        case Held(hold=hold, error=error):
            _check_hold(operation, hold)
            return _again(operation, hold, error, now_unix, policy)
        case AliveAgain(evidence=evidence):
            if not _may_be_spared(operation):
                raise IllegalTransition(f"too late for being alive again: {operation.step.value}")
            return _enter(operation, Step.DONE, f"alive again: {evidence}", now_unix, policy)
        case VmLost(vm=vm, error=error):
            return _checked(_lost(operation, vm, error, now_unix, policy))
        case _:
            assert_never(outcome)


def retry_delay_seconds(attempt: int, policy: ResurrectionPolicy) -> float:
    """Before try `attempt` + 1: first x 2^(attempt - 1), at most the longest; 0 before the first."""
    if attempt <= 0:
        return 0.0
    return min(
        policy.retry_first_seconds * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX),
        policy.retry_longest_seconds,
    )


def _done(operation: Operation, note: str, proof: str, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    if operation.step is Step.FENCE and operation.old_vm is not None:
        if not (proof or operation.fence_proof):
            raise IllegalTransition("fencing is done only with a proof")
        if proof:
            operation = replace(operation, fence_proof=proof, proof_by=operation.proof_by or "cloud")
    elif proof:
        raise IllegalTransition(f"{operation.step.value} proves nothing")
    entered = _enter(operation, following(operation.kind, operation.step), note, now_unix, policy)
    if entered.step is Step.CREATE_VM and entered.vms_lost:
        return replace(entered, next_try_at=now_unix + retry_delay_seconds(entered.vms_lost, policy))
    return entered


def _lost(operation: Operation, vm: VmBinding, error: str, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    if operation.step not in NEW_VM_STEPS or Step.FENCE not in STEPS[operation.kind]:
        raise IllegalTransition(f"{operation.kind.value} cannot lose a VM at {operation.step.value}")
    if operation.old_vm is not None and vm.generation <= operation.old_vm.generation:
        raise IllegalTransition("the lost VM is older than the one that it replaced")
    back = _enter(operation, Step.FENCE, f"lost: {error}", now_unix, policy)
    return replace(
        back, old_vm=vm, fence_proof="", proof_by="", vms_lost=operation.vms_lost + 1, error=error, hold=Hold.RETRYING
    )


def _enter(operation: Operation, step: Step, note: str, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    started_at = operation.step_started_at or operation.started_at
    timing = StepTiming(operation.step, started_at, max(0.0, now_unix - started_at), note)
    return replace(
        operation,
        step=step,
        attempts=0,
        next_try_at=0.0,
        hold=Hold.NONE,
        error="",
        timings=(*operation.timings, timing)[-policy.timings_max :],
        step_started_at=now_unix,
    )


def _again(operation: Operation, hold: Hold, error: str, now_unix: float, policy: ResurrectionPolicy) -> Operation:
    attempts = operation.attempts + 1
    return replace(
        operation,
        hold=hold,
        error=error,
        attempts=attempts,
        next_try_at=now_unix + retry_delay_seconds(attempts, policy),
    )


def _may_be_spared(operation: Operation) -> bool:
    """Nothing irreversible was done to the old VM yet. At FENCE only while nothing proves that it was fenced. (A try of
    which nothing was heard may take effect later: the VM is then missed again, and rebuilt.)"""
    if operation.step is Step.FENCE:
        return operation.kind is OperationKind.RESURRECT and not operation.fence_proof
    return operation.step in (Step.CONFIRM, Step.GUARD)


def _check_hold(operation: Operation, hold: Hold) -> None:
    expected = {
        Step.FENCE: frozenset({Hold.UNFENCED}),
        Step.GUARD: GUARD_HOLDS,
        Step.CONFIRM: frozenset({Hold.CANNOT_TELL}),
        Step.HEALTHY: frozenset({Hold.UNHEALTHY}),
    }.get(operation.step, frozenset())
    if hold not in expected:
        raise IllegalTransition(f"{operation.step.value} is not held by {hold.value or 'nothing'}")


def _checked(operation: Operation) -> Operation:
    """Law two, after every change, in production too."""
    if operation.step not in STEPS[operation.kind]:
        raise IllegalTransition(f"{operation.kind.value} has no step {operation.step.value}")
    if operation.step in NEEDS_PROOF and operation.old_vm is not None and not operation.fence_proof:
        raise IllegalTransition(f"{operation.step.value} without a proof that {operation.old_vm.key} cannot write")
    return operation
