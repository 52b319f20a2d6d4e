"""All agents: who was heard when and with what, whom to ask now, about whom nothing can be said.

Laws:
- Taking a heartbeat costs the same whatever the size of the fleet; deciding costs what is due, not what there is.
- Each agent has at most one entry in the heap of due times; a heartbeat does not touch the heap, the entry is looked
  at again when it comes up.
- The monitor's own deafness (just started, bus or canary lost, its loop late) is never taken for somebody's silence.

Does not know: how questions travel, what should run on a VM, what follows from a verdict.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from healthmonitor.clouds.cloud import Power, VmObservation
from healthmonitor.core.hearing import OwnHearing
from healthmonitor.core.judgement import Judgement, Missing, Verdict
from healthmonitor.core.liveness import (
    NEVER,
    Because,
    Cause,
    Heard,
    Hearing,
    Inquiry,
    Judged,
    Life,
    answer,
    hear,
    judge,
)
from healthmonitor.core.policy import LivenessPolicy
from protocol import heartbeat as wire
from protocol.heartbeat import Glance, Heartbeat
from protocol.ids import AgentId, InstanceId

LATE_ASKS_MAX = 32
"""Questions begun in one decision only because a heartbeat was late. When the monitor itself is behind, everybody looks
late, and asking everybody would put it further behind."""


@dataclass(frozen=True, slots=True)
class FleetDecision:
    """`asks` and `observes` are begun by being returned: each must be reported back by `answered`, `unanswered`,
    `ask_failed` and `observed`, `not_observed`."""

    judgement: Judgement
    asks: tuple[AgentId, ...]
    observes: tuple[AgentId, ...]
    next_check: float


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent at one moment, as evaluating needs it."""

    agent: AgentId
    verdict: Verdict
    evidence: str
    glance: Glance | None
    silent_seconds: float  # since the last certain sign of life; infinite when there was none
    heartbeats_missing_seconds: float  # since the last heartbeat; it may answer nevertheless
    known_seconds: float


class _Agent:
    __slots__ = ("booting", "due", "expected_at", "first_at", "glance", "instance", "judged", "life", "payload")

    def __init__(self, first_at: float) -> None:
        self.life = Life()
        self.first_at = first_at
        self.instance: InstanceId | None = None
        self.expected_at = NEVER
        self.booting = False
        self.due = False  # has an entry in the heap
        self.glance: Glance | None = None  # of the last heartbeat that said something new
        self.payload = b""
        self.judged = _UNHEARD


_RENEWED, _LATE = Heard.RENEWED, Heard.LATE  # looked up for each heartbeat
_UNHEARD = Judged(Verdict.UNHEARD, Because.NEVER_HEARD)
_ALIVE = Judged(Verdict.ALIVE, Because.HEARD)


@dataclass(slots=True)
class Counters:
    heartbeats: int = 0
    late: int = 0
    replayed: int = 0
    malformed: int = 0
    refused: int = 0  # agents beyond the limit
    asked: int = 0
    observed: int = 0


