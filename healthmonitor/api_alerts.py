"""The HTTP API's part about alerts: channels, silences, why something was told or not.

Does not know: how things are done (`alert_actions.py`), who may (`api.py` says it for each path).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from healthmonitor.alert_actions import AlertActions, SilenceWish
from healthmonitor.alerting import ChannelView
from healthmonitor.api_bodies import BecauseBody, Body
from healthmonitor.api_views import incident_view
from healthmonitor.core.notifying.silences import is_on
from healthmonitor.core.notifying.thread import Thread
from healthmonitor.core.records import Silence
from healthmonitor.operator_actions import Answer, Person

Glob = Annotated[str, Field(max_length=300)]


class AcknowledgeBody(Body):
    incident: Annotated[str, Field(min_length=1, max_length=1000)]
    because: Annotated[str, Field(min_length=1, max_length=2000)]


class SilenceBody(Body):
    deployment: Glob = ""
    group: Glob = ""
    instance: Glob = ""
    kind: Glob = ""
    seconds: Annotated[float, Field(gt=0)]
    because: Annotated[str, Field(min_length=1, max_length=2000)]


ReadBody = Callable[[Request, type[Any]], Awaitable[Any]]


class AlertApi:
    """`body(request, kind)` reads and checks a request's body; `person(request)` says who asks."""

    def __init__(
        self,
        actions: AlertActions,
        body: ReadBody,
        person: Callable[[Request], Person],
        unix_time: Callable[[], float],
    ) -> None:
        self._actions = actions
        self._body = body
        self._person = person
        self._unix_time = unix_time

    async def channels(self, request: Request) -> Response:
        return JSONResponse({"channels": [channel_view(each) for each in self._actions.channels()]})

    async def test(self, request: Request) -> Response:
        answer = await self._actions.test(request.path_params["name"], self._person(request))
        return JSONResponse(_answer(answer))

    async def explain(self, request: Request) -> Response:
        incident, reasons, thread = self._actions.explain(request.query_params.get("incident", "")[:1000])
        return JSONResponse(
            {
                "incident": incident_view(incident),
                "reasons": list(reasons),
                "thread": None if thread is None else thread_view(thread),
            }
        )

    async def acknowledge(self, request: Request) -> Response:
        body = await self._body(request, AcknowledgeBody)
        return JSONResponse(
            _answer(await self._actions.acknowledge(body.incident, self._person(request), body.because))
        )

    async def silences(self, request: Request) -> Response:
        now = self._unix_time()
        return JSONResponse({"silences": [silence_view(each, now) for each in self._actions.silences()]})

    async def silence(self, request: Request) -> Response:
        body = await self._body(request, SilenceBody)
        wish = SilenceWish(body.deployment, body.group, body.instance, body.kind)
        answer = await self._actions.silence(wish, body.seconds, self._person(request), body.because)
        return JSONResponse(_answer(answer), status_code=201)

    async def end_silence(self, request: Request) -> Response:
        body = await self._body(request, BecauseBody)
        answer = await self._actions.end_silence(request.path_params["id"], self._person(request), body.because)
        return JSONResponse(_answer(answer))


def channel_view(view: ChannelView) -> dict[str, Any]:
    return {
        "name": view.name,
        "state": "failing" if view.failing else "retrying" if view.failures else "works",
        "waiting": view.waiting,
        "delivered": view.delivered,
        "failures": view.failures,
        "error": view.error,
        "failing_since": view.failing_since,
        "next_try_at": view.next_try_at,
        "refused": view.refused,
        "digested": view.digested,
        "last_said": view.last_said,
        "last_delivered_at": view.last_delivered_at,
    }


def silence_view(silence: Silence, now: float) -> dict[str, Any]:
    return {
        "id": silence.id,
        "active": is_on(silence, now),
        "ends_at": silence.ends_at,
        "created_at": silence.created_at,
        "created_by": silence.created_by,
        "because": silence.because,
        "deployment": silence.deployment,
        "group": silence.group,
        "instance": silence.instance,
        "kind": silence.kind,
        "ended_by": silence.ended_by,
    }


def thread_view(thread: Thread) -> dict[str, Any]:
    word = thread.acknowledged
    return {
        "id": thread.id,
        "route": thread.route,
        "channels": list(thread.channels),
        "incidents": len(thread.members),
        "open": sum(member.over_at is None for member in thread.members),
        "opened_at": thread.opened_at,
        "told_at": thread.told_at,
        "notifications": thread.number,
        "repeats": thread.repeats,
        "escalated": thread.escalated,
        "acknowledged": None if word is None else {"by": word.by, "because": word.because, "at": word.at},
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "next": answer.next_step, **(answer.facts or {})}
