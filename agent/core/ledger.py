"""What the agent knows of each container beyond what the engine says: how its runs ended, why, and against which runs
of its dependencies the present one was started.

Law: only the notes outlive the agent, and they are enough: a run without a note is taken as it is, a run with one
restarts only for what the note says. `observe` is the only place where the end of a run is counted, once per run.

Does not know: what should be done about it (reconcile.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

from agent.core.actions import ActionKey, Create, Outcome, Pull, Remove, Start, Stop
from agent.core.backoff import Backoff, BackoffPolicy, after_end, after_good_run, after_refusal
from agent.engine import (
    ActualContainer,
    EngineUnavailable,
    Health,
    ImageMissing,
    PortInUse,
    Status,
)
from protocol.heartbeat import Reason
from protocol.ids import ContainerName
from protocol.spec import Dependency

DETAIL_MAX_CHARACTERS = 300
RUNNING = frozenset({Status.RUNNING, Status.PAUSED, Status.RESTARTING})
OWN_FAULT = frozenset({Reason.UNHEALTHY, Reason.OOM_CHILD})
"""Reasons for which we stop a container and still count it as its failure."""


@dataclass(frozen=True, slots=True)
class Note:
    """Persisted. `run`: the run it is about; while `starting`, the run before the one that is being started."""

    run: str = ""
    starting: bool = False
    against: Mapping[ContainerName, str] = field(default_factory=dict)
    condemned: Reason = Reason.NONE  # this run is to be ended and replaced, also when the agent dies meanwhile
    oom_kills: int = 0  # of this run, as far as they were told


@dataclass(frozen=True, slots=True)
class Memory:
    """Forgotten with the agent, at no greater harm than a back-off that begins anew. Times are loop seconds."""

    spec_hash: str
    image_ready: bool = False
    backoff: Backoff = Backoff()
    runs_seen: int = 0  # of this specification
    container_id: str = ""
    run: str = ""  # the latest one seen
    run_since: float = 0.0  # when it was first seen running
    ended_run: str = ""  # the one whose end was counted
    stopped_run: str = ""  # the one that we ended
    stopped_why: Reason = Reason.NONE
    reason: Reason = Reason.NONE
    exit_code: int | None = None
    detail: str = ""
    start_failures: int = 0
    unknown_until: float = 0.0  # after an action without an answer: looks come first
    oom_since: float | None = None  # the latest kill of a child process

    @property
    def not_before(self) -> float:
        """No action on it before this moment."""
        return max(self.backoff.not_before, self.unknown_until)


@dataclass(frozen=True, slots=True)
class Ledger:
    memories: Mapping[ContainerName, Memory] = field(default_factory=dict)
    notes: Mapping[ContainerName, Note] = field(default_factory=dict)
    orphan_not_before: Mapping[ActionKey, float] = field(default_factory=dict)  # loop seconds


def observe(
    ledger: Ledger,
    hashes: Mapping[ContainerName, str],
    graph: Mapping[ContainerName, tuple[Dependency, ...]],
    actual: Mapping[ContainerName, ActualContainer],
    oom_kills: Mapping[str, int],
    busy: Iterable[ContainerName],
    now: float,
    policy: BackoffPolicy,
) -> Ledger:
    """The ledger after a look. `oom_kills`: by run. What is busy is left as it is; what is not in the specification
    is forgotten."""
    skipped = frozenset(busy)
    memories: dict[ContainerName, Memory] = {}
    notes: dict[ContainerName, Note] = {}
    runs = {name: container.run for name, container in actual.items()}
    for name, spec_hash in hashes.items():
        memory = _for_specification(ledger.memories.get(name), spec_hash)
        note = ledger.notes.get(name)
        seen = actual.get(name)
        if name not in skipped:
            memory = _absent(memory, now, policy) if seen is None else _present(memory, seen, now, policy)
            if seen is not None and seen.run:
                kills = oom_kills.get(seen.run)
                note = _noted(note, seen, graph.get(name, ()), runs, kills or 0)
                memory, note = _count_oom(memory, note, kills, now)
        memories[name] = memory
        if note is not None:
            notes[name] = note
    held = {key: until for key, until in ledger.orphan_not_before.items() if until > now}
    return Ledger(memories, notes, held)


def record(ledger: Ledger, outcome: Outcome, now: float, policy: BackoffPolicy) -> Ledger:
    """The ledger after an action ended."""
    memory = ledger.memories.get(outcome.name)
    if memory is None:
        if outcome.error is None:
            return ledger
        held = {**ledger.orphan_not_before, outcome.action.key: now + policy.orphan_seconds}
        return replace(ledger, orphan_not_before=held)
    changed = _failed(memory, outcome, now, policy) if outcome.error else _succeeded(memory, outcome)
    return replace(ledger, memories={**ledger.memories, outcome.name: changed})


def request_restart(
    ledger: Ledger, names: Iterable[ContainerName], actual: Mapping[ContainerName, ActualContainer]
) -> Ledger:
    """Condemns the present runs of `names`, by a person's word; back-off and failures are forgotten."""
    memories, notes = dict(ledger.memories), dict(ledger.notes)
    for name in names:
        if name in memories:
            memories[name] = replace(memories[name], backoff=Backoff(), start_failures=0)
        if name in actual and actual[name].run:
            notes[name] = replace(notes.get(name, Note(run=actual[name].run)), condemned=Reason.OPERATOR)
    return replace(ledger, memories=memories, notes=notes)


