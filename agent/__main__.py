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

from agent import identity, mount_directories, preload, settings_sources, template
from agent.core.desired import Held
from agent.desired_state import DesiredState, Seen
from agent.disk_keeper import DiskKeeper, KnownDisks
from agent.disk_tools import DiskTools
from agent.docker import DockerEngine
from agent.dockerd import DirectDaemon, DockerDaemon, docker_daemon
from agent.engine import Engine
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
from protocol.spec import Wanted
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
    supervisor = _supervisor(engine, store, _daemon(options))

    async def load_images() -> None:
        if preload.image_files(options.images_directory):
            await template.engine_up(lambda: supervisor.report().engine)
            await preload.preload(engine, options.images_directory, store.document("images", LoadedImages))

    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(), name="supervisor")
        if found.settings.template:
            notify.ready("template: waiting to be somebody")
            found = await _be_template(options, found, sources, supervisor, load_images, notify)
            await asyncio.to_thread(copy.save, found.settings)
            identity.credit_entropy(found.settings.entropy)
            group.create_task(identity.read_hardware_clock(), name="hardware-clock")
        identity.take_on(found.settings, time.time)
        await _be_agent(options, found.settings, store, supervisor, load_images, notify)


async def _be_template(
    options: Options,
    found: Found,
    sources: tuple[settings_sources.Source, ...],
    supervisor: Supervisor,
    load_images: Callable[[], Awaitable[None]],
    notify: SystemdNotify,
) -> Found:
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(notify, (_of_supervisor(supervisor),)), name="watchdog")
        await template.engine_up(lambda: supervisor.report().engine)
        await load_images()
        found = await template.wait_to_be_somebody(found, sources, options.consoles)
        watching.cancel()
    return found


async def _be_agent(
    options: Options,
    settings: AgentSettings,
    store: Store,
    supervisor: Supervisor,
    load_images: Callable[[], Awaitable[None]],
    notify: SystemdNotify,
) -> None:
    boot_id = _boot_id()
    bus = await NatsBus.open(settings.bus, settings.agent_id)
    desired = DesiredState(
        store.document("held", Held), store.document("seen", Seen), settings.instance, settings.generation, boot_id
    )
    disks = DiskKeeper(
        DiskTools(options.disks_directory), store.document("disks", KnownDisks), on_mounts=supervisor.set_disks
    )
    shell = AgentShell(
        settings=settings,
        version=version(),
        boot_id=boot_id,
        bus=bus,
        supervisor=supervisor,
        desired=desired,
        disks=disks,
        vitals=Vitals(read_sample(boot_seconds, disks.first_mounted)),
        boot_seconds=boot_seconds,
        new_id=lambda: str(uuid.uuid4()),
    )
    disks.on_change(shell.heartbeater.changed)
    log.info(
        "agent.started",
        agent=settings.agent_id,
        instance=settings.instance,
        generation=settings.generation,
        revision=desired.spec.revision if desired.spec is not None else 0,
        bus=settings.bus.urls,
        version=version(),
    )
    late_seconds = max(HEARTBEATER_LATE_SECONDS, HEARTBEATER_LATE_INTERVALS * settings.heartbeat_interval_seconds)
    heartbeater = Watched("heartbeater", lambda: shell.heartbeater.turned_at, late_seconds)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(notify, (heartbeater, _of_supervisor(supervisor))), name="watchdog")
            notify.ready(f"{settings.instance or settings.agent_id}, generation {settings.generation}")
            await shell.run(load_images)
    finally:
        await bus.close()


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


def _supervisor(engine: Engine, store: Store, daemon: DockerDaemon) -> Supervisor:
    return Supervisor(
        engine=engine,
        daemon=daemon,
        oom=CgroupOomCounters(),
        notes_store=_Notes(store.document("notes", dict[str, Any])),
        prepare_mounts=mount_directories.prepare,
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
