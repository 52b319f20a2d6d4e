"""The whole fleet on a hand-driven clock: who is asked, who is missing, when nothing can be told."""

from __future__ import annotations

import time

import pytest

from healthmonitor.clouds.cloud import Power, VmObservation
from healthmonitor.core import fleet as fleet_module
from healthmonitor.core.fleet import LATE_ASKS_MAX, Fleet, FleetDecision
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.policy import LivenessPolicy
from protocol import heartbeat as wire
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    EngineState,
    Extension,
    Heartbeat,
    Malformed,
)
from protocol.ids import AgentId, InstanceId

POLICY = LivenessPolicy()
BOOTED = 900.0
"""The loop's clock when the agents booted."""


def payload(at: float, state: ContainerState = ContainerState.RUNNING, boot: str = "boot") -> bytes:
    return wire.encode(
        Heartbeat(
            deployment="shop",
            job_state="running",
            vitals={"load": [f"{at % 7:.2f}"]},
            resurgam=Extension(
                sequence=int(at),
                boot_id=boot,
                sent_at_seconds=at - BOOTED,
                engine=EngineState.UP,
                containers=(ContainerReport("redis", state, since_seconds=at),),
            ),
        )
    )


class Site:
    """A fleet of `count` VMs, begun at 1000; `run` lets the living beat every 5 s and answers as told."""

    def __init__(self, count: int) -> None:
        self.now = 1000.0
        self.fleet = Fleet(POLICY, self.now)
        self.agents = [AgentId(f"agent-{n}") for n in range(count)]
        self.bindings = {agent: InstanceId(f"shop/db/{n}") for n, agent in enumerate(self.agents)}
        self.fleet.expect(self.bindings, self.now)
        self.silent: set[AgentId] = set()
        self.deaf_to_questions: set[AgentId] = set()
        self.power: dict[AgentId, Power] = {}
        self.decision: FleetDecision | None = None
        self.beat_at = dict.fromkeys(self.agents, self.now)
        self.canary = True

    def kill(self, *agents: AgentId, power: Power | None = None) -> None:
        self.silent.update(agents)
        self.deaf_to_questions.update(agents)
        if power is not None:
            self.power.update(dict.fromkeys(agents, power))

    def run(self, seconds: float, step: float = 0.25) -> FleetDecision:
        until = self.now + seconds
        while self.now < until:
            self.now += step
            if self.canary:
                self.fleet.own.canary_heard(self.now)
            for agent in self.agents:
                if agent not in self.silent and self.now >= self.beat_at[agent]:
                    self.beat_at[agent] = self.now + POLICY.heartbeat_interval_seconds
                    self.fleet.hear(agent, payload(self.now), self.now)
            self.decide()
        assert self.decision is not None
        return self.decision

    def decide(self) -> FleetDecision:
        self.decision = self.fleet.decide(self.now)
        for agent in self.decision.asks:
            if agent in self.deaf_to_questions:
                self.fleet.unanswered(agent, self.now, self.now, "asked: nobody listens there")
            else:
                self.fleet.answered(agent, self.now, self.now, "boot", self.now - BOOTED)
        for agent in self.decision.observes:
            if agent in self.power:
                self.fleet.observed(agent, VmObservation(self.power[agent], "test"), self.now)
            else:
                self.fleet.not_observed(agent, self.now, "no cloud")
        return self.decision

    def verdict(self, n: int) -> Verdict:
        return self.fleet.verdict(self.agents[n])


@pytest.fixture
def site() -> Site:
    """Three VMs, heard for a minute."""
    site = Site(3)
    site.run(60)
    assert site.fleet.verdicts()[Verdict.ALIVE] == 3
    return site


def test_a_hung_vm_is_missing_when_its_lease_is_over_and_not_before(site: Site) -> None:
    """Silence alone decides within lease + 1 s, and never before the lease is over."""
    site.kill(site.agents[0], power=Power.RUNNING)
    last = site.beat_at[site.agents[0]] - POLICY.heartbeat_interval_seconds
    site.run(last + POLICY.lease_seconds - site.now)
    assert site.verdict(0) is Verdict.SUSPECT
    site.run(1.0)
    assert site.verdict(0) is Verdict.MISSING
    assert site.decision is not None
    assert set(site.decision.judgement.missing) == {"shop/db/0"}
    assert not site.decision.judgement.missing[InstanceId("shop/db/0")].by_cloud


