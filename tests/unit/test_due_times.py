"""The timer wheel against a sorted list."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from healthmonitor.core.due_times import TOOTH_SECONDS, DueTimes
from protocol.ids import AgentId

TIMES = st.floats(0.0, 100.0, allow_nan=False)


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, min_size=1, max_size=10))
def test_everybody_is_taken_once_not_early_and_hardly_late(due: list[float], looks: list[float]) -> None:
    """Whatever the times: at each look come those whose time is over, but for those within the last tooth."""
    wheel = DueTimes[AgentId]()
    for n, at in enumerate(due):
        wheel.add(AgentId(str(n)), at)
    taken: dict[AgentId, float] = {}
    for now in sorted(looks):
        for agent in wheel.take(now):
            assert agent not in taken
            taken[agent] = now
            assert due[int(agent)] <= now + 1e-9
        left = [at for n, at in enumerate(due) if AgentId(str(n)) not in taken]
        assert all(at > now - TOOTH_SECONDS - 1e-9 for at in left)
        next_at = wheel.next_at()
        assert (next_at is None) == (not left)
        if next_at is not None:
            assert min(left) <= next_at + 1e-9 <= min(left) + TOOTH_SECONDS + 1e-6


@given(st.lists(TIMES, max_size=60), st.lists(TIMES, min_size=1, max_size=6), st.integers(1, 10))
def test_taking_some_takes_the_same_in_the_end(due: list[float], looks: list[float], most: int) -> None:
    """As many as asked for, the earliest first, each once; nobody is left who would have been taken one by one."""
    some, each = DueTimes[AgentId](), DueTimes[AgentId]()
    for n, at in enumerate(due):
        some.add(AgentId(str(n)), at)
        each.add(AgentId(str(n)), at)
    for now in sorted(looks):
        taken: list[AgentId] = []
        while part := some.take_some(now, most):
            assert len(part) <= most
            taken.extend(part)
        assert sorted(taken) == sorted(each.take(now))
        teeth = [int(due[int(agent)] // TOOTH_SECONDS) for agent in taken]
        assert teeth == sorted(teeth)
        assert some.next_at() == each.next_at()


def test_who_is_added_while_others_are_taken_comes_in_its_turn() -> None:
    """Someone looked at may be due again before the one that comes next."""
    wheel = DueTimes[AgentId]()
    wheel.add(AgentId("a"), 1.0)
    wheel.add(AgentId("c"), 3.0)
    order = []
    for agent in wheel.take(10.0):
        order.append(agent)
        if agent == "a":
            wheel.add(AgentId("b"), 2.0)
    assert order == ["a", "b", "c"]


def test_all_can_be_made_due_at_once() -> None:
    """After a change of the policy everybody is looked at again, once."""
    wheel = DueTimes[AgentId]()
    for n in range(5):
        wheel.add(AgentId(str(n)), 100.0 * n)
    wheel.all_at(7.0)
    assert sorted(wheel.take(7.0 + TOOTH_SECONDS)) == [AgentId(str(n)) for n in range(5)]
    assert wheel.next_at() is None


def test_who_is_not_taken_stays_due() -> None:
    """One look may take only some of them."""
    wheel = DueTimes[AgentId]()
    for n in range(5):
        wheel.add(AgentId(str(n)), 1.0)
    first = list(islice(wheel.take(2.0), 2))
    assert wheel.next_at() is not None
    assert sorted(first + list(wheel.take(2.0))) == [AgentId(str(n)) for n in range(5)]
    assert wheel.next_at() is None
