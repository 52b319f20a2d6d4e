"""The fleet under everything that can happen to VMs, the bus and the monitor, against what truly happened."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.clouds.cloud import Power, VmObservation
from healthmonitor.core.due_times import TOOTH_SECONDS
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.liveness import judge
from healthmonitor.core.policy import LivenessPolicy
from protocol import heartbeat as wire
from protocol.heartbeat import Extension, Heartbeat
from protocol.ids import AgentId, InstanceId

POLICY = LivenessPolicy(offset_window_seconds=1e9)
STEP = 0.25
REACTION_SECONDS = POLICY.heartbeat_interval_seconds + 2 * STEP
"""One that came back is seen to by the next question at the latest: that is the gap between questions to a missing."""


class Vm:
    """What is true of one VM. Its boot clock stands still while it is frozen."""

    def __init__(self, n: int, now: float) -> None:
        self.agent = AgentId(f"agent-{n}")
        self.instance = InstanceId(f"shop/db/{n}")
        self.running = True
        self.off = False
        self.boots = 0
        self.uptime = 100.0 + n
        self.sequence = 0
        self.beat_at = now
        self.changed_at = now  # running or not since
        self.boots_least_delay = float("inf")
        self.former_boots_least_delay: dict[str, float] = {}
        self.alive_by_delivered = float("-inf")  # true time of the youngest sign of life that was delivered

    @property
    def boot(self) -> str:
        return f"boot-{self.agent}-{self.boots}"


class FleetMachine(RuleBasedStateMachine):
    """Heartbeats may be held up and delivered late, twice, or never; questions are answered at once by who runs."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.bus = True
        self.gap_at = self.now  # the monitor has heard without a gap since
        self.vms = [Vm(n, self.now) for n in range(3)]
        self.held: list[tuple[Vm, float, float, bytes, str]] = []
        self.hold_up = False
        self.start_monitor()

    def start_monitor(self) -> None:
        self.fleet = Fleet(POLICY, self.now)
        self.fleet.expect({vm.agent: vm.instance for vm in self.vms}, self.now)
        self.fleet.own.bus_changed(self.bus, self.now)
        self.gap_at = self.now
        for vm in self.vms:
            vm.boots_least_delay = float("inf")
            vm.former_boots_least_delay.clear()
            vm.alive_by_delivered = float("-inf")

    @rule(seconds=st.sampled_from([STEP, 1.0, 5.0, 16.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP
            for vm in self.vms:
                if vm.running:
                    vm.uptime += STEP
                    if self.now >= vm.beat_at:
                        self.beat(vm)
            if self.bus:
                self.fleet.own.canary_heard(self.now)
            self.turn()

    def beat(self, vm: Vm) -> None:
        vm.beat_at = self.now + POLICY.heartbeat_interval_seconds
        vm.sequence += 1
        said = Extension(sequence=vm.sequence, boot_id=vm.boot, sent_at_seconds=vm.uptime, instance=vm.instance)
        payload = wire.encode(Heartbeat(resurgam=said))
        if self.hold_up:
            self.held.append((vm, self.now, vm.uptime, payload, vm.boot))
        elif self.bus:
            self.deliver(vm, self.now, payload, vm.boot)

    def deliver(self, vm: Vm, sent_at: float, payload: bytes, boot: str) -> None:
        self.fleet.hear(vm.agent, payload, self.now)
        vm.alive_by_delivered = max(vm.alive_by_delivered, sent_at)
        if boot == vm.boot:
            vm.boots_least_delay = min(vm.boots_least_delay, self.now - sent_at)
        else:  # the first of a boot that is heard, also of a former one, counts as sent when it was received
            least = min(vm.former_boots_least_delay.get(boot, float("inf")), self.now - sent_at)
            vm.former_boots_least_delay[boot] = least
            vm.alive_by_delivered = max(vm.alive_by_delivered, sent_at + least)

    def turn(self) -> None:
        before = {vm.agent: self.fleet.verdict(vm.agent) for vm in self.vms}
        heard_as_before = self.fleet.hearing_now
        decision = self.fleet.decide(self.now)
        self.missing = decision.judgement.missing
        self.cannot_tell = decision.judgement.cannot_tell
        for vm in self.vms:
            if self.fleet.verdict(vm.agent) is Verdict.MISSING and before[vm.agent] is not Verdict.MISSING:
                stopped_lately = not vm.running or self.now - vm.changed_at <= 2 * POLICY.ask_timeout_seconds + STEP
                assert stopped_lately, f"{vm.agent} was judged missing while it ran and answered"
        self.what_stands_is_what_judging_all_anew_gives(bool(heard_as_before.deaf or heard_as_before.mass))
        for agent in decision.asks:
            vm = self.vm(agent)
            if not self.bus:
                self.fleet.ask_failed(agent, self.now, "no bus")
            elif vm.running:
                self.fleet.answered(agent, self.now, self.now, vm.boot, vm.uptime)
                vm.alive_by_delivered = self.now
                vm.boots_least_delay = 0.0
            else:
                self.fleet.unanswered(agent, self.now, self.now, "in vain")
        for agent in decision.observes:
            power = Power.OFF if self.vm(agent).off else Power.RUNNING
            self.fleet.observed(agent, VmObservation(power, "truth"), self.now)

    def what_stands_is_what_judging_all_anew_gives(self, could_not_tell: bool) -> None:
        """Only those are judged about whom something was learned or whose time has come. Of whom nothing could be told
        until this turn, that may stand for one turn more."""
        missing = set()
        for name, inquiry in self.fleet._inquiries.items():
            agent = self.fleet._agents[name]
            hearing, since = self.fleet.hearing_now, agent.expected_at
            fresh = {
                judge(agent.life, inquiry, since, hearing, at, POLICY).verdict
                for at in (self.now, self.now - TOOTH_SECONDS)
            }
            if could_not_tell:
                fresh.add(Verdict.CANNOT_TELL)
            assert agent.judged.verdict in fresh, f"{name} is {agent.judged.verdict}, and should be one of {fresh}"
            if agent.judged.verdict is Verdict.MISSING:
                missing.add(agent.instance)
        assert set(self.missing) == missing

    def vm(self, agent: AgentId) -> Vm:
        return next(vm for vm in self.vms if vm.agent == agent)

    @rule(n=st.integers(0, 2), off=st.booleans(), told=st.booleans())
    def stop(self, n: int, off: bool, told: bool) -> None:
        """Killed (the cloud says so) or frozen (it does not); the bus may tell of the disconnect."""
        vm = self.vms[n]
        if vm.running:
            vm.running, vm.off, vm.changed_at = False, off, self.now
            if told and off:
                self.fleet.disconnected(vm.agent, self.now)

    @rule(n=st.integers(0, 2))
    def go_on(self, n: int) -> None:
        """Thawed, or, when it was killed, booted anew."""
        vm = self.vms[n]
        if not vm.running:
            if vm.off:
                self.reboot(vm)
            vm.running, vm.off, vm.changed_at, vm.beat_at = True, False, self.now, self.now

    @rule(n=st.integers(0, 2))
    def restart_agent(self, n: int) -> None:
        self.vms[n].sequence = 0
        self.vms[n].beat_at = self.now

    def reboot(self, vm: Vm) -> None:
        vm.former_boots_least_delay[vm.boot] = vm.boots_least_delay
        vm.boots += 1
        if vm.boots_least_delay != float("inf"):
            vm.alive_by_delivered += vm.boots_least_delay  # what the former boot renewed stays
        vm.uptime, vm.sequence = 3.0, 0
        vm.boots_least_delay = float("inf")

    @rule(hold_up=st.booleans())
    def buffer(self, hold_up: bool) -> None:
        """A buffer on the way holds heartbeats up, or lets go of them all at once."""
        self.hold_up = hold_up
        if not hold_up:
            held, self.held = self.held, []
            for vm, sent_at, _, payload, boot in held:
                if self.bus:
                    self.deliver(vm, sent_at, payload, boot)

    @rule(n=st.integers(0, 2))
    def replay(self, n: int) -> None:
        """A heartbeat of before comes once more."""
        for vm, sent_at, _, payload, boot in self.held[:1]:
            if self.bus:
                self.deliver(vm, sent_at, payload, boot)

    @rule(connected=st.booleans())
    def bus_changes(self, connected: bool) -> None:
        if connected != self.bus:
            self.bus = connected
            self.gap_at = self.now
            self.fleet.own.bus_changed(connected, self.now)

    @rule(seconds=st.sampled_from([1.5, 20.0]))
    def monitor_stands_still(self, seconds: float) -> None:
        """The VMs go on and are not heard; what they sent is lost."""
        for vm in self.vms:
            if vm.running:
                vm.uptime += seconds
        self.now += seconds
        self.gap_at = self.now
        self.fleet.own.lagged(seconds, self.now)

    @rule()
    def restart_monitor(self) -> None:
        self.start_monitor()

    @invariant()
    def a_lease_is_never_renewed_beyond_what_was_true(self) -> None:
        """By no more than the quickest way through the bus took, which nobody can know."""
        for vm in self.vms:
            least = 0.0 if vm.boots_least_delay == float("inf") else vm.boots_least_delay
            bound = vm.alive_by_delivered + least
            assert not self.fleet.heard_after(vm.agent, bound + 1e-6), f"{vm.agent} renewed beyond {bound}"

    @invariant()
    def nothing_is_missing_while_nothing_can_be_told(self) -> None:
        self.turn()
        if self.fleet.hearing_now.deaf:
            assert not self.missing
            assert self.cannot_tell

    @invariant()
    def who_runs_and_answers_is_not_missing(self) -> None:
        for vm in self.vms:
            if vm.running and self.bus and self.now - max(vm.changed_at, self.gap_at) > REACTION_SECONDS:
                assert self.fleet.verdict(vm.agent) is not Verdict.MISSING

    @invariant()
    def who_is_gone_is_missing_in_time(self) -> None:
        """One lease and a second after it fell silent, or after the monitor's hearing was whole again."""
        limit = POLICY.lease_seconds + 1.0
        for vm in self.vms:
            since = max(vm.changed_at, self.gap_at + POLICY.suspect_after_seconds)
            whole = self.now - self.gap_at > 2 * limit
            if not vm.running and self.bus and whole and not self.held and self.now - since > limit:
                assert self.fleet.verdict(vm.agent) is Verdict.MISSING


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
