"""Durations, sizes and shares as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthmonitor.core import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("1h5m30s20ms", 3930.02),
        ("250us", 0.00025),
        (" 3s ", 3.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """Compose's notation, and days."""
    assert units.duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5", "5.5", "5 s", "-5s", "5s5", "s5", "1y", "5S", "five", "400d", "1e3s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Also a number without unit: it might be seconds or milliseconds."""
    with pytest.raises(ValueError, match=r"duration|unit|year"):
        units.duration_seconds(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1b", 1),
        ("1k", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("512m", 512 * units.MIB),
        ("512MB", 512 * units.MIB),
        ("1 GiB", 1024 * units.MIB),
        ("1.5g", 1536 * units.MIB),
        ("2T", 2 * 1024 * 1024 * units.MIB),
    ],
)
def test_sizes_are_read(text: str, count: int) -> None:
    """Every unit is binary, as in Docker."""
    assert units.size_bytes(text) == count


@pytest.mark.parametrize("text", ["", "5", "-1g", "1gig", "g", "1.2.3g", "999999999t", "1e3g"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Also a number without unit."""
    with pytest.raises(ValueError, match=r"size|unit|larger"):
        units.size_bytes(text)


@pytest.mark.parametrize(("text", "value"), [("30%", 0.3), ("0.3", 0.3), ("100%", 1.0), ("1", 1.0), ("12.5 %", 0.125)])
def test_shares_are_read(text: str, value: float) -> None:
    """As per cent or as a fraction."""
    assert units.share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0", "0%", "101%", "1.01", "-1", "many", "30"])
def test_what_is_no_share_is_refused(text: str) -> None:
    """30 without % is refused: it would be 3000 %."""
    with pytest.raises(ValueError):
        units.share(text)


@settings(deadline=None)
@given(st.integers(0, 366 * 86400))
def test_whole_seconds_survive_being_written(seconds: int) -> None:
    """What is shown to people can be written into a file and means the same."""
    assert units.duration_seconds(units.duration_text(float(seconds))) == seconds


@settings(deadline=None)
@given(st.integers(1, 2**40))
def test_sizes_survive_being_written(mib: int) -> None:
    """What is shown to people can be written into a file and means the same."""
    assert units.size_mib(units.size_text(mib)) == mib


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but ValueError comes out."""
    for read in (units.duration_seconds, units.size_bytes, units.size_mib, units.share):
        try:
            assert read(text) >= 0
        except ValueError:
            continue
