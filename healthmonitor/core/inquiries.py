"""What is being asked about agents, of themselves and of their clouds, what came of it, and whom to judge again when.

Laws:
- There is an inquiry only while there is a cause.
- A question that could not be put says nothing about the agent; one that got no answer says so from when it was put.
- Whatever is learned about an agent under inquiry, and the time that it asked for (`look_again_at`), brings it up to be
  judged; nothing else does. So a hundred thousand that are silent cost what is learned about them.

Does not know: what follows from an answer (`core/liveness.py`), how questions travel (`asker.py`).
"""

from __future__ import annotations

from itertools import islice

from healthmonitor.clouds.cloud import Power, VmObservation
from healthmonitor.core.due_times import DueTimes
from healthmonitor.core.liveness import Cause, Inquiry
from healthmonitor.core.policy import LivenessPolicy
from protocol.ids import AgentId

NOT_AGAIN = float("inf")


class Inquiries:
    def __init__(self, policy: LivenessPolicy) -> None:
        self.policy = policy
        self.of: dict[AgentId, Inquiry] = {}
        self._touched: dict[AgentId, None] = {}  # dicts for their order: runs must repeat
        self._put_off: dict[AgentId, None] = {}
        self._looks: DueTimes[AgentId] = DueTimes()

    # Whom to judge again.

    def touch(self, agent: AgentId) -> None:
        """Something was learned about it; nothing happens if it is not under inquiry."""
        if agent in self.of:
            self._touched[agent] = None

    def touch_all(self) -> None:
        """What the monitor's own hearing is worth is another, or the policy."""
        self._touched.update(dict.fromkeys(self.of))

    def put_off(self, agent: AgentId) -> None:
        """To the next time that anybody is judged; that need not be at once."""
        self._put_off[agent] = None

    def look_again_at(self, agent: AgentId, inquiry: Inquiry, at: float, now: float) -> None:
        """At the latest. One that was to be looked at sooner is."""
        if at < inquiry.look_at or inquiry.look_at <= now:
            inquiry.look_at = at
            self._looks.add(agent, at)

    def take(self, now: float, most: int) -> list[AgentId]:
        """Those to be judged now, as many as that; the others stay."""
        for agent in self._looks.take(now):
            inquiry = self.of.get(agent)
            if inquiry is not None and inquiry.look_at <= now:  # else it was for an inquiry that is over
                inquiry.look_at = NOT_AGAIN
                self._touched[agent] = None
        if self._put_off:
            self._touched = {**self._put_off, **self._touched}
            self._put_off.clear()
        taken = list(islice(self._touched, most))
        for agent in taken:
            del self._touched[agent]
        return taken

    def next_at(self, now: float) -> float | None:
        """When somebody is to be judged next; `now` when there is somebody now."""
        return now if self._touched else self._looks.next_at()

    def drop(self, agent: AgentId) -> bool:
        """The cause is gone. False: there was no inquiry."""
        self._touched.pop(agent, None)
        self._put_off.pop(agent, None)
        return self.of.pop(agent, None) is not None

    # What is learned.

    def begin(self, agent: AgentId, cause: Cause, at: float) -> None:
        """Or makes the one under way graver: what was told (a disconnect, a shutdown) outweighs what was concluded."""
        self._touched[agent] = None
        inquiry = self.of.get(agent)
        if inquiry is None:
            self.of[agent] = Inquiry(cause, at)
            return
        if inquiry.concluded_at is not None or cause is Cause.LATE:
            return
        told = (Cause.DISCONNECTED, Cause.SHUT_DOWN)
        if not inquiry.suspect or (cause in told and inquiry.cause not in told):
            inquiry.cause = cause
            inquiry.began_at = inquiry.next_ask_at = inquiry.next_observe_at = at

    def answered(self, agent: AgentId, at: float) -> None:
        inquiry = self.of.get(agent)
        if inquiry is not None:
            self._touched[agent] = None
            inquiry.asking = False
            inquiry.next_ask_at = at + self.policy.ask_timeout_seconds

    def unanswered(self, agent: AgentId, asked_at: float, at: float, evidence: str) -> None:
        """The question reached nobody, or got no answer in time."""
        inquiry = self.of.get(agent)
        if inquiry is not None:
            self._touched[agent] = None
            inquiry.asking = False
            inquiry.unanswered_at = asked_at
            inquiry.answer_evidence = evidence
            gap = self.policy.ask_timeout_seconds
            if inquiry.concluded_at is not None:
                gap = self.policy.heartbeat_interval_seconds
            inquiry.next_ask_at = at + gap

    def ask_failed(self, agent: AgentId, at: float, evidence: str) -> None:
        """The question could not be put."""
        inquiry = self.of.get(agent)
        if inquiry is not None:
            self._touched[agent] = None
            inquiry.asking = False
            inquiry.answer_evidence = evidence
            inquiry.next_ask_at = at + self.policy.ask_timeout_seconds

    def observed(self, agent: AgentId, observation: VmObservation, at: float) -> None:
        """What the cloud says of the agent's VM. `at`: when the cloud was asked."""
        if observation.power is Power.OFF:
            self.begin(agent, Cause.CLOUD, at)
        inquiry = self.of.get(agent)
        if inquiry is not None:
            self._touched[agent] = None
            inquiry.observing = False
            inquiry.power = observation.power
            inquiry.power_at = at
            inquiry.power_evidence = observation.evidence
            settled = observation.power in (Power.OFF, Power.GONE)
            gap = self.policy.lease_seconds if settled else self.policy.observe_timeout_seconds
            inquiry.next_observe_at = at + gap

    def not_observed(self, agent: AgentId, at: float, evidence: str) -> None:
        inquiry = self.of.get(agent)
        if inquiry is not None:
            self._touched[agent] = None
            inquiry.observing = False
            inquiry.power_evidence = evidence
            inquiry.next_observe_at = at + self.policy.observe_timeout_seconds
