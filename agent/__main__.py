"""The agent's program: reads settings, makes every part, runs them; the only place that knows every class.

Laws: ending the agent ends no container. A bus that is not there keeps nothing from running.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import structlog

from agent import (
    disk_copy,
    identity,
    mount_directories,
    preload,
    registries,
    rehearsal,
    settings_sources,
    template,
)
from agent.core.desired import Held, Place
from agent.core.disk_safety import Marker
from agent.desired_state import DesiredState, Seen
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import DiskTools
from agent.docker import DockerEngine
from agent.dockerd import DaemonError, DirectDaemon, DockerDaemon, docker_daemon
from agent.engine import Engine
from agent.image_tasks import AgentImages
from agent.images import Images
from agent.logging_setup import set_up_logging
from agent.oom import CgroupOomCounters
from agent.preload import LoadedImages
from agent.settings_sources import Found, SettingsError
from agent.shell import AgentShell
from agent.store import Document, Store
from agent.supervisor import Supervisor
from agent.vitals import Vitals, read_sample
from agent.watchdog import Watched, watch
from protocol.nats_bus import NatsBus
from protocol.settings import AgentSettings
from protocol.spec import DiskSpec, InstanceSpec, Wanted
from protocol.systemd_notify import SystemdNotify

log = structlog.get_logger("agent")

STATE_DIRECTORY = Path("/var/lib/resurgam/agent")
DISKS_DIRECTORY = Path("/var/lib/resurgam/disks")
DOCKER_SOCKET = "/var/run/docker.sock"
STOP_SECONDS = 300.0
"""For `stop-containers`; systemd gives its unit a little more (systemd/resurgam-agent-shutdown.service)."""
HEARTBEATER_LATE_INTERVALS = 3
HEARTBEATER_LATE_SECONDS = 10.0
SUPERVISOR_LATE_SECONDS = 60.0
"""However the engine is, a turn takes at most a look (10 s), the notes (5 s) and the pause until the next (10 s)."""
DOCUMENTS: tuple[type[object], ...] = (
    AgentSettings,
    DiskSpec,
    Held,
    InstanceSpec,
    KnownDisks,
    LoadedImages,
    Marker,
    Place,
    Seen,
)
"""What is read and written between the first word of the centre and the start of the containers."""
RESTART_STATUS = 1
CONFIGURATION_STATUS = 78  # sysexits.h: EX_CONFIG


@dataclasses.dataclass(frozen=True)
class Options:
    command: str
    settings: Path | None
    state_directory: Path
    disks_directory: Path
    images_directory: Path
    docker_socket: str
    consoles: tuple[Path, ...]
    deadline_seconds: float


def main() -> None:
    options = _options(sys.argv[1:])
    set_up_logging(sys.stdout)
    try:
        asyncio.run(_run(options) if options.command == "run" else _stop_containers(options))
    except SettingsError as error:
        log.error("settings.unusable", error=str(error))
        sys.exit(CONFIGURATION_STATUS)
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(options: Options) -> None:
    """Until SIGTERM or SIGINT; an error in any part ends the agent, and systemd starts it again."""
    notify = SystemdNotify(os.environ)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    agent = asyncio.create_task(_agent(options, notify), name="agent")
    waiting = asyncio.create_task(ended.wait(), name="signals")
    await asyncio.wait({agent, waiting}, return_when=asyncio.FIRST_COMPLETED)
    notify.stopping()
    waiting.cancel()
    if agent.done():
        agent.result()  # it never ends by itself but with an error
    log.info("agent.stopping", containers="keep running")
    agent.cancel()
    await asyncio.gather(agent, return_exceptions=True)


async def _agent(options: Options, notify: SystemdNotify) -> None:
    store = Store(options.state_directory)
    sources = settings_sources.default_sources(options.settings)
    copy = store.document("settings", AgentSettings)
    found = await settings_sources.find(sources, copy)
    engine = DockerEngine(options.docker_socket, found.settings.registry_auth)
    images = AgentImages(engine, options.state_directory / "images")
    supervisor = _supervisor(engine, store, _daemon(options), images.images)

    async def load_images() -> tuple[str, ...]:
        if not preload.image_files(options.images_directory):
            return ()
        await template.engine_up(lambda: supervisor.report().engine)
        return await preload.preload(engine, options.images_directory, store.document("images", LoadedImages))

    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(), name="supervisor")
        if found.settings.template:
            notify.ready("template: waiting to be somebody")
            found = await _be_template(options, found, sources, supervisor, engine, load_images, notify)
            await asyncio.to_thread(copy.save, found.settings)
            identity.credit_entropy(found.settings.entropy)
            group.create_task(identity.read_hardware_clock(), name="hardware-clock")
        identity.take_on(found.settings, time.time)
        await _be_agent(options, found.settings, store, supervisor, images, load_images, notify)


async def _be_template(
    options: Options,
    found: Found,
    sources: tuple[settings_sources.Source, ...],
    supervisor: Supervisor,
    engine: DockerEngine,
    load_images: Callable[[], Awaitable[tuple[str, ...]]],
    notify: SystemdNotify,
) -> Found:
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(notify, (_of_supervisor(supervisor),)), name="watchdog")
        await template.engine_up(lambda: supervisor.report().engine)
        images = await load_images()
        rehearsal.of_documents(DOCUMENTS)
        await rehearsal.of_disks(options.state_directory)
        if images:
            await rehearsal.of_containers(engine, images[0])
        found = await template.wait_to_be_somebody(found, sources, options.consoles)
        watching.cancel()
    return found


async def _be_agent(
    options: Options,
    settings: AgentSettings,
    store: Store,
    supervisor: Supervisor,
    images: AgentImages,
    load_images: Callable[[], Awaitable[object]],
    notify: SystemdNotify,
) -> None:
    await _know_registries(options, settings)
    images.login(settings.registry_auth)
    boot_id = _boot_id()
    bus = await NatsBus.open(settings.bus, settings.agent_id)
    desired = DesiredState(
        store.document("held", Held),
        store.document("seen", Seen),
        settings.instance,
        settings.generation,
        boot_id,
        place=store.document("place", Place),
    )
    if desired.hostname:
        identity.set_hostname(desired.hostname)
    tools = DiskTools(options.disks_directory)
    disks = DiskKeeper(tools, store.document("disks", KnownDisks), on_mounts=supervisor.set_disks)
    shell = AgentShell(
        settings=settings,
        version=version(),
        boot_id=boot_id,
        bus=bus,
        supervisor=supervisor,
        desired=desired,
        disks=disks,
        copies=disk_copy.DiskCopy(tools, disks, options.disks_directory.with_name(disk_copy.DIRECTORY)),
        vitals=Vitals(read_sample(boot_seconds, disks.first_mounted)),
        boot_seconds=boot_seconds,
        new_id=lambda: str(uuid.uuid4()),
        images=images,
        set_hostname=identity.set_hostname,
    )
    images.connect(bus, lambda: desired.spec)
    disks.on_change(shell.heartbeater.changed)
    log.info(
        "agent.started",
        agent=settings.agent_id,
        instance=desired.instance,
        generation=desired.generation,
        revision=desired.spec.revision if desired.spec is not None else 0,
        bus=settings.bus.urls,
        version=version(),
    )
    late_seconds = max(HEARTBEATER_LATE_SECONDS, HEARTBEATER_LATE_INTERVALS * settings.heartbeat_interval_seconds)
    heartbeater = Watched("heartbeater", lambda: shell.heartbeater.turned_at, late_seconds)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(notify, (heartbeater, _of_supervisor(supervisor))), name="watchdog")
            notify.ready(f"{desired.instance or settings.agent_id}, generation {desired.generation}")
            await shell.run(load_images)
    finally:
        await bus.close()


async def _know_registries(options: Options, settings: AgentSettings) -> None:
    """A VM whose registries cannot be written pulls without them; the pull then says what it lacks."""
    if options.docker_socket != DOCKER_SOCKET:
        return  # the engine is not this VM's own
    try:
        if await asyncio.to_thread(registries.write, settings):
            await docker_daemon(DirectDaemon()).reload()
    except (OSError, DaemonError) as error:
        log.error("registries.not_written", error=str(error), next="images are pulled without")


def _of_supervisor(supervisor: Supervisor) -> Watched:
    return Watched("supervisor", lambda: supervisor.turned_at, SUPERVISOR_LATE_SECONDS)


async def _stop_containers(options: Options) -> None:
    """Stops the kept specification's containers in order, and nothing else. For the shutdown of the VM: the agent
    itself has been stopped before (systemd/resurgam-agent-shutdown.service), so that it starts nothing anew."""
    store = Store(options.state_directory)
    held = store.document("held", Held).load()
    if held is None or held.spec is None:
        log.info("stop_containers.nothing", reason="this VM holds no specification")
        return
    daemon = _LeaveDaemon("the VM shuts down")
    supervisor = _supervisor(DockerEngine(options.docker_socket), store, daemon)
    supervisor.set_desired(dataclasses.replace(held.spec, wanted=Wanted.STOPPED))
    running = asyncio.create_task(supervisor.run(), name="supervisor")
    draining = asyncio.create_task(supervisor.drain(options.deadline_seconds), name="drain")
    await asyncio.wait({running, draining}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stop_containers.done", states={item.name: item.state.value for item in supervisor.report().containers})
    running.cancel()
    draining.cancel()
    await asyncio.gather(running, draining, return_exceptions=True)


class _LeaveDaemon:
    """Starts no engine: while the VM shuts down, and where the engine is somebody else's."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def start(self) -> None:
        log.warning("engine.not_started", reason=self._reason)

    async def restart_hard(self) -> None:
        log.warning("engine.not_restarted", reason=self._reason)


