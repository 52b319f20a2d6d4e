"""The whole monitor, in a process of its own, with a webhook as its channel: killed with -9, and its configuration
reloaded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from protocol import heartbeat, subjects
from protocol.heartbeat import Heartbeat
from protocol.ids import AgentId
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.subjects import AgentMessage
from tests.support.nats import NatsServer, free_port, nats_server
from tests.support.waiting import until

KILLS = 6


class Receiver:
    """An HTTP server that keeps every body."""

    def __init__(self) -> None:
        self.port = free_port()
        self.bodies: list[dict[str, Any]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the sender was killed meanwhile
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            self.bodies.append(json.loads(await reader.readexactly(int(lengths[0].split(b":")[1]))))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        writer.close()

    def text(self) -> str:
        return json.dumps(self.bodies)


class MonitorProcess:
    def __init__(self, directory: Path, server: NatsServer, receiver: Receiver) -> None:
        self.path = directory / "monitor.yml"
        self._log = directory / "monitor.log"
        self._process: asyncio.subprocess.Process | None = None
        self.port = free_port()
        self._server = server
        self.url = f"http://127.0.0.1:{receiver.port}/page"
        self.configure(self.channel("page"))

    def channel(self, name: str) -> str:
        return f"channels:\n  - {{name: {name}, type: webhook, options: {{url: {json.dumps(self.url)}}}}}\n"

    def configure(self, text: str, http: str = "") -> None:
        self.path.write_text(
            f"preset: test\nstate_dir: {self.path.parent}\nbus: {{urls: [{json.dumps(self._server.url)}]}}\n"
            f'http: {{listen: "127.0.0.1:{self.port}"{http}}}\nliveness: {{stranger_after: 500ms}}\n{text}'
        )

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "healthmonitor", "--config", str(self.path), stdout=log, stderr=log
            )

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def reload(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGHUP)

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as http:
            try:
                return (await http.get(path)).json()
            except httpx.TransportError:
                return {}

    async def leads(self) -> None:
        deadline = time.monotonic() + 60
        while not (await self.get("/v1/leader")).get("leads"):
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            await asyncio.sleep(0.1)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Receiver, MonitorProcess]]:
    async with nats_server(tmp_path) as server:
        receiver = Receiver()
        await receiver.start()
        monitor = MonitorProcess(tmp_path, server, receiver)
        await monitor.start()
        try:
            yield server, receiver, monitor
        finally:
            await monitor.kill()
            await receiver.stop()


async def test_a_monitor_that_finds_no_bus_says_so(site: tuple[NatsServer, Receiver, MonitorProcess]) -> None:
    """Also when it never had one: from memory, and its end when the bus comes."""
    server, receiver, monitor = site
    await monitor.kill()
    await server.stop()
    receiver.bodies.clear()
    await monitor.start()
    await until(lambda: [body["transition"] for body in receiver.bodies] == ["opened"], 30)
    assert "bus_lost:monitor" in receiver.text()
    await server.start()
    await until(lambda: [body["transition"] for body in receiver.bodies] == ["opened", "resolved"], 30)


@pytest.mark.timeout(200)
async def test_killed_with_9_it_tells_everything_and_doubles_little(
    site: tuple[NatsServer, Receiver, MonitorProcess],
) -> None:
    """Strangers speak up, the monitor is killed at random moments; each stranger is reported, and no notification is
    sent twice more often than it was killed."""
    server, receiver, monitor = site
    random = Random(5)
    bus = await NatsBus.open(BusSettings((server.url,)), "strangers")
    await bus.wait_connected(10)
    agents: list[AgentId] = []

    async def beat() -> None:
        while True:
            for agent in agents:
                payload = heartbeat.encode(Heartbeat(deployment="other", job="web", job_state="running"))
                await bus.publish(subjects.to_monitor(AgentMessage.HEARTBEAT, agent), payload)
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat())
    for number in range(KILLS):
        await monitor.leads()
        agents.append(AgentId(f"stranger-{number}"))
        await asyncio.sleep(random.uniform(0.5, 1.3))  # the moment of the kill is what varies here
        await monitor.kill()
        await monitor.start()
    await until(lambda: all(f"agent_stranger:{agent}" in receiver.text() for agent in agents), 60)
    beating.cancel()
    await asyncio.wait({beating})
    await bus.close()
    sent = Counter(body["id"] for body in receiver.bodies)
    assert sum(count - 1 for count in sent.values()) <= KILLS, sent
    opened = Counter(
        item["key"] for body in receiver.bodies if body["transition"] == "opened" for item in body["items"]
    )
    assert sum(count - 1 for count in opened.values()) <= KILLS, opened


async def test_a_wrong_configuration_changes_nothing_and_a_right_one_does(
    site: tuple[NatsServer, Receiver, MonitorProcess],
) -> None:
    """At a reload: errors with their lines in the log, the former channels kept. Then a right one, taken over."""
    _, receiver, monitor = site
    await monitor.leads()

    async def names() -> list[str]:
        return [each["name"] for each in (await monitor.get("/v1/alerts/channels"))["channels"]]

    assert await names() == ["page"]
    monitor.configure("channels:\n  - {name: other, type: webhok, options: {}}\nroutes: [{channels: [nobody]}]\n")
    monitor.reload()
    await until(lambda: "the former one holds" in monitor.log(), 10)
    assert "did you mean webhook?" in monitor.log()
    assert f"{monitor.path}:7" in monitor.log()
    assert await names() == ["page"]
    monitor.configure(monitor.channel("better"))
    monitor.reload()
    await until(lambda: "configuration reloaded" in monitor.log(), 10)
    assert await names() == ["better"]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{monitor.port}", trust_env=False) as http:
        reply = await http.post("/v1/alerts/channels/better/test", json={})
    assert reply.status_code == 200, reply.text
    assert [body["transition"] for body in receiver.bodies] == ["test"]


async def test_a_notification_links_to_the_page_of_its_incident(
    site: tuple[NatsServer, Receiver, MonitorProcess],
) -> None:
    """From the address that the configuration says, signed: whoever was sent it can open it without a token, and with
    it nothing else."""
    server, receiver, monitor = site
    await monitor.kill()
    token = monitor.path.parent / "token"
    token.write_text("the-token-of-admins")
    token.chmod(0o600)
    url = f"http://127.0.0.1:{monitor.port}"
    monitor.configure(monitor.channel("page"), f', token_file: token, public_url: "{url}/"')
    await monitor.start()
    bus = await NatsBus.open(BusSettings((server.url,)), "strangers")
    await bus.wait_connected(10)
    payload = heartbeat.encode(Heartbeat(deployment="other", job="web", job_state="running"))

    async def told() -> bool:
        await bus.publish(subjects.to_monitor(AgentMessage.HEARTBEAT, AgentId("stranger")), payload)
        return "agent_stranger:stranger" in receiver.text()

    await until(told, 30, every_seconds=0.2)
    await bus.close()
    [link] = [body["link"] for body in receiver.bodies if "agent_stranger" in json.dumps(body)][:1]
    assert link.startswith(f"{url}/incident?key=agent_stranger%3Astranger&until=")
    async with httpx.AsyncClient(trust_env=False) as http:
        page = await http.get(link)
        assert page.status_code == 200, page.text
        assert "agent_stranger:stranger" in page.text
        assert (await http.get(link[:-1])).status_code == 401
        assert (await http.get(f"{url}/v1/incidents?{link.partition('?')[2]}")).status_code == 401
    assert link.partition("sign=")[2] not in monitor.log()
    assert "the-token-of-admins" not in monitor.log() + receiver.text()
