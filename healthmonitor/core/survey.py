"""What is expected beside what is: the deviations of all instances, and of agents that are nobody's, looked at anew
only where something changed.

Laws:
- What it has found for an instance is what `evaluate` finds for it, but for those that still wait to be looked at
  (`waits_for`), and for what changes by the mere passing of time, which is seen within LOOK_AT_ALL_SECONDS.
- One turn costs what changed, at most SYNCED_MAX and EVALUATED_MAX instances; the rest comes in the next turns.
- Agents that nobody expects are looked at one after another, STRANGERS_MAX in a turn and all of them again and again:
  what is said of them depends on how long they have been heard.

Does not know: where records come from, what is done about a deviation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from itertools import islice

from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.deviations import Deviation
from healthmonitor.core.disk_use import History
from healthmonitor.core.evaluation import Expectations, evaluate, evaluate_strangers
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.operation import IN_PLACE
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import InstanceRecord, Operation, Step
from protocol.heartbeat import DiskState
from protocol.ids import AgentId, DeploymentName, InstanceId

SYNCED_MAX = 500
"""Instances whose records are taken in in one turn."""
EVALUATED_MAX = 250
STRANGERS_MAX = 250
LOOK_AT_ALL_SECONDS = 120.0
"""Within so long every instance is looked at, also where nothing was heard to have changed."""


_NO_HISTORY = History()


class Survey:
    """`records` and `operations` are those of the journal, `operations` without those that are done."""

    def __init__(self) -> None:
        self.records: Mapping[InstanceId, InstanceRecord] = {}
        self.operations: Mapping[InstanceId, Operation] = {}
        self.sizes: dict[DeploymentName, int] = {}  # expected VMs by deployment
        self._all_operations: Mapping[InstanceId, Operation] = {}
        self._counted: dict[InstanceId, DeploymentName] = {}
        self._unsynced: dict[InstanceId, None] = {}  # dicts for their order: runs must repeat
        self._waiting: dict[InstanceId, None] = {}
        self._found: dict[InstanceId, tuple[Deviation, ...]] = {}
        self._strange: dict[AgentId, tuple[Deviation, ...]] = {}
        self._strangers_left: list[AgentId] = []  # of this round
        self._expectations = Expectations()
        self._disks: dict[InstanceId, tuple[tuple[str, History], ...]] = {}  # a dict for each would be twice as large
        self._round: Iterator[InstanceId] = iter(())
        self._rounded_at: float | None = None
        self._round_owed = 0.0

    def take(self, records: Mapping[InstanceId, InstanceRecord], operations: Mapping[InstanceId, Operation]) -> None:
        """The same mapping as before is nothing new, and neither is a record that is the same object."""
        if records is not self.records:
            self._unsynced.update(_differing(self.records, records))
            self.records = records
        if operations is not self._all_operations:
            self._all_operations = operations
            under_way = {key: each for key, each in operations.items() if each.step is not Step.DONE}
            self._unsynced.update(_differing(self.operations, under_way))
            self.operations = under_way

    def sync(self, fleet: Fleet, now: float) -> None:
        """Tells the fleet whom to expect where that changed."""
        for instance in list(islice(self._unsynced, SYNCED_MAX)):
            del self._unsynced[instance]
            self._waiting[instance] = None
            record, operation = self.records.get(instance), self.operations.get(instance)
            vm = record.vm if record is not None else None
            booting = record is not None and operation is not None and _is_new_vm(record, operation)
            fleet.bind(instance, None if vm is None else vm.agent_id, now, booting)
            self._count(instance, None if record is None or vm is None or record.deleting else record.deployment)

    def evaluate(self, fleet: Fleet, now: float, policy: Policy) -> None:
        for agent in fleet.take_changed():
            instance = fleet.instance_of(agent)
            if instance is not None:
                self._waiting[instance] = None
            if instance is not None or not fleet.knows(agent):
                self._strange.pop(agent, None)
        self._look_at_strangers(fleet, now, policy)
        self._look_round(now)
        for instance in list(islice(self._waiting, EVALUATED_MAX)):
            del self._waiting[instance]
            found: tuple[Deviation, ...] = ()
            record = self.records.get(instance)
            if record is None or not record.disks:
                self._disks.pop(instance, None)
            if record is not None:
                view = fleet.view(record.vm.agent_id, now) if record.vm is not None else None
                full_in = functools.partial(self.full_in_seconds, instance)
                self._note_disks(instance, view, now, policy)
                found = evaluate(record, self.operations.get(instance), view, self._expectations, policy, full_in)
            if found:
                self._found[instance] = found
            else:
                self._found.pop(instance, None)

    def _look_at_strangers(self, fleet: Fleet, now: float, policy: Policy) -> None:
        if not self._strangers_left:
            self._strangers_left = fleet.stranger_ids()
        for agent in self._strangers_left[-STRANGERS_MAX:]:
            view = fleet.view(agent, now) if fleet.instance_of(agent) is None else None
            found = () if view is None else tuple(evaluate_strangers((view,), policy))
            if found:
                self._strange[agent] = found
            else:
                self._strange.pop(agent, None)
        del self._strangers_left[-STRANGERS_MAX:]

    def full_in_seconds(self, instance: InstanceId, disk: str) -> float | None:
        """When that disk will be full at its present growth; None when it does not grow, or too little was seen."""
        history = dict(self._disks.get(instance, ())).get(disk)
        return None if history is None else history.seconds_until_full()

    def _note_disks(self, instance: InstanceId, view: AgentView | None, now: float, policy: Policy) -> None:
        """What its agent says of its disks, for the forecast: every instance is looked at often enough for that."""
        extension = view.glance.resurgam if view is not None and view.glance is not None else None
        if extension is None or not extension.disks:
            return
        before = dict(self._disks.get(instance, ()))
        now_seen: list[tuple[str, History]] = []
        for report in extension.disks:
            history = before.get(report.name, _NO_HISTORY)
            if report.state is DiskState.MOUNTED:
                history = history.seen(now, report.percent, policy.disks.sample_seconds)
            now_seen.append((report.name, history))
        self._disks[instance] = tuple(now_seen)

    def look_at_all(self) -> None:
        """The rules changed."""
        self._waiting.update(dict.fromkeys(self.records))

    def unfinished(self) -> bool:
        """Whether the next turn should come at once."""
        return bool(self._unsynced or self._waiting)

    def waits_for(self, instance: InstanceId) -> bool:
        """It was not looked at since something changed."""
        return instance in self._waiting or instance in self._unsynced

    def deviations(self) -> list[Deviation]:
        """Of instances, and of strangers."""
        return [each for found in (*self._found.values(), *self._strange.values()) for each in found]

    def found(self, instance: InstanceId) -> tuple[Deviation, ...]:
        return self._found.get(instance, ())

    def _count(self, instance: InstanceId, deployment: DeploymentName | None) -> None:
        former = self._counted.pop(instance, None)
        if former is not None:
            self.sizes[former] -= 1
            if not self.sizes[former]:
                del self.sizes[former]
        if deployment is not None:
            self._counted[instance] = deployment
            self.sizes[deployment] = self.sizes.get(deployment, 0) + 1

    def _look_round(self, now: float) -> None:
        """A share of all instances, as large as the share of the time that has passed."""
        passed = 0.0 if self._rounded_at is None else max(0.0, now - self._rounded_at)  # all are new at first
        self._rounded_at = now
        owed_for_all = len(self.records)
        self._round_owed = min(self._round_owed + owed_for_all * passed / LOOK_AT_ALL_SECONDS, owed_for_all)
        owed = min(int(self._round_owed), EVALUATED_MAX)
        self._round_owed -= owed
        looking = list(islice(self._round, owed))
        if len(looking) < owed:
            self._round = iter(self.records)
            looking.extend(islice(self._round, owed - len(looking)))
        self._waiting.update(dict.fromkeys(looking))


def _is_new_vm(record: InstanceRecord, operation: Operation) -> bool:
    """Whether the operation has bound its new VM and not heard it yet: it may take its time to speak. One that was
    heard and falls silent in a later step is missing like any other, and so is one that is only updated."""
    if operation.kind in IN_PLACE or operation.step not in _NOT_HEARD_YET:
        return False
    return operation.old_vm is None or record.vm is None or operation.old_vm.agent_id != record.vm.agent_id


_NOT_HEARD_YET = frozenset({Step.MAKE_DISKS, Step.FREE_DISKS, Step.CREATE_VM, Step.ATTACH, Step.HEAR_AGENT})


def _differing(before: Mapping[InstanceId, object], now: Mapping[InstanceId, object]) -> dict[InstanceId, None]:
    """Keys that came, went, or stand for something else."""
    changed = {key: None for key, value in now.items() if before.get(key) is not value}
    if changed or len(before) != len(now):
        changed.update((key, None) for key in before if key not in now)
    return changed