def condemn(ledger: Ledger, name: ContainerName, reason: Reason) -> Ledger:
    note = ledger.notes.get(name, Note())
    return replace(ledger, notes={**ledger.notes, name: replace(note, condemned=reason)})


def note_start(ledger: Ledger, name: ContainerName, run_before: str, against: Mapping[ContainerName, str]) -> Ledger:
    """To be written before the start, so that a start whose end the agent does not live to see is known afterwards."""
    old = ledger.notes.get(name, Note())
    note = Note(run=run_before, starting=True, against=dict(against), condemned=old.condemned)
    return replace(ledger, notes={**ledger.notes, name: note})


def _for_specification(memory: Memory | None, spec_hash: str) -> Memory:
    if memory is None:
        return Memory(spec_hash)
    if memory.spec_hash == spec_hash:
        return memory
    # What is known of the engine's side stays: the old container is still there, and its end is not the new one's.
    return Memory(
        spec_hash,
        container_id=memory.container_id,
        run=memory.run,
        run_since=memory.run_since,
        ended_run=memory.ended_run,
        stopped_run=memory.stopped_run,
        stopped_why=memory.stopped_why,
    )


def _absent(memory: Memory, now: float, policy: BackoffPolicy) -> Memory:
    if not memory.container_id:
        return memory
    return replace(
        memory,
        container_id="",
        reason=Reason.MISSING,
        exit_code=None,
        detail="the container was removed by somebody else",
        backoff=after_end(memory.backoff, now, now - memory.run_since if memory.run else 0.0, policy),
        ended_run=memory.run,
    )


def _present(memory: Memory, seen: ActualContainer, now: float, policy: BackoffPolicy) -> Memory:
    is_new_run = bool(seen.run) and seen.run != memory.run
    run_since = now if is_new_run else memory.run_since
    memory = replace(
        memory,
        container_id=seen.container_id,
        run=seen.run or memory.run,
        run_since=run_since,
        runs_seen=memory.runs_seen + (1 if is_new_run and seen.spec_hash == memory.spec_hash else 0),
    )
    if seen.status in RUNNING:
        backoff = after_good_run(memory.backoff, now - run_since, policy)
        return replace(memory, backoff=backoff, start_failures=0, oom_since=None if is_new_run else memory.oom_since)
    if not seen.run or seen.run == memory.ended_run:
        return memory
    return _ended(memory, seen, now, now - run_since, policy)


