"""What a step works with: the operation, the instance's record, the cloud, the agents, and time to wait.

Laws:
- After everything that was awaited it is asked anew whether this monitor still leads and the operation is still the
  one in the journal (`NotOurs` otherwise): whoever took over goes on, we stop. Asked again in the moment in which an
  agent is told something, because this process may have been stopped on the way there.
- A cloud call ends by its deadline; one that did not end in time has an unknown outcome (`CloudUnavailable`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from healthmonitor.agent_client import AgentClient
from healthmonitor.clouds.cloud import Cloud, CloudUnavailable, Reshaping
from healthmonitor.core.judgement import FleetView, Judgement
from healthmonitor.core.operation import Held, Outcome
from healthmonitor.core.policy import Policy, ResurrectionPolicy
from healthmonitor.core.progress import Progress, read_progress
from healthmonitor.core.records import InstanceRecord, Operation, VmBinding
from healthmonitor.journal import Journal
from protocol.ids import AgentId, CloudName, DeploymentName, InstanceId
from protocol.settings import BusSettings, RegistrySettings

T = TypeVar("T")


class NotOurs(Exception):
    """This monitor does not lead any more, or the operation was replaced: stop without a trace."""


class InstanceGone(Exception):
    """The operation's instance is not in the journal: there is nothing to do it with."""


class NoSuchCloud(Exception):
    """The instance's cloud is not in this monitor's configuration."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What all operations share."""

    journal: Journal
    clouds: Mapping[CloudName, Cloud]
    agents: AgentClient
    fleet: FleetView
    unix_time: Callable[[], float]
    new_id: Callable[[], str]
    random_bytes: Callable[[int], bytes]
    agent_bus_settings: Callable[[AgentId], BusSettings]
    registries: Callable[[], RegistrySettings]
    maintenance: Callable[[DeploymentName], str]
    is_leader: Callable[[], bool]
    crash_point: Callable[[str], None]
    cloud_turns: Mapping[CloudName, asyncio.Semaphore]
    stemcell_version: Callable[[CloudName, str], str]
    """Of a cloud's stemcell, as it is now; "" where that cannot be told."""


