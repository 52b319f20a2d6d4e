"""Errors as the API's replies: `{"error", "where", "next", "kind", "details"}` with the status that fits.

Law: the asker learns whose fault it is and what to do. What nobody foresaw is logged with its trace and told as such,
without its insides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from healthmonitor.core.image_index import BadImage
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.operation import IllegalTransition
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.image_store import StoreFull, TooManyUploads
from healthmonitor.journal import CorruptRecord, Superseded
from healthmonitor.operator_actions import NotFound, NotLeading
from healthmonitor.resurrector import NoSuchInstance, NotLeader
from protocol.bus import BusError, NoResponders
from protocol.envelope import RequestRefused

log = structlog.get_logger("api")

Endpoint = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    def __init__(self, status: int, kind: str, message: str, where: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.where = where
        self.next_step = next_step


def reply(
    status: int, kind: str, message: str, where: str = "", next_step: str = "", details: tuple[str, ...] = ()
) -> JSONResponse:
    body = {"error": message, "where": where, "next": next_step, "kind": kind, "details": list(details)}
    return JSONResponse(body, status_code=status)


def for_person(error: Exception) -> JSONResponse | None:
    """The reply that says what is wrong; None when the error is nothing that was foreseen."""
    match error:
        case ApiError():
            return reply(error.status, error.kind, str(error), error.where, error.next_step)
        case ManifestErrors():
            lines = tuple(str(error).splitlines())
            what = f"the manifest has {len(lines)} error{'s' if len(lines) != 1 else ''}"
            return reply(422, "manifest", what, "", "correct it and try again; nothing was changed", lines)
        case ValidationError():
            lines = tuple(
                f"{'.'.join(str(part) for part in item['loc']) or '(whole)'}: {item['msg']}"
                for item in error.errors(include_url=False, include_context=False, include_input=False)[:50]
            )
            return reply(422, "body", "the request's body is not as it should be", "", "", lines)
        case NotFound():
            return reply(404, "not_found", str(error), "", "`resurgam status` lists what there is")
        case NotPossible():
            return reply(409, "not_possible", str(error), "", error.next_step)
        case NotLeading():
            hint = f"ask the one that leads: --api {error.address}" if error.address else "try again in some seconds"
            return reply(409, "not_leading", str(error), "", hint)
        case BadImage():
            return reply(422, "image", str(error))
        case ClientDisconnect():
            return reply(400, "cut_off", "the asker went away before all of the body had come")  # nobody hears it
        case StoreFull():
            hint = "`resurgam image prune`, or a larger images.store_size in the monitor's configuration"
            return reply(507, "store_full", str(error), "", hint)
        case TooManyUploads():
            return reply(429, "too_many", str(error), "", "try again in some seconds")
        case NotLeader():
            return reply(409, "not_leading", str(error), "", "try again in some seconds")
        case NoSuchInstance():
            return reply(404, "not_found", str(error), "", "`resurgam status` lists what there is")
        case IllegalTransition():
            return reply(409, "not_possible", str(error), "", "`resurgam status` shows which step it is at")
        case Superseded():
            return reply(409, "conflict", str(error), "", "try again")
        case CorruptRecord():
            return reply(500, "corrupt", str(error))
        case RequestRefused():
            return reply(409, "agent_refused", f"the agent refused: {error}")
        case NoResponders():
            return reply(409, "agent_silent", "its agent does not listen on the bus", "", "resurgam status")
        case BusError():
            hint = "whether it was done is not known: look with `resurgam status`, then try again"
            return reply(503, "bus", f"no answer over the bus in time: {error}", "", hint)
        case _:
            return None


def guarded(endpoint: Endpoint) -> Endpoint:
    """The endpoint with every error turned into a reply."""

    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:  # the edge of one request: its failure must not be another's
            known = for_person(error)
            if known is not None:
                return known
            log.exception("request failed", path=request.url.path, method=request.method)
            return reply(500, "defect", f"a defect of the monitor: {type(error).__name__}", "", "see the monitor's log")

    return call
