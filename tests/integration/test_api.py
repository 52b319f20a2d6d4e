"""The HTTP API on a real nats-server and journal; operations and agents are pretended."""

from __future__ import annotations

import asyncio
import html
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
from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.maintenance import OnceWindow, WeeklyWindow
from healthmonitor.core.notifying import links
from healthmonitor.core.operation import IllegalTransition
from healthmonitor.core.policy import AlertPolicy, LeadershipPolicy, Policy
from healthmonitor.core.presence import Presence, Roster
from healthmonitor.core.records import (
    DiskBinding,
    Event,
    InstanceRecord,
    Operation,
    OperationKind,
    OrphanDisk,
    Step,
    VmBinding,
)
from healthmonitor.disk_actions import DiskActions
from healthmonitor.image_actions import ImageActions
from healthmonitor.image_store import ImageStore
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.monitors import Monitors, Standing
from healthmonitor.operator_actions import OperatorActions
from protocol import heartbeat as wire
from protocol.bus import NoResponders
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    DiskReport,
    DiskState,
    EngineState,
    Extension,
    Glance,
    Heartbeat,
)
from protocol.ids import (
    AgentId,
    CloudName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    MonitorId,
    OperationId,
    Revision,
    VmCid,
)
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.simulation.cloud import SimulatedCloud
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
        return [AgentView(AgentId("old"), Verdict.ALIVE, "", None, float("inf"), 0.0, 3.0, 15.0, 7.5)]

    def verdict(self, agent: AgentId) -> Verdict:
        return Verdict.ALIVE if agent in self.heartbeats else Verdict.UNHEARD

    def last_glance(self, agent: AgentId) -> Glance | None:
        heartbeat = self.last_heartbeat(agent)
        return None if heartbeat is None else wire.glance(wire.encode(heartbeat))

    def last_heartbeat(self, agent: AgentId) -> Heartbeat | None:
        return self.heartbeats.get(agent)

    def revision(self, agent: AgentId) -> int | None:
        heard = self.heartbeats.get(agent)
        return None if heard is None or heard.resurgam is None else heard.resurgam.revision

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
    windows_changed: list[None]
    leadership: Leadership
    roster: Roster

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
        changed: list[None] = []
        maintenance = MaintenanceActions(
            journal,
            monitor,
            lambda: [WeeklyWindow(6, 7200, 3600.0, "backups")],
            lambda: 1000.0,
            lambda: uuid.uuid4().hex,
            lambda: changed.append(None),
        )
        loop = asyncio.get_running_loop()
        policy = LeadershipPolicy()
        own = Presence("hm", "1", version="1.2", address="http://127.0.0.1:1", started_at=900.0)
        roster = Roster("hm", "1", policy)
        leadership = Leadership(bus, MonitorId("hm"), policy, "1", unix_time=lambda: 1000.0)
        monitors = Monitors(own, roster, leadership, journal, Standing(lambda: "", lambda: 0), policy, loop.time)
        store = ImageStore(bus, tmp_path / "uploads", lambda: 1024 * 1024)
        images = ImageActions(store, journal, monitor, lambda: 1000.0)
        parts = ApiParts(
            journal=journal,
            actions=actions,
            fleet=monitor,
            monitor=monitor,
            leader=monitor,
            manifests=intake,
            tokens=lambda: tokens,
            signs_links=lambda: ADMIN,
            alerts=alerts,
            maintenance=maintenance,
            monitors=monitors,
            images=images,
            unix_time=lambda: 1000.0,
            disks=DiskActions(
                journal,
                monitor,
                {CloudName("local"): SimulatedCloud()},
                lambda record: (DiskReport("data", "disk-1", DiskState.MOUNTED, 42.0, 7.0, 1000),),
                lambda: 5 * 86400.0,
                lambda: 1000.0,
                operations.wake,
            ),
        )
        api = Api(parts)
        apiserver = ApiServer(api.application(), "127.0.0.1", 0)
        serving = asyncio.create_task(apiserver.run())
        headers = {"Authorization": f"Bearer {ADMIN}", "X-Resurgam-User": "ada"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{apiserver.port}", headers=headers) as http:
            running = asyncio.create_task(part.run())
            yield Site(http, journal, operations, agents, monitor, part, channels, changed, leadership, roster)
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
    kept = site.journal.deployment(record.deployment)
    assert kept is not None
    assert kept.revision == 1


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


async def test_who_leads_and_who_else_is_there(site: Site) -> None:
    """The status names the leader, since when and why, and each monitor; stepping down is refused while nobody could
    follow, and hands over when somebody can."""
    running = asyncio.create_task(site.leadership.run())
    await until(site.leadership.is_leader, what="it leads")
    listed = (await site.http.get("/v1/monitors")).json()
    assert (listed["leader_id"], listed["leader_since"], listed["leader_why"]) == ("hm", 1000.0, "there is no lease")
    assert [(each["monitor"], each["this"], each["doing"]) for each in listed["monitors"]] == [("hm", True, "leads")]
    refused_reply = await site.http.post("/v1/monitors/step-down", json={})
    assert refused_reply.status_code == 409
    assert "could lead at once" in refused_reply.json()["error"]
    site.roster.heard(Presence("hm-b", "b1", warm=True, leads=True), asyncio.get_running_loop().time())
    told = (await site.http.post("/v1/monitors/step-down", json={"seconds": 30, "because": "a new kernel"})).json()
    assert told["text"] == "hm has stepped down for 30s; hm-b leads now"
    assert not site.leadership.is_leader()
    assert (await site.journal.last_events(1))[0].event.text == "hm steps down for 30s; by ada (admin): a new kernel"
    own, other = (await site.http.get("/v1/status")).json()["monitors"]
    assert own["state"].startswith("stepped down, for another")
    assert (other["monitor"], other["doing"]) == ("hm-b", "leads")
    again = await site.http.post("/v1/monitors/step-down", json={})
    assert (again.status_code, again.json()["kind"]) == (409, "not_leading")
    running.cancel()
    await asyncio.wait({running})


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


async def test_the_page_of_an_incident_opens_by_its_link_and_by_no_other(site: Site) -> None:
    """A signed link, or a token of any role; not one that expired, was made for another incident, or was touched."""
    vm = replace(incident("shop/db/0", at=900.0), detail="<script>alert(1)</script>")
    await site.journal.save_incident(vm)
    await site.journal.save_incident(incident("shop/db/1", at=900.0))
    await site.journal.append_event(Event(950.0, "operation.step", "shop/db/0", "fenced & <b>deleted</b>"))
    await site.journal.append_event(Event(950.0, "operation.step", "shop/db/1", "another's"))
    address = links.link("", ADMIN, vm.key, 1000.0) or links.link("http://x", ADMIN, vm.key, 1000.0)[len("http://x") :]
    stranger = {"Authorization": ""}
    opened = await site.http.get(address, headers=stranger)
    assert opened.status_code == 200, opened.text
    assert opened.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in opened.headers["content-security-policy"]
    assert (opened.headers["referrer-policy"], opened.headers["cache-control"]) == ("no-referrer", "no-store")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in opened.text
    assert "fenced &amp; &lt;b&gt;deleted&lt;/b&gt;" in opened.text
    assert "<script" not in opened.text
    assert "another&#x27;s" not in opened.text
    for shown in (vm.title, "1970-01-01 00:15:00 UTC", vm.next_step, vm.key):
        assert html.escape(shown, quote=True) in opened.text
    expired = links.link("http://x", ADMIN, vm.key, 1000.0 - links.VALID_SECONDS)[len("http://x") :]
    for wrong in (
        address.replace("db%2F0", "db%2F1"),
        address.replace("until=", "until=9"),
        address[:-1],
        expired,
        "/incident?key=" + vm.key,
    ):
        refused = await site.http.get(wrong, headers=stranger)
        assert (refused.status_code, vm.title in refused.text) == (401, False), wrong
        assert refused.headers["referrer-policy"] == "no-referrer"
    for token in (READER, ADMIN):
        found = await site.http.get("/incident", params={"key": vm.key}, headers={"Authorization": f"Bearer {token}"})
        assert found.status_code == 200
    assert (await site.http.get("/incident", params={"key": "nothing"})).status_code == 404
    assert (await site.http.post("/incident", params={"key": vm.key})).status_code == 405
    only_this = await site.http.get("/v1/incidents?" + address.partition("?")[2], headers=stranger)
    assert only_this.status_code == 401


async def test_a_maintenance_window_is_added_listed_and_ended(site: Site) -> None:
    """Once or weekly, with who and why in the timeline; durable, so that another monitor's journal has it too; those
    of the configuration file are listed beside them."""
    once = await site.http.post("/v1/maintenance", json={"seconds": 3600, "because": "new switches"})
    assert once.status_code == 201, once.text
    wish = {"day": "sunday", "at": "02:00", "seconds": 7200, "because": "backups"}
    weekly = await site.http.post("/v1/maintenance", json=wish)
    assert weekly.status_code == 201, weekly.text
    other = Journal(site.journal._bus, lambda: 0.0)
    await other.open()
    assert {each.window for each in other.maintenance().values()} == {
        OnceWindow(1000.0, 4600.0, "new switches"),
        WeeklyWindow(6, 7200, 7200.0, "backups"),
    }
    ended = await site.http.post(f"/v1/maintenance/{weekly.json()['id']}/end", json={"because": "moved"})
    assert ended.status_code == 200, ended.text
    again = await site.http.post(f"/v1/maintenance/{weekly.json()['id']}/end", json={})
    assert again.status_code == 409
    assert (await site.http.post("/v1/maintenance/nothing/end", json={})).status_code == 404
    listed = (await site.http.get("/v1/maintenance")).json()["windows"]
    assert [(each["from"], each["open"], each["over"], each["because"]) for each in listed] == [
        ("a person", True, False, "new switches"),
        ("a person", False, True, "backups"),
        ("the configuration file", False, False, "backups"),
    ]
    await other.reload()
    assert [each.window.reason for each in other.maintenance().values() if each.ended_at is None] == ["new switches"]
    assert len(site.windows_changed) == 3
    found = [each for each in await site.events() if each["kind"].startswith("maintenance.")]
    assert [(each["kind"], each["fields"]["by"], each["fields"]["because"]) for each in found] == [
        ("maintenance.added", "ada (admin)", "new switches"),
        ("maintenance.added", "ada (admin)", "backups"),
        ("maintenance.ended", "ada (admin)", "moved"),
    ]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"because": "x"}, 422),
        ({"seconds": 3600}, 422),
        ({"seconds": 3600, "because": " "}, 409),
        ({"seconds": 1, "because": "x"}, 409),
        ({"seconds": 91 * 86400, "because": "x"}, 409),
        ({"seconds": 60, "start": 100, "because": "x"}, 409),
        ({"seconds": 60, "start": 1e9, "because": "x"}, 409),
        ({"seconds": 60, "day": "sunday", "because": "x"}, 422),
        ({"seconds": 60, "day": "someday", "at": "02:00", "because": "x"}, 422),
        ({"seconds": 60, "day": "daily", "at": "24:00", "because": "x"}, 422),
        ({"seconds": 60, "day": "daily", "at": "02:00", "start": 2000, "because": "x"}, 422),
        ({"seconds": 25 * 3600, "day": "daily", "at": "02:00", "because": "x"}, 409),
    ],
)
async def test_a_maintenance_window_has_an_end_and_a_reason(site: Site, body: dict[str, Any], status: int) -> None:
    """Or, weekly, hours and a reason; anything else is refused, and nothing is written."""
    reply = await site.http.post("/v1/maintenance", json=body)
    assert reply.status_code == status, reply.text
    assert site.journal.maintenance() == {}


