"""Who else is there: heard, silent, ready to lead, gone by wish; and what a monitor of another version tells."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from healthmonitor.core.leadership import LeaseState, free, stands_aside, written
from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import RECORDS_FORMAT, Presence, Roster, counts, words
from protocol import codec

POLICY = LeadershipPolicy()
OTHER = Presence("hm-b", "b1", warm=True, leads=False)


def roster(*heard: tuple[Presence, float]) -> Roster:
    made = Roster("hm-a", "a1", POLICY)
    for presence, at in heard:
        made.heard(presence, at)
    return made


@pytest.mark.parametrize(
    ("presence", "silent_seconds", "ready"),
    [
        (OTHER, 0.0, True),
        (OTHER, 3.4, True),
        (OTHER, 3.5, False),
        (replace(OTHER, warm=False), 0.0, False),
        (replace(OTHER, leaving=True), 0.0, False),
        (replace(OTHER, records_format=RECORDS_FORMAT - 1), 0.0, False),
        (replace(OTHER, records_format=RECORDS_FORMAT + 1), 0.0, True),
        (replace(OTHER, monitor="hm-a", incarnation="a1"), 0.0, False),
        (replace(OTHER, monitor="hm-a", incarnation="a2"), 0.0, False),
    ],
)
def test_who_could_lead_at_once(presence: Presence, silent_seconds: float, ready: bool) -> None:
    """Another monitor that is warm, was heard lately, stays, and understands the records."""
    assert roster((presence, 100.0)).someone_is_ready(100.0 + silent_seconds) is ready


def test_a_monitor_that_falls_silent_is_missed_and_one_that_left_is_not() -> None:
    """Missed until it is heard again, or was away for a day; one that said goodbye is forgotten soon."""
    found = roster((OTHER, 0.0), (Presence("hm-c", "c1", leaving=True), 0.0))
    assert [each.presence.monitor for each in found.others(1.0)] == ["hm-b", "hm-c"]
    assert found.missing(1.0) == ()
    assert [each.presence.monitor for each in found.missing(10.0)] == ["hm-b"]
    assert [each.presence.monitor for each in found.others(10.0)] == ["hm-b"]
    found.heard(OTHER, 11.0)
    assert found.missing(12.0) == ()
    assert found.others(11.0 + POLICY.forgotten_seconds) == ()


def test_hearing_that_the_leader_changed_is_worth_a_look() -> None:
    """Only a change is: a presence every second is not."""
    found = Roster("hm-a", "a1", POLICY)
    assert [found.heard(replace(OTHER, leads=leads), 0.0) for leads in (True, True, False, False)] == [
        False,
        False,
        True,
        False,
    ]


def test_two_monitors_of_one_name_are_noticed() -> None:
    """The same name with another incarnation, while it is heard."""
    found = roster((Presence("hm-a", "a2", address="http://b"), 0.0))
    other = found.namesake(1.0)
    assert other is not None
    assert other.address == "http://b"
    assert found.namesake(10.0) is None
    assert roster((Presence("hm-a", "a1"), 0.0)).namesake(0.0) is None


def test_no_more_monitors_than_are_kept() -> None:
    """However many names somebody makes up."""
    found = roster(*((Presence(f"m{number}", "x"), 0.0) for number in range(100)))
    assert len(found.others(0.0)) == POLICY.monitors_max


@pytest.mark.parametrize(
    ("change", "silent_seconds", "word"),
    [
        ({}, 0.0, "warm"),
        ({"warm": False}, 0.0, "warming up"),
        ({"leads": True}, 0.0, "leads"),
        ({"leads": True}, 4.0, "silent"),
        ({"leaving": True}, 0.0, "ending"),
    ],
)
def test_one_word_for_what_it_does(change: dict[str, bool], silent_seconds: float, word: str) -> None:
    """As `resurgam monitor list` shows it, and as the metric counts it."""
    presence = replace(OTHER, **change)  # type: ignore[arg-type]  # all of them are booleans
    assert words(presence, silent_seconds, POLICY) == word
    assert counts(roster((presence, 0.0)).others(silent_seconds), silent_seconds, POLICY) == {word: 1}


def test_a_presence_of_another_version_is_understood_as_far_as_it_goes() -> None:
    """Unknown keys are passed over, missing ones have their defaults."""
    newer = json.loads(codec.to_json(OTHER)) | {"mood": "fine", "presence_version": 9}
    assert codec.from_json(Presence, json.dumps(newer)) == replace(OTHER, presence_version=9)
    assert codec.from_json(Presence, b'{"monitor": "old", "incarnation": "1"}').warm is False


def test_a_free_lease_is_left_to_a_ready_one_for_one_ttl() -> None:
    """Never when nobody else is ready, never longer than the TTL, and what is held is never left."""
    state = free(LeaseState(seen_revision=4, seen_at=10.0), 10.0)
    assert stands_aside(state, 10.5, True, True, POLICY)
    assert not stands_aside(state, 10.5, False, True, POLICY)
    assert not stands_aside(state, 10.5, True, False, POLICY)
    assert not stands_aside(state, 10.0 + POLICY.ttl_seconds, True, True, POLICY)
    assert free(state, 12.0).free_since == 10.0
    assert not stands_aside(written(5, 10.0), 10.5, True, True, POLICY)


def test_a_killed_leader_is_followed_within_five_seconds() -> None:
    """The bound that the defaults promise: its last renewal was seen at most one renewal after it was written, and is
    waited out for one TTL; more than a second is left for the write and for reading the journal."""
    assert POLICY.ttl_seconds + POLICY.renew_seconds <= 4.0
