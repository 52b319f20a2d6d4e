"""Records to bytes and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from healthmonitor.core.records import InstanceRecord
from healthmonitor.instance_reader import InstanceReader
from protocol import codec
from tests.bench.invented_fleet import record


@dataclass(frozen=True, slots=True)
class Inner:
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outer:
    inner: Inner = Inner()
    at: float | None = None
    free: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"Infinity", b"-Infinity", b"NaN", b'"inf"', b'"nan"'])
@pytest.mark.parametrize("place", [b'{"at": %s}', b'{"inner": {"seconds": %s}}'])
def test_a_number_that_is_not_finite_is_refused(place: bytes, number: bytes) -> None:
    """At every depth: it could not be written so that it can be read again."""
    with pytest.raises(codec.Invalid, match="finite number"):
        codec.from_json(Outer, place % number)


def test_what_is_not_finite_is_refused_as_a_plain_value_too() -> None:
    """As `json.loads` makes it of 1e999."""
    with pytest.raises(codec.Invalid, match=r"inner\.seconds: .*finite"):
        codec.from_plain(Outer, {"inner": {"seconds": float("inf")}})


@pytest.mark.parametrize("payload", [b'{"inner": {"seconds": 1.5}, "at": 1e308, "free": {"a": [1, null]}}', b"{}"])
def test_what_is_read_is_written_and_read_again(payload: bytes) -> None:
    """As it was."""
    value = codec.from_json(Outer, payload)
    assert codec.from_json(Outer, codec.to_json(value)) == value


def test_a_record_with_text_that_is_no_utf_8_is_unreadable_and_nothing_else() -> None:
    """Also when its group was read before, by the shorter way. It used to end the reading of all records."""
    reader = InstanceReader()
    whole = codec.to_json(record(0))
    assert reader.read(whole) == codec.from_json(InstanceRecord, whole)
    broken = whole.replace(b'"deployment":"shop', b'"deployment":"\xffhop')
    assert broken != whole
    with pytest.raises(codec.Invalid):
        reader.read(broken)
