"""The HTTP API on a real nats-server and journal; operations and agents are pretended."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from healthmonitor.alert_actions import AlertActions
from healthmonitor.alerting import Alerting
from healthmonitor.api import Api, ApiParts, Role
from healthmonitor.api_server import AddressInUse, ApiServer, bind
from healthmonitor.core.fleet import AgentView
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.operation import IllegalTransition
from healthmonitor.core.policy import AlertPolicy, Policy
from healthmonitor.core.records import Event, InstanceRecord, Operation, OperationKind, Step, VmBinding
from healthmonitor.journal import Journal
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.operator_actions import OperatorActions
from protocol.bus import NoResponders
from protocol.heartbeat import ContainerReport, ContainerState, EngineState, Extension, Heartbeat
from protocol.ids import AgentId, Generation, InstanceId, OperationId, Revision, VmCid
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support.alerts import RecordingChannel, alerting, incident, refused
from tests.support.nats import nats_server
from tests.support.waiting import until

ADMIN, READER = "admin-token", "reader-token"
MANIFEST = """
name: shop
stemcell: demo
cloud: local
instance_groups:
  - name: db
    instances: 1
    vm: {cpus: 1, memory: 512MiB}
    persistent_disks: {data: 256MiB}
    containers:
      redis: {image: "redis:7", volumes: ["data:/data"]}
