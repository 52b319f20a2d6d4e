"""What goes wrong in a run, and when: drawn from the seed before the run begins.

Laws: a plan is data, made by a pure function, so that a run can be repeated with fewer faults. A fault names its
target by a share (0 to 1) of what is there when it strikes, because nobody knows that beforehand. After
`quiet_from_seconds` nothing goes wrong any more, and what lasts is ended.

Does not know: how a fault is carried out (`faults.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from random import Random


class FaultKind(Enum):
    VM_KILLED = "vm killed"
    VM_LOST_SILENTLY = "vm killed, its connection not closed"
    VM_FROZEN = "vm frozen"
    VM_REBOOTED = "vm rebooted"
    VM_CLOCK_DRIFTS = "a vm's clock runs wrong"
    NEXT_VM_BOOTS_NEVER = "the next vm boots never"
    NEXT_VM_BOOTS_SLOWLY = "the next vm boots slowly"
    AGENT_KILLED = "agent killed"
    CONTAINER_CRASHED = "container crashed"
    CONTAINER_OOM = "container killed for memory"
    CONTAINER_UNHEALTHY = "container unhealthy"
    ENGINE_HUNG = "engine hung"
    ENGINE_DOWN = "engine down"
    ENGINE_LOSES_EVENTS = "engine loses events"
    ENGINE_EVENTS_LIE = "engine's events lie"
    ENGINE_ANSWERS_LATE = "engine acts and says that it did not"
    AGENT_CUT = "agent cut off the bus"
    AGENT_CUT_ONE_WAY = "agent cut off the bus, one way"
    OLD_COMMAND = "an old command is said again to a vm's agent"
    MONITOR_CUT = "monitor cut off the bus"
    MONITOR_CUT_ONE_WAY = "monitor cut off the bus, one way"
    ALL_CUT = "the bus cut off from everybody"
    SERVER_RESTARTED = "nats-server killed"
    BAD_WEATHER = "bad weather on the bus"
    CLOUD_SLOW = "cloud slow"
    CLOUD_FAILING = "cloud failing"
    CLOUD_UNSURE = "cloud times out though done, or half done"
    CLOUD_DELETE_LIES = "cloud's delete lies"
    CLOUD_QUOTA = "cloud has no room for another vm"
    DISK_STUCK = "detaching says yes and does nothing"
    DISK_SLIPS = "attaching says yes and does nothing"
    DISK_SWAPPED = "devices turn up that are not the disks that they say"
    DISK_UNREADABLE = "a disk cannot be read"
    HOST_DEAD = "host of a vm unreachable for the cloud"
    MONITOR_KILLED = "monitor killed"
    MONITOR_KILLED_ACTING = "monitor killed in the middle of an operation"
    MONITOR_FROZEN = "monitor frozen"
    MONITOR_STEPS_DOWN = "monitor told to step down"
    MONITOR_TWICE = "a monitor runs twice"
    MONITOR_CLOCK_JUMPS = "a monitor's wall clock jumps"
    MONITOR_CLOCK_DRIFTS = "a monitor's wall clock runs wrong"
    RECEIVER_AWAY = "a receiver of alerts takes nothing"
    RECEIVER_DOUBTFUL = "a receiver of alerts takes them and does not say so"
    DEPLOYED = "a changed manifest deployed"
    SCALED = "instances added and removed by a person"
    RESIZED = "disks or VMs resized by a person"
    RECREATED = "an instance recreated by a person"
    STOPPED = "an instance stopped by a person, and started later"
    IGNORED = "an instance to be left alone, for a while"
    PAUSED = "paused by a person"
    SWITCHED_OFF = "resurrection switched off for a while"
    DELETED = "the second deployment deleted, and deployed again later"
    FLEET_KILLED = "every vm killed within a tenth of a second"


@dataclass(frozen=True, slots=True)
class Fault:
    at_seconds: float
    kind: FaultKind
    lasts_seconds: float
    target: float  # share of what is there
    depth: int  # how many steps a killed monitor takes before it dies, and other small choices
    acting: bool = False  # not at its time, but when a monitor has just written or asked something after it

    def __str__(self) -> str:
        when = ", while a monitor acts" if self.acting else ""
        return f"{self.kind.value} (for {self.lasts_seconds:.1f} s{when})"


_WEIGHTS: dict[FaultKind, tuple[float, float, float]] = {
    # weight, shortest, longest
    FaultKind.VM_KILLED: (8, 0, 0),
    FaultKind.VM_LOST_SILENTLY: (3, 0, 0),
    FaultKind.VM_FROZEN: (8, 2, 120),
    FaultKind.VM_REBOOTED: (4, 1, 30),
    FaultKind.VM_CLOCK_DRIFTS: (1, 60, 600),
    FaultKind.NEXT_VM_BOOTS_NEVER: (2, 0, 0),
    FaultKind.NEXT_VM_BOOTS_SLOWLY: (2, 0, 0),
    FaultKind.AGENT_KILLED: (4, 0.5, 10),
    FaultKind.CONTAINER_CRASHED: (6, 0, 0),
    FaultKind.CONTAINER_OOM: (2, 0, 0),
    FaultKind.CONTAINER_UNHEALTHY: (3, 5, 60),
    FaultKind.ENGINE_HUNG: (4, 5, 90),
    FaultKind.ENGINE_DOWN: (2, 0, 0),
    FaultKind.ENGINE_LOSES_EVENTS: (3, 10, 120),
    FaultKind.ENGINE_EVENTS_LIE: (2, 10, 120),
    FaultKind.ENGINE_ANSWERS_LATE: (2, 0, 0),
    FaultKind.AGENT_CUT: (6, 1, 90),
    FaultKind.AGENT_CUT_ONE_WAY: (5, 1, 60),
    FaultKind.OLD_COMMAND: (2, 0, 0),
    FaultKind.MONITOR_CUT: (4, 1, 60),
    FaultKind.MONITOR_CUT_ONE_WAY: (3, 1, 40),
    FaultKind.ALL_CUT: (2, 1, 40),
    FaultKind.SERVER_RESTARTED: (5, 0.1, 60),
    FaultKind.BAD_WEATHER: (4, 10, 180),
    FaultKind.CLOUD_SLOW: (4, 10, 120),
    FaultKind.CLOUD_FAILING: (4, 10, 120),
    FaultKind.CLOUD_UNSURE: (6, 20, 180),
    FaultKind.CLOUD_DELETE_LIES: (3, 60, 300),
    FaultKind.CLOUD_QUOTA: (2, 20, 200),
    FaultKind.DISK_STUCK: (2, 10, 200),
    FaultKind.DISK_SLIPS: (2, 10, 120),
    FaultKind.DISK_SWAPPED: (2, 10, 120),
    FaultKind.DISK_UNREADABLE: (2, 10, 120),
    FaultKind.HOST_DEAD: (4, 20, 300),
    FaultKind.MONITOR_KILLED: (5, 0.5, 60),
    FaultKind.MONITOR_KILLED_ACTING: (10, 0.5, 30),
    FaultKind.MONITOR_FROZEN: (5, 0.5, 40),
    FaultKind.MONITOR_STEPS_DOWN: (2, 0, 0),
    FaultKind.MONITOR_TWICE: (2, 10, 120),
    FaultKind.MONITOR_CLOCK_JUMPS: (2, 10, 300),
    FaultKind.MONITOR_CLOCK_DRIFTS: (1, 60, 600),
    FaultKind.RECEIVER_AWAY: (3, 10, 300),
    FaultKind.RECEIVER_DOUBTFUL: (2, 10, 120),
    FaultKind.DEPLOYED: (4, 0, 0),
    FaultKind.SCALED: (2, 0, 0),
    FaultKind.RESIZED: (2, 0, 0),
    FaultKind.RECREATED: (2, 0, 0),
    FaultKind.STOPPED: (2, 10, 100),
    FaultKind.IGNORED: (1, 10, 100),
    FaultKind.PAUSED: (1, 20, 200),
    FaultKind.SWITCHED_OFF: (1, 20, 200),
    FaultKind.DELETED: (1, 60, 200),
    FaultKind.FLEET_KILLED: (1, 0, 0),
}
_ON_REQUEST = frozenset({FaultKind.FLEET_KILLED})
"""Drawn only in scenarios that name them: one of these is a storm of its own."""

WORST_WHILE_ACTING = frozenset(
    {
        FaultKind.VM_KILLED,
        FaultKind.VM_FROZEN,
        FaultKind.MONITOR_CUT,
        FaultKind.MONITOR_FROZEN,
        FaultKind.MONITOR_STEPS_DOWN,
        FaultKind.SERVER_RESTARTED,
        FaultKind.DEPLOYED,
        FaultKind.SCALED,
        FaultKind.RESIZED,
        FaultKind.RECREATED,
        FaultKind.STOPPED,
        FaultKind.DELETED,
        FaultKind.PAUSED,
    }
)
ACTING_SHARE = 0.4
"""Of those, how many strike while a monitor acts."""

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
    kinds = [kind for kind in _WEIGHTS if (kind not in _ON_REQUEST if only is None else kind in only)]
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
        acting = kind in WORST_WHILE_ACTING and random.random() < ACTING_SHARE
        faults.append(Fault(at, kind, lasts, random.random(), random.randint(1, 200), acting))


def chosen(faults: Iterable[Fault], numbers: Iterable[int]) -> tuple[Fault, ...]:
    """Those of the plan with these numbers, from 0."""
    planned = tuple(faults)
    return tuple(planned[number] for number in sorted(set(numbers)) if number < len(planned))