def lasting_properties(cloud: Cloud | None, properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those that a VM has to be made with: all of them, unless its cloud can give some later."""
    return cloud.lasting_properties(properties) if isinstance(cloud, Reshaping) else properties


class Present(Protocol):
    """What changes from moment to moment, as the resurrector has it."""

    @property
    def policy(self) -> Policy: ...

    @property
    def judgement(self) -> Judgement | None: ...

    def held_back(self, operation: Operation) -> Held | None:
        """Why this lost VM may not be rebuilt now; None when it may. Counts nothing."""
        ...

    async def admission(self, operation: Operation) -> Outcome:
        """May this lost VM be rebuilt now? Admitting counts."""
        ...

    def alive_again(self, instance: InstanceId) -> None: ...

    def note_progress(self, instance: InstanceId, progress: Progress | None) -> None:
        """How far its present step is; None when it is over."""
        ...


class StepContext:
    """Of one operation at one step."""

    def __init__(self, tools: Tools, present: Present, operation: Operation, woken: asyncio.Event) -> None:
        self.tools = tools
        self.present = present
        self.operation = operation
        self._woken = woken

    @property
    def policy(self) -> ResurrectionPolicy:
        return self.present.policy.resurrection

    @property
    def instance(self) -> InstanceId:
        return self.operation.instance

    def record(self) -> InstanceRecord:
        record = self.tools.journal.instance(self.operation.instance)
        if record is None:
            raise InstanceGone(f"{self.operation.instance} is not in the journal")
        return record

    def vm(self) -> VmBinding:
        """The VM that this operation made or updates."""
        vm = self.record().vm
        if vm is None:
            raise InstanceGone(f"{self.operation.instance} has no VM at step {self.operation.step.value}")
        return vm

    def cloud(self) -> Cloud:
        name = self.record().group.cloud
        cloud = self.tools.clouds.get(name)
        if cloud is None:
            known = ", ".join(sorted(self.tools.clouds)) or "none"
            raise NoSuchCloud(
                f"cloud {name} is not in the monitor's configuration (there are: {known}); add it and reload"
            )
        return cloud

    def check_ours(self) -> None:
        if not self.tools.is_leader():
            raise NotOurs("this monitor does not lead any more")
        if self.tools.journal.operation(self.operation.instance) != self.operation:
            raise NotOurs("the operation was replaced")

    async def call_cloud(
        self, name: str, call: Callable[[], Coroutine[Any, Any, T]], timeout_seconds: float | None = None
    ) -> T:
        """`call()` within its deadline; `name` is for the error and for tests that kill the monitor here."""
        seconds = self.policy.cloud_call_seconds if timeout_seconds is None else timeout_seconds
        turns = self.tools.cloud_turns[self.cloud().name]
        async with turns:
            self.check_ours()
            try:
                async with asyncio.timeout(seconds):
                    result = await call()
            except TimeoutError:
                raise CloudUnavailable(f"{name}: the cloud did not answer within {seconds:g} s") from None
        self.tools.crash_point(f"cloud:{name}")
        self.check_ours()
        return result

    async def save_record(self, record: InstanceRecord, replacing: InstanceRecord, why: str) -> InstanceRecord:
        self.check_ours()
        await self.tools.journal.save_instance(record, replacing)
        self.tools.crash_point(f"journal:{why}")
        self.check_ours()
        return record

    async def call_agent(self, method: str, *arguments: Any, timeout_seconds: float | None = None) -> Any:
        """The answer of the present VM's agent, also to what takes long."""
        vm = self.vm()
        answer_seconds = self.policy.agent_call_seconds
        value = await self.tools.agents.call_task(
            vm.agent_id,
            vm.generation,
            method,
            *arguments,
            timeout_seconds=timeout_seconds or self.policy.cloud_call_seconds,
            answer_seconds=answer_seconds,
            check=self.check_ours,
        )
        self.tools.crash_point(f"agent:{method}")
        self.check_ours()
        return value

    async def call_agent_long(self, what: str, method: str, *arguments: Any) -> Any:
        """As `call_agent`, for hours: the timeline and the status say how far it is."""
        vm = self.vm()
        told_at = asyncio.get_running_loop().time()

        async def on_turn(said: Any) -> None:
            nonlocal told_at
            self.check_ours()
            progress = read_progress(what, said)
            if progress is None:
                return
            self.present.note_progress(self.instance, progress)
            if asyncio.get_running_loop().time() - told_at >= self.policy.progress_seconds:
                told_at = asyncio.get_running_loop().time()
                await self.event("operation.progress", progress.text, {"operation": self.operation.id})

        try:
            value = await self.tools.agents.call_task(
                vm.agent_id,
                vm.generation,
                method,
                *arguments,
                timeout_seconds=self.policy.copy_seconds,
                answer_seconds=self.policy.agent_call_seconds,
                on_turn=on_turn,
                check=self.check_ours,
            )
        finally:
            self.present.note_progress(self.instance, None)
        self.tools.crash_point(f"agent:{method}")
        self.check_ours()
        return value

    def ends_at(self, seconds: float) -> float:
        """When a step that may take so long, counted from its first try, is over: on the loop's clock, so that a wall
        clock that is set while it is taken makes it neither shorter nor longer."""
        left = self.operation.step_started_at + seconds - self.tools.unix_time()
        return asyncio.get_running_loop().time() + min(seconds, max(0.0, left))

    async def event(self, kind: str, text: str, fields: Mapping[str, str] | None = None) -> None:
        await self.tools.journal.record(kind, self.operation.instance, text, fields)

    async def wait(self, seconds: float) -> None:
        """Until something happened that may matter, at most `seconds`."""
        self._woken.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            pass
        self.check_ours()
