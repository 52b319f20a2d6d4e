"""What people are told of an instance: its state in words, why, and what they may do.

Law: one word per state, the same in the table, in JSON and in the documents; whatever is not as it should be has a
sentence that says why, and, where a person can do something, the command to type.

Does not know: how it is drawn (healthmonitor/cli), where it came from (healthmonitor/api_views.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from healthmonitor.core.judgement import Verdict
from healthmonitor.core.records import Hold, InstanceRecord, Operation, OperationKind, Step
from protocol.heartbeat import ContainerGlance, ContainerReport, ContainerState, EngineState, Glance, Heartbeat
from protocol.spec import Wanted

AS_IT_SHOULD_BE = frozenset({ContainerState.RUNNING, ContainerState.COMPLETED})
ON_THE_WAY = frozenset(
    {
        ContainerState.PENDING,
        ContainerState.PULLING,
        ContainerState.CREATING,
        ContainerState.STARTING,
        ContainerState.STOPPING,
    }
)


class Tone(Enum):
    """How a state is to be taken; programs may rely on it."""

    GOOD = "good"
    BUSY = "busy"
    BAD = "bad"
    UNKNOWN = "unknown"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class StateInWords:
    word: str
    tone: Tone
    why: str = ""
    next_step: str = ""


def describe(
    record: InstanceRecord, verdict: Verdict, heartbeat: Heartbeat | Glance | None, operation: Operation | None
) -> StateInWords:
    """The state of one instance. An operation under way explains whatever else is wrong, so it comes first.
    `heartbeat`: the last one, or what judging needs of it, which says the same here."""
    if operation is not None and operation.step is not Step.DONE:
        return describe_operation(operation)
    if record.ignore:
        return StateInWords("left alone", Tone.OFF, "a person said to leave it alone", f"resurgam start {_of(record)}")
    if record.deleting:
        return StateInWords("to be deleted", Tone.BUSY, "waits for its operation to begin")
    if record.vm is None:
        return StateInWords("no VM yet", Tone.BUSY, "waits for its turn in the rollout", "resurgam events --follow")
    match verdict:
        case Verdict.MISSING:
            return StateInWords("missing", Tone.BAD, "its VM is gone", "resurgam incidents")
        case Verdict.SUSPECT:
            return StateInWords("suspect", Tone.UNKNOWN, "its VM went silent and is being asked")
        case Verdict.CANNOT_TELL:
            return StateInWords("cannot tell", Tone.UNKNOWN, "the monitor cannot conclude anything at the moment")
        case Verdict.UNHEARD:
            return StateInWords("not heard yet", Tone.UNKNOWN, "its agent was not heard since the monitor started")
        case Verdict.ALIVE:
            return _alive(record, heartbeat)
        case _:
            assert_never(verdict)


def what_to_do(operation: Operation) -> str:
    """What a person may do about an operation that does not go on by itself; "" when nothing is needed."""
    instance = operation.instance
    match operation.hold:
        case Hold.NONE | Hold.CONCURRENCY | Hold.CANNOT_TELL:
            return ""
        case Hold.RETRYING:
            return "it is retried by itself; `resurgam events --follow` shows how it goes"
        case Hold.UNFENCED:
            return (
                f"make sure that the old VM is off for good, then: resurgam fence confirm {instance} --because "
                '"who looked, and what was seen"'
            )
        case Hold.DISABLED:
            return "resurgam resurrection on (and resurrector.enabled: true in the configuration)"
        case Hold.PAUSED:
            return "resurgam resume"
        case Hold.MELTDOWN:
            return "find out why so many are gone; to rebuild all the same: resurgam meltdown override --for 30m"
        case Hold.BUDGET:
            return "wait for the hour to pass, or raise resurrector.hourly_budget in the configuration"
        case Hold.MAINTENANCE:
            return "wait for the maintenance window to end"
        case Hold.UNHEALTHY:
            return f"resurgam logs {instance} CONTAINER"
        case _:
            assert_never(operation.hold)


def container_is_fine(report: ContainerReport | ContainerGlance) -> bool:
    return report.state in AS_IT_SHOULD_BE or report.state is ContainerState.STOPPED


_KINDS = {
    OperationKind.CREATE: "being created",
    OperationKind.RESURRECT: "being rebuilt",
    OperationKind.RECREATE: "being recreated",
    OperationKind.UPDATE: "being updated",
    OperationKind.CHANGE_DISKS: "disks being changed",
    OperationKind.DELETE: "being deleted",
}

_HOLDS = {
    Hold.RETRYING: "retrying",
    Hold.UNFENCED: "unfenced",
    Hold.DISABLED: "held: resurrection is off",
    Hold.PAUSED: "held: paused",
    Hold.MELTDOWN: "held: meltdown",
    Hold.BUDGET: "held: hourly budget",
    Hold.CONCURRENCY: "waiting for its turn",
    Hold.MAINTENANCE: "held: maintenance",
    Hold.CANNOT_TELL: "held: cannot tell",
    Hold.UNHEALTHY: "unhealthy",
}


def describe_operation(operation: Operation) -> StateInWords:
    """What is being done, or why it does not go on."""
    doing = f"{_KINDS[operation.kind]}, step {operation.step.value}"
    if operation.hold is Hold.NONE:
        return StateInWords(_KINDS[operation.kind], Tone.BUSY, f"{doing}: {operation.reason}")
    tone = Tone.BUSY if operation.hold is Hold.CONCURRENCY else Tone.BAD
    why = f"{doing}: {operation.error or operation.reason}"
    return StateInWords(_HOLDS[operation.hold], tone, why, what_to_do(operation))


def _alive(record: InstanceRecord, heartbeat: Heartbeat | Glance | None) -> StateInWords:
    instance = _of(record)
    extension = heartbeat.resurgam if heartbeat is not None else None
    if heartbeat is None or extension is None:
        word = (heartbeat.job_state or "unknown") if heartbeat is not None else "alive"
        return StateInWords(word, Tone.GOOD if word == "running" else Tone.UNKNOWN, "an agent without our extension")
    if extension.engine in (EngineState.HUNG, EngineState.DOWN, EngineState.BACKING_OFF):
        return StateInWords(
            f"engine {extension.engine.value.replace('_', ' ')}",
            Tone.BAD,
            "the VM's Docker Engine does not answer; its agent restarts it",
            "resurgam events --follow",
        )
    if extension.isolated:
        return StateInWords("isolated", Tone.BAD, "its agent stopped the writers while it could not reach the centre")
    if record.wanted is Wanted.STOPPED:
        running = [report.name for report in extension.containers if report.state is not ContainerState.STOPPED]
        if running:
            return StateInWords("stopping", Tone.BUSY, f"still there: {', '.join(running)}")
        return StateInWords("stopped", Tone.OFF, "by a person's word", f"resurgam start {instance}")
    if extension.revision < record.revision:
        return StateInWords("behind", Tone.BUSY, f"holds revision {extension.revision}, should hold {record.revision}")
    return _containers(record, extension.containers)


def _containers(record: InstanceRecord, reports: Sequence[ContainerReport | ContainerGlance]) -> StateInWords:
    instance = _of(record)
    wrong = [report for report in reports if not container_is_fine(report)]
    if not wrong:
        stopped = [report.name for report in reports if report.state is ContainerState.STOPPED]
        if stopped:
            return StateInWords(
                "partly stopped",
                Tone.OFF,
                f"stopped by a person's word: {', '.join(stopped)}",
                f"resurgam start {instance} {' '.join(stopped)}",
            )
        return StateInWords("running", Tone.GOOD)
    broken = [report for report in wrong if report.state not in ON_THE_WAY]
    why = "; ".join(container_words(report) for report in (broken or wrong))
    if not broken:
        return StateInWords("starting", Tone.BUSY, why)
    return StateInWords("degraded", Tone.BAD, why, f"resurgam logs {instance} {broken[0].name}")


def container_words(report: ContainerReport | ContainerGlance) -> str:
    """`redis crash loop (exited 139): detail`"""
    words = f"{report.name} {report.state.value.replace('_', ' ')}"
    if report.reason.value:
        code = f" {report.exit_code}" if report.exit_code else ""
        words += f" ({report.reason.value.replace('_', ' ')}{code})"
    return f"{words}: {report.detail}" if report.detail else words


def _of(record: InstanceRecord) -> str:
    return str(record.instance)
