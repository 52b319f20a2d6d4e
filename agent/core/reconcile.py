"""Desired and actual state → what to do next. The heart of the agent.

Laws:
- A running container with the right hash is not touched, unless its run is condemned: by a dependency that runs anew,
  by its health, by a person. In doubt (no look, no specification) nothing is done at all.
- What restarts on purpose stops dependents first and starts dependencies first; what broke is started at once, and its
  dependents follow when it is ready.
- Every decision follows from state, so an event that was lost, a look that was late or an agent that was killed in
  between changes when something happens, never whether.

Does not know: how an action is carried out, or how long it takes (agent/supervisor.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from agent.core.actions import Action, ActionKey, Create, Pull, Remove, Start, Stop
from agent.core.backoff import BackoffPolicy
from agent.core.dependencies import all_dependents, dependencies, restarted_with
from agent.core.ledger import RUNNING, Ledger, Memory, Note, condemn, is_unhealthy, note_start, observe
from agent.engine import ActualContainer, Health, Status
from protocol.heartbeat import Reason
from protocol.ids import ContainerName, DiskName
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    InstanceSpec,
    MountKind,
    OnIsolation,
    Restart,
    Wanted,
    spec_hash,
)


@dataclass(frozen=True, slots=True)
class SupervisionPolicy:
    backoff: BackoffPolicy = field(default_factory=BackoffPolicy)
    full_look_seconds: float = 10.0
    """At least this often everything is looked at, because events are only hints."""
    actions_max: int = 8
    """At once, on different containers."""
    oom_settle_seconds: float = 1.0
    """A kill counter that rose may mean the first process, whose end is seen a moment later: before restarting for a
    child's death this long is waited."""
    oom_report_seconds: float = 300.0
    """How long a child's death is reported while the container runs on."""
    recreate_after_start_failures: int = 3
    """So many failed starts in a row, and the container is made anew: what it refers to (a network) may be gone."""


