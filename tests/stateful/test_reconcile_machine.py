"""The supervisor against a lying engine: random courses of faults and changes, and what must hold after each prefix.

After every step: nothing runs that should not have been started, and no container was touched that had no reason to be.
After the faults cease: what is wanted runs, dependents were started after what they depend on, nothing else is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.engine import Health
from agent.supervisor import Supervisor
from protocol.heartbeat import ContainerState
from protocol.ids import ContainerName, DeploymentName, Generation, InstanceId, Revision
from protocol.spec import Condition, ContainerSpec, Dependency, Healthcheck, InstanceSpec, Wanted
from tests.simulation.engine import MemoryNotes, SimulatedDaemon, SimulatedEngine
from tests.simulation.loop import SimulatedLoop

NAMES = ("db", "cache", "app", "web", "lone")
NEEDS = {"cache": ("db",), "app": ("db", "cache"), "web": ("app",)}
CALM_SECONDS = 400.0
"""Long enough for the longest gap of a back-off, its good run, and a daemon's restart."""


def container(name: str, version: int) -> ContainerSpec:
    needs = tuple(
        Dependency(ContainerName(need), Condition.HEALTHY if need == "db" else Condition.STARTED)
        for need in NEEDS.get(name, ())
    )
    check = Healthcheck(("CMD", "true")) if name == "db" else None
    return ContainerSpec(
        ContainerName(name), f"{name}:{version}", depends_on=needs, healthcheck=check, stop_grace_period_seconds=5.0
    )


def instance(versions: dict[str, int], revision: int, **options: Any) -> InstanceSpec:
    return InstanceSpec(
        InstanceId("shop/db/0"),
        DeploymentName("shop"),
        "db",
        0,
        Generation(1),
        Revision(revision),
        containers=tuple(container(name, version) for name, version in sorted(versions.items())),
        **options,
    )


class SupervisorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop(max_steps=5_000_000, max_real_seconds=60.0)
        self.engine = SimulatedEngine()
        self.notes = MemoryNotes()
        self.versions = dict.fromkeys(NAMES, 1)
        self.revision = 1
        self.stopped = False
        self.supervisor: Supervisor | None = None
        self.task: asyncio.Task[None] | None = None
        self.quiet_runs: dict[str, str] | None = None

    @initialize()
    def begin(self) -> None:
        self.in_loop(self._start_agent())
        self.settle()

    # What happens to it.

    @rule(name=st.sampled_from(NAMES), oom=st.booleans())
    def crash(self, name: str, oom: bool) -> None:
        if name in self.engine.running():
            self.disturb(lambda: self.engine.crash(name, oom=oom))

    @rule(name=st.sampled_from(NAMES))
    def somebody_removes(self, name: str) -> None:
        if name in {seen.name for seen in self.engine.all()}:
            self.disturb(lambda: self.engine.delete(name))

    @rule()
    def db_turns_unhealthy(self) -> None:
        if "db" in self.engine.running():
            self.disturb(lambda: self.engine.set_health("db", Health.UNHEALTHY))

    @rule(hangs=st.booleans())
    def daemon_fails(self, hangs: bool) -> None:
        self.disturb(self.engine.hang_daemon if hangs else self.engine.kill_daemon)

    @rule(loses=st.booleans())
    def events_are_lost(self, loses: bool) -> None:
        self.engine.loses_events = loses

    @rule(count=st.integers(1, 3))
    def answers_come_too_late(self, count: int) -> None:
        self.disturb(lambda: setattr(self.engine, "lies_late", count))

    @rule()
    def vm_reboots(self) -> None:
        self.disturb(self.engine.reboot)
        self.in_loop(self._replace_agent())

    @rule(name=st.sampled_from(NAMES))
    def specification_changes(self, name: str) -> None:
        if name in self.versions:
            self.versions[name] += 1
        else:
            self.versions[name] = 1
        self.apply()

    @rule()
    def lone_leaves_the_specification(self) -> None:
        self.versions.pop("lone", None)
        self.apply()

    @rule(stopped=st.booleans())
    def a_person_stops_or_starts(self, stopped: bool) -> None:
        self.stopped = stopped
        self.apply()

    @rule(name=st.sampled_from(NAMES))
    def a_person_restarts(self, name: str) -> None:
        self.disturb(lambda: self.agent.request_restart((ContainerName(name),)))

    @rule()
    def agent_is_killed_and_started(self) -> None:
        self.quiet_runs = None
        self.in_loop(self._replace_agent())

    @rule(seconds=st.floats(0.01, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.quiet_runs = None
        self.in_loop(asyncio.sleep(seconds))

    @rule()
    def faults_cease(self) -> None:
        """Everything converges, in order; then a restart of the agent alone changes nothing."""
        self.engine.lies_late = 0
        self.settle()
        self.disturb(self.check_converged)
        before = self.engine.running()
        self.in_loop(self._replace_agent())
        self.settle()
        assert self.engine.running() == before, "an agent's restart alone restarted something"
        self.quiet_runs = before

    # What must hold.

    @invariant()
    def at_most_one_of_a_name(self) -> None:
        names = [seen.name for seen in self.engine.all()]
        assert len(names) == len(set(names))

    @invariant()
    def nothing_ran_that_was_never_wanted(self) -> None:
        assert set(self.engine.running()) <= set(NAMES)

    @invariant()
    def what_is_quiet_stays(self) -> None:
        if self.quiet_runs is not None:
            assert self.engine.running() == self.quiet_runs

    @invariant()
    def supervision_runs(self) -> None:
        if self.task is not None and self.task.done():
            self.task.result()
            raise AssertionError("the supervisor ended")

    def check_converged(self) -> None:
        running = self.engine.running()
        wanted = set() if self.stopped else set(self.versions)
        assert set(running) == wanted, f"runs {sorted(running)}, wanted {sorted(wanted)}"
        assert {seen.name for seen in self.engine.all()} <= set(self.versions), "an orphan was left"
        report = self.agent.report()
        assert report.settled
        expected = ContainerState.STOPPED if self.stopped else ContainerState.RUNNING
        assert {item.name: item.state for item in report.containers} == dict.fromkeys(self.versions, expected)
        images: dict[str, str] = {seen.name: seen.image_id for seen in self.engine.all()}
        assert all(images[name] == f"{name}:{self.versions[name]}" for name in wanted)
        latest = {name: at for at, name in self.engine.starts}
        for name in wanted:
            for need in NEEDS.get(name, ()):
                assert latest[need] < latest[name], f"{name} runs since before {need}"

    # How.

    @property
    def agent(self) -> Supervisor:
        assert self.supervisor is not None
        return self.supervisor

    def disturb(self, change: Callable[[], object]) -> None:
        self.quiet_runs = None
        self.in_loop(_call(change))

    def apply(self) -> None:
        self.revision += 1
        self.disturb(lambda: self.agent.set_desired(self._spec()))

    def settle(self) -> None:
        self.in_loop(asyncio.sleep(CALM_SECONDS))

    def in_loop(self, main: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(main)

    def _spec(self) -> InstanceSpec:
        spec = instance(self.versions, self.revision)
        return replace(spec, wanted=Wanted.STOPPED if self.stopped else Wanted.STARTED)

    async def _start_agent(self) -> None:
        self.supervisor = Supervisor(
            self.engine, SimulatedDaemon(self.engine), self.engine, self.notes, lambda container, mounts: {}
        )
        self.supervisor.set_desired(self._spec())
        self.task = asyncio.create_task(self.supervisor.run())

    async def _replace_agent(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self._start_agent()

    def teardown(self) -> None:
        if self.task is not None:
            self.task.cancel()
            self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
        self.loop.forget()


async def _call(change: Callable[[], object]) -> None:
    change()


SupervisorMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestSupervisor = SupervisorMachine.TestCase
