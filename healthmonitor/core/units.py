"""Durations, sizes and shares as people write them: `1m30s`, `512m`, `1GiB`, `30%`.

Law: every function returns the value in the unit of its name or raises ValueError with a text that says what was
expected. A number without its unit is refused wherever two units are plausible: a guess costs a factor of a thousand.

Sizes are binary whatever the letter case, as in Docker: k, kb and KiB are all 1024 bytes.
"""

from __future__ import annotations

import re

MIB = 1024 * 1024

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b?|b)", re.IGNORECASE)
_POWER = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LONGEST_SECONDS = 366 * 86400.0
_LARGEST_BYTES = 2**63 - 1


def duration_seconds(text: str) -> float:
    """`5s`, `1m30s`, `500ms`, `2h`, `1d`; `0` needs no unit. At most a year."""
    stripped = text.strip()
    if stripped == "0":
        return 0.0
    if _NUMBER.fullmatch(stripped):
        raise ValueError(f"{stripped} has no unit; write {stripped}s for seconds, or 500ms, 1m30s, 2h")
    end, seconds = 0, 0.0
    for part in _DURATION_PART.finditer(stripped):
        if part.start() != end:
            break
        end = part.end()
        seconds += float(part[1]) * _SECONDS[part[2]]
    if not stripped or end != len(stripped):
        raise ValueError(f"{_quoted(text)} is not a duration; expected such as 5s, 500ms, 1m30s or 2h")
    if seconds > _LONGEST_SECONDS:
        raise ValueError(f"{_quoted(text)} is more than a year")
    return seconds


def size_bytes(text: str) -> int:
    """`64m`, `1GiB`, `1.5g`, `4096b`."""
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        raise ValueError(f"{stripped} has no unit; write {stripped}MiB or {stripped}GiB, whichever is meant")
    match = _SIZE.fullmatch(stripped)
    if match is None:
        raise ValueError(f"{_quoted(text)} is not a size; expected such as 512MiB, 1GiB, 64m or 1.5g")
    count = float(match[1]) * float(1024 ** _POWER[match[2][0].lower()])
    if count > _LARGEST_BYTES:
        raise ValueError(f"{_quoted(text)} is larger than any disk or memory")
    return round(count)


def size_mib(text: str) -> int:
    """As `size_bytes`, in whole MiB; a size that is not whole is refused."""
    count = size_bytes(text)
    if count % MIB:
        raise ValueError(f"{_quoted(text)} is not a whole number of MiB")
    return count // MIB


def share(text: str) -> float:
    """`30%` or `0.3`: more than 0, at most 1."""
    stripped = text.strip()
    number = stripped[:-1].strip() if stripped.endswith("%") else stripped
    if not _NUMBER.fullmatch(number):
        raise ValueError(f"{_quoted(text)} is not a share; expected such as 30% or 0.3")
    value = float(number) / (100.0 if stripped.endswith("%") else 1.0)
    if value > 1 and not stripped.endswith("%"):
        raise ValueError(f"{_quoted(text)} is more than all of it; write {stripped}% for per cent, or 0.3 for 30%")
    if not 0 < value <= 1:
        raise ValueError(f"{_quoted(text)} is not more than 0 and at most 100% (or 1.0)")
    return value


def duration_text(seconds: float) -> str:
    """For people and back again: 90.0 → `1m30s`, 0.25 → `250ms`."""
    if seconds == 0:
        return "0s"
    if seconds < 1 or seconds != int(seconds):
        milliseconds = round(seconds * 1000)
        return f"{milliseconds}ms" if seconds < 60 else f"{int(seconds) // 60}m{seconds % 60:g}s"
    parts, rest = [], int(seconds)
    for letter, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{letter}")
    return "".join(parts)


def size_text(size_in_mib: int) -> str:
    """For people and back again: 1024 → `1GiB`, 1536 → `1536MiB`."""
    if size_in_mib and size_in_mib % 1024 == 0:
        return f"{size_in_mib // 1024}GiB"
    return f"{size_in_mib}MiB"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
