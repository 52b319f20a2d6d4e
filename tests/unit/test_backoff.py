"""Gaps between restarts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.backoff import (
    Backoff,
    BackoffPolicy,
    after_end,
    after_good_run,
    after_refusal,
    gap_seconds,
    is_crash_loop,
)

POLICY = BackoffPolicy()


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 2), (5, 4), (8, 32), (9, 60), (10, 60), (10_000, 60)],
)
def test_gap(failures: int, seconds: float) -> None:
    """Nothing, then the first gap, doubling, up to the longest, without overflow."""
    assert gap_seconds(failures, POLICY) == seconds


def test_a_good_run_makes_the_next_failure_the_first() -> None:
    """Ten fast failures are a crash loop; one good run later there is no gap and no loop."""
    backoff = Backoff()
    for _ in range(10):
        backoff = after_end(backoff, 100.0, 0.1, POLICY)
    assert is_crash_loop(backoff, POLICY)
    assert backoff.not_before == 160.0
    again = after_end(backoff, 500.0, 60.0, POLICY)
    assert (again.failures, again.not_before) == (1, 500.0)
    assert not is_crash_loop(again, POLICY)


@pytest.mark.parametrize(("ran_seconds", "forgotten"), [(59.9, False), (60.0, True)])
def test_reset(ran_seconds: float, forgotten: bool) -> None:
    """Exactly a good run forgets."""
    assert (after_good_run(Backoff(3, 10.0), ran_seconds, POLICY) == Backoff()) is forgotten


def test_a_refusal_is_not_retried_at_once() -> None:
    """The engine's no has a gap from the first time on."""
    assert after_refusal(Backoff(), 10.0, POLICY) == Backoff(1, 10.5)


@given(st.lists(st.floats(0, 200), max_size=50))
def test_nothing_is_given_up(runs: list[float]) -> None:
    """Whatever the runs were, the next start is at most the longest gap away."""
    backoff = Backoff()
    for ran_seconds in runs:
        backoff = after_end(backoff, 0.0, ran_seconds, POLICY)
        assert 0.0 <= backoff.not_before <= POLICY.longest_seconds