class Fleet:
    """Implements judgement.FleetView. All times are the loop's clock."""

    def __init__(self, policy: LivenessPolicy, started_at: float) -> None:
        self._policy = policy
        self._agents: dict[AgentId, _Agent] = {}
        self._expected: dict[InstanceId, AgentId] = {}
        self._inquiries: dict[AgentId, Inquiry] = {}
        self._due: list[tuple[float, AgentId]] = []
        self._changed: dict[AgentId, None] = {}  # a dict for its order: runs must repeat
        self.own = OwnHearing(policy, started_at)
        self._strangers: dict[AgentId, None] = {}
        self._now = started_at  # of the last decision
        self._hearing = self.own.at(started_at)
        self.counters = Counters()

    # What is heard

    def hear(self, agent_id: AgentId, payload: bytes, received_at: float) -> bool:
        """Takes a heartbeat. True when something changed that is worth a turn now. Raises Malformed."""
        counters = self.counters
        counters.heartbeats += 1
        try:
            glance = wire.glance(payload)
        except wire.Malformed:
            counters.malformed += 1
            raise
        agent = self._agents.get(agent_id)
        if agent is None:
            if len(self._agents) >= self._policy.agents_max:
                counters.refused += 1
                return False
            agent = self._add(agent_id, received_at)
        life = agent.life
        silent_since = life.heard_at
        heard = hear(life, glance, received_at, self._policy)
        if heard is _RENEWED or heard is _LATE:
            agent.payload = payload
            notable = agent.glance is None or _differs(agent.glance, glance)
            if notable:
                agent.glance = glance
            if notable or received_at - silent_since > self._policy.suspect_after_seconds:
                self._changed[agent_id] = None
            if heard is _LATE:
                counters.late += 1
                self._inquire(agent_id, Cause.LATE, received_at)
                return True
            return notable or agent_id in self._inquiries
        counters.replayed += 1
        if heard is Heard.OLD_BOOT:
            self._inquire(agent_id, Cause.LATE, received_at)
        return False

    def answered(
        self, agent_id: AgentId, asked_at: float, received_at: float, boot_id: str, uptime_seconds: float | None
    ) -> None:
        """`asked_at` is when the question was put; the answer proves life then, whatever happened on its way back."""
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None:
            inquiry.asking = False
            inquiry.next_ask_at = received_at + self._policy.ask_timeout_seconds
        agent = self._agents.get(agent_id)
        if agent is not None:
            answer(agent.life, asked_at, boot_id, uptime_seconds, self._policy)
            self._changed[agent_id] = None

    def unanswered(self, agent_id: AgentId, asked_at: float, at: float, evidence: str) -> None:
        """The question reached nobody, or got no answer in time."""
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None:
            inquiry.asking = False
            inquiry.unanswered_at = asked_at
            inquiry.answer_evidence = evidence
            gap = self._policy.ask_timeout_seconds
            if inquiry.concluded_at is not None:
                gap = self._policy.heartbeat_interval_seconds
            inquiry.next_ask_at = at + gap

    def ask_failed(self, agent_id: AgentId, at: float, evidence: str) -> None:
        """The question could not be put: says nothing about the agent."""
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None:
            inquiry.asking = False
            inquiry.answer_evidence = evidence
            inquiry.next_ask_at = at + self._policy.ask_timeout_seconds

    def observed(self, agent_id: AgentId, observation: VmObservation, at: float) -> None:
        """What the cloud says of the agent's VM. `at`: when the cloud was asked."""
        if observation.power is Power.OFF:
            self._inquire(agent_id, Cause.CLOUD, at)
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None:
            inquiry.observing = False
            inquiry.power = observation.power
            inquiry.power_at = at
            inquiry.power_evidence = observation.evidence
            settled = observation.power in (Power.OFF, Power.GONE)
            gap = self._policy.lease_seconds if settled else self._policy.observe_timeout_seconds
            inquiry.next_observe_at = at + gap

    def not_observed(self, agent_id: AgentId, at: float, evidence: str) -> None:
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None:
            inquiry.observing = False
            inquiry.power_evidence = evidence
            inquiry.next_observe_at = at + self._policy.observe_timeout_seconds

    def disconnected(self, agent_id: AgentId, at: float) -> None:
        """The bus says that the agent's connection ended."""
        agent = self._agents.get(agent_id)
        if agent is not None and not (agent.booting and not agent.life.ever_heard):
            self._inquire(agent_id, Cause.DISCONNECTED, at)

    def shut_down(self, agent_id: AgentId, at: float) -> None:
        """The agent says that it stops. What follows is asked of the cloud."""
        if agent_id in self._agents:
            self._inquire(agent_id, Cause.SHUT_DOWN, at)

    # What is expected

    def expect(
        self, agents: Mapping[AgentId, InstanceId], now: float, booting: Collection[AgentId] = frozenset()
    ) -> None:
        """Whom to expect from now on. `booting`: those that an operation under way waits for; they are not suspected
        before they were heard. Who is no longer expected becomes a stranger."""
        for instance, agent_id in list(self._expected.items()):
            if agents.get(agent_id) != instance:
                del self._expected[instance]
                agent = self._agents[agent_id]
                agent.instance = None
                agent.booting = False
                self._strangers[agent_id] = None
                agent.first_at = now
                self._drop_inquiry(agent_id, now)
                self._changed[agent_id] = None
        for agent_id, instance in agents.items():
            known = self._agents.get(agent_id)
            agent = known if known is not None else self._add(agent_id, now)
            if agent.instance != instance:
                agent.instance = instance
                agent.expected_at = now
                self._expected[instance] = agent_id
                self._strangers.pop(agent_id, None)
                self._changed[agent_id] = None
            booting_now = agent_id in booting
            if agent.booting and not booting_now:
                agent.expected_at = now
            agent.booting = booting_now

    def set_policy(self, policy: LivenessPolicy, now: float) -> None:
        """Leases are counted anew where due times were set by the former policy."""
        self._policy = self.own.policy = policy
        self._due = [(now, agent_id) for _, agent_id in self._due]
        heapq.heapify(self._due)

    # What follows

    def decide(self, now: float) -> FleetDecision:
        hearing = self.own.at(now)
        self._look_at_due(hearing, now)
        mass = self._mass(now)
        if mass:
            hearing = Hearing(hearing.since, hearing.deaf, mass)
        self._hearing, self._now = hearing, now
        asks: list[AgentId] = []
        observes: list[AgentId] = []
        missing: dict[InstanceId, Missing] = {}
        lagged = ""
        late_asks = 0
        next_check = self._due[0][0] if self._due else now + self._policy.lease_seconds
        for agent_id, inquiry in list(self._inquiries.items()):
            agent = self._agents[agent_id]
            if self._over(agent, inquiry):
                self._drop_inquiry(agent_id, now)
                continue
            judged = judge(agent.life, inquiry, agent.expected_at, hearing, now, self._policy)
            if judged.verdict is not agent.judged.verdict:
                self._changed[agent_id] = None
            agent.judged = judged
            if judged.verdict is Verdict.MISSING:
                if inquiry.concluded_at is None:
                    inquiry.concluded_at = now
                if agent.instance is not None:
                    since = max(agent.life.alive_at, agent.expected_at)
                    missing[agent.instance] = Missing(agent_id, since, judged.evidence, judged.by_cloud)
            elif judged.because is Because.LAGGED:
                lagged = self.own.lag(now)
            if not inquiry.asking and inquiry.next_ask_at <= now and self.own.connected:
                if not inquiry.suspect:
                    late_asks += 1
                    if late_asks > LATE_ASKS_MAX:
                        continue
                inquiry.asking = True
                asks.append(agent_id)
            observable = inquiry.suspect and agent.instance is not None
            if observable and not inquiry.observing and inquiry.next_observe_at <= now:
                inquiry.observing = True
                observes.append(agent_id)
            next_check = min(next_check, self._next_look(agent, inquiry, hearing, now))
        self.counters.asked += len(asks)
        self.counters.observed += len(observes)
        return FleetDecision(
            Judgement(now, missing, hearing.deaf or hearing.mass or lagged),
            tuple(asks),
            tuple(observes),
            next_check,
        )

    def verdict(self, agent: AgentId) -> Verdict:
        return self._judged(agent).verdict

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        """Decoded when asked for: few ask, and the bytes are an eighth of the objects."""
        known = self._agents.get(agent)
        return wire.decode(known.payload) if known is not None and known.payload else None

    def heard_after(self, agent: AgentId, at_seconds: float) -> bool:
        known = self._agents.get(agent)
        return known is not None and known.life.alive_at > at_seconds

    # What evaluating needs

    @property
    def hearing_now(self) -> Hearing:
        """As of the last decision."""
        return self._hearing

    def heartbeat_seen(self, agent_id: AgentId) -> bool:
        agent = self._agents.get(agent_id)
        return agent is not None and agent.glance is not None

    def take_changed(self) -> tuple[AgentId, ...]:
        """Agents whose heartbeat's content, verdict or expectation changed since the last call."""
        changed = tuple(self._changed)
        self._changed.clear()
        return changed

    def knows(self, agent_id: AgentId) -> bool:
        return agent_id in self._agents

    def instance_of(self, agent_id: AgentId) -> InstanceId | None:
        agent = self._agents.get(agent_id)
        return None if agent is None else agent.instance

    def view(self, agent_id: AgentId, now: float) -> AgentView | None:
        agent = self._agents.get(agent_id)
        if agent is None:
            return None
        judged = self._judged(agent_id)
        return AgentView(
            agent=agent_id,
            verdict=judged.verdict,
            evidence=judged.evidence,
            glance=agent.glance,
            silent_seconds=now - agent.life.alive_at,
            heartbeats_missing_seconds=now - agent.life.heard_at,
            known_seconds=now - agent.first_at,
        )

    def strangers(self, now: float) -> Iterator[AgentView]:
        """Agents that are heard and not expected."""
        for agent_id in self._strangers:
            view = self.view(agent_id, now)
            if view is not None:
                yield view

    def verdicts(self) -> dict[Verdict, int]:
        """How many expected agents have which verdict."""
        counts = dict.fromkeys(Verdict, 0)
        if self._hearing.deaf:
            for agent_id in self._expected.values():
                counts[self._judged(agent_id).verdict] += 1
            return counts
        for agent_id in self._expected.values():
            counts[Verdict.ALIVE if self._agents[agent_id].life.ever_heard else Verdict.UNHEARD] += 1
        for agent_id, inquiry in self._inquiries.items():
            agent = self._agents[agent_id]
            if inquiry.suspect and agent.instance is not None:
                counts[Verdict.ALIVE if agent.life.ever_heard else Verdict.UNHEARD] -= 1
                counts[agent.judged.verdict] += 1
        return counts

    def __len__(self) -> int:
        return len(self._agents)

    def _add(self, agent_id: AgentId, now: float) -> _Agent:
        agent = self._agents[agent_id] = _Agent(now)
        self._strangers[agent_id] = None
        self._schedule(agent_id, agent, now + self._policy.suspect_after_seconds)
        return agent

    def _schedule(self, agent_id: AgentId, agent: _Agent, at: float) -> None:
        if not agent.due:
            agent.due = True
            heapq.heappush(self._due, (at, agent_id))

    def _look_at_due(self, hearing: Hearing, now: float) -> None:
        policy = self._policy
        while self._due and self._due[0][0] <= now:
            _, agent_id = heapq.heappop(self._due)
            agent = self._agents[agent_id]
            agent.due = False
            alive_at = agent.life.alive_at
            if agent.instance is None:
                if now - max(alive_at, agent.first_at) > policy.stranger_after_seconds:
                    self._forget(agent_id)
                else:
                    self._schedule(agent_id, agent, now + policy.suspect_after_seconds)
                continue
            inquiry = self._inquiries.get(agent_id)
            if inquiry is not None and inquiry.suspect:
                continue  # scheduled again when that is over
            quiet_until = max(alive_at, agent.expected_at, hearing.since) + policy.suspect_after_seconds
            if agent.booting and alive_at == NEVER:
                quiet_until = now + policy.suspect_after_seconds
            if quiet_until > now:
                self._schedule(agent_id, agent, quiet_until)
            else:
                self._inquire(agent_id, Cause.SILENT, now)

    def _inquire(self, agent_id: AgentId, cause: Cause, at: float) -> None:
        inquiry = self._inquiries.get(agent_id)
        if inquiry is None:
            self._inquiries[agent_id] = Inquiry(cause, at)
            return
        if inquiry.concluded_at is not None or cause is Cause.LATE:
            return
        told = (Cause.DISCONNECTED, Cause.SHUT_DOWN)
        if not inquiry.suspect or (cause in told and inquiry.cause not in told):
            inquiry.cause = cause
            inquiry.began_at = inquiry.next_ask_at = inquiry.next_observe_at = at

    @staticmethod
    def _over(agent: _Agent, inquiry: Inquiry) -> bool:
        """Whether a sign of life came that is younger than the cause."""
        life = agent.life
        if life.alive_at > inquiry.began_at or life.answered_at >= inquiry.began_at:
            return True
        return inquiry.cause is Cause.LATE and inquiry.unanswered_at >= inquiry.began_at

    def _drop_inquiry(self, agent_id: AgentId, now: float) -> None:
        if self._inquiries.pop(agent_id, None) is None:
            return
        agent = self._agents[agent_id]
        if agent.judged.verdict is not Verdict.ALIVE:
            agent.judged = _ALIVE if agent.life.ever_heard else _UNHEARD
            self._changed[agent_id] = None
        self._schedule(agent_id, agent, now)

    def _forget(self, agent_id: AgentId) -> None:
        del self._agents[agent_id]
        self._strangers.pop(agent_id, None)
        self._inquiries.pop(agent_id, None)
        self._changed[agent_id] = None

    def _mass(self, now: float) -> str:
        """Why silence proves nothing now, "" when it does: a large share went silent at about the same time, and the
        cloud does not say that they are off. Those concluded less than a lease ago count and are taken back."""
        policy = self._policy
        if len(self._inquiries) < policy.mass_count:
            return ""
        silent = 0
        for agent_id, inquiry in self._inquiries.items():
            agent = self._agents[agent_id]
            concluded = inquiry.concluded_at is not None and now - inquiry.concluded_at > policy.lease_seconds
            if (
                inquiry.suspect
                and agent.instance is not None
                and not inquiry.cloud_says_off
                and not concluded
                and not self._over(agent, inquiry)
            ):
                silent += 1
        if silent < policy.mass_count or silent < policy.mass_share * len(self._expected):
            return ""
        return f"{silent} of {len(self._expected)} VMs went silent at once"

    def _next_look(self, agent: _Agent, inquiry: Inquiry, hearing: Hearing, now: float) -> float:
        lease_ends = max(agent.life.alive_at, agent.expected_at, hearing.since) + self._policy.lease_seconds
        times = [lease_ends]
        if not inquiry.asking:
            times.append(inquiry.next_ask_at)
        if inquiry.suspect and not inquiry.observing:
            times.append(inquiry.next_observe_at)
        return min((at for at in times if at > now), default=now + self._policy.lease_seconds)

    def _judged(self, agent_id: AgentId) -> Judged:
        agent = self._agents.get(agent_id)
        if agent is None:
            return _UNHEARD
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None and inquiry.suspect:
            return agent.judged
        if agent.life.alive_at != NEVER and not self._hearing.deaf:
            return _ALIVE
        return judge(agent.life, None, agent.expected_at, self._hearing, self._now, self._policy)


def _differs(before: Glance, now: Glance) -> bool:
    """Whether a heartbeat says something that the one before did not; sequence and time always differ."""
    a, b = before.resurgam, now.resurgam
    if a is None or b is None:
        return a is not b or before.job_state != now.job_state or before.deployment != now.deployment
    return (
        before.job_state != now.job_state
        or a.revision != b.revision
        or a.engine is not b.engine
        or a.containers != b.containers
        or a.disks != b.disks
        or a.isolated != b.isolated
        or a.draining != b.draining
        or a.wanted != b.wanted
        or a.instance != b.instance
        or a.generation != b.generation
    )
