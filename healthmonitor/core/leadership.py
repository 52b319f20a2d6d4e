"""Who may act: the arithmetic of the lease.

Laws:
- A lease is over for others when its key's revision did not change for the whole TTL on *their own* clock. Nobody's
  clock is compared with anybody's; only rates must agree.
- A holder may act until TTL - 2 renewals after the *beginning* of its last successful write, so it stops before
  another may begin, however long that write's answer took.
- Whoever holds is known by the revision it wrote, not by its name: a restarted monitor is a new one.
- Stepping aside for another is manners, never needed for safety, and it ends: a lease that nobody else takes for a
  whole TTL is taken all the same.

Does not know: the bus. Times are monotonic seconds of this monitor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from healthmonitor.core.policy import LeadershipPolicy


@dataclass(frozen=True, slots=True)
class LeaseState:
    seen_revision: int | None = None  # None: no key
    seen_at: float = 0.0  # when this revision was first seen
    released: bool = False  # its holder gave it back
    held_revision: int | None = None  # the revision that we wrote last, while the lease is ours
    renewed_at: float = 0.0  # when that write began
    free_since: float | None = None  # since when it could be taken, as far as this monitor knows


class LeaseAction(Enum):
    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class LeaseDecision:
    action: LeaseAction
    reason: str
    next_check_seconds: float


def seen(state: LeaseState, revision: int | None, released: bool, now: float) -> LeaseState:
    """What reading the key gave. A revision that is not ours ends our holding; its age counts from now."""
    if revision is not None and revision == state.held_revision:
        return replace(state, seen_revision=revision, released=released)
    if revision == state.seen_revision and state.held_revision is None:
        return replace(state, released=released)
    return LeaseState(seen_revision=revision, seen_at=now, released=released)


def written(revision: int, began_at: float) -> LeaseState:
    """We wrote the key: it is ours."""
    return LeaseState(seen_revision=revision, seen_at=began_at, held_revision=revision, renewed_at=began_at)


def refused(state: LeaseState, now: float) -> LeaseState:
    """Compare-and-set said no: somebody else wrote. Until it is read, assume it was just now."""
    return LeaseState(seen_revision=state.seen_revision, seen_at=now)


def may_act(state: LeaseState, now: float, policy: LeadershipPolicy) -> bool:
    return state.held_revision is not None and now < acts_until(state, policy)


def acts_until(state: LeaseState, policy: LeadershipPolicy) -> float:
    return state.renewed_at + policy.ttl_seconds - 2.0 * policy.renew_seconds


def free(state: LeaseState, now: float) -> LeaseState:
    """The lease could be taken: by us, or by one whom we let go first."""
    return state if state.free_since is not None else replace(state, free_since=now)


def stands_aside(
    state: LeaseState, now: float, wishes_to: bool, someone_is_ready: bool, policy: LeadershipPolicy
) -> bool:
    """Whether a free lease is left to another: one who was asked to step down, or who has only just started, lets a
    ready one go first."""
    if not wishes_to or not someone_is_ready or state.held_revision is not None:
        return False
    return state.free_since is None or now - state.free_since < policy.ttl_seconds


def decide(state: LeaseState, now: float, policy: LeadershipPolicy) -> LeaseDecision:
    """What to do now, after `seen`."""
    if state.held_revision is not None:
        left = state.renewed_at + policy.renew_seconds - now
        if left > 0:
            return LeaseDecision(LeaseAction.WAIT, "the lease is ours and fresh", left)
        return LeaseDecision(LeaseAction.RENEW, "the lease is ours and due", policy.renew_seconds)
    if state.seen_revision is None:
        return LeaseDecision(LeaseAction.CREATE, "there is no lease", policy.renew_seconds)
    if state.released:
        return LeaseDecision(LeaseAction.TAKE, "its holder gave the lease back", policy.renew_seconds)
    age = now - state.seen_at
    if age >= policy.ttl_seconds:
        return LeaseDecision(LeaseAction.TAKE, f"the lease was not renewed for {age:.1f} s", policy.renew_seconds)
    return LeaseDecision(
        LeaseAction.WAIT,
        "another monitor holds the lease",
        min(policy.renew_seconds, policy.ttl_seconds - age),
    )
