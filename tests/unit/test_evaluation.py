"""Expected against actual, one instance at a time, by table."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.evaluation import (
    Expectations,
    evaluate,
    evaluate_monitor,
    evaluate_strangers,
    may_be_stranger_still,
)
from healthmonitor.core.health import lacking
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.liveness import Hearing
from healthmonitor.core.manifest import DiskGrowth, DiskRequirement, InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    DiskBinding,
    Hold,
    InstanceRecord,
    Operation,
    OperationKind,
    Severity,
    Step,
    VmBinding,
)
from protocol.heartbeat import (
    ContainerGlance,
    ContainerState,
    DiskGlance,
    DiskState,
    EngineState,
    ExtensionGlance,
    Glance,
    Reason,
)
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.spec import ContainerSpec, Wanted, spec_hash

POLICY = Policy()
REDIS = ContainerSpec(ContainerName("redis"), "redis:7")
VM = VmBinding(AgentId("agent-0"), Generation(1), "shop-db-0-1", VmCid("vm-0"))
RECORD = InstanceRecord(
    instance=InstanceId("shop/db/0"),
    deployment=DeploymentName("shop"),
    index=0,
    group=InstanceGroup("db", 1, VmSize(), "debian-12", CloudName("local"), (), (REDIS,), UpdatePolicy()),
    deployment_revision=Revision(1),
    revision=Revision(1),
    generation=Generation(1),
    vm=VM,
    disks=(DiskBinding(DiskName("data"), "shop-db-0-data", 1024, DiskCid("disk-0")),),
)
GOOD = ContainerGlance("redis", ContainerState.RUNNING, spec_hash=spec_hash(REDIS))
MOUNTED = DiskGlance("data", DiskState.MOUNTED)
LEASES = (POLICY.liveness.lease_seconds, POLICY.liveness.suspect_after_seconds)
HEARD = ExtensionGlance(
    generation=1,
    revision=1,
    boot_id="boot",
    instance="shop/db/0",
    engine=EngineState.UP,
    containers=(GOOD,),
    disks=(MOUNTED,),
)


def extension(**changes: object) -> ExtensionGlance:
    fields = {name: getattr(HEARD, name) for name in HEARD.__struct_fields__}
    return ExtensionGlance(**{**fields, **changes})


def view(said: ExtensionGlance | None = HEARD, verdict: Verdict = Verdict.ALIVE, quiet: float = 0.0) -> AgentView:
    return AgentView(AgentId("agent-0"), verdict, "evidence", Glance(resurgam=said), 0.0, quiet, 1000.0, *LEASES)


def container(state: ContainerState, reason: Reason = Reason.NONE, **more: object) -> ExtensionGlance:
    return extension(containers=(ContainerGlance("redis", state, reason, **more),))  # type: ignore[arg-type]


def disk(state: DiskState) -> ExtensionGlance:
    return extension(disks=(DiskGlance("data", state),))


def kinds(record: InstanceRecord, operation: Operation | None, seen: AgentView | None) -> list[str]:
    return [each.kind for each in evaluate(record, operation, seen, Expectations(), POLICY)]


def operation(kind: OperationKind, step: Step = Step.APPLY, hold: Hold = Hold.NONE, same_vm: bool = True) -> Operation:
    old = VM if same_vm else replace(VM, agent_id=AgentId("agent-old"))
    return Operation(OperationId("op"), RECORD.instance, kind, step, "why", 0.0, old_vm=old, hold=hold)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(HEARD, [], id="all-is-well"),
        pytest.param(container(ContainerState.COMPLETED), [], id="one-shot-done"),
        pytest.param(container(ContainerState.BACKING_OFF, Reason.EXITED), ["container_not_running"], id="exited"),
        pytest.param(container(ContainerState.CRASH_LOOP, Reason.OOM_KILLED), ["container_not_running"], id="oom-loop"),
        pytest.param(container(ContainerState.UNHEALTHY, Reason.UNHEALTHY), ["container_not_running"], id="unhealthy"),
        pytest.param(container(ContainerState.STOPPED, Reason.ISOLATED), ["container_not_running"], id="isolation"),
        pytest.param(extension(containers=()), ["container_not_running"], id="not-reported"),
        pytest.param(extension(containers=(), revision=0), ["specification_drift"], id="not-applied-yet"),
        pytest.param(extension(engine=EngineState.HUNG), ["engine_not_up"], id="engine-hung"),
        pytest.param(extension(engine=EngineState.DOWN), ["engine_not_up"], id="engine-down"),
        pytest.param(extension(disks=()), ["disk_missing"], id="disk-not-reported"),
        pytest.param(disk(DiskState.MISSING), ["disk_missing"], id="disk-missing"),
        pytest.param(disk(DiskState.ATTACHED), ["disk_not_mounted"], id="disk-not-mounted"),
        pytest.param(disk(DiskState.READ_ONLY), ["disk_read_only"], id="disk-read-only"),
        pytest.param(disk(DiskState.FAILED), ["disk_failed"], id="disk-refused"),
        pytest.param(extension(revision=2), ["specification_drift"], id="newer-than-expected"),
        pytest.param(extension(generation=2), ["specification_drift"], id="another-generation"),
        pytest.param(
            container(ContainerState.RUNNING, spec_hash="0" * 16), ["specification_drift"], id="another-specification"
        ),
        pytest.param(extension(isolated=True), ["isolated"], id="isolated"),
        pytest.param(
            extension(containers=(GOOD, ContainerGlance("old", ContainerState.ORPHANED))),
            ["container_orphaned"],
            id="orphan",
        ),
    ],
)
def test_what_an_agent_says_against_what_is_expected(said: ExtensionGlance, expected: list[str]) -> None:
    """Each difference is one deviation of its kind, and nothing else is."""
    assert kinds(RECORD, None, view(said)) == expected


@pytest.mark.parametrize(
    "stopped", [replace(RECORD, wanted=Wanted.STOPPED), replace(RECORD, stopped_containers=(ContainerName("redis"),))]
)
def test_what_is_stopped_by_a_persons_word_may_be_of_an_older_specification(stopped: InstanceRecord) -> None:
    """It is made anew when it is started. A deployment over a stopped instance used to wait for that for ever
    (simulation: words, seed 308)."""
    still = extension(containers=(ContainerGlance("redis", ContainerState.STOPPED, spec_hash="0" * 16),))
    assert kinds(stopped, None, view(still)) == []
    assert lacking(stopped, Glance(resurgam=still)) == []
    assert lacking(RECORD, Glance(resurgam=still)) == ["redis is stopped"]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.EXITED, "its process ended"),
        (Reason.OOM_KILLED, "want of memory"),
        (Reason.IMAGE_MISSING, "image cannot be had"),
        (Reason.PORT_IN_USE, "port that it publishes is taken"),
        (Reason.UNHEALTHY, "health check fails"),
        (Reason.DEPENDENCY, "depends on"),
    ],
)
def test_the_reason_is_named(reason: Reason, words: str) -> None:
    """Why a container does not run is said in the title, under one key whatever the reason."""
    found = evaluate(RECORD, None, view(container(ContainerState.BACKING_OFF, reason)), Expectations(), POLICY)
    assert words in found[0].title
    assert found[0].key == "container_not_running:shop/db/0/redis"


def test_a_crash_loop_is_known_at_once_and_a_restart_is_given_its_time() -> None:
    """A crash loop has taken long enough to be called so; a first exit has not."""
    after = {
        state: evaluate(RECORD, None, view(container(state)), Expectations(), POLICY)[0].after_seconds
        for state in (ContainerState.CRASH_LOOP, ContainerState.BACKING_OFF, ContainerState.PULLING)
    }
    assert after[ContainerState.CRASH_LOOP] == POLICY.incidents.after_seconds
    assert after[ContainerState.BACKING_OFF] == POLICY.incidents.container_after_seconds
    assert after[ContainerState.PULLING] == POLICY.resurrection.healthy_seconds


def test_containers_that_are_stopped_for_a_disk_are_no_incident() -> None:
    """While disks are changed their containers stand still and they are not mounted; that it does not go on is said."""
    seen = view(extension(containers=(ContainerGlance("redis", ContainerState.STOPPED),), disks=()))
    assert kinds(RECORD, operation(OperationKind.CHANGE_DISKS, Step.REWORK), seen) == []
    retrying = operation(OperationKind.CHANGE_DISKS, Step.REWORK, Hold.RETRYING)
    assert kinds(RECORD, retrying, seen) == ["operation_retrying"]


@pytest.mark.parametrize(
    ("percent", "inode_percent", "errors", "full_in", "expected"),
    [
        (50.0, 50.0, 0, None, []),
        (90.0, 50.0, 0, None, ["disk_filling"]),
        (50.0, 50.0, 0, 3600.0, ["disk_filling"]),
        (99.0, 95.0, 2, None, ["disk_errors", "disk_full", "disk_inodes"]),
    ],
)
def test_a_disk_that_is_mounted_and_not_well(
    percent: float, inode_percent: float, errors: int, full_in: float | None, expected: list[str]
) -> None:
    """Everything else is as it should be, and was the last time too: the short way does not pass it over."""
    report = DiskGlance("data", DiskState.MOUNTED, percent, inode_percent, errors)
    seen, expectations = view(extension(disks=(report,))), Expectations()
    for _ in range(2):
        found = evaluate(RECORD, None, seen, expectations, POLICY, lambda disk: full_in)
        assert [each.kind for each in found] == expected


@pytest.mark.parametrize(("up_to_mib", "expected"), [(RECORD.disks[0].size_mib, ["disk_growth_limit"]), (10**6, [])])
def test_a_disk_that_may_not_grow_any_further(up_to_mib: int, expected: list[str]) -> None:
    """It grows by itself, is filling again, and has all that it may have; the short way does not pass it over."""
    wanted = DiskRequirement(DiskName("data"), 512, grow=DiskGrowth(0.8, 0.25, up_to_mib))
    record = replace(RECORD, group=replace(RECORD.group, disks=(wanted,)))
    seen, expectations = view(extension(disks=(DiskGlance("data", DiskState.MOUNTED, 82.0, 1.0, 0),))), Expectations()
    for _ in range(2):
        found = evaluate(record, None, seen, expectations, POLICY)
        assert [each.kind for each in found] == expected


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(view(verdict=Verdict.MISSING), ["vm_missing"], id="missing"),
        pytest.param(view(verdict=Verdict.SUSPECT), ["vm_suspect"], id="suspect"),
        pytest.param(view(verdict=Verdict.CANNOT_TELL), [], id="cannot-tell-is-the-monitors"),
        pytest.param(view(quiet=31.0), ["heartbeats_missing"], id="answers-only"),
        pytest.param(
            view(container(ContainerState.UNHEALTHY), Verdict.MISSING),
            ["vm_missing", "container_not_running"],
            id="what-a-missing-vm-last-said-is-kept",
        ),
    ],
)
def test_the_verdict_as_a_deviation(seen: AgentView, expected: list[str]) -> None:
    """A VM's verdict is a deviation of its own."""
    assert kinds(RECORD, None, seen) == expected