"""
SHOP_DB = InstanceId("shop/db/0")


@dataclass
class PretendedOperations:
    """Writes what the resurrector would, and remembers what it was asked."""

    journal: Journal
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    woken: int = 0

    async def begin_update(
        self, instance: InstanceId, reason: str, change: Callable[[InstanceRecord], InstanceRecord] | None = None
    ) -> Operation:
        self.asked.append(("update", instance, reason))
        before = self.journal.instance(instance)
        if change is not None and before is not None:
            await self.journal.save_instance(change(before), before)
        return Operation(OperationId("1"), instance, OperationKind.UPDATE, Step.APPLY, reason, 0.0)

    async def begin_recreate(self, instance: InstanceId, reason: str) -> Operation:
        self.asked.append(("recreate", instance, reason))
        return Operation(OperationId("1"), instance, OperationKind.RECREATE, Step.DRAIN, reason, 0.0)

    async def confirm_fence(self, instance: InstanceId, person: str) -> Operation:
        self.asked.append(("confirm", instance, person))
        raise IllegalTransition(f"{instance} is at step done: there is no VM whose fencing waits for a word")

    def wake(self) -> None:
        self.woken += 1


@dataclass
class PretendedAgents:
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    listening: bool = True

    async def call(
        self, agent: AgentId, generation: Generation | None, method: str, *arguments: Any, timeout_seconds: float
    ) -> Any:
        self.asked.append((agent, generation, method, *arguments))
        if not self.listening:
            raise NoResponders(agent)
        return "the last line\n" if method == "logs" else "restarted"


@dataclass
class PretendedMonitor:
    """Fleet, leader and monitor in one: what they would say is set by the test."""

    id: str = "hm"
    leads: bool = True
    unhealthy: list[str] = field(default_factory=list)
    heartbeats: dict[AgentId, Heartbeat] = field(default_factory=dict)
    configured: bool = True

    def is_leader(self) -> bool:
        return self.leads

    def leader_name(self) -> str:
        return "hm" if self.leads else "hm2"

    def leader_address(self) -> str:
        return "http://127.0.0.1:1" if self.leads else "http://127.0.0.1:2"

    def bus_connected(self) -> bool:
        return True

    def reasons_unhealthy(self) -> list[str]:
        return self.unhealthy

    def judgement(self) -> Judgement:
        return Judgement(0.0)

    def resurrection_configured(self) -> bool:
        return self.configured

    def metrics(self) -> bytes:
        return b"resurgam_up 1\n"

    def strangers(self) -> list[AgentView]:
        return [AgentView(AgentId("old"), Verdict.ALIVE, "", None, float("inf"), 0.0, 3.0)]

    def verdict(self, agent: AgentId) -> Verdict:
        return Verdict.ALIVE if agent in self.heartbeats else Verdict.UNHEARD

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        return self.heartbeats.get(agent)

    def heard_after(self, agent: AgentId, at_seconds: float) -> bool:
        return agent in self.heartbeats


@dataclass
class Site:
    http: httpx.AsyncClient
    journal: Journal
    operations: PretendedOperations
    agents: PretendedAgents
    monitor: PretendedMonitor
    alerting: Alerting
    channels: list[RecordingChannel]

    async def deploy(self, **more: Any) -> httpx.Response:
        return await self.http.put("/v1/deployments/shop", json={"manifest": MANIFEST, **more})

    async def with_instance(self) -> InstanceRecord:
        """What a rollout would have made."""
        await self.deploy()
        deployment = self.journal.deployment((await self.http.get("/v1/deployments")).json()["deployments"][0]["name"])
        assert deployment is not None
        record = InstanceRecord(
            instance=SHOP_DB,
            deployment=deployment.name,
            index=0,
            group=deployment.manifest.groups[0],
            deployment_revision=deployment.revision,
            revision=Revision(1),
            generation=Generation(1),
            vm=VmBinding(AgentId("agent-1"), Generation(1), "shop-db-0-g1", VmCid("vm-1")),
        )
        await self.journal.save_instance(record, None)
        report = ContainerReport("redis", ContainerState.RUNNING, since_seconds=3.0)
        extension = Extension(revision=1, engine=EngineState.UP, containers=(report,))
        self.monitor.heartbeats[AgentId("agent-1")] = Heartbeat(resurgam=extension)
        return record

    async def events(self) -> list[dict[str, Any]]:
        return list((await self.http.get("/v1/events?last=100")).json()["events"])


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with nats_server(tmp_path) as server:
        bus = await NatsBus.open(BusSettings((server.url,)), "test-api")
        await bus.wait_connected(10)
        journal = Journal(bus, lambda: 1000.0)
        await journal.open()
        operations, agents, monitor = PretendedOperations(journal), PretendedAgents(), PretendedMonitor()
        intake = ManifestIntake(journal, lambda: ["local"], lambda: {"local": ["demo"]})
        actions = OperatorActions(journal, operations, agents, monitor, intake, lambda: 1000.0)
        tokens = {ADMIN: Role.ADMIN, READER: Role.READER}
        channels = [RecordingChannel("mail"), RecordingChannel("pager")]
        events: list[Event] = []
        part = alerting(bus, journal, channels, lambda: 1000.0, is_leader=monitor.is_leader, events=events)
        alerts = AlertActions(journal, part, monitor, lambda: 1000.0, lambda: uuid.uuid4().hex)
        parts = ApiParts(journal, actions, monitor, monitor, monitor, intake, lambda: tokens, alerts, lambda: 1000.0)
        api = Api(parts)
        apiserver = ApiServer(api.application(), "127.0.0.1", 0)
        serving = asyncio.create_task(apiserver.run())
        headers = {"Authorization": f"Bearer {ADMIN}", "X-Resurgam-User": "ada"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{apiserver.port}", headers=headers) as http:
            running = asyncio.create_task(part.run())
            yield Site(http, journal, operations, agents, monitor, part, channels)
            running.cancel()
            await asyncio.wait({running})
        apiserver.stop()
        await serving
        await bus.close()


async def test_a_deploy_is_written_with_who_and_why(site: Site) -> None:
    """A deploy is the next revision in the journal, wakes the rollout, and is in the timeline with its reason."""
    reply = await site.deploy(because="the shop opens")
    assert (reply.status_code, reply.json()["revision"]) == (202, 1)
    fresh = Journal(site.journal._bus, lambda: 0.0)
    await fresh.open()
    (record,) = fresh.deployments().values()
    assert (record.revision, record.deployed_by, record.manifest_text) == (1, "ada (admin)", MANIFEST)
    (event,) = await site.events()
    assert event["kind"] == "operator.deployed"
    assert event["fields"] == {"by": "ada (admin)", "because": "the shop opens"}
    assert site.operations.woken == 1


async def test_a_plan_changes_nothing(site: Site) -> None:
    """Neither /v1/plan nor dry_run write anything; both show the same plan."""
    planned = (await site.http.post("/v1/plan", json={"manifest": MANIFEST})).json()
    dry = (await site.deploy(dry_run=True)).json()
    assert planned == dry
    assert planned["plan"]["changes"][0]["verb"] == "create"
    assert planned["revision"] == 0
    assert site.journal.deployments() == {}
    assert await site.events() == []


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (MANIFEST.replace("instances: 1", "instances: one"), "m.yml:7"),
        (MANIFEST.replace("cloud: local", "cloud: lokal"), "did you mean local?"),
        (MANIFEST.replace("stemcell: demo", "stemcell: nothing"), "m.yml:3"),
        ("name: [", "m.yml:"),
    ],
)
async def test_a_wrong_manifest_is_refused_as_a_whole(site: Site, manifest: str, said: str) -> None:
    """Every error comes back with its line, and nothing was written."""
    reply = await site.http.put("/v1/deployments/shop", json={"manifest": manifest, "file": "m.yml"})
    assert reply.status_code == 422
    assert any(said in line for line in reply.json()["details"])
    assert site.journal.deployments() == {}


async def test_a_plan_that_is_out_of_date_is_not_deployed(site: Site) -> None:
    """Whoever planned against an older revision is told so, instead of undoing somebody's change unseen."""
    assert (await site.deploy(if_revision=0)).status_code == 202
    late = await site.deploy(if_revision=0)
    assert late.status_code == 409
    assert "changed since its plan was shown" in late.json()["error"]
    assert next(iter(site.journal.deployments().values())).revision == 1


