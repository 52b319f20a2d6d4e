"""One agent's signs of life, and the verdict on it.

Laws:
- A heartbeat renews the lease as of when it was sent, never as of when it got out of a buffer. Nobody's wall clock is
  trusted: the age is judged by the sender's seconds since boot and the quickest way through the bus seen lately
  (ARCHITECTURE.md, "How late is a heartbeat?").
- An answer to our own question is fresh by construction: it counts as of when the question was put, and sets the
  offset anew (a VM that was frozen and thawed, or restored, would look late for ever otherwise).
- Silence alone never decides before the lease is over, and never without an unanswered question.

Times are seconds of the monitor's loop clock. Does not know: other agents, instances, how questions are put.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec

from healthmonitor.clouds.cloud import Power
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.policy import LivenessPolicy
from protocol.heartbeat import Glance

NEVER = float("-inf")
FORMER_BOOTS_MAX = 3


class Heard(Enum):
    """What a heartbeat did."""

    RENEWED = "renewed"
    LATE = "late"  # renewed, as of when it was sent; ask
    REPLAYED = "replayed"  # not younger than the last one: nothing
    OLD_BOOT = "old_boot"  # of a boot that another has followed: nothing; ask


_RENEWED, _LATE = Heard.RENEWED, Heard.LATE  # looked up for each heartbeat


class Life(msgspec.Struct, gc=False, eq=False):
    """Signs of life of one agent. Mutable, and not followed by the collector: there are as many as agents, and each
    heartbeat touches one."""

    alive_at: float = NEVER  # the VM certainly lived then, on the monitor's clock
    answered_at: float = NEVER  # when the last question that got an answer was put
    heard_at: float = NEVER  # when the last heartbeat that counted was received
    boot_id: str = ""
    former_boots: tuple[str, ...] = ()
    sent_at: float = NEVER  # of the last heartbeat, on the sender's clock
    offset_now: float = 0.0  # least `received - sent` in the present window
    offset_before: float = 0.0  # and in the one before
    window_ends: float = NEVER
    bosh: bool = False  # it speaks without our keys: a real bosh-agent, which beats at a cadence of its own

    @property
    def ever_heard(self) -> bool:
        return self.alive_at != NEVER


def lease_seconds(life: Life, policy: LivenessPolicy) -> float:
    """How long this agent may be silent. Ours beat as often as they are told; BOSH's do as they always do."""
    return max(policy.lease_seconds, policy.bosh_lease_seconds) if life.bosh else policy.lease_seconds


def suspect_after_seconds(life: Life, policy: LivenessPolicy) -> float:
    """After how long a silence it is asked."""
    if not life.bosh:
        return policy.suspect_after_seconds
    return max(policy.suspect_after_seconds, policy.bosh_suspect_after_seconds)


def hear(life: Life, glance: Glance, received_at: float, policy: LivenessPolicy) -> Heard:
    """Takes a heartbeat into account. Within a boot, order is by `sent_at_seconds`, which goes on over a restart of
    the agent's process where `sequence` begins anew."""
    extension = glance.resurgam
    if extension is None:  # a real bosh-agent: counts as sent when received
        life.bosh = True
        life.alive_at = life.heard_at = received_at
        return Heard.RENEWED
    sent_at = extension.sent_at_seconds
    offset = received_at - sent_at
    if extension.boot_id != life.boot_id or life.sent_at == NEVER:
        if extension.boot_id in life.former_boots:
            return Heard.OLD_BOOT
        _begin_boot(life, extension.boot_id, offset, received_at, policy)
    elif sent_at <= life.sent_at:
        return Heard.REPLAYED
    elif received_at >= life.window_ends:
        life.offset_before = life.offset_now
        life.offset_now = offset
        life.window_ends = received_at + policy.offset_window_seconds
    elif offset < life.offset_now:
        life.offset_now = offset
    life.bosh = False
    life.sent_at = sent_at
    life.heard_at = received_at
    quickest = life.offset_now if life.offset_now < life.offset_before else life.offset_before
    # Not max() with the former alive_at: a quicker way seen now shows that the former was judged too young.
    alive_at = sent_at + quickest
    life.alive_at = alive_at if alive_at > life.answered_at else life.answered_at
    return _LATE if offset - quickest > policy.late_seconds else _RENEWED


