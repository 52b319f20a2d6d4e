"""What the containers of a group say of one another: dependencies that exist, can be met and form no circle."""

from __future__ import annotations

from collections.abc import Mapping

from healthmonitor.core.compose import ReadContainer
from protocol.spec import Condition, Restart


def check_references(containers: Mapping[str, ReadContainer]) -> None:
    """Undeclared names were reported where they were read."""
    for container in containers.values():
        for dependency in container.spec.depends_on:
            other = containers.get(dependency.container)
            where = container.dependencies.get(dependency.container)
            if other is None or where is None:
                continue
            healthcheck = other.spec.healthcheck
            if dependency.condition is Condition.HEALTHY and (healthcheck is None or healthcheck.test == ("NONE",)):
                where.key_error(
                    f"condition service_healthy, but {dependency.container} has no healthcheck; give it one, "
                    "or write condition: service_started"
                )
            never_ends = other.spec.restart in (Restart.ALWAYS, Restart.UNLESS_STOPPED)
            if dependency.condition is Condition.COMPLETED and never_ends:
                given = "has" if other.restart_given else "has the default"
                where.key_error(
                    f"condition service_completed_successfully, but {dependency.container} {given} restart: "
                    f'{other.spec.restart.value} and never completes; give it restart: "no" or on-failure'
                )
    for cycle in _cycles({name: [*container.dependencies] for name, container in containers.items()}):
        where = containers[cycle[0]].dependencies[cycle[1]]
        where.key_error(f"a circle of dependencies: {' → '.join(cycle)}; none of them could ever start")


def _cycles(edges: Mapping[str, list[str]]) -> list[list[str]]:
    """One circle for each set of containers that are in circles with one another, without recursion."""
    found: list[list[str]] = []
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        ahead = [iter([start])]
        while ahead:
            name = next(ahead[-1], None)
            if name is None:
                ahead.pop()
                if path:
                    done.add(path.pop())
            elif name in path:
                found.append([*path[path.index(name) :], name])
                done.update(path)
            elif name not in done and name in edges:
                path.append(name)
                ahead.append(iter(edges[name]))
    return found