@pytest.mark.parametrize("power", [Power.OFF, Power.GONE])
def test_a_killed_vm_is_missing_within_a_turn_of_its_disconnect(site: Site, power: Power) -> None:
    """The disconnect makes it suspect, the question finds nobody, the cloud says it does not run: known at once."""
    site.kill(site.agents[1], power=power)
    site.fleet.disconnected(site.agents[1], site.now)
    site.run(0.5)
    assert site.verdict(1) is Verdict.MISSING
    assert site.decision is not None
    assert site.decision.judgement.missing[InstanceId("shop/db/1")].by_cloud


def test_a_disconnect_of_a_vm_that_answers_means_nothing(site: Site) -> None:
    """An agent that was cut off and is back answers the question and is alive."""
    site.fleet.disconnected(site.agents[1], site.now)
    assert site.decide().asks == (site.agents[1],)
    site.run(0.5)
    assert site.verdict(1) is Verdict.ALIVE


def test_the_clouds_word_alone_makes_suspect_and_asks(site: Site) -> None:
    """A cloud that says off is asked against the agent itself before it is believed."""
    site.fleet.observed(site.agents[2], VmObservation(Power.OFF, "test"), site.now)
    assert site.fleet.decide(site.now).asks == (site.agents[2],)
    assert site.verdict(2) is Verdict.SUSPECT
    site.fleet.answered(site.agents[2], site.now, site.now, "boot", site.now - BOOTED)
    site.run(0.5)
    assert site.verdict(2) is Verdict.ALIVE


def test_an_agent_that_answers_but_does_not_beat_is_alive_and_its_silence_is_known(site: Site) -> None:
    """Lost heartbeats are a deviation, not a death."""
    site.silent.add(site.agents[0])
    site.run(60)
    assert site.verdict(0) is Verdict.ALIVE
    view = site.fleet.view(site.agents[0], site.now)
    assert view is not None
    assert view.heartbeats_missing_seconds > 55


def test_a_vm_that_comes_back_is_alive_again(site: Site) -> None:
    """Missing ends with the first sign of life."""
    site.kill(site.agents[0])
    site.run(30)
    assert site.verdict(0) is Verdict.MISSING
    site.silent.clear()
    site.deaf_to_questions.clear()
    site.run(6)
    assert site.verdict(0) is Verdict.ALIVE
    assert site.decision is not None
    assert not site.decision.judgement.missing


def test_after_a_start_nothing_is_missing_for_a_lease() -> None:
    """A monitor that has just begun to listen cannot tell; afterwards it can, also of those that it never heard."""
    site = Site(3)
    site.kill(site.agents[0], power=Power.OFF)
    while site.now < 1000 + POLICY.start_grace_seconds - 0.5:
        decision = site.run(0.25)
        assert decision.judgement.cannot_tell
        assert not decision.judgement.missing
    site.run(1.5)
    assert site.decision is not None
    assert set(site.decision.judgement.missing) == {"shop/db/0"}


def test_a_new_vm_may_take_its_time_to_boot() -> None:
    """An agent that an operation waits for is not suspected before it was heard."""
    site = Site(1)
    site.kill(site.agents[0])
    site.fleet.expect(site.bindings, site.now, booting={site.agents[0]})
    site.run(200)
    assert site.verdict(0) is Verdict.UNHEARD
    site.fleet.expect(site.bindings, site.now)
    site.run(20)
    assert site.verdict(0) is Verdict.MISSING


def test_a_lost_bus_is_nobodys_death(site: Site) -> None:
    """While the bus is lost, and for a lease after it came back, nothing can be told."""
    site.fleet.own.bus_changed(False, site.now)
    site.kill(*site.agents)
    decision = site.run(60)
    assert "bus" in decision.judgement.cannot_tell
    assert not decision.judgement.missing
    assert not decision.asks
    assert site.verdict(0) is Verdict.CANNOT_TELL
    site.fleet.own.bus_changed(True, site.now)
    decision = site.run(POLICY.lease_seconds - 0.5)
    assert "came back" in decision.judgement.cannot_tell
    assert not decision.judgement.missing
    decision = site.run(3)
    assert not decision.judgement.cannot_tell
    assert len(decision.judgement.missing) == 3


