"""What is expected of one instance, and what is: the deviations.

Laws:
- One deviation for one thing: a container that first exits and then loops stays the same deviation with another
  reason, so that its incident has one thread.
- While an operation is at work on an instance, what the operation is there to change is not a deviation; what keeps
  the operation from going on is.
- What a missing VM last said is kept, so that its containers' incidents stay open, inhibited, until somebody knows.

Does not know: how long anything has lasted (incidents), what to do about it (the resurrector).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from healthmonitor.core import disk_growth, disk_use
from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.liveness import Hearing
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    DiskBinding,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    Severity,
    Step,
)
from protocol.heartbeat import (
    ContainerGlance,
    ContainerState,
    DiskGlance,
    DiskState,
    EngineState,
    ExtensionGlance,
    Reason,
)
from protocol.ids import ContainerName
from protocol.spec import Wanted, spec_hash

_FINE = frozenset({ContainerState.RUNNING, ContainerState.COMPLETED})
_AT_REST = frozenset({ContainerState.STOPPED, ContainerState.COMPLETED, ContainerState.FAILED})
_SLOW = frozenset({ContainerState.PULLING, ContainerState.STARTING})
"""Takes long in good health too: an incident only after `healthy_seconds`."""
_AT_ONCE = frozenset({ContainerState.CRASH_LOOP, ContainerState.FAILED})

_WORDS: Mapping[Reason, str] = {
    Reason.NONE: "",
    Reason.EXITED: "its process ended",
    Reason.OOM_KILLED: "it was killed for want of memory",
    Reason.OOM_CHILD: "a child process was killed for want of memory",
    Reason.UNHEALTHY: "its health check fails",
    Reason.MISSING: "it is not there",
    Reason.IMAGE_MISSING: "its image cannot be had",
    Reason.PORT_IN_USE: "a port that it publishes is taken",
    Reason.CREATE_FAILED: "it cannot be created",
    Reason.START_FAILED: "it cannot be started",
    Reason.DEPENDENCY: "it waits for a container that it depends on",
    Reason.DISK_NOT_MOUNTED: "it waits for its disk",
    Reason.ENGINE_DOWN: "the engine is down",
    Reason.SPECIFICATION_CHANGED: "its specification changed",
    Reason.PAUSED: "somebody paused it",
    Reason.OPERATOR: "a person stopped it",
    Reason.ISOLATED: "the VM is cut off, and its group says to stop",
    Reason.OTHER: "for a reason that only a newer monitor knows",
}

FullIn = Callable[[str], float | None]
"""Disk → seconds."""

GROUPS_MAX = 10_000
"""More than there are groups: what is beyond is left over from former revisions."""

_REPLACING = frozenset({OperationKind.CREATE, OperationKind.RECREATE, OperationKind.DELETE, OperationKind.RESURRECT})


class Expectations:
    """What is the same for all instances of a group of one revision: the hashes of its containers, and what an agent
    last said that was found to be as expected. Both take longer than all the rest of evaluating an instance."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[object, ...], dict[ContainerName, str]] = {}
        self._good: dict[tuple[object, ...], tuple[ContainerGlance, ...]] = {}

    def hashes(self, record: InstanceRecord) -> Mapping[ContainerName, str]:
        key = _group(record)
        known = self._hashes.get(key)
        if known is None:
            if len(self._hashes) >= GROUPS_MAX:
                self._hashes.clear()
            known = self._hashes[key] = {each.name: spec_hash(each) for each in record.group.containers}
        return known

    def is_known_good(self, record: InstanceRecord, containers: tuple[ContainerGlance, ...]) -> bool:
        return self._good.get(_group(record)) == containers

    def note_good(self, record: InstanceRecord, containers: tuple[ContainerGlance, ...]) -> None:
        if len(self._good) >= GROUPS_MAX:
            self._good.clear()
        self._good[_group(record)] = containers


def _group(record: InstanceRecord) -> tuple[object, ...]:
    pinned = tuple(sorted(record.pinned_images.items())) if record.pinned_images else ()
    return record.deployment, record.group.name, record.deployment_revision, pinned


