"""The real monitor on a real nats-server: heartbeats, disconnects, a lost bus, alerts, incidents in a real journal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from healthmonitor.agent_client import AgentClient
from healthmonitor.channels.channel import Notification, Receipt, Transition
from healthmonitor.clouds.cloud import Cloud, Power, VmObservation
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.policy import IncidentPolicy, LivenessPolicy, Policy
from healthmonitor.core.records import InstanceRecord, VmBinding
from healthmonitor.core.strays import Listed, Standing, Stray
from healthmonitor.journal import Journal
from healthmonitor.metrics import MonitorMetrics
from healthmonitor.monitor import Monitor
from protocol import alert, envelope, heartbeat, subjects
from protocol.alert import Alert
from protocol.bus import BusUnavailable, Message
from protocol.heartbeat import (
    ContainerReport,
    ContainerState,
    EngineState,
    Extension,
    Heartbeat,
    Reason,
)
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    Generation,
    InstanceId,
    MonitorId,
    Revision,
    VmCid,
)
from protocol.nats_bus import NatsBus, SystemEvents
from protocol.settings import BusSettings
from protocol.spec import ContainerSpec
from protocol.subjects import AgentMessage
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until

LIVENESS = LivenessPolicy(
    heartbeat_interval_seconds=0.5,
    lease_seconds=2.0,
    late_seconds=0.5,
    ask_timeout_seconds=0.3,
    suspect_after_seconds=0.8,
    start_grace_seconds=2.0,
    canary_interval_seconds=0.2,
    canary_lost_seconds=1.5,
    loop_lag_seconds=1.0,
)
POLICY = Policy(liveness=LIVENESS, incidents=IncidentPolicy(container_after_seconds=0.2), turn_seconds=0.1)
REDIS = ContainerSpec(ContainerName("redis"), "redis:7")
MONITOR = MonitorId("m1")


class FakeAgent:
    """An agent on a connection of its own: beats, answers pings, and can be killed, frozen and thawed."""

    def __init__(self, server: NatsServer, n: int) -> None:
        self.id = AgentId(f"agent-{n}")
        self.instance = InstanceId(f"shop/db/{n}")
        self.containers = (ContainerReport("redis", ContainerState.RUNNING),)
        self.frozen = False
        self._server = server
        self._bus: NatsBus | None = None
        self._task: asyncio.Task[None] | None = None
        self._booted = time.monotonic() - 1000
        self._sequence = 0

    async def start(self) -> None:
        self._bus = await NatsBus.open(BusSettings((self._server.url,)), self.id)
        await self._bus.wait_connected(5)
        await self._bus.subscribe(subjects.to_agent(self.id), self._asked)
        self._task = asyncio.create_task(self._beat())

    async def kill(self) -> None:
        if self._task is not None and self._bus is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            await self._bus.close()
            self._task = None

    async def publish(self, kind: AgentMessage, payload: bytes) -> None:
        assert self._bus is not None
        await self._bus.publish(subjects.to_monitor(kind, self.id), payload)

    async def _beat(self) -> None:
        while True:
            self._sequence += 1
            if not self.frozen:
                said = Extension(
                    generation=1,
                    revision=1,
                    sequence=self._sequence,
                    boot_id=f"boot-{self.id}",
                    sent_at_seconds=time.monotonic() - self._booted,
                    instance=self.instance,
                    engine=EngineState.UP,
                    containers=self.containers,
                )
                # as a real agent: what cannot be sent is not kept to be sent late
                with contextlib.suppress(BusUnavailable):
                    await self.publish(
                        AgentMessage.HEARTBEAT, heartbeat.encode(Heartbeat(job_state="running", resurgam=said))
                    )
            await asyncio.sleep(LIVENESS.heartbeat_interval_seconds)

    def _asked(self, message: Message) -> None:
        if self.frozen:
            return
        request = envelope.decode_request(message.payload)
        answer = {
            **cast("dict[str, Any]", request.arguments[0]),
            "boot_id": f"boot-{self.id}",
            "uptime_seconds": time.monotonic() - self._booted,
        }
        assert self._bus is not None
        self._answering = asyncio.ensure_future(self._bus.publish(request.reply_to, envelope.encode_value(answer)))


class FakeCloud:
    """Says what it is told to say of each VM."""

    name = CloudName("local")

    def __init__(self) -> None:
        self.power: dict[VmCid, Power] = {}
        self.observed = 0

    async def observe(self, vm: VmCid) -> VmObservation:
        self.observed += 1
        return VmObservation(self.power.get(vm, Power.RUNNING), "as told")


class RecordingChannel:
    name = "recording"

    def __init__(self) -> None:
        self.told: list[tuple[str, Transition]] = []

    async def deliver(self, notification: Notification) -> Receipt:
        self.told.extend((item.incident.key, notification.transition) for item in notification.items)
        return Receipt("written down")

    async def reach(self) -> None:
        return None

    async def close(self) -> None:
        """Nothing to close."""


class RecordingResurrector:
    def __init__(self) -> None:
        self.judgement = Judgement(0.0)
        self.ever_missing: set[InstanceId] = set()
        self.found: tuple[Stray, ...] | None = ()

    def strays(self) -> tuple[Stray, ...] | None:
        return self.found

    def take_losses(self) -> tuple[()]:
        return ()

    def set_judgement(self, judgement: Judgement) -> None:
        self.judgement = judgement
        self.ever_missing.update(judgement.missing)


class Leading:
    def __init__(self) -> None:
        self.leads = True

    def is_leader(self) -> bool:
        return self.leads


@dataclass
class Site:
    server: NatsServer
    agents: list[FakeAgent]
    cloud: FakeCloud = field(default_factory=FakeCloud)
    channel: RecordingChannel = field(default_factory=RecordingChannel)
    resurrector: RecordingResurrector = field(default_factory=RecordingResurrector)
    leading: Leading = field(default_factory=Leading)

    def record(self, agent: FakeAgent) -> InstanceRecord:
        index = int(agent.id.rsplit("-", 1)[1])
        return InstanceRecord(
            instance=agent.instance,
            deployment=DeploymentName("shop"),
            index=index,
            group=InstanceGroup("db", 3, VmSize(), "debian-12", self.cloud.name, (), (REDIS,), UpdatePolicy()),
            deployment_revision=Revision(1),
            revision=Revision(1),
            generation=Generation(1),
            vm=VmBinding(agent.id, Generation(1), f"key-{index}", VmCid(f"vm-{index}")),
        )

    @contextlib.asynccontextmanager
    async def monitor(self, prepare: bool = True) -> AsyncIterator[tuple[Monitor, Journal]]:
        """A monitor on connections of its own, until the block ends."""
        bus = await NatsBus.open(BusSettings((self.server.url,)), "monitor")
        system = await NatsBus.open(
            BusSettings((self.server.url,), self.server.system_user, self.server.system_password), "monitor-system"
        )
        await bus.wait_connected(5)
        await system.wait_connected(5)
        journal = Journal(bus, time.time)
        await journal.open()
        if prepare:
            for agent in self.agents:
                await journal.save_instance(self.record(agent), None)
        ids = (f"id-{n}" for n in itertools.count())
        client = AgentClient(bus, MONITOR, lambda: next(ids))
        await client.open()
        monitor = Monitor(
            bus=bus,
            fleet=Fleet(LIVENESS, asyncio.get_running_loop().time()),
            journal=journal,
            agents=client,
            clouds={self.cloud.name: cast("Cloud", self.cloud)},
            channels=[self.channel],
            resurrector=self.resurrector,
            leadership=self.leading,
            policy=POLICY,
            monitor_id=MONITOR,
            unix_time=time.time,
            new_id=lambda: next(ids),
            system_events=SystemEvents(system),
        )
        task = asyncio.create_task(monitor.run())
        try:
            yield monitor, journal
        finally:
            task.cancel()
            await asyncio.wait({task})
            await client.close()
            await bus.close()
            await system.close()
            if not task.cancelled():
                raise task.exception() or AssertionError("the monitor ended by itself")

    def told(self, transition: Transition) -> list[str]:
        return [key for key, what in self.channel.told if what is transition]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with nats_server(tmp_path) as server:
        site = Site(server, [FakeAgent(server, n) for n in range(3)])
        for agent in site.agents:
            await agent.start()
        try:
            yield site
        finally:
            for agent in site.agents:
                await agent.kill()


async def settled(monitor: Monitor, alive: int = 3) -> None:
    """All agents alive, and the start is over."""
    await until(lambda: not monitor.judgement.cannot_tell and monitor.fleet.verdicts()[Verdict.ALIVE] == alive)


async def test_a_killed_vm_is_known_in_a_fraction_of_a_lease(site: Site) -> None:
    """The server reports the disconnect, nobody listens on the agent's subject, the cloud says off: missing at once,
    an incident is opened, written and told; and resolved when it is back."""
    async with site.monitor() as (monitor, journal):
        await settled(monitor)
        victim = site.agents[0]
        site.cloud.power[VmCid("vm-0")] = Power.OFF
        began = time.monotonic()
        await victim.kill()
        await until(lambda: victim.instance in site.resurrector.judgement.missing)
        took = time.monotonic() - began
        assert took < LIVENESS.lease_seconds
        assert site.resurrector.judgement.missing[victim.instance].by_cloud
        key = f"vm_missing:{victim.instance}"
        await until(lambda: key in site.told(Transition.OPENED))
        assert journal.incidents()[key].resolved_at is None
        site.cloud.power.clear()
        await victim.start()
        await until(lambda: key in site.told(Transition.RESOLVED))
        assert journal.incidents()[key].resolved_at is not None
        kinds = [entry.event.kind for entry in await journal.last_events(100)]
        assert kinds.index("incident.opened") < kinds.index("incident.resolved")
        assert monitor.fleet.verdict(victim.id) is Verdict.ALIVE


async def test_a_frozen_vm_is_missing_after_its_lease(site: Site) -> None:
    """A VM that keeps its connection and says nothing is suspect, asked in vain, and missing when its lease is over."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        site.agents[1].frozen = True
        site.cloud.power[VmCid("vm-1")] = Power.PAUSED
        began = time.monotonic()
        await until(lambda: monitor.fleet.verdict(site.agents[1].id) is Verdict.SUSPECT)
        await until(lambda: site.agents[1].instance in site.resurrector.judgement.missing)
        took = time.monotonic() - began
        assert LIVENESS.lease_seconds - LIVENESS.heartbeat_interval_seconds <= took < LIVENESS.lease_seconds + 1.0
        assert site.cloud.observed


