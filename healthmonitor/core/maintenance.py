"""Maintenance windows: times in which nothing is rebuilt and nobody is told of VMs, known beforehand.

Law: all times are UTC unless the offset is written; a window ends by itself. Windows of the configuration file and
those that people add (`records.Maintenance`) count alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from healthmonitor.core.units import duration_text
from healthmonitor.core.yaml_places import Place

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DAY_SECONDS = 86400
WEEK_SECONDS = 7 * DAY_SECONDS
_MONDAY_UNIX = 4 * DAY_SECONDS  # 5 January 1970, the first Monday of Unix time
_AT = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class OnceWindow:
    start_unix: float
    end_unix: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WeeklyWindow:
    """`day`: 0 is Monday, None every day. `at_seconds`: after midnight, UTC."""

    day: int | None
    at_seconds: int
    length_seconds: float
    reason: str = ""


Window = OnceWindow | WeeklyWindow


def open_window(windows: Iterable[Window], now_unix: float) -> Window | None:
    """The window that is open now, if one is."""
    return next((window for window in windows if _is_open(window, now_unix)), None)


def describe_window(window: Window) -> str:
    """`2026-12-01 22:00 to 2026-12-02 02:00 UTC`, `sunday 02:00 for 2h (UTC)`."""
    if isinstance(window, OnceWindow):
        return f"{_minute(window.start_unix)} to {_minute(window.end_unix)} UTC"
    clock = f"{window.at_seconds // 3600:02}:{window.at_seconds // 60 % 60:02}"
    day = "daily" if window.day is None else DAYS[window.day]
    return f"{day} {clock} for {duration_text(window.length_seconds)} (UTC)"


def ends_at(window: Window, now_unix: float) -> float:
    """When it ends that is open now or opens next; of one that is over, when it ended."""
    if isinstance(window, OnceWindow):
        return window.end_unix
    since = _since_opening(window, now_unix)
    return now_unix - since + window.length_seconds + (0.0 if since < window.length_seconds else _period(window))


def read_windows(place: Place) -> tuple[Window, ...]:
    windows: list[Window] = []
    for item in place.items("a list of {start, end} or {day, at, for}"):
        fields = item.fields(("start", "end", "day", "at", "for", "reason"))
        reason = fields["reason"].text("a reason") if "reason" in fields else ""
        keys = set(fields) - {"reason"}
        if keys == {"start", "end"}:
            start, end = _moment(fields["start"]), _moment(fields["end"])
            if start is not None and end is not None:
                if end <= start:
                    fields["end"].error("is not after start")
                windows.append(OnceWindow(start, end, reason))
        elif keys == {"day", "at", "for"}:
            windows.append(_weekly(fields, reason))
        elif item.is_mapping:
            item.error(
                'expected start and end (such as "2026-12-01T22:00:00Z"), or day, at and for '
                '(day: sunday, at: "02:00", for: 2h)'
            )
    return tuple(windows)


def _is_open(window: Window, now_unix: float) -> bool:
    if isinstance(window, OnceWindow):
        return window.start_unix <= now_unix < window.end_unix
    return _since_opening(window, now_unix) < window.length_seconds


def _period(window: WeeklyWindow) -> int:
    return DAY_SECONDS if window.day is None else WEEK_SECONDS


def _since_opening(window: WeeklyWindow, now_unix: float) -> float:
    start = _MONDAY_UNIX + (window.day or 0) * DAY_SECONDS + window.at_seconds
    return (now_unix - start) % _period(window)


def _minute(unix_time: float) -> str:
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M}"


def _weekly(fields: dict[str, Place], reason: str) -> WeeklyWindow:
    day = fields["day"].one_of((*DAYS, "daily"), "daily")
    text = fields["at"].text('a time such as "02:00"')
    match = _AT.fullmatch(text)
    if match is None:
        fields["at"].error(f'{text!r} is no time of day; expected such as "02:00" (UTC)')
    longest = float(DAY_SECONDS if day == "daily" else WEEK_SECONDS)
    return WeeklyWindow(
        day=None if day == "daily" else DAYS.index(day),
        at_seconds=int(match[1]) * 3600 + int(match[2]) * 60 if match else 0,
        length_seconds=fields["for"].duration(60.0, longest),
        reason=reason,
    )


def _moment(place: Place) -> float | None:
    text = place.text("a moment such as 2026-12-01T22:00:00Z")
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None or "T" not in text.upper().replace(" ", "T"):
            raise ValueError
        return moment.astimezone(UTC).timestamp()
    except (ValueError, OverflowError):
        place.error(f"{text[:40]!r} is no moment with its offset; expected such as 2026-12-01T22:00:00Z (RFC 3339)")
        return None