def test_without_the_canary_silence_means_nothing(site: Site) -> None:
    """A subscription that died (it does, in the best known monitor) is not a dead fleet."""
    site.canary = False
    site.silent.update(site.agents)
    site.deaf_to_questions.update(site.agents)
    decision = site.run(60)
    assert "own heartbeat" in decision.judgement.cannot_tell
    assert not decision.judgement.missing
    site.canary = True
    site.silent.clear()
    site.deaf_to_questions.clear()
    decision = site.run(POLICY.lease_seconds + 1)
    assert not decision.judgement.cannot_tell
    assert site.fleet.verdicts()[Verdict.ALIVE] == 3


def test_a_canary_out_of_a_buffer_proves_no_more_than_its_age_allows(site: Site) -> None:
    """The canary counts as of when it was sent."""
    site.canary = False
    site.run(20)
    site.fleet.own.canary_heard(site.now - 14)
    assert site.fleet.decide(site.now).judgement.cannot_tell


def test_silence_before_a_lag_of_the_loop_proves_nothing(site: Site) -> None:
    """A monitor that stood still for 20 s has missed everybody's heartbeats; the lease is counted from its return."""
    site.kill(*site.agents)
    site.now += 20
    site.fleet.own.lagged(20.0, site.now)
    site.fleet.own.canary_heard(site.now)
    site.run(POLICY.lease_seconds - 1)
    assert site.decision is not None
    assert not site.decision.judgement.missing
    assert "late" in site.decision.judgement.cannot_tell
    site.run(3)
    assert len(site.decision.judgement.missing) == 3


def test_a_cloud_that_says_off_is_believed_right_after_a_lag(site: Site) -> None:
    """A lag takes away what silence proves, not what the cloud and an unanswered question prove."""
    site.kill(site.agents[0], power=Power.OFF)
    site.now += 3
    site.fleet.own.lagged(3.0, site.now)
    site.fleet.disconnected(site.agents[0], site.now)
    site.run(0.5)
    assert site.verdict(0) is Verdict.MISSING


def test_mass_silence_cannot_be_told_from_a_cut_network() -> None:
    """When half of the fleet goes silent at once, only those that the cloud says are off are missing."""
    site = Site(20)
    site.run(60)
    dying = site.agents[:12]
    site.kill(*dying)
    site.power[dying[0]] = Power.OFF
    site.power[dying[1]] = Power.GONE
    decision = site.run(30)
    assert "went silent at once" in decision.judgement.cannot_tell
    assert set(decision.judgement.missing) == {"shop/db/0"}
    assert site.verdict(2) is Verdict.CANNOT_TELL
    assert site.verdict(19) is Verdict.ALIVE


def test_a_mass_that_falls_silent_and_comes_back_is_judged_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are judged in one decision: none of the mass is ever missing, not even those that were concluded just
    before it was known to be one; all are alive again once they are heard."""
    monkeypatch.setattr(fleet_module, "JUDGED_MAX", 7)
    site = Site(60)
    site.run(60)
    site.kill(*site.agents[:4])
    site.run(12)
    site.kill(*site.agents[4:])
    seen: set[int] = set()
    for _ in range(240):
        decision = site.run(0.25)
        seen.add(len(decision.judgement.missing))
    assert max(seen) == 4
    assert not site.fleet.decide(site.now).judgement.missing
    assert "went silent at once" in site.fleet.decide(site.now).judgement.cannot_tell
    assert site.fleet.verdicts()[Verdict.CANNOT_TELL] == 60
    site.silent.clear()
    site.deaf_to_questions.clear()
    site.run(POLICY.heartbeat_interval_seconds + 3.0)
    assert site.fleet.verdicts()[Verdict.ALIVE] == 60
    assert not site.fleet._inquiries
    assert not site.fleet._standing.silent_count


def test_those_who_speak_never_make_a_decision_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: once, each had a timer that ran out with every heartbeat, of 100,000 more at a time than
    one decision took, and the monitor turned nearly twice as often as there was news."""
    monkeypatch.setattr(fleet_module, "DUE_MAX", 10)
    site = Site(400)
    site.beat_at = {agent: site.now + 5.0 * n / 400 for n, agent in enumerate(site.agents)}
    site.run(60)
    for _ in range(80):
        decision = site.run(0.25)
        assert decision.asks == ()
        assert decision.next_check >= site.now + fleet_module.DUE_APART_SECONDS


