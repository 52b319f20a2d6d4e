"""The survey, which looks only where something changed, against looking at everything anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.core import survey
from healthmonitor.core.deviations import Deviation
from healthmonitor.core.evaluation import Expectations, evaluate, evaluate_strangers
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    DiskBinding,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    Step,
    VmBinding,
)
from healthmonitor.core.survey import Survey
from protocol import heartbeat as wire
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    DiskReport,
    DiskState,
    EngineState,
    Extension,
    Heartbeat,
)
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec, Wanted, spec_hash

POLICY = Policy()
INSTANCES = [InstanceId(f"shop-{n // 2}/db/{n % 2}") for n in range(5)]
REDIS = ContainerSpec(ContainerName("redis"), "redis:7")
GROUP = InstanceGroup("db", 2, VmSize(), "debian-12", CloudName("local"), (), (REDIS,), UpdatePolicy())
WHICH = st.sampled_from(INSTANCES)
BY_TIME_ALONE = {"heartbeats_missing", "isolated"}
"""Found, or not, by the mere passing of time."""


def fresh(instance: InstanceId, generation: int) -> InstanceRecord:
    deployment, _, index = instance.split("/")
    agent = AgentId(f"agent-{instance.replace('/', '-')}-{generation}")
    return InstanceRecord(
        instance=instance,
        deployment=DeploymentName(deployment),
        index=int(index),
        group=GROUP,
        deployment_revision=Revision(1),
        revision=Revision(1),
        generation=Generation(generation),
        vm=VmBinding(agent, Generation(generation), "key", VmCid("vm")),
        disks=(DiskBinding(DiskName("data"), "key", 1, DiskCid("disk")),),
    )


class SurveyMachine(RuleBasedStateMachine):
    """Records and operations come, change and go; agents say what they like, fall silent, answer or do not."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.fleet = Fleet(POLICY.liveness, self.now)
        self.survey = Survey()
        self.records: dict[InstanceId, InstanceRecord] = {}
        self.operations: dict[InstanceId, Operation] = {}
        self.sequence = 0
        for instance in INSTANCES[:3]:
            self.records[instance] = fresh(instance, 1)

    @rule(instance=WHICH)
    def created_or_replaced(self, instance: InstanceId) -> None:
        known = self.records.get(instance)
        self.records = {**self.records, instance: fresh(instance, 1 if known is None else known.generation + 1)}

    @rule(instance=WHICH)
    def forgotten(self, instance: InstanceId) -> None:
        self.records = {key: each for key, each in self.records.items() if key != instance}

    @rule(
        instance=WHICH,
        change=st.sampled_from(
            [
                {"deleting": True},
                {"ignore": True},
                {"ignore": False},
                {"wanted": Wanted.STOPPED},
                {"wanted": Wanted.STARTED},
                {"revision": Revision(2)},
                {"vm": None},
                {"disks": ()},
            ]
        ),
    )
    def changed(self, instance: InstanceId, change: dict[str, object]) -> None:
        if instance in self.records:
            self.records = {**self.records, instance: replace(self.records[instance], **change)}  # type: ignore[arg-type]

    @rule(
        instance=WHICH,
        kind=st.sampled_from(OperationKind),
        step=st.sampled_from([Step.GUARD, Step.FENCE, Step.HEAR_AGENT, Step.HEALTHY, Step.DONE]),
        hold=st.sampled_from([Hold.NONE, Hold.UNFENCED, Hold.UNHEALTHY, Hold.MELTDOWN]),
    )
    def worked_on(self, instance: InstanceId, kind: OperationKind, step: Step, hold: Hold) -> None:
        operation = Operation(OperationId("o"), instance, kind, step, "a reason", 0.0, hold=hold)
        self.operations = {**self.operations, instance: operation}

    @rule(instance=WHICH)
    def let_go(self, instance: InstanceId) -> None:
        self.operations = {key: each for key, each in self.operations.items() if key != instance}

    @rule(
        instance=WHICH,
        state=st.sampled_from([ContainerState.RUNNING, ContainerState.RUNNING, ContainerState.CRASH_LOOP]),
        disk=st.sampled_from([DiskState.MOUNTED, DiskState.MOUNTED, DiskState.READ_ONLY]),
        engine=st.sampled_from([EngineState.UP, EngineState.UP, EngineState.HUNG]),
        hashed=st.sampled_from([spec_hash(REDIS), spec_hash(REDIS), "another"]),
    )
    def beats(
        self, instance: InstanceId, state: ContainerState, disk: DiskState, engine: EngineState, hashed: str
    ) -> None:
        record = self.records.get(instance)
        if record is None or record.vm is None:
            return
        self.sequence += 1
        said = Extension(
            generation=record.generation,
            revision=1,
            sequence=self.sequence,
            boot_id="boot",
            sent_at_seconds=self.now,
            instance=instance,
            engine=engine,
            containers=(ContainerReport("redis", state, spec_hash=hashed),),
            disks=(DiskReport("data", "disk", disk),),
        )
        payload = wire.encode(Heartbeat(job_state="running", resurgam=said))
        self.fleet.hear(record.vm.agent_id, payload, self.now)

    @rule(instance=WHICH)
    def beats_as_bosh_does(self, instance: InstanceId) -> None:
        record = self.records.get(instance)
        if record is not None and record.vm is not None:
            self.fleet.hear(record.vm.agent_id, b'{"job_state":"failing"}', self.now)

    @rule(name=st.sampled_from(["bosh-1", "bosh-2", "old-vm"]), claims=st.booleans())
    def a_stranger_beats(self, name: str, claims: bool) -> None:
        self.sequence += 1
        said = Extension(sequence=self.sequence, boot_id="boot", sent_at_seconds=self.now, instance=INSTANCES[0])
        beat = Heartbeat(job_state="failing", resurgam=said if claims else None)
        self.fleet.hear(AgentId(name), wire.encode(beat), self.now)

    @rule(seconds=st.sampled_from([0.25, 5.0, 16.0, 60.0]), answers=st.booleans())
    def time_passes(self, seconds: float, answers: bool) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += 0.25
            self.fleet.own.canary_heard(self.now)
            self.turn(answers)

    @rule()
    def rules_change(self) -> None:
        self.survey.look_at_all()

    def turn(self, answers: bool) -> None:
        self.survey.take(self.records, self.operations)
        self.survey.sync(self.fleet, self.now)
        for agent in self.fleet.decide(self.now).asks:
            if answers:
                self.fleet.answered(agent, self.now, self.now, "boot", self.now)
            else:
                self.fleet.unanswered(agent, self.now, self.now, "in vain")
        self.survey.evaluate(self.fleet, self.now, POLICY)

    @invariant()
    def what_is_found_is_what_looking_at_all_finds(self) -> None:
        self.turn(answers=False)
        for _ in range(len(INSTANCES) + 1):
            self.turn(answers=False)
        assert not self.survey.unfinished()
        under_way = {key: each for key, each in self.operations.items() if each.step is not Step.DONE}
        for instance in INSTANCES:
            record = self.records.get(instance)
            wanted: tuple[Deviation, ...] = ()
            if record is not None:
                view = self.fleet.view(record.vm.agent_id, self.now) if record.vm is not None else None
                wanted = evaluate(record, under_way.get(instance), view, Expectations(), POLICY)
            assert _kinds(self.survey.found(instance)) == _kinds(wanted), instance

    @invariant()
    def what_is_found_of_strangers_is_what_looking_at_all_finds(self) -> None:
        wanted = tuple(evaluate_strangers(self.fleet.strangers(self.now), POLICY))
        found = tuple(each for each in self.survey.deviations() if each.subject not in INSTANCES)
        of_strangers = [each for each in found if each.kind in ("agent_stranger", "agent_duplicate", "job_failing")]
        assert {(each.kind, each.subject) for each in of_strangers} == {(each.kind, each.subject) for each in wanted}

    @invariant()
    def who_is_expected_and_how_many_is_what_the_records_say(self) -> None:
        sizes: dict[DeploymentName, int] = {}
        for instance in INSTANCES:
            record = self.records.get(instance)
            if record is None or record.vm is None:
                continue
            assert self.fleet.instance_of(record.vm.agent_id) == instance
            if not record.deleting:
                sizes[record.deployment] = sizes.get(record.deployment, 0) + 1
        assert self.survey.sizes == sizes
        expected = [record.vm.agent_id for record in self.records.values() if record.vm is not None]
        counted = Counter(self.fleet.verdict(agent) for agent in expected)
        assert {verdict: n for verdict, n in self.fleet.verdicts().items() if n} == counted


