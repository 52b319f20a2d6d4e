"""Incidents under deviations that come and go, restarts and times when nobody can know."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.incidents import Incidents, instance_of
from healthmonitor.core.policy import IncidentPolicy, Policy
from healthmonitor.core.records import Incident

POLICY = IncidentPolicy(flap_count=4, flap_window_seconds=50, incidents_max=100)
KINDS = ["vm_missing", "engine_not_up", "container_not_running", "operation_unfenced"]
INSTANCES = ["shop/db/0", "shop/db/1"]


def made(kind: str, instance: str) -> Deviation:
    subject = f"{instance}/redis" if kind == "container_not_running" else instance
    after = 10.0 if kind == "container_not_running" else 0.0
    return deviation(kind, subject, "why", Policy(), instance=instance, after_seconds=after)


class IncidentsMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.present: dict[str, Deviation] = {}
        self.since: dict[str, float] = {}
        self.unsure: set[str] = set()
        self.incidents = Incidents(POLICY)
        self.journal: dict[str, Incident] = {}
        self.turn()

    def turn(self) -> None:
        """The laws of one step: what opens was closed, what resolves or changes was open, and all is written."""
        decision = self.incidents.decide(
            list(self.present.values()), lambda each: instance_of(each) in self.unsure, self.now, self.now
        )
        for incident in decision.opened:
            assert incident.key not in self.journal
            assert incident.key in self.present
            assert self.now - self.since[incident.key] >= self.present[incident.key].after_seconds
            self.journal[incident.key] = incident
        for incident in decision.changed:
            assert self.journal[incident.key].opened_at == incident.opened_at
            self.journal[incident.key] = incident
        for incident in decision.resolved:
            assert incident.key not in self.present
            assert instance_of(incident) not in self.unsure
            assert incident.resolved_at == self.now
            assert self.journal.pop(incident.key).opened_at == incident.opened_at

    @rule(kind=st.sampled_from(KINDS), instance=st.sampled_from(INSTANCES))
    def comes(self, kind: str, instance: str) -> None:
        each = made(kind, instance)
        if each.key not in self.present:
            self.present[each.key] = each
            self.since[each.key] = self.now
        self.turn()

    @rule(kind=st.sampled_from(KINDS), instance=st.sampled_from(INSTANCES))
    def goes(self, kind: str, instance: str) -> None:
        self.present.pop(made(kind, instance).key, None)
        self.turn()

    @rule(instances=st.sets(st.sampled_from(INSTANCES)))
    def nobody_can_know(self, instances: set[str]) -> None:
        self.unsure = instances
        self.turn()

    @rule(seconds=st.sampled_from([0.25, 5.0, 11.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    @rule()
    def the_monitor_restarts(self) -> None:
        """What is open is what the journal has; how long a deviation has lasted is counted anew."""
        self.incidents = Incidents(POLICY, self.journal.values())
        self.since = dict.fromkeys(self.present, self.now)
        self.turn()

    @rule()
    def all_is_over(self) -> None:
        """Once nothing deviates and all can be known, everything that opened is resolved."""
        self.present.clear()
        self.unsure = set()
        self.turn()
        self.now += POLICY.flap_window_seconds
        self.turn()
        assert not self.journal

    @invariant()
    def memory_and_journal_say_the_same(self) -> None:
        assert dict(self.incidents.open()) == self.journal

    @invariant()
    def what_a_missing_vm_explains_is_inhibited(self) -> None:
        for incident in self.journal.values():
            missing = f"vm_missing:{instance_of(incident)}"
            if incident.kind in ("engine_not_up", "container_not_running"):
                assert (incident.inhibited_by == missing) == (missing in self.journal) or incident.inhibited_by
            assert incident.inhibited_by == "" or incident.inhibited_by in self.journal


TestIncidentsMachine = IncidentsMachine.TestCase
TestIncidentsMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
