"""Rollouts: a small world in which what `decide` asks for is done, by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.manifest import DiskRequirement, InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.planning import operation_kind
from healthmonitor.core.records import (
    DeploymentRecord,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    RolloutState,
    Step,
    VmBinding,
)
from healthmonitor.core.rollout import Adopt, Create, DeploymentGone, Move, Remove, RolloutDecision, decide
from protocol.ids import AgentId, CloudName, DiskName, Generation, InstanceId, OperationId, Revision, VmCid
from tests.support.hands_world import UNIX_EPOCH, deployment, group, place

NOW = UNIX_EPOCH + 10.0


class Site:
    """Does what is decided, one round at a time; operations end when the test says so."""

    def __init__(self) -> None:
        self.instances: dict[InstanceId, InstanceRecord] = {}
        self.operations: dict[InstanceId, Operation] = {}
        self.deployment: DeploymentRecord | None = None
        self.most_in_flight = 0

    def deploy(self, record: DeploymentRecord) -> None:
        self.deployment = record

    def round(self, now: float = NOW) -> RolloutDecision:
        deployment = self.deployment
        assert deployment is not None
        decision = decide(
            deployment,
            self.instances,
            self.operations,
            lambda operation: now - max(operation.started_at, deployment.deployed_at),
        )
        self.deployment = replace(deployment, rollout=decision.state, rollout_error=decision.error)
        for act in decision.acts:
            match act:
                case Create(record=record):
                    self._begin(OperationKind.CREATE, record)
                case Move(record=record, kind=kind):
                    self._begin(kind, record)
                case Adopt(record=record):
                    self.instances[record.instance] = record
                case Remove(instance=instance):
                    self._begin(OperationKind.DELETE, replace(self.instances[instance], deleting=True))
                case DeploymentGone():
                    self.deployment = None
        return decision

    def _begin(self, kind: OperationKind, record: InstanceRecord) -> None:
        assert self.deployment is not None
        self.instances[record.instance] = record
        self.operations[record.instance] = rules.begin(
            OperationId("o"), record.instance, kind, "", NOW, record.vm, None, self.deployment.revision
        )
        self.most_in_flight = max(self.most_in_flight, len(self.operations))

    def finish(self, *instances: InstanceId) -> None:
        for instance in instances or tuple(self.operations):
            operation = self.operations.pop(instance)
            record = self.instances[instance]
            if operation.kind is OperationKind.DELETE:
                del self.instances[instance]
            elif record.vm is None:
                vm = VmBinding(AgentId(instance), Generation(1), "k", VmCid("vm"))
                self.instances[instance] = replace(record, vm=vm, generation=Generation(1))

    def settle(self) -> RolloutDecision:
        for _ in range(50):
            decision = self.round()
            if self.deployment is None or decision.state in (RolloutState.DONE, RolloutState.FAILED):
                return decision
            self.finish()
        raise AssertionError("never settles")

    def at(self, revision: int) -> set[InstanceId]:
        return {key for key, record in self.instances.items() if record.deployment_revision == Revision(revision)}


def deployed(*groups: InstanceGroup) -> Site:
    site = Site()
    site.deploy(deployment(*groups))
    assert site.settle().state is RolloutState.DONE
    return site


FIVE = group(instances=5, update=UpdatePolicy(canaries=1, max_in_flight=2))


def test_canary_first_then_the_rest_at_most_so_many_at_once() -> None:
    """One canary alone; after it is healthy two at a time, until all are at the new revision."""
    site = deployed(FIVE)
    site.most_in_flight = 0
    site.deploy(deployment(replace(FIVE, containers=()), revision=2))
    first = site.round()
    assert (first.state, set(site.operations)) == (RolloutState.CANARIES, {place()})
    assert site.round().acts == (), "nothing more while the canary is not healthy"
    site.finish()
    assert site.round().state is RolloutState.REST
    assert set(site.operations) == {place(index=1), place(index=2)}
    site.finish(place(index=2))
    site.round()
    assert set(site.operations) == {place(index=1), place(index=3)}
    assert site.settle().state is RolloutState.DONE
    assert site.most_in_flight == 2
    assert len(site.at(2)) == 5


def test_new_groups_have_canaries_too_and_then_are_made_at_once() -> None:
    """Nobody depends on what is not there yet: after the canary the others are made without waiting in line."""
    site = Site()
    site.deploy(deployment(FIVE))
    site.round()
    assert set(site.operations) == {place()}
    site.finish()
    site.round()
    assert len(site.operations) == 4


def _unhealthy(operation: Operation) -> Operation:
    return replace(operation, step=Step.HEALTHY, hold=Hold.UNHEALTHY, error="redis is crash_loop")


def _slow(operation: Operation) -> Operation:
    return replace(operation, step=Step.CREATE_VM, hold=Hold.RETRYING, error="quota", started_at=NOW - 301.0)


@pytest.mark.parametrize("fail", [_unhealthy, _slow])
@pytest.mark.parametrize("healthy_before", [0, 1, 3])
def test_a_failing_instance_stops_the_rest(fail: object, healthy_before: int) -> None:
    """Canary or not, failing or too slow: the rollout fails, says why, and moves, makes and removes nothing else."""
    assert callable(fail)
    site = deployed(FIVE)
    changed = replace(FIVE, containers=())
    site.deploy(replace(deployment(changed, group("web"), revision=2), deployed_at=NOW - 1000.0))
    for _ in range(50):
        site.round()
        done = len([key for key in site.at(2) if key not in site.operations and "db" in key])
        if done >= healthy_before and any("db" in key for key in site.operations):
            break
        site.finish(next(iter(site.operations)))
    before = dict(site.instances)
    broken = next(key for key in site.operations if "db" in key)
    site.operations[broken] = fail(site.operations[broken])
    decision = site.round()
    assert decision.state is RolloutState.FAILED
    assert decision.acts == ()
    assert broken in decision.error
    assert site.round().acts == (), "and it stays so"
    assert site.instances == before


def test_only_what_this_rollout_moved_can_fail_it() -> None:
    """An instance that was unhealthy before, by itself, does not stop a rollout that may mend it."""
    site = deployed(FIVE)
    site.operations[place(index=4)] = replace(
        rules.begin(OperationId("o"), place(index=4), OperationKind.RESURRECT, "", 0.0, None),
        step=Step.HEALTHY,
        hold=Hold.UNHEALTHY,
    )
    site.deploy(deployment(replace(FIVE, containers=()), revision=2))
    assert site.settle().state is RolloutState.DONE
    assert len(site.at(2)) == 5


def test_going_back_after_a_failure_touches_only_what_was_moved() -> None:
    """Deploying the former manifest after a failed canary moves the canary back and no other."""
    site = deployed(FIVE)
    site.deploy(deployment(replace(FIVE, containers=()), revision=2))
    site.round()
    site.operations[place()] = _unhealthy(site.operations[place()])
    assert site.round().state is RolloutState.FAILED
    site.deploy(deployment(FIVE, revision=3))
    decision = site.round()
    assert [act.record.instance for act in decision.acts if isinstance(act, Move)] == [place()]
    assert len([act for act in decision.acts if isinstance(act, Adopt)]) == 4
    site.finish()
    assert site.settle().state is RolloutState.DONE
    assert len(site.at(3)) == 5


def test_what_did_not_change_is_adopted_without_an_operation() -> None:
    """Another group's change, and a change that no VM sees, begin nothing."""
    web = group("web", instances=2)
    site = deployed(FIVE, web)
    revisions = {key: record.revision for key, record in site.instances.items()}
    site.deploy(deployment(replace(FIVE, resurrection=False), web, revision=2))
    assert site.settle().state is RolloutState.DONE
    assert site.operations == {}
    assert len(site.at(2)) == 7
    assert {key: record.revision for key, record in site.instances.items()} == revisions
    assert not site.instances[place()].group.resurrection