async def test_a_lost_bus_kills_nobody(site: Site) -> None:
    """While nats-server is away, and for a lease after it is back, nobody is missing; then all are alive."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        await site.server.stop(kill=True)
        await until(lambda: bool(monitor.judgement.cannot_tell))
        await until(lambda: monitor.fleet.verdict(site.agents[0].id) is Verdict.CANNOT_TELL)
        await site.server.start()
        await settled(monitor)
        assert not site.resurrector.ever_missing
        # On a busy machine one may have been suspect just before the bus was gone.
        assert not [key for key in site.told(Transition.OPENED) if not key.startswith(("bus_lost:", "vm_suspect:"))]


async def test_a_restart_of_the_monitor_alone_is_no_loss_and_keeps_incidents(site: Site) -> None:
    """An incident that was open when the monitor went is the same after its return, and is resolved when over."""
    loop_report = ContainerReport("redis", ContainerState.CRASH_LOOP, Reason.OOM_KILLED, restarts=7)
    site.agents[2].containers = (loop_report,)
    key = "container_not_running:shop/db/2/redis"
    async with site.monitor() as (monitor, journal):
        await until(lambda: key in site.told(Transition.OPENED))
        opened_at = journal.incidents()[key].opened_at
    async with site.monitor(prepare=False) as (monitor, journal):
        await settled(monitor)
        assert journal.incidents()[key].opened_at == opened_at
        site.agents[2].containers = (ContainerReport("redis", ContainerState.RUNNING),)
        await until(lambda: key in site.told(Transition.RESOLVED))
        assert site.channel.told == [(key, Transition.OPENED), (key, Transition.RESOLVED)]
    assert not site.resurrector.ever_missing


async def test_a_follower_judges_and_tells_nobody(site: Site) -> None:
    """A monitor that does not lead stays warm; when it leads, it opens what there is."""
    site.leading.leads = False
    async with site.monitor() as (monitor, journal):
        await settled(monitor)
        site.cloud.power[VmCid("vm-0")] = Power.OFF
        await site.agents[0].kill()
        await until(lambda: site.agents[0].instance in monitor.judgement.missing)
        assert not site.channel.told
        assert not journal.incidents()
        site.leading.leads = True
        await until(lambda: "vm_missing:shop/db/0" in site.told(Transition.OPENED))


async def test_a_left_over_vm_is_an_incident_until_it_is_known_to_be_gone(site: Site) -> None:
    """One that cannot be removed is told. A monitor that has only just begun to lead has not looked yet: that resolves
    nothing; a sweep without it does."""
    listed = Listed(site.cloud.name, VmCid("vm-9"), "shop-db-0-g1", {})
    site.resurrector.found = (Stray(listed, Standing.LEFT_OVER, "generation 1 of shop/db/0", "no proof"),)
    key = f"vm_left_over:{site.cloud.name}:vm-9"
    async with site.monitor() as (monitor, journal):
        await settled(monitor)
        await until(lambda: key in site.told(Transition.OPENED))
        site.resurrector.found = None
        turns = monitor.turns
        await until(lambda: monitor.turns > turns + 3)
        assert journal.incidents()[key].resolved_at is None
        site.resurrector.found = ()
        await until(lambda: key in site.told(Transition.RESOLVED))


async def test_an_agents_alert_is_an_event_and_is_told_once(site: Site) -> None:
    """BOSH's alerts are written and told; one that is sent again, with the same id, is the same."""
    async with site.monitor() as (monitor, journal):
        await settled(monitor)
        sent = alert.encode(Alert(title="redis - does not exist - restart", severity=1, created_at=1306076861, id="a1"))
        await site.agents[0].publish(AgentMessage.ALERT, sent)
        await site.agents[0].publish(AgentMessage.ALERT, sent)
        await site.agents[0].publish(AgentMessage.ALERT, b'{"title": 5}')
        await site.agents[0].publish(AgentMessage.ALERT, sent.replace(b"a1", b"a2"))
        await until(lambda: len(site.told(Transition.NOTED)) == 2)
        kinds = [entry.event.kind for entry in await journal.last_events(100)]
        assert kinds.count("incident.noted") == 2


