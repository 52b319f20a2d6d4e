"""Rolling upgrades: what a newer monitor or agent writes is kept, or passed over, and never acted on by mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthmonitor.core.carried_keys import carry, has_unknown
from protocol import heartbeat
from protocol.heartbeat import ContainerState, DiskState, EngineState, Reason


@pytest.mark.parametrize(
    ("raw", "before", "after", "expected"),
    [
        # nothing unknown: exactly what is wanted
        ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}),
        # an unknown key stays, here and further down
        ({"a": 1, "x": 9}, {"a": 1}, {"a": 2}, {"a": 2, "x": 9}),
        ({"a": {"b": 1, "x": 9}}, {"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": 2, "x": 9}}),
        # what was known and is removed stays removed
        ({"m": {"k": 1, "l": 2}}, {"m": {"k": 1, "l": 2}}, {"m": {"l": 2}}, {"m": {"l": 2}}),
        # a part that goes takes its unknown keys along
        ({"vm": {"id": "1", "x": 9}}, {"vm": {"id": "1"}}, {"vm": None}, {"vm": None}),
        # parts of a list: equal ones first, then by name; new ones carry nothing
        (
            [{"name": "a", "x": 1}, {"name": "b", "x": 2}],
            [{"name": "a"}, {"name": "b"}],
            [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            [{"name": "b", "x": 2}, {"name": "c"}, {"name": "a", "x": 1}],
        ),
        (
            [{"name": "a", "size": 1, "x": 1}],
            [{"name": "a", "size": 1}],
            [{"name": "a", "size": 2}],
            [{"name": "a", "size": 2, "x": 1}],
        ),
        # a key that this monitor fills in by its default is its own from then on
        ({}, {"a": 1}, {"a": 2}, {"a": 2}),
    ],
)
def test_unknown_keys_are_carried(raw: Any, before: Any, after: Any, expected: Any) -> None:
    """What was read, what was understood of it, what is to be written → what is written."""
    assert carry(raw, before, after) == expected


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcname"), inner, max_size=3),
    max_leaves=12,
)


@given(value=PLAIN, after=PLAIN)
def test_what_is_understood_whole_is_written_as_wanted(value: Any, after: Any) -> None:
    """Where nothing is unknown, carrying changes nothing."""
    assert not has_unknown(value, value)
    assert carry(value, value, after) == after


def newer(**changes: Any) -> bytes:
    extension = {
        "generation": 1,
        "sequence": 7,
        "sent_at_seconds": 10.0,
        "boot_id": "b",
        "engine": "up",
        "containers": [{"name": "redis", "state": "running"}],
        "disks": [{"name": "data", "cid": "d-1", "state": "mounted"}],
        "mood": {"of": ["the", "agent"]},
    }
    return json.dumps({"job": "db", "resurgam": {**extension, **changes}, "new": 1}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"engine": "levitating"},
        {"containers": [{"name": "redis", "state": "hibernating", "reason": "winter", "new": 1}]},
        {"disks": [{"name": "data", "cid": "d-1", "state": "striped"}]},
        {"version": 99},
    ],
)
def test_a_newer_agents_heartbeat_counts(changes: dict[str, Any]) -> None:
    """Unknown keys and unknown words: the VM is heard all the same, by both ways of reading."""
    for read in (heartbeat.decode, heartbeat.glance):
        extension = read(newer(**changes)).resurgam
        assert extension is not None
        assert (extension.sequence, extension.sent_at_seconds) == (7, 10.0)


def test_unknown_words_are_said_to_be_unknown() -> None:
    """None of them is taken for a good one."""
    found = heartbeat.glance(
        newer(
            engine="levitating",
            containers=[{"name": "redis", "state": "hibernating", "reason": "winter"}],
            disks=[{"name": "data", "cid": "d-1", "state": "striped"}],
        )
    ).resurgam
    assert found is not None
    assert (found.engine, found.containers[0].state, found.containers[0].reason, found.disks[0].state) == (
        EngineState.UNKNOWN,
        ContainerState.UNKNOWN,
        Reason.OTHER,
        DiskState.UNKNOWN,
    )