def answer(life: Life, asked_at: float, boot_id: str, uptime_seconds: float | None, policy: LivenessPolicy) -> None:
    """Takes an answer to our own question into account. `uptime_seconds` None: the agent did not say (a real
    bosh-agent), so that only the lease is renewed."""
    life.alive_at = max(life.alive_at, asked_at)
    life.answered_at = max(life.answered_at, asked_at)
    if uptime_seconds is None:
        life.bosh = life.sent_at == NEVER
        return
    life.bosh = False
    # The answer was given after `asked_at`, so this offset is at most the true one: it renews too little, never too
    # much, and by no more than the round trip.
    offset = asked_at - uptime_seconds
    if boot_id != life.boot_id:
        _begin_boot(life, boot_id, offset, asked_at, policy)
        life.sent_at = uptime_seconds
    else:  # lower only when the sender's clock went back: it was restored from a snapshot
        life.sent_at = min(life.sent_at, uptime_seconds) if life.sent_at != NEVER else uptime_seconds
    life.offset_now = life.offset_before = offset
    life.window_ends = asked_at + policy.offset_window_seconds


def _begin_boot(life: Life, boot_id: str, offset: float, at: float, policy: LivenessPolicy) -> None:
    if life.sent_at != NEVER and boot_id != life.boot_id:
        former = (life.boot_id, *(boot for boot in life.former_boots if boot != boot_id))
        life.former_boots = former[:FORMER_BOOTS_MAX]
    life.boot_id = boot_id
    life.sent_at = NEVER
    life.offset_now = life.offset_before = offset
    life.window_ends = at + policy.offset_window_seconds


class Cause(Enum):
    """Why an agent is being looked at. Only LATE does not make it suspect."""

    LATE = "late"
    SILENT = "silent"
    DISCONNECTED = "disconnected"
    SHUT_DOWN = "shut_down"
    CLOUD = "cloud"


class Inquiry(msgspec.Struct, gc=False, eq=False):
    """What is being asked about one agent; exists only while there is a cause. Not followed by the collector: when a
    whole fleet is silent there are as many as agents."""

    cause: Cause
    began_at: float
    asking: bool = False
    next_ask_at: float = NEVER  # at once
    unanswered_at: float = NEVER  # when the last question that got no answer was put
    answer_evidence: str = ""
    observing: bool = False
    next_observe_at: float = NEVER
    power: Power | None = None
    power_at: float = NEVER
    power_evidence: str = ""
    concluded_at: float | None = None  # first judged missing
    look_at: float = float("inf")  # when it comes up to be judged again, whatever happens

    def __post_init__(self) -> None:
        self.next_ask_at = max(self.next_ask_at, self.began_at)
        self.next_observe_at = max(self.next_observe_at, self.began_at)

    @property
    def suspect(self) -> bool:
        return self.cause is not Cause.LATE

    @property
    def cloud_says_off(self) -> bool:
        return self.power is Power.OFF


class Because(Enum):
    NEVER_HEARD = "never_heard"
    HEARD = "heard"
    UNDER_INQUIRY = "under_inquiry"  # suspect: not asked yet, or the lease is not over
    CLOUD_AND_NO_ANSWER = "cloud_and_no_answer"
    LEASE_AND_NO_ANSWER = "lease_and_no_answer"
    DEAF = "deaf"  # just started, bus or canary lost or not back for a lease
    LAGGED = "lagged"
    MASS = "mass"


@dataclass(frozen=True, slots=True)
class Hearing:
    """What the monitor's own hearing is worth. `since`: it has heard without a gap since then, so that silence before
    it proves nothing. `deaf`: why nothing at all may be concluded, "" when something may."""

    since: float
    deaf: str = ""
    mass: str = ""  # why silence proves nothing although the monitor hears: too many at once