def evaluate(
    record: InstanceRecord,
    operation: Operation | None,
    view: AgentView | None,
    expectations: Expectations,
    policy: Policy,
    full_in_seconds: FullIn = lambda disk: None,
) -> tuple[Deviation, ...]:
    """The deviations of one instance. `operation`: the one that is under way, or None. `view`: of the agent that it is
    bound to. `full_in_seconds`: when each of its disks will be full, where that can be told."""
    if record.ignore or (
        operation is None
        and view is not None
        and _all_is_well(record, view, expectations, policy)
        and _disks_are_fine(record, view, policy, full_in_seconds)
    ):
        return ()
    found = list(_of_operation(record, operation, policy))
    replacing = operation is not None and operation.kind in _REPLACING
    if record.vm is None or record.vm.vm_cid is None or view is None:
        if operation is None and not record.deleting:
            found.append(deviation("instance_has_no_vm", record.instance, "no operation is making one", policy))
        return tuple(found)
    if record.deleting or (operation is not None and operation.kind in (OperationKind.DELETE, OperationKind.RECREATE)):
        return tuple(found)
    found.extend(_of_vm(record, view, policy))
    extension = view.glance.resurgam if view.glance is not None else None
    if extension is None:
        if view.glance is not None and view.glance.job_state == "failing":
            found.append(deviation("job_failing", record.instance, "job_state is failing", policy))
        return tuple(found)
    before_content = len(found)
    in_progress = operation is not None and operation.hold is not Hold.UNHEALTHY
    building = in_progress and replacing and operation is not None and not _same_vm(record, operation)
    stopped_on_purpose = in_progress and operation is not None and operation.kind is OperationKind.CHANGE_DISKS
    if stopped_on_purpose:
        found.extend(_of_engine(record, extension, policy))
    elif not building:
        found.extend(_of_engine(record, extension, policy))
        found.extend(_of_disks(record, extension, policy, full_in_seconds))
        found.extend(_of_containers(record, extension, policy))
    if not in_progress:
        found.extend(_of_specification(record, extension, expectations, policy))
    if extension.isolated and view.verdict is Verdict.ALIVE:
        found.append(deviation("isolated", record.instance, "its heartbeat says so", policy))
    if not in_progress and len(found) == before_content and _all_should_run(record):
        expectations.note_good(record, extension.containers)
    return tuple(found)


def _all_is_well(record: InstanceRecord, view: AgentView, expectations: Expectations, policy: Policy) -> bool:
    """The short way for nearly every instance at nearly every time; False says nothing."""
    extension = view.glance.resurgam if view.glance is not None else None
    if (
        extension is None
        or view.verdict is not Verdict.ALIVE
        or view.heartbeats_missing_seconds > view.lease_seconds
        or extension.engine is not EngineState.UP
        or extension.isolated
        or extension.revision != record.revision
        or extension.generation != record.generation
        or record.vm is None
        or record.vm.vm_cid is None
        or record.deleting
        or not _all_should_run(record)
    ):
        return False
    if record.disks:
        mounted = {report.name for report in extension.disks if report.state is DiskState.MOUNTED}
        if any(disk.cid is not None and disk.name not in mounted for disk in record.disks):
            return False
    return expectations.is_known_good(record, extension.containers)


def _all_should_run(record: InstanceRecord) -> bool:
    return record.wanted is Wanted.STARTED and not record.stopped_containers


def evaluate_strangers(strangers: Iterable[AgentView], policy: Policy) -> Iterator[Deviation]:
    for view in strangers:
        if view.glance is None or view.verdict is Verdict.MISSING:
            continue
        if view.heartbeats_missing_seconds > view.suspect_after_seconds:
            continue  # it speaks no more: most likely the VM that was just replaced
        extension = view.glance.resurgam
        if extension is not None and view.claims:
            yield deviation(
                "agent_duplicate",
                view.agent,
                f"it says that it is {view.claims}, generation {extension.generation}; the record names another",
                policy,
                instance=view.claims,
            )
            continue
        if view.known_seconds >= policy.liveness.stranger_after_seconds:
            named = f"deployment {view.glance.deployment or '(none)'}, job {view.glance.job or '(none)'}"
            yield deviation("agent_stranger", view.agent, named, policy, after_seconds=0.0)
        if view.glance.job_state == "failing":
            yield deviation("job_failing", view.agent, "job_state is failing", policy)


def may_be_stranger_still(view: AgentView | None, listened_seconds: float, policy: Policy) -> bool:
    """Of an agent that was reported by who watched before, and of which nothing is found now: whether it was only not
    heard yet, or not for long enough to be reported. A monitor's restart must neither end nor repeat what is told."""
    if view is None:
        return listened_seconds < policy.liveness.stranger_after_seconds
    if view.verdict is Verdict.MISSING or view.heartbeats_missing_seconds > view.suspect_after_seconds:
        return False
    return view.known_seconds < policy.liveness.stranger_after_seconds + policy.liveness.lease_seconds