@dataclass(frozen=True, slots=True)
class Observation:
    """`actual`: None when the engine does not answer. `busy`: actions under way. `oom_kills`: by run."""

    actual: tuple[ActualContainer, ...] | None
    mounted: frozenset[DiskName] = frozenset()
    oom_kills: Mapping[str, int] = field(default_factory=dict)
    busy: Mapping[ActionKey, Action] = field(default_factory=dict)
    isolated: bool = False
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`ledger` is to be kept (its notes on disk) before the actions are begun. `reasons`: one line per action."""

    ledger: Ledger
    actions: tuple[Action, ...]
    reasons: Mapping[ActionKey, str]
    next_look_seconds: float


@dataclass(frozen=True)
class Situation:
    """One look, arranged by container."""

    ledger: Ledger
    spec: InstanceSpec
    seen: Observation
    now: float
    policy: SupervisionPolicy
    hashes: Mapping[ContainerName, str]  # of `spec`; they cost more than all the rest, so they are made once

    @cached_property
    def specs(self) -> dict[ContainerName, ContainerSpec]:
        return {container.name: container for container in self.spec.containers}

    @cached_property
    def graph(self) -> dict[ContainerName, tuple[Dependency, ...]]:
        return dependencies(self.spec.containers)

    @cached_property
    def actual(self) -> dict[ContainerName, ActualContainer]:
        """Per name of the specification the one container that fills it."""
        found: dict[ContainerName, ActualContainer] = {}
        for container in self.seen.actual or ():
            if container.instance == self.spec.instance and container.name in self.specs:
                other = found.get(container.name)
                if other is None or self._rank(container) > self._rank(other):
                    found[container.name] = container
        return found

    @cached_property
    def orphans(self) -> tuple[ActualContainer, ...]:
        """Ours by label, but not of this specification: other names, other instances, doubles."""
        kept = {container.container_id for container in self.actual.values()}
        return tuple(container for container in self.seen.actual or () if container.container_id not in kept)

    def wanted(self, name: ContainerName) -> bool:
        return self.why_stopped(name) is Reason.NONE

    def why_stopped(self, name: ContainerName) -> Reason:
        """Why this container should not run; NONE when it should."""
        if self.spec.wanted is Wanted.STOPPED or self.seen.draining or name in self.spec.stopped_containers:
            return Reason.OPERATOR
        if self.seen.isolated and self.spec.on_isolation is OnIsolation.STOP:
            return Reason.ISOLATED
        return Reason.NONE

    def memory(self, name: ContainerName) -> Memory:
        return self.ledger.memories.get(name) or Memory(self.hashes[name])

    def note(self, name: ContainerName) -> Note:
        return self.ledger.notes.get(name, Note())

    def runs(self, name: ContainerName) -> bool:
        seen = self.actual.get(name)
        return seen is not None and seen.status in RUNNING

    def has_right_hash(self, name: ContainerName) -> bool:
        seen = self.actual.get(name)
        return seen is not None and seen.spec_hash == self.hashes[name]

    def is_condemned(self, name: ContainerName) -> bool:
        """Whether the run that is there, ended or not, is to be replaced by a person's or our word."""
        seen, note = self.actual.get(name), self.note(name)
        return seen is not None and note.condemned is not Reason.NONE and note.run == seen.run

    def is_failing(self, name: ContainerName) -> bool:
        """Running, but counted as broken: replaced alone and at once, its dependents follow when it is ready."""
        seen, note = self.actual[name], self.note(name)
        if note.condemned is Reason.UNHEALTHY and note.run == seen.run:
            return True
        return is_unhealthy(seen) and self.specs[name].restart is not Restart.NO

    def is_finished(self, name: ContainerName) -> bool:
        """Ended, and by its restart policy not to be started again."""
        seen, spec = self.actual.get(name), self.specs[name]
        if seen is None or seen.status is not Status.EXITED or not seen.run or not self.has_right_hash(name):
            return False
        if self.is_condemned(name):
            return False
        if spec.restart is Restart.NO:
            return True
        if spec.restart is Restart.ON_FAILURE:
            return seen.exit_code == 0 or 0 < spec.restart_limit < self.memory(name).backoff.failures
        return False

    def unmounted_disks(self, name: ContainerName) -> tuple[str, ...]:
        sources = {mount.source for mount in self.specs[name].mounts if mount.kind is MountKind.DISK}
        return tuple(sorted(sources - set(self.seen.mounted)))

    def unready_dependency(self, name: ContainerName) -> ContainerName | None:
        """One that `name` has to wait for."""
        for need in self.graph[name]:
            if need.container not in self.specs or not self._meets(need):
                return need.container
        return None

    @cached_property
    def stale(self) -> frozenset[ContainerName]:
        """Running against a run of a dependency that is over, while a later one is ready."""
        return frozenset(
            name
            for name in self.specs
            if self.runs(name)
            and any(
                need.restart
                and need.container in self.specs
                and self.actual_run(need.container) != self.note(name).against.get(need.container)
                and need.container in self.note(name).against
                and self._is_ready(need)
                for need in self.graph[name]
            )
        )

    @cached_property
    def replaced(self) -> frozenset[ContainerName]:
        """To be ended on purpose: another specification whose image is here, or a condemned run."""
        return frozenset(
            name
            for name, seen in self.actual.items()
            if self.wanted(name)
            and (
                (not self.has_right_hash(name) and self.memory(name).image_ready and not self.unmounted_disks(name))
                or (seen.status in RUNNING and self.is_condemned(name) and not self.is_failing(name))
                or self._oom_restart_due(name)
            )
        )

    @cached_property
    def ending(self) -> frozenset[ContainerName]:
        """What is ended on purpose now, with its dependents over all levels."""
        return restarted_with(
            self.replaced | self.stale,
            self.graph,
            lambda name: self.wanted(name) and not self.is_finished(name),
        )

    def actual_run(self, name: ContainerName) -> str:
        seen = self.actual.get(name)
        return seen.run if seen else ""

    def held_up_by_dependent(self, name: ContainerName) -> ContainerName | None:
        """A dependent that has to stop before `name` does, or before it starts anew."""
        for dependent in sorted(all_dependents(name, self.graph)):
            is_up = self.runs(dependent) or isinstance(self.seen.busy.get(dependent), Start)
            if is_up and (dependent in self.ending or not self.wanted(dependent)):
                return dependent
        return None

    def _oom_restart_due(self, name: ContainerName) -> bool:
        since = self.memory(name).oom_since
        return (
            self.specs[name].on_oom == "restart"
            and since is not None
            and self.now - since >= self.policy.oom_settle_seconds
            and self.runs(name)
        )

    def _meets(self, need: Dependency) -> bool:
        return self._is_ready(need) and need.container not in self.ending

    def _is_ready(self, need: Dependency) -> bool:
        seen = self.actual.get(need.container)
        if seen is None or need.container in self.seen.busy or not self.has_right_hash(need.container):
            return False
        if self.is_condemned(need.container):
            return False
        if need.condition is Condition.COMPLETED:
            return seen.status is Status.EXITED and bool(seen.run) and seen.exit_code == 0
        if seen.status is not Status.RUNNING:
            return False
        if need.condition is Condition.HEALTHY:
            return seen.health in (Health.HEALTHY, Health.NONE)
        return True

    def _rank(self, container: ActualContainer) -> tuple[bool, bool, str]:
        is_current = container.spec_hash == self.hashes[container.name]
        return (container.status in RUNNING, is_current, container.container_id)