def test_a_moved_instance_gets_a_new_revision_of_its_specification() -> None:
    """The agent refuses older revisions, so each move raises it by one."""
    site = deployed(FIVE)
    before = site.instances[place()].revision
    site.deploy(deployment(replace(FIVE, containers=()), revision=2))
    site.round()
    assert site.instances[place()].revision == before + 1


def test_fewer_instances_are_removed_only_after_the_canaries() -> None:
    """Removals come last, and the rollout is over when they are gone."""
    site = deployed(FIVE)
    site.deploy(deployment(replace(FIVE, instances=3, containers=()), revision=2))
    assert not any(isinstance(act, Remove) for act in site.round().acts)
    site.finish()
    removed = {act.instance for act in site.round().acts if isinstance(act, Remove)}
    assert removed == {place(index=3), place(index=4)}
    assert site.settle().state is RolloutState.DONE
    assert set(site.instances) == {place(index=index) for index in range(3)}


def test_a_deleted_deployment_is_forgotten_last() -> None:
    """All instances at once, whatever they are doing; the deployment's record when none is left."""
    site = deployed(FIVE)
    assert site.deployment is not None
    site.deploy(replace(site.deployment, deleting=True))
    assert len([act for act in site.round().acts if isinstance(act, Remove)]) == 5
    assert site.round().acts == ()
    site.finish()
    site.round()
    assert site.deployment is None