def evaluate_monitor(
    hearing: Hearing, bus_connected: bool, meltdowns: Mapping[str, str], policy: Policy
) -> Iterator[Deviation]:
    """What is wrong with the monitor's own view, and with the fleet as a whole."""
    if not bus_connected:
        yield deviation("bus_lost", "monitor", "the connection to the bus is down; it is tried again and again", policy)
    elif hearing.deaf:
        yield deviation("cannot_tell", "monitor", hearing.deaf, policy)
    if hearing.mass:
        yield deviation("mass_silence", "fleet", hearing.mass, policy)
    for scope, reason in meltdowns.items():
        yield deviation("meltdown", scope, reason, policy)


def _same_vm(record: InstanceRecord, operation: Operation) -> bool:
    """Whether the operation has not yet replaced the VM that it was begun for."""
    return operation.old_vm is not None and record.vm is not None and operation.old_vm.agent_id == record.vm.agent_id


def _of_operation(record: InstanceRecord, operation: Operation | None, policy: Policy) -> Iterator[Deviation]:
    if operation is None or operation.step is Step.DONE:
        return
    what = f"{operation.kind.value} is at step {operation.step.value}"
    detail = f"{what}: {operation.error}" if operation.error else what
    match operation.hold:
        case Hold.UNFENCED:
            yield deviation("operation_unfenced", record.instance, detail, policy)
        case Hold.RETRYING:
            yield deviation("operation_retrying", record.instance, f"{detail} (try {operation.attempts})", policy)
        case Hold.UNHEALTHY:
            yield deviation("operation_unhealthy", record.instance, detail, policy)
        case Hold.BUDGET:
            yield deviation(
                "operation_held",
                record.instance,
                f"{detail}; the hourly budget is used up",
                policy,
                severity=Severity.ERROR,
            )
        case Hold.DISABLED | Hold.PAUSED | Hold.MAINTENANCE | Hold.MELTDOWN | Hold.CANNOT_TELL:
            yield deviation("operation_held", record.instance, f"{detail}; {operation.hold.value}", policy)
        case Hold.NONE | Hold.CONCURRENCY:
            return


def _of_vm(record: InstanceRecord, view: AgentView, policy: Policy) -> Iterator[Deviation]:
    match view.verdict:
        case Verdict.MISSING:
            yield deviation("vm_missing", record.instance, view.evidence, policy)
        case Verdict.SUSPECT:
            yield deviation("vm_suspect", record.instance, view.evidence, policy)
        case Verdict.ALIVE if view.heartbeats_missing_seconds > 2 * view.lease_seconds:
            yield deviation("heartbeats_missing", record.instance, "it answers when asked", policy)
        case Verdict.ALIVE | Verdict.UNHEARD | Verdict.CANNOT_TELL:
            return


def _of_engine(record: InstanceRecord, extension: ExtensionGlance, policy: Policy) -> Iterator[Deviation]:
    if extension.engine is EngineState.UP:
        return
    after = policy.resurrection.healthy_seconds if extension.engine is EngineState.STARTING else None
    yield deviation(
        "engine_not_up", record.instance, f"the engine is {extension.engine.value}", policy, after_seconds=after
    )


def _disks_are_fine(record: InstanceRecord, view: AgentView, policy: Policy, full_in_seconds: FullIn) -> bool:
    extension = view.glance.resurgam if view.glance is not None else None
    if extension is None or not record.disks:
        return True
    if any(disk.given_up_why for disk in record.disks):
        return False
    if any(disk.grow is not None for disk in record.group.disks) and any(_growth_ended(record, extension)):
        return False
    return all(disk_use.is_fine(report, full_in_seconds(report.name), policy.disks) for report in extension.disks)


def _growth_ended(record: InstanceRecord, extension: ExtensionGlance) -> Iterator[tuple[DiskBinding, str]]:
    """Disks that would grow by themselves once more, and may not."""
    used = {report.name: report.percent for report in extension.disks}
    wanted = {disk.name: disk for disk in record.group.disks}
    for binding in record.disks:
        why = disk_growth.at_limit(binding, wanted.get(binding.name), used.get(binding.name, 0.0))
        if why:
            yield binding, why