def spec_hashes(spec: InstanceSpec) -> dict[ContainerName, str]:
    return {container.name: spec_hash(container) for container in spec.containers}


def decide(
    ledger: Ledger,
    desired: InstanceSpec | None,
    hashes: Mapping[ContainerName, str],
    seen: Observation,
    now: float,
    policy: SupervisionPolicy,
) -> Decision:
    """The next actions, at most one per container and none for what is busy. `hashes`: spec_hashes(desired)."""
    if desired is None or seen.actual is None:
        return Decision(ledger, (), {}, policy.full_look_seconds)
    first = Situation(ledger, desired, seen, now, policy, hashes)
    ledger = observe(
        ledger, first.hashes, first.graph, first.actual, seen.oom_kills, _busy_names(first), now, policy.backoff
    )
    situation = replace(first, ledger=ledger)
    actions: list[Action] = []
    reasons: dict[ActionKey, str] = {}
    for orphan in situation.orphans:
        key = orphan.container_id
        if key not in seen.busy and key not in ledger.orphan_not_before and orphan.status is not Status.REMOVING:
            actions.append(_end_orphan(orphan))
            reasons[key] = f"{orphan.name} of {orphan.instance or 'nobody'} is not in the specification"
    for name in situation.specs:
        if name in seen.busy:
            continue
        found = _next_action(situation, name)
        if found is not None:
            action, reasons[name] = found
            actions.append(action)
            ledger = _written(ledger, situation, name, action)
    return Decision(ledger, tuple(actions), reasons, _next_look_seconds(situation))


def _next_action(situation: Situation, name: ContainerName) -> tuple[Action, str] | None:
    seen = situation.actual.get(name)
    if seen is not None and seen.status is Status.REMOVING:
        return None
    why_stopped = situation.why_stopped(name)
    if why_stopped is not Reason.NONE:
        if seen is None or seen.status not in RUNNING or situation.held_up_by_dependent(name) is not None:
            return None
        return _stop(situation, seen, why_stopped), "should not run"
    if seen is not None and seen.status in RUNNING:
        return _of_running(situation, seen)
    if situation.is_finished(name):
        return None
    return _of_not_running(situation, name, seen)


def _of_running(situation: Situation, seen: ActualContainer) -> tuple[Action, str] | None:
    name = seen.name
    if situation.now < situation.memory(name).not_before:
        return None  # the last try to stop it failed
    if name in situation.ending:
        if situation.held_up_by_dependent(name) is not None:
            return None
        why, text = _why_ending(situation, name)
        return _stop(situation, seen, why), text
    if not situation.has_right_hash(name) and not situation.memory(name).image_ready:
        return _pull(situation, name, "the specification changed")
    if situation.is_failing(name):
        return _stop(situation, seen, Reason.UNHEALTHY), "its health check says unhealthy"
    return None


