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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from healthmonitor.alerting import Alerting, AlertJournal
from healthmonitor.asker import AgentClient, Asker
from healthmonitor.bus_alarm import AlarmNote
from healthmonitor.channels.channel import Channel, Transition
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.evaluation import evaluate_monitor, may_be_stranger_still
from healthmonitor.core.fleet import Fleet, FleetDecision
from healthmonitor.core.incidents import IncidentDecision, Incidents, instance_of
from healthmonitor.core.judgement import Judgement, Loss, Missing, Verdict
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
    SpareRecord,
    SpareState,
    Switches,
)
from healthmonitor.core.spares import KINDS as SPARE_KINDS
from healthmonitor.core.spares import evaluate_spares, key_of_place, place
from healthmonitor.core.strays import KINDS as STRAY_KINDS
from healthmonitor.core.strays import Stray, evaluate_strays
from healthmonitor.core.survey import Survey
from healthmonitor.ears import Ears, SystemEvents
from healthmonitor.facts import Agents, Facts, Records
from healthmonitor.notifier import IncidentJournal, Notifier
from protocol.alert import Alert
from protocol.bus import Bus
from protocol.ids import AgentId, CloudName, InstanceId, MonitorId, VmCid

log = structlog.get_logger("monitor")

SHORTEST_TURN_SECONDS = 0.02
"""However much is heard, turns are no closer than this …"""
TURNS_APART = 2.0
"""… and no closer than this many times what the last one took: two thirds of the time are for hearing, however much
there is to judge. Never more than Policy.turn_seconds."""
LATELY_SECONDS = 60.0


class Journal(IncidentJournal, AlertJournal, Records, Protocol):
    def instances(self) -> Mapping[InstanceId, InstanceRecord]: ...
    def operations(self) -> Mapping[InstanceId, Operation]: ...
    def spares(self) -> Mapping[str, SpareRecord]: ...
    def switches(self) -> Switches: ...


class AgentCalls(AgentClient, Agents, Protocol):
    """Agents are asked whether they live, and for log lines."""


class Resurrector(Protocol):
    def set_judgement(self, judgement: Judgement) -> None:
        """Wakes whomever of its work what is new concerns."""
        ...

    def strays(self) -> Sequence[Stray] | None: ...
    def take_losses(self) -> Sequence[Loss] | None: ...


class Leadership(Protocol):
    def is_leader(self) -> bool: ...


