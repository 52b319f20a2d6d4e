"""Heartbeats a core can take in: the real monitor with verdicts for a fleet, against a bare nats-py subscriber.

Both hear the same load, one after the other, several times in one run: `--agents` agents with four containers each, in
the real wire format, from a process of its own through a real nats-server. What counts is messages for a second of
the listener's CPU time, so that a busy machine moves both. Run: `python -m tests.bench.bench_heartbeats`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats

from healthmonitor.agent_client import AgentClient
from healthmonitor.channels.log import LogChannel
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.judgement import Judgement, Verdict
from healthmonitor.core.manifest import InstanceGroup, UpdatePolicy, VmSize
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import (
    Event,
    Incident,
    InstanceRecord,
    Maintenance,
    Operation,
    Silence,
    SpareRecord,
    Switches,
    VmBinding,
)
from healthmonitor.monitor import Monitor
from protocol import heartbeat as wire
from protocol.heartbeat import ContainerReport, ContainerState, DiskReport, DiskState, EngineState, Extension, Heartbeat
from protocol.ids import (
    AgentId,
    CloudName,
    ContainerName,
    DeploymentName,
    Generation,
    InstanceId,
    MonitorId,
    Revision,
    VmCid,
)
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.spec import ContainerSpec, spec_hash
from tests.support.nats import nats_server

TARGET_RATIO = 0.60
QUIET_SECONDS = 2.0
"""A listener has heard all when nothing came for this long after something did."""
CONTAINERS = tuple(ContainerSpec(ContainerName(f"service-{n}"), f"registry.example/service-{n}:1") for n in range(4))
GROUP = InstanceGroup("web", 1, VmSize(), "debian-12", CloudName("local"), (), CONTAINERS, UpdatePolicy())


def instance(n: int) -> InstanceId:
    return InstanceId(f"shop-{n // 100}/web/{n % 100}")


def agent(n: int) -> AgentId:
    return AgentId(f"agent-{n:06d}-0123456789abcdef")


# The load


def offer(url: str, agents: int, messages: int, rate: int) -> None:
    """Sends `messages` heartbeats of `agents` agents in turn, `rate` a second, each as its agent would now."""
    host, port = url.removeprefix("nats://").split(":")
    with socket.create_connection((host, int(port))) as server:
        server.recv(65536)
        server.sendall(b'CONNECT {"verbose":false,"pedantic":false,"name":"load"}\r\n')
        halves = [template(n) for n in range(agents)]
        began = time.monotonic()
        batch = bytearray()
        for sent in range(messages):
            subject, head, tail = halves[sent % agents]
            body = head % (sent // agents + 1, time.monotonic()) + tail
            batch += b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body)
            if sent % 50 == 49:
                server.sendall(batch)
                batch.clear()
                ahead = began + sent / rate - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)
        server.sendall(batch + b"PING\r\n")
        server.settimeout(30)
        while b"PONG" not in server.recv(65536):
            continue


def template(n: int) -> tuple[bytes, bytes, bytes]:
    """Subject, and the heartbeat before and after its sequence and time."""
    beat = Heartbeat(
        deployment=f"shop-{n // 100}",
        job="web",
        index=n % 100,
        job_state="running",
        vitals={
            "cpu": {"sys": "0.3", "user": "1.2", "wait": "0.0"},
            "disk": {
                "system": {"inode_percent": "31", "percent": "42"},
                "ephemeral": {"inode_percent": "1", "percent": "3"},
                "persistent": {"inode_percent": "0", "percent": "12"},
            },
            "load": ["0.09", "0.04", "0.01"],
            "mem": {"kb": "145996", "percent": "14"},
            "swap": {"kb": "0", "percent": "0"},
            "uptime": {"secs": 86400},
        },
        node_id=instance(n),
        number_of_processes=4,
        resurgam=Extension(
            generation=1,
            revision=1,
            sequence=987654321,
            boot_id=f"5b1d4a0e-7f3c-4c1f-9d57-{n:012d}",
            sent_at_seconds=1234567.125,
            instance=instance(n),
            engine=EngineState.UP,
            containers=tuple(
                ContainerReport(
                    each.name,
                    ContainerState.RUNNING,
                    spec_hash=spec_hash(each),
                    container_id=f"{n:012x}",
                    since_seconds=n,
                )
                for each in CONTAINERS
            ),
            disks=(DiskReport("data", f"disk-{n}", DiskState.MOUNTED, 12.0, 1.0, 1024),),
            agent_version="0.1.0",
        ),
    )
    encoded = wire.encode(beat).replace(b"%", b"%%")
    changing = b'"sequence":987654321'
    assert encoded.count(changing) == 1
    assert encoded.count(b"1234567.125") == 1
    head, tail = encoded.replace(changing, b'"sequence":%d').split(b"1234567.125")
    return f"hm.agent.heartbeat.{agent(n)}".encode(), head + b"%.6f", tail.replace(b"%%", b"%")


# The listeners, each in a process of its own


@dataclass
class Heard:
    messages: int
    cpu_seconds: float
    rss_mib_before: float
    rss_mib_after: float
    verdicts: dict[str, int]
    longest_turn_ms: float = 0.0


async def bare(url: str, agents: int) -> Heard:
    """A nats-py subscriber that counts."""
    client = await nats.connect(url)
    count = 0

    async def counted(_message: object) -> None:
        nonlocal count
        count += 1

    await client.subscribe(
        "hm.agent.heartbeat.*", cb=counted, pending_msgs_limit=1_000_000, pending_bytes_limit=256 * 1024 * 1024
    )
    await client.flush()
    heard = await measured(agents, lambda: count, dict)
    await client.close()
    return heard


async def monitored(url: str, agents: int) -> Heard:
    """The real monitor, on the real bus, that expects `agents` agents and has a verdict on each."""
    bus = await NatsBus.open(BusSettings((url,)), "monitor")
    await bus.wait_connected(10)
    fleet = Fleet(Policy().liveness, asyncio.get_running_loop().time())
    ids = (str(n) for n in itertools.count())
    client = AgentClient(bus, MonitorId("m"), lambda: next(ids))
    await client.open()
    monitor = Monitor(
        bus=bus,
        fleet=fleet,
        journal=Expected(agents),
        agents=client,
        clouds={},
        channels=[LogChannel("log")],
        resurrector=Idle(),
        leadership=Idle(),
        policy=Policy(),
        monitor_id=MonitorId("m"),
        unix_time=time.time,
        new_id=lambda: next(ids),
    )
    running = asyncio.create_task(monitor.run())
    while monitor.turns < 2:
        if running.done():
            running.result()  # a monitor that ended hears nothing: its error is the outcome
        await asyncio.sleep(0.05)
    await bus.flush(5)
    heard = await measured(
        agents, lambda: fleet.counters.heartbeats, lambda: {key.value: n for key, n in fleet.verdicts().items() if n}
    )
    heard.longest_turn_ms = monitor.longest_turn_seconds * 1000
    running.cancel()
    await asyncio.wait({running})
    await bus.close()
    return heard


class Expected:
    """A journal that is read only: `count` instances, 100 a deployment."""

    def __init__(self, count: int) -> None:
        self._instances = {
            instance(n): InstanceRecord(
                instance=instance(n),
                deployment=DeploymentName(f"shop-{n // 100}"),
                index=n % 100,
                group=GROUP,
                deployment_revision=Revision(1),
                revision=Revision(1),
                generation=Generation(1),
                vm=VmBinding(agent(n), Generation(1), f"key-{n}", VmCid(f"vm-{n}")),
            )
            for n in range(count)
        }

    def instances(self) -> Mapping[InstanceId, InstanceRecord]:
        return self._instances

    def operations(self) -> Mapping[InstanceId, Operation]:
        return {}

    def instance(self, instance: InstanceId) -> InstanceRecord | None:
        return self._instances.get(instance)

    def operation(self, instance: InstanceId) -> Operation | None:
        return None

    def spares(self) -> Mapping[str, SpareRecord]:
        return {}

    def silences(self) -> Mapping[str, Silence]:
        return {}

    def maintenance(self) -> Mapping[str, Maintenance]:
        return {}

    async def read_incidents(self) -> Mapping[str, Incident]:
        return {}

    def switches(self) -> Switches:
        return Switches()

    def incidents(self) -> Mapping[str, Incident]:
        return {}

    async def save_incident(self, incident: Incident) -> None:
        return None

    async def delete_incident(self, incident_key: str) -> None:
        return None

    async def append_event(self, event: Event) -> int:
        return 0


class Idle:
    def strays(self) -> tuple[()]:
        return ()

    def take_losses(self) -> tuple[()]:
        return ()

    def set_judgement(self, judgement: Judgement) -> None:
        return None

    def wake(self) -> None:
        return None

    def is_leader(self) -> bool:
        return True


async def measured(agents: int, count: Callable[[], int], verdicts: Callable[[], dict[str, int]]) -> Heard:
    """From when every agent was heard once to the last message."""
    before = rss_mib()
    print("ready", flush=True)
    while count() < agents:
        await asyncio.sleep(0.01)
    began, first = time.process_time(), count()
    last, at, cpu = first, time.monotonic(), began
    found = verdicts()
    while time.monotonic() - at < QUIET_SECONDS:
        await asyncio.sleep(0.1)
        if count() != last:
            last, at, cpu = count(), time.monotonic(), time.process_time()
            found = {}
    return Heard(last - first, cpu - began, before, rss_mib(), found or verdicts())


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024 / 1024


# The run


async def run(arguments: argparse.Namespace) -> int:
    results: dict[str, list[Heard]] = {"bare": [], "monitor": []}
    with tempfile.TemporaryDirectory() as directory:
        async with nats_server(Path(directory)) as server:
            for _ in range(arguments.rounds):
                for role, found in results.items():
                    found.append(await one(role, server.url, arguments))
    return report(results, arguments)


async def one(role: str, url: str, arguments: argparse.Namespace) -> Heard:
    common = ["--agents", str(arguments.agents), "--messages", str(arguments.messages), "--rate", str(arguments.rate)]
    command = [sys.executable, "-m", "tests.bench.bench_heartbeats", "--url", url, *common]
    if arguments.uvloop:
        command.append("--uvloop")
    listener = await asyncio.create_subprocess_exec(*command, "--role", role, stdout=asyncio.subprocess.PIPE)
    assert listener.stdout is not None
    try:
        async with asyncio.timeout(60 + 4 * arguments.messages / arguments.rate):
            while (await listener.stdout.readline()).strip() != b"ready":
                if listener.stdout.at_eof():
                    raise RuntimeError(f"the {role} listener ended")
            load = await asyncio.create_subprocess_exec(*command, "--role", "load")
            if await load.wait() != 0:
                raise RuntimeError("the load ended with an error")
            output = (await listener.stdout.read()).decode()
            await listener.wait()
    finally:
        if listener.returncode is None:
            listener.kill()
            await listener.wait()
    return Heard(**json.loads(output.strip().splitlines()[-1]))


def report(results: dict[str, list[Heard]], arguments: argparse.Namespace) -> int:
    size = len(template(0)[1]) + len(template(0)[2]) + 12
    loop = "uvloop" if arguments.uvloop else "asyncio"
    print(f"{arguments.agents} agents, heartbeats of {size} bytes, {arguments.rate}/s offered, {loop}")
    print(f"{'listener':<10}{'messages':>10}{'CPU s':>8}{'msg/CPU-s':>11}{'RSS MiB':>9}")
    rates: dict[str, float] = {}
    for role, found in results.items():
        for each in found:
            rate = each.messages / each.cpu_seconds
            print(f"{role:<10}{each.messages:>10}{each.cpu_seconds:>8.2f}{rate:>11.0f}{each.rss_mib_after:>9.0f}")
        rates[role] = statistics.median(each.messages / each.cpu_seconds for each in found)
    last = results["monitor"][-1]
    kib = (last.rss_mib_after - last.rss_mib_before) * 1024 / arguments.agents
    ratio = rates["monitor"] / rates["bare"]
    print(f"verdicts: {last.verdicts}; longest turn {last.longest_turn_ms:.0f} ms; {kib:.1f} KiB an agent once heard")
    print(f"ratio {ratio:.2f} (target {TARGET_RATIO:.2f}): {'met' if ratio >= TARGET_RATIO else 'NOT met'}")
    alive = last.verdicts == {Verdict.ALIVE.value: arguments.agents}
    return 0 if ratio >= TARGET_RATIO and alive else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--rate", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--uvloop", action="store_true", help="both listeners on uvloop")
    parser.add_argument("--role", choices=("all", "bare", "monitor", "load"), default="all", help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "all":
        return asyncio.run(run(arguments))
    if arguments.role == "load":
        offer(arguments.url, arguments.agents, arguments.messages, arguments.rate)
        return 0
    listen: Any = bare if arguments.role == "bare" else monitored
    factory = None
    if arguments.uvloop:
        import uvloop  # an optional extra

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        heard = runner.run(listen(arguments.url, arguments.agents))
    print(json.dumps({name: getattr(heard, name) for name in heard.__dataclass_fields__}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
