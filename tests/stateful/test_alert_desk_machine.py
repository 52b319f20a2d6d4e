"""The desk against everything that can happen, in any order: incidents, people, silences, leaders that come and go."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from healthmonitor.core.notifying.desk import Desk, Rules, Surroundings
from healthmonitor.core.notifying.routing import EscalationStep, Route
from healthmonitor.core.notifying.thread import Acknowledgement, Send, Thread
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Incident, Silence
from tests.support.alerts import incident, over, subject_of

POLICY = AlertPolicy(
    group_wait_seconds=1.0,
    group_longest_seconds=5.0,
    group_max=4,
    repeat_seconds=100.0,
    repeat_longest_seconds=400.0,
)
RULES = Rules(
    (
        Route("shop", ("mail",), deployments=("shop",), escalate=(EscalationStep(50.0, ("boss",)),)),
        Route("rest", ("mail", "pager")),
    ),
    ("mail", "pager", "boss"),
)
NUMBERS = st.integers(0, 7)


class DeskMachine(RuleBasedStateMachine):
    """`journal` and `threads` are what is written down: the desk may be lost at any moment."""

    @initialize()
    def start(self) -> None:
        self.now = 1000.0
        self.journal: dict[str, Incident] = {}
        self.threads: dict[str, Thread] = {}
        self.silences: tuple[Silence, ...] = ()
        self.melting: frozenset[str] = frozenset()
        self.sent: list[Send] = []
        self.acknowledged: set[str] = set()
        self.told_open: Counter[tuple[str, float]] = Counter()
        self.told_over: Counter[tuple[str, float]] = Counter()
        self.desk = Desk(POLICY, RULES)

    def key_of(self, number: int) -> tuple[str, str]:
        subject = f"{'shop' if number < 4 else 'web'}/db/{number}"
        return f"vm_missing:{subject}", subject

    @rule(number=NUMBERS)
    def open(self, number: int) -> None:
        key, subject = self.key_of(number)
        if key not in self.journal or self.journal[key].resolved_at is not None:
            self.now += 0.01
            self.journal[key] = incident(subject, at=self.now)
            self.desk.see(self.journal[key])

    @rule(number=NUMBERS)
    def open_and_tell(self, number: int) -> None:
        """What most often happens, so that what comes after it is tried often too."""
        self.open(number)
        self.wait(6.0)

    @rule(number=NUMBERS)
    def end(self, number: int) -> None:
        key, _ = self.key_of(number)
        if key in self.journal and self.journal[key].resolved_at is None:
            self.now += 0.01
            self.journal[key] = over(self.journal[key], self.now)
            self.desk.see(self.journal[key])

    @rule(seconds=st.sampled_from([0.1, 1.0, 60.0, 150.0, 500.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            around = Surroundings(subject_of, self.silences, (), self.melting, 6.0)
            decision = self.desk.decide(self.now, around)
            for send in decision.sends:
                self.note(send)
            for thread in decision.forgotten:
                self.threads.pop(thread, None)
            if decision.next_check is None or decision.next_check > end:
                break
            self.now = max(self.now + 0.01, decision.next_check)
        self.now = max(self.now, end)

    @precondition(lambda self: any(each.over_at is None for each in self.threads.values()))
    @rule(choice=NUMBERS)
    def acknowledge(self, choice: int) -> None:
        standing = [each for each in self.threads.values() if each.over_at is None]
        member = standing[choice % len(standing)].members[0]
        send = self.desk.acknowledge(member.key, Acknowledgement("ann", "on it", self.now))
        if send is not None:
            self.note(send)
            self.acknowledged.add(send.thread.id)

    @rule(deployment=st.sampled_from(["shop", "web"]), seconds=st.sampled_from([3.0, 100.0]))
    def silence(self, deployment: str, seconds: float) -> None:
        self.silences = (Silence("s", self.now + seconds, self.now, "ann", "x", deployment=deployment),)
        self.desk.look_again()

    @rule(melting=st.sampled_from([(), ("fleet",), ("shop",)]))
    def storm(self, melting: tuple[str, ...]) -> None:
        """Begins, goes on, or is over; what waited for that is told in the end all the same."""
        self.melting = frozenset(melting)
        self.desk.look_again()

    @rule()
    def new_leader(self) -> None:
        self.desk = Desk(POLICY, RULES)
        self.desk.load(self.threads.values(), self.journal, self.now)

    @precondition(lambda self: self.journal)
    @rule()
    def settle(self) -> None:
        """When all is over and nothing is silenced, whatever was told as open was told as over, in its thread."""
        self.silences = ()
        self.desk.look_again()
        for number in range(8):
            self.end(number)
        self.wait(6.0)
        assert self.desk.untold() == 0
        for identity in self.told_open:
            assert self.told_over[identity] == 1, identity
        assert all(thread.over_at is not None for thread in self.threads.values())

    def note(self, send: Send) -> None:
        former = self.threads.get(send.thread.id)
        kind = send.transition.value
        assert former is None or send.thread.number == former.number + 1, "every notification has its own number"
        assert (former is None) == (send.thread.number == 1)
        assert send.channels
        assert former is None or former.over_at is None, "nothing is said of a thread that is over"
        assert len(send.thread.members) <= POLICY.group_max
        if kind in ("repeated", "escalated"):
            assert send.thread.id not in self.acknowledged, kind
        if kind == "repeated":
            assert former is not None
            gap = min(100.0 * 2**former.repeats, 400.0)
            assert send.thread.told_at - former.told_at >= gap - 1e-6
        if kind == "opened":
            for each in send.thread.members:
                if each.over_at is None:
                    self.told_open[(each.key, each.opened_at)] += 1
        if kind == "resolved":
            assert former is None or set(send.channels) == set(former.channels)
            for each in send.thread.members:
                assert each.over_at is not None
                self.told_over[(each.key, each.opened_at)] += 1
        self.threads[send.thread.id] = send.thread
        self.sent.append(send)

    @invariant()
    def nothing_is_told_twice(self) -> None:
        assert all(count == 1 for count in self.told_open.values()), self.told_open
        assert all(count == 1 for count in self.told_over.values()), self.told_over

    @invariant()
    def an_open_incident_is_in_one_thread_at_most(self) -> None:
        members = Counter(
            each.key
            for thread in self.desk.threads()
            if thread.over_at is None
            for each in thread.members
            if each.over_at is None
        )
        assert all(count == 1 for count in members.values()), members


TestDesk = DeskMachine.TestCase
TestDesk.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
