"""The monitor's one loop: hear, judge, compare with what is expected, open and resolve incidents, tell the resurrector.

Laws:
- The loop's clock is read once a turn.
- A turn never waits for the bus, the journal or a cloud: questions and notifications have tasks of their own.
- A monitor that does not lead hears, asks and judges all the same, so that it can take over at once; only the leader
  writes and notifies.

Does not know: how anything is rebuilt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from healthmonitor.alerting import Alerting, AlertJournal
from healthmonitor.asker import AgentClient, Asker
from healthmonitor.channels.channel import Channel, Transition
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.evaluation import Expectations, evaluate, evaluate_monitor, evaluate_strangers
from healthmonitor.core.fleet import Fleet, FleetDecision
from healthmonitor.core.incidents import IncidentDecision, Incidents, instance_of
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.meltdown import Lost, Meltdown
from healthmonitor.core.notifying.desk import Rules
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    Event,
    Incident,
    InstanceRecord,
    Operation,
    OperationKind,
    Severity,
    Step,
    Switches,
)
from healthmonitor.core.strays import KINDS as STRAY_KINDS
from healthmonitor.core.strays import Stray, evaluate_strays
from healthmonitor.ears import Ears, SystemEvents
from healthmonitor.facts import Agents, Facts, Records
from healthmonitor.notifier import IncidentJournal, Notifier
from protocol.alert import Alert
from protocol.bus import Bus
from protocol.ids import AgentId, CloudName, DeploymentName, InstanceId, MonitorId, VmCid

log = structlog.get_logger("monitor")

SHORTEST_TURN_SECONDS = 0.02
"""However much is heard, turns are no closer than this."""
EVALUATIONS_MAX = 2_000
"""Instances looked at in one turn, the rest in the next: a start of a big fleet must not make the loop late."""
ALERT_IDS_KEPT = 1000
"""BOSH's agents send an alert again when they are not sure; those of the same id are one."""


class Journal(IncidentJournal, AlertJournal, Records, Protocol):
    def instances(self) -> Mapping[InstanceId, InstanceRecord]: ...
    def operations(self) -> Mapping[InstanceId, Operation]: ...
    def switches(self) -> Switches: ...


class AgentCalls(AgentClient, Agents, Protocol):
    """Agents are asked whether they live, and for log lines."""


class Resurrector(Protocol):
    def set_judgement(self, judgement: Judgement) -> None: ...
    def strays(self) -> Sequence[Stray] | None: ...
    def wake(self) -> None: ...


class Leadership(Protocol):
    def is_leader(self) -> bool: ...