async def test_a_disk_is_never_made_smaller(site: Site) -> None:
    """What would harm data is refused by the deploy itself, not only shown in the plan."""
    record = await site.with_instance()
    smaller = MANIFEST.replace("256MiB", "128MiB")
    reply = await site.http.put("/v1/deployments/shop", json={"manifest": smaller})
    assert reply.status_code == 409
    assert "cannot shrink" in reply.json()["error"]
    assert site.journal.deployment(record.deployment).revision == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "path", "body", "token", "status"),
    [
        ("GET", "/v1/status", None, "", 401),
        ("GET", "/v1/status", None, "wrong", 401),
        ("GET", "/v1/status", None, READER, 200),
        ("POST", "/v1/plan", {"manifest": MANIFEST}, READER, 200),
        ("PUT", "/v1/deployments/shop", {"manifest": MANIFEST}, READER, 403),
        ("DELETE", "/v1/deployments/shop", None, READER, 403),
        ("POST", "/v1/instances/shop/db/0/stop", {}, READER, 403),
        ("POST", "/v1/fence/confirm", {"instance": "shop/db/0", "because": "x"}, READER, 403),
        ("POST", "/v1/switches/resurrection", {"enabled": True}, READER, 403),
        ("POST", "/v1/switches/pause", {}, READER, 403),
        ("POST", "/v1/switches/resume", {}, READER, 403),
        ("POST", "/v1/switches/meltdown", {"seconds": 1}, READER, 403),
        ("POST", "/v1/switches/pause", {}, "", 401),
        ("GET", "/healthz", None, "", 200),
        ("GET", "/metrics", None, "", 200),
        ("GET", "/v1/nothing", None, ADMIN, 404),
        ("POST", "/v1/status", {}, ADMIN, 405),
        ("POST", "/v1/switches/pause", {"secnds": 5}, ADMIN, 422),
        ("POST", "/v1/switches/pause", {"seconds": -5}, ADMIN, 422),
        ("POST", "/v1/switches/pause", [], ADMIN, 422),
        ("POST", "/v1/instances/shop/db/0/stop", {}, ADMIN, 404),
        ("POST", "/v1/instances/shop/db/x/stop", {}, ADMIN, 404),
        ("POST", "/v1/fence/confirm", {"instance": "shop/db/0", "because": ""}, ADMIN, 422),
        ("DELETE", "/v1/deployments/none", None, ADMIN, 404),
        ("GET", "/v1/events?after=x", None, ADMIN, 400),
        ("GET", "/v1/events?last=0", None, ADMIN, 400),
        ("PUT", "/v1/deployments/shop", {"manifest": "x" * 1_100_000}, ADMIN, 413),
    ],
)
async def test_who_may_do_what(site: Site, method: str, path: str, body: Any, token: str, status: int) -> None:
    """Roles, bounds and shapes: each request ends with the status that says whose fault it is, and in JSON."""
    site.http.headers["Authorization"] = f"Bearer {token}" if token else ""
    reply = await site.http.request(method, path, json=body)
    assert reply.status_code == status
    if status >= 400:
        assert set(reply.json()) == {"error", "where", "next", "kind", "details"}
    assert site.operations.asked == []
    assert site.journal.deployments() == {}


