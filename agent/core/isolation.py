"""When the centre counts as lost, and what that means.

Laws: only a round trip through the bus is proof of contact; a connection that merely looks open is none. A proof
counts from when the round trip began, so that a slow answer never lengthens the lease. Being isolated changes nothing
on a VM unless its group says `on_isolation: stop`: the agent works alone.

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
