"""When the centre counts as lost, and what that means.

Laws: only a round trip through the bus is proof of contact; a connection that merely looks open is none. A proof
counts from when the round trip began, so that a slow answer never lengthens the lease. Being isolated changes nothing
on a VM unless its group says `on_isolation: stop`: the agent works alone.

A bus of several servers may fall apart: one that is cut off from the others answers its clients and reaches nobody.
So the centre's word, heard through the server, is looked for too, once it was heard at all; without it the agent moves
to another server, at growing intervals, and is no more isolated for that.

Does not know: the bus, clocks, containers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from protocol.spec import OnIsolation


class Reason(Enum):
    IN_CONTACT = "in contact"
    STARTING = "no round trip yet, the first lease is not over"
    LEASE_OVER = "no round trip through the bus for the lease"


@dataclass(frozen=True, slots=True)
class Contact:
    """`since`: when the agent began to look, `proven_at`: when the last successful round trip began. Loop seconds."""

    since: float
    proven_at: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    isolated: bool
    stop_containers: bool
    reason: Reason
    next_check: float  # loop seconds


def proven(contact: Contact, began_at: float) -> Contact:
    """`contact` after a round trip that began at `began_at`; an older one than known changes nothing."""
    if contact.proven_at is not None and began_at <= contact.proven_at:
        return contact
    return replace(contact, proven_at=began_at)


MOVE_AFTER_LEASES = 0.6
"""Early enough to be heard through another server within the lease; later than the centre's word is ever late for."""
MOVES_AT_ONCE = 2
"""So many moves wait no longer than the first: the second server that is tried may be the one that was cut off, and the
third must still be heard within the lease."""
MOVES_APART_MAX_LEASES = 40.0


@dataclass(frozen=True, slots=True)
class Centre:
    """The centre's word: when it was heard last (None: never), and since when to wait for it, moved how often. Loop
    seconds."""

    heard_at: float | None = None
    waits_since: float = 0.0
    moves: int = 0


def word_heard(now: float) -> Centre:
    return Centre(heard_at=now, waits_since=now)


def move_at(centre: Centre, lease_seconds: float) -> float | None:
    """When another server should be tried (loop seconds) unless the centre is heard before. None before its word was
    heard once: an older centre says none. After MOVES_AT_ONCE each further move waits twice as long as the one before:
    the centre may be what is away."""
    if centre.heard_at is None:
        return None
    leases = min(MOVES_APART_MAX_LEASES, MOVE_AFTER_LEASES * 2.0 ** max(0, centre.moves - MOVES_AT_ONCE + 1))
    return centre.waits_since + leases * lease_seconds


def moved(centre: Centre, now: float) -> Centre:
    return replace(centre, waits_since=now, moves=min(centre.moves + 1, 32))


def decide(contact: Contact, now: float, lease_seconds: float, on_isolation: OnIsolation) -> Decision:
    """Isolated from the moment the lease is over, counted from the last proof, or from the start before the first."""
    reference = contact.since if contact.proven_at is None else contact.proven_at
    ends_at = reference + lease_seconds
    if now < ends_at:
        reason = Reason.STARTING if contact.proven_at is None else Reason.IN_CONTACT
        return Decision(isolated=False, stop_containers=False, reason=reason, next_check=ends_at)
    return Decision(
        isolated=True,
        stop_containers=on_isolation is OnIsolation.STOP,
        reason=Reason.LEASE_OVER,
        next_check=now + lease_seconds,
    )
