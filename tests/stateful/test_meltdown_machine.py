"""Meltdown protection under losses, recoveries, time and a person's word, against the formula."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.core.meltdown import FLEET, Meltdown, too_many
from healthmonitor.core.policy import MeltdownPolicy
from protocol.ids import AgentId, DeploymentName, InstanceId

POLICY = MeltdownPolicy(window_seconds=100, calm_seconds=20)
SIZES = {DeploymentName("one"): 1, DeploymentName("three"): 3, DeploymentName("forty"): 40}
PLACES = [InstanceId(f"{name}/db/{n}") for name, size in SIZES.items() for n in range(size)]


class MeltdownMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.meltdown = Meltdown(POLICY)
        self.missing: dict[InstanceId, AgentId] = {}
        self.vms = dict.fromkeys(PLACES, 0)
        self.overridden_until = -1.0
        self.scopes = [*SIZES, FLEET]
        self.active: dict[str, str] = {}
        self.decide()

    def decide(self) -> None:
        before = set(self.active)
        overridden = self.now < self.overridden_until
        self.active = dict(self.meltdown.decide(self.missing, SIZES, overridden, self.now))
        for scope in before - set(self.active):
            assert overridden or not self.is_too_many(scope), f"{scope} ended while too many are missing"

    def is_too_many(self, scope: str) -> bool:
        count = sum(1 for place in self.missing if scope in (FLEET, place.split("/")[0]))
        size = len(PLACES) if scope == FLEET else SIZES[DeploymentName(scope)]
        return too_many(count, size, POLICY)

    @rule(places=st.lists(st.sampled_from(PLACES), max_size=15))
    def lose(self, places: list[InstanceId]) -> None:
        before = set(self.active)
        for place in places:
            self.missing.setdefault(place, AgentId(f"{place.replace('/', '-')}-{self.vms[place]}"))
        self.decide()
        for scope in self.scopes:
            if self.is_too_many(scope) and places and self.overridden_until < 0 and scope not in before:
                fresh = [place for place in set(places) if scope in (FLEET, place.split("/")[0])]
                size = len(PLACES) if scope == FLEET else SIZES[DeploymentName(scope)]
                if too_many(len(fresh), size, POLICY) and len(fresh) == len(self.missing):
                    assert scope in self.active, f"{scope}: {len(fresh)} of {size} lost at once, and nothing holds back"

    @rule(places=st.lists(st.sampled_from(PLACES), max_size=60))
    def recover(self, places: list[InstanceId]) -> None:
        for place in places:
            if self.missing.pop(place, None) is not None:
                self.vms[place] += 1
        self.decide()

    @rule(seconds=st.sampled_from([1.0, 10.0, 21.0, 120.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    @rule(seconds=st.sampled_from([5.0, 50.0]))
    def a_person_says_go_on(self, seconds: float) -> None:
        self.overridden_until = self.now + seconds
        self.decide()
        assert not self.active

    @rule()
    def long_calm(self) -> None:
        """After all are back and the calm time has passed, nothing holds back."""
        self.missing.clear()
        for _ in range(3):
            self.now += max(POLICY.calm_seconds, POLICY.window_seconds) + 1
            self.decide()
        assert not self.active

    @invariant()
    def one_vm_alone_never_melts_down(self) -> None:
        assert "one" not in getattr(self, "active", {})

    @invariant()
    def deciding_again_changes_nothing(self) -> None:
        active = dict(self.active)
        self.decide()
        assert set(self.active) == set(active)


TestMeltdownMachine = MeltdownMachine.TestCase
TestMeltdownMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