async def test_a_monitor_that_does_not_lead_sends_people_on(site: Site) -> None:
    """Every action is refused with the address of the one that leads; looking is not."""
    await site.with_instance()
    site.monitor.leads = False
    for path in ("/v1/instances/shop/db/0/stop", "/v1/switches/pause", "/v1/instances/shop/db/0/recreate"):
        reply = await site.http.post(path, json={})
        assert (reply.status_code, reply.json()["kind"]) == (409, "not_leading")
        assert "http://127.0.0.1:2" in reply.json()["next"]
    assert site.operations.asked == []
    assert (await site.http.get("/v1/status")).status_code == 200
    assert (await site.http.get("/v1/leader")).json() == {
        "leads": False,
        "leader": "hm2",
        "address": "http://127.0.0.1:2",
    }


async def test_stopping_changes_what_the_agent_is_told(site: Site) -> None:
    """Stop and start change the record, raise its revision and have the agent told; no change is told as such."""
    await site.with_instance()
    reply = await site.http.post("/v1/instances/shop/db/0/stop", json={"containers": ["redis"], "because": "backup"})
    assert reply.status_code == 202
    record = site.journal.instance(SHOP_DB)
    assert record is not None
    assert (record.stopped_containers, record.revision) == (("redis",), 2)
    again = await site.http.post("/v1/instances/shop/db/0/stop", json={"containers": ["redis"]})
    assert "nothing to change" in again.json()["text"]
    await site.http.post("/v1/instances/shop/db/0/start", json={"containers": ["redis"]})
    started = site.journal.instance(SHOP_DB)
    assert started is not None
    assert (started.stopped_containers, started.revision) == ((), 3)
    assert [kind for kind, _, _ in site.operations.asked] == ["update", "update"]
    unknown = await site.http.post("/v1/instances/shop/db/0/stop", json={"containers": ["rdis"]})
    assert unknown.status_code == 409
    assert "it has redis" in unknown.json()["next"]


async def test_restart_and_logs_ask_the_agent_of_this_very_vm(site: Site) -> None:
    """Requests name the VM's generation, so that no other VM can answer; silence is told as such."""
    await site.with_instance()
    logs = await site.http.get("/v1/instances/shop/db/0/logs?container=redis&lines=5")
    assert logs.json()["text"] == "the last line\n"
    assert (await site.http.post("/v1/instances/shop/db/0/restart", json={})).status_code == 202
    assert site.agents.asked == [("agent-1", 1, "logs", "redis", 5), ("agent-1", 1, "restart", [])]
    assert (await site.http.get("/v1/instances/shop/db/0/logs?container=nothing")).status_code == 404
    site.agents.listening = False
    silent = await site.http.get("/v1/instances/shop/db/0/logs?container=redis")
    assert (silent.status_code, silent.json()["kind"]) == (409, "agent_silent")


async def test_status_tells_what_the_agents_said(site: Site) -> None:
    """The status joins record, verdict and heartbeat into one word and counts what is as it should be."""
    record = await site.with_instance()
    status = (await site.http.get("/v1/status")).json()
    (instance,) = status["instances"]
    assert status["strangers"][0]["agent_id"] == "old"
    assert (instance["state"], instance["tone"], instance["verdict"]) == ("running", "good", "alive")
    assert (status["deployments"][0]["instances_good"], status["deployments"][0]["instances"]) == (1, 1)
    await site.journal.save_instance(replace(record, vm=None), record)
    (gone,) = (await site.http.get("/v1/status")).json()["instances"]
    assert gone["state"] == "no VM yet"
    assert (await site.http.get("/v1/instances/shop/db/0")).json() == gone


