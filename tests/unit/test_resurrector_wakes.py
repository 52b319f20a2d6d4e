"""Whom a judgement wakes: a thousand operations that wait are not woken for each loss of another."""

from __future__ import annotations

import pytest

from healthmonitor.core.judgement import Judgement, Missing
from healthmonitor.core.records import Hold, Operation, OperationKind, Step
from healthmonitor.resurrector import _lost_or_back, _same_error, _what_matters_to_all
from protocol.ids import AgentId, InstanceId, OperationId

A, B = InstanceId("shop/db/0"), InstanceId("shop/db/1")


def lost(
    *instances: InstanceId, agent: str = "a", evidence: str = "silent for 15 s", by_cloud: bool = False
) -> Judgement:
    return Judgement(1.0, {each: Missing(AgentId(agent), 0.0, evidence, by_cloud) for each in instances})


@pytest.mark.parametrize(
    ("before", "now", "concerned"),
    [
        (lost(), lost(A), [A]),
        (lost(A), lost(A, B), [B]),
        (lost(A, B), lost(B), [A]),
        (lost(A), lost(A, agent="another"), [A]),
        (lost(A), lost(A, by_cloud=True), [A]),
        (lost(A), lost(A, evidence="silent for 16 s"), []),
        (lost(A), lost(A), []),
    ],
)
def test_a_loss_concerns_itself_alone(before: Judgement, now: Judgement, concerned: list[InstanceId]) -> None:
    """And what it is known by, but for how many seconds it is silent."""
    assert _lost_or_back(before, now) == concerned
    assert _what_matters_to_all(before) == _what_matters_to_all(now)


@pytest.mark.parametrize(
    ("change", "all_of_them"),
    [
        (Judgement(1.0, cannot_tell="the bus came back only 3 s ago"), True),
        (Judgement(1.0, meltdowns={"shop": "2 of 3"}), True),
        (Judgement(1.0, brewing=frozenset({"shop"})), True),
        (Judgement(1.0, suspects=frozenset({A})), False),
    ],
)
def test_what_concerns_all(change: Judgement, all_of_them: bool) -> None:
    """What may be concluded at all, and meltdowns, that are or may come; but not how many, or for how long."""
    assert (_what_matters_to_all(Judgement(1.0)) != _what_matters_to_all(change)) == all_of_them
    later = Judgement(2.0, cannot_tell="the bus came back only 4 s ago", meltdowns={"shop": "3 of 3"})
    former = Judgement(1.0, cannot_tell="the bus came back only 3 s ago", meltdowns={"shop": "2 of 3"})
    assert _what_matters_to_all(former) == _what_matters_to_all(later)


@pytest.mark.parametrize(
    ("hold", "error", "same"),
    [
        (Hold.CANNOT_TELL, "the bus came back only 4 s ago", True),
        (Hold.CANNOT_TELL, "the loop was late", False),
        (Hold.BUDGET, "the bus came back only 4 s ago", False),
    ],
)
def test_counted_seconds_are_not_written_down_again(hold: Hold, error: str, same: bool) -> None:
    """A held operation's record is written when its reason is another; a budget's time is part of its reason."""
    before = Operation(
        OperationId("1"), A, OperationKind.RESURRECT, Step.GUARD, "why", 0.0, hold=hold,
        error="the bus came back only 3 s ago",
    )  # fmt: skip
    after = Operation(OperationId("1"), A, OperationKind.RESURRECT, Step.GUARD, "why", 0.0, hold=hold, error=error)
    assert _same_error(after, before) == same
