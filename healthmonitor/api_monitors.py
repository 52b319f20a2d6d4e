"""The HTTP API's part about the monitors themselves. Does not know: how the lease works (`monitors.py`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from healthmonitor.api_bodies import Because, Body
from healthmonitor.monitors import Monitors
from healthmonitor.operator_actions import Person

STEP_DOWN_SECONDS = 60.0


class StepDownBody(Body):
    seconds: Annotated[float, Field(gt=0)] = STEP_DOWN_SECONDS
    because: Because = ""


class MonitorApi:
    """`body(request, kind)` reads and checks a request's body; `person(request)` says who asks."""

    def __init__(
        self,
        monitors: Monitors,
        body: Callable[[Request, type[Any]], Awaitable[Any]],
        person: Callable[[Request], Person],
    ) -> None:
        self._monitors = monitors
        self._body = body
        self._person = person

    async def list_(self, request: Request) -> Response:
        return JSONResponse({**self._monitors.leader(), "monitors": self._monitors.views()})

    async def step_down(self, request: Request) -> Response:
        body = await self._body(request, StepDownBody)
        answer = await self._monitors.step_down(body.seconds, self._person(request), body.because)
        return JSONResponse({"text": answer.text, "next": answer.next_step, **(answer.facts or {})})
