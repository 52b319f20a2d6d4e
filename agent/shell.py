"""The agent put together: who hears of what.

Law: the parts know each other only through here. Heartbeats begin before anything that may take long, and the
supervisor is told what should run before the bus is there.

Does not know: how the parts are made (agent/__main__.py), Docker, NATS.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol

from agent.commands import Commands, explain
from agent.contact import CentreContact
from agent.copy_methods import Copies
from agent.core.heartbeat_content import Facts
from agent.desired_state import DesiredState
from agent.heartbeater import Heartbeater
from agent.image_tasks import FetchImages
from agent.methods import Disks, Methods
from agent.supervisor_port import SupervisorPort
from agent.tasks import Tasks
from agent.vitals import Vitals
from protocol.bus import Bus
from protocol.heartbeat import DiskReport
from protocol.ids import InstanceId
from protocol.settings import AgentSettings
from protocol.spec import InstanceSpec, OnIsolation, Wanted


class DisksPort(Disks, Protocol):
    """The disk keeper as the agent needs it; agent/disk_keeper.py is the real one, the simulation has another."""

    def set_wanted(self, spec: InstanceSpec | None, instance: InstanceId | None) -> None: ...

    def reports(self) -> tuple[DiskReport, ...]: ...

    async def run(self) -> None: ...


class AgentShell:
    def __init__(
        self,
        settings: AgentSettings,
        version: str,
        boot_id: str,
        bus: Bus,
        supervisor: SupervisorPort,
        desired: DesiredState,
        disks: DisksPort,
        copies: Copies,
        vitals: Vitals,
        boot_seconds: Callable[[], float],
        new_id: Callable[[], str],
        images: FetchImages | None = None,
        set_hostname: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`supervisor` is run by the caller. `boot_seconds`: CLOCK_BOOTTIME. `set_hostname`: for a spare that becomes
        somebody's."""
        self._settings = settings
        self._version = version
        self._boot_id = boot_id
        self._supervisor = supervisor
        self._desired = desired
        self._disks = disks
        self._vitals = vitals
        self._started = False
        self.heartbeater = Heartbeater(bus, settings.agent_id, self.facts, self._interval_seconds, boot_seconds)
        self.contact = CentreContact(bus, self._lease_seconds, self._on_isolation, supervisor.set_isolated)
        self._methods = Methods(
            agent=settings.agent_id,
            vm_cid=settings.vm_cid,
            version=version,
            bus=bus,
            supervisor=supervisor,
            desired=desired,
            disks=disks,
            copies=copies,
            heartbeater=self.heartbeater,
            facts=self.facts,
            boot_seconds=boot_seconds,
            tasks=Tasks(new_id, explain),
            images=images,
            set_hostname=set_hostname,
        )
        self._commands = Commands(bus, settings.agent_id, lambda: desired.generation, self._methods.table)
        supervisor.on_change(self.heartbeater.changed)
        desired.on_change(self._desired_changed)

    async def run(self, before_containers: Callable[[], Awaitable[object]] | None = None) -> None:
        """Until cancelled. `before_containers` (loading baked images) may take long: nothing else waits for it."""
        async with asyncio.TaskGroup() as group:
            self._methods.run_tasks_in(group)
            group.create_task(self.heartbeater.run(), name="heartbeater")
            group.create_task(self.contact.run(), name="contact")
            group.create_task(self._vitals.run(), name="vitals")
            group.create_task(self._commands.run(), name="commands")
            group.create_task(self._disks.run(), name="disks")
            self._desired_changed()  # whose VM this is, so that disks are mounted while images are loaded
            if before_containers is not None:
                await before_containers()
            self._started = True
            self._desired_changed()

    def facts(self) -> Facts:
        """From memory; the heartbeat is made of it."""
        report = self._supervisor.report()
        return Facts(
            generation=self._desired.generation,
            instance=self._desired.instance,
            spec=self._desired.spec,
            engine=report.engine,
            containers=report.containers,
            disks=self._disks.reports(),
            vitals=self._vitals.latest(),
            isolated=self.contact.isolated,
            draining=self._desired.drained,
            boot_id=self._boot_id,
            agent_version=self._version,
        )

    def _desired_changed(self) -> None:
        """What should run, to those who see to it."""
        spec = self._desired.spec
        self._disks.set_wanted(spec, self._desired.instance)
        if self._started:
            if spec is not None and self._desired.drained:
                # also after a restart of the agent: the centre is about to detach the disks
                spec = dataclasses.replace(spec, wanted=Wanted.STOPPED)
            self._supervisor.set_desired(spec)
        self.heartbeater.changed()

    def _interval_seconds(self) -> float:
        spec = self._desired.spec
        return max(0.05, spec.heartbeat_interval_seconds if spec else self._settings.heartbeat_interval_seconds)

    def _lease_seconds(self) -> float:
        spec = self._desired.spec
        return max(0.2, spec.lease_seconds if spec else self._settings.lease_seconds)

    def _on_isolation(self) -> OnIsolation:
        spec = self._desired.spec
        return spec.on_isolation if spec is not None else OnIsolation.KEEP