def _of_not_running(
    situation: Situation, name: ContainerName, seen: ActualContainer | None
) -> tuple[Action, str] | None:
    """Steps towards running: image, removal of what stood in its place, creation, start."""
    memory = situation.memory(name)
    if situation.now < memory.not_before or situation.unmounted_disks(name):
        return None
    if situation.held_up_by_dependent(name) is not None:
        return None
    if memory.runs_seen == 0 and any(orphan.status in RUNNING for orphan in situation.orphans):
        return None  # what ran before this specification may write where this container will
    if seen is None and any(orphan.name == name for orphan in situation.orphans):
        return None  # the name is taken until that one is removed
    if seen is None or not _may_start(situation, name, seen):
        if not memory.image_ready:
            return _pull(situation, name, "needed for a new container")
        if seen is not None:
            why = Reason.START_FAILED if situation.has_right_hash(name) else Reason.SPECIFICATION_CHANGED
            return Remove(name, seen.container_id, why), f"to be made anew: {why.value}"
        return Create(name, situation.specs[name]), "missing"
    if situation.unready_dependency(name) is not None:
        return None
    return Start(name, seen.container_id), f"should run, is {seen.status.value}"


def _may_start(situation: Situation, name: ContainerName, seen: ActualContainer) -> bool:
    """Whether the container that is there can be the one that runs."""
    failures = situation.memory(name).start_failures
    return (
        situation.has_right_hash(name)
        and seen.status is not Status.DEAD
        and failures < situation.policy.recreate_after_start_failures
    )


def _pull(situation: Situation, name: ContainerName, text: str) -> tuple[Action, str] | None:
    memory, spec = situation.memory(name), situation.specs[name]
    if situation.now < memory.not_before:
        return None
    return Pull(name, spec.image, spec.pull_policy, spec.pin), text


def _stop(situation: Situation, seen: ActualContainer, why: Reason) -> Stop:
    grace = situation.specs[seen.name].stop_grace_period_seconds
    return Stop(seen.name, seen.container_id, seen.run, grace, why)


def _why_ending(situation: Situation, name: ContainerName) -> tuple[Reason, str]:
    if not situation.has_right_hash(name) and name in situation.replaced:
        return Reason.SPECIFICATION_CHANGED, "the specification changed"
    if situation.is_condemned(name):
        condemned = situation.note(name).condemned
        return condemned, f"condemned: {condemned.value}"
    if name in situation.replaced:
        return Reason.OOM_CHILD, "a child process was killed at the memory limit"
    return Reason.DEPENDENCY, "a container it depends on runs anew"


def _end_orphan(orphan: ActualContainer) -> Action:
    if orphan.status in RUNNING:
        return Stop(orphan.container_id, orphan.container_id, orphan.run, ORPHAN_GRACE_SECONDS, Reason.NONE)
    return Remove(orphan.container_id, orphan.container_id, Reason.NONE)


ORPHAN_GRACE_SECONDS = 30.0
"""Its specification, with its own grace, is gone; this is the default of one."""


def _written(ledger: Ledger, situation: Situation, name: ContainerName, action: Action) -> Ledger:
    """What has to be on disk before the action is begun."""
    if isinstance(action, Start):
        against = {
            need.container: situation.actual_run(need.container) for need in situation.graph[name] if need.restart
        }
        return note_start(ledger, name, situation.actual_run(name), against)
    if isinstance(action, Stop):
        return condemn(ledger, name, action.why)  # so that a one-shot that we stopped is started again
    return ledger


def _busy_names(situation: Situation) -> frozenset[ContainerName]:
    return frozenset(name for name in situation.specs if name in situation.seen.busy)


def _next_look_seconds(situation: Situation) -> float:
    """Until the first moment at which time alone changes a decision."""
    now, policy = situation.now, situation.policy
    times = [now + policy.full_look_seconds]
    for name in situation.specs:
        memory = situation.memory(name)
        times += [memory.backoff.not_before, memory.unknown_until]
        if memory.backoff.failures and situation.runs(name):
            times.append(memory.run_since + policy.backoff.good_run_seconds)
        if memory.oom_since is not None:
            times += [memory.oom_since + policy.oom_settle_seconds, memory.oom_since + policy.oom_report_seconds]
    times += situation.ledger.orphan_not_before.values()
    return min(time for time in times if time > now) - now
