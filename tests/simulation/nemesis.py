"""What goes wrong in a run, and when: drawn from the seed before the run begins.

Laws: a plan is data, made by a pure function, so that a run can be repeated with fewer faults. A fault names its
target by a share (0 to 1) of what is there when it strikes, because nobody knows that beforehand. After
`quiet_from_seconds` nothing goes wrong any more, and what lasts is ended.

Does not know: how a fault is carried out (`world.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random


class FaultKind(Enum):
    VM_KILLED = "vm killed"
    VM_LOST_SILENTLY = "vm killed, its connection not closed"
    VM_FROZEN = "vm frozen"
    VM_REBOOTED = "vm rebooted"
    NEXT_VM_BOOTS_NEVER = "the next vm boots never"
    AGENT_KILLED = "agent killed"
    CONTAINER_CRASHED = "container crashed"
    CONTAINER_OOM = "container killed for memory"
    CONTAINER_UNHEALTHY = "container unhealthy"
    ENGINE_HUNG = "engine hung"
    ENGINE_DOWN = "engine down"
    AGENT_CUT = "agent cut off the bus"
    AGENT_CUT_ONE_WAY = "agent cut off the bus, one way"
    MONITOR_CUT = "monitor cut off the bus"
    MONITOR_CUT_ONE_WAY = "monitor cut off the bus, one way"
    ALL_CUT = "the bus cut off from everybody"
    SERVER_RESTARTED = "nats-server killed"
    BAD_WEATHER = "bad weather on the bus"
    CLOUD_SLOW = "cloud slow"
    CLOUD_FAILING = "cloud failing"
    CLOUD_UNSURE = "cloud times out though done"
    CLOUD_DELETE_LIES = "cloud's delete lies"
    HOST_DEAD = "host of a vm unreachable for the cloud"
    MONITOR_KILLED = "monitor killed"
    MONITOR_KILLED_ACTING = "monitor killed in the middle of an operation"
    MONITOR_FROZEN = "monitor frozen"
    DEPLOYED = "a changed manifest deployed"
    RECREATED = "an instance recreated by a person"
    PAUSED = "paused by a person"
    SWITCHED_OFF = "resurrection switched off for a while"
    DELETED = "the second deployment deleted, and deployed again later"


@dataclass(frozen=True, slots=True)
class Fault:
    at_seconds: float
    kind: FaultKind
    lasts_seconds: float
    target: float  # share of what is there
    depth: int  # how many steps a killed monitor takes before it dies, and other small choices

    def __str__(self) -> str:
        return f"{self.kind.value} (for {self.lasts_seconds:.1f} s)"


_WEIGHTS: dict[FaultKind, tuple[float, float, float]] = {
    # weight, shortest, longest
    FaultKind.VM_KILLED: (8, 0, 0),
    FaultKind.VM_LOST_SILENTLY: (3, 0, 0),
    FaultKind.VM_FROZEN: (8, 2, 120),
    FaultKind.VM_REBOOTED: (4, 1, 30),
    FaultKind.NEXT_VM_BOOTS_NEVER: (2, 0, 0),
    FaultKind.AGENT_KILLED: (4, 0.5, 10),
    FaultKind.CONTAINER_CRASHED: (6, 0, 0),
    FaultKind.CONTAINER_OOM: (2, 0, 0),
    FaultKind.CONTAINER_UNHEALTHY: (3, 5, 60),
    FaultKind.ENGINE_HUNG: (4, 5, 90),
    FaultKind.ENGINE_DOWN: (2, 0, 0),
    FaultKind.AGENT_CUT: (6, 1, 90),
    FaultKind.AGENT_CUT_ONE_WAY: (5, 1, 60),
    FaultKind.MONITOR_CUT: (4, 1, 60),
    FaultKind.MONITOR_CUT_ONE_WAY: (3, 1, 40),
    FaultKind.ALL_CUT: (2, 1, 40),
    FaultKind.SERVER_RESTARTED: (5, 0.1, 60),
    FaultKind.BAD_WEATHER: (4, 10, 180),
    FaultKind.CLOUD_SLOW: (4, 10, 120),
    FaultKind.CLOUD_FAILING: (4, 10, 120),
    FaultKind.CLOUD_UNSURE: (5, 20, 180),
    FaultKind.CLOUD_DELETE_LIES: (3, 60, 300),
    FaultKind.HOST_DEAD: (4, 20, 300),
    FaultKind.MONITOR_KILLED: (5, 0.5, 60),
    FaultKind.MONITOR_KILLED_ACTING: (10, 0.5, 30),
    FaultKind.MONITOR_FROZEN: (4, 0.5, 40),
    FaultKind.DEPLOYED: (4, 0, 0),
    FaultKind.RECREATED: (2, 0, 0),
    FaultKind.PAUSED: (1, 20, 200),
    FaultKind.SWITCHED_OFF: (1, 20, 200),
    FaultKind.DELETED: (1, 60, 200),
}

FOLLOWED_CLOSELY = 0.35
"""Chance that the next fault strikes within seconds of the former: what breaks things is two at once."""


def plan(
    seed: int,
    from_seconds: float,
    quiet_from_seconds: float,
    per_minute: float,
    only: frozenset[FaultKind] | None = None,
) -> tuple[Fault, ...]:
    """The faults of a run in order. Each seed prefers some kinds, so that runs differ in character."""
    random = Random(f"nemesis {seed}")
    kinds = [kind for kind in _WEIGHTS if only is None or kind in only]
    weights = [_WEIGHTS[kind][0] * random.choice((0.1, 0.5, 1.0, 1.0, 3.0)) for kind in kinds]
    faults: list[Fault] = []
    at = from_seconds
    while True:
        close = bool(faults) and random.random() < FOLLOWED_CLOSELY
        at += random.uniform(0.0, 20.0) if close else random.expovariate(per_minute / 60.0)
        if at >= quiet_from_seconds:
            return tuple(faults)
        kind = random.choices(kinds, weights)[0]
        _, shortest, longest = _WEIGHTS[kind]
        lasts = min(random.uniform(shortest, longest), quiet_from_seconds - at)
        faults.append(Fault(at, kind, lasts, random.random(), random.randint(1, 200)))
