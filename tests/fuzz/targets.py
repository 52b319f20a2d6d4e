"""What is fed, with which seeds, and what it may say. A target raises nothing but its own refusals, and a refusal
leaves what there was as it was.

Each `feed` gets one input. What else it raises is a crash; the case is kept in `cases/<target>/`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from agent import docker as engine_docker
from agent.settings_sources import SettingsError
from agent.settings_sources import parse as parse_settings
from healthmonitor import api_bodies
from healthmonitor.api_alerts import AcknowledgeBody, SilenceBody
from healthmonitor.api_maintenance import MaintenanceBody
from healthmonitor.clouds.qmp import Qmp, QmpRefused, QmpUnanswered
from healthmonitor.core.configuration import parse_configuration
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.manifest_file import parse_manifest
from healthmonitor.core.policy import LivenessPolicy
from protocol import alert, codec, envelope, heartbeat
from protocol.envelope import BadRequest, RequestRefused
from protocol.heartbeat import EngineState, Extension, Heartbeat, Malformed
from protocol.ids import AgentId, InstanceId
from tests.fuzz.agent_target import AGENT_SEEDS, FuzzedAgents
from tests.fuzz.store_targets import (
    DISCONNECT,
    LEASE,
    MAINTENANCE,
    PRESENCE,
    SILENCE,
    disconnects,
    leases,
    presences,
    recorded,
    records,
)

ROOT = Path(__file__).resolve().parents[2]
RECORDED = ROOT / "tests" / "data" / "bosh-agent"
AGENT = AgentId("agent-1")


Feed = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Target:
    """`make` returns `feed`: a target may keep something over its inputs; if it has `close`, that ends what it kept.
    `seconds`: processor time for one input."""

    make: Callable[[], Feed]
    seeds: Sequence[bytes]
    seconds: float = 5.0

    @contextmanager
    def feeding(self) -> Iterator[Feed]:
        feed = self.make()
        try:
            yield feed
        finally:
            getattr(feed, "close", lambda: None)()


def _heartbeats() -> Feed:
    fleet = Fleet(LivenessPolicy(), 0.0)
    fleet.expect({AGENT: InstanceId("shop/db/0")}, 0.0)
    now = 0.0

    def feed(payload: bytes) -> None:
        nonlocal now
        now += 0.01
        before, refused = fleet.last_heartbeat(AGENT), fleet.counters.malformed
        try:
            fleet.hear(AGENT, payload, now)
        except Malformed:
            assert fleet.last_heartbeat(AGENT) == before, "a refused heartbeat left something behind"
            assert fleet.counters.malformed == refused + 1
        fleet.last_heartbeat(AGENT)  # the whole of it is decoded when it is asked for
        if int(now * 100) % 50 == 0:
            fleet.decide(now)

    return feed


def _alerts() -> Feed:
    def feed(payload: bytes) -> None:
        with suppress(Malformed):
            assert 1 <= alert.decode(payload).severity <= 4

    return feed


def _requests() -> Feed:
    def feed(payload: bytes) -> None:
        try:
            request = envelope.decode_request(payload)
        except BadRequest as error:
            envelope.encode_exception(str(error))
            return
        envelope.encode_exception(f"unknown message {request.method}")
        assert request.method

    return feed


def _replies() -> Feed:
    def feed(payload: bytes) -> None:
        with suppress(RequestRefused, ValueError):
            envelope.decode_reply(payload)

    return feed


def _settings() -> Feed:
    def feed(raw: bytes) -> None:
        with suppress(SettingsError):
            parse_settings(raw, "settings.json")

    return feed


def _manifests() -> Feed:
    def feed(text: bytes) -> None:
        with suppress(ManifestErrors):
            manifest = parse_manifest(text, "m.yml", {"X": "1"}).manifest
            written = codec.to_json(manifest)
            assert codec.from_json(type(manifest), written) == manifest, "what was taken cannot be kept"

    return feed


def _configurations() -> Feed:
    def feed(text: bytes) -> None:
        with suppress(ManifestErrors):
            parse_configuration(text, "c.yml")

    return feed


def _bodies() -> Feed:
    kinds: list[type[BaseModel]] = [
        each for each in vars(api_bodies).values() if isinstance(each, type) and issubclass(each, api_bodies.Body)
    ]
    kinds += [MaintenanceBody, AcknowledgeBody, SilenceBody]

    def feed(body: bytes) -> None:
        for kind in kinds:
            with suppress(ValidationError):
                made = kind.model_validate_json(body)
                if isinstance(made, MaintenanceBody):
                    made.wish()

    return feed


def _qmp() -> Feed:
    loop = asyncio.new_event_loop()

    class Sink:
        def write(self, payload: bytes) -> None: ...
        async def drain(self) -> None: ...

    def feed(line: bytes) -> None:
        reader = asyncio.StreamReader(limit=64 * 1024, loop=loop)
        reader.feed_data(line + b"\n")
        reader.feed_eof()
        with suppress(QmpRefused, QmpUnanswered):
            loop.run_until_complete(Qmp(reader, Sink()).execute("query-status"))  # type: ignore[arg-type]

    return feed


def _engine_events() -> Feed:
    loop = asyncio.new_event_loop()

    def feed(payload: bytes) -> None:
        try:
            event = json.loads(payload)
        except (ValueError, RecursionError):
            return  # docker's own SDK decodes it, and its errors end the stream
        queue: asyncio.Queue[object] = asyncio.Queue(100)
        engine_docker._pump(iter([event]), loop, queue)  # type: ignore[arg-type]
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert not queue.empty(), "the end of a stream is always told"

    return feed


def _recorded(*names: str) -> list[bytes]:
    """Payloads of real BOSH agents' messages, and the files as they are."""
    found = [path.read_bytes() for name in names for path in sorted(RECORDED.glob(f"*{name}*.json"))]
    for text in list(found):
        with suppress(ValueError):
            value = json.loads(text)
            if isinstance(value, dict):
                found += [json.dumps(each).encode() for each in value.values() if isinstance(each, dict)]
    return found


