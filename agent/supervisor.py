"""The one loop of supervision: look, decide, write down, act, report. Woken by the engine's events, by commands and
by time.

Laws:
- What decides is `agent/core`; this file only carries out. At most one action per container is under way, and what
  an action did counts only from a look that began after its end.
- Notes are on disk before the actions that they are about.
- Cancelling `run` leaves every container as it is.
- Nothing here blocks the loop, and `report` touches nothing: the heartbeat is made from it.

Does not know: how the specification came here, where disks are mounted from, what the heartbeat looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, assert_never

import structlog

from agent.core import dependencies, engine_watch
from agent.core.actions import Action, ActionKey, Create, Outcome, Pull, Remove, Start, Stop
from agent.core.ledger import RUNNING, Ledger, Note, record, request_restart
from agent.core.reconcile import Decision, Observation, Situation, SupervisionPolicy, decide, spec_hashes
from agent.core.reporting import Since, is_settled, reports, reports_without_engine, with_ages
from agent.dockerd import DaemonError, DockerDaemon
from agent.engine import ActualContainer, Engine, EngineError, EngineRefused
from agent.images import Images
from agent.oom import OomCounters
from protocol.codec import Invalid, from_plain, to_plain
from protocol.heartbeat import ContainerReport, EngineState
from protocol.ids import ContainerName, DiskName
from protocol.spec import ContainerSpec, InstanceSpec

log = structlog.get_logger(__name__)

PrepareMounts = Callable[[ContainerSpec, Mapping[DiskName, str]], dict[str, str]]
"""Blocks; called in a thread. EngineRefused. The real one is agent/mount_directories.py."""


class NotesStore(Protocol):
    """A small document on disk. Both may block and are called in a thread. OSError."""

    def load(self) -> dict[str, Any] | None:
        """None: there is none yet."""
        ...

    def save(self, notes: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class ShellLimits:
    pulls_max: int = 3
    stops_max: int = 16
    """Stops wait for their grace, so they do not share places with starts."""
    notes_seconds: float = 5.0
    """A disk that does not take the notes in this time must not keep containers down."""
    mounts_seconds: float = 20.0
    look_gap_seconds: float = 0.02
    """Between the ends and beginnings of looks: a burst of events is one look."""
    look_retry_seconds: float = 1.0
    """After a look that failed; while the engine is known to be down none is tried."""
    events_retry_seconds: float = 0.5
    last_grace_seconds: float = 1.0
    """A stop near the end of a drain's deadline still gets this much."""


@dataclass(frozen=True, slots=True)
class SupervisorReport:
    """`settled`: nothing is left to do; each container is as it should be, or is finished."""

    containers: tuple[ContainerReport, ...]
    engine: EngineState
    settled: bool


