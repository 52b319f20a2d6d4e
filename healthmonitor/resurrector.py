"""Carries operations out, one task each, while this monitor leads; begins them for what is missing, for rollouts, and
for what a person asks.

Laws:
- The journal comes first: a step is in it before it is taken, and what was done is in it before the next.
- Two records change (the operation, the instance): the operation is written first. Killed in between, the operation
  does what the old record says, which is harmless, and whoever wanted the change sees that it is not there.
- An operation ends only DONE. A defect in a step is a failure like others: shown, tried again.

Does not know: what a verdict rests on (monitor), how a step is taken (steps), what comes next (core/operation).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

import structlog

from healthmonitor.agent_client import AgentClient
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.core import disk_changes, disk_growth, guard, rollout
from healthmonitor.core import operation as rules
from healthmonitor.core.judgement import FleetView, Judgement, Loss
from healthmonitor.core.operation import Done, Failed, Held, Outcome
from healthmonitor.core.policy import Policy
from healthmonitor.core.progress import Progress
from healthmonitor.core.reasons import without_numbers
from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    RolloutState,
    Step,
)
from healthmonitor.core.strays import Stray
from healthmonitor.disk_care import DiskCare
from healthmonitor.journal import CorruptRecord, Journal, Superseded
from healthmonitor.leadership import Leadership
from healthmonitor.spares import Spares
from healthmonitor.steps.context import InstanceGone, NotOurs, StepContext, Tools
from healthmonitor.steps.lost_vm import came_back
from healthmonitor.steps.taking import take
from healthmonitor.sweeper import Sweeper
from protocol.bus import BusUnavailable
from protocol.heartbeat import DiskReport
from protocol.ids import AgentId, CloudName, DeploymentName, DiskName, InstanceId, OperationId, Revision
from protocol.settings import BusSettings, RegistrySettings

ADMITTED_EVENT = "resurrection.admitted"
_TURN_LONGEST_SECONDS = 1.0
_DRIFT_MAX, _LOOKED_AT_ONCE = 2_000, 500
"""Instances whose agents' revision is looked at in one turn, and without letting others go on meanwhile."""
_EVENTS_QUEUED_MAX = 10_000
_HELD_BY_CIRCUMSTANCES = rules.GUARD_HOLDS | {Hold.UNHEALTHY}

log = structlog.get_logger("resurrector")


class NotLeader(Exception):
    """Only the leader begins operations. The text says who that is."""


class NoSuchInstance(Exception):
    """There is no such instance in the journal."""


