"""What each command does.

Laws: what changes what should run is written to disk before it is answered. Everything may be repeated. What takes
long is a task: `drain`, `stop`, `mount_disk`, `unmount_disk`, `copy_disk`, `fetch_images`; the rest answers at once.

Does not know: envelopes, subjects, limits (agent/commands.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog

from agent import arguments
from agent.arguments import BadArguments
from agent.copy_methods import Copies, CopyMethods
from agent.core import host_paths
from agent.core.desired import Place, Refused
from agent.core.disk_safety import disk_fault
from agent.core.heartbeat_content import Facts, compose
from agent.desired_state import DesiredState
from agent.disk_keeper import UnknownDisk, using
from agent.disk_tools import DiskBusy
from agent.heartbeater import Heartbeater
from agent.image_tasks import IMAGES_MAX, FetchImages, WantedImage
from agent.lone_thread import LoneThread, StillHanging
from agent.supervisor_port import SupervisorPort
from agent.tasks import WAIT_MAX_SECONDS, Tasks
from protocol import codec
from protocol.bus import Bus
from protocol.envelope import Request
from protocol.heartbeat import ContainerReport, ContainerState, EngineState
from protocol.ids import AgentId, ContainerName, DiskCid, DiskName, VmCid, is_name
from protocol.spec import DiskSpec, InstanceSpec
from protocol.subjects import AgentMessage, to_monitor

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 300.0
DRAIN_MAX_SECONDS = 3600.0
STOP_SECONDS = 300.0
"""BOSH's director gives up after this long too."""
LOOK_AGAIN_SECONDS = 0.5
HOST_PATHS_SECONDS = 5.0
LOG_LINES = 100
LOG_LINES_MAX = 10_000
LOG_MAX_CHARACTERS = 256 * 1024
"""The end of it; JSON may need several bytes for a character."""
_AT_REST = frozenset(
    {
        ContainerState.STOPPED,
        ContainerState.COMPLETED,
        ContainerState.FAILED,
        ContainerState.PENDING,
        ContainerState.UNKNOWN,
    }
)
_HOLDS_FILES = frozenset(
    {ContainerState.RUNNING, ContainerState.STARTING, ContainerState.UNHEALTHY, ContainerState.STOPPING}
)


class Disks(Protocol):
    """The disk keeper as commands need it."""

    def mounted_cids(self) -> list[DiskCid]: ...

    def known(self, cid: DiskCid) -> DiskSpec | None: ...

    async def add(self, disk: DiskSpec) -> None: ...

    async def mount(self, disk: DiskSpec) -> str: ...

    async def unmount(self, cid: DiskCid) -> bool: ...

    async def remove(self, cid: DiskCid) -> None: ...


@dataclass(frozen=True, slots=True)
class Method:
    """`quick`: answers from memory, so it is never refused for being one of many."""

    run: Callable[[Request], Awaitable[Any]]
    quick: bool = False
    any_generation: bool = False  # it says itself which it is about


