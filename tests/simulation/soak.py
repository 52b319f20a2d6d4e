"""Whether a monitor and its agents grow while nothing does that they look after: objects counted over a long run.

Laws: what is counted is what can be reached from the parts of the living monitor and from the present agents, not what
the simulation itself keeps (its story, the tasks of killed processes). What has a bound of its own and is kept on
purpose up to it (records of resolved incidents) is not counted. Flat: the last quarter has no more than the second.

Does not know: what goes wrong in the run.
"""

from __future__ import annotations

import gc
import os
import resource
import types
from statistics import median
from typing import Any, Protocol

from healthmonitor.core.notifying.notification import Notification
from healthmonitor.core.records import Incident
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.centre import MonitorProcess
from tests.simulation.checkers import Breach
from tests.simulation.cloud import SimulatedCloud
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.story import Trace, Voice

GROWTH_SHARE = 0.1
GROWTH_OBJECTS = 150
"""More than a fault that happens to be under way at a look can make."""
FLAT = "Over a long run memory stays flat."

_NOT_FOLLOWED = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CoroutineType,
    types.FrameType,
    types.GeneratorType,
    SimulatedLoop,
    SimulatedServer,
    SimulatedBus,
    SimulatedCloud,
    MonitorProcess,
    Process,
    Trace,
    Incident,
    Notification,
)


class Surroundings(Protocol):
    monitors: list[MonitorProcess]
    trace: Trace

    def agents(self) -> list[object]: ...

    def violate(self, checker: str, sentence: str, breach: Breach) -> None: ...


class Soak:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._looks: list[tuple[int, int, int]] = []  # objects, megabytes of this process, its open files

    def look(self) -> None:
        roots = [monitor.running for monitor in self._world.monitors if monitor.running is not None]
        objects = reachable([*roots, *self._world.agents()])
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        self._looks.append((objects, kilobytes // 1024, files))

    def end(self) -> None:
        quarter = len(self._looks) // 4
        early, late = self._looks[quarter : 2 * quarter], self._looks[-quarter:]
        if not early or not late:
            return
        for name, number, allowed in (("objects", 0, GROWTH_OBJECTS), ("open files", 2, 0)):
            before, after = (median(look[number] for look in looks) for looks in (early, late))
            # The story is part of the digest, so only what the run itself decides is told there.
            if number == 0:
                text = f"{before:.0f} {name} in the second quarter, {after:.0f} in the last"
                self._world.trace.tell(Voice.CHECK, "soak", text)
            if after > before * (1.0 + GROWTH_SHARE) + allowed:
                self._world.violate("soak_is_flat", FLAT, Breach(f"{name} grew from {before:.0f} to {after:.0f}"))

    def figures(self) -> str:
        return "objects, peak MB, open files: " + "; ".join(f"{a}, {b}, {c}" for a, b, c in self._looks)


def reachable(roots: list[Any]) -> int:
    """How many objects of the collector's can be reached, but for what the simulation is made of: through a callback of
    the world's all VMs that ever were, and all that the bus keeps, could be."""
    seen: set[int] = set()
    own = {id(root) for root in roots}
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or not gc.is_tracked(each) or isinstance(each, _NOT_FOLLOWED):
            continue
        if id(each) not in own and type(each).__module__.startswith("tests.simulation"):
            continue
        seen.add(id(each))
        waiting.extend(gc.get_referents(each))
    return len(seen)