def test_many_silent_ones_cost_what_is_learned_of_them() -> None:
    """A decision in which nothing was learned and nobody's time has come looks at nobody, however many are silent."""
    site = Site(300)
    site.run(60)
    site.kill(*site.agents[:100])
    site.run(60)
    judged: list[AgentId] = []
    judge_one = site.fleet._judge
    site.fleet._judge = lambda agent, *rest: (judged.append(agent), judge_one(agent, *rest))[1]  # type: ignore[method-assign, func-returns-value]
    site.fleet.decide(site.now)
    judged.clear()
    site.fleet.decide(site.now)
    assert judged == []
    assert len(site.fleet._inquiries) == 100


def test_late_ones_beyond_the_limit_are_asked_in_the_next_decisions() -> None:
    """When everybody looks late the monitor itself is behind: they are asked a few at a time, and none is left out."""
    site = Site(2 * LATE_ASKS_MAX + 1)
    site.run(60)
    for agent in site.agents:
        site.fleet.hear(agent, payload(site.now - POLICY.late_seconds - 1.0), site.now + 0.1)
    site.now += 0.2
    asked: list[AgentId] = []
    for expected in (LATE_ASKS_MAX, LATE_ASKS_MAX, 1, 0):
        asks = site.fleet.decide(site.now).asks
        assert len(asks) == expected
        asked.extend(asks)
    assert sorted(asked) == sorted(site.agents)


def test_fewer_than_the_mass_are_missing() -> None:
    """Below the share, silence is believed."""
    site = Site(30)
    site.run(60)
    site.kill(*site.agents[:9])
    decision = site.run(30)
    assert not decision.judgement.cannot_tell
    assert len(decision.judgement.missing) == 9


BOSH_BEAT = b'{"deployment":"cf","job":"nats","index":0,"job_state":"running","vitals":{}}'


def test_a_bosh_agent_is_judged_by_its_own_cadence(site: Site) -> None:
    """It beats every 30 s whatever it is told: nobody asks in between, but after 45 s; it is missing after 60 s."""
    agent = site.agents[0]
    site.silent.add(agent)
    site.fleet.hear(agent, BOSH_BEAT, site.now)
    asked_before = site.fleet.counters.asked
    for _ in range(4):
        site.run(30)
        site.fleet.hear(agent, BOSH_BEAT, site.now)
        assert site.verdict(0) is Verdict.ALIVE
    assert site.fleet.counters.asked == asked_before
    site.deaf_to_questions.add(agent)
    site.run(44)
    assert site.verdict(0) is Verdict.ALIVE
    site.run(2)
    assert site.verdict(0) is Verdict.SUSPECT
    site.run(13)
    assert site.verdict(0) is Verdict.SUSPECT
    site.run(3)
    assert site.verdict(0) is Verdict.MISSING


def test_an_agent_that_speaks_our_keys_has_our_lease_again(site: Site) -> None:
    """What it says last decides: a VM that came back with our agent is not waited for a minute."""
    agent = site.agents[0]
    site.fleet.hear(agent, BOSH_BEAT, site.now)
    site.run(20)
    site.kill(agent)
    site.run(POLICY.lease_seconds + 1)
    assert site.verdict(0) is Verdict.MISSING


def test_one_instance_is_bound_anew_as_all_are(site: Site) -> None:
    """Binding what changed comes to the same as saying anew what is expected everywhere."""
    other = Site(3)
    other.run(10)
    old, new = site.agents[0], AgentId("agent-new")
    instance = site.bindings[old]
    bindings = {**site.bindings, new: instance}
    del bindings[old]
    other.fleet.expect(bindings, other.now, booting={new})
    site.fleet.bind(instance, new, site.now, booting=True)
    for each in (site, other):
        each.run(10)
        assert each.fleet.instance_of(new) == instance
        assert each.fleet.verdict(new) is Verdict.UNHEARD
        assert [view.agent for view in each.fleet.strangers(each.now)] == [old]
    site.fleet.bind(instance, None, site.now)
    assert site.fleet.instance_of(new) is None
    assert sum(site.fleet.verdicts().values()) == 2


