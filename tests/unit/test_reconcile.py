"""What is decided about containers: one look at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.core.actions import Action, Create, Outcome, Pull, Remove, Stop
from agent.core.ledger import Ledger, Note, record, request_restart
from agent.core.reconcile import Decision, Observation, Situation, SupervisionPolicy, decide, spec_hashes
from agent.core.reporting import Since, reports
from agent.engine import ActualContainer, EngineRefused, EngineUnavailable, Health, ImageMissing, PortInUse, Status
from protocol.heartbeat import ContainerReport, ContainerState, Reason
from protocol.ids import ContainerName, DeploymentName, DiskName, Generation, InstanceId, Revision
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    Healthcheck,
    InstanceSpec,
    Mount,
    MountKind,
    OnIsolation,
    Restart,
    Wanted,
    spec_hash,
)

POLICY = SupervisionPolicy()
INSTANCE = InstanceId("shop/db/0")


def container(name: str, *needs: str | Dependency, **options: Any) -> ContainerSpec:
    dependencies = tuple(need if isinstance(need, Dependency) else Dependency(ContainerName(need)) for need in needs)
    return ContainerSpec(ContainerName(name), options.pop("image", "image:1"), depends_on=dependencies, **options)


def instance(*containers: ContainerSpec, **options: Any) -> InstanceSpec:
    return InstanceSpec(
        INSTANCE, DeploymentName("shop"), "db", 0, Generation(1), Revision(1), containers=containers, **options
    )


def running(spec: ContainerSpec, run: int = 1, **options: Any) -> ActualContainer:
    options.setdefault("status", Status.RUNNING)
    return ActualContainer(
        f"id-{spec.name}",
        spec.name,
        options.pop("instance", INSTANCE),
        options.pop("spec_hash", spec_hash(spec)),
        run=f"{spec.name}@{run}" if run else "",
        pid=run,
        **options,
    )


def ended(spec: ContainerSpec, run: int = 1, exit_code: int = 1, **options: Any) -> ActualContainer:
    options.setdefault("status", Status.EXITED)
    return running(spec, run, exit_code=exit_code, **options)


class Play:
    """A course of looks: keeps the ledger, tells the last decision."""

    def __init__(self, spec: InstanceSpec | None, **seen: Any) -> None:
        self.spec = spec
        self.ledger = Ledger()
        self.now = 1000.0
        self.seen = seen
        self.last = Decision(self.ledger, (), {}, 0.0)

    def look(self, *actual: ActualContainer, after: float = 0.1, **seen: Any) -> tuple[Action, ...]:
        self.now += after
        self.observation = Observation(actual, **{**self.seen, **seen})
        hashes = spec_hashes(self.spec) if self.spec is not None else {}
        self.last = decide(self.ledger, self.spec, hashes, self.observation, self.now, POLICY)
        self.ledger = self.last.ledger
        return self.last.actions

    def done(self, action: Action, error: Any = None) -> None:
        name = ContainerName(action.key)
        self.ledger = record(self.ledger, Outcome(name, action, error), self.now, POLICY.backoff)

    def report(self, name: str) -> ContainerReport:
        assert self.spec is not None
        situation = Situation(self.ledger, self.spec, self.observation, self.now, POLICY, spec_hashes(self.spec))
        found, _ = reports(situation, Since())
        return next(report for report in found if report.name == name)

    def said(self, name: str) -> tuple[ContainerState, Reason]:
        report = self.report(name)
        return report.state, report.reason


def kinds(actions: tuple[Action, ...]) -> set[tuple[str, str]]:
    return {(type(action).__name__, action.key) for action in actions}


REDIS = container("redis")
CACHE = container("cache", "redis")
WEB = container("web", "cache")
OTHER = container("other")
CHAIN = (REDIS, CACHE, WEB, OTHER)


@pytest.mark.parametrize(
    ("spec", "actual", "expected"),
    [
        ("nothing there", (), {("Pull", "redis")}),
        ("runs", (running(REDIS),), set()),
        ("created", (running(REDIS, 0, status=Status.CREATED),), {("Start", "redis")}),
        ("ended", (ended(REDIS),), {("Start", "redis")}),
        ("ended with 0", (ended(REDIS, exit_code=0),), {("Start", "redis")}),
        ("dead", (ended(REDIS, status=Status.DEAD),), {("Pull", "redis")}),
        ("being removed", (running(REDIS, status=Status.REMOVING),), set()),
        ("paused", (running(REDIS, status=Status.PAUSED),), set()),
        ("unhealthy", (running(REDIS, health=Health.UNHEALTHY),), {("Stop", "redis")}),
        ("not healthy yet", (running(REDIS, health=Health.STARTING),), set()),
        ("other hash", (running(REDIS, spec_hash="old"),), {("Pull", "redis")}),
        ("orphan runs", (running(REDIS), running(OTHER)), {("Stop", "id-other")}),
        ("orphan ended", (running(REDIS), ended(OTHER)), {("Remove", "id-other")}),
        ("of another instance", (running(REDIS), running(OTHER, instance="x/y/1")), {("Stop", "id-other")}),
        ("same name, other instance", (ended(REDIS, instance="x/y/1"),), {("Remove", "id-redis")}),
    ],
)
def test_first_look(spec: str, actual: tuple[ActualContainer, ...], expected: set[tuple[str, str]]) -> None:
    """What one look at one container leads to."""
    assert kinds(Play(instance(REDIS)).look(*actual)) == expected, spec


@pytest.mark.parametrize(
    ("restart", "limit", "exit_code", "is_started", "state"),
    [
        (Restart.ALWAYS, 0, 0, True, None),
        (Restart.UNLESS_STOPPED, 0, 1, True, None),
        (Restart.NO, 0, 0, False, ContainerState.COMPLETED),
        (Restart.NO, 0, 3, False, ContainerState.FAILED),
        (Restart.ON_FAILURE, 0, 0, False, ContainerState.COMPLETED),
        (Restart.ON_FAILURE, 0, 3, True, None),
        (Restart.ON_FAILURE, 1, 3, True, None),
    ],
)
def test_restart_policies(
    restart: Restart, limit: int, exit_code: int, is_started: bool, state: ContainerState | None
) -> None:
    """What the end of a run means under each policy."""
    spec = container("job", restart=restart, restart_limit=limit)
    play = Play(instance(spec))
    actions = play.look(ended(spec, exit_code=exit_code))
    assert kinds(actions) == ({("Start", "job")} if is_started else set())
    if state is not None:
        assert play.report("job").state is state
        assert play.report("job").exit_code == exit_code


def test_on_failure_limit_is_kept() -> None:
    """`on-failure:2` restarts twice in a row, then FAILED."""
    spec = container("job", restart=Restart.ON_FAILURE, restart_limit=2)
    play = Play(instance(spec))
    starts = 0
    for run in range(1, 6):
        play.look(ended(spec, run))
        if kinds(play.look(ended(spec, run), after=2.0)) == {("Start", "job")}:
            starts += 1
            play.look(running(spec, run + 1))
        else:
            break
    assert starts == 2
    assert play.said("job") == (ContainerState.FAILED, Reason.EXITED)


def test_no_specification_or_no_engine_touches_nothing() -> None:
    """In doubt nothing is done: before the specification was read, and while the engine does not answer."""
    assert Play(None).look(running(REDIS), ended(OTHER)) == ()
    play = Play(instance(REDIS))
    decision = decide(play.ledger, play.spec, {}, Observation(None), 1.0, POLICY)
    assert decision.actions == ()


def test_from_nothing_to_running() -> None:
    """Image, creation, start, each once the one before is done; busy is left alone."""
    play = Play(instance(REDIS))
    (pull,) = play.look()
    assert play.look(busy={"redis": pull}) == ()
    assert play.said("redis") == (ContainerState.PULLING, Reason.NONE)
    play.done(pull)
    (create,) = play.look()
    assert isinstance(create, Create)
    play.done(create)
    (start,) = play.look(running(REDIS, 0, status=Status.CREATED))
    play.done(start)
    assert play.look(running(REDIS)) == ()
    assert play.said("redis") == (ContainerState.RUNNING, Reason.NONE)
    assert play.report("redis").restarts == 0


@pytest.mark.parametrize(
    ("action_kind", "error", "reason"),
    [
        ("Pull", ImageMissing("no such image"), Reason.IMAGE_MISSING),
        ("Pull", EngineRefused("bad reference"), Reason.CREATE_FAILED),
        ("Create", EngineRefused("no such device"), Reason.CREATE_FAILED),
        ("Create", ImageMissing("pruned meanwhile"), Reason.IMAGE_MISSING),
        ("Start", EngineRefused("exec: not found"), Reason.START_FAILED),
        ("Start", PortInUse("port is already allocated"), Reason.PORT_IN_USE),
    ],
)
def test_refusals_are_named_and_retried_later(action_kind: str, error: Exception, reason: Reason) -> None:
    """The engine's no: the reason and its text, a gap, then the next try."""
    play = Play(instance(REDIS))
    there: tuple[ActualContainer, ...] = ()
    for _ in range(3):
        (action,) = play.look(*there)
        if type(action).__name__ == action_kind:
            break
        play.done(action)
        if isinstance(action, Create):
            there = (running(REDIS, 0, status=Status.CREATED),)
    play.done(action, error)
    assert play.look(*there) == ()
    assert play.said("redis") == (ContainerState.BACKING_OFF, reason)
    assert play.report("redis").detail == str(error)
    assert 0 < play.last.next_look_seconds <= 0.5
    assert len(play.look(*there, after=1.0)) == 1


