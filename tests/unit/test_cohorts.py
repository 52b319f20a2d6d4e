"""Those who speak, looked at together: nobody who falls silent is found late, none twice, and few are looked at."""

from __future__ import annotations

import random

import pytest

from healthmonitor.core.cohorts import COHORT_MAX, LOOKED_AT_MAX, Cohorts
from healthmonitor.core.due_times import TOOTH_SECONDS
from healthmonitor.core.liveness import Life
from protocol.ids import AgentId

AFTER, INTERVAL, STEP = 15.0, 10.0, 0.25


def joined(cohorts: Cohorts, alive_at: dict[str, float]) -> dict[str, Life]:
    lives = {name: Life(alive_at=at) for name, at in alive_at.items()}
    for name, life in lives.items():
        cohorts.join(AgentId(name), life, life.alive_at + AFTER)
    return lives


@pytest.mark.parametrize("seed", range(10))
def test_who_falls_silent_is_found_on_time_and_once(seed: int) -> None:
    """Whatever the order in which they joined, with beats spread over the interval and now and then one lost."""
    chance = random.Random(seed)
    cohorts, now = Cohorts(), 1000.0
    names = [f"a{n}" for n in range(3 * COHORT_MAX)]
    lives = joined(cohorts, {name: now - chance.uniform(0.0, INTERVAL) for name in names})
    beats = {name: life.alive_at + INTERVAL for name, life in lives.items()}
    falls_silent_at = {name: now + chance.uniform(0.0, 60.0) for name in chance.sample(names, 200)}
    found: dict[str, float] = {}
    while now < 1100.0:
        now += STEP
        for name, at in beats.items():
            if at <= now and at < falls_silent_at.get(name, float("inf")):
                beats[name] = at + INTERVAL
                lives[name].alive_at = at
        for agent in cohorts.take_silent(now, AFTER, 1_000_000):
            assert agent not in found
            found[agent] = now
    assert found.keys() == falls_silent_at.keys()
    late = [at - (lives[name].alive_at + AFTER) for name, at in found.items()]
    assert min(late) >= 0
    assert max(late) <= STEP + TOOTH_SECONDS


def test_who_speaks_stays_and_is_looked_at_about_once_a_heartbeat() -> None:
    """At the worst twice: the cohort's oldest sign of life comes of age as often as that."""
    cohorts, now = Cohorts(), 0.0
    lives = joined(cohorts, {f"a{n}": -INTERVAL * n / 1000 for n in range(1000)})
    looks = 0
    while now < 100.0:
        now += STEP
        for life in lives.values():
            while life.alive_at + INTERVAL <= now:
                life.alive_at += INTERVAL
        next_at = cohorts.next_at()
        looks += next_at is not None and next_at <= now
        assert cohorts.take_silent(now, AFTER, 1000) == []
    assert looks <= 2 * 100.0 / INTERVAL * (1000 / COHORT_MAX + 1)


def test_a_large_loss_is_found_in_parts() -> None:
    """About as many at a time as are asked for; all of them, at the next calls."""
    cohorts = Cohorts()
    names = {f"a{n}" for n in range(5 * COHORT_MAX)}
    joined(cohorts, dict.fromkeys(sorted(names), 0.0))
    found: list[AgentId] = []
    calls = 0
    while (next_at := cohorts.next_at()) is not None and next_at <= 100.0:
        some = cohorts.take_silent(100.0, AFTER, COHORT_MAX)
        assert 0 < len(some) < 2 * COHORT_MAX
        found += some
        calls += 1
    assert (sorted(found), calls) == (sorted(names), 5)


def test_those_who_speak_are_looked_at_in_parts_too() -> None:
    """After a pause of the loop all are due at once; one look must not be made longer by it."""
    cohorts = Cohorts()
    lives = joined(cohorts, {f"a{n:06}": 0.0 for n in range(2 * LOOKED_AT_MAX)})
    for life in lives.values():
        life.alive_at = 99.0
    lives[f"a{0:06}"].alive_at = lives[f"a{2 * LOOKED_AT_MAX - 1:06}"].alive_at = 0.0
    assert len(cohorts.take_silent(100.0, AFTER, 10)) == 1
    assert len(cohorts.take_silent(100.0, AFTER, 10)) == 1
    assert cohorts.take_silent(100.0, AFTER, 10) == []


def test_a_cohort_that_has_become_small_goes_on_in_others() -> None:
    """Else a fleet of which many fell silent would be looked at one by one again."""
    cohorts = Cohorts()
    lives = joined(cohorts, {f"a{n:04}": 0.0 for n in range(4 * COHORT_MAX)})
    staying = [life for n, life in enumerate(lives.values()) if n % 10 == 0]
    for life in staying:
        life.alive_at = 10.0
    now = AFTER + TOOTH_SECONDS
    assert len(cohorts.take_silent(now, AFTER, 10_000)) == len(lives) - len(staying)
    assert cohorts.take_silent(now, AFTER, 10_000) == []
    assert len(cohorts.take_silent(10.0 + AFTER + TOOTH_SECONDS, AFTER, 10_000)) == len(staying)


def test_when_the_rules_change_all_are_looked_at_again() -> None:
    cohorts = Cohorts()
    joined(cohorts, {"a": 0.0, "b": 4.0})
    assert cohorts.take_silent(6.0, 3.0, 10) == []
    cohorts.all_at(6.0)
    assert cohorts.take_silent(6.0 + TOOTH_SECONDS, 3.0, 10) == ["a"]
    assert cohorts.next_at() == pytest.approx(4.0 + 3.0 + TOOTH_SECONDS, abs=TOOTH_SECONDS)


def test_nobody_there() -> None:
    assert Cohorts().take_silent(1.0, AFTER, 10) == []
    assert Cohorts().next_at() is None