class Judged(msgspec.Struct, frozen=True, gc=False):
    verdict: Verdict
    because: Because
    evidence: str = ""  # one sentence
    by_cloud: bool = False


def judge(
    life: Life, inquiry: Inquiry | None, expected_at: float, hearing: Hearing, now: float, policy: LivenessPolicy
) -> Judged:
    """The verdict on one agent. `expected_at`: since when it is expected, for one that was never heard."""
    last_sign = max(life.alive_at, expected_at)
    lease = lease_seconds(life, policy)
    if inquiry is None or not inquiry.suspect:
        if not life.ever_heard:
            return Judged(Verdict.UNHEARD, Because.NEVER_HEARD)
        if hearing.deaf and now - last_sign > lease:
            return Judged(Verdict.CANNOT_TELL, Because.DEAF, hearing.deaf)
        return Judged(Verdict.ALIVE, Because.HEARD)

    asked_in_vain = inquiry.unanswered_at >= max(inquiry.began_at, hearing.since)
    cloud_says_no = inquiry.power in (Power.OFF, Power.GONE) and inquiry.power_at >= inquiry.began_at
    lease_over = now - last_sign > lease
    lease_over_while_hearing = now - max(last_sign, hearing.since) > lease

    if hearing.deaf:
        verdict = Verdict.CANNOT_TELL if lease_over or cloud_says_no else Verdict.SUSPECT
        return Judged(verdict, Because.DEAF, hearing.deaf)
    if asked_in_vain and cloud_says_no and not (hearing.mass and inquiry.power is Power.GONE):
        return Judged(Verdict.MISSING, Because.CLOUD_AND_NO_ANSWER, _evidence(life, inquiry, now), by_cloud=True)
    if hearing.mass and lease_over:
        return Judged(Verdict.CANNOT_TELL, Because.MASS, hearing.mass)
    if asked_in_vain and lease_over_while_hearing:
        return Judged(Verdict.MISSING, Because.LEASE_AND_NO_ANSWER, _evidence(life, inquiry, now))
    if lease_over and not lease_over_while_hearing:
        return Judged(Verdict.CANNOT_TELL, Because.LAGGED, "the monitor did not hear without a gap for one lease")
    return Judged(Verdict.SUSPECT, Because.UNDER_INQUIRY, _evidence(life, inquiry, now))


def is_over(life: Life, inquiry: Inquiry) -> bool:
    """Whether a sign of life came that is younger than the cause."""
    if life.alive_at > inquiry.began_at or life.answered_at >= inquiry.began_at:
        return True
    return inquiry.cause is Cause.LATE and inquiry.unanswered_at >= inquiry.began_at


def next_look(
    life: Life, inquiry: Inquiry, expected_at: float, hearing: Hearing, now: float, policy: LivenessPolicy
) -> float:
    """When the verdict may be another, or something is to be asked. `now` itself when a lease ends at this very moment:
    it is over only after it."""
    last_sign, lease = max(life.alive_at, expected_at), lease_seconds(life, policy)
    times = [last_sign + lease, max(last_sign, hearing.since) + lease]
    if not inquiry.asking:
        times.append(inquiry.next_ask_at)
    if inquiry.suspect and not inquiry.observing:
        times.append(inquiry.next_observe_at)
    return min((at for at in times if at >= now), default=now + policy.lease_seconds)


def _evidence(life: Life, inquiry: Inquiry, now: float) -> str:
    parts = [f"silent for {now - life.alive_at:.1f} s" if life.ever_heard else "never heard by this monitor"]
    if inquiry.cause is Cause.DISCONNECTED:
        parts.append("its connection to the bus ended")
    elif inquiry.cause is Cause.SHUT_DOWN:
        parts.append("it announced its shutdown")
    parts.append(inquiry.answer_evidence or "not asked yet")
    if inquiry.power is None:
        parts.append(f"the cloud has not said anything{': ' if inquiry.power_evidence else ''}{inquiry.power_evidence}")
    else:
        parts.append(f"the cloud says {inquiry.power.value}: {inquiry.power_evidence}")
    return "; ".join(parts)
