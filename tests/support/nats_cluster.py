"""A real cluster of three nats-servers, configured by the product's own generator; perhaps each in a network namespace
of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from healthmonitor.embedded_nats import Passwords
from healthmonitor.nats_cluster import ROUTE_PORT_DISTANCE, Cluster, Machine, configuration_text
from protocol.settings import BusSettings
from tests.support.nats import nats_server_binary
from tests.support.waiting import until

PASSWORDS = Passwords("monitor-for-tests-0", "system-for-tests-00", "agents-for-tests-00")


class Node:
    def __init__(self, directory: Path, cluster: Cluster, namespace: str = "", store: Path | None = None) -> None:
        self.directory = directory
        self.machine = cluster.machines[cluster.this]
        self.namespace = namespace
        self.process: asyncio.subprocess.Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        text = configuration_text(store or directory, cluster, PASSWORDS)
        # Where it tells of itself: the host reaches its namespace, whatever is cut
        self.monitoring = f"{self.machine.host}:{8222 if namespace else free_ports(1)[0]}"
        text += f'\nhttp: "{self.monitoring}"\n'
        (directory / "nats.conf").write_text(text)

    async def start(self) -> None:
        prefix = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with (self.directory / "nats.log").open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *prefix,
                nats_server_binary(),
                "-c",
                str(self.directory / "nats.conf"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def stop(self) -> None:
        """At once: lame duck mode takes its time, and nobody's data hangs on it."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.wait(), 15)
            except TimeoutError:
                await self.kill()

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def leads_streams(self) -> set[str]:
        """The streams whose leader this node is, by its own word; empty when it does not answer."""
        try:
            found = await asyncio.to_thread(self._ask, "/jsz?streams=true&accounts=true")
        except OSError:
            return set()
        own = f"resurgam-{self.directory.name.rpartition('-')[2]}"
        return {
            stream["name"]
            for account in found.get("account_details", [])
            for stream in account.get("stream_detail", [])
            if stream.get("cluster", {}).get("leader") == own
        }

    async def is_current(self) -> bool:
        """Whether it is healthy by its own word: in touch with the cluster, and every stream of it caught up."""
        try:
            found = await asyncio.to_thread(self._ask, "/healthz")
        except OSError:
            return False
        return bool(found.get("status") == "ok")

    async def clients(self) -> set[str] | None:
        """The names of the clients that are connected to it; None when it does not answer."""
        try:
            found = await asyncio.to_thread(self._ask, "/connz")
        except OSError:
            return None
        return {str(each["name"]) for each in found.get("connections", []) if each.get("name")}

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.monitoring}{path}", timeout=2) as reply:
            return json.load(reply)


class NatsCluster:
    """`hosts`: (address, namespace) of each node; by default three on the loopback. Nodes are counted from 0."""

    def __init__(
        self,
        directory: Path,
        hosts: Sequence[tuple[str, str]] = (("127.0.0.1", ""),) * 3,
        stores: Sequence[Path | None] = (None,) * 3,
    ) -> None:
        ports = free_ports(3) if not hosts[0][1] else [4222] * 3
        machines = tuple(Machine(host, port) for (host, _), port in zip(hosts, ports, strict=True))
        clusters = [Cluster(machines, number, "routes-for-tests-00") for number in range(3)]
        self.urls = clusters[0].urls
        self.nodes = [
            Node(directory / f"node-{number + 1}", cluster, hosts[number][1], stores[number])
            for number, cluster in enumerate(clusters)
        ]

    def settings(self, user: str = "monitor") -> BusSettings:
        return BusSettings(self.urls, user, getattr(PASSWORDS, user))

    async def start(self) -> None:
        for node in self.nodes:
            await node.start()

    async def stop(self) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def stream_leader(self, stream: str) -> Node:
        """The node that leads this stream, once there is one."""

        async def found() -> Node | None:
            for node in self.nodes:
                if node.runs and stream in await node.leads_streams():
                    return node
            return None

        node = await until(found, 120, f"a node leads {stream}", every_seconds=0.2)
        assert node is not None
        return node


@contextlib.asynccontextmanager
async def nats_cluster(directory: Path) -> AsyncIterator[NatsCluster]:
    cluster = NatsCluster(directory)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.stop()


def free_ports(count: int) -> list[int]:
    """Ports such that each, and the one for routes above it, is free now."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port + ROUTE_PORT_DISTANCE > 65535:
                continue
            route = stack.enter_context(socket.socket())
            try:
                route.bind(("127.0.0.1", port + ROUTE_PORT_DISTANCE))
            except OSError:
                continue
            found.append(port)
    return found


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    os.chmod(path, 0o600)
    return path
