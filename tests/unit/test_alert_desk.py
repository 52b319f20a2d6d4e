"""What is told when: grouping, repeats, escalation, acknowledgement, silences, what a new leader goes on with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from healthmonitor.core.maintenance import OnceWindow
from healthmonitor.core.notifying.desk import CLOSED_KEPT_SECONDS, PROGRESS_SECONDS, Desk, Rules, Surroundings
from healthmonitor.core.notifying.hours import Hours
from healthmonitor.core.notifying.routing import EscalationStep, Route
from healthmonitor.core.notifying.thread import Acknowledgement, Send, Thread
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Incident, Severity, Silence
from tests.support.alerts import incident, over, subject_of

POLICY = AlertPolicy(group_wait_seconds=0.2, group_longest_seconds=5.0, group_max=100)
CHANNELS = ("mail", "pager")
START = 1000.0
MELTING_SECONDS = 6.0


class Office:
    """A desk and its clock."""

    def __init__(self, *routes: Route, policy: AlertPolicy = POLICY, windows: tuple[OnceWindow, ...] = ()) -> None:
        self.rules = Rules(routes, CHANNELS, windows)
        self.desk = Desk(policy, self.rules)
        self.now = START
        self.silences: list[Silence] = []
        self.windows: list[OnceWindow] = []
        self.melting: frozenset[str] = frozenset()
        self.sent: list[Send] = []

    def around(self) -> Surroundings:
        return Surroundings(subject_of, tuple(self.silences), tuple(self.windows), self.melting, MELTING_SECONDS)

    def wait(self, seconds: float) -> list[Send]:
        """Lets the time pass as the shell does: from one check to the next."""
        end = self.now + seconds
        sent: list[Send] = []
        while True:
            decision = self.desk.decide(self.now, self.around())
            sent.extend(decision.sends)
            next_check = decision.next_check if decision.next_check is not None else float("inf")
            if next_check > end:
                break
            self.now = max(self.now + 1e-3, next_check)
        self.now = end
        self.sent.extend(sent)
        return sent

    def see(self, *incidents: Incident) -> None:
        for each in incidents:
            self.desk.see(each)


def told(sends: list[Send]) -> list[tuple[str, tuple[str, ...], int]]:
    return [(send.transition.value, send.channels, len(send.incidents)) for send in sends]


def vm(number: int = 0, deployment: str = "shop", at: float = START) -> Incident:
    return incident(f"{deployment}/db/{number}", at=at)


def test_a_loss_that_is_one_of_many_is_told_with_them_and_only_once() -> None:
    """Losses come one after another while the others are suspect: the one notification is the meltdown's, whenever it
    is that the losses are written down as explained by it."""
    office = Office()
    office.melting = frozenset({"fleet"})
    office.see(vm(1), vm(2))
    assert office.wait(1.0) == []
    office.desk.look_again()
    office.see(incident("fleet", "meltdown", at=office.now), incident("shop", "meltdown", at=office.now))
    office.see(vm(3, at=office.now))
    assert [(send.thread.kind, len(send.incidents)) for send in office.wait(0.5)] == [("meltdown", 1)]
    for number in (1, 2, 3):
        office.see(replace(vm(number), inhibited_by="meltdown:fleet"))
    office.see(replace(incident("shop", "meltdown"), inhibited_by="meltdown:fleet"))
    assert office.wait(60.0) == []


@pytest.mark.parametrize(
    ("melting", "waits"),
    [({"fleet"}, True), ({"shop"}, True), ({"other"}, False), (set(), False)],
)
def test_a_loss_waits_only_where_many_are_lost(melting: set[str], waits: bool) -> None:
    """In its deployment or the fleet, and no longer than the verdict on the others may take: then it is told alone."""
    office = Office()
    office.melting = frozenset(melting)
    office.see(vm(), incident("shop/db/0/redis", "container_not_running"))
    at_once = {send.thread.kind for send in office.wait(1.0)}
    assert at_once == {"container_not_running"} | (set() if waits else {"vm_missing"})
    assert office.wait(MELTING_SECONDS - 2.0) == []
    later = [send.thread.kind for send in office.wait(2.0)]
    assert later == (["vm_missing"] if waits else [])


def test_a_loss_is_told_as_soon_as_the_others_turn_out_to_live() -> None:
    """The storm was none: who waited for that is told at once."""
    office = Office()
    office.melting = frozenset({"fleet"})
    office.see(vm())
    assert office.wait(2.0) == []
    office.melting = frozenset()
    office.desk.look_again()
    assert told(office.wait(0.3)) == [("opened", CHANNELS, 1)]


def test_the_meltdown_of_the_fleet_waits_for_nothing() -> None:
    """It is what the others wait for; that of a deployment waits while the fleet's may come."""
    office = Office()
    office.melting = frozenset({"fleet", "shop"})
    office.see(incident("shop", "meltdown"))
    assert office.wait(0.5) == []
    office.see(incident("fleet", "meltdown", at=office.now))
    assert [send.incidents[0].subject for send in office.wait(0.5)] == ["fleet"]
    alone = Office()
    alone.melting = frozenset({"shop"})
    alone.see(incident("shop", "meltdown"))
    assert [send.incidents[0].subject for send in alone.wait(0.5)] == ["shop"]


