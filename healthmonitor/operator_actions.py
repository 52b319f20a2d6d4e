"""What people may ask for: each is a change of records, written to the timeline with who asked and why.

Laws:
- Only the monitor that leads acts; another one says who does (`NotLeading`).
- Nothing is half-done: the record is written with compare-and-set, and what follows from it (operations, rollouts) is
  worked out again from the record by whoever leads.
- A request is read and checked as a whole before anything is written.

Does not know: HTTP, and how an operation is carried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from healthmonitor.core import operator_changes as changes
from healthmonitor.core.manifest import Manifest
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import (
    DeploymentRecord,
    InstanceRecord,
    Operation,
    Switches,
)
from healthmonitor.journal import Journal, Superseded
from protocol.ids import AgentId, DeploymentName, Generation, InstanceId

WRITE_TRIES = 5
"""How often a change is worked out anew when somebody else wrote the record meanwhile."""
ASK_AGENT_SECONDS = 30.0
LOG_LINES_MAX = 10_000


class NotLeading(Exception):
    """This monitor may not act. `address`: the API of the one that may, when it is known."""

    def __init__(self, holder: str, address: str) -> None:
        super().__init__(f"this monitor does not lead, {holder or 'no monitor'} does at the moment")
        self.address = address


class NotFound(Exception):
    """No such deployment, instance or container."""


class Operations(Protocol):
    """The resurrector, as people need it."""

    async def begin_update(
        self, instance: InstanceId, reason: str, change: Callable[[InstanceRecord], InstanceRecord] | None = None
    ) -> Operation:
        """In place; `change` is made to the record with it."""
        ...

    async def begin_recreate(self, instance: InstanceId, reason: str) -> Operation: ...

    async def confirm_fence(self, instance: InstanceId, person: str) -> Operation:
        """IllegalTransition when nothing waits for a word. It writes the event itself."""
        ...

    def wake(self) -> None:
        """Records were changed: look at once."""
        ...


class Agents(Protocol):
    async def call(
        self, agent: AgentId, generation: Generation | None, method: str, *arguments: Any, timeout_seconds: float
    ) -> Any: ...


class Manifests(Protocol):
    async def read(self, upload: ManifestUpload) -> Manifest:
        """Raises ManifestErrors."""
        ...

    def check(self, manifest: Manifest, migrate: bool = False) -> None:
        """NotPossible when what is there forbids it."""
        ...


class Leader(Protocol):
    def is_leader(self) -> bool: ...

    def leader_name(self) -> str: ...

    def leader_address(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks: the role that the token gave, and the name that the command gave (a claim, kept as such)."""

    role: str
    name: str

    def __str__(self) -> str:
        return f"{self.name or 'somebody'} ({self.role})"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is told: a sentence, perhaps what to do next, and facts for programs."""

    text: str
    next_step: str = ""
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ManifestUpload:
    text: str
    file: str = "manifest.yml"
    variables: Mapping[str, str] | None = None
    env_files: Mapping[str, str] | None = None
    migrate: bool = False  # disks may be made smaller, by copying them


class OperatorActions:
    def __init__(
        self,
        journal: Journal,
        operations: Operations,
        agents: Agents,
        leader: Leader,
        manifests: Manifests,
        unix_time: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._operations = operations
        self._agents = agents
        self._leader = leader
        self._manifests = manifests
        self._unix_time = unix_time

    # Deployments.

    async def deploy(
        self, name: str, upload: ManifestUpload, person: Person, because: str, if_revision: int | None
    ) -> Answer:
        """Writes the deployment's next revision; its rollout begins at once. Raises ManifestErrors."""
        self._check_leading()
        manifest = await self._manifests.read(upload)
        self._manifests.check(manifest, upload.migrate)
        if manifest.name != name:
            raise NotPossible(f"the manifest's name is {manifest.name}, not {name}")
        record = await self._change_deployment(
            manifest.name,
            lambda before: changes.deployed(before, manifest, upload.text, str(person), self._unix_time(), if_revision),
        )
        text = f"{name}: revision {record.revision} is being rolled out"
        await self._note("operator.deployed", name, text, person, because)
        self._operations.wake()
        return Answer(text, f"resurgam status {name} --watch", {"revision": record.revision, "deployment": name})

    async def delete(self, name: str, disks: bool, person: Person, because: str) -> Answer:
        self._check_leading()

        def change(before: DeploymentRecord | None) -> DeploymentRecord:
            if before is None:
                raise NotFound(f"there is no deployment {name!r}")
            return changes.deleted(before, disks)

        await self._change_deployment(DeploymentName(name), change)
        text = f"{name} is being deleted, {'with its disks' if disks else 'its disks are kept'}"
        await self._note("operator.deleted", name, text, person, because)
        self._operations.wake()
        return Answer(text, "resurgam events --follow", {"deployment": name})

    # Instances.

    async def act(
        self, action: str, instance: InstanceId, containers: Sequence[str], person: Person, because: str
    ) -> Answer:
        """`action`: start, stop, restart, recreate or ignore."""
        self._check_leading()
        record = self._instance(instance)
        match action:
            case "start":
                answer = await self._told(
                    instance, lambda before: changes.started(before, containers), "is being started", containers
                )
            case "stop":
                answer = await self._told(
                    instance, lambda before: changes.stopped(before, containers), "is being stopped", containers
                )
            case "restart":
                answer = await self._restart(record, containers)
            case "recreate":
                changes.check_not_deleting(record)
                await self._operations.begin_recreate(instance, _reason("recreate", person, because))
                answer = Answer(f"{instance} is being recreated", f"resurgam status {instance}")
            case "ignore":
                await self._change_instance(instance, changes.ignored)
                answer = Answer(f"{instance} is left alone", f"resurgam start {instance} ends that")
            case _:
                raise NotPossible(f"{action!r} is not an action", "start, stop, restart, recreate or ignore")
        await self._note(f"operator.{action}", instance, answer.text, person, because)
        self._operations.wake()
        return answer

    async def logs(self, instance: InstanceId, container: str, lines: int) -> str:
        """Asks the agent; also a monitor that does not lead may."""
        record = self._instance(instance)
        if container not in [spec.name for spec in record.group.containers]:
            names = ", ".join(spec.name for spec in record.group.containers)
            raise NotFound(f"{instance} has no container {container!r}; it has {names}")
        agent, generation = _agent_of(record)
        reply = await self._agents.call(
            agent,
            generation,
            "logs",
            container,
            max(1, min(lines, LOG_LINES_MAX)),
            timeout_seconds=ASK_AGENT_SECONDS,
        )
        return str(reply)

    async def confirm_fence(self, instance: InstanceId, person: Person, because: str) -> Answer:
        self._check_leading()
        self._instance(instance)
        if not because.strip():
            raise NotPossible("a word without a reason proves nothing", 'add --because "who looked, what was seen"')
        await self._operations.confirm_fence(instance, f"{person}: {because}")
        text = f"{person} vouches that the old VM of {instance} is off; its rebuilding goes on"
        return Answer(text, f"resurgam status {instance}")

    # Switches.

    async def switch_resurrection(self, enabled: bool, person: Person, because: str) -> Answer:
        await self._switch(lambda before: changes.resurrection_switched(before, enabled))
        text = f"resurrection is {'on' if enabled else 'off'}"
        await self._note("operator.resurrection", "fleet", text, person, because)
        return Answer(text)

    async def pause(self, seconds: float | None, person: Person, because: str) -> Answer:
        now = self._unix_time()
        await self._switch(lambda before: changes.paused(before, str(person), seconds, now))
        text = "paused until `resurgam resume`" if seconds is None else f"paused for {seconds:g} s"
        await self._note("operator.paused", "fleet", text, person, because)
        return Answer(text, "resurgam resume")

    async def resume(self, person: Person, because: str) -> Answer:
        await self._switch(changes.resumed)
        await self._note("operator.resumed", "fleet", "the pause is over", person, because)
        return Answer("the pause is over")

    async def override_meltdown(self, seconds: float, person: Person, because: str) -> Answer:
        now = self._unix_time()
        await self._switch(lambda before: changes.meltdown_overridden(before, str(person), seconds, now))
        text = f"lost VMs are rebuilt in spite of a meltdown for {seconds:g} s"
        await self._note("operator.meltdown_overridden", "fleet", text, person, because)
        return Answer(text, "resurgam status --watch")

    # What the above is made of.

    async def _told(
        self,
        instance: InstanceId,
        change: Callable[[InstanceRecord], InstanceRecord],
        doing: str,
        containers: Sequence[str],
    ) -> Answer:
        """Changes what the agent is told, and has it told."""
        what = f"{instance} ({', '.join(containers)})" if containers else str(instance)
        before = self._instance(instance)
        if change(before) == before:
            return Answer(f"{what}: nothing to change")
        if before.vm is None and self._journal.operation(instance) is None:
            await self._change_instance(instance, change)  # nobody to tell; the VM that comes is told
        else:
            await self._operations.begin_update(instance, f"{what} {doing} by a person's word", change)
        return Answer(f"{what} {doing}", f"resurgam status {instance}")

    async def _restart(self, record: InstanceRecord, containers: Sequence[str]) -> Answer:
        known = [spec.name for spec in record.group.containers]
        for name in containers:
            if name not in known:
                raise NotFound(f"{record.instance} has no container {name!r}; it has {', '.join(known)}")
        agent, generation = _agent_of(record)
        await self._agents.call(agent, generation, "restart", list(containers), timeout_seconds=ASK_AGENT_SECONDS)
        what = ", ".join(containers) if containers else "every container"
        return Answer(f"{record.instance}: the agent restarts {what}", f"resurgam status {record.instance}")

    async def _change_deployment(
        self, name: DeploymentName, change: Callable[[DeploymentRecord | None], DeploymentRecord]
    ) -> DeploymentRecord:
        for _ in range(WRITE_TRIES):
            before = self._journal.deployment(name)
            after = change(before)
            if after == before:
                return after
            try:
                await self._journal.save_deployment(after, before)
            except Superseded:
                continue
            return after
        raise changes.Conflict(f"{name} is being changed by others", "try again")

    async def _change_instance(
        self, instance: InstanceId, change: Callable[[InstanceRecord], InstanceRecord]
    ) -> InstanceRecord:
        for _ in range(WRITE_TRIES):
            before = self._instance(instance)
            after = change(before)
            if after == before:
                return after
            try:
                await self._journal.save_instance(after, before)
            except Superseded:
                continue
            return after
        raise changes.Conflict(f"{instance} is being changed by others", "try again")

    async def _switch(self, change: Callable[[Switches], Switches]) -> Switches:
        self._check_leading()
        for _ in range(WRITE_TRIES):
            before = self._journal.switches()
            after = change(before)
            if after != before:
                try:
                    await self._journal.save_switches(after, before)
                except Superseded:
                    continue
            self._operations.wake()
            return after
        raise changes.Conflict("the switches are being changed by others", "try again")

    async def _note(self, kind: str, subject: str, text: str, person: Person, because: str) -> None:
        fields = {"by": str(person), **({"because": because} if because else {})}
        said = f"{text}; by {person}" + (f": {because}" if because else "")
        await self._journal.record(kind, subject, said, fields)

    def _instance(self, instance: InstanceId) -> InstanceRecord:
        record = self._journal.instance(instance)
        if record is None:
            raise NotFound(f"there is no instance {instance!r}")
        return record

    def _check_leading(self) -> None:
        if not self._leader.is_leader():
            raise NotLeading(self._leader.leader_name(), self._leader.leader_address())


def _agent_of(record: InstanceRecord) -> tuple[AgentId, Generation]:
    if record.vm is None:
        raise NotPossible(f"{record.instance} has no VM at the moment", f"resurgam status {record.instance}")
    return record.vm.agent_id, record.vm.generation


def _reason(action: str, person: Person, because: str) -> str:
    return f"{action} asked for by {person}" + (f": {because}" if because else "")