def _ended(memory: Memory, seen: ActualContainer, now: float, ran_seconds: float, policy: BackoffPolicy) -> Memory:
    memory = replace(memory, ended_run=seen.run, exit_code=seen.exit_code, oom_since=None)
    if seen.run == memory.stopped_run:
        memory = replace(memory, reason=memory.stopped_why)
        if memory.stopped_why not in OWN_FAULT:
            return replace(memory, detail="")
        return replace(memory, backoff=after_end(memory.backoff, now, ran_seconds, policy))
    reason, detail = _why_ended(seen)
    return replace(memory, reason=reason, detail=detail, backoff=after_end(memory.backoff, now, ran_seconds, policy))


def _why_ended(seen: ActualContainer) -> tuple[Reason, str]:
    if seen.oom_killed and seen.exit_code == 137:
        return Reason.OOM_KILLED, "its first process was killed at the memory limit"
    if seen.oom_killed:
        return Reason.OOM_CHILD, f"ended with {seen.exit_code} after a child process was killed at the memory limit"
    return Reason.EXITED, cut(seen.error) or f"ended with {seen.exit_code}"


def _noted(
    note: Note | None,
    seen: ActualContainer,
    needs: tuple[Dependency, ...],
    runs: Mapping[ContainerName, str],
    oom_kills: int,
) -> Note:
    """The note for the run that is there. A run that nobody noted counts as started against what is there now."""
    present = {item.container: runs.get(item.container, "") for item in needs if item.restart}
    if note is not None and note.run == seen.run:
        return replace(note, against={**present, **note.against})  # a dependency that was added counts from now
    if note is not None and note.starting:
        return Note(run=seen.run, against=note.against)
    # Kills before we first saw the run are not news.
    return Note(run=seen.run, against=present, oom_kills=oom_kills if note is None else 0)


def _count_oom(memory: Memory, note: Note, kills: int | None, now: float) -> tuple[Memory, Note]:
    if kills is None or kills <= note.oom_kills:
        return memory, note
    return replace(memory, oom_since=now), replace(note, oom_kills=kills)


def _failed(memory: Memory, outcome: Outcome, now: float, policy: BackoffPolicy) -> Memory:
    error = outcome.error
    if isinstance(error, EngineUnavailable):  # outcome unknown: the next look says, nothing to hold against it
        if isinstance(outcome.action, Stop):  # should it have ended, then by our doing
            memory = replace(memory, stopped_run=outcome.action.run, stopped_why=outcome.action.why)
        return replace(memory, detail=cut(str(error)), unknown_until=now + policy.unknown_seconds)
    match outcome.action:
        case Pull():
            reason = Reason.IMAGE_MISSING if isinstance(error, ImageMissing) else Reason.CREATE_FAILED
        case Create():
            reason = Reason.CREATE_FAILED
        case Start():
            reason = Reason.START_FAILED
        case Stop() | Remove():
            return replace(memory, detail=cut(str(error)), backoff=after_refusal(memory.backoff, now, policy))
        case unreachable:
            assert_never(unreachable)
    if isinstance(error, ImageMissing):
        reason = Reason.IMAGE_MISSING
    elif isinstance(error, PortInUse):
        reason = Reason.PORT_IN_USE
    return replace(
        memory,
        reason=reason,
        detail=cut(str(error)),
        exit_code=None,
        image_ready=memory.image_ready and reason is not Reason.IMAGE_MISSING,
        backoff=after_refusal(memory.backoff, now, policy),
        start_failures=memory.start_failures + (1 if reason is Reason.START_FAILED else 0),
    )


def _succeeded(memory: Memory, outcome: Outcome) -> Memory:
    match outcome.action:
        case Pull():
            return replace(memory, image_ready=True)
        case Create():
            # The image is made sure of again before the next container.
            return replace(memory, image_ready=False, start_failures=0)
        case Start():
            return memory
        case Stop(run=run, why=why):
            return replace(memory, stopped_run=run, stopped_why=why)
        case Remove():
            return replace(memory, container_id="")  # its absence is no surprise
        case unreachable:
            assert_never(unreachable)


def cut(text: str) -> str:
    return " ".join(text.split())[:DETAIL_MAX_CHARACTERS]


def is_unhealthy(seen: ActualContainer) -> bool:
    return seen.status is Status.RUNNING and seen.health is Health.UNHEALTHY