def test_one_incident_is_told_once_and_its_end_once_in_one_thread() -> None:
    """From opening to resolution one id, whatever it is told in between."""
    office = Office()
    office.see(vm())
    assert office.wait(0.1) == []
    opened = office.wait(0.2)
    office.now += 61
    office.see(over(vm(), office.now))
    resolved = office.wait(1)
    assert told([*opened, *resolved]) == [("opened", CHANNELS, 1), ("resolved", CHANNELS, 1)]
    assert opened[0].thread.id == resolved[0].thread.id
    assert opened[0].id != resolved[0].id
    assert office.wait(CLOSED_KEPT_SECONDS * 3) == []
    assert office.desk.threads() == []


def test_what_happens_at_once_is_one_notification() -> None:
    """VMs lost one after the other: one message, when no more come or at the latest after 5 s."""
    office = Office(policy=replace(POLICY, group_max=1000))
    for number in range(50):
        office.see(vm(number))
        assert office.wait(0.05) == []
    assert told(office.wait(0.3)) == [("opened", CHANNELS, 50)]
    for number in range(100, 300):
        office.see(vm(number))
        office.wait(0.05)
    office.wait(1)
    sizes = [len(send.incidents) for send in office.sent[1:]]
    assert sum(sizes) == 200
    assert len(sizes) == 2, "5 s are over once in 10 s"


def test_a_full_group_is_sent_at_once_and_the_next_begins() -> None:
    """Nothing grows without bound, and nothing is left out."""
    office = Office()
    office.see(*[vm(number) for number in range(250)])
    assert sorted(len(send.incidents) for send in office.wait(0)) == [100, 100]
    assert [len(send.incidents) for send in office.wait(0.3)] == [50]


def test_what_goes_elsewhere_is_not_grouped() -> None:
    """By route and by kind."""
    office = Office(Route("shop", ("pager",), deployments=("shop",)))
    office.see(vm(), vm(deployment="web"), incident("shop/db/0/data", "disk_read_only"))
    assert sorted(told(office.wait(1))) == [
        ("opened", CHANNELS, 1),
        ("opened", ("pager",), 1),
        ("opened", ("pager",), 1),
    ]