def test_a_late_heartbeat_makes_the_monitor_ask(site: Site) -> None:
    """A heartbeat out of a buffer renews only as of when it was sent, and is followed by a question."""
    agent = site.agents[0]
    site.silent.add(agent)
    last = site.beat_at[agent] - POLICY.heartbeat_interval_seconds
    site.now = last + 6
    site.fleet.own.canary_heard(site.now)
    assert site.fleet.hear(agent, payload(last + 1), site.now)
    assert not site.fleet.heard_after(agent, last + 1.01)
    assert agent in site.fleet.decide(site.now).asks


def test_an_old_vm_cannot_speak_for_its_instance(site: Site) -> None:
    """Once another agent is bound, the former one's heartbeats renew nothing and it is a stranger."""
    old, new = site.agents[0], AgentId("agent-new")
    bindings = {**site.bindings, new: site.bindings[old]}
    del bindings[old]
    site.fleet.expect(bindings, site.now, booting={new})
    site.run(10)
    assert site.fleet.verdict(new) is Verdict.UNHEARD
    assert [view.agent for view in site.fleet.strangers(site.now)] == [old]


def test_strangers_are_forgotten_when_they_fall_silent(site: Site) -> None:
    """Whoever belongs to no instance costs nothing for ever."""
    stranger = AgentId("stranger")
    site.fleet.hear(stranger, b'{"job":"nats","job_state":"running"}', site.now)
    assert len(site.fleet) == 4
    site.run(POLICY.stranger_after_seconds + 20)
    assert len(site.fleet) == 3


def test_there_is_a_limit_to_agents() -> None:
    """A flood of invented ids does not fill the memory."""
    fleet = Fleet(LivenessPolicy(agents_max=10), 0.0)
    for n in range(100):
        fleet.hear(AgentId(f"a{n}"), b"{}", 1.0)
    assert len(fleet) == 10
    assert fleet.counters.refused == 90


def test_what_is_no_heartbeat_is_refused_and_changes_nothing(site: Site) -> None:
    """Malformed input is the sender's fault and renews nothing."""
    site.kill(site.agents[0])
    site.run(7)
    with pytest.raises(Malformed):
        site.fleet.hear(site.agents[0], b'{"resurgam": 5}', site.now)
    assert not site.fleet.heard_after(site.agents[0], site.now - 1)


def test_only_news_are_marked_as_changed(site: Site) -> None:
    """Sequence, time and vitals change with each heartbeat and are no news; a container's state is."""
    site.fleet.take_changed()
    site.run(20)
    assert site.fleet.take_changed() == ()
    site.fleet.hear(site.agents[0], payload(site.now + 0.1, ContainerState.CRASH_LOOP), site.now + 0.1)
    assert site.fleet.take_changed() == (site.agents[0],)
    last = site.fleet.last_heartbeat(site.agents[0])
    assert last is not None
    assert last.resurgam is not None
    assert last.resurgam.containers[0].state is ContainerState.CRASH_LOOP


def test_deciding_costs_what_is_due_and_not_what_there_is() -> None:
    """A turn of a healthy fleet of 10,000 looks at the due ones only; a hundred turns between heartbeats are cheap
    next to hearing everybody once (a ratio within one run, not a time)."""
    fleet = Fleet(POLICY, 0.0)
    agents = [AgentId(f"agent-{n}") for n in range(10_000)]
    fleet.expect({agent: InstanceId(f"shop/db/{n}") for n, agent in enumerate(agents)}, 0.0)
    began = time.process_time()
    for agent in agents:
        fleet.hear(agent, payload(1000.0), 1000.0)
    hearing = time.process_time() - began
    fleet.own.canary_heard(1000.0)
    fleet.decide(1000.0)
    began = time.process_time()
    for n in range(100):
        assert not fleet.decide(1000.0 + n / 100).asks
    assert time.process_time() - began < hearing
