"""What a person's word makes of maintenance windows: added, ended. Pure.

Law: a window of one time has an end, at most `LONGEST_SECONDS` after its beginning; a weekly one stays until a person
ends it. Which hold is worked out from the records, so every monitor that leads sees the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from healthmonitor.core.maintenance import DAY_SECONDS, OnceWindow, WeeklyWindow, Window, describe_window, open_window
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import Maintenance
from healthmonitor.core.units import duration_text

WINDOWS_MAX = 200
SHORTEST_SECONDS = 60.0
LONGEST_SECONDS = 90.0 * DAY_SECONDS
"""Of a window of one time. Whoever needs more switches resurrection off."""
AHEAD_SECONDS = 366.0 * DAY_SECONDS
"""How long before its beginning a window may be added."""
KEPT_SECONDS = 7.0 * DAY_SECONDS
"""How long one that is over is still listed."""
_PAST_SECONDS = float(DAY_SECONDS)
_WEEK_SECONDS = 7.0 * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class OnceWish:
    """`start_unix` None: from now on."""

    seconds: float
    start_unix: float | None = None


@dataclass(frozen=True, slots=True)
class WeeklyWish:
    """`day`: 0 is Monday, None every day. `at_seconds`: after midnight, UTC."""

    day: int | None
    at_seconds: int
    seconds: float


Wish = OnceWish | WeeklyWish


def added(wish: Wish, maintenance_id: str, person: str, because: str, now_unix: float) -> Maintenance:
    """NotPossible when it would never end, is over already, or nobody says why."""
    if not because.strip():
        raise NotPossible("a reason is needed", "add --because")
    return Maintenance(maintenance_id, _window(wish, because, now_unix), now_unix, person)


def ended(before: Maintenance, person: str, now_unix: float) -> Maintenance:
    if is_over(before, now_unix):
        raise NotPossible(f"maintenance window {before.id} is over already")
    return replace(before, ended_at=now_unix, ended_by=person)


def in_force(windows: Iterable[Maintenance]) -> tuple[Window, ...]:
    """Those that nobody ended; whether they are open now is asked of each."""
    return tuple(each.window for each in windows if each.ended_at is None)


def name_of_open(configured: Iterable[Window], added: Iterable[Maintenance], now_unix: float) -> str:
    """Why nothing is rebuilt now; "" when no window is open."""
    window = open_window((*configured, *in_force(added)), now_unix)
    return "" if window is None else (window.reason or "maintenance")


def is_over(window: Maintenance, now_unix: float) -> bool:
    return over_at(window, now_unix) is not None


def over_at(window: Maintenance, now_unix: float) -> float | None:
    """None: it is not over."""
    if window.ended_at is not None:
        return window.ended_at
    if isinstance(window.window, OnceWindow) and window.window.end_unix <= now_unix:
        return window.window.end_unix
    return None


def describe(window: Maintenance) -> str:
    return describe_window(window.window)


def _window(wish: Wish, because: str, now_unix: float) -> Window:
    if isinstance(wish, WeeklyWish):
        longest = float(DAY_SECONDS) if wish.day is None else _WEEK_SECONDS
        _check_length(wish.seconds, longest)
        return WeeklyWindow(wish.day, wish.at_seconds, wish.seconds, because)
    _check_length(wish.seconds, LONGEST_SECONDS)
    start = now_unix if wish.start_unix is None else wish.start_unix
    if start + wish.seconds <= now_unix:
        raise NotPossible("that window is over already", "give it an end that is yet to come")
    if not now_unix - _PAST_SECONDS - LONGEST_SECONDS <= start <= now_unix + AHEAD_SECONDS:
        raise NotPossible(f"a window begins within {duration_text(AHEAD_SECONDS)}", "add it later, or a weekly one")
    return OnceWindow(start, start + wish.seconds, because)


def _check_length(seconds: float, longest: float) -> None:
    if not SHORTEST_SECONDS <= seconds <= longest:
        raise NotPossible(
            f"such a window lasts {duration_text(SHORTEST_SECONDS)} to {duration_text(longest)}",
            "to hold rebuilding back for as long as you like: `resurgam pause`, `resurgam resurrection off`",
        )