def test_an_unknown_outcome_is_no_failure() -> None:
    """No answer to a start, again and again: looked at, started again a moment later, never held against the container;
    it neither backs off nor loops."""
    play = Play(instance(REDIS))
    (start,) = play.look(ended(REDIS))
    failures = play.ledger.memories[REDIS.name].backoff.failures  # its own end
    for _ in range(POLICY.backoff.crash_loop_failures + 1):
        play.done(start, EngineUnavailable("no answer"))
        assert play.look(ended(REDIS)) == ()
        assert play.report("redis").state is ContainerState.PENDING
        assert play.report("redis").detail == "no answer"
        (start,) = play.look(ended(REDIS), after=1.0)
        assert kinds((start,)) == {("Start", "redis")}
    assert play.ledger.memories[REDIS.name].backoff.failures == failures


def test_a_start_without_an_answer_that_worked_is_left_alone() -> None:
    """The look after it shows the container running: nothing is done, and nothing is held against it."""
    play = Play(instance(REDIS))
    (start,) = play.look(running(REDIS, 0, status=Status.CREATED))
    play.done(start, EngineUnavailable("no answer within 180 s"))
    assert play.look(running(REDIS)) == ()
    assert play.said("redis") == (ContainerState.RUNNING, Reason.NONE)
    assert play.report("redis").detail == ""
    assert play.look(running(REDIS), after=2.0) == ()


