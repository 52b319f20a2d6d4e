"""Order among the containers of one instance: who waits for whom, who must restart with whom.

Law: the graph has no circle and names only containers that exist; `check` says so before a specification is taken.

Does not know: what runs at the moment (reconcile.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from protocol.ids import ContainerName
from protocol.spec import ContainerSpec, Dependency


class BadDependencies(ValueError):
    """The specification's fault: a circle, or a name that is not there. Retrying unchanged will not help."""


def check(containers: Iterable[ContainerSpec]) -> None:
    """Raises BadDependencies when these containers cannot be put in order."""
    levels(containers)


def levels(containers: Iterable[ContainerSpec]) -> tuple[tuple[ContainerName, ...], ...]:
    """Names by level: everything in a level depends only on earlier levels. Stop in the reverse order."""
    waiting = {name: {item.container for item in needs} for name, needs in dependencies(containers).items()}
    for name, needs in waiting.items():
        unknown = sorted(needs - waiting.keys())
        if unknown:
            raise BadDependencies(f"{name} depends on {', '.join(unknown)}, which is not in the specification")
    result: list[tuple[ContainerName, ...]] = []
    while waiting:
        free = tuple(sorted(name for name, needs in waiting.items() if not needs))
        if not free:
            raise BadDependencies(f"{', '.join(sorted(waiting))} depend on one another in a circle")
        result.append(free)
        waiting = {name: needs - set(free) for name, needs in waiting.items() if name not in free}
    return tuple(result)


def dependencies(containers: Iterable[ContainerSpec]) -> dict[ContainerName, tuple[Dependency, ...]]:
    """Per container what it depends on: as written, and by sharing another's network or volumes. A shared network
    namespace ends with its owner's run, so that dependency restarts whatever is written."""
    specs = {spec.name: spec for spec in containers}
    return {spec.name: _of(spec, specs) for spec in specs.values()}


def restarted_with(
    roots: Iterable[ContainerName],
    graph: Mapping[ContainerName, tuple[Dependency, ...]],
    passes: Callable[[ContainerName], bool],
) -> frozenset[ContainerName]:
    """`roots` and, over all levels, what restarts when they do. A container for which `passes` is false does not
    restart itself (a completed one-shot), so nothing restarts through it."""
    reached = set(roots)
    edge = list(reached)
    while edge:
        name = edge.pop()
        for dependent, needs in graph.items():
            if dependent in reached or not passes(dependent):
                continue
            if any(item.container == name and item.restart for item in needs):
                reached.add(dependent)
                edge.append(dependent)
    return frozenset(reached)


def all_dependents(
    name: ContainerName, graph: Mapping[ContainerName, tuple[Dependency, ...]]
) -> frozenset[ContainerName]:
    """Whatever depends on `name` over all levels, restart or not; without `name`."""
    reached: set[ContainerName] = set()
    edge = [name]
    while edge:
        current = edge.pop()
        for dependent, needs in graph.items():
            if dependent not in reached and any(item.container == current for item in needs):
                reached.add(dependent)
                edge.append(dependent)
    return frozenset(reached - {name})


def _of(spec: ContainerSpec, specs: Mapping[ContainerName, ContainerSpec]) -> tuple[Dependency, ...]:
    found = {item.container: item for item in spec.depends_on}
    for shared in _shared_with(spec):
        if shared in specs and shared != spec.name:
            written = found.get(shared)
            found[shared] = Dependency(shared, written.condition, True) if written else Dependency(shared)
    return tuple(found.values())


def _shared_with(spec: ContainerSpec) -> list[ContainerName]:
    shared = [volume.split(":", 1)[0] for volume in spec.volumes_from]
    for mode in (spec.network_mode, spec.pid, spec.ipc):
        kind, separator, name = mode.partition(":")
        if separator and kind in ("container", "service"):
            shared.append(name)
    return [ContainerName(name) for name in shared]