class Supervisor:
    def __init__(
        self,
        engine: Engine,
        daemon: DockerDaemon,
        oom: OomCounters,
        notes_store: NotesStore,
        prepare_mounts: PrepareMounts,
        policy: SupervisionPolicy | None = None,
        watch_policy: engine_watch.WatchPolicy | None = None,
        limits: ShellLimits | None = None,
        images: Images | None = None,
    ) -> None:
        """`images`: where they come from; this VM and registries, unless given."""
        self._engine = engine
        self._images = images or Images(engine)
        self._daemon = daemon
        self._oom = oom
        self._notes_store = notes_store
        self._prepare_mounts = prepare_mounts
        self._policy = policy or SupervisionPolicy()
        self._watch_policy = watch_policy or engine_watch.WatchPolicy()
        self._limits = limits or ShellLimits()

        self._desired: InstanceSpec | None = None
        self._hashes: Mapping[ContainerName, str] = {}
        self._mounts: Mapping[DiskName, str] = {}
        self._isolated = False
        self._draining = False
        self._drain_ends_at = 0.0
        self._restarts_requested: list[ContainerName] = []

        self._watch = engine_watch.WatchState()
        self._ledger = Ledger()
        self._saved_notes: Mapping[ContainerName, Note] | None = None
        self._actual: tuple[ActualContainer, ...] | None = None
        self._busy: dict[ActionKey, Action] = {}
        self._ended: list[Outcome] = []  # actions that ended and wait for a look that began later
        self._reports: tuple[ContainerReport, ...] = ()
        self._since = Since()
        self._settled = False
        self._callbacks: list[Callable[[], None]] = []
        self.turned_at = 0.0
        """Loop seconds at which its last turn began, for the watchdog. An engine that hangs delays a turn by the
        deadline of a look and no more."""

        self._wake = asyncio.Event()
        self._probe_now = asyncio.Event()
        self._engine_up = asyncio.Event()
        self._turned = asyncio.Condition()
        self._pull_places = asyncio.Semaphore(self._limits.pulls_max)
        self._stop_places = asyncio.Semaphore(self._limits.stops_max)
        self._places = asyncio.Semaphore(self._policy.actions_max)

    async def run(self) -> None:
        """Until cancelled."""
        await self._load_notes()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_engine(), name="watch engine")
            group.create_task(self._listen(), name="listen to engine")
            group.create_task(self._turns(group), name="supervise")

    def set_desired(self, spec: InstanceSpec | None) -> None:
        """Ends a drain too. BadDependencies when the containers cannot be put in order; then nothing changed."""
        if spec is not None:
            dependencies.check(spec.containers)
        self._desired = spec
        self._hashes = spec_hashes(spec) if spec is not None else {}
        self._draining = False
        self._changed()

    def set_disks(self, mounts: Mapping[DiskName, str]) -> None:
        if dict(mounts) != dict(self._mounts):
            self._mounts = dict(mounts)
            self._changed()

    def set_isolated(self, isolated: bool) -> None:
        if isolated != self._isolated:
            self._isolated = isolated
            self._changed()

    def undrain(self) -> None:
        self._draining = False
        self._changed()

    def request_restart(self, names: tuple[ContainerName, ...]) -> None:
        """Each with its dependents, in order, also when it runs well or is finished. Unknown names are ignored."""
        self._restarts_requested += names
        self._changed()

    async def drain(self, deadline_seconds: float) -> None:
        """Stops everything, dependents first; returns when all is stopped, or at the deadline. New starts are refused
        until `set_desired` or `undrain`."""
        loop = asyncio.get_running_loop()
        self._drain_ends_at = loop.time() + deadline_seconds
        self._draining = True
        self._changed()
        try:
            async with asyncio.timeout(deadline_seconds), self._turned:
                await self._turned.wait_for(self._is_drained)
        except TimeoutError:
            log.warning("supervisor.drain_incomplete", running=self._running_names(), seconds=deadline_seconds)

    async def logs(self, name: ContainerName, lines: int) -> str:
        """EngineRefused when there is no such container, EngineUnavailable."""
        for container in self._actual or ():
            if container.name == name:
                return await self._engine.logs(container.container_id, lines)
        raise EngineRefused(f"there is no container {name} on this VM")

    def report(self) -> SupervisorReport:
        now = asyncio.get_running_loop().time()
        return SupervisorReport(with_ages(self._reports, self._since, now), self._watch.engine, self._settled)

    def current(self) -> InstanceSpec | None:
        return self._desired

    def on_change(self, callback: Callable[[], None]) -> None:
        """`callback()` from the loop when the report changed other than in age."""
        self._callbacks.append(callback)

    def _changed(self) -> None:
        self._settled = False
        self._wake.set()

    # The engine and its daemon.

    async def _watch_engine(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._probe_now.clear()
            probe = await self._engine.probe()
            decision = engine_watch.decide(self._watch, probe, loop.time(), self._watch_policy)
            if decision.state.engine is not self._watch.engine:
                log.info("engine.state", state=decision.state.engine.value, reason=decision.reason)
                self._take_watch(decision.state)
            self._watch = decision.state
            await self._remedy(decision)
            await self._pause(self._probe_now, decision.next_probe_seconds)

    def _take_watch(self, state: engine_watch.WatchState) -> None:
        self._watch = state
        if state.engine is EngineState.UP:
            self._engine_up.set()
        else:
            self._engine_up.clear()
        self._changed()
        self._notify()

    async def _remedy(self, decision: engine_watch.WatchDecision) -> None:
        try:
            match decision.remedy:
                case engine_watch.Remedy.NONE:
                    return
                case engine_watch.Remedy.START:
                    log.warning("engine.start", reason=decision.reason)
                    await self._daemon.start()
                case engine_watch.Remedy.RESTART_HARD:
                    log.warning("engine.restart", reason=decision.reason)
                    await self._daemon.restart_hard()
                case unreachable:
                    assert_never(unreachable)
        except DaemonError as error:
            log.error("engine.remedy_failed", reason=str(error))

    async def _listen(self) -> None:
        while True:
            await self._engine_up.wait()
            try:
                async for _ in self._engine.events():
                    self._wake.set()
            except EngineError as error:
                log.info("engine.events_unavailable", reason=str(error))
            self._wake.set()
            self._probe_now.set()  # the stream ends when the daemon does
            await asyncio.sleep(self._limits.events_retry_seconds)

    # One turn.

    async def _turns(self, group: asyncio.TaskGroup) -> None:
        while True:
            self.turned_at = asyncio.get_running_loop().time()
            self._wake.clear()
            seconds = await self._turn(group)
            async with self._turned:
                self._turned.notify_all()
            await self._pause(self._wake, seconds)
            await asyncio.sleep(self._limits.look_gap_seconds)

    async def _turn(self, group: asyncio.TaskGroup) -> float:
        """One look and what follows from it; how long until the next, if nothing happens before."""
        ended, self._ended = self._ended, []
        actual = await self._look()
        now = asyncio.get_running_loop().time()
        self._actual = actual if actual is not None else self._actual
        spec = self._desired
        if actual is None or spec is None:
            self._ended = ended + self._ended
            self._report_blind(spec, now)
            return self._policy.full_look_seconds if spec is None else self._limits.look_retry_seconds
        for outcome in ended:
            self._busy.pop(outcome.action.key, None)
            self._ledger = record(self._ledger, outcome, now, self._policy.backoff)
        decision = self._decide(spec, actual, now)
        self._ledger = decision.ledger
        await self._save_notes()
        for action in decision.actions:
            self._busy[action.key] = action
            log.info(
                "container.action",
                action=type(action).__name__.lower(),
                container=action.key,
                reason=decision.reasons.get(action.key, ""),
            )
            group.create_task(self._carry_out(action), name=f"{type(action).__name__} {action.key}")
        self._report(spec, actual, now, bool(decision.actions))
        return decision.next_look_seconds

    async def _look(self) -> tuple[ActualContainer, ...] | None:
        if not self._engine_up.is_set():
            return None
        try:
            return await self._engine.look()
        except EngineError as error:
            log.warning("engine.look_failed", reason=str(error))
            self._probe_now.set()
            return None

    def _decide(self, spec: InstanceSpec, actual: tuple[ActualContainer, ...], now: float) -> Decision:
        if self._restarts_requested:
            names, self._restarts_requested = self._restarts_requested, []
            by_name = {container.name: container for container in actual if container.instance == spec.instance}
            self._ledger = request_restart(self._ledger, names, by_name)
        return decide(self._ledger, spec, self._hashes, self._observation(actual), now, self._policy)

    def _observation(self, actual: tuple[ActualContainer, ...]) -> Observation:
        kills = {
            container.run: count
            for container in actual
            if container.status in RUNNING and (count := self._oom.kills(container.pid)) is not None
        }
        return Observation(actual, frozenset(self._mounts), kills, dict(self._busy), self._isolated, self._draining)

    # Acting.

    async def _carry_out(self, action: Action) -> None:
        error: EngineError | None = None
        try:
            await self._perform(action)
        except EngineError as failure:
            error = failure
        except Exception as failure:
            # The edge of a task: a fault of ours in one action must not end the supervision of all the others.
            log.exception("container.action_broke", action=type(action).__name__.lower(), container=action.key)
            error = EngineRefused(f"fault of the agent: {type(failure).__name__}: {failure}")
        if error is not None:
            log.warning(
                "container.action_failed", action=type(action).__name__.lower(), container=action.key, reason=str(error)
            )
        self._ended.append(Outcome(ContainerName(action.key), action, error))
        self._wake.set()

    async def _perform(self, action: Action) -> None:
        match action:
            case Pull(image=image, policy=policy, pin=pin):
                async with self._pull_places:
                    await self._images.provide(image, policy, pin)
            case Create(container=container):
                async with self._places:
                    await self._create(container)
            case Start(container_id=container_id):
                async with self._places:
                    await self._engine.start(container_id)
            case Stop(container_id=container_id, grace_seconds=grace):
                async with self._stop_places:
                    await self._engine.stop(container_id, self._grace_seconds(grace))
            case Remove(container_id=container_id):
                async with self._places:
                    await self._engine.remove(container_id)
            case unreachable:
                assert_never(unreachable)

    async def _create(self, container: ContainerSpec) -> None:
        spec = self._desired
        if spec is None:
            raise EngineRefused("the specification was withdrawn")
        mounts = self._mounts
        try:
            async with asyncio.timeout(self._limits.mounts_seconds):
                directories = await asyncio.to_thread(self._prepare_mounts, container, mounts)
        except TimeoutError:
            raise EngineRefused("its directories could not be made in time; does a disk hang?") from None
        await self._engine.ensure_networks(spec.networks)
        await self._engine.create(spec.instance, await self._images.settled(container), directories)

    def _grace_seconds(self, grace_seconds: float) -> float:
        if not self._draining:
            return grace_seconds
        left = self._drain_ends_at - asyncio.get_running_loop().time()
        return min(grace_seconds, max(left, self._limits.last_grace_seconds))

    # Reporting.

    def _report(self, spec: InstanceSpec, actual: tuple[ActualContainer, ...], now: float, acts: bool) -> None:
        situation = Situation(self._ledger, spec, self._observation(actual), now, self._policy, self._hashes)
        found, self._since = reports(situation, self._since)
        unsettled = acts or self._wake.is_set() or bool(self._busy) or len(found) > len(spec.containers)
        settled = not unsettled and all(is_settled(item, situation.wanted(ContainerName(item.name))) for item in found)
        self._publish(found, settled)

    def _report_blind(self, spec: InstanceSpec | None, now: float) -> None:
        if spec is None:
            self._publish((), True)
        elif not self._engine_up.is_set():
            found, self._since = reports_without_engine(spec, self._reports, self._since, now)
            self._publish(found, False)

    def _publish(self, found: tuple[ContainerReport, ...], settled: bool) -> None:
        is_new = found != self._reports or settled != self._settled
        self._reports, self._settled = found, settled
        if is_new:
            self._notify()

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()

    def _is_drained(self) -> bool:
        if self._desired is None:
            return True
        return self._actual is not None and self._engine_up.is_set() and not self._busy and not self._running_names()

    def _running_names(self) -> list[str]:
        return sorted(container.name for container in self._actual or () if container.status in RUNNING)

    # Notes.

    async def _load_notes(self) -> None:
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes when its task is just done.
            async with asyncio.timeout(self._limits.notes_seconds):
                plain = await asyncio.to_thread(self._notes_store.load)
            notes = from_plain(dict[ContainerName, Note], plain or {})
        except (OSError, TimeoutError, Invalid) as error:
            # Without notes every running container is taken as it is: nothing restarts needlessly.
            log.error("supervisor.notes_unreadable", reason=str(error))
            return
        self._ledger = replace(self._ledger, notes=notes)
        self._saved_notes = notes

    async def _save_notes(self) -> None:
        notes = self._ledger.notes
        if notes == self._saved_notes:
            return
        plain: dict[str, Any] = {name: to_plain(note) for name, note in notes.items()}
        try:
            async with asyncio.timeout(self._limits.notes_seconds):
                await asyncio.to_thread(self._notes_store.save, plain)
        except (OSError, TimeoutError) as error:
            log.error("supervisor.notes_not_saved", reason=str(error))
            return
        self._saved_notes = notes

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
