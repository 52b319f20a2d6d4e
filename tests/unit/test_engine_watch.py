"""When the engine counts as up, hung or down, and when its daemon is started or killed."""

from __future__ import annotations

import itertools

import pytest

from agent.core.engine_watch import Remedy, WatchPolicy, WatchState, decide
from agent.engine import Probe
from protocol.heartbeat import EngineState

POLICY = WatchPolicy()
A, R, S = Probe.ANSWERED, Probe.REFUSED, Probe.SILENT


def play(*steps: tuple[float, Probe]) -> list[tuple[EngineState, Remedy]]:
    """State and remedy after each probe at the time given."""
    state, result = WatchState(), []
    for at, probe in steps:
        decision = decide(state, probe, at, POLICY)
        state = decision.state
        result.append((state.engine, decision.remedy))
    return result


@pytest.mark.parametrize(
    ("steps", "engine", "remedy"),
    [
        ([(0, A)], EngineState.UP, Remedy.NONE),
        ([(0, R)], EngineState.STARTING, Remedy.NONE),
        ([(0, R), (1, R)], EngineState.DOWN, Remedy.START),
        ([(0, A), (2, R)], EngineState.UP, Remedy.NONE),
        ([(0, A), (2, R), (3, R)], EngineState.DOWN, Remedy.START),
        ([(0, A), (2, S), (5, S)], EngineState.UP, Remedy.NONE),
        ([(0, A), (2, S), (5, S), (8, S)], EngineState.HUNG, Remedy.RESTART_HARD),
        ([(0, A), (2, R), (3, S), (4, R), (5, S)], EngineState.UP, Remedy.NONE),
        ([(0, A), (2, R), (3, R), (4, R), (5, R)], EngineState.STARTING, Remedy.NONE),
        ([(0, A), (2, R), (3, R), (4, R), (34, R)], EngineState.DOWN, Remedy.RESTART_HARD),
        ([(0, A), (2, R), (3, R), (4, A)], EngineState.UP, Remedy.NONE),
        # A start that was answered ends the grace: the next death is acted upon at once.
        ([(0, A), (2, R), (3, R), (4, A), (6, R), (7, R)], EngineState.DOWN, Remedy.START),
    ],
)
def test_table(steps: list[tuple[float, Probe]], engine: EngineState, remedy: Remedy) -> None:
    """The last probe's verdict and remedy."""
    assert play(*steps)[-1] == (engine, remedy)


def test_a_daemon_that_never_comes_up_is_restarted_with_growing_gaps() -> None:
    """Refused for an hour: every start has its grace, gaps grow to the longest, starts never end."""
    state, starts = WatchState(), []
    at = 0.0
    while at < 3600:
        decision = decide(state, R, at, POLICY)
        state = decision.state
        if decision.remedy is not Remedy.NONE:
            starts.append(at)
        at += decision.next_probe_seconds
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= POLICY.start_grace_seconds
    assert POLICY.restart_longest_seconds <= gaps[-1] < POLICY.restart_longest_seconds + 5
    assert state.engine in (EngineState.BACKING_OFF, EngineState.STARTING, EngineState.DOWN)


def test_a_daemon_that_dies_again_and_again_is_backed_off_until_it_is_steady() -> None:
    """Answers once after every start and dies: the gap grows; after a steady time it is the first again."""
    state, at, starts = WatchState(), 0.0, []
    for _ in range(6):
        state = decide(state, A, at, POLICY).state
        while True:
            decision = decide(state, R, at, POLICY)
            state, at = decision.state, at + 0.5
            if decision.remedy is not Remedy.NONE:
                starts.append(at)
                break
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps[-1] > 10 * gaps[0]
    state = decide(state, A, at, POLICY).state
    state = decide(state, A, at + POLICY.steady_seconds, POLICY).state
    assert state.starts == 0
