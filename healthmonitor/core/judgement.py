"""What the monitor believes at one moment: the words that judging and acting have in common.

Law: a Judgement is whole and of one moment; the resurrector acts on the latest one only, and asks again
(`Step.CONFIRM`) before anything that cannot be undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from protocol.heartbeat import Glance, Heartbeat
from protocol.ids import AgentId, InstanceId


class Verdict(Enum):
    UNHEARD = "unheard"  # never heard since this monitor began to listen
    ALIVE = "alive"
    SUSPECT = "suspect"
    MISSING = "missing"
    CANNOT_TELL = "cannot_tell"


@dataclass(frozen=True, slots=True)
class Missing:
    agent: AgentId
    since_seconds: float  # of the monitor's clock: when it was last known alive
    evidence: str  # one sentence: silence of how long, what asking gave, what the cloud said
    by_cloud: bool = False  # the cloud says that it does not run


@dataclass(frozen=True, slots=True)
class Loss:
    """A VM that was lost, as whoever led then wrote it down. `agent`: it, or what stands for it in the timeline."""

    instance: InstanceId
    agent: AgentId
    unix_time: float


@dataclass(frozen=True, slots=True)
class Judgement:
    at_seconds: float
    missing: Mapping[InstanceId, Missing] = field(default_factory=dict)
    cannot_tell: str = ""
    """The reason, when nothing may be concluded from silence now. What still stands in `missing` then does not rest on
    silence (asked in vain, and the cloud says it is off), and may be acted on."""
    meltdowns: Mapping[str, str] = field(default_factory=dict)  # "fleet" or a deployment → the reason
    suspects: frozenset[InstanceId] = frozenset()
    """Not known to be missing (yet): being asked."""
    brewing: frozenset[str] = frozenset()
    """Scopes, as in `meltdowns`, that would melt down if all suspects turned out to be missing."""
    lost_spares: Mapping[str, str] = field(default_factory=dict)
    """VMs that are nobody's and are missing: their key → the evidence."""


class FleetView(Protocol):
    def verdict(self, agent: AgentId) -> Verdict: ...

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        """None: not heard since this monitor began to listen."""
        ...

    def last_glance(self, agent: AgentId) -> Glance | None:
        """Of the last heartbeat what judging needs: without sequence, time, boot, instance and figures."""
        ...

    def revision(self, agent: AgentId) -> int | None:
        """Of the specification that it last said to hold. None: not heard, or an agent without our keys."""
        ...

    def heard_after(self, agent: AgentId, at_seconds: float) -> bool:
        """Whether a sign of life that is certainly younger than `at_seconds` (the loop's clock) has come."""
        ...
