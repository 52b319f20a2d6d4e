"""A thread: incidents that were told together, from the first notification to the last.

Law: written down with each notification, so that whoever leads next goes on where this one stopped. An incident is in
at most one thread that is not over.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from healthmonitor.core.notifying.notification import Transition
from healthmonitor.core.notifying.routing import EscalationStep
from healthmonitor.core.records import Incident, Severity


@dataclass(frozen=True, slots=True)
class Member:
    """What was told of one incident."""

    key: str
    opened_at: float
    severity: Severity
    flapping: bool = False
    over_at: float | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    by: str
    because: str
    at: float


@dataclass(frozen=True, slots=True)
class Thread:
    """`number` grows with each notification; `channels` are all that were told, in order. Times are Unix seconds."""

    id: str
    number: int
    route: str
    kind: str
    channels: tuple[str, ...]
    members: tuple[Member, ...]
    opened_at: float
    told_at: float
    escalate: tuple[EscalationStep, ...] = ()
    escalated: int = 0  # steps taken
    repeat_seconds: float = 0.0
    repeats: int = 0
    progresses: int = 0
    acknowledged: Acknowledgement | None = None
    over_at: float | None = None

    @property
    def severity(self) -> Severity:
        """The gravest of those that are not over, or of all."""
        members = [each for each in self.members if each.over_at is None] or self.members
        return min((each.severity for each in members), key=lambda severity: severity.value)


@dataclass(frozen=True, slots=True)
class Send:
    """One notification to be written down and delivered. `keys`: the incidents that it tells of, first those that
    matter most; `thread` as it is with it."""

    thread: Thread
    transition: Transition
    channels: tuple[str, ...]
    incidents: tuple[Incident, ...]
    left_out: int = 0

    @property
    def id(self) -> str:
        return f"{self.thread.id}-{self.thread.number}"


def thread_id(first: Incident) -> str:
    """The same for whoever makes it of the same incident."""
    return hashlib.sha256(f"{first.key}@{first.opened_at:.3f}".encode()).hexdigest()[:20]


def is_flapping(incident: Incident) -> bool:
    return incident.title.endswith("(flapping)")