def test_it_is_repeated_with_growing_gaps_until_somebody_acknowledges() -> None:
    """1 h, 2 h, 4 h and so on, up to the longest; acknowledged: told that it is, and silent until it is over."""
    office = Office(policy=replace(POLICY, repeat_seconds=3600, repeat_longest_seconds=4 * 3600))
    office.see(vm())
    times = [send.thread.told_at - START for send in office.wait(20 * 3600)]
    gaps = [round(later - earlier) // 3600 for earlier, later in pairwise(times)]
    assert gaps == [1, 2, 4, 4, 4, 4][: len(gaps)]
    assert len(gaps) >= 5
    send = office.desk.acknowledge(vm().key, Acknowledgement("ann", "on it", office.now))
    assert send is not None
    assert told([send]) == [("acknowledged", CHANNELS, 1)]
    assert office.wait(100 * 3600) == []
    office.see(over(vm(), office.now))
    assert told(office.wait(1)) == [("resolved", CHANNELS, 1)]


def test_nobody_acknowledges_so_it_goes_to_the_next() -> None:
    """Step by step, each once; who was told is told the end."""
    steps = (EscalationStep(900.0, ("pager",)), EscalationStep(1800.0, ("boss",)))
    office = Office(Route("r", ("mail",), escalate=steps))
    office.see(vm())
    sent = office.wait(3000)
    assert [(send.transition.value, send.channels, round(send.thread.told_at - START)) for send in sent] == [
        ("opened", ("mail",), 0),
        ("escalated", ("pager",), 900),
        ("escalated", ("boss",), 1800),
    ]
    office.see(over(vm(), office.now))
    assert told(office.wait(1)) == [("resolved", ("mail", "pager", "boss"), 1)]


def test_acknowledged_it_is_not_escalated() -> None:
    """That is what acknowledging is for."""
    office = Office(Route("r", ("mail",), escalate=(EscalationStep(900.0, ("pager",)),)))
    office.see(vm())
    office.wait(100)
    assert office.desk.acknowledge(vm().key, Acknowledgement("ann", "on it", office.now)) is not None
    assert office.wait(2000) == []
    assert office.desk.acknowledge("vm_missing:web/db/0", Acknowledgement("ann", "", office.now)) is None


def silence(seconds: float, **where: str) -> Silence:
    return Silence("s", START + seconds, START - 1, "ann", "move", **where)


@pytest.mark.parametrize("how", ["silence", "window", "added window", "quiet", "inhibited"])
def test_what_is_held_back_is_told_when_it_is_still_there(how: str) -> None:
    """Silence, maintenance window, quiet hours, a cause: nothing is told meanwhile, and what outlasts it is."""
    route = Route("r", CHANNELS, quiet=(Hours(frozenset(range(7)), 0, 3600),) if how == "quiet" else ())
    office = Office(route, windows=(OnceWindow(0, START + 2600),) if how == "window" else ())
    office.now = START
    if how == "added window":
        office.windows.append(OnceWindow(0, START + 2600))
    if how == "silence":
        office.silences.append(silence(2600, deployment="shop"))
    lasting, passing = vm(0), vm(1)
    if how == "inhibited":
        lasting, passing = (replace(each, inhibited_by="meltdown:fleet") for each in (lasting, passing))
    office.see(lasting, passing)
    assert office.wait(2000) == []
    why = office.desk.explain(lasting, office.now, office.around())
    words = {"silence": "silence s", "quiet": "quiet hours", "inhibited": "meltdown"}
    assert any(reason.startswith("held back: ") and words.get(how, "maintenance window") in reason for reason in why), (
        why
    )
    office.see(over(passing, office.now))
    if how == "inhibited":
        office.see(replace(lasting, inhibited_by=""))
    assert told(office.wait(700)) == [("opened", CHANNELS, 1)]


def test_the_monitors_own_incidents_are_told_in_a_maintenance_window() -> None:
    """A window is about VMs."""
    office = Office(windows=(OnceWindow(0, START * 10),))
    office.see(incident("monitor", "cannot_tell"), vm())
    assert [send.incidents[0].kind for send in office.wait(1)] == ["cannot_tell"]


def test_a_cause_found_while_it_waits_holds_it_back() -> None:
    """A container and its VM are lost in the same moment: one alarm."""
    office = Office()
    container = incident("shop/db/0/redis", "container_not_running")
    office.see(container)
    office.wait(0.1)
    office.see(vm(), replace(container, inhibited_by=vm().key))
    assert [send.incidents[0].kind for send in office.wait(10)] == ["vm_missing"]


def test_a_silence_stops_repeats_and_escalation_but_not_the_end() -> None:
    """Who was told that it began is told that it is over."""
    office = Office(Route("r", ("mail",), escalate=(EscalationStep(900.0, ("pager",)),)))
    office.see(vm())
    office.wait(10)
    office.silences.append(silence(86400, instance="shop/db/0"))
    assert office.wait(8000) == []
    office.see(over(vm(), office.now))
    assert told(office.wait(1)) == [("resolved", ("mail",), 1)]


def test_it_becomes_graver_or_flaps() -> None:
    """That is news; a detail that changes is not."""
    pager = Route("pager", ("pager",), severities=frozenset({Severity.ALERT}))
    office = Office(pager, Route("mail", ("mail",)))
    office.see(vm())
    office.wait(1)
    office.see(replace(vm(), detail="another reason"))
    assert office.wait(10) == []
    office.see(replace(vm(), severity=Severity.ALERT))
    assert told(office.wait(10)) == [("changed", ("mail", "pager"), 1)]
    office.see(replace(vm(), severity=Severity.ALERT, title="shop/db/0 is missing (flapping)"))
    assert told(office.wait(10)) == [("changed", ("mail", "pager"), 1)]
    assert office.wait(10) == []


def test_a_thread_is_over_when_its_last_incident_is() -> None:
    """Before that, what is over is said now and then."""
    office = Office(policy=replace(POLICY, repeat_seconds=0))
    office.see(*[vm(number) for number in range(3)])
    office.wait(1)
    office.see(over(vm(0), office.now))
    progress = office.wait(PROGRESS_SECONDS + 1)
    assert told(progress) == [("changed", CHANNELS, 3)]
    assert office.wait(1000) == []
    office.see(over(vm(1), office.now), over(vm(2), office.now))
    assert told(office.wait(1)) == [("resolved", CHANNELS, 2)]


def test_what_was_over_before_it_could_be_told_is_told_as_over() -> None:
    """Every incident that opened is delivered."""
    office = Office()
    office.see(vm())
    office.wait(0.1)
    office.see(over(vm(), office.now))
    assert told(office.wait(1)) == [("resolved", CHANNELS, 1)]


def test_an_alert_of_an_agent_is_told_once_and_has_no_end() -> None:
    """It goes by its own route."""
    office = Office()
    hot = incident("shop/db/0", "agent_alert", over_at=START)
    office.desk.note(hot)
    sent = office.wait(10)
    assert told(sent) == [("noted", CHANNELS, 1)]
    assert not office.desk.note(hot)
    new = succeeded(office, [sent[0].thread], [])
    assert not new.desk.note(hot)
    assert new.desk.note(replace(hot, key="another"))
    assert told(new.wait(10)) == [("noted", CHANNELS, 1)]
    assert office.wait(8000) == []
    assert office.desk.threads() == [], "it is forgotten in the end"


def succeeded(office: Office, threads: list[Thread], incidents: list[Incident]) -> Office:
    """The desk of who leads next."""
    new = Office(*office.rules.routes)
    new.now = office.now
    new.desk.load(threads, {each.key: each for each in incidents}, office.now)
    return new


def test_a_new_leader_goes_on_where_the_former_stopped() -> None:
    """What was told is not told again, what was not is, what ended meanwhile is over, in the same thread."""
    office = Office(Route("r", ("mail",), escalate=(EscalationStep(900.0, ("pager",)),)))
    office.see(vm(0), vm(1))
    opened = office.wait(1)
    late = vm(7, at=office.now)
    new = succeeded(office, [opened[0].thread], [vm(0), over(vm(1), office.now), late])
    assert told(new.wait(1)) == [("opened", ("mail",), 1)]
    new.see(over(late, new.now))
    assert told(new.wait(1)) == [("resolved", ("mail",), 1)]
    assert [send.transition.value for send in new.wait(1000)] == ["changed", "escalated"]
    new.see(over(vm(0), new.now))
    resolved = new.wait(1)
    assert told(resolved) == [("resolved", ("mail", "pager"), 1)]
    assert resolved[0].thread.id == opened[0].thread.id


def test_a_new_leader_tells_what_was_over_and_opened_again_in_one_thread_only() -> None:
    """Told with another, over, and told anew alone: of the first telling it is over, though the record under its key is
    of the second. Else that thread would go on for ever."""
    office = Office()
    office.see(vm(0), vm(1))
    (first,) = office.wait(1)
    office.see(over(vm(0), office.now))
    again = vm(0, at=office.now)
    office.see(again)
    (second,) = office.wait(1)
    for threads in ([first.thread, second.thread], [second.thread, first.thread]):
        new = succeeded(office, threads, [again, vm(1)])
        new.see(over(again, new.now))
        assert [(send.thread.id, send.transition.value) for send in new.wait(1)] == [(second.thread.id, "resolved")]
        new.see(over(vm(1), new.now))
        (last,) = new.wait(1)
        assert (last.thread.id, last.transition.value) == (first.thread.id, "resolved")
        assert all(each.resolved_at is not None for each in last.incidents)
        assert sorted(each.opened_at for each in last.incidents) == [START, START]
        assert new.desk.untold() == 0


def test_a_new_leader_tells_the_end_of_what_is_forgotten() -> None:
    """An incident that is in no record any more was over for long."""
    office = Office()
    office.see(vm(0))
    opened = office.wait(1)
    assert told(succeeded(office, [opened[0].thread], []).wait(1)) == [("resolved", CHANNELS, 1)]


def test_a_new_leader_does_not_tell_again_what_is_over() -> None:
    """Neither what was told as over, nor what ended long ago."""
    office = Office()
    office.see(vm(0))
    office.wait(1)
    office.see(over(vm(0), office.now))
    resolved = office.wait(1)
    old = over(vm(5, at=START - 9000), START - 8000)
    assert succeeded(office, [resolved[0].thread], [over(vm(0), office.now - 1), old]).wait(10) == []


def test_a_clock_that_is_set_back_holds_nothing_up() -> None:
    """Two hours back while a group waits, while something is held back, and after a thread was told: each goes on as if
    it had just begun, and none waits for the clock to be there again."""
    office = Office()
    office.see(vm(9))
    office.wait(1.0)
    explained = replace(vm(1), inhibited_by="meltdown:fleet")
    office.see(explained)
    office.wait(1.0)
    office.see(vm(0))
    assert office.wait(0.1) == []
    office.now -= 7200.0
    assert [send.incidents[0].key for send in office.wait(1.0)] == ["vm_missing:shop/db/0"]
    office.desk.see(vm(1))
    assert [send.incidents[0].key for send in office.wait(10.0)] == ["vm_missing:shop/db/1"]
    repeated = office.wait(POLICY.repeat_seconds + 60.0)
    assert {send.transition.value for send in repeated} == {"repeated"}
    assert len(repeated) == 3