async def test_a_meltdown_is_in_the_judgement_and_is_one_alarm(site: Site) -> None:
    """When all VMs are lost at once the judgement says meltdown; those missing are not alarms of their own."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        for n, agent in enumerate(site.agents):
            site.cloud.power[VmCid(f"vm-{n}")] = Power.OFF
            agent.frozen = True
        await asyncio.gather(*(agent.kill() for agent in site.agents))
        await until(lambda: len(site.resurrector.judgement.missing) == 3)
        assert set(site.resurrector.judgement.meltdowns) == {"fleet", "shop"}
        await until(lambda: "meltdown:fleet" in site.told(Transition.OPENED))


async def test_a_real_bosh_agent_is_heard_as_a_stranger(site: Site) -> None:
    """What a real bosh-agent sends is a heartbeat, and rubbish hurts nobody."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        bus = await NatsBus.open(BusSettings((site.server.url,)), "bosh")
        await bus.wait_connected(5)
        real = (
            b'{"deployment":"cf","job":null,"index":null,"job_state":"running","vitals":{"load":["0.1"]},"node_id":""}'
        )
        await bus.publish("hm.agent.heartbeat.bosh-1", real)
        await bus.publish("hm.agent.heartbeat.bosh-2", b"\xff\x00 not json")
        await bus.publish("hm.agent.shutdown.bosh-1", b"null")
        await until(lambda: [view.agent for view in monitor.fleet.strangers(time.monotonic())] == ["bosh-1"])
        assert monitor.fleet.counters.malformed == 1
        await bus.close()


async def test_a_reload_of_the_policy_holds_from_the_next_turn(site: Site) -> None:
    """A shorter lease set by a reload decides sooner."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        monitor.set_policy(replace(POLICY, liveness=replace(LIVENESS, lease_seconds=1.0, suspect_after_seconds=0.7)))
        site.agents[0].frozen = True
        began = time.monotonic()
        await until(lambda: site.agents[0].instance in site.resurrector.judgement.missing)
        assert time.monotonic() - began < LIVENESS.lease_seconds


async def test_metrics_tell_what_the_fleet_is(site: Site) -> None:
    """The scrape says how many VMs have which verdict, and counts what was heard."""
    async with site.monitor() as (monitor, _):
        await settled(monitor)
        registry = CollectorRegistry()
        registry.register(MonitorMetrics(monitor, lambda: True))
        text = generate_latest(registry).decode()
        assert 'resurgam_vms{verdict="alive"} 3.0' in text
        assert "resurgam_cannot_tell 0.0" in text
        assert registry.get_sample_value("resurgam_heartbeats_total", {"what": "received"}) == float(
            monitor.fleet.counters.heartbeats
        )