BROKEN = container(ContainerState.UNHEALTHY)


@pytest.mark.parametrize(
    ("under_way", "said", "verdict", "expected"),
    [
        pytest.param(
            operation(OperationKind.RESURRECT, Step.FENCE), HEARD, Verdict.MISSING, ["vm_missing"], id="resurrecting"
        ),
        pytest.param(
            operation(OperationKind.RESURRECT, same_vm=False), BROKEN, Verdict.ALIVE, [], id="new-vm-being-built"
        ),
        pytest.param(operation(OperationKind.RECREATE, Step.FENCE), HEARD, Verdict.MISSING, [], id="off-on-purpose"),
        pytest.param(operation(OperationKind.DELETE, Step.FENCE), HEARD, Verdict.MISSING, [], id="deleted"),
        pytest.param(
            operation(OperationKind.UPDATE), extension(revision=0), Verdict.ALIVE, [], id="drift-is-being-mended"
        ),
        pytest.param(
            operation(OperationKind.UPDATE), BROKEN, Verdict.ALIVE, ["container_not_running"], id="update-in-place"
        ),
        pytest.param(
            operation(OperationKind.RESURRECT, Step.FENCE, Hold.UNFENCED),
            HEARD,
            Verdict.MISSING,
            ["operation_unfenced", "vm_missing"],
            id="unfenced",
        ),
        pytest.param(
            operation(OperationKind.RESURRECT, Step.HEALTHY, Hold.UNHEALTHY, same_vm=False),
            BROKEN,
            Verdict.ALIVE,
            ["operation_unhealthy", "container_not_running"],
            id="unhealthy",
        ),
        pytest.param(
            operation(OperationKind.RESURRECT, Step.GUARD, Hold.MELTDOWN),
            HEARD,
            Verdict.MISSING,
            ["operation_held", "vm_missing"],
            id="held",
        ),
    ],
)
def test_an_operation_explains_what_it_is_there_to_change(
    under_way: Operation, said: ExtensionGlance, verdict: Verdict, expected: list[str]
) -> None:
    """What an operation mends is no deviation; what holds the operation up is."""
    assert kinds(RECORD, under_way, view(said, verdict)) == expected