class Methods:
    def __init__(
        self,
        agent: AgentId,
        vm_cid: VmCid | None,
        version: str,
        bus: Bus,
        supervisor: SupervisorPort,
        desired: DesiredState,
        disks: Disks,
        copies: Copies,
        heartbeater: Heartbeater,
        facts: Callable[[], Facts],
        boot_seconds: Callable[[], float],
        tasks: Tasks,
        images: FetchImages | None = None,
        set_hostname: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._agent = agent
        self._vm_cid = vm_cid
        self._version = version
        self._bus = bus
        self._supervisor = supervisor
        self._desired = desired
        self._disks = disks
        self._heartbeater = heartbeater
        self._facts = facts
        self._boot_seconds = boot_seconds
        self._tasks = tasks
        self._images = images
        self._set_hostname = set_hostname
        self._group: asyncio.TaskGroup | None = None
        copying = CopyMethods(copies, tasks, lambda: desired.instance, self._begin)
        self.table: Mapping[str, Method] = {
            "ping": Method(self._ping, quick=True),
            "info": Method(self._info, quick=True),
            "get_state": Method(self._get_state, quick=True),
            "get_task": Method(self._get_task),
            "cancel_task": Method(self._cancel_task, quick=True),
            "apply": Method(self._apply),
            "start": Method(self._start),
            "stop": Method(self._stop),
            "restart": Method(self._restart),
            "drain": Method(self._drain),
            "list_disk": Method(self._list_disk, quick=True),
            "add_persistent_disk": Method(self._add_persistent_disk),
            "remove_persistent_disk": Method(self._remove_persistent_disk),
            "mount_disk": Method(self._mount_disk),
            "unmount_disk": Method(self._unmount_disk),
            "disk_use": Method(copying.disk_use),
            "copy_disk": Method(copying.copy_disk),
            "release_copy": Method(copying.release_copy),
            "logs": Method(self._logs),
            **({} if images is None else {"fetch_images": Method(self._fetch_images)}),
            "become": Method(self._become, any_generation=True),
        }

    def run_tasks_in(self, group: asyncio.TaskGroup) -> None:
        self._group = group

    async def _ping(self, request: Request) -> Any:
        """BOSH's answer without an argument; with one, the proof that this very question was answered, and when."""
        asked = arguments.options(request, 0)
        if not asked:
            return "pong"
        return {
            "pong": True,
            "echo": asked.get("echo"),
            "boot_id": self._facts().boot_id,
            "uptime_seconds": self._boot_seconds(),
            "sequence": self._heartbeater.sequence,
        }

    async def _info(self, request: Request) -> Any:
        facts = self._facts()
        return {
            "api_version": 1,
            "resurgam": {
                "version": self._version,
                "generation": facts.generation,
                "instance": facts.instance or "",
                "methods": sorted(self.table),
            },
        }

    async def _get_state(self, request: Request) -> Any:
        facts = self._facts()
        beat = compose(facts, self._heartbeater.sequence, self._boot_seconds())
        state: dict[str, Any] = {
            "properties": {},
            "job": {"name": beat.job, "release": "", "template": "", "version": "", "templates": None},
            "packages": {},
            "configuration_hash": str(facts.spec.revision) if facts.spec is not None else "",
            "networks": {},
            "resource_pool": {},
            "deployment": beat.deployment,
            "name": beat.job or "",
            "index": beat.index,
            "id": beat.node_id,
            "az": "",
            "persistent_disk": sum(disk.size_mib for disk in facts.disks),
            "rendered_templates_archive": None,
            "agent_id": self._agent,
            "job_state": beat.job_state,
            "vm": {"name": self._vm_cid or ""},
            "processes": [_process(container) for container in facts.containers],
            "resurgam": msgspec.to_builtins(beat.resurgam),
        }
        if "full" in request.arguments:
            state["vitals"] = beat.vitals
            state["resurgam"]["specification"] = None if facts.spec is None else codec.to_plain(facts.spec)
        return state

    async def _get_task(self, request: Request) -> Any:
        wait = arguments.seconds(arguments.options(request, 1), "wait_seconds", 0.0, WAIT_MAX_SECONDS)
        return await self._tasks.outcome(arguments.text(request, 0, "a task id"), wait)

    async def _cancel_task(self, request: Request) -> Any:
        return self._tasks.cancel(arguments.text(request, 0, "a task id"))

    async def _apply(self, request: Request) -> Any:
        spec = arguments.value(request, 0, InstanceSpec)
        self._desired.check(spec)  # whose it is comes first: another's paths are not looked for here
        await self._check_host_paths(spec)
        await self._desired.apply(spec)
        log.info("apply.accepted", instance=spec.instance, revision=spec.revision, containers=len(spec.containers))
        return "applied"

    async def _check_host_paths(self, spec: InstanceSpec) -> None:
        """Before anything is stopped for them. A path that does not answer, a dead network mount, counts as missing."""
        brought = host_paths.brought_by(spec, self._desired.spec)
        if not brought:
            return
        thread = LoneThread("host-paths")
        try:
            missing = await thread.call(
                lambda: tuple(each for each in brought if not os.path.exists(each[1].source)), HOST_PATHS_SECONDS
            )
        except (TimeoutError, StillHanging):
            shown = ", ".join(sorted({mount.source for _, mount in brought}))
            raise Refused(f"not within {HOST_PATHS_SECONDS:g} s: looking whether {shown} exist; see to them") from None
        if missing:
            raise Refused(host_paths.refusal(missing))

    async def _start(self, request: Request) -> Any:
        await self._desired.start(arguments.names(request))
        return "started"

    async def _stop(self, request: Request) -> Any:
        names = arguments.names(request)
        await self._desired.stop(names)
        return self._begin("stop", self._wait_stopped(names), cancellable=True)

    async def _restart(self, request: Request) -> Any:
        self._supervisor.request_restart(self._desired.restartable(arguments.names(request)))
        return "restarted"

    async def _drain(self, request: Request) -> Any:
        """Without an argument it is a shutdown: whoever asks is about to take the VM away."""
        kind = arguments.text(request, 0, '"shutdown" or "update"') if request.arguments else "shutdown"
        if kind not in ("shutdown", "update"):
            raise BadArguments(f'argument 1: expected "shutdown" or "update", not {kind[:80]!r}')
        deadline = arguments.seconds(
            arguments.options(request, 1), "deadline_seconds", DRAIN_SECONDS, DRAIN_MAX_SECONDS
        )
        if kind == "shutdown":
            await self._bus.publish(to_monitor(AgentMessage.SHUTDOWN, self._agent), b"null")
        await self._desired.set_drained(True)
        return self._begin("drain", self._wait_drained(deadline), cancellable=True)

    async def _list_disk(self, request: Request) -> Any:
        return self._disks.mounted_cids()

    async def _add_persistent_disk(self, request: Request) -> Any:
        await self._disks.add(self._disk(request))
        return {}

    async def _remove_persistent_disk(self, request: Request) -> Any:
        await self._disks.remove(_cid(request))
        return {}

    async def _mount_disk(self, request: Request) -> Any:
        return self._begin("mount_disk", self._mount(self._disk(request)))

    async def _unmount_disk(self, request: Request) -> Any:
        cid = _cid(request)
        disk = self._disks.known(cid)
        users = self._users(disk.name) if disk is not None else []
        if users:
            raise DiskBusy(f"disk {cid} is in use by {', '.join(users)}; stop or drain them first")
        return self._begin("unmount_disk", self._unmount(cid))

    async def _logs(self, request: Request) -> Any:
        name = ContainerName(arguments.text(request, 0, "a container's name"))
        lines = arguments.number(request, 1, LOG_LINES, 1, LOG_LINES_MAX)
        spec = self._desired.spec
        known = [container.name for container in spec.containers] if spec is not None else []
        if name not in known:
            raise Refused(f"no container {name} here; there are {', '.join(known) or 'none'}")
        return (await self._supervisor.logs(name, lines))[-LOG_MAX_CHARACTERS:]

    async def _fetch_images(self, request: Request) -> Any:
        """What a spare VM, or one that is about to be updated, should have before it is needed."""
        wanted = arguments.value(request, 0, tuple[WantedImage, ...])
        rate = arguments.number(request, 1, 0, 0, 2**40)
        if self._images is None or len(wanted) > IMAGES_MAX:
            raise BadArguments(f"argument 1: expected at most {IMAGES_MAX} images")
        fetching = self._images.begin(wanted, rate)
        return self._begin("fetch_images", fetching.run(), cancellable=True, progress=fetching.progress)

    async def _become(self, request: Request) -> Any:
        """Of a spare: which instance it fills from now on."""
        place = arguments.value(request, 0, Place)
        await self._desired.become(place)
        if place.hostname:
            self._set_hostname(place.hostname)
        log.info("become.accepted", instance=place.instance, generation=place.generation)
        return "became"

    async def _wait_stopped(self, names: tuple[ContainerName, ...]) -> str:
        """Until none of these (none named: of all) runs any more."""

        def running() -> list[str]:
            reports = self._supervisor.report()
            if reports.engine is not EngineState.UP:
                return ["the engine, which does not answer,"]
            wanted = set(names)
            return [
                item.name
                for item in reports.containers
                if (not wanted or item.name in wanted) and item.state not in _AT_REST
            ]

        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.sleep(0)  # the supervisor was told in this turn of the loop
                while running():  # noqa: ASYNC110 the report is what tells, and it has no event per container
                    await asyncio.sleep(LOOK_AGAIN_SECONDS)
        except TimeoutError:
            raise Refused(f"not stopped after {STOP_SECONDS:g} s: {', '.join(running())}; still trying") from None
        return "stopped"

    async def _wait_drained(self, deadline_seconds: float) -> int:
        await self._supervisor.drain(deadline_seconds)
        return 0

    async def _mount(self, disk: DiskSpec) -> dict[str, str]:
        return {"directory": await self._disks.mount(disk)}

    async def _unmount(self, cid: DiskCid) -> dict[str, str]:
        try:
            was_mounted = await self._disks.unmount(cid)
        except UnknownDisk:  # said again after it was forgotten; the keeper has looked that it is not mounted
            was_mounted = False
        return {"message": f"Unmounted partition of {cid}" if was_mounted else f"Partition of {cid} is not mounted"}

    def _disk(self, request: Request) -> DiskSpec:
        """The disk a request means: what it says, completed by what was said before of that cid."""
        cid = _cid(request)
        hint = request.arguments[1] if len(request.arguments) > 1 else None
        if isinstance(hint, str):  # BOSH: a path or a volume id
            hint = {"device": hint} if hint.startswith("/") else {}
        if hint is None:
            hint = {}
        if not isinstance(hint, dict):
            raise BadArguments("argument 2: expected the disk's name, device, filesystem and mount_options")
        if "path" in hint and "device" not in hint:  # BOSH's object form
            hint = {**hint, "device": hint["path"]}
        known = self._disks.known(cid) or self._specified(cid)
        keys = ("name", "device", "filesystem", "mount_options", "size_mib", "replaces", "taken_from")
        said = {key: hint[key] for key in keys if hint.get(key) is not None}
        plain = {**(codec.to_plain(known) if known is not None else {"name": _name_of(cid)}), **said, "cid": cid}
        try:
            disk = codec.from_plain(DiskSpec, plain)
        except codec.Invalid as error:
            raise BadArguments(f"argument 2: {'; '.join(str(error).splitlines())}") from None
        fault = disk_fault(disk)
        if fault is not None:
            raise BadArguments(f"argument 2: {fault}")
        return disk

    def _specified(self, cid: DiskCid) -> DiskSpec | None:
        spec = self._desired.spec
        return next((disk for disk in spec.disks if disk.cid == cid), None) if spec is not None else None

    def _users(self, disk: DiskName) -> list[str]:
        """Containers whose volumes lie on the disk and that run, as far as the supervisor knows."""
        holding = {item.name for item in self._supervisor.report().containers if item.state in _HOLDS_FILES}
        return sorted(holding.intersection(using(self._desired.spec, disk)))

    def _begin(
        self,
        method: str,
        work: Coroutine[Any, Any, Any],
        cancellable: bool = False,
        progress: Callable[[], Any] = lambda: None,
    ) -> dict[str, Any]:
        if self._group is None:
            work.close()
            raise Refused("the agent is not running yet; ask again")
        return self._tasks.start(self._group, method, work, cancellable, progress)


def _cid(request: Request) -> DiskCid:
    return DiskCid(arguments.text(request, 0, "a disk's cid"))


def _name_of(cid: DiskCid) -> str:
    """A disk that nobody named gets a directory of its cid."""
    lowered = cid.lower()
    return lowered if is_name(lowered) else "disk"


def _process(container: ContainerReport) -> dict[str, Any]:
    return {"name": container.name, "state": _BOSH_STATES.get(container.state, "failing")}


_BOSH_STATES = {
    ContainerState.RUNNING: "running",
    ContainerState.COMPLETED: "running",
    ContainerState.STOPPED: "stopped",
    ContainerState.PENDING: "starting",
    ContainerState.PULLING: "starting",
    ContainerState.CREATING: "starting",
    ContainerState.STARTING: "starting",
    ContainerState.STOPPING: "stopping",
    ContainerState.UNKNOWN: "unknown",
}
