"""One agent as the fleet keeps it, and as evaluating sees it at one moment.

Does not know: other agents.
"""

from __future__ import annotations

import msgspec

from healthmonitor.core.judgement import Verdict
from healthmonitor.core.last_words import Words
from healthmonitor.core.liveness import NEVER, Because, Judged, Life, lease_seconds, suspect_after_seconds
from healthmonitor.core.policy import LivenessPolicy
from protocol.heartbeat import Glance
from protocol.ids import AgentId, InstanceId

UNHEARD = Judged(Verdict.UNHEARD, Because.NEVER_HEARD)
ALIVE = Judged(Verdict.ALIVE, Because.HEARD)


class Agent(msgspec.Struct, gc=False, eq=False):
    """There are as many as there are VMs, so each byte counts, and the collector need not follow them: they are never
    part of a cycle."""

    first_at: float
    life: Life
    words: Words
    instance: InstanceId | None = None
    expected_at: float = NEVER
    booting: bool = False
    due: bool = False  # has a due time
    judged: Judged = UNHEARD


class AgentView(msgspec.Struct, frozen=True, gc=False):
    """One agent at one moment, as evaluating needs it. A struct, because making a dataclass would be a good part of
    what evaluating an instance costs."""

    agent: AgentId
    verdict: Verdict
    evidence: str
    glance: Glance | None  # without sequence, time, boot and instance
    silent_seconds: float  # since the last certain sign of life; infinite when there was none
    heartbeats_missing_seconds: float  # since the last heartbeat; it may answer nevertheless
    known_seconds: float
    lease_seconds: float  # which depends on how often its kind of agent speaks
    suspect_after_seconds: float
    claims: str = ""  # the instance that it says it is


def view(agent_id: AgentId, agent: Agent, judged: Judged, now: float, policy: LivenessPolicy) -> AgentView:
    life, words = agent.life, agent.words
    return AgentView(
        agent=agent_id,
        verdict=judged.verdict,
        evidence=judged.evidence,
        glance=words.glance,
        claims=words.claims,
        silent_seconds=now - life.alive_at,
        heartbeats_missing_seconds=now - life.heard_at,
        known_seconds=now - agent.first_at,
        lease_seconds=lease_seconds(life, policy),
        suspect_after_seconds=suspect_after_seconds(life, policy),
    )
