"""Whether a monitor and its agents grow while nothing does that they look after: objects counted over a long run.

Laws: what is counted is what can be reached from the parts and the coroutines of the living monitor and of the present
agents, not what the simulation itself keeps (its story, the tasks of killed processes). What has a bound of its own and
is kept on purpose up to it (records of resolved incidents) is not counted. Flat: the last quarter has no more than the
second.

Does not know: what goes wrong in the run.
"""

from __future__ import annotations

import gc
import os
import resource
import types
from collections import Counter
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
TYPES_TOLD = 8
FLAT = "Over a long run memory stays flat."

_NOT_FOLLOWED = (
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
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
    trace: Trace

    def monitor_parts(self) -> list[object]:
        """What makes up the monitors that live: their objects, and the coroutines of their tasks."""
        ...

    def agent_parts(self) -> list[object]: ...

    def violate(self, checker: str, sentence: str, breach: Breach) -> None: ...


class Soak:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._looks: list[tuple[int, int, int]] = []  # objects, megabytes of this process, its open files
        self._by_type: list[Counter[str]] = []

    def look(self) -> None:
        by_type = reachable([*self._world.monitor_parts(), *self._world.agent_parts()])
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        self._looks.append((by_type.total(), kilobytes // 1024, files))
        self._by_type.append(by_type)

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
                more = self._grown() if number == 0 else ""
                self._world.violate("soak_is_flat", FLAT, Breach(f"{name} grew from {before:.0f} to {after:.0f}{more}"))

    def _grown(self) -> str:
        """Of which types most more are there than a quarter of the run after its beginning."""
        more = self._by_type[-1] - self._by_type[len(self._by_type) // 4]
        return ": " + ", ".join(f"{count} {name}" for name, count in more.most_common(TYPES_TOLD))

    def figures(self) -> str:
        return "objects, peak MB, open files: " + "; ".join(f"{a}, {b}, {c}" for a, b, c in self._looks)


def reachable(roots: list[Any]) -> Counter[str]:
    """How many objects of the collector's can be reached, by type, but for what the simulation is
    made of: through a callback of the world's all VMs that ever were, and all that the bus keeps, could be."""
    seen: set[int] = set()
    found: Counter[str] = Counter()
    own = {id(root) for root in roots}
    waiting = list(roots)
    while waiting:
        each = waiting.pop()
        if id(each) in seen or not gc.is_tracked(each) or isinstance(each, _NOT_FOLLOWED):
            continue
        if id(each) not in own and type(each).__module__.startswith("tests.simulation"):
            continue
        seen.add(id(each))
        found[f"{type(each).__module__}.{type(each).__qualname__}"] += 1
        if isinstance(each, types.FunctionType):  # its globals are no part of it
            waiting.extend(each.__closure__ or ())
        else:
            waiting.extend(gc.get_referents(each))
    return found
