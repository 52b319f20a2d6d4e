"""How full disks are: what is said of them, and the day they will be full."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthmonitor.core.disk_use import SAMPLES_LEAST, SAMPLES_MAX, History, complaints, days_text, is_fine
from healthmonitor.core.policy import DiskPolicy
from protocol.heartbeat import DiskGlance, DiskState

POLICY = DiskPolicy()
HOUR, DAY = 3600.0, 86400.0
STEP = POLICY.sample_seconds


def glance(percent: float = 0.0, inode_percent: float = 0.0, errors: int = 0) -> DiskGlance:
    return DiskGlance("data", DiskState.MOUNTED, percent, inode_percent, errors)


@pytest.mark.parametrize(
    ("report", "full_in", "kinds"),
    [
        (glance(84.9), None, []),
        (glance(85.0), None, ["disk_filling"]),
        (glance(94.9), None, ["disk_filling"]),
        (glance(95.0), None, ["disk_full"]),
        (glance(100.0, 100.0), None, ["disk_full", "disk_inodes"]),
        (glance(10.0, 89.9), None, []),
        (glance(10.0, 90.0), None, ["disk_inodes"]),
        (glance(10.0), DAY + 1, []),
        (glance(10.0), DAY, ["disk_filling"]),
        (glance(errors=1), None, ["disk_errors"]),
        (glance(96.0, errors=3), 0.0, ["disk_errors", "disk_full"]),
    ],
)
def test_what_is_said_of_a_disk(report: DiskGlance, full_in: float | None, kinds: list[str]) -> None:
    """At its limits exactly; full is not also filling."""
    found = list(complaints(report, full_in, POLICY))
    assert [kind for kind, _ in found] == kinds
    assert all(detail for _, detail in found)
    assert is_fine(report, full_in, POLICY) == (not kinds)


def history(percent_at: Callable[[int], float], count: int) -> History:
    found = History()
    for number in range(count):
        found = found.seen(number * STEP, percent_at(number), STEP)
    return found


@pytest.mark.parametrize(
    ("name", "percent_at", "count", "hours"),
    [
        ("one percent a step", lambda n: 50.0 + n, 12, 39 * STEP / HOUR),
        ("too little seen", lambda n: 50.0 + n, SAMPLES_LEAST - 1, None),
        ("does not grow", lambda n: 50.0, 36, None),
        ("shrinks", lambda n: 50.0 - n, 36, None),
        ("a file that comes and goes", lambda n: 90.0 if n % 7 == 3 else 50.0, 36, None),
        ("growth with a file that comes and goes", lambda n: 99.0 if n % 7 == 3 else 50.0 + n, 36, 15 * STEP / HOUR),
        ("full", lambda n: min(100.0, 80.0 + n), 30, 0.0),
    ],
)
def test_the_day_a_disk_is_full(name: str, percent_at: Callable[[int], float], count: int, hours: float | None) -> None:
    """From the last sample on, at the growth that most samples agree on."""
    found = history(percent_at, count).seconds_until_full()
    assert (found is None) == (hours is None), name
    if hours is not None and found is not None:
        assert found / HOUR == pytest.approx(hours, rel=0.25, abs=0.01)


def test_samples_are_apart_and_bounded() -> None:
    """Heartbeats come every few seconds; what is kept is one in five minutes, for three hours."""
    found = History()
    for second in range(0, 6 * 3600, 60):
        found = found.seen(float(second), 1.0, STEP)
    assert len(found.samples) == 36
    assert {b[0] - a[0] for a, b in zip(found.samples, found.samples[1:], strict=False)} == {STEP}


def test_what_is_kept_of_a_disk_is_small() -> None:
    """Three hours of samples in a third of a kilobyte: there are as many as there are disks."""
    found = history(lambda n: 50.0 + n / 100.0, 2 * SAMPLES_MAX)
    assert sys.getsizeof(found.packed) <= 340
    assert not gc.is_tracked(found)


@given(st.lists(st.floats(allow_nan=False), max_size=60))
def test_a_forecast_is_never_negative(percents: list[float]) -> None:
    """Whatever was seen."""
    found = history(lambda n: percents[n], len(percents)).seconds_until_full()
    assert found is None or found >= 0.0


@pytest.mark.parametrize(("seconds", "text"), [(600.0, "10 min"), (9 * HOUR, "9 h"), (6 * DAY, "6 days")])
def test_times_for_people(seconds: float, text: str) -> None:
    """In the unit that one thinks in."""
    assert days_text(seconds) == text
