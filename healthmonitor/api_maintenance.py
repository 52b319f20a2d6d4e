"""The HTTP API's part about maintenance windows.

Does not know: what may be added (`core/maintenance_changes.py`), who may (`api.py` says it for each path).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from healthmonitor.api_bodies import BecauseBody, Body
from healthmonitor.core.maintenance import DAYS, OnceWindow, Window, describe_window, ends_at, open_window
from healthmonitor.core.maintenance_changes import OnceWish, WeeklyWish, Wish, is_over
from healthmonitor.core.records import Maintenance
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.operator_actions import Person

ReadBody = Callable[[Request, type[Any]], Awaitable[Any]]
Day = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "daily"]


class MaintenanceBody(Body):
    """Once: `seconds` and perhaps `start`. Weekly: `day`, `at` (HH:MM, UTC) and `seconds`."""

    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    start: Annotated[float, Field(ge=0, le=1e11)] | None = None
    day: Day | None = None
    at: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None = None
    because: Annotated[str, Field(min_length=1, max_length=2000)]

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.day is None) != (self.at is None) or (self.day is not None and self.start is not None):
            raise ValueError("expected day and at (every week), or neither and perhaps start (once)")
        return self

    def wish(self) -> Wish:
        if self.day is None or self.at is None:
            return OnceWish(self.seconds, self.start)
        hours, minutes = self.at.split(":")
        day = None if self.day == "daily" else DAYS.index(self.day)
        return WeeklyWish(day, int(hours) * 3600 + int(minutes) * 60, self.seconds)


class MaintenanceApi:
    """`body(request, kind)` reads and checks a request's body; `person(request)` says who asks."""

    def __init__(
        self,
        actions: MaintenanceActions,
        body: ReadBody,
        person: Callable[[Request], Person],
        unix_time: Callable[[], float],
    ) -> None:
        self._actions = actions
        self._body = body
        self._person = person
        self._unix_time = unix_time

    async def windows(self, request: Request) -> Response:
        now = self._unix_time()
        listed = self._actions.windows()
        views = [added_view(each, now) for each in listed.added]
        views += [configured_view(each, now) for each in listed.configured]
        return JSONResponse({"windows": views})

    async def add(self, request: Request) -> Response:
        body = await self._body(request, MaintenanceBody)
        answer = await self._actions.add(body.wish(), self._person(request), body.because)
        return JSONResponse({"text": answer.text, "next": answer.next_step, **(answer.facts or {})}, status_code=201)

    async def end(self, request: Request) -> Response:
        body = await self._body(request, BecauseBody)
        answer = await self._actions.end(request.path_params["id"], self._person(request), body.because)
        return JSONResponse({"text": answer.text, "next": answer.next_step, **(answer.facts or {})})


def added_view(added: Maintenance, now: float) -> dict[str, Any]:
    over = is_over(added, now)
    return {
        **_window_view(added.window, now),
        "id": added.id,
        "from": "a person",
        "open": not over and open_window((added.window,), now) is not None,
        "over": over,
        "created_at": added.created_at,
        "created_by": added.created_by,
        "ended_at": added.ended_at,
        "ended_by": added.ended_by,
    }


def configured_view(window: Window, now: float) -> dict[str, Any]:
    """One of the configuration file: it has no id, since only the file can end it."""
    return {
        **_window_view(window, now),
        "id": "",
        "from": "the configuration file",
        "open": open_window((window,), now) is not None,
        "over": isinstance(window, OnceWindow) and window.end_unix <= now,
        "created_at": None,
        "created_by": "",
        "ended_at": None,
        "ended_by": "",
    }


def _window_view(window: Window, now: float) -> dict[str, Any]:
    return {
        "text": describe_window(window),
        "kind": "once" if isinstance(window, OnceWindow) else "weekly",
        "ends_at": ends_at(window, now),
        "because": window.reason,
    }
