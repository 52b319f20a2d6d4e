"""The person of a run: asks what people ask, at the worst moments, and does what the system asks of people.

Laws: a person asks the leader, again and again until it acknowledges; what it acknowledged is remembered. What the
system asks of people (end a pause, vouch for a VM after pulling its plug, deploy again after a failed rollout) is read
from its records, as people read it in `resurgam status`.

Does not know: the checkers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Protocol

from healthmonitor.core.records import Hold, RolloutState, Switches
from healthmonitor.operator_actions import ManifestUpload, OperatorActions
from healthmonitor.operator_actions import Person as Name
from protocol.ids import InstanceId, VmCid
from tests.simulation import manifests
from tests.simulation.centre import MonitorProcess
from tests.simulation.checkers import Records
from tests.simulation.cloud import SimulatedCloud
from tests.simulation.manifests import Shape
from tests.simulation.nemesis import Fault, FaultKind
from tests.simulation.story import Trace, Voice
from tests.simulation.vm import Machine

NAME = Name("admin", "ada")
ASK_SECONDS = 20.0
ANSWER_SECONDS = 30.0
SHORT_OF_PATIENCE = 5
"""Tries of a whim; what must be is asked for more often."""


class Surroundings(Protocol):
    """The world, as far as a person reaches."""

    trace: Trace
    monitors: list[MonitorProcess]
    fleet_of_machines: dict[VmCid, Machine]

    @property
    def cloud(self) -> SimulatedCloud: ...

    def records(self) -> Records: ...

    def switches(self) -> Switches: ...


class Person:
    """`wanted`: deployment → the manifest that was asked for last. `acknowledged`: the last that an acknowledgement
    came for, with nothing else asked since; None when that is not known."""

    def __init__(self, world: Surroundings, shape: Shape) -> None:
        self.wanted: dict[str, str] = {}
        self.acknowledged: dict[str, str | None] = {}
        self._asking: dict[str, int] = {}
        self._world = world
        self._shape = shape

    async def deploy(self, name: str, text: str, tries: int = 60) -> bool:
        self.wanted[name] = text
        with self._asks_about(name):
            done = await self.ask(
                f"deploys {name}", lambda actions: actions.deploy(name, ManifestUpload(text), NAME, "", None), tries
            )
        alone = not self._asking[name] and self.wanted[name] == text
        self.acknowledged[name] = text if done and alone else None
        return done

    async def _delete(self, name: str, disks: bool) -> None:
        with self._asks_about(name):
            await self.ask(f"deletes {name}", lambda actions: actions.delete(name, disks, NAME, "whim"))
        self.acknowledged[name] = None

    @contextlib.contextmanager
    def _asks_about(self, name: str) -> Iterator[None]:
        """While it is asked, and until all that was asked beside it is answered, what stands is not known."""
        self._asking[name] = self._asking.get(name, 0) + 1
        self.acknowledged[name] = None
        try:
            yield
        finally:
            self._asking[name] -= 1

    async def ask(
        self, what: str, request: Callable[[OperatorActions], Awaitable[object]], tries: int = SHORT_OF_PATIENCE
    ) -> bool:
        """Whether it was acknowledged."""
        trace = self._world.trace
        trace.tell(Voice.PERSON, NAME.name, what)
        text = "nobody leads"
        for _ in range(tries):
            for monitor in list(self._world.monitors):
                if monitor.leads:
                    answer = monitor.ask(request, ASK_SECONDS)
                    await asyncio.wait({answer}, timeout=ANSWER_SECONDS)
                    text = answer.result() if answer.done() else "no answer"
                    if not text:
                        trace.tell(Voice.PERSON, NAME.name, f"{what}: acknowledged")
                        return True
            await asyncio.sleep(1.0)
        trace.tell(Voice.PERSON, NAME.name, f"{what}: gives up: {text}")
        return False

    async def begins(self) -> None:
        await self.deploy(manifests.DISKY, manifests.shop(self._shape))
        await self.deploy(manifests.SMALL, manifests.blog())

    async def whim(self, fault: Fault) -> None:
        """What a fault of the plan has the person do."""
        match fault.kind:
            case FaultKind.DEPLOYED:
                await self._reshape(version=fault.depth % 7)
            case FaultKind.SCALED:
                await self._reshape(
                    databases=max(1, self._shape.databases + (1 if fault.depth % 2 else -1)),
                    fronts=max(1, self._shape.fronts + (1 if fault.depth % 3 else -1)),
                )
            case FaultKind.RESIZED:
                if fault.depth % 2:
                    await self._reshape(disk_gib=min(self._shape.disk_gib + 1, 8))
                else:
                    await self._reshape(memory_gib=1 + self._shape.memory_gib % 3)
            case FaultKind.RECREATED:
                await self._with_an_instance("recreate", fault)
            case FaultKind.STOPPED:
                chosen = await self._with_an_instance("stop", fault)
                await asyncio.sleep(fault.lasts_seconds)
                await self._act("start", chosen)
            case FaultKind.IGNORED:
                chosen = await self._with_an_instance("ignore", fault)
                await asyncio.sleep(fault.lasts_seconds)
                await self._act("start", chosen)
            case FaultKind.PAUSED:
                await self.ask("pauses", lambda a: a.pause(fault.lasts_seconds, NAME, "whim"))
            case FaultKind.SWITCHED_OFF:
                await self.ask("switches off", lambda a: a.switch_resurrection(False, NAME, "whim"))
                await asyncio.sleep(fault.lasts_seconds)
                await self.ask("switches on", lambda a: a.switch_resurrection(True, NAME, "whim"), 60)
            case FaultKind.DELETED:
                await self._delete(manifests.SMALL, disks=fault.depth % 2 == 0)
                await asyncio.sleep(fault.lasts_seconds)
                await self.deploy(manifests.SMALL, manifests.blog(), SHORT_OF_PATIENCE)

    async def looks(self) -> None:
        """Does what the system asks of people, and says so in its records."""
        world, records, switches = self._world, self._world.records(), self._world.switches()
        if not switches.resurrection:
            await self.ask("switches resurrection on", lambda a: a.switch_resurrection(True, NAME, ""), 60)
        if switches.paused_until > world.monitors[0].unix_time():
            await self.ask("ends the pause", lambda a: a.resume(NAME, ""), 60)
        if any(operation.hold is Hold.MELTDOWN for operation in records.operations.values()):
            await self.ask("overrides the meltdown", lambda a: a.override_meltdown(3600.0, NAME, "looked"), 60)
        for instance, record in records.instances.items():
            if record.ignore:
                await self._act("start", instance)
        for instance, operation in records.operations.items():
            if operation.hold is Hold.UNFENCED and operation.old_vm is not None:
                self._pull_the_plug(operation.old_vm.key)
                await self.ask(
                    f"vouches for {operation.old_vm.key}",
                    lambda a, i=instance: a.confirm_fence(i, NAME, "pulled its plug"),  # type: ignore[misc]
                    tries=3,
                )
            if "is held by" in operation.error:
                self._detach_from_what_is_off()
        await self._deploys_again(records)

    async def _deploys_again(self, records: Records) -> None:
        names = {record.name for record in records.deployments}
        for name, text in list(self.wanted.items()):
            failed = any(
                record.name == name and (record.rollout is RolloutState.FAILED or record.manifest_text != text)
                for record in records.deployments
            )
            if name not in names or failed:
                await self.deploy(name, text)

    async def _reshape(
        self,
        databases: int | None = None,
        fronts: int | None = None,
        version: int | None = None,
        memory_gib: int | None = None,
        disk_gib: int | None = None,
    ) -> None:
        shape = self._shape
        self._shape = replace(
            shape,
            databases=databases or shape.databases,
            fronts=fronts or shape.fronts,
            version=shape.version if version is None else version,
            memory_gib=memory_gib or shape.memory_gib,
            disk_gib=disk_gib or shape.disk_gib,
        )
        await self.deploy(manifests.DISKY, manifests.shop(self._shape))

    async def _with_an_instance(self, action: str, fault: Fault) -> InstanceId | None:
        instances = sorted(self._world.records().instances)
        if not instances:
            return None
        chosen = instances[int(fault.target * len(instances))]
        await self._act(action, chosen)
        return chosen

    async def _act(self, action: str, instance: InstanceId | None) -> None:
        if instance is not None:
            await self.ask(f"asks to {action} {instance}", lambda a: a.act(action, instance, (), NAME, "whim"))

    def _pull_the_plug(self, key: str) -> None:
        for machine in self._world.fleet_of_machines.values():
            if machine.key == key:
                self._world.cloud.kill_vm(machine.vm_cid)

    def _detach_from_what_is_off(self) -> None:
        """In the cloud's console: a VM that the cloud forgot, and that is off, gives back its disks."""
        for vm in self._world.cloud.vms.values():
            if not vm.can_write:
                for disk in sorted(vm.attached):
                    self._world.trace.tell(Voice.PERSON, NAME.name, f"detaches {disk} from {vm.cid}, which is off")
                    vm.attached.discard(disk)
                    vm.half_attached.discard(disk)
                    vm.machine.detach(disk)
