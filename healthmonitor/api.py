"""The HTTP API: what the command and other programs ask for, as JSON.

Laws:
- Whoever asks needs a token with a role; `/healthz` and `/metrics` need none from this machine itself.
- A body is at most BODY_MAX_BYTES and is read and checked as a whole before anything happens.
- `/healthz` answers from memory: it must not hang when the bus does.

Does not know: how things are done (`operator_actions.py`), how they look as JSON (`api_views.py`).
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from healthmonitor import api_bodies as bodies
from healthmonitor import api_views as views
from healthmonitor.alert_actions import AlertActions
from healthmonitor.api_alerts import AlertApi
from healthmonitor.api_disks import DiskApi
from healthmonitor.api_errors import ApiError, Endpoint, guarded, reply
from healthmonitor.api_images import ImageApi
from healthmonitor.api_incident_page import IncidentPage
from healthmonitor.api_listing import Listing, listing
from healthmonitor.api_maintenance import MaintenanceApi
from healthmonitor.api_monitors import MonitorApi
from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.judgement import FleetView, Judgement, Verdict
from healthmonitor.core.manifest import Manifest
from healthmonitor.core.notifying.links import PATH as INCIDENT_PATH
from healthmonitor.core.operator_view import Tone, describe
from healthmonitor.core.progress import Progress
from healthmonitor.core.records import InstanceRecord, Step
from healthmonitor.disk_actions import DiskActions
from healthmonitor.image_actions import ImageActions
from healthmonitor.journal import Journal
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.monitors import Monitors
from healthmonitor.operator_actions import Answer, Leader, ManifestUpload, NotFound, OperatorActions, Person
from healthmonitor.version import VERSION
from protocol.ids import DeploymentName, InstanceId, instance_id

BODY_MAX_BYTES = 1024 * 1024
EVENTS_MAX = 10_000
STRANGERS_MAX = 100
FOLLOWERS_MAX = 64
KEEP_ALIVE_SECONDS = 10.0
USER_HEADER = "x-resurgam-user"
USER_MAX_CHARACTERS = 64

B = TypeVar("B", bound=BaseModel)


class Role(Enum):
    ADMIN = "admin"
    READER = "reader"  # may look and plan


class Manifests(Protocol):
    async def read(self, upload: ManifestUpload) -> Manifest:
        """Raises ManifestErrors."""
        ...

    def plan(self, manifest: Manifest, migrate: bool = False) -> Mapping[str, Any]: ...


class MonitorState(Protocol):
    """What the API tells of the monitor itself."""

    @property
    def id(self) -> str: ...

    def bus_connected(self) -> bool: ...

    def reasons_unhealthy(self) -> list[str]:
        """Empty: all is well. From memory, at once."""
        ...

    def judgement(self) -> Judgement: ...

    def resurrection_configured(self) -> bool: ...

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        ...

    def strangers(self) -> Iterable[AgentView]:
        """Agents of no deployment."""
        ...


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the API stands on."""

    journal: Journal
    actions: OperatorActions
    fleet: FleetView
    monitor: MonitorState
    leader: Leader
    manifests: Manifests
    tokens: Callable[[], Mapping[str, Role]]
    signs_links: Callable[[], str]
    alerts: AlertActions
    maintenance: MaintenanceActions
    monitors: Monitors
    images: ImageActions
    unix_time: Callable[[], float]
    disks: DiskActions
    progress: Callable[[InstanceId], Progress | None] = lambda instance: None
    full_in_seconds: Callable[[InstanceId, str], float | None] = lambda instance, disk: None