class Monitor:
    """`new_id` names this run of the monitor. `beside`: what is wrong with what this loop does not look at: other
    monitors, records."""

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
        beside: Callable[[Policy], Iterable[Deviation]] = lambda policy: (),
        link: Callable[[str], str] = lambda incident_key: "",
        alarm_note: AlarmNote | None = None,
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
        self._survey = Survey()
        self._taken_at = float("-inf")
        self._meltdown = Meltdown(policy.meltdown)
        self._losses_known = False  # those of before this monitor led
        self._incidents: Incidents | None = None  # only while leading
        self._given_up = 0
        self._lost_of: tuple[object, object, object] = (None, None, None)  # what `_lost` was asked last
        self._beside = beside
        self._spares: Mapping[str, SpareRecord] = {}
        self.judgement = Judgement(self._loop.time())
        self.turns = 0
        self.longest_turn_seconds = 0.0
        self.turn_seconds = 0.0  # in all turns together
        self._longest_lately = [0.0, 0.0]  # in this minute and the one before
        self._lately_began_at = self._loop.time()
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
            alert_of=self._incident_of_alert,
            site=monitor_id,
            changed=self.wake,
            link=link,
            note=alarm_note,
            melting=lambda: self.judgement.brewing.union(self.judgement.meltdowns),
        )
        self.notifier = Notifier(journal, self.alerting, leadership.is_leader, unix_time)
        self._asker = Asker(fleet, bus, agents, clouds, policy.liveness, self._where, self.wake)
        self._ears = Ears(bus, fleet, monitor_id, new_id(), self.wake, self.alerting.ring, system_events)

    async def run(self) -> None:
        """Until cancelled."""
        await self._ears.open()
        self.fleet.own.begins(self._loop.time())
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
        self._survey.look_at_all()
        self.wake()

    @property
    def spares(self) -> Mapping[str, SpareRecord]:
        return self._spares

    @property
    def longest_turn_lately_seconds(self) -> float:
        return max(self._longest_lately)

    def _note_turn(self, seconds: float, now: float) -> None:
        self.turn_seconds += seconds
        self.longest_turn_seconds = max(self.longest_turn_seconds, seconds)
        if now - self._lately_began_at > LATELY_SECONDS:
            self._lately_began_at = now
            self._longest_lately = [0.0, self._longest_lately[0]]
        self._longest_lately[0] = max(self._longest_lately[0], seconds)

    @property
    def canary_seconds(self) -> float:
        """How long its own heartbeat was last on its way through the bus, what waits here unread included."""
        return self._ears.canary_seconds

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
            took = loop.time() - now
            self._note_turn(took, now)
            apart = min(max(SHORTEST_TURN_SECONDS, TURNS_APART * took), self._policy.turn_seconds)
            await asyncio.sleep(apart)
            if not self._woken.is_set():
                try:
                    async with asyncio.timeout(max(0.0, wait - apart)):
                        await self._woken.wait()
                except TimeoutError:
                    pass

    def _turn(self, now: float, tasks: asyncio.TaskGroup) -> float:
        """One turn; returns after how many seconds the next is due at the latest."""
        if now - self._taken_at >= self._policy.turn_seconds:
            self._taken_at = now
            self._survey.take(self._journal.instances(), self._journal.operations())
            self._take_spares(now)
        self._survey.sync(self.fleet, now)
        self._remember_losses(now)
        decision = self.fleet.decide(now)
        self._judge(decision, now)
        self._asker.begin(decision.asks, decision.observes, tasks)
        self._survey.evaluate(self.fleet, now, self._policy)
        if self._survey.unfinished():
            self.wake()
        self._notify(now)
        return min(self._policy.turn_seconds, max(0.0, decision.next_check - now))

    def full_in_seconds(self, instance: InstanceId, disk: str) -> float | None:
        """When that disk will be full at its present growth; None when it does not grow, or too little was seen."""
        return self._survey.full_in_seconds(instance, disk)

    def _take_spares(self, now: float) -> None:
        """Their agents are expected too. That of one that is taken stays where it is: it is its instance's as soon as
        that names it."""
        before, self._spares = self._spares, self._journal.spares()
        if self._spares is before:
            return
        for key in before:
            if key not in self._spares:
                self.fleet.bind(place(key), None, now)
        for key, spare in self._spares.items():
            if spare is not before.get(key) and spare.state is not SpareState.TAKEN:
                self.fleet.bind(place(key), spare.agent_id, now, spare.state is SpareState.MAKING)

    def _judge(self, decision: FleetDecision, now: float) -> None:
        former = self.judgement
        lost, lost_spares = self._lost(decision.judgement.missing)
        suspects = decision.judgement.suspects
        if self._spares:
            suspects = suspects.difference(map(place, self._spares))  # those are nobody's
        on_purpose = {
            instance
            for instance, operation in self._survey.operations.items()
            if operation.kind in (OperationKind.RECREATE, OperationKind.DELETE)
        }
        overridden = self._unix_time() < self._journal.switches().meltdown_overridden_until
        meltdowns = self._meltdown.decide(
            {instance: missing.agent for instance, missing in lost.items() if instance not in on_purpose},
            self._survey.sizes,
            overridden,
            now,
            suspects,
        )
        unmeant = suspects.difference(on_purpose) if on_purpose else suspects
        brewing = self._meltdown.brewing(unmeant, self._survey.sizes, overridden)
        self.judgement = replace(
            decision.judgement,
            missing=lost,
            meltdowns=meltdowns,
            suspects=suspects,
            brewing=brewing,
            lost_spares=lost_spares,
        )
        self._resurrector.set_judgement(self.judgement)
        self._log_judgement(former, self.judgement)
        if former.brewing != brewing or former.meltdowns.keys() != meltdowns.keys():
            self.alerting.look_again()  # whoever waited for that is told now

    def _lost(self, missing: Mapping[InstanceId, Missing]) -> tuple[Mapping[InstanceId, Missing], Mapping[str, str]]:
        """Of those that are missing the instances that are to be there, and the spares. The same objects as before
        while they are what they were."""
        records, spares = self._survey.records, self._spares
        if self._lost_of[0] is missing and self._lost_of[1] is records and self._lost_of[2] is spares:
            return self.judgement.missing, self.judgement.lost_spares
        self._lost_of = (missing, records, spares)
        lost = {
            instance: each
            for instance, each in missing.items()
            if (record := records.get(instance)) is not None and not record.deleting and not record.ignore
        }
        lost_spares = {
            key: each.evidence
            for instance, each in missing.items()
            if instance not in lost and (key := key_of_place(instance)) and key in spares
        }
        return lost, lost_spares

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
        deviations = self._survey.deviations()
        deviations.extend(evaluate_strays(self._resurrector.strays() or (), self._policy))
        deviations.extend(evaluate_spares(self._spares.values(), self._policy))
        hearing = self.fleet.hearing_now
        deviations.extend(evaluate_monitor(hearing, self._bus.connected, self.judgement.meltdowns, self._policy))
        deviations.extend(self.alerting.deviations())
        deviations.extend(self._beside(self._policy))
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
        if incident.kind in SPARE_KINDS:
            return False
        if incident.kind in STRAY_KINDS:
            return self._resurrector.strays() is None
        if incident.kind == "meltdown":
            return not self._losses_known
        instance = InstanceId(instance_of(incident))
        if not instance:
            deaf = incident.kind.startswith(("agent_", "job_", "monitor_")) and bool(self.fleet.hearing_now.deaf)
            return deaf or (
                incident.kind == "agent_stranger" and self._may_be_stranger_still(AgentId(incident.subject))
            )
        if self._survey.waits_for(instance):
            return True  # not evaluated yet
        record = self._survey.records.get(instance)
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

    def _may_be_stranger_still(self, agent: AgentId) -> bool:
        now = self._loop.time()
        listened_seconds = now - self.fleet.hearing_now.since
        expected = self.fleet.instance_of(agent) is not None
        return not expected and may_be_stranger_still(self.fleet.view(agent, now), listened_seconds, self._policy)

    def _remember_losses(self, now: float) -> None:
        """What was lost before this monitor led counts toward a meltdown: a restart must not forget it."""
        unix_now, losses = self._unix_time(), self._resurrector.take_losses()
        self._losses_known = self._leadership.is_leader() and (self._losses_known or losses is not None)
        for loss in losses or ():
            age = max(0.0, unix_now - loss.unix_time)  # another monitor's clock may be ahead
            if age <= self._policy.meltdown.window_seconds:
                self._meltdown.remember(Lost(loss.instance, loss.agent), now - age)

    def _incident_of_alert(self, agent: AgentId, alert: Alert) -> Incident:
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
        return Incident(
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

    def _where(self, agent: AgentId) -> tuple[CloudName, VmCid] | None:
        instance = self.fleet.instance_of(agent)
        spare = self._spares.get(key_of_place(instance)) if instance is not None else None
        if spare is not None:
            return None if spare.vm_cid is None else (spare.pool.cloud, spare.vm_cid)
        record = self._survey.records.get(instance) if instance is not None else None
        if record is None or record.vm is None or record.vm.vm_cid is None or record.vm.agent_id != agent:
            return None
        return record.group.cloud, record.vm.vm_cid

    def _log_judgement(self, former: Judgement, now: Judgement) -> None:
        if now.missing is not former.missing:
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
