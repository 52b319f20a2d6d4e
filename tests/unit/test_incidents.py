"""Deviations over time: when they become incidents, what explains what, when they are over."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from healthmonitor.core.deviations import KINDS, Deviation, deviation
from healthmonitor.core.incidents import IncidentDecision, Incidents, instance_of
from healthmonitor.core.policy import IncidentPolicy, Policy
from healthmonitor.core.records import Incident

POLICY = Policy()
DB = "shop/db/0"
REDIS = "shop/db/0/redis"


def dev(kind: str, subject: str = DB, detail: str = "because", after: float = 0.0) -> Deviation:
    return deviation(kind, subject, detail, POLICY, instance=DB if subject.startswith(DB) else "", after_seconds=after)


class Watch:
    def __init__(self, known: Iterable[Incident] = (), policy: IncidentPolicy = POLICY.incidents) -> None:
        self.incidents = Incidents(policy, known)
        self.unsure: set[str] = set()
        self.now = 0.0
        self.clock_set_by = 0.0

    def see(self, *deviations: Deviation, after: float = 1.0) -> IncidentDecision:
        self.now += after
        return self.incidents.decide(
            deviations,
            lambda incident: incident.key in self.unsure,
            self.now,
            1_700_000_000 + self.now + self.clock_set_by,
        )


def keys(incidents: Iterable[Incident]) -> list[str]:
    return [each.key for each in incidents]


def test_a_deviation_opens_one_incident_and_its_end_resolves_it() -> None:
    """One incident from opening to resolution, with how long it took."""
    watch = Watch()
    assert keys(watch.see(dev("vm_missing")).opened) == [f"vm_missing:{DB}"]
    assert watch.see(dev("vm_missing")) == IncidentDecision()
    resolved = watch.see(after=60).resolved
    assert keys(resolved) == [f"vm_missing:{DB}"]
    assert resolved[0].resolution == "over after 61 s"


@pytest.mark.parametrize("set_by_seconds", [-7200.0, 7200.0])
def test_how_long_it_lasted_does_not_hang_on_the_wall_clock(set_by_seconds: float) -> None:
    """A clock that is set while it lasts changes nothing of what is said; and nothing ends before it began."""
    watch = Watch()
    opened = watch.see(dev("vm_missing")).opened[0]
    watch.clock_set_by = set_by_seconds
    resolved = watch.see(after=30).resolved[0]
    assert resolved.resolution == "over after 30 s"
    assert resolved.resolved_at is not None
    assert resolved.resolved_at >= opened.opened_at
    assert resolved.took_seconds(resolved.resolved_at) == 30


@pytest.mark.parametrize(
    ("set_by_seconds", "told", "took"),
    [(0.0, "over after 30 s", 30.0), (-7200.0, "over; for how long it was there nobody knows, the clock was set", 0.0)],
)
def test_what_another_monitor_opened_is_measured_as_far_as_it_can_be(
    set_by_seconds: float, told: str, took: float
) -> None:
    """Only the wall clock tells; where it went back, that is said."""
    opened = Watch().see(dev("vm_missing")).opened[0]
    watch = Watch(known=[opened])
    watch.clock_set_by = set_by_seconds
    resolved = watch.see(after=31).resolved[0]
    assert resolved.resolution == told
    assert resolved.took_seconds(resolved.resolved_at or 0.0) == took


def test_what_passes_soon_is_no_incident() -> None:
    """A container that is restarted and runs again within its time is an event, not an incident."""
    watch = Watch()
    decision = watch.see(dev("container_not_running", REDIS, after=30))
    assert not decision.opened
    assert decision.next_check == 31
    assert not watch.see(dev("container_not_running", REDIS, after=30), after=29).opened
    assert not watch.see().opened
    assert not watch.see(dev("container_not_running", REDIS, after=30)).opened
    assert watch.see(dev("container_not_running", REDIS, after=30), after=30).opened


def test_another_reason_changes_the_incident_and_another_number_does_not() -> None:
    """The thread goes on with what is news; a counter that counts on is none."""
    watch = Watch()
    watch.see(dev("container_not_running", REDIS, "exited; 1 restarts"))
    assert not watch.see(dev("container_not_running", REDIS, "exited; 2 restarts")).changed
    changed = watch.see(dev("container_not_running", REDIS, "crash loop; 9 restarts")).changed
    assert [each.detail for each in changed] == ["crash loop; 9 restarts"]


@pytest.mark.parametrize(
    ("cause", "subject", "kind", "about", "inhibited"),
    [
        ("vm_missing", DB, "container_not_running", REDIS, True),
        ("vm_missing", DB, "engine_not_up", DB, True),
        ("vm_missing", DB, "disk_missing", f"{DB}/data", True),
        ("vm_missing", DB, "container_not_running", "shop/db/1/redis", False),
        ("vm_missing", DB, "operation_unfenced", DB, False),
        ("engine_not_up", DB, "container_not_running", REDIS, True),
        ("meltdown", "fleet", "vm_missing", DB, True),
        ("meltdown", "shop", "operation_held", DB, True),
        ("meltdown", "other", "vm_missing", DB, False),
        ("meltdown", "fleet", "vm_suspect", DB, True),
        ("meltdown", "fleet", "meltdown", "shop", True),
        ("meltdown", "other", "meltdown", "shop", False),
        ("cannot_tell", "monitor", "vm_suspect", DB, True),
        ("mass_silence", "fleet", "vm_suspect", DB, True),
        ("bus_lost", "monitor", "cannot_tell", "monitor", True),
        ("cannot_tell", "monitor", "container_not_running", REDIS, False),
    ],
)
def test_what_explains_what(cause: str, subject: str, kind: str, about: str, inhibited: bool) -> None:
    """One cause, one alarm: the explained incident carries the key of what explains it."""
    opened = {each.key: each for each in Watch().see(dev(cause, subject), dev(kind, about)).opened}
    assert opened[f"{kind}:{about}"].inhibited_by == (f"{cause}:{subject}" if inhibited else "")
    assert opened[f"{cause}:{subject}"].inhibited_by == ""


def test_when_the_cause_goes_and_the_incident_stays_it_is_said() -> None:
    """An incident that outlives its explanation changes, so that it is told then."""
    watch = Watch()
    watch.see(dev("vm_missing"), dev("container_not_running", REDIS))
    decision = watch.see(dev("container_not_running", REDIS))
    assert keys(decision.resolved) == [f"vm_missing:{DB}"]
    assert [(each.key, each.inhibited_by) for each in decision.changed] == [(f"container_not_running:{REDIS}", "")]


def test_what_nobody_can_know_is_not_resolved() -> None:
    """While nobody can tell how the subject is, its incident stays open."""
    watch = Watch()
    watch.see(dev("vm_missing"))
    watch.unsure = {f"vm_missing:{DB}"}
    assert not watch.see(after=1000).resolved
    watch.unsure = set()
    assert watch.see().resolved


def test_a_restart_of_the_monitor_keeps_the_incident() -> None:
    """An incident that was open before the restart is the same afterwards, and is resolved when it is over."""
    before = Watch()
    opened = before.see(dev("vm_missing"), dev("operation_unfenced")).opened
    after = Watch(known=opened)
    decision = after.see(dev("vm_missing"), dev("operation_unfenced"))
    assert decision == IncidentDecision()
    resolved = after.see(dev("operation_unfenced"), after=10).resolved
    assert [(each.key, each.opened_at) for each in resolved] == [(f"vm_missing:{DB}", opened[0].opened_at)]


def test_flapping_is_one_incident_that_says_so() -> None:
    """What comes and goes too often stays open until it has been quiet for the window."""
    policy = IncidentPolicy(flap_count=3, flap_window_seconds=100)
    watch = Watch(policy=policy)
    for _ in range(2):
        assert watch.see(dev("vm_missing")).opened
        assert watch.see().resolved
    opened = watch.see(dev("vm_missing")).opened
    assert opened[0].title.endswith("(flapping)")
    for _ in range(5):
        assert watch.see() == IncidentDecision(next_check=watch.now + 100)
        assert not watch.see(dev("vm_missing")).opened
    assert not watch.see().resolved
    assert watch.see(after=99.5).resolved == ()
    assert watch.see(after=1).resolved


def test_there_is_a_limit_to_open_incidents() -> None:
    """More than the limit are counted, not kept."""
    watch = Watch(policy=IncidentPolicy(incidents_max=5))
    watch.see(*(dev("vm_missing", f"shop/db/{n}") for n in range(9)))
    assert len(watch.incidents.open()) == 5
    assert watch.incidents.refused == 4


@pytest.mark.parametrize(
    ("subject", "instance"),
    [(DB, DB), (REDIS, DB), ("shop", ""), ("fleet", ""), ("monitor", ""), ("agent-1", "")],
)
def test_the_instance_of_a_subject(subject: str, instance: str) -> None:
    """The instance is the first three parts of the subject."""
    opened = Watch().see(dev("vm_missing", subject)).opened
    assert instance_of(opened[0]) == instance


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_words_for_people(kind: str) -> None:
    """Each kind of the table makes a deviation with title, meaning and next step, without leftover placeholders."""
    made = deviation(kind, REDIS, "why", POLICY, instance=DB)
    assert made.title
    assert made.next_step
    assert KINDS[kind].meaning.endswith(".")
    assert "{" not in made.title + made.next_step
    assert made.after_seconds >= 0