def test_a_disk_cannot_follow_into_another_cloud() -> None:
    """A changed cloud fails the rollout before anything is touched, with what to do."""
    site = deployed(FIVE)
    site.deploy(deployment(replace(FIVE, cloud=CloudName("other")), revision=2))
    decision = site.round()
    assert (decision.state, decision.acts) == (RolloutState.FAILED, ())
    assert "disks cannot follow" in decision.error


@pytest.mark.parametrize("step", [Step.CONFIRM, Step.GUARD, Step.FENCE])
def test_a_lost_instance_is_left_to_its_resurrection(step: Step) -> None:
    """What is not fenced yet is not moved; the rollout waits for it and does not end."""
    site = deployed(group(instances=1))
    lost = rules.begin(OperationId("o"), place(), OperationKind.RESURRECT, "", NOW, site.instances[place()].vm)
    site.operations[place()] = replace(lost, step=step)
    site.deploy(deployment(group(instances=1, image="redis:8"), revision=2))
    decision = site.round()
    assert (decision.state, decision.acts) == (RolloutState.CANARIES, ())


def test_an_ignored_instance_is_not_moved() -> None:
    """A person said to leave it alone."""
    site = deployed(FIVE)
    site.instances[place()] = replace(site.instances[place()], ignore=True)
    site.deploy(deployment(replace(FIVE, containers=()), revision=2))
    site.round()
    assert set(site.operations) == {place(index=1)}
    assert site.settle().state is RolloutState.DONE
    assert place() not in site.at(2)


KINDS = [
    (group(), None),
    (group(image="redis:8"), OperationKind.UPDATE),
    (group(disks={"data": 2048}), OperationKind.UPDATE),
    (group(networks=("n",)), OperationKind.UPDATE),
    (group(stemcell="debian-13"), OperationKind.RECREATE),
    (group(vm=VmSize(cpus=2)), OperationKind.RECREATE),
    (group(vm=VmSize(cpus=2), image="redis:8"), OperationKind.RECREATE),
    (group(update=UpdatePolicy(canaries=0)), None),
    (group(instances=9), None),
    (group(disks={"data": 2048}), OperationKind.UPDATE),
    (
        replace(group(), disks=(DiskRequirement(DiskName("data"), 1024, cloud_properties={"type": "fast"}),)),
        OperationKind.UPDATE,
    ),
]


@pytest.mark.parametrize(("new", "kind"), KINDS)
def test_what_a_change_takes(new: InstanceGroup, kind: OperationKind | None) -> None:
    """In place where the VM stays the same, anew where it does not, nothing where it does not see it."""
    assert operation_kind(group(), new) is kind


@pytest.mark.parametrize(("new", "kind"), KINDS)
def test_the_rollout_does_what_a_change_takes(new: InstanceGroup, kind: OperationKind | None) -> None:
    """An instance is moved by that kind of operation; when it takes none, the new group is only noted."""
    site = Site()
    site.deploy(deployment(group()))
    site.settle()
    site.deploy(deployment(replace(new, instances=1), revision=2))
    acts = site.round().acts
    assert [act.kind for act in acts if isinstance(act, Move)] == ([] if kind is None else [kind])
    adopted = [act.record.group for act in acts if isinstance(act, Adopt)]
    assert adopted == ([replace(new, instances=1)] if kind is None else [])