class Monitor:
    """`fleet.started_at` should be when `run` begins. `new_id` names this run of the monitor."""

    def __init__(
        self,
        *,
        bus: Bus,
        fleet: Fleet,
        journal: Journal,
        agents: AgentCalls,
        clouds: Mapping[CloudName, Cloud],
        channels: Sequence[Channel],
        resurrector: Resurrector,
        leadership: Leadership,
        policy: Policy,
        monitor_id: MonitorId,
        unix_time: Callable[[], float],
        new_id: Callable[[], str],
        system_events: SystemEvents | None = None,
        rules: Rules | None = None,
    ) -> None:
        self.fleet = fleet
        self._bus = bus
        self._journal = journal
        self._resurrector = resurrector
        self._leadership = leadership
        self._policy = policy
        self._unix_time = unix_time
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._expectations = Expectations()
        self._meltdown = Meltdown(policy.meltdown)
        self._incidents: Incidents | None = None  # only while leading
        self._given_up = 0
        self._records: Mapping[InstanceId, InstanceRecord] = {}
        self._operations: Mapping[InstanceId, Operation] = {}
        self._dirty: dict[InstanceId, None] = {}
        self._found: dict[InstanceId, tuple[Deviation, ...]] = {}
        self._sizes: dict[DeploymentName, int] = {}  # expected VMs by deployment
        self._synced_at = float("-inf")
        self._alert_ids: OrderedDict[tuple[AgentId, str], None] = OrderedDict()
        self.judgement = Judgement(self._loop.time())
        self.turns = 0
        self.longest_turn_seconds = 0.0
        self.lag_seconds = 0.0
        self.last_turn_at = self._loop.time()
        self._facts = Facts(journal, fleet, agents, self._loop.time)
        self.alerting = Alerting(
            bus=bus,
            journal=journal,
            knowledge=self._facts,
            channels=channels,
            rules=rules or Rules(),
            policy=policy,
            is_leader=leadership.is_leader,
            unix_time=unix_time,
            tell=self._tell,
            site=monitor_id,
            changed=self.wake,
        )
        self.notifier = Notifier(journal, self.alerting, leadership.is_leader, unix_time)
        self._asker = Asker(fleet, bus, agents, clouds, policy.liveness, self._where, self.wake)
        self._ears = Ears(bus, fleet, monitor_id, new_id(), self.wake, self._alerted, system_events)

    async def run(self) -> None:
        """Until cancelled."""
        await self._ears.open()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ears.sing(lambda: self._policy.liveness.canary_interval_seconds), name="canary")
                tasks.create_task(self.notifier.run(), name="notifier")
                if not self.alerting.running:
                    tasks.create_task(self.alerting.run(), name="alerting")
                await self._turn_for_ever(tasks)
        finally:
            await self._ears.close()

    def wake(self) -> None:
        self._woken.set()

    def set_policy(self, policy: Policy) -> None:
        """Holds from the next turn on."""
        self._policy = policy
        self.alerting.set_policy(policy)
        self._meltdown.policy = policy.meltdown
        self._asker.policy = policy.liveness
        if self._incidents is not None:
            self._incidents.policy = policy.incidents
        self.fleet.set_policy(policy.liveness, self._loop.time())
        self._dirty.update(dict.fromkeys(self._records))
        self.wake()

    def open_incidents(self) -> Mapping[str, Incident]:
        return self._incidents.open() if self._incidents is not None else {}

    async def _turn_for_ever(self, tasks: asyncio.TaskGroup) -> None:
        loop = self._loop
        before = loop.time()
        while True:
            now = loop.time()
            self.lag_seconds = max(0.0, now - before - self._policy.turn_seconds)
            if self.lag_seconds > self._policy.liveness.loop_lag_seconds:
                log.warning("loop.lagged", seconds=round(self.lag_seconds, 2))
                self.fleet.own.lagged(self.lag_seconds, now)
            before = now
            self._woken.clear()
            wait = self._turn(now, tasks)
            self.turns += 1
            self.last_turn_at = now
            self.longest_turn_seconds = max(self.longest_turn_seconds, loop.time() - now)
            await asyncio.sleep(SHORTEST_TURN_SECONDS)
            if not self._woken.is_set():
                try:
                    async with asyncio.timeout(max(0.0, wait - SHORTEST_TURN_SECONDS)):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    def _turn(self, now: float, tasks: asyncio.TaskGroup) -> float:
        """One turn; returns after how many seconds the next is due at the latest."""
        if now - self._synced_at >= self._policy.turn_seconds:
            self._synced_at = now
            self._sync(now)
        decision = self.fleet.decide(now)
        self._judge(decision, now)
        self._asker.begin(decision.asks, decision.observes, tasks)
        self._evaluate(now)
        self._notify(now)
        return min(self._policy.turn_seconds, max(0.0, decision.next_check - now))

    def _sync(self, now: float) -> None:
        """Takes in what the journal says is expected; a record that is the same object did not change."""
        records = self._journal.instances()
        operations = {
            instance: operation
            for instance, operation in self._journal.operations().items()
            if operation.step is not Step.DONE
        }
        changed = _differing(self._records, records)
        changed.update(_differing(self._operations, operations))
        self._records, self._operations = records, operations
        if not changed:
            return
        self._dirty.update(changed)
        expected = {record.vm.agent_id: record.instance for record in records.values() if record.vm is not None}
        booting = {
            record.vm.agent_id
            for instance in operations
            if (record := records.get(instance)) is not None
            and record.vm is not None
            and _is_new_vm(record, operations[instance])
        }
        self.fleet.expect(expected, now, booting)
        self._sizes = {}
        for record in records.values():
            if record.vm is not None and not record.deleting:
                self._sizes[record.deployment] = self._sizes.get(record.deployment, 0) + 1

    def _judge(self, decision: FleetDecision, now: float) -> None:
        lost = {
            instance: missing
            for instance, missing in decision.judgement.missing.items()
            if (record := self._records.get(instance)) is not None and not record.deleting and not record.ignore
        }
        on_purpose = {
            instance
            for instance, operation in self._operations.items()
            if operation.kind in (OperationKind.RECREATE, OperationKind.DELETE)
        }
        overridden = self._unix_time() < self._journal.switches().meltdown_overridden_until
        meltdowns = self._meltdown.decide(
            {instance: missing.agent for instance, missing in lost.items() if instance not in on_purpose},
            self._sizes,
            overridden,
            now,
        )
        former = self.judgement
        self.judgement = replace(decision.judgement, missing=lost, meltdowns=meltdowns)
        self._resurrector.set_judgement(self.judgement)
        self._log_judgement(former, self.judgement)
        if (
            former.missing.keys() != lost.keys()
            or former.cannot_tell != self.judgement.cannot_tell
            or former.meltdowns.keys() != meltdowns.keys()
        ):
            self._resurrector.wake()

    def _evaluate(self, now: float) -> None:
        for agent in self.fleet.take_changed():
            instance = self.fleet.instance_of(agent)
            if instance is not None:
                self._dirty[instance] = None
        for instance in list(itertools.islice(self._dirty, EVALUATIONS_MAX)):
            del self._dirty[instance]
            record = self._records.get(instance)
            found: tuple[Deviation, ...] = ()
            if record is not None:
                view = self.fleet.view(record.vm.agent_id, now) if record.vm is not None else None
                operation = self._operations.get(instance)
                found = evaluate(record, operation, view, self._expectations, self._policy)
            if found:
                self._found[instance] = found
            else:
                self._found.pop(instance, None)
        if self._dirty:
            self.wake()

    def _notify(self, now: float) -> None:
        given_up = self.notifier.unwritten + self.notifier.overflowed
        if not self._leadership.is_leader() or given_up != self._given_up:
            # What is not written is not known to be open: when this monitor leads (again), it starts from the journal.
            self._incidents = None
            self._given_up = given_up
        if not self._leadership.is_leader():
            return
        if self._incidents is None:
            known = [incident for incident in self._journal.incidents().values() if incident.resolved_at is None]
            self._incidents = Incidents(self._policy.incidents, known)
            self.alerting.wake()
            self._remember_losses(now)
        deviations = [each for found in self._found.values() for each in found]
        deviations.extend(evaluate_strangers(self.fleet.strangers(now), self._policy))
        deviations.extend(evaluate_strays(self._resurrector.strays() or (), self._policy))
        hearing = self.fleet.hearing_now
        deviations.extend(evaluate_monitor(hearing, self._bus.connected, self.judgement.meltdowns, self._policy))
        deviations.extend(self.alerting.deviations())
        if self._incidents.refused:
            detail = f"{self._incidents.refused} beyond the {self._policy.incidents.incidents_max} that are kept"
            deviations.append(deviation("incidents_overflow", "fleet", detail, self._policy))
        decision = self._incidents.decide(deviations, self._unsure, now, self._unix_time())
        self._put(decision)

    def _put(self, decision: IncidentDecision) -> None:
        for incident in decision.opened:
            self.notifier.put(incident, Transition.OPENED)
        for incident in decision.changed:
            self.notifier.put(incident, Transition.CHANGED)
        for incident in decision.resolved:
            mended = self._facts.mended(incident)
            resolution = f"{incident.resolution}; {mended}" if mended else incident.resolution
            self.notifier.put(replace(incident, resolution=resolution), Transition.RESOLVED)

    def _tell(self, event: Event) -> None:
        self.notifier.put_event(event)

    def _unsure(self, incident: Incident) -> bool:
        """Whether nobody can know now if the incident is over."""
        if incident.kind in STRAY_KINDS:
            return self._resurrector.strays() is None
        instance = InstanceId(instance_of(incident))
        if not instance:
            return incident.kind.startswith(("agent_", "job_")) and bool(self.fleet.hearing_now.deaf)
        if instance in self._dirty:
            return True  # not evaluated yet
        record = self._records.get(instance)
        if (
            record is None
            or record.vm is None
            or record.ignore
            or incident.kind.startswith(("operation_", "instance_"))
        ):
            return False
        if self.fleet.verdict(record.vm.agent_id) is not Verdict.ALIVE:
            return True
        return not self.fleet.heartbeat_seen(record.vm.agent_id)

    def _remember_losses(self, now: float) -> None:
        """What was lost before this monitor led counts toward a meltdown: a restart must not forget it."""
        unix_now = self._unix_time()
        for operation in self._journal.operations().values():
            old_vm, age = operation.old_vm, unix_now - operation.started_at
            if operation.kind is not OperationKind.RESURRECT or old_vm is None:
                continue
            if 0 <= age <= self._policy.meltdown.window_seconds:
                self._meltdown.remember(Lost(operation.instance, old_vm.agent_id), now - age)

    def _alerted(self, agent: AgentId, alert: Alert) -> None:
        if not self._leadership.is_leader():
            return
        if alert.id:
            if (agent, alert.id) in self._alert_ids:
                return
            self._alert_ids[agent, alert.id] = None
            if len(self._alert_ids) > ALERT_IDS_KEPT:
                self._alert_ids.popitem(last=False)
        subject = self.fleet.instance_of(agent) or InstanceId(agent)
        detail = alert.summary or alert.title
        noted = deviation(
            "agent_alert",
            subject,
            detail[:1000],
            self._policy,
            severity=Severity(alert.severity),
            title=alert.title[:300],
        )
        at = self._unix_time()
        incident = Incident(
            key=f"{noted.key}:{alert.id or alert.created_at}",
            kind=noted.kind,
            subject=noted.subject,
            severity=noted.severity,
            title=noted.title,
            detail=noted.detail,
            opened_at=at,
            updated_at=at,
            resolved_at=at,
            next_step=noted.next_step,
        )
        self.notifier.put(incident, Transition.NOTED)

    def _where(self, agent: AgentId) -> tuple[CloudName, VmCid] | None:
        instance = self.fleet.instance_of(agent)
        record = self._records.get(instance) if instance is not None else None
        if record is None or record.vm is None or record.vm.vm_cid is None or record.vm.agent_id != agent:
            return None
        return record.group.cloud, record.vm.vm_cid

    def _log_judgement(self, former: Judgement, now: Judgement) -> None:
        for instance, missing in now.missing.items():
            if instance not in former.missing:
                log.warning("vm.missing", instance=instance, agent=missing.agent, evidence=missing.evidence)
        for instance in former.missing:
            if instance not in now.missing:
                log.info("vm.no_longer_missing", instance=instance)
        if bool(former.cannot_tell) != bool(now.cannot_tell):
            log.info("monitor.can_tell" if not now.cannot_tell else "monitor.cannot_tell", reason=now.cannot_tell)
        for scope, reason in now.meltdowns.items():
            if scope not in former.meltdowns:
                log.error("meltdown.began", scope=scope, reason=reason)
        for scope in former.meltdowns:
            if scope not in now.meltdowns:
                log.info("meltdown.ended", scope=scope)


def _is_new_vm(record: InstanceRecord, operation: Operation) -> bool:
    """Whether the operation has bound its new VM and not heard it yet: it may take its time to speak. One that was
    heard and falls silent in a later step is missing like any other, and so is one that is only updated."""
    if operation.kind is OperationKind.UPDATE or operation.step not in _NOT_HEARD_YET:
        return False
    return operation.old_vm is None or record.vm is None or operation.old_vm.agent_id != record.vm.agent_id


_NOT_HEARD_YET = frozenset({Step.MAKE_DISKS, Step.FREE_DISKS, Step.CREATE_VM, Step.ATTACH, Step.HEAR_AGENT})


def _differing(before: Mapping[InstanceId, object], now: Mapping[InstanceId, object]) -> dict[InstanceId, None]:
    """Keys that came, went, or stand for something else. Nearly always nothing: the comparison of whole mappings is by
    identity first, and fast."""
    if before == now:
        return {}
    changed = {key: None for key, value in now.items() if before.get(key) is not value}
    if changed or len(before) != len(now):
        changed.update((key, None) for key in before if key not in now)
    return changed