class Api:
    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts
        self._followers = 0
        self._alerts = AlertApi(parts.alerts, _body, self._person, parts.unix_time)
        self._page = IncidentPage(
            parts.alerts,
            lambda request: self._role(request) is not None,
            parts.signs_links,
            parts.monitor.id,
            parts.unix_time,
        )
        self._maintenance = MaintenanceApi(parts.maintenance, _body, self._person, parts.unix_time)
        self._monitors = MonitorApi(parts.monitors, _body, self._person)
        self._images = ImageApi(parts.images, _body, self._person)
        self._disks = DiskApi(parts.disks, _body, self._person)

    def application(self) -> Starlette:
        alerts, maintenance, images = self._alerts, self._maintenance, self._images
        instance = "/v1/instances/{deployment}/{group}/{index:int}"
        return Starlette(
            routes=[
                Route("/healthz", guarded(self._healthz)),
                Route("/metrics", guarded(self._local_or(Role.READER, self._metrics))),
                Route(INCIDENT_PATH, guarded(self._page.show), methods=["GET"]),
                Route("/v1/status", self._for(Role.READER, self._status)),
                Route("/v1/leader", self._for(Role.READER, self._leader)),
                Route("/v1/monitors", self._for(Role.READER, self._monitors.list_)),
                Route("/v1/monitors/step-down", self._for(Role.ADMIN, self._monitors.step_down), methods=["POST"]),
                Route("/v1/plan", self._for(Role.READER, self._plan), methods=["POST"]),
                Route("/v1/deployments", self._for(Role.READER, self._deployments)),
                Route("/v1/deployments/{name}", self._for(Role.READER, self._deployment), methods=["GET"]),
                Route("/v1/deployments/{name}", self._for(Role.ADMIN, self._deploy), methods=["PUT"]),
                Route("/v1/deployments/{name}", self._for(Role.ADMIN, self._delete), methods=["DELETE"]),
                Route(instance, self._for(Role.READER, self._instance)),
                Route(f"{instance}/logs", self._for(Role.READER, self._logs)),
                Route(f"{instance}/{{action}}", self._for(Role.ADMIN, self._act), methods=["POST"]),
                Route("/v1/events", self._for(Role.READER, self._events)),
                Route("/v1/incidents", self._for(Role.READER, self._incidents)),
                Route("/v1/alerts/channels", self._for(Role.READER, alerts.channels)),
                Route("/v1/alerts/channels/{name}/test", self._for(Role.ADMIN, alerts.test), methods=["POST"]),
                Route("/v1/alerts/explain", self._for(Role.READER, alerts.explain)),
                Route("/v1/alerts/acknowledge", self._for(Role.ADMIN, alerts.acknowledge), methods=["POST"]),
                Route("/v1/images", self._for(Role.READER, images.images), methods=["GET"]),
                Route("/v1/images", self._for(Role.ADMIN, images.push), methods=["POST"]),
                Route("/v1/images/missing", self._for(Role.ADMIN, images.missing), methods=["POST"]),
                Route("/v1/images/blobs/{digest}", self._for(Role.ADMIN, images.blob), methods=["PUT"]),
                Route("/v1/images/delete", self._for(Role.ADMIN, images.delete), methods=["POST"]),
                Route("/v1/images/prune", self._for(Role.ADMIN, images.prune), methods=["POST"]),
                Route("/v1/silences", self._for(Role.READER, alerts.silences), methods=["GET"]),
                Route("/v1/silences", self._for(Role.ADMIN, alerts.silence), methods=["POST"]),
                Route("/v1/silences/{id}/end", self._for(Role.ADMIN, alerts.end_silence), methods=["POST"]),
                Route("/v1/maintenance", self._for(Role.READER, maintenance.windows), methods=["GET"]),
                Route("/v1/maintenance", self._for(Role.ADMIN, maintenance.add), methods=["POST"]),
                Route("/v1/maintenance/{id}/end", self._for(Role.ADMIN, maintenance.end), methods=["POST"]),
                Route("/v1/disks", self._for(Role.READER, self._disks.list_)),
                Route("/v1/disks/snapshots", self._for(Role.ADMIN, self._disks.snapshot), methods=["POST"]),
                Route("/v1/disks/{cid}/keep", self._for(Role.ADMIN, self._disks.keep), methods=["POST"]),
                Route("/v1/disks/{cid}/delete", self._for(Role.ADMIN, self._disks.delete), methods=["POST"]),
                Route("/v1/disks/{cid}/attach", self._for(Role.ADMIN, self._disks.attach), methods=["POST"]),
                Route("/v1/operations", self._for(Role.READER, self._operations)),
                Route("/v1/fence/confirm", self._for(Role.ADMIN, self._confirm_fence), methods=["POST"]),
                Route("/v1/switches", self._for(Role.READER, self._switches)),
                Route("/v1/switches/resurrection", self._for(Role.ADMIN, self._resurrection), methods=["POST"]),
                Route("/v1/switches/pause", self._for(Role.ADMIN, self._pause), methods=["POST"]),
                Route("/v1/switches/resume", self._for(Role.ADMIN, self._resume), methods=["POST"]),
                Route("/v1/switches/meltdown", self._for(Role.ADMIN, self._meltdown), methods=["POST"]),
            ],
            exception_handlers={
                404: _no_such_path,
                405: _wrong_method,
            },
        )

    # Looking.

    async def _healthz(self, request: Request) -> Response:
        reasons = self._parts.monitor.reasons_unhealthy()
        body: dict[str, Any] = {"healthy": not reasons, "leader": self._parts.leader.is_leader()}
        if _is_local(request) or self._role(request) is not None:
            body["reasons"] = reasons
            body["warnings"] = self._parts.alerts.warnings()
        return JSONResponse(body, status_code=503 if reasons else 200)

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(self._parts.monitor.metrics(), media_type="text/plain; version=0.0.4")

    async def _status(self, request: Request) -> Response:
        parts = self._parts
        listed = await self._listing(_deployment_in(request, parts.journal))
        judgement = parts.monitor.judgement()
        body = {
            "monitor": {
                "id": parts.monitor.id,
                "version": VERSION,
                "leader": parts.leader.is_leader(),
                **parts.monitors.leader(),
                "bus_connected": parts.monitor.bus_connected(),
                "cannot_tell": judgement.cannot_tell,
                "unhealthy": parts.monitor.reasons_unhealthy(),
            },
            "monitors": parts.monitors.views(),
            "unreadable": [str(error) for error in parts.journal.corrupt()],
            "switches": self._switches_view(),
            "meltdowns": views.meltdowns_view(judgement.meltdowns),
            "deployments": self._deployment_views(listed),
            "instances": listed.instances,
            "instances_left_out": listed.left_out,
            "incidents": [
                views.incident_view(incident)
                for incident in parts.journal.incidents().values()
                if incident.resolved_at is None
            ],
            "strangers": [
                views.stranger_view(stranger) for stranger in islice(parts.monitor.strangers(), STRANGERS_MAX)
            ],
            "spares": [
                views.spare_view(spare, parts.fleet.verdict(spare.agent_id))
                for spare in sorted(parts.journal.spares().values(), key=lambda spare: (str(spare.pool), spare.made_at))
            ],
        }
        return JSONResponse(body)

    async def _leader(self, request: Request) -> Response:
        leader = self._parts.leader
        return JSONResponse(
            {"leads": leader.is_leader(), "leader": leader.leader_name(), "address": leader.leader_address()}
        )

    async def _deployments(self, request: Request) -> Response:
        return JSONResponse({"deployments": self._deployment_views(await self._listing(None))})

    async def _deployment(self, request: Request) -> Response:
        name = DeploymentName(request.path_params["name"])
        record = self._parts.journal.deployment(name)
        if record is None:
            raise NotFound(f"there is no deployment {name!r}")
        listed = await self._listing(name)
        view = views.deployment_view(record, listed.existing.get(name, 0), listed.good.get(name, 0))
        return JSONResponse({**view, "manifest": record.manifest_text})

    async def _instance(self, request: Request) -> Response:
        record = self._parts.journal.instance(_instance_of(request))
        if record is None:
            raise NotFound(f"there is no instance {_instance_of(request)!r}")
        return JSONResponse(self._instance_view(record))

    async def _logs(self, request: Request) -> Response:
        lines = _whole(request, "lines", 100, 1, 10_000)
        container = request.query_params.get("container", "")
        text = await self._parts.actions.logs(_instance_of(request), container, lines)
        return JSONResponse({"instance": _instance_of(request), "container": container, "text": text})

    async def _events(self, request: Request) -> Response:
        journal = self._parts.journal
        if request.query_params.get("follow", "").lower() in ("1", "true"):
            if self._followers >= FOLLOWERS_MAX:
                raise ApiError(429, "too_many", f"{FOLLOWERS_MAX} others follow the events already")
            after = _whole(request, "after", 0, 0, 2**63)
            return StreamingResponse(self._followed(after), media_type="application/jsonl")
        if "last" in request.query_params:
            entries = await journal.last_events(_whole(request, "last", 50, 1, EVENTS_MAX))
        else:
            after = _whole(request, "after", 0, 0, 2**63)
            entries = await journal.events_after(after, _whole(request, "limit", 1000, 1, EVENTS_MAX))
        return JSONResponse({"events": [views.event_view(entry) for entry in entries]})

    async def _followed(self, after: int) -> AsyncIterator[bytes]:
        """JSON lines; one that only says keep_alive when nothing happened, so that a lost listener is noticed."""
        self._followers += 1
        events = self._parts.journal.follow_events(after)
        upcoming = asyncio.ensure_future(anext(events))
        try:
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS)
                if not done:
                    yield b'{"keep_alive":true}\n'
                    continue
                try:
                    entry = upcoming.result()
                except StopAsyncIteration:
                    return
                upcoming = asyncio.ensure_future(anext(events))
                yield json.dumps(views.event_view(entry)).encode() + b"\n"
        finally:
            self._followers -= 1
            upcoming.cancel()
            await asyncio.wait({upcoming})

    async def _incidents(self, request: Request) -> Response:
        every = request.query_params.get("resolved", "").lower() in ("1", "true")
        listed = [
            incident for incident in self._parts.journal.incidents().values() if every or incident.resolved_at is None
        ]
        listed.sort(key=lambda incident: incident.opened_at)
        return JSONResponse({"incidents": [views.incident_view(incident) for incident in listed]})

    async def _operations(self, request: Request) -> Response:
        under_way = [item for item in self._parts.journal.operations().values() if item.step is not Step.DONE]
        return JSONResponse({"operations": [views.operation_view(operation) for operation in under_way]})

    async def _switches(self, request: Request) -> Response:
        return JSONResponse(self._switches_view())

    # Acting.

    async def _plan(self, request: Request) -> Response:
        body = await _body(request, bodies.PlanBody)
        return JSONResponse(await self._planned(_upload(body)))

    async def _deploy(self, request: Request) -> Response:
        name = request.path_params["name"]
        body = await _body(request, bodies.DeployBody)
        planned = await self._planned(_upload(body))
        if body.dry_run:
            return JSONResponse(planned)
        answer = await self._parts.actions.deploy(
            name, _upload(body), self._person(request), body.because, body.if_revision
        )
        return JSONResponse({**_answer(answer), "plan": planned["plan"]}, status_code=202)

    async def _delete(self, request: Request) -> Response:
        disks = request.query_params.get("disks", "").lower() in ("1", "true")
        because = request.query_params.get("because", "")[:2000]
        name = request.path_params["name"]
        answer = await self._parts.actions.delete(name, disks, self._person(request), because)
        return JSONResponse(_answer(answer), status_code=202)

    async def _act(self, request: Request) -> Response:
        body = await _body(request, bodies.ActBody)
        answer = await self._parts.actions.act(
            request.path_params["action"],
            _instance_of(request),
            body.containers,
            self._person(request),
            body.because,
        )
        return JSONResponse(_answer(answer), status_code=202)

    async def _confirm_fence(self, request: Request) -> Response:
        body = await _body(request, bodies.FenceConfirmBody)
        instance = InstanceId(body.instance)
        answer = await self._parts.actions.confirm_fence(instance, self._person(request), body.because)
        return JSONResponse(_answer(answer), status_code=202)

    async def _resurrection(self, request: Request) -> Response:
        body = await _body(request, bodies.ResurrectionBody)
        person = self._person(request)
        answer = await self._parts.actions.switch_resurrection(body.enabled, person, body.because)
        if body.enabled and not self._parts.monitor.resurrection_configured():
            hint = "the configuration file still says resurrector.enabled: false; change it and reload (SIGHUP)"
            answer = Answer(answer.text, hint)
        return JSONResponse(_answer(answer))

    async def _pause(self, request: Request) -> Response:
        body = await _body(request, bodies.PauseBody)
        return JSONResponse(_answer(await self._parts.actions.pause(body.seconds, self._person(request), body.because)))

    async def _resume(self, request: Request) -> Response:
        body = await _body(request, bodies.BecauseBody)
        return JSONResponse(_answer(await self._parts.actions.resume(self._person(request), body.because)))

    async def _meltdown(self, request: Request) -> Response:
        body = await _body(request, bodies.MeltdownBody)
        person = self._person(request)
        return JSONResponse(_answer(await self._parts.actions.override_meltdown(body.seconds, person, body.because)))

    # What the above is made of.

    async def _planned(self, upload: ManifestUpload) -> dict[str, Any]:
        manifest = await self._parts.manifests.read(upload)
        before = self._parts.journal.deployment(manifest.name)
        found = self._parts.manifests.plan(manifest, upload.migrate)
        return {"plan": found, "revision": before.revision if before is not None else 0}

    async def _listing(self, only: DeploymentName | None) -> Listing:
        return await listing(self._parts.journal.instances().values(), self._tone, self._instance_view, only)

    def _tone(self, record: InstanceRecord) -> Tone:
        """As the view's, from what costs nothing to look up: it is asked of every instance there is."""
        fleet, agent = self._parts.fleet, None if record.vm is None else record.vm.agent_id
        verdict = Verdict.UNHEARD if agent is None else fleet.verdict(agent)
        said = None if agent is None else fleet.last_glance(agent)
        return describe(record, verdict, said, self._parts.journal.operation(record.instance)).tone

    def _instance_view(self, record: InstanceRecord) -> dict[str, Any]:
        fleet = self._parts.fleet
        agent = record.vm.agent_id if record.vm is not None else None
        verdict = Verdict.UNHEARD if agent is None else fleet.verdict(agent)
        heartbeat = None if agent is None else fleet.last_heartbeat(agent)
        operation = self._parts.journal.operation(record.instance)
        progress = self._parts.progress(record.instance)
        full_in = functools.partial(self._parts.full_in_seconds, record.instance)
        return views.instance_view(record, verdict, heartbeat, operation, progress, full_in)

    def _deployment_views(self, listed: Listing) -> list[dict[str, Any]]:
        records = sorted(self._parts.journal.deployments().values(), key=lambda record: record.name)
        return [
            views.deployment_view(record, listed.existing.get(record.name, 0), listed.good.get(record.name, 0))
            for record in records
        ]

    def _switches_view(self) -> dict[str, Any]:
        return views.switches_view(self._parts.journal.switches(), self._parts.monitor.resurrection_configured())

    def _for(self, needed: Role, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those whose token has this role, or one that may more."""

        async def call(request: Request) -> Response:
            role = self._role(request)
            if role is None:
                return reply(
                    401, "token", "a token is needed, or this one is not known", "", "send Authorization: Bearer TOKEN"
                )
            if needed is Role.ADMIN and role is not Role.ADMIN:
                return reply(403, "role", f"the role {role.value} may only look", "", "use a token of the role admin")
            return await endpoint(request)

        return guarded(call)

    def _local_or(self, needed: Role, endpoint: Endpoint) -> Endpoint:
        with_token = self._for(needed, endpoint)

        async def call(request: Request) -> Response:
            return await (endpoint(request) if _is_local(request) else with_token(request))

        return call

    def _role(self, request: Request) -> Role | None:
        """None: not known. With no token configured (possible on loopback only), people on this machine are admins."""
        tokens = self._parts.tokens()
        if not tokens:
            return Role.ADMIN if _is_local(request) else None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found: Role | None = None
        for known, role in tokens.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(known.encode(), token.strip().encode()):
                found = role
        return found

    def _person(self, request: Request) -> Person:
        role = self._role(request)
        name = request.headers.get(USER_HEADER, "")[:USER_MAX_CHARACTERS]
        return Person(role.value if role else "nobody", "".join(c for c in name if c.isprintable()))


async def _body(request: Request, kind: type[B]) -> B:
    """The request's body; ApiError when it is too large, ValidationError when it is not as it should be."""
    parts: list[bytes] = []
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > BODY_MAX_BYTES:
            raise ApiError(413, "too_large", f"the request's body is larger than {BODY_MAX_BYTES} bytes")
        parts.append(part)
    return kind.model_validate_json(b"".join(parts) or b"{}")


def _upload(body: bodies.PlanBody) -> ManifestUpload:
    return ManifestUpload(body.manifest, body.file, body.variables, body.env_files, body.migrate)


def _answer(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "next": answer.next_step, **(answer.facts or {})}


def _instance_of(request: Request) -> InstanceId:
    path = request.path_params
    return instance_id(path["deployment"], path["group"], path["index"])


def _deployment_in(request: Request, journal: Journal) -> DeploymentName | None:
    """The deployment that `?name=` is or begins with, if there is one."""
    name = DeploymentName(request.query_params.get("name", "").split("/")[0])
    return name if name and journal.deployment(name) is not None else None


def _whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ApiError(400, "query", f"{name} must be a whole number from {least} to {most}", f"?{name}={text[:20]}")
    return int(text)


def _is_local(request: Request) -> bool:
    """From this machine itself. Without an address (a unix socket) it is too."""
    if request.client is None:
        return True
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _no_such_path(request: Request, error: Exception) -> Response:
    return reply(404, "path", f"there is nothing at {request.url.path[:200]}")


async def _wrong_method(request: Request, error: Exception) -> Response:
    return reply(405, "method", f"{request.method} is not possible at {request.url.path[:200]}")
