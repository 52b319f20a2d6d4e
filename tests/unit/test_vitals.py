"""Vitals in BOSH's shapes, and a sampler that may hang."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.core.vitals_shape import CpuTimes, Sample, Usage, shape
from agent.lone_thread import LoneThread, StillHanging
from agent.vitals import Vitals, disk_usage, read_sample

CAPTURED = Path("tests/data/bosh-agent/agent-real-1-heartbeat-1.json")
SAMPLE = Sample(
    cpu=CpuTimes(user=30, system=10, wait=5, total=200),
    load=(0.094, 0.04, 0.011),
    memory_used_bytes=145_996 * 1024,
    memory_total_bytes=1_042_828 * 1024,
    swap_used_bytes=0,
    swap_total_bytes=0,
    uptime_seconds=86_400.7,
    disks={"system": Usage(41.6, 31.2), "persistent": Usage(12.0, 0.0)},
)


def test_the_shapes_are_boshs() -> None:
    """Shares of the time between two samples; strings everywhere but for uptime."""
    assert shape(SAMPLE, CpuTimes(user=20, system=8, wait=5, total=100)) == {
        "cpu": {"sys": "2.0", "user": "10.0", "wait": "0.0"},
        "disk": {
            "system": {"inode_percent": "31", "percent": "42"},
            "persistent": {"inode_percent": "0", "percent": "12"},
        },
        "load": ["0.09", "0.04", "0.01"],
        "mem": {"kb": "145996", "percent": "14"},
        "swap": {"kb": "0", "percent": "0"},
        "uptime": {"secs": 86_400},
    }


@pytest.mark.parametrize(
    "before",
    [CpuTimes(user=30, system=10, wait=5, total=200), CpuTimes(user=99, system=99, wait=99, total=999)],
    ids=["no time passed", "counters ran backwards"],
)
def test_odd_counters_give_no_odd_shares(before: CpuTimes) -> None:
    """Never a division by zero, never less than none."""
    assert set(shape(SAMPLE, before)["cpu"].values()) <= {f"{share / 10:.1f}" for share in range(1001)}


def kinds(value: Any) -> Any:
    """The shape of a value: keys, and for strings how many decimals."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(inner) for inner in value]
    if isinstance(value, str):
        assert re.fullmatch(r"\d+(\.\d+)?", value)
        return len(value.partition(".")[2])
    return type(value)


async def test_this_machines_vitals_look_like_a_real_agents() -> None:
    """Sampled with psutil, compared key by key and decimal by decimal with what a real bosh-agent sent."""
    real = kinds(json.loads(CAPTURED.read_text())["parsed"]["vitals"])
    vitals = Vitals(read_sample(lambda: 100.0, lambda: "/"))
    await vitals.sample()
    await vitals.sample()
    ours = kinds(vitals.latest())
    assert set(ours["disk"]) - {"ephemeral"} == {"system", "persistent"}
    for name in ours["disk"]:
        assert ours["disk"][name] == real["disk"]["system"]
    assert {**ours, "disk": 0} == {**real, "disk": 0}


def test_disk_usage_counts_as_df_does(tmp_path: Path) -> None:
    """Between nothing and all, of a disk that has a size."""
    usage = disk_usage(str(tmp_path))
    assert 0 <= usage.percent <= 100
    assert 0 <= usage.inode_percent <= 100
    assert usage.size_mib > 0


async def test_a_sample_that_fails_leaves_the_latest() -> None:
    """A disk that cannot be read any more must not take memory and load with it."""
    answers: list[Sample | OSError] = [SAMPLE, OSError(5, "Input/output error")]

    def read() -> Sample:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    vitals = Vitals(read)
    await vitals.sample()
    first = vitals.latest()
    await vitals.sample()
    assert vitals.latest() is first
    assert first["uptime"] == {"secs": 86_400}


async def test_hanging_calls_do_not_pile_up() -> None:
    """While one hangs the next fails at once; when it returns, calls work again."""
    thread, release, entered = LoneThread("test"), threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(30)

    with pytest.raises(TimeoutError):
        await thread.call(hang, 0.05)
    assert entered.is_set()
    before = threading.active_count()
    with pytest.raises(StillHanging):
        await thread.call(hang, 0.05)
    assert threading.active_count() == before
    release.set()
    for _ in range(1000):
        try:
            assert await thread.call(lambda: 5, 5) == 5
            break
        except StillHanging:
            threading.Event().wait(0.005)
    else:
        raise AssertionError("the thread never came back")
