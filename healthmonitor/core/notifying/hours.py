"""Hours of the week in a time zone: "monday to friday, 08:00 to 18:00, Europe/Berlin".

Law: wall-clock hours, so they follow summer time; `start` after `end` goes over midnight and belongs to the day on
which it began.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class Hours:
    """`days`: 0 is Monday. `start_seconds`, `end_seconds`: after midnight; equal means the whole day."""

    days: frozenset[int]
    start_seconds: int = 0
    end_seconds: int = 0
    zone: str = "UTC"

    def __str__(self) -> str:
        days = "daily" if len(self.days) == 7 else ", ".join(DAY_NAMES[day] for day in sorted(self.days))
        if self.start_seconds == self.end_seconds:
            return f"{days} ({self.zone})"
        return f"{days} {_clock(self.start_seconds)} to {_clock(self.end_seconds)} ({self.zone})"


def within(hours: Iterable[Hours], now_unix: float) -> Hours | None:
    """The hours that it is now, if it is any of them."""
    return next((each for each in hours if _is_within(each, now_unix)), None)


def _is_within(hours: Hours, now_unix: float) -> bool:
    local = datetime.fromtimestamp(now_unix, ZoneInfo(hours.zone))
    second = local.hour * 3600 + local.minute * 60 + local.second
    today, yesterday = local.weekday(), (local - timedelta(days=1)).weekday()
    start, end = hours.start_seconds, hours.end_seconds
    if start == end:
        return today in hours.days
    if start < end:
        return today in hours.days and start <= second < end
    return (today in hours.days and second >= start) or (yesterday in hours.days and second < end)


def _clock(seconds: int) -> str:
    seconds %= _DAY_SECONDS
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}"
