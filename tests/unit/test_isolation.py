"""When the centre counts as lost."""

from __future__ import annotations

import pytest

from agent.core.isolation import Centre, Contact, Reason, decide, move_at, moved, proven, word_heard
from protocol.spec import OnIsolation

LEASE = 15.0


@pytest.mark.parametrize(
    ("contact", "now", "isolated", "reason", "next_check"),
    [
        (Contact(since=100), 100, False, Reason.STARTING, 115),
        (Contact(since=100), 114.9, False, Reason.STARTING, 115),
        (Contact(since=100), 115, True, Reason.LEASE_OVER, 130),
        (Contact(since=0, proven_at=100), 100, False, Reason.IN_CONTACT, 115),
        (Contact(since=0, proven_at=100), 114.9, False, Reason.IN_CONTACT, 115),
        (Contact(since=0, proven_at=100), 115, True, Reason.LEASE_OVER, 130),
        (Contact(since=0, proven_at=100), 10_000, True, Reason.LEASE_OVER, 10_015),
    ],
)
def test_isolated_from_the_moment_the_lease_is_over(
    contact: Contact, now: float, isolated: bool, reason: Reason, next_check: float
) -> None:
    """Counted from the last proof, or from the start before the first; the next look is when that may change."""
    decision = decide(contact, now, LEASE, OnIsolation.KEEP)
    assert (decision.isolated, decision.reason, decision.next_check) == (isolated, reason, next_check)
    assert not decision.stop_containers


@pytest.mark.parametrize(
    ("on_isolation", "now", "stops"),
    [
        (OnIsolation.KEEP, 114, False),
        (OnIsolation.KEEP, 116, False),
        (OnIsolation.STOP, 114, False),
        (OnIsolation.STOP, 116, True),
    ],
)
def test_containers_stop_only_when_isolated_and_wanted(on_isolation: OnIsolation, now: float, stops: bool) -> None:
    """`keep` never stops anything."""
    assert decide(Contact(0, 100), now, LEASE, on_isolation).stop_containers is stops


def test_a_proof_counts_from_when_its_question_was_asked() -> None:
    """An answer that took ten seconds renews for five, not for fifteen; an older proof takes nothing back."""
    contact = proven(Contact(since=0), began_at=100)
    assert decide(contact, 110, LEASE, OnIsolation.KEEP).next_check == 115
    assert proven(contact, began_at=90) is contact


def test_another_server_is_tried_when_the_centres_word_fails_to_come() -> None:
    """Well within the lease, twice; then at intervals that double; never before it was heard once."""
    assert move_at(Centre(), LEASE) is None
    centre = word_heard(100.0)
    assert move_at(centre, LEASE) == 109.0
    waits = []
    now = 109.0
    for _ in range(9):
        centre = moved(centre, now)
        at = move_at(centre, LEASE)
        assert at is not None
        waits.append(at - now)
        now = at
    assert waits == [9.0, 18.0, 36.0, 72.0, 144.0, 288.0, 576.0, 600.0, 600.0]
    assert move_at(word_heard(now), LEASE) == now + 9.0