class Resurrector:
    def __init__(
        self,
        journal: Journal,
        clouds: Mapping[CloudName, Cloud],
        agents: AgentClient,
        fleet: FleetView,
        leadership: Leadership,
        policy: Policy,
        unix_time: Callable[[], float],
        new_id: Callable[[], str],
        agent_bus_settings: Callable[[AgentId], BusSettings],
        random_bytes: Callable[[int], bytes],
        maintenance: Callable[[DeploymentName], str] = lambda deployment: "",
        crash_point: Callable[[str], None] = lambda name: None,
        registries: Callable[[], RegistrySettings] = RegistrySettings,
        stemcell_version: Callable[[CloudName, str], str] = lambda cloud, stemcell: "",
    ) -> None:
        self._journal = journal
        self._fleet = fleet
        self._leadership = leadership
        self._policy = policy
        self._unix_time = unix_time
        self._new_id = new_id
        self._crash_point = crash_point
        self._tools = Tools(
            journal=journal,
            clouds=clouds,
            agents=agents,
            fleet=fleet,
            unix_time=unix_time,
            new_id=new_id,
            random_bytes=random_bytes,
            agent_bus_settings=agent_bus_settings,
            registries=registries,
            maintenance=maintenance,
            is_leader=leadership.is_leader,
            crash_point=crash_point,
            cloud_turns={name: asyncio.Semaphore(policy.resurrection.cloud_calls_max) for name in clouds},
            stemcell_version=stemcell_version,
        )
        self._spares = Spares(self._tools, lambda: self._policy, lambda: self._judgement)
        self._sweeper = Sweeper(self._tools, lambda: self._policy)
        self._disk_care = DiskCare(self._tools, lambda: self._policy)
        self._judgement: Judgement | None = None
        self._led_at = float("inf")
        """Since when what was lost before is known: judgements made earlier admit nothing."""
        self._losses: tuple[Loss, ...] | None = None
        self._tasks: dict[InstanceId, asyncio.Task[None]] = {}
        self._woken: dict[InstanceId, asyncio.Event] = {}
        self._turn_due = asyncio.Event()
        self._beginning: set[InstanceId] = set()
        self._admitted: set[OperationId] = set()
        self._flying: frozenset[OperationId] = frozenset()  # past their guard, as of `_counted_in`
        self._counted_in: Mapping[InstanceId, Operation] | None = None  # None: they are to be counted anew
        self._drift_looked_at = float("-inf")
        self._watched: dict[tuple[OperationId, Revision], float] = {}  # since when, loop's clock
        self._drift_round: list[InstanceId] = []
        self._rebuilt_at: list[float] = []
        self._alive_at: dict[InstanceId, float] = {}
        self._progress: dict[InstanceId, Progress] = {}
        self._events: asyncio.Queue[tuple[str, str, str, dict[str, str]]] = asyncio.Queue(_EVENTS_QUEUED_MAX)
        self._told_of = ("", 0.0)
        leadership.on_change(lambda leads: self.wake())

    # What the monitor and the operator tell.

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def judgement(self) -> Judgement | None:
        return self._judgement

    def strays(self) -> tuple[Stray, ...] | None:
        """VMs in the clouds that nobody names; None while that is not known."""
        return self._sweeper.strays()

    def set_policy(self, policy: Policy) -> None:
        self._policy = policy
        self.wake()

    def take_losses(self) -> tuple[Loss, ...] | None:
        """What was lost before this monitor led, once each time it begins to, else None: a meltdown must not forget it,
        rebuilt meanwhile or not. The judgements that take it into account are those made after."""
        losses, self._losses = self._losses, None
        return losses

    def set_judgement(self, judgement: Judgement) -> None:
        before, self._judgement = self._judgement, judgement
        if before is None or _what_matters_to_all(before) != _what_matters_to_all(judgement):
            self.wake()
        elif before.at_seconds <= self._led_at < judgement.at_seconds:
            self.wake()  # it is the first that is made since this monitor leads
        elif changed := _lost_or_back(before, judgement):
            self._turn_due.set()
            self._disk_care.wake()
            for instance in changed:  # not everybody: a thousand are lost one after another
                if instance in self._woken:
                    self._woken[instance].set()

    def wake(self) -> None:
        """Something happened that an operation may wait for: a heartbeat, a switch, a record."""
        self._turn_due.set()
        self._disk_care.wake()
        for event in self._woken.values():
            event.set()

    async def begin(
        self,
        kind: OperationKind,
        instance: InstanceId,
        reason: str,
        change: Callable[[InstanceRecord], InstanceRecord] | None = None,
        rollout_revision: Revision = rules.NO_ROLLOUT,
    ) -> Operation:
        """Begins an operation, or lets the unfinished one do it too; `change` is made to the record with it.

        NotLeader, NoSuchInstance, CorruptRecord; Superseded and BusUnavailable: not known to be begun, look and repeat.
        """
        record = self._journal.instance(instance)
        if record is None:
            raise NoSuchInstance(f"there is no instance {instance}")
        changed = None if change is None else change(record)
        return await self._begin(kind, instance, reason, record, changed, rollout_revision)

    async def begin_create(self, record: InstanceRecord, reason: str, rollout_revision: Revision) -> Operation:
        """A new instance: its operation and its record."""
        standing = self._journal.instance(record.instance)
        written = record if standing is None else None
        return await self._begin(OperationKind.CREATE, record.instance, reason, standing, written, rollout_revision)

    async def begin_update(
        self, instance: InstanceId, reason: str, change: Callable[[InstanceRecord], InstanceRecord] | None = None
    ) -> Operation:
        """In place. `change` should raise the record's revision when it changes what the agent is told."""
        return await self.begin(OperationKind.UPDATE, instance, reason, change)

    async def begin_recreate(self, instance: InstanceId, reason: str) -> Operation:
        return await self.begin(OperationKind.RECREATE, instance, reason)

    async def begin_delete(self, instance: InstanceId, reason: str) -> Operation:
        return await self.begin(OperationKind.DELETE, instance, reason, lambda record: replace(record, deleting=True))

    async def confirm_fence(self, instance: InstanceId, person: str) -> Operation:
        """A person vouches that the old VM cannot write. IllegalTransition unless its operation waits for that."""
        self._check_leader()
        existing = self._journal.operation(instance)
        if existing is None:
            raise NoSuchInstance(f"nothing is being done with {instance}: there is nothing to confirm")
        vouched = rules.vouch(existing, person, self._unix_time(), self._policy.resurrection)
        await self._journal.record(
            "operator.fence_confirmed", instance, f"{person} vouches that its old VM is off", {"by": person}
        )
        await self._save(vouched, existing, f"{vouched.step.value}")
        self.wake()
        return vouched

    # The loop.

    async def run(self) -> None:
        """Until cancelled. Reads along while another monitor leads."""
        while True:
            self._turn_due.clear()
            if self._leadership.is_leader():
                await self._lead()
                continue
            try:
                await self._journal.reload()
            except BusUnavailable as error:
                log.warning("journal not reached", error=str(error))
            await self._pause(self._policy.resurrection.journal_refresh_seconds)

    async def _lead(self) -> None:
        try:
            await self._journal.reload()
            since = self._unix_time() - guard.BUDGET_WINDOW_SECONDS
            # Only these: what a local name holds here is kept for as long as this monitor leads.
            admitted = [
                each.event for each in await self._journal.events_since(since) if each.event.kind == ADMITTED_EVENT
            ]
        except BusUnavailable as error:
            log.warning("leads, but the journal is not reached", error=str(error))
            await self._pause(self._policy.resurrection.retry_first_seconds)
            return
        self._rebuilt_at = [event.at for event in admitted]
        self._admitted.clear()
        self._counted_in = None
        self._losses = (
            *(
                Loss(operation.instance, operation.old_vm.agent_id, operation.started_at)
                for operation in self._journal.operations().values()
                if operation.kind is OperationKind.RESURRECT and operation.old_vm is not None
            ),
            # Of those that are over by now nothing but the timeline tells; its operation stands for the lost VM.
            *(
                Loss(InstanceId(event.subject), AgentId(event.fields.get("operation", "")), event.at)
                for event in admitted
            ),
        )
        self._led_at = asyncio.get_running_loop().time()
        await self._tell_that_it_leads()
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(self._write_events(), name="events")
            sweeper = group.create_task(self._sweeper.run(), name="sweeper")
            disk_care = group.create_task(self._disk_care.run(), name="disk-care")
            spares = group.create_task(self._spares.run(), name="spares")
            try:
                while self._leadership.is_leader():
                    await self._turn(group)
                    await self._pause(_TURN_LONGEST_SECONDS)
            finally:
                for task in self._tasks.values():
                    task.cancel()
                self._led_at = float("inf")
                writer.cancel()
                sweeper.cancel()
                disk_care.cancel()
                spares.cancel()
                self._tasks.clear()
                self._woken.clear()

    async def _tell_that_it_leads(self) -> None:
        """Once for each time that the lease was taken."""
        lease = self._leadership.holder()
        if lease is None or not lease.holder or (lease.holder, lease.since) == self._told_of:
            return
        self._told_of = (lease.holder, lease.since)
        await self._tell("leader.took", lease.holder, f"{lease.holder} leads: {lease.why}")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._turn_due.wait()
        except TimeoutError:
            pass

    async def _turn(self, group: asyncio.TaskGroup) -> None:
        self._turn_due.clear()
        try:
            await self._begin_resurrections()
            self._start_tasks(group)
            if asyncio.get_running_loop().time() >= self._drift_looked_at + _TURN_LONGEST_SECONDS:
                await self._repair_drift()
            self._forget_watched()
            for deployment in list(self._journal.deployments().values()):
                if not self._journal.has_corrupt_instances(deployment.name):
                    await self._roll(deployment)
        except (Superseded, BusUnavailable, NotLeader, CorruptRecord) as error:
            log.warning("turn not finished; the next looks again", error=str(error))
        self._start_tasks(group)

    def _start_tasks(self, group: asyncio.TaskGroup) -> None:
        for instance in self._journal.operations():
            if instance not in self._tasks and not self._journal.is_corrupt(instance):
                self._woken[instance] = asyncio.Event()
                task = group.create_task(self._carry_out(instance), name=f"operation {instance}")
                self._tasks[instance] = task
                task.add_done_callback(functools.partial(self._ended, instance))

    def _ended(self, instance: InstanceId, task: asyncio.Task[None]) -> None:
        if self._tasks.get(instance) is task:
            del self._tasks[instance]
            del self._woken[instance]
            self._turn_due.set()

    async def _begin_resurrections(self) -> None:
        judgement = self._judgement
        if judgement is None:
            return
        for instance, missing in judgement.missing.items():
            record = self._journal.instance(instance)
            if record is None or record.deleting or record.ignore or record.vm is None:
                continue
            if record.vm.agent_id != missing.agent or self._journal.is_corrupt(instance):
                continue
            if judgement.at_seconds <= self._alive_at.get(instance, float("-inf")):
                continue
            existing = self._journal.operation(instance)
            if existing is not None and rules.absorbs(existing, OperationKind.RESURRECT):
                continue
            revision = existing.rollout_revision if existing is not None else Revision(0)
            await self._begin(OperationKind.RESURRECT, instance, missing.evidence, record, None, revision)

    async def _repair_drift(self) -> None:
        """An agent that holds another specification than its record says is told again. (The monitor was killed between
        writing and telling, or the VM lost its store.) Disks that wait for a change are changed."""
        self._drift_looked_at = asyncio.get_running_loop().time()
        if not self._drift_round:
            self._drift_round = list(self._journal.instances())
        looking, self._drift_round = self._drift_round[:_DRIFT_MAX], self._drift_round[_DRIFT_MAX:]
        records = self._journal.instances()  # as of now: asking the journal for each would be most of what this costs
        for looked, instance in enumerate(looking):
            if looked % _LOOKED_AT_ONCE == _LOOKED_AT_ONCE - 1:
                await asyncio.sleep(0)  # a big fleet must not make the monitor's loop late
            record = records.get(instance)
            if record is None or record.vm is None or record.deleting or record.ignore:
                continue
            held, waits = self._fleet.revision(record.vm.agent_id), disk_changes.waits(record)
            grows = () if waits else self._disks_that_grow(record)
            if not waits and not grows and held in (None, record.revision):
                continue
            if self._journal.instance(instance) is not record:
                continue  # written meanwhile: the next round looks again
            if self._journal.operation(instance) is not None or self._journal.is_corrupt(instance):
                continue
            if waits:
                reason = "; ".join(f"disk {disk.name}: {disk.why}" for disk in record.disks if disk.why)
                await self._begin(OperationKind.CHANGE_DISKS, instance, reason, record, None, Revision(0))
                continue
            if grows:
                reason = "; ".join(step.why for step in grows)
                changed = disk_growth.grown(record, grows, self._unix_time())
                await self._begin(OperationKind.UPDATE, instance, reason, record, changed, Revision(0))
                continue
            reason = f"its agent holds revision {held} instead of {record.revision}"
            await self._begin(OperationKind.UPDATE, instance, reason, record, None, Revision(0))

    def _disks_that_grow(self, record: InstanceRecord) -> tuple[disk_growth.Step, ...]:
        """By themselves, now; by the last word of its agent."""
        if not any(disk.grow for disk in record.group.disks):
            return ()
        cloud, vm = self._tools.clouds.get(record.group.cloud), record.vm
        if cloud is None or vm is None or self._journal.switches().paused_until > self._unix_time():
            return ()

        def reports() -> Mapping[DiskName, DiskReport]:
            heartbeat = self._fleet.last_heartbeat(vm.agent_id)
            extension = heartbeat.resurgam if heartbeat is not None else None
            return {DiskName(report.name): report for report in extension.disks} if extension is not None else {}

        return disk_growth.due(record, reports, cloud.disk_abilities, self._policy.disks, self._unix_time())

    def _watched_seconds(self, operation: Operation) -> float:
        """For how long this monitor has known that it serves its rollout. Whoever takes over gives it its time anew."""
        now = asyncio.get_running_loop().time()
        return now - self._watched.setdefault((operation.id, operation.rollout_revision), now)

    def _forget_watched(self) -> None:
        present = {(each.id, each.rollout_revision) for each in self._journal.operations().values()}
        for gone in self._watched.keys() - present:
            del self._watched[gone]

    async def _roll(self, deployment: DeploymentRecord) -> None:
        if deployment.rollout in (RolloutState.DONE, RolloutState.FAILED) and not deployment.deleting:
            return
        decision = rollout.decide(
            deployment, self._journal.instances(), self._journal.operations(), self._watched_seconds
        )
        if (decision.state, decision.error) != (deployment.rollout, deployment.rollout_error):
            changed = replace(deployment, rollout=decision.state, rollout_error=decision.error)
            await self._journal.save_deployment(changed, deployment)
            self._crash_point("journal:rollout")
            await self._tell(f"rollout.{decision.state.value}", deployment.name, decision.error or decision.reason)
            deployment = changed
        for act in decision.acts:
            await self._carry_out_act(deployment, act)

    async def _carry_out_act(self, deployment: DeploymentRecord, act: rollout.Act) -> None:
        revision = deployment.revision
        match act:
            case rollout.Create(record=record):
                await self.begin_create(record, f"deployed by {deployment.deployed_by}", revision)
            case rollout.Move(record=record, kind=kind):
                reason = f"revision {revision}, deployed by {deployment.deployed_by}"
                await self.begin(kind, record.instance, reason, lambda _: record, revision)
            case rollout.Adopt(record=record):
                standing = self._journal.instance(record.instance)
                await self._journal.save_instance(record, standing)
                self._crash_point("journal:adopted")
            case rollout.Remove(instance=instance, reason=reason):
                await self.begin_delete(instance, reason)
            case rollout.DeploymentGone():
                await self._journal.delete_deployment(deployment)
                await self._tell("deployment.deleted", deployment.name, "all its instances are gone")
            case _:
                assert_never(act)

    # One operation.

    async def _begin(
        self,
        kind: OperationKind,
        instance: InstanceId,
        reason: str,
        record: InstanceRecord | None,
        changed: InstanceRecord | None,
        rollout_revision: Revision,
    ) -> Operation:
        self._check_leader()
        if (corrupt := self._journal.corrupt_of(instance)) is not None:
            raise corrupt
        now = self._unix_time()
        existing = self._journal.operation(instance)
        if existing is not None and existing.step is not Step.DONE and rules.absorbs(existing, kind):
            operation = rules.rewind(existing, now)
            if rollout_revision:
                operation = replace(operation, rollout_revision=rollout_revision)
        else:
            old_vm = None if record is None else record.vm
            operation = rules.begin(
                OperationId(self._new_id()), instance, kind, reason, now, old_vm, existing, rollout_revision
            )
        self._beginning.add(instance)
        try:
            await self._save(operation, existing, f"begun {kind.value}")
            if changed is not None:
                await self._journal.save_instance(changed, record)
                self._crash_point("journal:record changed")
        finally:
            self._beginning.discard(instance)
        await self._tell("operation.begun", instance, f"{kind.value}: {reason}", {"operation": operation.id})
        self.wake()
        return operation

    async def _carry_out(self, instance: InstanceId) -> None:
        """Until the operation in the journal is over, whoever changes it meanwhile."""
        while True:
            operation = self._journal.operation(instance)
            if operation is None:
                return
            woken = self._woken[instance]
            try:
                if await self._until_due(operation, woken):
                    await self._one_step(operation, woken)
            except (NotOurs, Superseded) as error:
                if not self._leadership.is_leader():
                    return
                log.info("looked at again", instance=instance, reason=str(error))
            except InstanceGone as error:
                await self._drop(operation, str(error))
            except BusUnavailable as error:
                log.warning("journal not reached", instance=instance, error=str(error))
                await asyncio.sleep(self._policy.resurrection.retry_first_seconds)
            except CorruptRecord as error:
                log.error("stopped", instance=instance, error=str(error))
                return
            except Exception:
                # The edge of an operation's task: a defect in one must not end the others. It goes on, slowly.
                log.exception("operation failed by a defect; tried again", instance=instance)
                await asyncio.sleep(self._policy.resurrection.retry_longest_seconds)

    async def _until_due(self, operation: Operation, woken: asyncio.Event) -> bool:
        """False: something happened; look at the journal again."""
        if operation.instance in self._beginning:
            await self._wait(woken, self._policy.turn_seconds)
            return False
        left = operation.next_try_at - self._unix_time()
        if left <= 0 or left > self._policy.resurrection.retry_longest_seconds:
            return True  # due; or longer than any delay is, because the wall clock was set back
        if operation.hold in _HELD_BY_CIRCUMSTANCES:
            # Looked at whenever they may have changed; a retry of what failed waits its time out.
            return await self._until_circumstances(operation, woken, left)
        if operation.step is Step.FENCE and self._came_back(operation):
            return True  # taking the step ends the operation, before the VM may fall silent again
        await self._wait(woken, left)
        return False

    def _came_back(self, operation: Operation) -> bool:
        return came_back(operation, self._tools.fleet, self._unix_time(), asyncio.get_running_loop().time())

    async def _until_circumstances(self, operation: Operation, woken: asyncio.Event, seconds: float) -> bool:
        if operation.step is Step.CONFIRM:
            # Confirming asks the agent and the cloud: not at every heartbeat of the fleet.
            await asyncio.sleep(min(seconds, self._policy.resurrection.retry_first_seconds))
        return await self._wait(woken, seconds)

    async def _one_step(self, operation: Operation, woken: asyncio.Event) -> None:
        if operation.step is Step.DONE:
            await self._finish(operation)
            return
        context = StepContext(self._tools, self, operation, woken)
        context.check_ours()
        try:
            outcome = await take(context)
        except (NotOurs, Superseded, InstanceGone, CorruptRecord, BusUnavailable):
            raise
        except Exception as error:
            # The edge of a step: a defect in it, or in a cloud's provider, must not end the operation unseen.
            log.exception("step failed by a defect", instance=operation.instance, step=operation.step.value)
            outcome = Failed(
                f"{operation.step.value}: {type(error).__name__}: {error}; a defect, please report it; tried again"
            )
        context.check_ours()
        await self._note_outcome(operation, outcome, woken)

    async def _note_outcome(self, operation: Operation, outcome: Outcome, woken: asyncio.Event) -> None:
        after = rules.advance(operation, outcome, self._unix_time(), self._policy.resurrection)
        same = after.step is operation.step and after.hold is operation.hold and _same_error(after, operation)
        if same and after.hold in _HELD_BY_CIRCUMSTANCES:
            # Nothing new to write down; wait for circumstances, or for the time that the next try would have.
            delay = after.next_try_at - self._unix_time()
            await self._until_circumstances(
                operation, woken, min(delay, self._policy.resurrection.retry_longest_seconds)
            )
            return
        await self._save(after, operation, after.step.value)
        if same:
            return
        if after.step is operation.step:
            kind = "operation.held" if after.hold is not Hold.RETRYING else "operation.failed"
            await self._tell(
                kind, operation.instance, after.error, {"step": after.step.value, "hold": after.hold.value}
            )
            return
        timing = after.timings[-1]
        await self._tell(
            "operation.step",
            operation.instance,
            f"{operation.kind.value}: {timing.step.value} took {timing.seconds:.2f} s"
            + (f"; {timing.note}" if timing.note else ""),
            {"operation": operation.id, "step": timing.step.value, "seconds": f"{timing.seconds:.3f}"},
        )

    async def _finish(self, operation: Operation) -> None:
        await self._events.join()
        seconds = self._unix_time() - operation.started_at
        await self._journal.record(
            "operation.done",
            operation.instance,
            f"{operation.kind.value} took {seconds:.2f} s: {operation.timings[-1].note or operation.reason}",
            {"operation": operation.id, "seconds": f"{seconds:.3f}"},
        )
        self._check_still(operation)
        await self._journal.delete_operation(operation)
        self._crash_point("journal:operation over")
        self._admitted.discard(operation.id)
        self._counted_in = None
        self._sweeper.operation_ended()
        self._spares.wake()
        self.wake()

    async def _drop(self, operation: Operation, why: str) -> None:
        """An operation without an instance: its beginning was cut short, or the record was deleted by hand."""
        if operation.kind is OperationKind.DELETE or operation.old_vm is None:
            await self._journal.record("operation.dropped", operation.instance, why, {"operation": operation.id})
            await self._journal.delete_operation(operation)
            self.wake()
            return
        error = f"{why}, but its operation names VM {operation.old_vm.key}; look for that VM and its disks in the cloud"
        await self._note_outcome(operation, Failed(error), self._woken[operation.instance])

    # Guarding.

    async def admission(self, operation: Operation) -> Outcome:
        """May this lost VM be rebuilt now? An admission counts at once, before it is in the journal."""
        held = self.held_back(operation)
        if held is not None:
            return held
        if operation.id not in self._admitted:  # else writing the event failed, and the step is repeated
            self._admitted.add(operation.id)
            self._counted_in = None
            self._rebuilt_at.append(self._unix_time())
        await self._journal.record(ADMITTED_EVENT, operation.instance, operation.reason, {"operation": operation.id})
        return Done()

    def held_back(self, operation: Operation) -> Held | None:
        """Why this lost VM may not be rebuilt now; None when it may. Counts nothing."""
        record = self._journal.instance(operation.instance)
        if record is None:
            raise InstanceGone(f"{operation.instance} is not in the journal")
        judgement = self._judgement
        if judgement is None or judgement.at_seconds <= self._led_at:
            return Held(
                Hold.CANNOT_TELL, "this monitor has only just begun to lead; it goes on when it has judged anew"
            )
        now = self._unix_time()
        self._rebuilt_at = [at for at in self._rebuilt_at if at > now - guard.BUDGET_WINDOW_SECONDS]
        missing = judgement.missing.get(operation.instance)
        decision = guard.decide(
            guard.GuardInputs(
                instance=operation.instance,
                deployment=record.deployment,
                policy=self._policy.resurrection,
                switches=self._journal.switches(),
                now_unix=now,
                group_allows=record.group.resurrection,
                ignored=record.ignore,
                maintenance=self._tools.maintenance(record.deployment),
                cannot_tell=judgement.cannot_tell,
                seen_off_by_cloud=missing is not None and missing.by_cloud,
                meltdowns=judgement.meltdowns,
                rebuilt_at=tuple(self._rebuilt_at),
                in_flight=self._in_flight(operation),
            )
        )
        return None if decision.hold is Hold.NONE else Held(decision.hold, decision.text)

    def _in_flight(self, asking: Operation) -> int:
        """Resurrections past their guard, but those that wait for a fence: they may wait for days."""
        operations = self._journal.operations()
        if operations is not self._counted_in:
            # Counted once for each change of the journal: each of a thousand lost VMs asks for this number.
            self._counted_in = operations
            self._flying = frozenset(
                other.id
                for other in operations.values()
                if other.kind is OperationKind.RESURRECT
                and other.hold is not Hold.UNFENCED
                and (other.id in self._admitted or other.step not in (Step.CONFIRM, Step.GUARD, Step.DONE))
            )
        return len(self._flying) - (asking.id in self._flying)

    def progress(self, instance: InstanceId) -> Progress | None:
        """How far its present step is, where that takes long and this monitor is at it."""
        return self._progress.get(instance)

    def note_progress(self, instance: InstanceId, progress: Progress | None) -> None:
        if progress is None:
            self._progress.pop(instance, None)
        else:
            self._progress[instance] = progress

    def alive_again(self, instance: InstanceId) -> None:
        """Judgements made until one lease from now do not begin another resurrection of it."""
        self._alive_at[instance] = asyncio.get_running_loop().time() + self._policy.liveness.lease_seconds

    # Writing.

    async def _save(self, operation: Operation, replacing: Operation | None, name: str) -> None:
        self._check_leader()
        await self._journal.save_operation(operation, replacing)
        self._crash_point(f"journal:{name}")

    async def _tell(self, kind: str, subject: str, text: str, fields: dict[str, str] | None = None) -> None:
        log.info(text, event_kind=kind, subject=subject, **(fields or {}))
        await self._events.put((kind, subject, text, fields or {}))

    async def _write_events(self) -> None:
        """Beside the operations, so that a step does not wait for the timeline."""
        while True:
            kind, subject, text, fields = await self._events.get()
            try:
                await self._journal.record(kind, subject, text, fields)
            except BusUnavailable as error:
                log.warning("event not recorded; it stands in this log", event_kind=kind, error=str(error))
            finally:
                self._events.task_done()

    async def _wait(self, woken: asyncio.Event, seconds: float) -> bool:
        """Whether something happened before the time was over."""
        woken.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await woken.wait()
        except TimeoutError:
            return False
        return True

    def _check_leader(self) -> None:
        if not self._leadership.is_leader():
            lease = self._leadership.holder()
            who = f"monitor {lease.holder}" if lease is not None and lease.holder else "nobody at the moment"
            raise NotLeader(f"this monitor does not lead; {who} does: ask there, or again in a few seconds")

    def _check_still(self, operation: Operation) -> None:
        if not self._leadership.is_leader() or self._journal.operation(operation.instance) != operation:
            raise NotOurs("the operation was replaced, or another monitor leads")


def _what_matters_to_all(judgement: Judgement) -> tuple[object, ...]:
    """Of what an operation may wait for."""
    return without_numbers(judgement.cannot_tell), judgement.meltdowns.keys(), judgement.brewing


def _same_error(after: Operation, before: Operation) -> bool:
    if after.hold is Hold.CANNOT_TELL:
        return without_numbers(after.error) == without_numbers(before.error)
    return after.error == before.error


def _lost_or_back(before: Judgement, now: Judgement) -> list[InstanceId]:
    """Those of whom something else is believed. The evidence counts seconds and is another each time."""
    if before.missing is now.missing or before.missing == now.missing:
        return []
    believed, believed_before = _believed(now), _believed(before)
    both = believed.keys() | believed_before.keys()
    return sorted(each for each in both if believed.get(each) != believed_before.get(each))


def _believed(judgement: Judgement) -> dict[InstanceId, tuple[AgentId, bool]]:
    return {instance: (each.agent, each.by_cloud) for instance, each in judgement.missing.items()}
