"""The health monitor as one process: its parts put together, run, reloaded, ended.

Laws:
- The API answers from the first moment, also while the bus is not there: then `/healthz` says what is missing.
- SIGHUP reads the configuration anew; one with errors changes nothing. SIGTERM gives the lease back and ends.
- A part that fails ends the process, to be started again by whoever supervises it: half a monitor is worse than none.

This and `__main__` know every class; nothing else does.
"""

from __future__ import annotations

import asyncio
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
from healthmonitor.channels.build import build_channels
from healthmonitor.channels.channel import Channel
from healthmonitor.channels.log import LogChannel
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.clouds.registry import LOCAL_PROVIDERS, build_cloud, stemcell_directory
from healthmonitor.clouds.stemcell import stored
from healthmonitor.configuration_file import LoadedConfiguration, load_configuration
from healthmonitor.core.configuration import CloudConfiguration, Configuration, differences_needing_restart
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.maintenance import open_window
from healthmonitor.core.notifying.desk import Rules
from healthmonitor.core.records import InstanceRecord, VmBinding
from healthmonitor.ears import SystemEvents
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.metrics import MonitorMetrics
from healthmonitor.monitor import Monitor
from healthmonitor.operator_actions import OperatorActions
from healthmonitor.resurrector import Resurrector
from healthmonitor.site_state import LOOP_LATE_SECONDS, SiteState
from protocol import nats_bus
from protocol.bus import BusUnavailable
from protocol.ids import CloudName, DeploymentName, MonitorId
from protocol.settings import BusSettings
from protocol.systemd_notify import SystemdNotify

log = structlog.get_logger("service")

JOURNAL_RETRY_SECONDS = 0.5
STILL_WAITING_SECONDS = 10.0


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

    @property
    def configuration(self) -> Configuration:
        return self._loaded.configuration

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        """Until `stop`. ManifestErrors when a cloud cannot be made of its options."""
        configuration = self.configuration
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
        address = f"http://{_in_url(configuration.http.host)}:{configuration.http.port}"
        leadership = Leadership(bus, monitor_id, policy.leadership, incarnation=new_id(), address=address)
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
            self._maintenance,
            self._crash_point,
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
        )
        figures = CollectorRegistry()
        figures.register(MonitorMetrics(monitor, leadership.is_leader))
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
        )
        intake = ManifestIntake(journal, lambda: clouds.keys(), self._stemcells)
        actions = OperatorActions(journal, resurrector, agents, state, intake, time.time)
        alerts = AlertActions(journal, monitor.alerting, state, time.time, new_id)
        api = Api(ApiParts(journal, actions, fleet, state, state, intake, self._tokens, alerts, time.time))
        server = ApiServer(api.application(), configuration.http.host, configuration.http.port)

        def reload() -> None:
            self._reload(monitor, resurrector)

        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.run(), name="api")
                tasks.create_task(self._watch(monitor), name="watchdog")
                tasks.create_task(self._until_stopped(server, serving), name="stop")
                tasks.create_task(monitor.alerting.run(), name="alerting")
                await self._open(journal, agents)
                log.info("ready", monitor=monitor_id, api=address, clouds=list(clouds))
                self._notify.ready(f"monitor {monitor_id}, API {address}")
                tasks.create_task(leadership.run(), name="leadership")
                tasks.create_task(resurrector.run(), name="resurrector")
                tasks.create_task(monitor.run(), name="monitor")
        except* Stopped:
            log.info("ended")
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            await agents.close()

    async def _open(self, journal: Journal, agents: AgentClient) -> None:
        """Waits for the bus for as long as it takes."""
        loop = asyncio.get_running_loop()
        told_at = loop.time()
        await agents.open()
        while True:
            try:
                await journal.open()
                break
            except BusUnavailable as error:
                if loop.time() - told_at >= STILL_WAITING_SECONDS:
                    told_at = loop.time()
                    log.warning("waiting for the bus", urls=self._loaded.monitor_bus.urls, error=str(error))
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
        for corrupt in journal.corrupt():
            log.error("record cannot be read", bucket=corrupt.bucket, key=corrupt.key, error=str(corrupt))
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

    def _reload(self, monitor: Monitor, resurrector: Resurrector) -> None:
        try:
            loaded = load_configuration(self._path)
            channels = self._channels(loaded)
        except ManifestErrors as errors:
            log.error("configuration not reloaded, the former one holds", errors=str(errors).splitlines())
            return
        needing_restart = differences_needing_restart(self.configuration, loaded.configuration)
        self._loaded = loaded
        monitor.set_policy(loaded.configuration.policy)
        monitor.alerting.set_channels(channels, _rules(loaded.configuration))
        resurrector.set_policy(loaded.configuration.policy)
        log.info("configuration reloaded", needs_restart=list(needing_restart) or None)

    def _channels(self, loaded: LoadedConfiguration) -> Sequence[Channel]:
        """Without any configured, the log is the channel. Raises ManifestErrors."""
        configuration = loaded.configuration
        if not configuration.channels:
            return [LogChannel("log")]
        return build_channels(configuration.channels, str(self._path), time.time, os.environ)

    # What the parts ask for; a reload changes the answers.

    def _agent_bus(self, record: InstanceRecord, vm: VmBinding) -> BusSettings:
        return self._loaded.agent_bus

    def _maintenance(self, deployment: DeploymentName) -> str:
        window = open_window(self.configuration.maintenance, time.time())
        return "" if window is None else (window.reason or "maintenance")

    def _tokens(self) -> Mapping[str, Role]:
        secrets = self._loaded.secrets
        known = {secrets.http_reader_token: Role.READER, secrets.http_token: Role.ADMIN}
        return {token: role for token, role in known.items() if token}

    def _stemcells(self) -> Mapping[str, Collection[str]]:
        """Of the clouds whose stemcells lie on this machine; others know only themselves."""
        state = Path(self.configuration.state_dir)
        return {
            name: [stemcell.manifest.name for stemcell in stored(stemcell_directory(cloud, state))]
            for name, cloud in self.configuration.clouds.items()
            if cloud.provider in LOCAL_PROVIDERS
        }


def _rules(configuration: Configuration) -> Rules:
    names = tuple(channel.name for channel in configuration.channels)
    return Rules(configuration.routes, names, configuration.maintenance)


def new_id() -> str:
    return uuid.uuid4().hex


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
