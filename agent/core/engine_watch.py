"""Is the engine up, and when must its daemon be started or killed and started?

Law: one bad probe proves nothing; several in a row do. A daemon that was just started is left alone for its grace, and
restarts of it have a growing gap: a daemon that takes long to come up must not be killed for ever.

Does not know: how a daemon is started (agent/dockerd.py), what containers are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from agent.engine import Probe
from protocol.heartbeat import EngineState


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    probe_interval_seconds: float = 2.0
    """Between probes while all is well."""
    doubt_interval_seconds: float = 0.5
    """Between probes while it is not up: what is back is known as fast."""
    probe_deadline_seconds: float = 3.0
    refused_limit: int = 2
    """So many refusals in a row: down. Dead for sure after 0.5 s."""
    silent_limit: int = 3
    """So many silent probes in a row: hung. 3 x deadline + 2 x doubt interval = 10 s."""
    start_grace_seconds: float = 30.0
    """A daemon that was started this recently is not touched."""
    restart_first_seconds: float = 2.0
    restart_longest_seconds: float = 300.0
    """Gap between start n and n + 1, beside the grace: first x 2^(n-1), at most the longest."""
    steady_seconds: float = 120.0
    """Up for this long: the next fault is the first again."""


class Remedy(Enum):
    NONE = "none"
    START = "start"
    RESTART_HARD = "restart_hard"  # SIGKILL, also when it is stopped or deaf, then start


@dataclass(frozen=True, slots=True)
class WatchState:
    engine: EngineState = EngineState.STARTING
    refused: int = 0
    silent: int = 0
    starts: int = 0  # in a row, without a steady time between them
    grace_until: float = 0.0  # loop seconds; 0 once the daemon answered after our last start
    not_before: float = 0.0  # loop seconds; no start before
    up_since: float | None = None


@dataclass(frozen=True, slots=True)
class WatchDecision:
    state: WatchState
    remedy: Remedy
    reason: str
    next_probe_seconds: float


def decide(state: WatchState, probe: Probe, now: float, policy: WatchPolicy) -> WatchDecision:
    """What a probe's result means. The caller carries the remedy out, then probes again."""
    if probe is Probe.ANSWERED:
        up_since = now if state.up_since is None else state.up_since
        # `starts` stays until the daemon was steady, so one that dies again and again gets growing gaps.
        starts = 0 if now - up_since >= policy.steady_seconds else state.starts
        up = WatchState(EngineState.UP, starts=starts, not_before=state.not_before, up_since=up_since)
        return WatchDecision(up, Remedy.NONE, "answered", policy.probe_interval_seconds)
    refused = state.refused + 1 if probe is Probe.REFUSED else 0
    silent = state.silent + 1 if probe is Probe.SILENT else 0
    state = replace(state, refused=refused, silent=silent)
    if refused < policy.refused_limit and silent < policy.silent_limit:
        return _wait(state, state.engine, f"{probe.value}, not yet often enough", policy)
    state = replace(state, up_since=None)
    if now < state.grace_until:
        return _wait(state, EngineState.STARTING, "was just started", policy)
    if now < state.not_before:
        return _wait(state, EngineState.BACKING_OFF, f"{state.starts} starts did not help", policy)
    return _remedy(state, probe, now, policy)


def _wait(state: WatchState, engine: EngineState, reason: str, policy: WatchPolicy) -> WatchDecision:
    return WatchDecision(replace(state, engine=engine), Remedy.NONE, reason, policy.doubt_interval_seconds)


def _remedy(state: WatchState, probe: Probe, now: float, policy: WatchPolicy) -> WatchDecision:
    # A refused connection may be a daemon that is alive but never got as far as listening; where a plain start did
    # not help, it is killed.
    start_did_not_help = state.grace_until > 0.0
    hard = probe is Probe.SILENT or start_did_not_help
    after = replace(
        state,
        engine=EngineState.HUNG if probe is Probe.SILENT else EngineState.DOWN,
        refused=0,
        silent=0,
        starts=state.starts + 1,
        grace_until=now + policy.start_grace_seconds,
        not_before=now + _gap_seconds(state.starts + 1, policy),
    )
    reason = f"{probe.value} {state.silent or state.refused} times in a row"
    return WatchDecision(after, Remedy.RESTART_HARD if hard else Remedy.START, reason, policy.doubt_interval_seconds)


def _gap_seconds(starts: int, policy: WatchPolicy) -> float:
    doublings = min(max(starts - 1, 0), 32)
    return min(policy.restart_first_seconds * float(2**doublings), policy.restart_longest_seconds)
