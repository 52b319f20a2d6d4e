"""What people are told of an instance: one word for each state, and the way out where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.cli.application import app
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.operator_view import Tone, describe, what_to_do
from healthmonitor.core.records import Hold, InstanceRecord, Operation, OperationKind, Step, VmBinding
from protocol import heartbeat as wire
from protocol.heartbeat import ContainerReport, ContainerState, EngineState, Extension, Heartbeat, Reason
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    Generation,
    InstanceId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec, Wanted

GROUP = InstanceGroup(
    name="db",
    instances=1,
    vm=VmSize(),
    stemcell="demo",
    cloud=CloudName("local"),
    disks=(),
    containers=(ContainerSpec(ContainerName("redis"), "redis:7"), ContainerSpec(ContainerName("web"), "web:1")),
    update=UpdatePolicy(),
)
RECORD = InstanceRecord(
    instance=InstanceId("shop/db/0"),
    deployment=DeploymentName("shop"),
    index=0,
    group=GROUP,
    deployment_revision=Revision(1),
    revision=Revision(4),
    generation=Generation(1),
    vm=VmBinding(AgentId("a1"), Generation(1), "shop-db-0-g1", VmCid("vm-1")),
)
OPERATION = Operation(
    OperationId("1"), RECORD.instance, OperationKind.RESURRECT, Step.FENCE, "silent for 15 s", 0.0, error="no answer"
)


def heartbeat(
    *states: ContainerState, engine: EngineState = EngineState.UP, revision: int = 4, isolated: bool = False
) -> Heartbeat:
    reports = tuple(
        ContainerReport(name, state, reason=Reason.EXITED if state is ContainerState.CRASH_LOOP else Reason.NONE)
        for name, state in zip(("redis", "web"), states, strict=False)
    )
    return Heartbeat(resurgam=Extension(revision=revision, engine=engine, containers=reports, isolated=isolated))


RUNNING, STOPPED, STARTING, CRASHING = (
    ContainerState.RUNNING,
    ContainerState.STOPPED,
    ContainerState.STARTING,
    ContainerState.CRASH_LOOP,
)


@pytest.mark.parametrize(
    ("record", "verdict", "beat", "operation", "word", "tone"),
    [
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, RUNNING), None, "running", Tone.GOOD),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, ContainerState.COMPLETED), None, "running", Tone.GOOD),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, STARTING), None, "starting", Tone.BUSY),
        (RECORD, Verdict.ALIVE, heartbeat(CRASHING, STARTING), None, "degraded", Tone.BAD),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, STOPPED), None, "partly stopped", Tone.OFF),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, RUNNING, revision=3), None, "behind", Tone.BUSY),
        (RECORD, Verdict.ALIVE, heartbeat(engine=EngineState.HUNG), None, "engine hung", Tone.BAD),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING, isolated=True), None, "isolated", Tone.BAD),
        (RECORD, Verdict.ALIVE, Heartbeat(job_state="running"), None, "running", Tone.GOOD),
        (RECORD, Verdict.ALIVE, Heartbeat(job_state="failing"), None, "failing", Tone.UNKNOWN),
        (RECORD, Verdict.ALIVE, None, None, "alive", Tone.UNKNOWN),
        (replace(RECORD, wanted=Wanted.STOPPED), Verdict.ALIVE, heartbeat(STOPPED), None, "stopped", Tone.OFF),
        (replace(RECORD, wanted=Wanted.STOPPED), Verdict.ALIVE, heartbeat(RUNNING), None, "stopping", Tone.BUSY),
        (RECORD, Verdict.MISSING, heartbeat(RUNNING), None, "missing", Tone.BAD),
        (RECORD, Verdict.SUSPECT, heartbeat(RUNNING), None, "suspect", Tone.UNKNOWN),
        (RECORD, Verdict.CANNOT_TELL, heartbeat(RUNNING), None, "cannot tell", Tone.UNKNOWN),
        (RECORD, Verdict.UNHEARD, None, None, "not heard yet", Tone.UNKNOWN),
        (replace(RECORD, vm=None), Verdict.UNHEARD, None, None, "no VM yet", Tone.BUSY),
        (replace(RECORD, ignore=True), Verdict.MISSING, None, None, "left alone", Tone.OFF),
        (replace(RECORD, deleting=True), Verdict.ALIVE, heartbeat(RUNNING), None, "to be deleted", Tone.BUSY),
        (RECORD, Verdict.MISSING, None, OPERATION, "being rebuilt", Tone.BUSY),
        (RECORD, Verdict.MISSING, None, replace(OPERATION, hold=Hold.UNFENCED), "unfenced", Tone.BAD),
        (RECORD, Verdict.MISSING, None, replace(OPERATION, hold=Hold.CONCURRENCY), "waiting for its turn", Tone.BUSY),
        (RECORD, Verdict.ALIVE, heartbeat(RUNNING), replace(OPERATION, step=Step.DONE), "running", Tone.GOOD),
    ],
)
def test_each_state_has_its_word(
    record: InstanceRecord,
    verdict: Verdict,
    beat: Heartbeat | None,
    operation: Operation | None,
    word: str,
    tone: Tone,
) -> None:
    """The table of all states; what an operation is about comes before what is seen."""
    state = describe(record, verdict, beat, operation)
    assert (state.word, state.tone) == (word, tone)
    assert state.why or tone is Tone.GOOD
    glance = None if beat is None else wire.glance(wire.encode(beat))
    assert describe(record, verdict, glance, operation) == state, "what judging needs of a heartbeat says the same"


def test_what_is_broken_is_named_with_the_command_to_look() -> None:
    """A crash loop names container, state and reason, and where to read more."""
    state = describe(RECORD, Verdict.ALIVE, heartbeat(CRASHING, STARTING), None)
    assert state.why == "redis crash loop (exited)"
    assert state.next_step == "resurgam logs shop/db/0 redis"


@pytest.mark.parametrize("hold", [hold for hold in Hold if hold not in (Hold.NONE, Hold.CONCURRENCY, Hold.CANNOT_TELL)])
def test_every_hold_that_a_person_can_end_says_how(hold: Hold) -> None:
    """No operation waits for a person without saying for what."""
    assert what_to_do(replace(OPERATION, hold=hold))


def test_what_to_type_for_a_hold_are_commands_that_exist() -> None:
    """Every `resurgam …` that is proposed is understood by the command line's parser."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    for hold in Hold:
        text = what_to_do(replace(OPERATION, hold=hold))
        for after in text.split("resurgam ")[1:]:
            assert after.split()[0].strip("`") in known