async def test_switches_are_kept_and_shown(site: Site) -> None:
    """Pause, resume, resurrection and meltdown are in the journal and in the status, each with its event."""
    for path, body in (
        ("pause", {"seconds": 60}),
        ("meltdown", {"seconds": 30}),
        ("resurrection", {"enabled": False, "because": "drill"}),
    ):
        assert (await site.http.post(f"/v1/switches/{path}", json=body)).status_code == 200
    switches = (await site.http.get("/v1/switches")).json()
    assert (switches["paused_until"], switches["paused_by"]) == (1060.0, "ada (admin)")
    assert (switches["meltdown_overridden_until"], switches["resurrection"]) == (1030.0, False)
    await site.http.post("/v1/switches/resume", json={})
    assert (await site.http.get("/v1/switches")).json()["paused_until"] == 0.0
    assert [event["kind"] for event in await site.events()] == [
        "operator.paused",
        "operator.meltdown_overridden",
        "operator.resurrection",
        "operator.resumed",
    ]
    site.monitor.configured = False
    hint = (await site.http.post("/v1/switches/resurrection", json={"enabled": True})).json()["next"]
    assert "resurrector.enabled" in hint


async def test_a_word_that_nobody_waits_for_is_refused(site: Site) -> None:
    """`fence confirm` of an instance whose fencing does not wait is refused with the step that it is at."""
    await site.with_instance()
    body = {"instance": SHOP_DB, "because": "Ada pulled the plug"}
    reply = await site.http.post("/v1/fence/confirm", json=body)
    assert reply.status_code == 409
    assert "step done" in reply.json()["error"]
    assert site.operations.asked == [("confirm", SHOP_DB, "ada (admin): Ada pulled the plug")]


async def test_events_can_be_followed(site: Site) -> None:
    """A follower gets those that are there, then each new one when it happens."""
    await site.journal.record("a.first", "x", "one")
    async with site.http.stream("GET", "/v1/events?follow=true&after=0", timeout=20) as reply:
        lines = reply.aiter_lines()
        assert json.loads(await anext(lines))["kind"] == "a.first"
        await site.journal.record("a.second", "x", "two")
        async for line in lines:
            event = json.loads(line)
            if event.get("kind") == "a.second":
                break
    assert event["sequence"] == 2


async def test_health_names_what_is_missing(site: Site) -> None:
    """503 with the reasons, and no token needed from this machine."""
    site.monitor.unhealthy = ["bus: not connected"]
    site.http.headers.pop("Authorization")
    reply = await site.http.get("/healthz")
    assert (reply.status_code, reply.json()["reasons"]) == (503, ["bus: not connected"])