def _documented(*patterns: str) -> list[bytes]:
    """The examples, and every block of YAML in the docs; each also as JSON, which is YAML too and whose values are
    exchanged for others."""
    found = [path.read_bytes() for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.suffix == ".yml"]
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if path.suffix == ".md":
                blocks = path.read_text().split("```yaml\n")[1:]
                found += [block.partition("```")[0].encode() for block in blocks]
    return found + [json.dumps(yaml.safe_load(text)).encode() for text in found]


OURS = heartbeat.encode(
    Heartbeat(job="db", job_state="running", resurgam=Extension(sequence=7, boot_id="b", engine=EngineState.UP))
)
REQUEST = envelope.encode_request(envelope.Request("get_state", ("full",), "director.1.2"))
BODY = json.dumps(
    {"seconds": 60, "because": "x", "day": "sunday", "at": "02:00", "deployment": "shop", "manifest": "name: shop\n"}
).encode()
EVENT = b'{"status":"die","id":"abc","Type":"container","Action":"die","Actor":{"ID":"abc","Attributes":{}},"time":1}'
SETTINGS = b'{"agent_id":"a-1","instance":"shop/db/0","generation":1,"bus":{"urls":["nats://10.0.0.1:4222"]}}'
QMP = (
    b'{"return": {"running": true, "status": "running"}, "id": 1}',
    b'{"error": {"class": "GenericError", "desc": "no"}}',
    b'{"event": "RESUME", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}',
)

TARGETS = {
    "heartbeat": Target(_heartbeats, [OURS, *_recorded("heartbeat")]),
    "alert": Target(_alerts, _recorded("alert")),
    "request": Target(_requests, [REQUEST, *_recorded("get_task", "get_state", "unknown_method")]),
    "reply": Target(_replies, _recorded("get_state", "info", "ping", "unknown_method")),
    "settings": Target(_settings, [SETTINGS]),
    "manifest": Target(_manifests, _documented("examples/*.yml", "docs/manifest.md", "README.md")),
    "configuration": Target(_configurations, _documented("docs/*.md", "docs/channels/*.md")),
    "api_body": Target(_bodies, [BODY]),
    "qmp": Target(_qmp, QMP),
    "engine_event": Target(_engine_events, [EVENT]),
    "record_deployment": Target(records("deployments"), recorded("deployments")),
    "record_instance": Target(records("instances"), recorded("instances")),
    "record_operation": Target(records("operations"), recorded("operations")),
    "record_incident": Target(records("incidents"), recorded("incidents")),
    "record_other": Target(
        records("orphans", "spares", "switches", "silences", "maintenance"),
        [*recorded("orphans", "spares", "switches"), SILENCE, MAINTENANCE],
    ),
    "lease": Target(leases, [LEASE, *recorded("leader")]),
    "presence": Target(presences, [PRESENCE]),
    "disconnect": Target(disconnects, [DISCONNECT]),
    "agent": Target(FuzzedAgents, AGENT_SEEDS),
}
