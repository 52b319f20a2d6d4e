"""The HTTP API's part about the image store.

Laws: a blob's body is streamed, never held; its length must be announced. Everything else is a small JSON body.

Does not know: how things are done (`image_actions.py`), who may (`api.py` says it for each path).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from healthmonitor.api_bodies import Because, Body
from healthmonitor.api_errors import ApiError
from healthmonitor.image_actions import ImageActions, PushedImage
from healthmonitor.operator_actions import Answer, Person
from protocol.images import LAYERS_MAX

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Reference = Annotated[str, Field(pattern=r"^[a-z0-9][A-Za-z0-9._:/@-]*$", max_length=400)]
BLOB_MAX_BYTES = 64 * 1024**3


class MissingBody(Body):
    blobs: Annotated[list[Digest], Field(max_length=LAYERS_MAX + 1)]


class PushBody(Body):
    config: Digest
    layers: Annotated[list[Digest], Field(max_length=LAYERS_MAX)]
    references: Annotated[list[Reference], Field(max_length=50)] = Field(default_factory=list)


class DeleteImageBody(Body):
    image: Annotated[str, Field(min_length=1, max_length=400)]
    force: bool = False
    because: Because = ""


class PruneBody(Body):
    older_than_seconds: Annotated[float, Field(ge=0)] = 86400.0
    dry_run: bool = False
    because: Because = ""


ReadBody = Callable[[Request, type[Any]], Awaitable[Any]]


class ImageApi:
    def __init__(self, actions: ImageActions, body: ReadBody, person: Callable[[Request], Person]) -> None:
        self._actions = actions
        self._body = body
        self._person = person

    async def images(self, request: Request) -> Response:
        return JSONResponse(await self._actions.listed())

    async def missing(self, request: Request) -> Response:
        body: MissingBody = await self._body(request, MissingBody)
        return JSONResponse({"missing": list(await self._actions.missing(body.blobs))})

    async def blob(self, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > BLOB_MAX_BYTES:
            raise ApiError(411, "length", f"Content-Length is needed, at most {BLOB_MAX_BYTES}")
        stored = await self._actions.receive(request.path_params["digest"], int(length), request.stream())
        return JSONResponse({"stored": stored}, status_code=201 if stored else 200)

    async def push(self, request: Request) -> Response:
        body: PushBody = await self._body(request, PushBody)
        pushed = PushedImage(body.config, body.layers, body.references)
        return JSONResponse(_answer(await self._actions.push(pushed, self._person(request))), status_code=201)

    async def delete(self, request: Request) -> Response:
        body: DeleteImageBody = await self._body(request, DeleteImageBody)
        answer = await self._actions.delete(body.image, self._person(request), body.force, body.because)
        return JSONResponse(_answer(answer))

    async def prune(self, request: Request) -> Response:
        body: PruneBody = await self._body(request, PruneBody)
        answer = await self._actions.prune(body.older_than_seconds, body.dry_run, self._person(request), body.because)
        return JSONResponse(_answer(answer))


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "next": answer.next_step, **(answer.facts or {})}