def test_a_container_that_cannot_start_is_made_anew() -> None:
    """After three refused starts in a row it is removed and created again: a network it refers to may be gone."""
    play = Play(instance(REDIS))
    created = running(REDIS, 0, status=Status.CREATED)
    for _ in range(3):
        (start,) = play.look(created, after=60.0)
        play.done(start, EngineRefused("network not found"))
    (pull,) = play.look(created, after=60.0)
    play.done(pull)
    (remove,) = play.look(created)
    assert isinstance(remove, Remove)


def test_first_restart_is_immediate_then_gaps_grow() -> None:
    """A crash after a good run: at once. Crashes in a row: growing gaps, a named crash loop, never given up."""
    play = Play(instance(REDIS))
    play.look(running(REDIS, 1))
    assert kinds(play.look(ended(REDIS, 1), after=100.0)) == {("Start", "redis")}
    gaps = []
    for run in range(2, 12):
        play.look(running(REDIS, run), after=0.2)
        actions = play.look(ended(REDIS, run), after=0.2)
        waited = 0.0
        while not actions:
            waited += play.last.next_look_seconds
            actions = play.look(ended(REDIS, run), after=play.last.next_look_seconds)
        gaps.append(round(waited, 1))
    assert gaps[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert gaps[-1] == 60.0
    play.look(running(REDIS, 12))
    assert play.said("redis") == (ContainerState.CRASH_LOOP, Reason.EXITED)
    play.look(running(REDIS, 12), after=60.0)
    assert play.said("redis") == (ContainerState.RUNNING, Reason.EXITED)


def test_a_new_specification_forgets_the_back_off() -> None:
    """A container in a crash loop whose specification changes is tried at once."""
    play = Play(instance(REDIS))
    for run in range(1, 8):
        play.look(ended(REDIS, run), after=0.1)
    assert play.said("redis")[0] is ContainerState.CRASH_LOOP
    play.spec = instance(replace(REDIS, image="image:2"))
    assert kinds(play.look(ended(REDIS, 7))) == {("Pull", "redis")}


def test_dependents_restart_when_the_dependency_is_ready() -> None:
    """A crash: the dependency is started at once, dependents keep running until it runs, then restart in order."""
    play = Play(instance(*CHAIN))
    up = {spec.name: running(spec, 1) for spec in CHAIN}
    assert play.look(*up.values()) == ()
    up[REDIS.name] = ended(REDIS, 1)
    assert kinds(play.look(*up.values())) == {("Start", "redis")}
    up[REDIS.name] = running(REDIS, 2)
    (stop,) = play.look(*up.values())
    assert kinds((stop,)) == {("Stop", "web")}
    play.done(stop)
    up[WEB.name] = ended(WEB, 1, 143)
    (stop,) = play.look(*up.values())
    assert isinstance(stop, Stop)
    assert (stop.key, stop.why) == ("cache", Reason.DEPENDENCY)
    play.done(stop)
    up[CACHE.name] = ended(CACHE, 1, 143)
    assert kinds(play.look(*up.values())) == {("Start", "cache")}
    assert play.said("web") == (ContainerState.PENDING, Reason.DEPENDENCY)
    up[CACHE.name] = running(CACHE, 2)
    assert kinds(play.look(*up.values())) == {("Start", "web")}
    up[WEB.name] = running(WEB, 2)
    assert play.look(*up.values()) == ()
    assert play.report("web").restarts == 1


def test_restart_false_opts_out() -> None:
    """A dependent that does not want to be restarted with its dependency is not."""
    calm = container("calm", Dependency(ContainerName("redis"), restart=False))
    play = Play(instance(REDIS, calm))
    play.look(running(REDIS, 1), running(calm))
    assert play.look(running(REDIS, 2), running(calm)) == ()


def test_notes_outlive_the_agent() -> None:
    """A new agent with the old one's notes restarts what is stale, and without them nothing."""
    old = Play(instance(REDIS, CACHE))
    old.look(running(REDIS, 1), running(CACHE, 1))
    with_notes = Play(instance(REDIS, CACHE))
    with_notes.ledger = Ledger(notes=old.ledger.notes)
    assert kinds(with_notes.look(running(REDIS, 2), running(CACHE, 1))) == {("Stop", "cache")}
    without = Play(instance(REDIS, CACHE))
    assert without.look(running(REDIS, 2), running(CACHE, 1)) == ()


def test_a_start_whose_end_nobody_saw_is_known_afterwards() -> None:
    """Killed between the start and its note: the new run counts as started against what the intent says."""
    old = Play(instance(REDIS, CACHE))
    old.look(running(REDIS, 1), running(CACHE, 1))
    assert kinds(old.look(running(REDIS, 1), ended(CACHE, 1))) == {("Start", "cache")}
    new = Play(instance(REDIS, CACHE))
    new.ledger = Ledger(notes=old.ledger.notes)
    assert new.look(running(REDIS, 1), running(CACHE, 2)) == ()
    assert new.ledger.notes[ContainerName("cache")] == Note(run="cache@2", against={ContainerName("redis"): "redis@1"})
    assert kinds(new.look(running(REDIS, 2), running(CACHE, 2))) == {("Stop", "cache")}


def test_a_one_shot_that_is_done_is_not_run_again_with_its_dependency() -> None:
    """db restarts: the completed migration stays as it is, and so does what depends on it alone."""
    db = container("db")
    migrate = container("migrate", "db", restart=Restart.NO)
    app = container("app", Dependency(ContainerName("migrate"), Condition.COMPLETED))
    play = Play(instance(db, migrate, app))
    play.look(running(db, 1), ended(migrate, 1, 0), running(app, 1))
    assert play.look(running(db, 2), ended(migrate, 1, 0), running(app, 1)) == ()


@pytest.mark.parametrize(
    ("condition", "db", "is_started"),
    [
        (Condition.STARTED, running(container("db")), True),
        (Condition.STARTED, running(container("db"), health=Health.STARTING), True),
        (Condition.STARTED, running(container("db"), status=Status.PAUSED), False),
        (Condition.HEALTHY, running(container("db"), health=Health.STARTING), False),
        (Condition.HEALTHY, running(container("db"), health=Health.HEALTHY), True),
        (Condition.HEALTHY, running(container("db")), True),
        (Condition.COMPLETED, running(container("db")), False),
        (Condition.COMPLETED, ended(container("db"), exit_code=0), True),
        (Condition.COMPLETED, ended(container("db"), exit_code=1), False),
    ],
)
def test_conditions(condition: Condition, db: ActualContainer, is_started: bool) -> None:
    """When a dependency counts as met."""
    spec = container("db", restart=Restart.NO if condition is Condition.COMPLETED else Restart.ALWAYS)
    app = container("app", Dependency(ContainerName("db"), condition))
    play = Play(instance(spec, app))
    actions = play.look(db, running(app, 0, status=Status.CREATED))
    assert (("Start", "app") in kinds(actions)) is is_started
    if not is_started:
        assert play.said("app") == (ContainerState.PENDING, Reason.DEPENDENCY)
        assert "db" in play.report("app").detail


def test_a_changed_specification_stops_dependents_first() -> None:
    """Image first while the old one runs; then dependents stop, it is replaced, dependents start; others run on."""
    play = Play(instance(*CHAIN))
    play.look(*(running(spec, 1) for spec in CHAIN))
    play.spec = instance(replace(REDIS, image="image:2"), CACHE, WEB, OTHER)
    up = {spec.name: running(spec, 1) for spec in CHAIN}
    (pull,) = play.look(*up.values())
    assert isinstance(pull, Pull)
    assert play.look(*up.values(), busy={"redis": pull}) == ()
    play.done(pull)
    order = []
    for name in ("web", "cache", "redis"):
        (stop,) = play.look(*up.values())
        order.append((stop.key, stop.why if isinstance(stop, Stop) else None))
        play.done(stop)
        spec = next(item for item in CHAIN if item.name == name)
        up[spec.name] = ended(spec, 1, 143)
    assert order == [("web", Reason.DEPENDENCY), ("cache", Reason.DEPENDENCY), ("redis", Reason.SPECIFICATION_CHANGED)]
    (remove,) = play.look(*up.values())
    assert isinstance(remove, Remove)
    play.done(remove)
    del up[ContainerName("redis")]
    (create,) = play.look(*up.values())
    assert isinstance(create, Create)
    assert play.said("cache") == (ContainerState.PENDING, Reason.DEPENDENCY)


def test_an_image_that_is_missing_leaves_the_old_one_running() -> None:
    """The new image cannot be had: the old container is not stopped, and the report says both."""
    play = Play(instance(REDIS))
    play.look(running(REDIS))
    play.spec = instance(replace(REDIS, image="image:2"))
    (pull,) = play.look(running(REDIS))
    play.done(pull, ImageMissing("image:2: not found"))
    assert play.look(running(REDIS)) == ()
    assert play.said("redis") == (ContainerState.BACKING_OFF, Reason.IMAGE_MISSING)
    assert kinds(play.look(running(REDIS), after=1.0)) == {("Pull", "redis")}


def test_supervised_fields_restart_nothing() -> None:
    """A changed restart policy or grace needs no new container."""
    play = Play(instance(REDIS))
    play.look(running(REDIS))
    play.spec = instance(replace(REDIS, restart=Restart.NO, stop_grace_period_seconds=1.0))
    assert play.look(running(REDIS)) == ()


@pytest.mark.parametrize(
    ("options", "seen", "reason"),
    [
        ({"wanted": Wanted.STOPPED}, {}, Reason.OPERATOR),
        ({}, {"draining": True}, Reason.OPERATOR),
        ({"on_isolation": OnIsolation.STOP}, {"isolated": True}, Reason.ISOLATED),
    ],
)
def test_stopping_all(options: dict[str, Any], seen: dict[str, Any], reason: Reason) -> None:
    """Dependents first, independent ones at once; stays stopped and says why; starts when it is over."""
    play = Play(instance(*CHAIN, **options), **seen)
    up = {spec.name: running(spec, 1) for spec in CHAIN}
    stops = play.look(*up.values())
    assert kinds(stops) == {("Stop", "web"), ("Stop", "other")}
    for stop in stops:
        play.done(stop)
    up[ContainerName("web")], up[ContainerName("other")] = ended(WEB, 1, 143), ended(OTHER, 1, 143)
    (stop,) = play.look(*up.values())
    assert stop.key == "cache"
    play.done(stop)
    up[ContainerName("cache")] = ended(CACHE, 1, 143)
    (stop,) = play.look(*up.values())
    assert stop.key == "redis"
    play.done(stop)
    up[ContainerName("redis")] = ended(REDIS, 1, 143)
    assert play.look(*up.values()) == ()
    assert play.said("redis") == (ContainerState.STOPPED, reason)
    play.spec, play.seen = instance(*CHAIN), {}
    assert kinds(play.look(*up.values())) == {("Start", "redis"), ("Start", "other")}


def test_isolation_keeps_by_default() -> None:
    """A group that does not say `stop` runs on while the centre is away."""
    play = Play(instance(REDIS), isolated=True)
    assert play.look(running(REDIS)) == ()


def test_one_container_stopped_by_a_person() -> None:
    """Only that one; its dependents run on."""
    play = Play(instance(REDIS, CACHE, stopped_containers=(ContainerName("redis"),)))
    assert kinds(play.look(running(REDIS), running(CACHE))) == {("Stop", "redis")}
    assert play.look(ended(REDIS), running(CACHE)) == ()


def test_a_one_shot_that_was_stopped_is_started_again() -> None:
    """Stopped by a person before it was done, also when the agent restarted meanwhile: not taken for FAILED."""
    job = container("job", restart=Restart.NO)
    play = Play(instance(job, wanted=Wanted.STOPPED))
    (stop,) = play.look(running(job))
    play.done(stop)
    new = Play(instance(job))
    new.ledger = Ledger(notes=play.ledger.notes)
    assert kinds(new.look(ended(job, 1, 143))) == {("Start", "job")}


def test_a_persons_restart_forgets_the_back_off_and_takes_dependents_along() -> None:
    """`restart redis`: web, cache, redis stop in this order; a finished one-shot is run again when named."""
    play = Play(instance(*CHAIN))
    up = {spec.name: running(spec, 1) for spec in CHAIN}
    play.look(*up.values())
    play.ledger = request_restart(play.ledger, [ContainerName("redis")], up)
    assert kinds(play.look(*up.values())) == {("Stop", "web")}
    job = container("job", restart=Restart.NO)
    again = Play(instance(job))
    assert again.look(ended(job, 1, 0)) == ()
    again.ledger = request_restart(again.ledger, [ContainerName("job")], {ContainerName("job"): ended(job, 1, 0)})
    assert kinds(again.look(ended(job, 1, 0))) == {("Start", "job")}


def test_a_disk_that_is_not_mounted_is_waited_for() -> None:
    """No creation and no start without its disk; a running container is left alone."""
    spec = container("redis", mounts=(Mount(MountKind.DISK, "data", "/data"),))
    play = Play(instance(spec))
    assert play.look() == ()
    assert play.said("redis") == (ContainerState.PENDING, Reason.DISK_NOT_MOUNTED)
    assert play.look(ended(spec)) == ()
    assert play.look(running(spec, 2)) == ()
    play.seen = {"mounted": frozenset({DiskName("data")})}
    play.look(ended(spec, 3))
    assert kinds(play.look(ended(spec, 3), after=1.0)) == {("Start", "redis")}


def test_unhealthy_is_a_failure() -> None:
    """Stopped alone, started at once, counted, named; with `restart: no` only reported."""
    spec = container("redis", healthcheck=Healthcheck(("CMD", "true")))
    dependent = container("web", "redis")
    play = Play(instance(spec, dependent))
    (stop,) = play.look(running(spec, health=Health.UNHEALTHY), running(dependent))
    assert isinstance(stop, Stop)
    assert stop.why is Reason.UNHEALTHY
    play.done(stop)
    assert kinds(play.look(ended(spec, 1, 137), running(dependent))) == {("Start", "redis")}
    play.look(running(spec, 2, health=Health.HEALTHY), running(dependent))
    assert play.said("redis") == (ContainerState.RUNNING, Reason.UNHEALTHY)
    only_said = Play(instance(replace(spec, restart=Restart.NO)))
    assert only_said.look(running(spec, health=Health.UNHEALTHY)) == ()
    assert only_said.said("redis") == (ContainerState.UNHEALTHY, Reason.UNHEALTHY)


@pytest.mark.parametrize(
    ("exit_code", "flag", "reason"),
    [
        (137, True, Reason.OOM_KILLED),
        (137, False, Reason.EXITED),
        (1, True, Reason.OOM_CHILD),
        (1, False, Reason.EXITED),
    ],
)
def test_why_a_run_ended(exit_code: int, flag: bool, reason: Reason) -> None:
    """The engine's flag with 137 is the first process; with another code a child was killed before."""
    play = Play(instance(REDIS))
    play.look(ended(REDIS, 1, exit_code, oom_killed=flag))
    assert play.report("redis").reason is reason


@pytest.mark.parametrize("on_oom", ["alert", "restart", "ignore"])
def test_a_child_killed_for_memory(on_oom: str) -> None:
    """A risen counter: reported for a time, acted upon after a moment, or ignored; old kills are no news."""
    spec = container("redis", on_oom=on_oom)
    play = Play(instance(spec))
    assert play.look(running(spec), oom_kills={"redis@1": 3}) == ()
    assert play.said("redis") == (ContainerState.RUNNING, Reason.NONE)
    assert play.look(running(spec), oom_kills={"redis@1": 4}) == ()
    expected = Reason.NONE if on_oom == "ignore" else Reason.OOM_CHILD
    assert play.said("redis") == (ContainerState.RUNNING, expected)
    actions = play.look(running(spec), oom_kills={"redis@1": 4}, after=1.1)
    assert kinds(actions) == ({("Stop", "redis")} if on_oom == "restart" else set())
    if on_oom == "alert":
        play.look(running(spec), oom_kills={"redis@1": 4}, after=POLICY.oom_report_seconds)
        assert play.said("redis") == (ContainerState.RUNNING, Reason.NONE)


def test_a_container_that_somebody_removed_is_made_anew() -> None:
    """MISSING by name, and created again at once."""
    play = Play(instance(REDIS))
    play.look(running(REDIS))
    assert kinds(play.look(after=100.0)) == {("Pull", "redis")}
    assert play.said("redis") == (ContainerState.PENDING, Reason.MISSING)


def test_paused_is_reported() -> None:
    """A paused container is not touched and not called running."""
    play = Play(instance(REDIS))
    play.look(running(REDIS, status=Status.PAUSED))
    assert play.said("redis") == (ContainerState.UNHEALTHY, Reason.PAUSED)


def test_a_new_container_waits_for_an_orphan_that_runs() -> None:
    """What left the specification may write where the new one will; what ran before is not held up."""
    fresh = container("fresh")
    play = Play(instance(REDIS, fresh))
    assert kinds(play.look(ended(REDIS), running(OTHER))) == {("Start", "redis"), ("Stop", "id-other")}
    assert ("Pull", "fresh") in kinds(play.look(running(REDIS, 2), ended(OTHER)))


def test_an_orphan_that_cannot_be_removed_is_retried_later() -> None:
    """No hot loop, and still reported."""
    play = Play(instance(REDIS))
    (remove,) = play.look(running(REDIS), ended(OTHER))
    play.done(remove, EngineRefused("device busy"))
    assert play.look(running(REDIS), ended(OTHER)) == ()
    assert play.said("other")[0] is ContainerState.ORPHANED
    assert kinds(play.look(running(REDIS), ended(OTHER), after=11.0)) == {("Remove", "id-other")}


def test_of_two_containers_of_one_name_the_running_one_stays() -> None:
    """A double (somebody renamed one) is an orphan."""
    double = replace(ended(REDIS), container_id="id-double")
    assert kinds(Play(instance(REDIS)).look(double, running(REDIS))) == {("Remove", "id-double")}
