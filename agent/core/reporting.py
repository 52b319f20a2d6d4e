"""What is said of each container: its state, why, since when.

Law: a report is made from the same situation as the decision, so it never says anything else than what is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from agent.core.actions import Action, Create, Pull, Remove, Start, Stop
from agent.core.backoff import is_crash_loop
from agent.core.ledger import RUNNING, Memory
from agent.core.reconcile import Situation
from agent.engine import ActualContainer, Health, Status
from protocol.heartbeat import ContainerReport, ContainerState, Reason
from protocol.ids import ContainerName
from protocol.spec import ContainerSpec, InstanceSpec, spec_hash

ENDED_BADLY = frozenset(
    {Reason.EXITED, Reason.OOM_KILLED, Reason.OOM_CHILD, Reason.UNHEALTHY, Reason.START_FAILED, Reason.MISSING}
)


@dataclass(frozen=True, slots=True)
class Since:
    """In which state each container is, and since when (loop seconds)."""

    states: Mapping[str, tuple[ContainerState, float]] = field(default_factory=dict)


def reports(situation: Situation, since: Since) -> tuple[tuple[ContainerReport, ...], Since]:
    """One per container of the specification, then the orphans."""
    found = [_of_wanted(situation, spec) for spec in situation.spec.containers]
    found += [_of_orphan(orphan) for orphan in situation.orphans]
    return _with_since(tuple(found), since, situation.now)


def reports_without_engine(
    spec: InstanceSpec, last: tuple[ContainerReport, ...], since: Since, now: float
) -> tuple[tuple[ContainerReport, ...], Since]:
    """While nothing can be known."""
    known = {report.name: report for report in last}
    found = tuple(
        ContainerReport(
            container.name,
            ContainerState.UNKNOWN,
            Reason.ENGINE_DOWN,
            restarts=known[container.name].restarts if container.name in known else 0,
            spec_hash=known[container.name].spec_hash if container.name in known else spec_hash(container),
        )
        for container in spec.containers
    )
    return _with_since(found, since, now)


def is_settled(report: ContainerReport, wanted: bool) -> bool:
    """As it should be, and nothing under way."""
    if not wanted:
        return report.state is ContainerState.STOPPED
    return report.state in (ContainerState.RUNNING, ContainerState.COMPLETED)


def _of_wanted(situation: Situation, spec: ContainerSpec) -> ContainerReport:
    name = spec.name
    seen, memory = situation.actual.get(name), situation.memory(name)
    state, reason, detail = _state(situation, name, seen, memory)
    return ContainerReport(
        name=name,
        state=state,
        reason=reason,
        restarts=max(0, memory.runs_seen - 1),
        exit_code=memory.exit_code,
        spec_hash=seen.spec_hash if seen else "",
        image_id=seen.image_id if seen else "",
        image_digest=seen.image_digest if seen else "",
        container_id=seen.container_id[:12] if seen else "",
        detail=detail,
    )


def _state(
    situation: Situation, name: ContainerName, seen: ActualContainer | None, memory: Memory
) -> tuple[ContainerState, Reason, str]:
    busy = situation.seen.busy.get(name)
    if busy is not None:
        return _of_busy(situation, name, busy, memory)
    runs = seen is not None and seen.status in RUNNING
    why_stopped = situation.why_stopped(name)
    if why_stopped is not Reason.NONE:
        state = ContainerState.STOPPING if runs else ContainerState.STOPPED
        waits_for = situation.held_up_by_dependent(name) if runs else None
        return state, why_stopped, f"waits for {waits_for} to stop" if waits_for else ""
    if seen is not None and runs:
        return _of_running(situation, seen, memory)
    if seen is not None and situation.is_finished(name):
        if seen.exit_code == 0:
            return ContainerState.COMPLETED, Reason.NONE, ""
        return ContainerState.FAILED, memory.reason, memory.detail
    return _of_not_running(situation, name, memory)


def _of_busy(
    situation: Situation, name: ContainerName, action: Action, memory: Memory
) -> tuple[ContainerState, Reason, str]:
    if _is_crash_looping(situation, memory):
        return ContainerState.CRASH_LOOP, memory.reason, memory.detail
    match action:
        case Pull():
            return ContainerState.PULLING, memory.reason, memory.detail
        case Create() | Remove():
            return ContainerState.CREATING, memory.reason, memory.detail
        case Start():
            return ContainerState.STARTING, memory.reason, memory.detail
        case Stop(why=why):
            return ContainerState.STOPPING, why, ""


def _of_running(situation: Situation, seen: ActualContainer, memory: Memory) -> tuple[ContainerState, Reason, str]:
    name = seen.name
    if seen.status is Status.PAUSED:
        return ContainerState.UNHEALTHY, Reason.PAUSED, "paused by somebody; `docker unpause` lets it go on"
    if name in situation.ending:
        return ContainerState.STOPPING, Reason.DEPENDENCY if name not in situation.replaced else memory.reason, ""
    if seen.health is Health.UNHEALTHY:
        return ContainerState.UNHEALTHY, Reason.UNHEALTHY, "its health check says unhealthy"
    if not situation.has_right_hash(name):
        reason = memory.reason if memory.reason in _OF_NEW_CONTAINER else Reason.SPECIFICATION_CHANGED
        return ContainerState.BACKING_OFF, reason, f"still runs as specified before; {memory.detail}".rstrip("; ")
    if _is_crash_looping(situation, memory):
        ran = int(situation.now - memory.run_since)
        good = int(situation.policy.backoff.good_run_seconds)
        return ContainerState.CRASH_LOOP, memory.reason, f"runs since {ran} s, trusted after {good} s; {memory.detail}"
    if seen.health is Health.STARTING:
        return ContainerState.STARTING, memory.reason, ""
    reported = situation.policy.oom_report_seconds
    if (
        memory.oom_since is not None
        and situation.now - memory.oom_since < reported
        and situation.specs[name].on_oom != "ignore"
    ):
        return ContainerState.RUNNING, Reason.OOM_CHILD, _oom_detail(situation, name)
    return ContainerState.RUNNING, memory.reason, memory.detail if memory.reason is not Reason.NONE else ""


_OF_NEW_CONTAINER = frozenset({Reason.IMAGE_MISSING, Reason.CREATE_FAILED})


def _of_not_running(situation: Situation, name: ContainerName, memory: Memory) -> tuple[ContainerState, Reason, str]:
    if _is_crash_looping(situation, memory):
        wait = max(0.0, memory.backoff.not_before - situation.now)
        return ContainerState.CRASH_LOOP, memory.reason, f"next try in {wait:.0f} s; {memory.detail}".rstrip("; ")
    disks = situation.unmounted_disks(name)
    if disks:
        return ContainerState.PENDING, Reason.DISK_NOT_MOUNTED, f"waits for disk {', '.join(disks)}"
    if memory.backoff.failures and situation.now < memory.backoff.not_before:
        return ContainerState.BACKING_OFF, memory.reason, memory.detail
    waits_for = situation.unready_dependency(name)
    if waits_for is not None:
        return ContainerState.PENDING, Reason.DEPENDENCY, f"waits for {waits_for}"
    return ContainerState.PENDING, memory.reason, memory.detail


def _of_orphan(orphan: ActualContainer) -> ContainerReport:
    return ContainerReport(
        name=orphan.name,
        state=ContainerState.ORPHANED,
        spec_hash=orphan.spec_hash,
        image_id=orphan.image_id,
        container_id=orphan.container_id[:12],
        detail="not in the specification; being removed",
    )


def _is_crash_looping(situation: Situation, memory: Memory) -> bool:
    return is_crash_loop(memory.backoff, situation.policy.backoff) and memory.reason in ENDED_BADLY


def _oom_detail(situation: Situation, name: ContainerName) -> str:
    kills = situation.note(name).oom_kills
    limit = situation.specs[name].mem_limit_bytes
    at = f"; the limit is {limit // (1024 * 1024)} MiB" if limit else ""
    return f"{kills} processes of this run were killed for lack of memory{at}"


def _with_since(
    found: tuple[ContainerReport, ...], since: Since, now: float
) -> tuple[tuple[ContainerReport, ...], Since]:
    states: dict[str, tuple[ContainerState, float]] = {}
    for report in found:
        key = report.name if report.state is not ContainerState.ORPHANED else report.container_id
        old = since.states.get(key)
        states[key] = old if old is not None and old[0] is report.state else (report.state, now)
    return found, Since(states)


def with_ages(found: tuple[ContainerReport, ...], since: Since, now: float) -> tuple[ContainerReport, ...]:
    """The reports with `since_seconds` as of now."""
    return tuple(_aged(report, since, now) for report in found)


def _aged(report: ContainerReport, since: Since, now: float) -> ContainerReport:
    key = report.name if report.state is not ContainerState.ORPHANED else report.container_id
    entry = since.states.get(key)
    return msgspec.structs.replace(report, since_seconds=round(max(0.0, now - entry[1]), 1) if entry else 0.0)