def test_an_address_in_use_is_told_at_the_start() -> None:
    """The socket is bound at once, with an error that names it."""
    first = bind("127.0.0.1", 0)
    try:
        with pytest.raises(AddressInUse, match=r"cannot listen on 127\.0\.0\.1 port"):
            bind("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


async def test_a_channel_is_tested_for_real_and_what_the_server_said_is_shown(site: Site) -> None:
    """Taken: what it said. Not taken: why, and what to do. Unknown: which there are. All in the timeline."""
    reply = await site.http.post("/v1/alerts/channels/mail/test", json={})
    assert (reply.status_code, reply.json()["said"]) == (200, "250 taken")
    assert site.channels[0].transitions() == ["test"]
    assert site.channels[1].tries == 0
    site.channels[0].script = [refused("550 no such user\r\nX-Evil: 1")]
    reply = await site.http.post("/v1/alerts/channels/mail/test", json={})
    assert reply.status_code == 409
    assert "550 no such user X-Evil: 1" in reply.json()["error"]
    assert (await site.http.post("/v1/alerts/channels/post/test", json={})).status_code == 404
    tested = [each for each in await site.events() if each["kind"] == "alert.tested"]
    assert tested[0]["fields"] == {"by": "ada (admin)", "said": "250 taken"}


async def test_an_incident_is_explained_acknowledged_and_silenced(site: Site) -> None:
    """Why it went where it went; who acknowledged and why; a silence with an end, listed, and ended by a person."""
    vm = incident("shop/db/0", at=1000.0)
    await until(lambda: site.alerting.desk is not None)
    await site.journal.save_incident(vm)
    explained = (await site.http.get("/v1/alerts/explain", params={"incident": vm.key})).json()
    assert "no route matches, so it goes to every channel" in explained["reasons"]
    early = await site.http.post("/v1/alerts/acknowledge", json={"incident": vm.key, "because": "on it"})
    assert early.status_code == 409
    site.alerting.set_policy(replace(Policy(), alerts=AlertPolicy(group_wait_seconds=0.0)))
    site.alerting.see(vm)
    await until(lambda: site.channels[0].transitions() == ["opened"])
    reply = await site.http.post("/v1/alerts/acknowledge", json={"incident": "shop/db/0", "because": "on it"})
    assert reply.status_code == 200, reply.text
    await until(lambda: site.channels[1].transitions() == ["opened", "acknowledged"])
    explained = (await site.http.get("/v1/alerts/explain", params={"incident": vm.key})).json()
    assert explained["thread"]["acknowledged"] == {"by": "ada (admin)", "because": "on it", "at": 1000.0}
    assert (await site.http.get("/v1/alerts/explain", params={"incident": "nothing"})).status_code == 404

    wish = {"deployment": "web", "seconds": 3600, "because": "new disks"}
    made = await site.http.post("/v1/silences", json=wish)
    assert made.status_code == 201, made.text
    listed = (await site.http.get("/v1/silences")).json()["silences"]
    assert [(each["id"], each["active"], each["ends_at"]) for each in listed] == [(made.json()["id"], True, 4600.0)]
    ended = await site.http.post(f"/v1/silences/{made.json()['id']}/end", json={"because": "done"})
    assert ended.status_code == 200
    assert [each["active"] for each in (await site.http.get("/v1/silences")).json()["silences"]] == [False]
    kinds = [each["kind"] for each in await site.events()]
    assert [kind for kind in kinds if kind.startswith("alert.")] == [
        "alert.acknowledged",
        "alert.silenced",
        "alert.silence_ended",
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"deployment": "web", "because": "x"}, 422),
        ({"deployment": "web", "seconds": 60}, 422),
        ({"deployment": "web", "seconds": 60, "because": " "}, 409),
        ({"seconds": 60, "because": "x"}, 409),
        ({"deployment": "web", "seconds": 100 * 86400, "because": "x"}, 409),
        ({"deployment": "web", "seconds": -1, "because": "x"}, 422),
        ({"deployments": "web", "seconds": 60, "because": "x"}, 422),
    ],
)
async def test_a_silence_has_a_subject_an_end_and_a_reason(site: Site, body: dict[str, Any], status: int) -> None:
    """Or it is refused, and nothing is written."""
    assert (await site.http.post("/v1/silences", json=body)).status_code == status
    assert (await site.http.get("/v1/silences")).json() == {"silences": []}


async def test_a_failing_channel_shows_in_healthz(site: Site) -> None:
    """The monitor is well; that somebody is not told stands beside it."""
    site.alerting.set_policy(
        replace(Policy(), alerts=AlertPolicy(group_wait_seconds=0.0, circuit_after=1, retry_first_seconds=60.0))
    )
    await until(lambda: site.alerting.desk is not None)
    site.channels[0].down = refused("535 wrong password")
    site.alerting.see(incident("shop/db/0", at=1000.0))
    await until(lambda: site.alerting.warnings())
    reply = await site.http.get("/healthz")
    assert reply.json()["warnings"] == ["channel mail: cannot deliver: 535 wrong password; 0 wait"]
    views = (await site.http.get("/v1/alerts/channels")).json()["channels"]
    assert [(each["name"], each["state"]) for each in views] == [("mail", "failing"), ("pager", "works")]