def _daemon(options: Options) -> DockerDaemon:
    if options.docker_socket != DOCKER_SOCKET:
        return _LeaveDaemon(f"the engine at {options.docker_socket} is not this VM's own")
    return docker_daemon(DirectDaemon())


class _Notes:
    """The supervisor's notes as a document of the store."""

    def __init__(self, document: Document[dict[str, Any]]) -> None:
        self._document = document

    def load(self) -> dict[str, Any]:
        return self._document.load() or {}

    def save(self, notes: dict[str, Any]) -> None:
        self._document.save(notes)


def _supervisor(engine: Engine, store: Store, daemon: DockerDaemon, images: Images | None = None) -> Supervisor:
    return Supervisor(
        engine=engine,
        daemon=daemon,
        oom=CgroupOomCounters(),
        notes_store=_Notes(store.document("notes", dict[str, Any])),
        prepare_mounts=mount_directories.prepare,
        images=images,
    )


def boot_seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def version() -> str:
    try:
        return package_version("resurgam")
    except PackageNotFoundError:
        return "unknown"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="resurgam-agent", description="Keeps the containers of this VM running.")
    parser.add_argument("command", nargs="?", default="run", choices=("run", "stop-containers"))
    parser.add_argument("--version", action="version", version=f"resurgam-agent {version()}")
    parser.add_argument(
        "--settings", type=Path, help=f"settings file; else {settings_sources.SETTINGS_FILE}, QEMU fw_cfg, config drive"
    )
    parser.add_argument("--state-dir", type=Path, default=STATE_DIRECTORY)
    parser.add_argument("--disks-dir", type=Path, default=DISKS_DIRECTORY)
    parser.add_argument("--images-dir", type=Path, default=preload.IMAGES_DIRECTORY)
    parser.add_argument("--docker-socket", default=DOCKER_SOCKET)
    parser.add_argument("--console", type=Path, help="where a template says that it is ready")
    parser.add_argument("--deadline", type=float, default=STOP_SECONDS, help="seconds that stop-containers may take")
    given = parser.parse_args(arguments)
    return Options(
        command=given.command,
        settings=given.settings,
        state_directory=given.state_dir,
        disks_directory=given.disks_dir,
        images_directory=given.images_dir,
        docker_socket=given.docker_socket,
        consoles=(given.console,) if given.console is not None else template.CONSOLES,
        deadline_seconds=given.deadline,
    )


if __name__ == "__main__":
    main()
