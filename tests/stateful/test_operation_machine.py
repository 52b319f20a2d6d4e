"""An operation under every order of outcomes, vouching, rewinding and replacement: no law is ever broken."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.core import operation as rules
from healthmonitor.core.operation import STEPS, AliveAgain, Done, Failed, Held, VmLost
from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Operation, OperationKind, Step, VmBinding
from protocol.ids import AgentId, Generation, InstanceId, OperationId

POLICY = ResurrectionPolicy(timings_max=20)
HOLD_OF = {
    Step.CONFIRM: Hold.CANNOT_TELL,
    Step.GUARD: Hold.MELTDOWN,
    Step.FENCE: Hold.UNFENCED,
    Step.HEALTHY: Hold.UNHEALTHY,
}


class OperationMachine(RuleBasedStateMachine):
    """Keeps a model of the world: which VMs exist, which are proven off. Steps act on it as the real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.number = 0
        self.generation = 0
        self.present: VmBinding | None = None
        self.proven: set[str] = set()
        self.unproven: set[str] = set()  # made, and nothing says that they cannot write
        self.operation: Operation | None = None

    @initialize()
    def created(self) -> None:
        self.begin_kind(OperationKind.CREATE)

    @rule(kind=st.sampled_from(list(OperationKind)))
    def begins(self, kind: OperationKind) -> None:
        before = self.operation
        if before is not None and before.step is not Step.DONE and rules.absorbs(before, kind):
            self.operation = rules.rewind(before, self.now)
            return
        if kind is OperationKind.UPDATE and self.present is None:
            return  # nothing to update in place; the resurrector rewinds what builds it
        if before is None or before.kind is not OperationKind.DELETE or before.step is Step.DONE:
            self.begin_kind(kind)

    def begin_kind(self, kind: OperationKind) -> None:
        self.number += 1
        self.operation = rules.begin(
            OperationId(str(self.number)), InstanceId("a/b/0"), kind, "", self.now, self.present, self.operation
        )

    @rule()
    def step_done(self) -> None:
        subject = self.open()
        if subject is None:
            return
        proof = ""
        match subject.step:
            case Step.FENCE if subject.old_vm is not None and not subject.fence_proof:
                proof = f"{subject.old_vm.key} is off"
                self.prove(subject.old_vm)
            case Step.DELETE_VM:
                if subject.old_vm is not None and self.present == subject.old_vm:
                    self.present = None
            case Step.CREATE_VM:
                self.make_vm(subject)
            case Step.FORGET:
                assert self.present is None or self.present.key in self.proven, "forgotten, and it may still write"
                self.present = None
        self.operation = rules.advance(subject, Done(proof=proof), self.now, POLICY)

    def make_vm(self, subject: Operation) -> None:
        if self.present is not None and (subject.old_vm is None or self.present.key != subject.old_vm.key):
            return  # made before; the step is repeated
        assert not self.unproven, "a second writer"
        self.generation += 1
        key = f"g{self.generation}"
        self.present = VmBinding(AgentId(key), Generation(self.generation), key)
        self.unproven.add(key)

    def prove(self, vm: VmBinding) -> None:
        self.proven.add(vm.key)
        self.unproven.discard(vm.key)

    @rule()
    def step_failed(self) -> None:
        subject = self.open()
        if subject is not None:
            self.operation = rules.advance(subject, Failed("x"), self.now, POLICY)

    @rule()
    def step_held(self) -> None:
        subject = self.open()
        if subject is not None and subject.step in HOLD_OF:
            self.operation = rules.advance(subject, Held(HOLD_OF[subject.step], "x"), self.now, POLICY)

    @rule()
    def alive_again(self) -> None:
        subject = self.open()
        if subject is not None and subject.step is Step.CONFIRM:
            self.operation = rules.advance(subject, AliveAgain("x"), self.now, POLICY)

    @rule()
    def new_vm_lost(self) -> None:
        subject = self.open()
        if subject is None or subject.step not in (Step.ATTACH, Step.HEAR_AGENT) or self.present is None:
            return
        if Step.FENCE in STEPS[subject.kind]:
            self.operation = rules.advance(subject, VmLost(self.present, "x"), self.now, POLICY)

    @rule()
    def a_person_vouches(self) -> None:
        subject = self.open()
        if subject is not None and subject.step is Step.FENCE and subject.old_vm is not None:
            self.operation = rules.vouch(subject, "anna", self.now, POLICY)
            self.prove(subject.old_vm)

    @rule(seconds=st.floats(0.0, 500.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def open(self) -> Operation | None:
        return None if self.operation is None or self.operation.step is Step.DONE else self.operation

    @invariant()
    def at_most_one_vm_may_write(self) -> None:
        assert len(self.unproven) <= 1, self.unproven

    @invariant()
    def a_proof_is_of_the_vm_that_it_stands_beside(self) -> None:
        subject = self.operation
        if subject is not None and subject.old_vm is not None and subject.fence_proof:
            assert subject.old_vm.key in self.proven

    @invariant()
    def what_is_open_is_in_its_table_and_tried_again_in_time(self) -> None:
        subject = self.open()
        if subject is None:
            return
        assert subject.step in STEPS[subject.kind]
        assert subject.next_try_at <= self.now + POLICY.retry_longest_seconds
        assert len(subject.timings) <= POLICY.timings_max
        assert (subject.hold is Hold.NONE) == (not subject.error)

    @invariant()
    def it_can_always_end(self) -> None:
        """From every state the steps, each done, lead to DONE: nothing is a dead end."""
        subject = self.open()
        if subject is None:
            return
        for _ in range(len(STEPS[subject.kind]) + 1):
            if subject.step is Step.DONE:
                return
            needed = subject.step is Step.FENCE and subject.old_vm is not None and not subject.fence_proof
            subject = rules.advance(replace(subject), Done(proof="x" if needed else ""), self.now, POLICY)
        raise AssertionError("never ends")


TestOperation = OperationMachine.TestCase
TestOperation.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
