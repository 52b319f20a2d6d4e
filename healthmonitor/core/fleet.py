"""All agents: who was heard when and with what, whom to ask now, about whom nothing can be said.

Laws:
- Taking a heartbeat costs the same whatever the size of the fleet; deciding costs what is due, not what there is.
- Each agent has at most one due time, of its own or of its cohort; a heartbeat does not touch it, the agent is looked
  at again when it comes up.
- The monitor's own deafness (just started, bus or canary lost, its loop late) is never taken for somebody's silence.

Does not know: how questions travel, what should run on a VM, what follows from a verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from healthmonitor.clouds.cloud import VmObservation
from healthmonitor.core import agent_state, last_words
from healthmonitor.core.agent_state import ALIVE, UNHEARD, Agent, AgentView
from healthmonitor.core.cohorts import Cohorts
from healthmonitor.core.due_times import DueTimes
from healthmonitor.core.hearing import OwnHearing
from healthmonitor.core.inquiries import Inquiries
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.last_words import Archive, Words
from healthmonitor.core.liveness import (
    NEVER,
    Cause,
    Heard,
    Hearing,
    Inquiry,
    Judged,
    Life,
    answer,
    hear,
    is_over,
    judge,
    lease_seconds,
    next_look,
    suspect_after_seconds,
)
from healthmonitor.core.policy import LivenessPolicy
from healthmonitor.core.reasons import without_numbers
from healthmonitor.core.standing import Standing
from protocol import heartbeat as wire
from protocol.heartbeat import Glance, Heartbeat
from protocol.ids import AgentId, InstanceId

JUDGED_MAX = 400
"""Agents under inquiry that are judged in one decision, the rest in the next, at once."""
LATE_ASKS_MAX = 32
"""Questions begun in one decision only because a heartbeat was late. When the monitor itself is behind, everybody looks
late, and asking everybody would put it further behind."""

COUNTED_AT_ONCE, DEAF_COUNT_SECONDS = 5_000, 5.0
DUE_MAX = 1_000
"""Agents looked at in one decision because their time has come, the rest in the next: after a start all are due at
once, and a loop that is late must not be made later."""
DUE_APART_SECONDS = 0.25
"""They are looked at no more often than this: in a big fleet somebody is due at every moment, and whether one that fell
silent is asked a little later decides nothing."""


@dataclass(frozen=True, slots=True)
class FleetDecision:
    """`asks` and `observes` are begun by being returned: each must be reported back by `answered`, `unanswered`,
    `ask_failed` and `observed`, `not_observed`."""

    judgement: Judgement
    asks: tuple[AgentId, ...]
    observes: tuple[AgentId, ...]
    next_check: float


_RENEWED, _LATE = Heard.RENEWED, Heard.LATE  # looked up for each heartbeat


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
        self._agents: dict[AgentId, Agent] = {}
        self._expected: dict[InstanceId, AgentId] = {}
        self._asked = Inquiries(policy)
        self._inquiries = self._asked.of
        self._standing = Standing()
        self._archive = Archive()
        self._due: DueTimes[AgentId] = DueTimes()
        self._cohorts = Cohorts()  # of those who are expected and speak; everybody else has a due time of their own
        self._changed: dict[AgentId, None] = {}  # a dict for its order: runs must repeat
        self.own = OwnHearing(policy, started_at)
        self._strangers: dict[AgentId, None] = {}
        self._unheard: dict[AgentId, None] = {}  # expected, and no sign of life yet
        self._counted_deaf: tuple[float, dict[Verdict, int]] = (NEVER, {})
        self._now = started_at  # of the last decision
        self._hearing = self.own.at(started_at)
        self._late_asks = 0  # in this decision
        self.counters = Counters()

    # What is heard

    def hear(self, agent_id: AgentId, payload: bytes, received_at: float) -> bool:
        """Takes a heartbeat, also of an agent that nobody knew. True when something changed that is worth a turn now.
        Raises Malformed."""
        notable = self.hear_known(agent_id, payload, received_at)
        if notable is not None:
            return notable
        if len(self._agents) >= self._policy.agents_max:
            self.counters.heartbeats += 1
            self.counters.refused += 1
            return False
        try:
            wire.glance(payload)  # nobody is known by nonsense
        except wire.Malformed:
            self.counters.heartbeats += 1
            self.counters.malformed += 1
            raise
        self._add(agent_id, received_at)
        return bool(self.hear_known(agent_id, payload, received_at))

    def hear_known(self, agent_id: AgentId, payload: bytes, received_at: float) -> bool | None:
        """As `hear`; None, and nothing is taken, when it is not known: nearly all are, and each is looked up once."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return None
        counters = self.counters
        counters.heartbeats += 1
        try:
            glance = wire.glance(payload)
        except wire.Malformed:
            counters.malformed += 1
            raise
        life = agent.life
        silent_since = life.heard_at
        heard = hear(life, glance, received_at, self._policy)
        if heard is _RENEWED or heard is _LATE:
            notable = self._archive.keep(agent.words, glance, payload, agent.instance, received_at, len(self._agents))
            if silent_since == NEVER:
                self._unheard.pop(agent_id, None)
            if notable or received_at - silent_since > suspect_after_seconds(life, self._policy):
                self._changed[agent_id] = None
            if heard is _LATE:
                counters.late += 1
                self._asked.begin(agent_id, Cause.LATE, received_at)
                return True
            if agent_id in self._inquiries:
                self._asked.touch(agent_id)
                return True
            return notable
        counters.replayed += 1
        if heard is Heard.OLD_BOOT:
            self._asked.begin(agent_id, Cause.LATE, received_at)
        return False

    def answered(
        self, agent_id: AgentId, asked_at: float, received_at: float, boot_id: str, uptime_seconds: float | None
    ) -> None:
        """`asked_at` is when the question was put; the answer proves life then, whatever happened on its way back."""
        self._asked.answered(agent_id, received_at)
        agent = self._agents.get(agent_id)
        if agent is not None:
            answer(agent.life, asked_at, boot_id, uptime_seconds, self._policy)
            self._unheard.pop(agent_id, None)
            self._changed[agent_id] = None

    def unanswered(self, agent_id: AgentId, asked_at: float, at: float, evidence: str) -> None:
        """The question reached nobody, or got no answer in time."""
        self._asked.unanswered(agent_id, asked_at, at, evidence)

    def ask_failed(self, agent_id: AgentId, at: float, evidence: str) -> None:
        """The question could not be put: says nothing about the agent."""
        self._asked.ask_failed(agent_id, at, evidence)

    def observed(self, agent_id: AgentId, observation: VmObservation, at: float) -> None:
        """What the cloud says of the agent's VM. `at`: when the cloud was asked."""
        self._asked.observed(agent_id, observation, at)

    def not_observed(self, agent_id: AgentId, at: float, evidence: str) -> None:
        self._asked.not_observed(agent_id, at, evidence)

    def disconnected(self, agent_id: AgentId, at: float) -> None:
        """The bus says that the agent's connection ended."""
        agent = self._agents.get(agent_id)
        if agent is not None and not (agent.booting and not agent.life.ever_heard):
            self._asked.begin(agent_id, Cause.DISCONNECTED, at)

    def shut_down(self, agent_id: AgentId, at: float) -> None:
        """The agent says that it stops. What follows is asked of the cloud."""
        if agent_id in self._agents:
            self._asked.begin(agent_id, Cause.SHUT_DOWN, at)

    # What is expected

    def expect(
        self, agents: Mapping[AgentId, InstanceId], now: float, booting: Collection[AgentId] = frozenset()
    ) -> None:
        """Whom to expect from now on. `booting`: those that an operation under way waits for; they are not suspected
        before they were heard. Who is no longer expected becomes a stranger."""
        for instance, agent_id in list(self._expected.items()):
            if agents.get(agent_id) != instance:
                self.bind(instance, None, now)
        for agent_id, instance in agents.items():
            self.bind(instance, agent_id, now, agent_id in booting)

    def bind(self, instance: InstanceId, agent_id: AgentId | None, now: float, booting: bool = False) -> None:
        """As `expect`, for one instance; None: nobody is expected there."""
        former = self._expected.get(instance)
        if former is not None and former != agent_id:
            self._release(instance, former, now)
        if agent_id is None:
            return
        known = self._agents.get(agent_id)
        agent = known if known is not None else self._add(agent_id, now)
        if agent.instance != instance:
            if agent.instance is not None:
                self._release(agent.instance, agent_id, now)
            agent.instance = instance
            agent.expected_at = now
            self._expected[instance] = agent_id
            if not agent.life.ever_heard:
                self._unheard[agent_id] = None
            self._strangers.pop(agent_id, None)
            self._changed[agent_id] = None
        if agent.booting and not booting:
            agent.expected_at = now
        agent.booting = booting
        self._asked.touch(agent_id)

    def _release(self, instance: InstanceId, agent_id: AgentId, now: float) -> None:
        del self._expected[instance]
        agent = self._agents[agent_id]
        agent.instance = None
        agent.booting = False
        self._unheard.pop(agent_id, None)
        self._strangers[agent_id] = None
        agent.first_at = now
        self._drop_inquiry(agent_id, now)
        self._changed[agent_id] = None

    def set_policy(self, policy: LivenessPolicy, now: float) -> None:
        """Leases are counted anew where due times were set by the former policy."""
        self._policy = self.own.policy = self._asked.policy = policy
        self._due.all_at(now)
        self._cohorts.all_at(now)
        self._asked.touch_all()

    # What follows

    def decide(self, now: float) -> FleetDecision:
        hearing = self.own.at(now)
        self._look_at_due(hearing, now)
        batch = [each for each in self._asked.take(now, JUDGED_MAX) if self._is_under_inquiry(each, now)]
        mass = self._mass()
        if mass:
            hearing = Hearing(hearing.since, hearing.deaf, mass)
        if _worth(hearing) != _worth(self._hearing):
            # What silence proves is another. Nobody may stay missing by what held before; the others follow.
            self._asked.touch_all()
            batch = list(dict.fromkeys((*batch, *self._standing.missing_agents)))
        self._hearing, self._now, self._late_asks = hearing, now, 0
        asks: list[AgentId] = []
        observes: list[AgentId] = []
        for agent_id in batch:
            if self._is_under_inquiry(agent_id, now):
                self._judge(agent_id, self._inquiries[agent_id], asks, observes)
        self.counters.asked += len(asks)
        self.counters.observed += len(observes)
        standing = self._standing
        lagged = self.own.lag(now) if standing.lagged else ""
        cannot_tell = hearing.deaf or hearing.mass or lagged
        return FleetDecision(
            Judgement(now, standing.missing(), cannot_tell, suspects=standing.suspects()),
            tuple(asks),
            tuple(observes),
            self._next_check(now),
        )

    def _is_under_inquiry(self, agent_id: AgentId, now: float) -> bool:
        """Ends the inquiry if it is over; else it is known after this whether the agent counts toward a mass loss."""
        agent, inquiry = self._agents[agent_id], self._inquiries.get(agent_id)
        if inquiry is None:
            return False
        if is_over(agent.life, inquiry):
            self._drop_inquiry(agent_id, now)
            return False
        concluded = inquiry.concluded_at is not None and now - inquiry.concluded_at > self._policy.lease_seconds
        silent = inquiry.suspect and agent.instance is not None and not inquiry.cloud_says_off and not concluded
        self._standing.silent(agent_id, silent)
        return True

    def _judge(self, agent_id: AgentId, inquiry: Inquiry, asks: list[AgentId], observes: list[AgentId]) -> None:
        agent, hearing, now, policy = self._agents[agent_id], self._hearing, self._now, self._policy
        judged = judge(agent.life, inquiry, agent.expected_at, hearing, now, policy)
        if judged.verdict is not agent.judged.verdict:
            self._changed[agent_id] = None
        agent.judged = judged
        if judged.verdict is Verdict.MISSING and inquiry.concluded_at is None:
            inquiry.concluded_at = now
        self._standing.judged(agent_id, agent.instance, judged, max(agent.life.alive_at, agent.expected_at))
        if not inquiry.asking and inquiry.next_ask_at <= now and self.own.connected:
            self._late_asks += not inquiry.suspect
            if not inquiry.suspect and self._late_asks > LATE_ASKS_MAX:
                self._asked.put_off(agent_id)
                return
            inquiry.asking = True
            asks.append(agent_id)
        observable = inquiry.suspect and agent.instance is not None
        if observable and not inquiry.observing and inquiry.next_observe_at <= now:
            inquiry.observing = True
            observes.append(agent_id)
        at = next_look(agent.life, inquiry, agent.expected_at, hearing, now, policy)
        self._asked.look_again_at(agent_id, inquiry, at, now)

    def _next_check(self, now: float) -> float:
        at = now + self._policy.lease_seconds
        judge_at = self._asked.next_at(now)
        for due_at in (self._due.next_at(), self._cohorts.next_at()):
            if due_at is None:
                continue
            at = min(at, now if due_at <= now else max(due_at, now + DUE_APART_SECONDS))
        return at if judge_at is None else min(at, judge_at)

    def verdict(self, agent: AgentId) -> Verdict:
        return self._judged(agent).verdict

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        known = self._agents.get(agent)
        return last_words.whole(known.words) if known is not None else None

    def awaits_answer(self, agent: AgentId) -> bool:
        """Whether a question to it was begun, and it is still to be asked."""
        inquiry = self._inquiries.get(agent)
        return inquiry is not None and inquiry.asking

    def last_glance(self, agent: AgentId) -> Glance | None:
        known = self._agents.get(agent)
        return None if known is None else known.words.glance

    def revision(self, agent: AgentId) -> int | None:
        glance = self.last_glance(agent)
        extension = None if glance is None else glance.resurgam
        return extension.revision if extension is not None else None

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
        return agent is not None and agent.words.glance is not None

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
        return agent_state.view(agent_id, agent, self._judged(agent_id), now, self._policy)

    def strangers(self, now: float) -> Iterator[AgentView]:
        """Agents that are heard and not expected."""
        for agent_id in self._strangers:
            view = self.view(agent_id, now)
            if view is not None:
                yield view

    def stranger_ids(self) -> list[AgentId]:
        return list(self._strangers)

    def verdicts(self) -> dict[Verdict, int]:
        """How many expected agents have which verdict. Costs what is under inquiry; only while the monitor is deaf all
        are looked at, and of a big fleet not more often than every DEAF_COUNT_SECONDS."""
        counts = dict.fromkeys(Verdict, 0)
        if self._hearing.deaf:
            at, known = self._counted_deaf
            if len(self._expected) > COUNTED_AT_ONCE and 0 <= self._now - at < DEAF_COUNT_SECONDS:
                return dict(known)
            self._count_all(counts)
            self._counted_deaf = (self._now, dict(counts))
            return counts
        counts[Verdict.UNHEARD] = len(self._unheard)
        counts[Verdict.ALIVE] = len(self._expected) - len(self._unheard)
        for agent_id, inquiry in self._inquiries.items():
            agent = self._agents[agent_id]
            if inquiry.suspect and agent.instance is not None:
                counts[Verdict.ALIVE if agent.life.ever_heard else Verdict.UNHEARD] -= 1
                counts[agent.judged.verdict] += 1
        return counts

    def _count_all(self, counts: dict[Verdict, int]) -> None:
        """As `_judged` each, without making a value for each."""
        agents, inquiries, policy, now = self._agents, self._inquiries, self._policy, self._now
        for agent_id in self._expected.values():
            agent = agents[agent_id]
            life, inquiry = agent.life, inquiries.get(agent_id)
            if inquiry is not None and inquiry.suspect:
                counts[agent.judged.verdict] += 1
            elif life.alive_at == NEVER:
                counts[Verdict.UNHEARD] += 1
            elif now - max(life.alive_at, agent.expected_at) > lease_seconds(life, policy):
                counts[Verdict.CANNOT_TELL] += 1
            else:
                counts[Verdict.ALIVE] += 1

    def __len__(self) -> int:
        return len(self._agents)

    def _add(self, agent_id: AgentId, now: float) -> Agent:
        agent = self._agents[agent_id] = Agent(now, Life(), Words(beat=len(self._agents) % last_words.REPACK_SECONDS))
        self._strangers[agent_id] = None
        self._schedule(agent_id, agent, now + self._policy.suspect_after_seconds)
        return agent

    def _schedule(self, agent_id: AgentId, agent: Agent, at: float) -> None:
        if not agent.due:
            agent.due = True
            self._due.add(agent_id, at)

    def _look_at_due(self, hearing: Hearing, now: float) -> None:
        policy, agents = self._policy, self._agents
        suspect_after = policy.suspect_after_seconds
        silent = self._cohorts.take_silent(now, suspect_after, DUE_MAX)
        for agent_id in (*silent, *self._due.take_some(now, DUE_MAX)):
            agent = agents[agent_id]
            alive_at = agent.life.alive_at
            if alive_at + suspect_after > now and agent.instance is not None:
                self._cohorts.join(agent_id, agent.life, alive_at + suspect_after)  # never later than what follows says
                continue
            agent.due = False
            if agent.instance is None:
                if now - max(alive_at, agent.first_at) > policy.stranger_after_seconds:
                    self._forget(agent_id)
                else:
                    self._schedule(agent_id, agent, now + policy.suspect_after_seconds)
                continue
            inquiry = self._inquiries.get(agent_id)
            if inquiry is not None and inquiry.suspect:
                continue  # scheduled again when that is over
            quiet_until = max(alive_at, agent.expected_at, hearing.since) + suspect_after_seconds(agent.life, policy)
            if agent.booting and alive_at == NEVER:
                quiet_until = now + policy.suspect_after_seconds
            if quiet_until > now:
                self._schedule(agent_id, agent, quiet_until)
            else:
                self._asked.begin(agent_id, Cause.SILENT, now)

    def _drop_inquiry(self, agent_id: AgentId, now: float) -> None:
        if not self._asked.drop(agent_id):
            return
        self._standing.gone(agent_id)
        agent = self._agents[agent_id]
        if agent.judged.verdict is not Verdict.ALIVE:
            agent.judged = ALIVE if agent.life.ever_heard else UNHEARD
            self._changed[agent_id] = None
        self._schedule(agent_id, agent, now)

    def _forget(self, agent_id: AgentId) -> None:
        del self._agents[agent_id]
        self._strangers.pop(agent_id, None)
        self._asked.drop(agent_id)
        self._standing.gone(agent_id)
        self._changed[agent_id] = None

    def _mass(self) -> str:
        """Why silence proves nothing now, "" when it does: a large share went silent at about the same time, and the
        cloud does not say that they are off. Those concluded less than a lease ago count and are taken back."""
        policy, silent = self._policy, self._standing.silent_count
        if silent < policy.mass_count or silent < policy.mass_share * len(self._expected):
            return ""
        return f"{silent} of {len(self._expected)} VMs went silent at once"

    def _judged(self, agent_id: AgentId) -> Judged:
        agent = self._agents.get(agent_id)
        if agent is None:
            return UNHEARD
        inquiry = self._inquiries.get(agent_id)
        if inquiry is not None and inquiry.suspect:
            return agent.judged
        if agent.life.alive_at != NEVER and not self._hearing.deaf:
            return ALIVE
        return judge(agent.life, None, agent.expected_at, self._hearing, self._now, self._policy)


def _worth(hearing: Hearing) -> tuple[object, ...]:
    """What a verdict depends on; how many seconds its reason tells of is no part of that."""
    return (None if hearing.deaf else hearing.since, without_numbers(hearing.deaf), bool(hearing.mass))
