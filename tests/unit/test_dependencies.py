"""Order among containers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.dependencies import BadDependencies, all_dependents, check, dependencies, levels, restarted_with
from protocol.ids import ContainerName
from protocol.spec import Condition, ContainerSpec, Dependency


def container(name: str, *needs: str, **options: object) -> ContainerSpec:
    return ContainerSpec(
        ContainerName(name),
        "image",
        depends_on=tuple(Dependency(ContainerName(need)) for need in needs),
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ([], ()),
        ([container("a")], (("a",),)),
        ([container("c", "b"), container("b", "a"), container("a")], (("a",), ("b",), ("c",))),
        ([container("a"), container("b"), container("c", "a", "b")], (("a", "b"), ("c",))),
        ([container("a"), container("b", network_mode="container:a")], (("a",), ("b",))),
        ([container("a"), container("b", network_mode="service:a")], (("a",), ("b",))),
        ([container("a"), container("b", volumes_from=("a:ro",))], (("a",), ("b",))),
        ([container("a"), container("b", network_mode="container:elsewhere")], (("a", "b"),)),
    ],
)
def test_levels(containers: list[ContainerSpec], expected: tuple[tuple[str, ...], ...]) -> None:
    """Everything in a level depends only on earlier levels; sharing a namespace or volumes is depending."""
    assert levels(containers) == expected


@pytest.mark.parametrize(
    ("containers", "text"),
    [
        ([container("a", "a")], "a depend on one another"),
        ([container("a", "b"), container("b", "a"), container("c")], "a, b depend on one another"),
        ([container("a", "x")], "a depends on x, which is not"),
    ],
)
def test_bad_dependencies_are_named(containers: list[ContainerSpec], text: str) -> None:
    """A circle or an unknown name is refused with the names."""
    with pytest.raises(BadDependencies, match=text):
        check(containers)


def test_what_restarts_with_what() -> None:
    """Over all levels, but not against `restart: false`, and not through what does not restart itself."""
    specs = [
        container("db"),
        container("migrate", "db"),
        container("app", "migrate"),
        container("web", "db"),
        container("edge", "web"),
        ContainerSpec(
            ContainerName("calm"), "image", depends_on=(Dependency(ContainerName("db"), Condition.STARTED, False),)
        ),
    ]
    graph = dependencies(specs)
    db = [ContainerName("db")]
    assert restarted_with(db, graph, lambda name: True) == {"db", "migrate", "app", "web", "edge"}
    assert restarted_with(db, graph, lambda name: name != "migrate") == {"db", "web", "edge"}
    assert all_dependents(ContainerName("db"), graph) == {"migrate", "app", "web", "edge", "calm"}


def test_a_shared_network_namespace_restarts_whatever_is_written() -> None:
    """`restart: false` cannot hold where the namespace is gone with its owner; the condition as written stays."""
    sharer = ContainerSpec(
        ContainerName("b"),
        "image",
        network_mode="container:a",
        depends_on=(Dependency(ContainerName("a"), Condition.HEALTHY, restart=False),),
    )
    assert dependencies([container("a"), sharer])[ContainerName("b")] == (
        Dependency(ContainerName("a"), Condition.HEALTHY, restart=True),
    )


@given(st.lists(st.sets(st.integers(0, 9), max_size=4), max_size=10))
def test_levels_respect_every_edge(edges: list[set[int]]) -> None:
    """For any graph without circles each container comes after everything it depends on, and none is lost."""
    specs = [
        container(f"c{number}", *(f"c{need}" for need in needs if need < number)) for number, needs in enumerate(edges)
    ]
    position = {name: number for number, level in enumerate(levels(specs)) for name in level}
    assert len(position) == len(specs)
    for spec in specs:
        assert all(position[item.container] < position[spec.name] for item in spec.depends_on)
