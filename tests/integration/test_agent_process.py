"""The agent as a program, with a real Docker Engine and a real bus: what ends it ends no container."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol import codec
from protocol.heartbeat import ContainerState, EngineState
from protocol.ids import ContainerName
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.spec import ContainerSpec, Dependency
from tests.support.agent import AGENT, INSTANCE, Caller, Heard, listen, make_settings, make_spec
from tests.support.dockerd import IMAGE, OwnDocker, own_docker
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def docker() -> Iterator[OwnDocker]:
    with own_docker() as running:
        yield running


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as running:
        yield running


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    opened = await NatsBus.open(BusSettings(urls=(server.url,)), "monitor")
    await opened.wait_connected(10)
    yield opened
    await opened.close()


class Program:
    """`resurgam-agent` with its directories below one directory."""

    def __init__(self, directory: Path, docker: OwnDocker, settings: dict[str, Any]) -> None:
        self.directory = directory
        self.settings_file = directory / "settings.json"
        self.console = directory / "console"
        self.console.touch()
        self.log = directory / "agent.log"
        self.write_settings(settings)
        self.arguments = [
            f"--settings={self.settings_file}",
            f"--state-dir={directory / 'state'}",
            f"--disks-dir={directory / 'disks'}",
            f"--images-dir={directory / 'images'}",
            f"--docker-socket={docker.socket}",
            f"--console={self.console}",
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def write_settings(self, settings: dict[str, Any]) -> None:
        """In place, as fw_cfg changes: padded to a constant size."""
        self.settings_file.write_bytes(json.dumps(settings).encode().ljust(4096, b"\0"))

    def start(self, environment: dict[str, str] | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", *self.arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 20)

    def stop_containers(self) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "agent", "stop-containers", "--deadline", "30", *self.arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def program(tmp_path: Path, docker: OwnDocker, server: NatsServer) -> Iterator[Program]:
    made = Program(tmp_path, docker, settings(server))
    yield made
    made.close()
    docker.remove_all()
    print(made.log.read_text() if made.log.exists() else "")


def settings(server: NatsServer, **changes: Any) -> dict[str, Any]:
    made = make_settings(bus=BusSettings(urls=(server.url,)), **changes)
    plain = codec.to_plain(made)
    assert isinstance(plain, dict)
    return plain


def container(name: str, *needs: str) -> ContainerSpec:
    return ContainerSpec(
        ContainerName(name),
        IMAGE,
        command=("sleep", "3600"),
        network_mode="none",
        init=False,
        stop_signal="SIGKILL",
        depends_on=tuple(Dependency(ContainerName(need)) for need in needs),
    )


SPEC = make_spec(1, containers=(container("redis"), container("exporter", "redis")), networks=())


def running(heard: list[Heard]) -> bool:
    if not heard or heard[-1].beat.resurgam is None:
        return False
    states = [item.state for item in heard[-1].beat.resurgam.containers]
    return states == [ContainerState.RUNNING] * 2


def started_at(docker: OwnDocker) -> dict[str, str]:
    ids = docker.docker("ps", "-q", "--no-trunc").stdout.decode().split()
    found = json.loads(docker.docker("inspect", *ids).stdout) if ids else []
    return {item["Name"]: item["Id"] + item["State"]["StartedAt"] for item in found}


async def apply(bus: NatsBus, heard: list[Heard]) -> None:
    caller = await Caller(bus).open()
    await until(lambda: heard, what="a heartbeat", seconds=30)
    assert await caller.call("apply", codec.to_plain(SPEC)) == "applied"
    await until(lambda: running(heard), what="both containers run", seconds=30)


async def test_an_agent_that_ends_leaves_its_containers_and_adopts_them(
    docker: OwnDocker, bus: NatsBus, program: Program, server: NatsServer
) -> None:
    """Killed with -9, then ended by SIGTERM: not one container restarts. With the bus away it starts all the same."""
    heard = await listen(bus)
    program.start()
    await apply(bus, heard)
    before = started_at(docker)
    assert len(before) == 2
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        assert await program.end(number) == status
        assert started_at(docker) == before
        heard.clear()
        program.start()
        await until(lambda: running(heard), what="the containers are adopted", seconds=30)
        assert started_at(docker) == before


async def test_shutdown_stops_containers_in_order_and_the_next_boot_starts_them(
    docker: OwnDocker, bus: NatsBus, program: Program, server: NatsServer
) -> None:
    """stop-containers, dependents first; a boot while the centre is away brings them back from what was kept."""
    heard = await listen(bus)
    program.start()
    await apply(bus, heard)
    await program.end(signal.SIGTERM)
    stopped = await asyncio.to_thread(program.stop_containers)
    assert stopped.returncode == 0, stopped.stderr.decode()
    assert started_at(docker) == {}
    actions = [json.loads(line) for line in stopped.stdout.splitlines() if b'"container.action"' in line]
    assert [item["container"] for item in actions if item["action"] == "stop"] == ["exporter", "redis"]
    await server.stop()
    program.start()
    await until(lambda: len(started_at(docker)) == 2, what="both run again, without the bus", seconds=30)


async def test_stop_containers_without_a_specification_does_nothing(program: Program) -> None:
    """A VM that was never given one shuts down at once."""
    stopped = await asyncio.to_thread(program.stop_containers)
    assert stopped.returncode == 0
    assert b"holds no specification" in stopped.stdout


async def test_a_template_wakes_up_as_somebody_in_well_under_a_second(
    docker: OwnDocker, bus: NatsBus, program: Program, server: NatsServer
) -> None:
    """Before: no connection, the images loaded, a line on the console. After: heard at once, as the new agent."""
    images = program.directory / "images"
    images.mkdir()
    (images / "tiny.tar").write_bytes(docker.docker("save", IMAGE).stdout)
    connections: list[Any] = []
    await bus.subscribe("hm.agent.>", connections.append)
    heard = await listen(bus)
    program.write_settings({"agent_id": "", "bus": {"urls": []}, "template": True})
    program.start()
    await until(lambda: "RESURGAM TEMPLATE READY" in program.console.read_text(), what="ready", seconds=30)
    loaded = json.loads((program.directory / "state" / "images.json").read_text())
    assert [IMAGE] in loaded["files"].values()
    assert connections == []
    began = asyncio.get_running_loop().time()
    program.write_settings(settings(server, entropy="c2VlZCBzZWVkIHNlZWQ="))
    await until(lambda: heard, what="the first heartbeat", every_seconds=0.005)
    first = heard[0]
    print(f"resume to heartbeat: {(first.at - began) * 1000:.0f} ms")
    assert first.at - began < 1.0
    assert first.subject.endswith(AGENT)
    assert first.ours.instance == INSTANCE
    assert first.ours.engine is EngineState.UP


async def test_heartbeats_go_on_while_the_engine_is_frozen(docker: OwnDocker, bus: NatsBus, program: Program) -> None:
    """dockerd stopped with SIGSTOP accepts and does not answer: said in the heartbeat, which is never late for it."""
    heard = await listen(bus)
    program.start()
    await apply(bus, heard)
    pid = docker.daemon.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        before = len(heard)
        await until(lambda: heard[-1].ours.engine is EngineState.HUNG, what="hung is told", seconds=30)
        assert heard[-1].beat.job_state == "unknown"
        await until(lambda: len(heard) >= before + 40)
        gaps = [later.at - earlier.at for earlier, later in zip(heard[before:], heard[before + 1 :], strict=False)]
        assert max(gaps) < 5 * 0.2, f"interval 0.2 s, longest gap {max(gaps):.2f} s"
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: running(heard), what="up again, and everything runs", seconds=30)


async def test_systemd_hears_ready_and_alive(docker: OwnDocker, program: Program) -> None:
    """Type=notify and WatchdogSec, over a real socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        address = str(program.directory / "notify")
        receiver.bind(address)
        receiver.setblocking(False)
        program.start({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"})
        messages: list[str] = []

        def collect() -> list[str]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    messages.append(receiver.recv(4096).decode())
            return messages

        await until(lambda: any("READY=1" in item for item in collect()), what="READY", seconds=30)
        await until(lambda: collect().count("WATCHDOG=1") >= 3, what="alive", seconds=10)
        await program.end(signal.SIGTERM)
        assert "STOPPING=1" in collect()


async def test_wrong_settings_end_the_program_with_a_sentence(program: Program) -> None:
    """No traceback; the status says configuration."""
    program.write_settings({"agent_id": "a", "bus": {}})
    program.start()
    assert program.process is not None
    assert await asyncio.to_thread(program.process.wait, 20) == 78
    line = json.loads(program.log.read_text().splitlines()[-1])
    assert "bus.urls: Field required" in line["error"]


async def test_the_program_stays_small(docker: OwnDocker, bus: NatsBus, program: Program) -> None:
    """With containers running: at most 60 MB resident, and no thread left behind."""
    heard = await listen(bus)
    program.start()
    await apply(bus, heard)
    assert program.process is not None
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines())
    print(values["VmRSS"].strip(), "resident,", values["Threads"].strip(), "threads")
    assert int(values["VmRSS"].split()[0]) <= 60 * 1024
    assert int(values["Threads"]) < 20