async def test_a_failing_channel_shows_in_healthz(site: Site) -> None:
    """The monitor is well; that somebody is not told stands beside it."""
    site.alerting.set_policy(
        replace(Policy(), alerts=AlertPolicy(group_wait_seconds=0.0, circuit_after=1, retry_first_seconds=60.0))
    )
    await until(lambda: site.alerting.desk is not None)
    site.channels[0].down = refused("535 wrong password")
    site.alerting.see(incident("shop/db/0", at=1000.0))
    expected = ["channel mail: cannot deliver: 535 wrong password; 0 wait"]
    await until(lambda: site.alerting.warnings() == expected, what="what was refused waits no more")
    assert (await site.http.get("/healthz")).json()["warnings"] == expected
    views = (await site.http.get("/v1/alerts/channels")).json()["channels"]
    assert [(each["name"], each["state"]) for each in views] == [("mail", "failing"), ("pager", "works")]


async def test_disks_are_listed_kept_and_given_up(site: Site) -> None:
    """An instance's disk with what its agent says of it, and an orphan; people may keep the orphan or let it go, and
    nothing else."""
    record = await site.with_instance()
    disk = DiskBinding(DiskName("data"), "shop-db-0-data", 1000, DiskCid("disk-1"), made_at=500.0)
    await site.journal.save_instance(replace(record, disks=(disk,)), record)
    cloud = record.group.cloud
    await site.journal.save_orphan(
        OrphanDisk(cloud, "shop-db-0-logs", DiskCid("disk-2"), DiskName("logs"), 10, "ext4", SHOP_DB, 900.0)
    )
    used, orphan = (await site.http.get("/v1/disks")).json()["disks"]
    assert (used["cid"], used["role"], used["percent"], used["instance"]) == ("disk-1", "in use", 42.0, SHOP_DB)
    assert (orphan["cid"], orphan["role"], orphan["kept_until"]) == ("disk-2", "orphan", 900.0 + 5 * 86400.0)
    kept = await site.http.post("/v1/disks/disk-2/keep", json={"seconds": 60, "because": "audit"})
    assert kept.status_code == 200
    assert (await site.http.get("/v1/disks")).json()["disks"][1]["kept_until"] == 1060.0
    not_that = await site.http.post("/v1/disks/disk-1/delete", json={})
    assert not_that.status_code == 409
    assert (await site.http.post("/v1/disks/disk-9/delete", json={})).status_code == 404
    assert (await site.http.post("/v1/disks/disk-2/keep", json={"seconds": -1})).status_code == 422
    assert (await site.http.post("/v1/disks/disk-2/delete", json={})).status_code == 202
    assert (await site.http.get("/v1/disks")).json()["disks"][1]["kept_until"] == 1000.0
    wish = {"instance": SHOP_DB, "disk": "data", "because": "before the upgrade"}
    refused = await site.http.post("/v1/disks/snapshots", json=wish)
    assert (refused.status_code, "has no snapshots" in refused.text) == (409, True)
    assert (await site.http.post("/v1/disks/snapshots", json={**wish, "instance": "shop/db/9"})).status_code == 404
    assert (await site.http.post("/v1/disks/snapshots", json={**wish, "seconds": -1})).status_code == 422
    reader = {"Authorization": f"Bearer {READER}"}
    assert (await site.http.post("/v1/disks/snapshots", json=wish, headers=reader)).status_code == 403
    assert (await site.http.post("/v1/disks/disk-2/keep", json={}, headers=reader)).status_code == 403
    assert [event["kind"] for event in await site.events()][-2:] == ["operator.disk_kept", "operator.disk_deleted"]