@pytest.mark.parametrize(
    ("record", "seen", "expected"),
    [
        pytest.param(replace(RECORD, vm=None), None, ["instance_has_no_vm"], id="no-vm"),
        pytest.param(replace(RECORD, ignore=True), view(verdict=Verdict.MISSING), [], id="ignored"),
        pytest.param(replace(RECORD, deleting=True), view(verdict=Verdict.MISSING), [], id="deleting"),
        pytest.param(
            replace(RECORD, wanted=Wanted.STOPPED), view(container(ContainerState.STOPPED)), [], id="stopped-as-wanted"
        ),
        pytest.param(
            replace(RECORD, wanted=Wanted.STOPPED), view(), ["container_not_stopped"], id="runs-though-stopped"
        ),
        pytest.param(
            replace(RECORD, stopped_containers=("redis",)),
            view(container(ContainerState.STOPPED)),
            [],
            id="one-container-stopped",
        ),
    ],
)
def test_what_a_person_said_counts(record: InstanceRecord, seen: AgentView | None, expected: list[str]) -> None:
    """What was stopped, ignored or deleted on purpose is as expected."""
    assert kinds(record, None, seen) == expected


def test_strangers_are_reported_after_a_while_and_old_vms_as_what_they_are() -> None:
    """An unknown agent is reported once it keeps sending; one that claims an instance of ours is an alarm."""
    bosh = AgentView(
        AgentId("a"), Verdict.ALIVE, "", Glance(deployment="cf", job="nats", job_state="failing"), 0, 0, 61, *LEASES
    )
    fresh = AgentView(AgentId("b"), Verdict.ALIVE, "", Glance(), 0, 0, 5, *LEASES)
    old = AgentView(AgentId("c"), Verdict.ALIVE, "", Glance(resurgam=HEARD), 0, 0, 5, *LEASES, claims="shop/db/0")
    # Replaced, fenced and deleted: its last word is older than a lease, so it does not speak.
    gone = msgspec.structs.replace(
        old, agent=AgentId("d"), heartbeats_missing_seconds=POLICY.liveness.lease_seconds, known_seconds=54
    )
    found = {(each.kind, each.subject): each for each in evaluate_strangers([bosh, fresh, old, gone], POLICY)}
    assert set(found) == {("agent_stranger", "a"), ("job_failing", "a"), ("agent_duplicate", "c")}
    assert found["agent_duplicate", "c"].severity is Severity.ALERT


