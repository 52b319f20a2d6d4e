"""What people are sent: a notification, with an item for each incident that it tells of.

Law: `id` is the same however often it is sent, `thread` from opening to resolution. It carries all that a channel
needs: whoever sends it later, from the outbox, has no more to look up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from healthmonitor.core.records import Incident, Severity


class Transition(Enum):
    OPENED = "opened"
    CHANGED = "changed"
    REPEATED = "repeated"
    ESCALATED = "escalated"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    NOTED = "noted"  # happened once and has no end: an agent's alert
    DIGEST = "digest"  # what was left out, counted
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Item:
    """One incident in a notification, with what a person needs to decide."""

    incident: Incident
    where: str  # deployment/group/index, VM, cloud id
    doing: str  # the resurrection's live step, or why it holds back
    facts: Mapping[str, str] = field(default_factory=dict)  # exit code, limit, restarts, duration, …
    log_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Notification:
    """`thread`: stable from opening to resolution, the same for everything that belongs together."""

    id: str
    thread: str
    transition: Transition
    severity: Severity
    at: float  # Unix seconds
    subject: str  # one line
    items: tuple[Item, ...]
    left_out: int = 0  # items that are only counted
    site: str = ""  # the monitor's name
    link: str = ""
