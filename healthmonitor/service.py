"""The health monitor as one process: its parts put together, run, reloaded, ended.

Laws:
- The API answers from the first moment, also while the bus is not there: then `/healthz` says what is missing.
- SIGHUP reads the configuration anew; one with errors changes nothing. SIGTERM gives the lease back and ends.
- A part that fails ends the process, to be started again by whoever supervises it: half a monitor is worse than none.

This and `__main__` know every class; nothing else does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, generate_latest

from healthmonitor.agent_client import AgentClient
from healthmonitor.alert_actions import AlertActions
from healthmonitor.api import Api, ApiParts, Role
from healthmonitor.api_server import ApiServer
from healthmonitor.bus_alarm import NoteInFile
from healthmonitor.channels.build import build_channels
from healthmonitor.channels.channel import Channel
from healthmonitor.channels.log import LogChannel
from healthmonitor.channels.reach import reach_all
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.clouds.registry import LOCAL_PROVIDERS, build_cloud, stemcell_directory
from healthmonitor.clouds.stemcell import current_digest, stored
from healthmonitor.configuration_file import LoadedConfiguration, load_configuration
from healthmonitor.core.configuration import CloudConfiguration, Configuration, differences_needing_restart
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.maintenance_changes import name_of_open
from healthmonitor.core.notifying.desk import Rules
from healthmonitor.core.notifying.links import link
from healthmonitor.core.presence import Presence, Roster
from healthmonitor.core.records import InstanceRecord
from healthmonitor.disk_actions import DiskActions
from healthmonitor.ears import SystemEvents
from healthmonitor.image_actions import ImageActions
from healthmonitor.image_store import ImageStore
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership, Manners
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.metrics import MonitorMetrics
from healthmonitor.monitor import Monitor
from healthmonitor.monitors import Monitors, Standing
from healthmonitor.operator_actions import OperatorActions
from healthmonitor.presence import Presences
from healthmonitor.resurrector import Resurrector
from healthmonitor.site_state import LOOP_LATE_SECONDS, SiteState
from healthmonitor.version import VERSION
from protocol import nats_bus
from protocol.bus import BusUnavailable
from protocol.heartbeat import DiskReport
from protocol.ids import AgentId, CloudName, MonitorId
from protocol.settings import BusSettings
from protocol.systemd_notify import SystemdNotify

log = structlog.get_logger("service")

JOURNAL_RETRY_SECONDS = 0.5
STILL_WAITING_SECONDS = 10.0
COLLECTED_AT = (2_000, 10, 20)
"""The collector's thresholds (objects, then times). A loss makes hundreds of thousands of small values, nearly none of
them part of a cycle; at Python's own 700 the collector would run hundreds of times a second for nothing."""


class Stopped(Exception):
    """Somebody asked the monitor to end."""