def test_a_bosh_agent_that_nobody_expects_speaks_for_as_long_as_its_own_cadence() -> None:
    """It beats every 30 s: 20 s after its last heartbeat it has not fallen silent, 50 s after it has."""
    bosh = AgentView(AgentId("a"), Verdict.ALIVE, "", Glance(deployment="cf", job="nats"), 20, 20, 61, 60.0, 45.0)
    gone = msgspec.structs.replace(bosh, heartbeats_missing_seconds=50)
    assert [each.kind for each in evaluate_strangers([bosh, gone], POLICY)] == ["agent_stranger"]


def test_a_restart_of_the_monitor_neither_ends_nor_repeats_that_a_stranger_is_there() -> None:
    """Who was reported before is taken for one still until it was listened for, and known, as long as for a report."""
    speaks = AgentView(AgentId("a"), Verdict.ALIVE, "", Glance(), 0, 0, 20, *LEASES)
    silent = msgspec.structs.replace(speaks, heartbeats_missing_seconds=POLICY.liveness.lease_seconds)
    for view, listened_seconds, expected in (
        (None, 20, True),  # a real bosh-agent may not have spoken yet
        (None, 61, False),
        (speaks, 20, True),
        (speaks, 1000, True),
        (silent, 1000, False),
        (msgspec.structs.replace(speaks, known_seconds=100), 1000, False),
        (msgspec.structs.replace(speaks, verdict=Verdict.MISSING), 20, False),
    ):
        assert may_be_stranger_still(view, listened_seconds, POLICY) is expected, (view, listened_seconds)


@pytest.mark.parametrize(
    ("hearing", "connected", "meltdowns", "expected"),
    [
        (Hearing(0), True, {}, []),
        (Hearing(0, "just started"), True, {}, ["cannot_tell"]),
        (Hearing(0, "no bus"), False, {}, ["bus_lost"]),
        (Hearing(0, "", "12 of 20"), True, {}, ["mass_silence"]),
        (Hearing(0), True, {"fleet": "many", "shop": "all"}, ["meltdown", "meltdown"]),
    ],
)
def test_the_monitors_own_deviations(
    hearing: Hearing, connected: bool, meltdowns: dict[str, str], expected: list[str]
) -> None:
    """What the monitor cannot know is one deviation, not one for each VM."""
    assert [each.kind for each in evaluate_monitor(hearing, connected, meltdowns, POLICY)] == expected
