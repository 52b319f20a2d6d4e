"""Heartbeats and alerts on the wire: a real bosh-agent's are read, ours can be read by a BOSH monitor."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.heartbeat_content import Facts, compose, encode_within, job_state
from protocol import alert, heartbeat
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    DiskReport,
    DiskState,
    EngineState,
    Extension,
    Heartbeat,
    Malformed,
)
from protocol.ids import Generation, InstanceId
from protocol.spec import InstanceSpec, Wanted
from tests.support.agent import make_spec

DATA = Path("tests/data/bosh-agent")
HEARTBEATS = sorted(DATA.glob("*heartbeat*.json"))


@pytest.mark.parametrize("path", HEARTBEATS, ids=lambda path: path.stem)
def test_a_real_agents_heartbeat_is_read_in_full(path: Path) -> None:
    """Every key that was sent, nulls included; and there is nothing of ours in it."""
    captured = json.loads(path.read_text())
    beat = heartbeat.decode(captured["raw"].encode())
    parsed = captured["parsed"]
    assert {name: getattr(beat, name) for name in parsed} == parsed
    assert beat.resurgam is None


def facts(
    spec: InstanceSpec | None = None,
    engine: EngineState = EngineState.UP,
    containers: tuple[ContainerReport, ...] = (),
    disks: tuple[DiskReport, ...] = (),
    instance: InstanceId | None = None,
) -> Facts:
    return Facts(Generation(3), instance, spec, engine, containers, disks, {}, False, False, "boot", "1")


def test_ours_has_the_keys_of_a_real_one_and_one_more() -> None:
    """A BOSH monitor finds everything where it looks for it."""
    real = json.loads(HEARTBEATS[0].read_text())["parsed"]
    ours = json.loads(heartbeat.encode(compose(facts(), 1, 2.0)))
    assert set(ours) == {*real, "resurgam"}
    assert (ours["deployment"], ours["job"], ours["index"], ours["node_id"]) == ("", None, None, "")


def test_what_is_composed_comes_back() -> None:
    """Through bytes and back, our own keys included."""
    containers = (ContainerReport("redis", ContainerState.RUNNING, restarts=3, exit_code=1),)
    beat = compose(facts(make_spec(9), containers=containers), 17, 12.5)
    back = heartbeat.decode(heartbeat.encode(beat))
    assert back == beat
    assert back.resurgam is not None
    assert (back.resurgam.sequence, back.resurgam.sent_at_seconds, back.resurgam.revision) == (17, 12.5, 9)


def test_a_vm_without_specification_says_which_instance_it_fills() -> None:
    """Its settings know, before the first apply."""
    beat = compose(facts(instance=InstanceId("shop/db/2")), 1, 1.0)
    assert (beat.deployment, beat.job, beat.index, beat.node_id) == ("shop", "db", 2, "shop/db/2")


def named(*states: ContainerState) -> tuple[ContainerReport, ...]:
    names = ["redis", "exporter", "third"]
    return tuple(ContainerReport(name, state) for name, state in zip(names, states, strict=False))


RUNNING, STOPPED, C = ContainerState.RUNNING, ContainerState.STOPPED, ContainerState
DISK = DiskReport("data", "d-1", DiskState.MOUNTED)


@pytest.mark.parametrize(
    ("given_facts", "state"),
    [
        (facts(), "running"),
        (facts(engine=EngineState.STARTING), "unknown"),
        (facts(engine=EngineState.HUNG, containers=named(RUNNING)), "unknown"),
        (facts(engine=EngineState.DOWN), "unknown"),
        (facts(engine=EngineState.BACKING_OFF), "unknown"),
        (facts(make_spec()), "starting"),
        (facts(make_spec(), containers=named(RUNNING)), "starting"),
        (facts(make_spec(), containers=named(RUNNING, RUNNING)), "running"),
        (facts(make_spec(), containers=named(RUNNING, C.COMPLETED)), "running"),
        (facts(make_spec(), containers=named(RUNNING, STOPPED)), "running"),
        (facts(make_spec(), containers=named(STOPPED, STOPPED)), "stopped"),
        (facts(make_spec(wanted=Wanted.STOPPED), containers=named(STOPPED, STOPPED)), "stopped"),
        (facts(make_spec(wanted=Wanted.STOPPED), containers=named(C.STOPPING, STOPPED)), "stopped"),
        *[
            (facts(make_spec(), containers=named(RUNNING, state)), "starting")
            for state in (C.PENDING, C.PULLING, C.CREATING, C.STARTING, C.STOPPING)
        ],
        *[
            (facts(make_spec(), containers=named(C.STARTING, state)), "failing")
            for state in (C.UNHEALTHY, C.BACKING_OFF, C.CRASH_LOOP, C.FAILED, C.UNKNOWN)
        ],
        (facts(make_spec(), containers=named(RUNNING, RUNNING, C.ORPHANED)), "starting"),
        (facts(make_spec(), containers=named(RUNNING, RUNNING), disks=(DISK,)), "running"),
        *[
            (facts(make_spec(), containers=named(RUNNING, RUNNING), disks=(DiskReport("d", "d", state),)), "failing")
            for state in (DiskState.FAILED, DiskState.READ_ONLY, DiskState.MISSING)
        ],
    ],
)
def test_job_state_is_one_of_boshs_five_words(given_facts: Facts, state: str) -> None:
    """A container that is not as it should be outweighs one that is on its way."""
    assert job_state(given_facts) == state


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "truncated|Input"),
        (b"{", "truncated|Input"),
        (b"null", "Expected `object`"),
        (b"[]", "Expected `object`"),
        (b'"x"', "Expected `object`"),
        (b'{"index":"zero"}', "index"),
        (b'{"job_state":5}', "job_state"),
        (b'{"resurgam":{"sequence":"1"}}', "sequence"),
        (b'{"resurgam":{"containers":[{"name":"a","state":5}]}}', "state"),
        (b"\xff\xfe", "."),
        (b"[" * 100_000, "."),
        (b" " * (heartbeat.HEARTBEAT_MAX_BYTES + 1), "more than"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_heartbeat_is_malformed(payload: bytes, message: str) -> None:
    """One error, whatever is wrong, and it says where."""
    with pytest.raises(Malformed, match=message):
        heartbeat.decode(payload)


def test_a_newer_agents_heartbeat_is_read_by_an_older_monitor() -> None:
    """Unknown keys at every level are ignored."""
    payload = (
        b'{"job_state":"running","new":1,"resurgam":{"version":9,"new":{},'
        b'"containers":[{"name":"a","state":"running","new":1}]}}'
    )
    beat = heartbeat.decode(payload)
    assert beat.resurgam is not None
    assert beat.resurgam.containers[0].state is RUNNING


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_malformed(payload: bytes) -> None:
    """Either a heartbeat or Malformed, never another error."""
    with contextlib.suppress(Malformed):
        heartbeat.decode(payload)


@given(
    st.integers(0, 400),
    st.integers(0, 300),
    st.sampled_from([RUNNING, C.CRASH_LOOP]),
    st.sampled_from([2_000, 20_000, heartbeat.HEARTBEAT_MAX_BYTES]),
)
def test_a_heartbeat_always_fits(count: int, detail: int, state: ContainerState, limit: int) -> None:
    """However many containers and however long their stories; those in trouble go last."""
    containers = tuple(ContainerReport(f"c-{n}", state, detail="x" * detail, image_id="y" * 64) for n in range(count))
    trouble = ContainerReport("trouble", C.UNHEALTHY)
    beat = compose(facts(containers=(*containers, trouble)), 1, 1.0)
    payload = encode_within(beat, limit)
    assert len(payload) <= limit
    back = heartbeat.decode(payload)
    assert back.number_of_processes == count + 1
    if state is RUNNING:
        assert back.resurgam is not None
        assert "trouble" in [item.name for item in back.resurgam.containers]


def test_a_heartbeat_that_fits_is_sent_whole() -> None:
    """Nothing is left out without need."""
    beat = Heartbeat(resurgam=Extension(containers=(ContainerReport("a", RUNNING, detail="why"),)))
    assert heartbeat.decode(encode_within(beat)) == beat


def test_a_real_alert_is_read() -> None:
    """As bosh-agent's monit sends it."""
    captured = json.loads((DATA / "agent-real-2-alert-1.json").read_text())
    heard = alert.decode(captured["raw"].encode())
    assert {name: getattr(heard, name) for name in captured["parsed"]} == captured["parsed"]
    assert json.loads(alert.encode(heard)) == captured["parsed"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b'{"severity":2}',
        b'{"title":"t","severity":0,"created_at":1}',
        b'{"title":"t","severity":5,"created_at":1}',
        b'{"title":"t","severity":"2","created_at":1}',
        b" " * (alert.ALERT_MAX_BYTES + 1),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_alert_is_malformed(payload: bytes) -> None:
    """Missing keys, severities that are not BOSH's, and too much of it."""
    with pytest.raises(Malformed):
        alert.decode(payload)
