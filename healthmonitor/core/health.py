"""Is an instance as its record says, by its agent's own word? For the end of an operation.

Law: only a heartbeat of this generation and revision counts; one of before proves nothing about now.
Does not know: deviations and incidents (`core/evaluation.py`), which judge instances that nobody works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from healthmonitor.core.records import InstanceRecord
from protocol.heartbeat import ContainerState, EngineState
from protocol.ids import ContainerName
from protocol.spec import Wanted, spec_hash

_AS_STARTED = frozenset({ContainerState.RUNNING, ContainerState.COMPLETED})
_AS_STOPPED = frozenset({ContainerState.STOPPED, ContainerState.COMPLETED})


class ReportedContainer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> ContainerState: ...
    @property
    def spec_hash(self) -> str: ...
    @property
    def detail(self) -> str: ...


class ReportedExtension(Protocol):
    @property
    def generation(self) -> int: ...
    @property
    def revision(self) -> int: ...
    @property
    def engine(self) -> EngineState: ...
    @property
    def containers(self) -> Sequence[ReportedContainer]: ...


class Reported(Protocol):
    """What is needed of a heartbeat, however much of it was decoded."""

    @property
    def job_state(self) -> str | None: ...
    @property
    def resurgam(self) -> ReportedExtension | None: ...


def lacking(record: InstanceRecord, heartbeat: Reported | None) -> list[str]:
    """What is not as it should be, one phrase each; empty when all is well."""
    if heartbeat is None:
        return ["its agent was not heard yet"]
    extension = heartbeat.resurgam
    if extension is None:
        # BOSH's agent says only this much.
        wanted = "running" if record.wanted is Wanted.STARTED else "stopped"
        return [] if heartbeat.job_state == wanted else [f"the agent says {heartbeat.job_state or 'nothing'}"]
    if extension.generation != record.generation or extension.revision != record.revision:
        return [
            f"the agent holds generation {extension.generation}, revision {extension.revision} instead of"
            f" {record.generation}, {record.revision}"
        ]
    if record.group.containers and extension.engine is not EngineState.UP:
        return [f"Docker Engine is {extension.engine.value}"]
    return _lacking_containers(record, {report.name: report for report in extension.containers})


def _lacking_containers(record: InstanceRecord, reports: dict[str, ReportedContainer]) -> list[str]:
    found: list[str] = []
    for container in record.group.containers:
        report = reports.get(container.name)
        if report is None:
            found.append(f"{container.name} is not reported")
        elif report.state not in _right_states(record, container.name):
            found.append(f"{container.name} is {report.state.value}" + (f" ({report.detail})" if report.detail else ""))
        elif report.spec_hash and report.spec_hash != spec_hash(container) and not _is_stopped(record, container.name):
            # One that is stopped by a person's word is made anew when it is started, not before.
            found.append(f"{container.name} still runs an older specification")
    return found


def _right_states(record: InstanceRecord, container: ContainerName) -> frozenset[ContainerState]:
    return _AS_STOPPED if _is_stopped(record, container) else _AS_STARTED


def _is_stopped(record: InstanceRecord, container: ContainerName) -> bool:
    return record.wanted is Wanted.STOPPED or container in record.stopped_containers