def _of_disks(
    record: InstanceRecord, extension: ExtensionGlance, policy: Policy, full_in_seconds: FullIn
) -> Iterator[Deviation]:
    reports = {report.name: report for report in extension.disks}
    for disk, why in _growth_ended(record, extension):
        yield deviation("disk_growth_limit", f"{record.instance}/{disk.name}", why, policy, instance=record.instance)
    for disk in record.disks:
        if disk.cid is None:
            continue
        subject = f"{record.instance}/{disk.name}"
        report: DiskGlance | None = reports.get(disk.name)
        if report is None or report.state is DiskState.MISSING:
            why = report.detail if report is not None else "the agent does not report it"
            yield deviation("disk_missing", subject, f"{disk.cid}: {why}", policy, instance=record.instance)
            continue
        if disk.given_up_why:
            yield deviation("disk_not_changed", subject, disk.given_up_why, policy, instance=record.instance)
        for kind, detail in disk_use.complaints(report, full_in_seconds(report.name), policy.disks):
            yield deviation(kind, subject, detail, policy, instance=record.instance)
        if report.state is DiskState.MOUNTED:
            continue
        kind = {
            DiskState.ATTACHED: "disk_not_mounted",
            DiskState.READ_ONLY: "disk_read_only",
            DiskState.FAILED: "disk_failed",
            DiskState.UNKNOWN: "disk_not_mounted",
        }[report.state]
        yield deviation(kind, subject, f"{disk.cid}: {report.detail}", policy, instance=record.instance)


def _of_containers(record: InstanceRecord, extension: ExtensionGlance, policy: Policy) -> Iterator[Deviation]:
    reports = {report.name: report for report in extension.containers}
    expected = set()
    for container in record.group.containers:
        expected.add(str(container.name))
        report = reports.get(container.name)
        running_wanted = record.wanted is Wanted.STARTED and container.name not in record.stopped_containers
        if running_wanted:
            found = _not_running(record, container.name, report, extension, policy)
            if found is not None:
                yield found
        elif report is not None and report.state not in _AT_REST:
            yield deviation(
                "container_not_stopped",
                f"{record.instance}/{container.name}",
                f"it is {report.state.value}",
                policy,
                instance=record.instance,
            )
    for name, report in reports.items():
        if name not in expected and report.state is ContainerState.ORPHANED:
            subject = f"{record.instance}/{name}"
            yield deviation("container_orphaned", subject, report.detail, policy, instance=record.instance)


def _not_running(
    record: InstanceRecord, name: str, report: ContainerGlance | None, extension: ExtensionGlance, policy: Policy
) -> Deviation | None:
    subject = f"{record.instance}/{name}"
    if report is None:
        if extension.revision < record.revision:
            return None  # it does not know of it yet: that is drift
        return deviation(
            "container_not_running", subject, "the agent does not report it", policy, instance=record.instance
        )
    if report.state in _FINE:
        return None
    after: float | None = None
    if report.state in _SLOW:
        after = policy.resurrection.healthy_seconds
    elif report.state in _AT_ONCE:
        after = policy.incidents.after_seconds
    word = report.state.value.replace("_", " ")
    reason = _WORDS[report.reason]
    detail = "; ".join(
        part
        for part in (
            f"{word}: {reason}" if reason else word,
            f"exit code {report.exit_code}" if report.exit_code is not None else "",
            f"{report.restarts} restarts" if report.restarts else "",
            report.detail,
        )
        if part
    )
    return deviation(
        "container_not_running",
        subject,
        detail,
        policy,
        instance=record.instance,
        title=f"container {subject} does not run: {reason or word}",
        after_seconds=after,
    )


def _of_specification(
    record: InstanceRecord, extension: ExtensionGlance, expectations: Expectations, policy: Policy
) -> Iterator[Deviation]:
    differs: list[str] = []
    if extension.generation != record.generation:
        differs.append(f"generation {extension.generation} instead of {record.generation}")
    if extension.revision != record.revision:
        differs.append(f"revision {extension.revision} instead of {record.revision}")
    else:
        hashes = expectations.hashes(record)
        differs.extend(
            f"container {report.name} has another specification"
            for report in extension.containers
            if report.spec_hash
            and report.name in hashes
            and report.spec_hash != hashes[ContainerName(report.name)]
            # One that is stopped by a person's word is made anew when it is started.
            and record.wanted is Wanted.STARTED
            and report.name not in record.stopped_containers
        )
    if differs:
        yield deviation("specification_drift", record.instance, "; ".join(differs), policy)