class Service:
    """`build` makes clouds; `crash_point(name)` is called after each journal write and cloud call (tests end there)."""

    def __init__(
        self,
        loaded: LoadedConfiguration,
        path: Path,
        notify: SystemdNotify,
        build: Callable[[CloudConfiguration], Cloud] | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._loaded = loaded
        self._path = path
        self._notify = notify
        state = Path(loaded.configuration.state_dir)
        self._build = build or (lambda cloud: build_cloud(cloud, state))
        self._crash_point = crash_point
        self._stopping = asyncio.Event()
        self._journal_is_open = False
        self._unreachable: Mapping[str, str] = {}

    @property
    def configuration(self) -> Configuration:
        return self._loaded.configuration

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. ManifestErrors when a cloud cannot be made of its options."""
        configuration = self.configuration
        self._unreachable = await self._reach(self._loaded)
        clouds = {name: self._build(cloud) for name, cloud in configuration.clouds.items()}
        bus = await nats_bus.NatsBus.open(
            self._loaded.monitor_bus, f"resurgam-{configuration.monitor}", configuration.bus.replicas
        )
        system = self._loaded.system_bus
        system_bus = None if system is None else await nats_bus.NatsBus.open(system, "resurgam-system-events")
        try:
            await self._serve(bus, None if system_bus is None else nats_bus.SystemEvents(system_bus), clouds)
        finally:
            for cloud in clouds.values():
                await cloud.close()
            if system_bus is not None:
                await system_bus.close()
            await bus.close()

    async def _serve(
        self, bus: nats_bus.NatsBus, system_events: SystemEvents | None, clouds: Mapping[CloudName, Cloud]
    ) -> None:
        configuration = self.configuration
        policy, monitor_id = configuration.policy, MonitorId(configuration.monitor)
        loop = asyncio.get_running_loop()
        journal = Journal(bus, time.time, policy.resurrection)
        agents = AgentClient(bus, monitor_id, new_id)
        fleet = Fleet(policy.liveness, loop.time())
        own = self._own_presence()
        roster = Roster(own.monitor, own.incarnation, policy.leadership)

        def why_not_warm() -> str:
            if not self._journal_is_open:
                return "reads the journal"
            if not bus.connected:
                return "has lost the bus"
            return monitor.judgement.cannot_tell if monitor.turns else "just started"

        leadership = Leadership(
            bus,
            monitor_id,
            policy.leadership,
            own.incarnation,
            own.address,
            VERSION,
            time.time,
            Manners(lambda newest: roster.someone_is_ready(loop.time(), newest), lambda: not why_not_warm()),
        )
        standing = Standing(why_not_warm, lambda: fleet.verdicts()[Verdict.ALIVE])
        monitors = Monitors(own, roster, leadership, journal, standing, policy.leadership, loop.time)
        presences = Presences(
            bus,
            roster,
            monitors.present,
            policy.leadership,
            leadership.wake,
            leadership.in_touch,
            lambda: self.configuration.policy.liveness.heartbeat_interval_seconds,
        )
        leadership.on_change(lambda leads: presences.announce())
        leadership.on_given_back(presences.announce)
        resurrector = Resurrector(
            journal,
            clouds,
            agents,
            fleet,
            leadership,
            policy,
            time.time,
            new_id,
            self._agent_bus,
            os.urandom,
            lambda deployment: name_of_open(
                self.configuration.maintenance, journal.maintenance().values(), time.time()
            ),
            self._crash_point,
            lambda: self._loaded.registries,
            self._stemcell_version,
        )
        monitor = Monitor(
            bus=bus,
            fleet=fleet,
            journal=journal,
            agents=agents,
            clouds=clouds,
            channels=self._channels(self._loaded),
            rules=_rules(configuration),
            resurrector=resurrector,
            leadership=leadership,
            policy=policy,
            monitor_id=monitor_id,
            unix_time=time.time,
            new_id=new_id,
            system_events=system_events,
            beside=monitors.deviations,
            alarm_note=NoteInFile(Path(configuration.state_dir) / f"bus-lost-{monitor_id}.json"),
            link=lambda key: link(self.configuration.http.public_url, self._signs_links(), key, time.time()),
        )
        store = ImageStore(
            bus,
            Path(configuration.state_dir) / "image-uploads",
            lambda: self.configuration.policy.images.store_max_bytes,
        )
        monitor.alerting.unreachable(self._unreachable)
        figures = CollectorRegistry()
        figures.register(MonitorMetrics(monitor, leadership.is_leader, monitors.states, lambda: store.figures))
        state = SiteState(
            configuration.monitor,
            lambda: bus.connected,
            lambda: self._journal_is_open,
            leadership,
            monitor,
            lambda: fleet.own.canary_silent_seconds(loop.time()),
            lambda: self.configuration.policy.liveness.canary_lost_seconds,
            loop.time,
            lambda: self.configuration.policy.resurrection.enabled,
            lambda: generate_latest(figures),
            lambda: fleet.strangers(loop.time()),
            monitors.reasons_unhealthy,
        )
        intake = ManifestIntake(
            journal,
            lambda: clouds.keys(),
            self._stemcells,
            lambda: {name: cloud.disk_abilities for name, cloud in clouds.items()},
            lambda record: _disk_reports(fleet, record),
        )
        actions = OperatorActions(journal, resurrector, agents, state, intake, time.time)
        alerts = AlertActions(journal, monitor.alerting, state, time.time, new_id)

        def maintenance_changed() -> None:
            monitor.alerting.look_again()
            resurrector.wake()

        maintenance = MaintenanceActions(
            journal, state, lambda: self.configuration.maintenance, time.time, new_id, maintenance_changed
        )
        images = ImageActions(store, journal, state, time.time)
        disks = DiskActions(
            journal,
            state,
            clouds,
            lambda record: _disk_reports(fleet, record),
            lambda: resurrector.policy.disks.keep_orphans_seconds,
            time.time,
            resurrector.wake,
        )
        parts = ApiParts(
            journal=journal,
            actions=actions,
            fleet=fleet,
            monitor=state,
            leader=state,
            manifests=intake,
            tokens=self._tokens,
            signs_links=self._signs_links,
            alerts=alerts,
            maintenance=maintenance,
            monitors=monitors,
            images=images,
            unix_time=time.time,
            disks=disks,
            progress=resurrector.progress,
            full_in_seconds=monitor.full_in_seconds,
        )
        api = Api(parts)
        server = ApiServer(api.application(), configuration.http.host, configuration.http.port)

        reload_asked = asyncio.Event()

        async def reload_when_asked() -> None:
            while True:
                await reload_asked.wait()
                reload_asked.clear()
                await self._reload(monitor, resurrector)

        loop.add_signal_handler(signal.SIGHUP, reload_asked.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.run(), name="api")
                tasks.create_task(self._watch(monitor), name="watchdog")
                tasks.create_task(self._until_stopped(server, serving), name="stop")
                tasks.create_task(reload_when_asked(), name="reload")
                tasks.create_task(monitor.alerting.run(), name="alerting")
                tasks.create_task(presences.run(), name="presences")
                await self._open(journal, agents)
                log.info("ready", monitor=monitor_id, api=own.address, clouds=list(clouds))
                self._notify.ready(f"monitor {monitor_id}, API {own.address}")
                tasks.create_task(leadership.run(), name="leadership")
                tasks.create_task(resurrector.run(), name="resurrector")
                tasks.create_task(monitor.run(), name="monitor")
                tasks.create_task(store.run(), name="image-store")
        except* Stopped:
            log.info("ended")
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            await agents.close()

    def _own_presence(self) -> Presence:
        http = self.configuration.http
        address = f"http://{_in_url(http.host)}:{http.port}"
        return Presence(self.configuration.monitor, new_id(), version=VERSION, address=address, started_at=time.time())

    async def _open(self, journal: Journal, agents: AgentClient) -> None:
        """Waits for the bus for as long as it takes."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        await agents.open()
        while True:
            try:
                await _read(journal)
                break
            except BusUnavailable as error:
                if loop.time() - told_at >= STILL_WAITING_SECONDS:
                    told_at = loop.time()
                    log.warning("waiting for the bus", urls=self._loaded.monitor_bus.urls, error=str(error))
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
        for corrupt in journal.corrupt():
            log.error("record cannot be read", bucket=corrupt.bucket, key=corrupt.key, error=str(corrupt))
        # Records are there to stay: the collector need not walk through hundreds of thousands of them again and again,
        # nor through the mapping of them that every turn is given
        journal.instances()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECTED_AT)
        self._journal_is_open = True

    async def _until_stopped(self, server: ApiServer, serving: asyncio.Task[None]) -> None:
        await self._stopping.wait()
        self._notify.stopping()
        log.info("ending")
        server.stop()
        await asyncio.wait({serving})
        raise Stopped

    async def _watch(self, monitor: Monitor) -> None:
        """Tells systemd that all is well only while the monitor's loop turns."""
        seconds = self._notify.watchdog_seconds
        if not seconds:
            return
        while True:
            await asyncio.sleep(seconds / 3)
            waits_for_bus = not self._journal_is_open
            if waits_for_bus or asyncio.get_running_loop().time() - monitor.last_turn_at < LOOP_LATE_SECONDS:
                self._notify.alive("waiting for the bus" if waits_for_bus else f"turn {monitor.turns}")

    async def _reload(self, monitor: Monitor, resurrector: Resurrector) -> None:
        try:
            loaded = await asyncio.to_thread(load_configuration, self._path)
            unreachable = await self._reach(loaded)
            channels = self._channels(loaded)
        except ManifestErrors as errors:
            log.error("configuration not reloaded, the former one holds", errors=str(errors).splitlines())
            return
        needing_restart = differences_needing_restart(self.configuration, loaded.configuration)
        self._loaded = loaded
        monitor.set_policy(loaded.configuration.policy)
        monitor.alerting.set_channels(channels, _rules(loaded.configuration))
        monitor.alerting.unreachable(unreachable)
        resurrector.set_policy(loaded.configuration.policy)
        log.info("configuration reloaded", needs_restart=list(needing_restart) or None)

    async def _reach(self, loaded: LoadedConfiguration) -> Mapping[str, str]:
        """Channels whose servers are not there. Raises ManifestErrors when one is and is not trusted."""
        channels = self._channels(loaded)
        try:
            reached = await reach_all(channels, loaded.configuration.channels, str(self._path))
        finally:
            for channel in channels:
                await channel.close()
        if reached.errors:
            raise ManifestErrors(reached.errors)
        for name, why in reached.unreachable.items():
            log.warning("channel.unreachable", channel=name, error=why, next="starting all the same; it is tried again")
        return reached.unreachable

    def _channels(self, loaded: LoadedConfiguration) -> Sequence[Channel]:
        """Without any configured, the log is the channel. Raises ManifestErrors."""
        configuration = loaded.configuration
        if not configuration.channels:
            return [LogChannel("log")]
        return build_channels(configuration.channels, str(self._path), time.time, os.environ)

    # What the parts ask for; a reload changes the answers.

    def _agent_bus(self, agent: AgentId) -> BusSettings:
        return self._loaded.agent_bus

    def _tokens(self) -> Mapping[str, Role]:
        secrets = self._loaded.secrets
        known = {secrets.http_reader_token: Role.READER, secrets.http_token: Role.ADMIN}
        return {token: role for token, role in known.items() if token}

    def _signs_links(self) -> str:
        return self._loaded.secrets.http_token

    def _stemcell_version(self, cloud: CloudName, stemcell: str) -> str:
        configured = self.configuration.clouds.get(cloud)
        if configured is None or configured.provider not in LOCAL_PROVIDERS:
            return ""
        return current_digest(stemcell_directory(configured, Path(self.configuration.state_dir)), stemcell)

    def _stemcells(self) -> Mapping[str, Collection[str]]:
        """Of the clouds whose stemcells lie on this machine; others know only themselves."""
        state = Path(self.configuration.state_dir)
        return {
            name: [stemcell.manifest.name for stemcell in stored(stemcell_directory(cloud, state))]
            for name, cloud in self.configuration.clouds.items()
            if cloud.provider in LOCAL_PROVIDERS
        }


async def _read(journal: Journal) -> None:
    """What is read are hundreds of thousands of objects in a big fleet, all of them to stay: the collector is not to
    look through them as they come."""
    collects = gc.isenabled()
    gc.disable()
    try:
        await journal.open()
    finally:
        if collects:
            gc.enable()


def _disk_reports(fleet: Fleet, record: InstanceRecord) -> Sequence[DiskReport]:
    heartbeat = fleet.last_heartbeat(record.vm.agent_id) if record.vm is not None else None
    return heartbeat.resurgam.disks if heartbeat is not None and heartbeat.resurgam is not None else ()


def _rules(configuration: Configuration) -> Rules:
    names = tuple(channel.name for channel in configuration.channels)
    delivery = {channel.name: channel.delivery for channel in configuration.channels if channel.delivery}
    return Rules(configuration.routes, names, configuration.maintenance, delivery)


def new_id() -> str:
    return uuid.uuid4().hex


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
