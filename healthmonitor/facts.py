"""What is known of an incident at this moment, for its notification: where it is, what is being done, what was logged.

Law: from memory, but for the last log lines: those are asked of the agent, for a moment only, and left out when it does
not answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import structlog

from healthmonitor.core.fleet import Fleet
from healthmonitor.core.incidents import instance_of
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.notifying import wording
from healthmonitor.core.notifying.notification import Item
from healthmonitor.core.notifying.routing import Subject
from healthmonitor.core.records import Incident, InstanceRecord, Operation
from protocol.bus import BusError
from protocol.envelope import RequestRefused
from protocol.heartbeat import ContainerGlance
from protocol.ids import AgentId, Generation, InstanceId

log = structlog.get_logger("facts")

LOGS_OF_KINDS = frozenset({"container_not_running", "operation_unhealthy"})


class Records(Protocol):
    def instance(self, instance: InstanceId) -> InstanceRecord | None: ...
    def operation(self, instance: InstanceId) -> Operation | None: ...


class Agents(Protocol):
    async def call(
        self, agent: AgentId, generation: Generation | None, method: str, *arguments: Any, timeout_seconds: float
    ) -> Any: ...


class Facts:
    """`now`: the loop's clock."""

    def __init__(self, records: Records, fleet: Fleet, agents: Agents, now: Callable[[], float]) -> None:
        self._records = records
        self._fleet = fleet
        self._agents = agents
        self._now = now

    def subject(self, incident: Incident) -> Subject:
        instance = instance_of(incident)
        record = self._records.instance(InstanceId(instance)) if instance else None
        return wording.subject_of(incident, instance, record)

    def mended(self, incident: Incident) -> str:
        instance = instance_of(incident)
        return wording.mended(incident, self._records.operation(InstanceId(instance))) if instance else ""

    def item_maker(self, incidents: Mapping[str, Incident], unix_now: float) -> Callable[[Incident], Item]:
        """`incidents`: all that are open, counted by what explains them."""
        affected = Counter(each.inhibited_by for each in incidents.values() if each.inhibited_by)

        def make(incident: Incident) -> Item:
            instance = InstanceId(instance_of(incident))
            record = self._records.instance(instance) if instance else None
            operation = self._records.operation(instance) if instance else None
            container = self._container(record, incident) if record is not None else None
            return wording.item(incident, record, operation, container, affected[incident.key], unix_now)

        return make

    async def log_lines(self, incidents: Iterable[Incident], most: int, seconds: float) -> dict[str, tuple[str, ...]]:
        """incident → the last lines of its container. Those that did not come in time are missing."""
        wanted = [each for each in incidents if each.kind in LOGS_OF_KINDS and each.resolved_at is None]
        if not wanted or not most or not seconds:
            return {}
        found = await asyncio.gather(*(self._lines(each, most, seconds) for each in wanted))
        return {each.key: lines for each, lines in zip(wanted, found, strict=True) if lines}

    async def _lines(self, incident: Incident, most: int, seconds: float) -> tuple[str, ...]:
        instance = InstanceId(instance_of(incident))
        record = self._records.instance(instance)
        if record is None or record.vm is None or self._fleet.verdict(record.vm.agent_id) is not Verdict.ALIVE:
            return ()
        name = incident.subject.removeprefix(instance).lstrip("/")
        names = [each.name for each in record.group.containers if each.name == name]
        if not names:
            return ()
        try:
            text = await self._agents.call(
                record.vm.agent_id, record.vm.generation, "logs", names[0], most, timeout_seconds=seconds
            )
        except (BusError, RequestRefused) as error:
            log.info("alert.without_log_lines", incident=incident.key, error=str(error))
            return ()
        return tuple(str(text).splitlines()[-most:])

    def _container(self, record: InstanceRecord, incident: Incident) -> ContainerGlance | None:
        if record.vm is None:
            return None
        view = self._fleet.view(record.vm.agent_id, self._now())
        extension = view.glance.resurgam if view is not None and view.glance is not None else None
        name = incident.subject.removeprefix(record.instance).lstrip("/")
        containers = extension.containers if extension is not None else ()
        return next((each for each in containers if each.name == name), None)