def _kinds(found: Iterable[Deviation]) -> set[tuple[str, str]]:
    return {(each.kind, each.subject) for each in found if each.kind not in BY_TIME_ALONE}


TestSurveyMachine = SurveyMachine.TestCase
TestSurveyMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_many_strangers_are_all_looked_at_some_in_each_turn() -> None:
    """A turn costs no more however many there are; none is left out, and none stays that is forgotten or expected."""
    fleet, looking = Fleet(POLICY.liveness, 0.0), Survey()
    names = [AgentId(f"bosh-{n}") for n in range(2 * survey.STRANGERS_MAX + 1)]
    found = []
    for turn in range(4):
        now = 100.0 + turn
        for name in names:
            fleet.hear(name, b'{"job_state":"failing"}', now)
        looking.evaluate(fleet, now, POLICY)
        found.append(len({each.subject for each in looking.deviations()}))
    assert found == [survey.STRANGERS_MAX, 2 * survey.STRANGERS_MAX, len(names), len(names)]
    fleet.bind(INSTANCES[0], names[0], 104.0)
    looking.evaluate(fleet, 104.0, POLICY)
    assert names[0] not in {each.subject for each in looking.deviations()}
    for _ in range(4):
        fleet.decide(100_000.0)
        looking.evaluate(fleet, 100_000.0, POLICY)
    assert not [each for each in looking.deviations() if each.kind != "instance_has_no_vm"]


def test_every_instance_is_looked_at_within_the_time() -> None:
    """Also when nothing is heard to have changed: what was found wrong by a look that missed something is mended."""
    fleet, looking = Fleet(POLICY.liveness, 0.0), Survey()
    records = {instance: fresh(instance, 1) for instance in INSTANCES}
    looking.take(records, {})
    looking.sync(fleet, 0.0)
    looking.evaluate(fleet, 0.0, POLICY)
    looking._found.update(dict.fromkeys(INSTANCES, evaluate(replace(records[INSTANCES[0]], vm=None), None, None,
                                                            Expectations(), POLICY)))  # fmt: skip
    assert looking.deviations()
    now = 0.0
    while now <= survey.LOOK_AT_ALL_SECONDS + 1.0:
        now += 0.25
        looking.evaluate(fleet, now, POLICY)
    assert not looking.deviations()
