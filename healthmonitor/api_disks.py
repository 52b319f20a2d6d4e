"""The HTTP API's part about disks.

Does not know: how things are done (`disk_actions.py`), who may (`api.py` says it for each path).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from healthmonitor.api_bodies import Because, BecauseBody, Body, Name
from healthmonitor.disk_actions import DiskActions, ListedDisk
from healthmonitor.operator_actions import Answer, Person
from protocol.ids import DiskName, InstanceId

ReadBody = Callable[[Request, type[Any]], Awaitable[Any]]


class KeepBody(Body):
    seconds: Annotated[float | None, Field(gt=0)] = None  # None: for good
    because: Because = ""


class AttachBody(Body):
    instance: Annotated[str, Field(min_length=5, max_length=200)]
    disk: Name
    because: Because = ""


class SnapshotBody(Body):
    instance: Annotated[str, Field(min_length=5, max_length=200)]
    disk: Name
    seconds: Annotated[float | None, Field(gt=0)] = None  # None: as any orphan
    because: Because = ""


class DiskApi:
    """`body(request, kind)` reads and checks a request's body; `person(request)` says who asks."""

    def __init__(self, actions: DiskActions, body: ReadBody, person: Callable[[Request], Person]) -> None:
        self._actions = actions
        self._body = body
        self._person = person

    async def list_(self, request: Request) -> Response:
        return JSONResponse({"disks": [disk_view(disk) for disk in await self._actions.disks()]})

    async def keep(self, request: Request) -> Response:
        body = await self._body(request, KeepBody)
        cid = request.path_params["cid"]
        return JSONResponse(_answer(await self._actions.keep(cid, body.seconds, self._person(request), body.because)))

    async def delete(self, request: Request) -> Response:
        body = await self._body(request, BecauseBody)
        cid = request.path_params["cid"]
        answer = await self._actions.delete(cid, self._person(request), body.because)
        return JSONResponse(_answer(answer), status_code=202)

    async def attach(self, request: Request) -> Response:
        body = await self._body(request, AttachBody)
        cid = request.path_params["cid"]
        answer = await self._actions.attach(
            cid, InstanceId(body.instance), body.disk, self._person(request), body.because
        )
        return JSONResponse(_answer(answer), status_code=202)

    async def snapshot(self, request: Request) -> Response:
        body = await self._body(request, SnapshotBody)
        answer = await self._actions.snapshot(
            InstanceId(body.instance), DiskName(body.disk), body.seconds, self._person(request), body.because
        )
        return JSONResponse(_answer(answer), status_code=202)


def disk_view(disk: ListedDisk) -> dict[str, Any]:
    report = disk.report
    return {
        "cid": disk.cid,
        "cloud": disk.cloud,
        "instance": disk.instance,
        "disk": disk.name,
        "role": disk.role,
        "size_mib": disk.size_mib,
        "filesystem": disk.filesystem,
        "holders": None if disk.holders is None else sorted(disk.holders),
        "state": None if report is None else report.state.value,
        "percent": None if report is None else report.percent,
        "inode_percent": None if report is None else report.inode_percent,
        "made_at": disk.made_at or None,
        "orphaned_at": disk.orphaned_at or None,
        "kept_until": disk.kept_until or None,
        "why": disk.why,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "next": answer.next_step, **(answer.facts or {})}
