"""The hash that decides what an update restarts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from protocol.ids import ContainerName
from protocol.spec import (
    SUPERVISED_FIELDS,
    ContainerSpec,
    Dependency,
    Device,
    Healthcheck,
    Logging,
    Mount,
    MountKind,
    Port,
    PullPolicy,
    Restart,
    Ulimit,
    spec_hash,
)

PLAIN = ContainerSpec(ContainerName("db"), "redis:7")

OTHER_VALUES: dict[str, Any] = {
    "name": ContainerName("other"),
    "image": "redis:8",
    "command": ("a",),
    "entrypoint": ("a",),
    "environment": {"A": "1"},
    "ports": (Port(80, 8080),),
    "mounts": (Mount(MountKind.DISK, "data", "/data"),),
    "depends_on": (Dependency(ContainerName("x")),),
    "healthcheck": Healthcheck(("CMD", "true")),
    "restart": Restart.NO,
    "ulimits": (Ulimit("nofile", 1, 2),),
    "devices": (Device("/dev/a", "/dev/b"),),
    "logging": Logging("none", {}),
    "pull_policy": PullPolicy.NEVER,
    "mem_swappiness": 0,
    "on_oom": "restart",
    "cpus": 0.5,
    "stop_grace_period_seconds": 1.0,
}


def _changed(field: dataclasses.Field[Any]) -> ContainerSpec:
    value: Any = OTHER_VALUES.get(field.name)
    if value is None:
        old = getattr(PLAIN, field.name)
        match old:
            case bool():
                value = not old
            case int():
                value = old + 1
            case str():
                value = old + "x"
            case tuple():
                value = ("x",)
            case _:
                value = {"x": "y"}
    changes: dict[str, Any] = {field.name: value}
    return dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize("field", dataclasses.fields(ContainerSpec), ids=lambda field: field.name)
def test_each_field_counts_or_is_supervised(field: dataclasses.Field[Any]) -> None:
    """Changing a field needs a new container, unless it is one that the agent alone acts upon."""
    changed = _changed(field)
    assert changed != PLAIN
    assert (spec_hash(changed) == spec_hash(PLAIN)) is (field.name in SUPERVISED_FIELDS)


def test_it_stays_the_same_over_versions() -> None:
    """Known answers: a newer agent that computes others would restart the whole fleet on its update."""
    assert spec_hash(PLAIN) == KNOWN_PLAIN
    rich = dataclasses.replace(
        PLAIN, environment={"B": "2", "A": "1"}, ports=(Port(80, 8080),), healthcheck=Healthcheck(("CMD", "true"))
    )
    assert spec_hash(rich) == KNOWN_RICH


def test_the_order_of_a_mapping_does_not_count() -> None:
    """Two ways to write the same thing hash the same."""
    one = dataclasses.replace(PLAIN, environment={"A": "1", "B": "2"})
    two = dataclasses.replace(PLAIN, environment={"B": "2", "A": "1"})
    assert spec_hash(one) == spec_hash(two)


KNOWN_PLAIN = "750917e99bd8f15a"
KNOWN_RICH = "e5030e0bff6d8862"
