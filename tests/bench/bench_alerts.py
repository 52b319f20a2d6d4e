"""How long from the verdict "missing" to the page in the receiver's hands: over a real nats-server, with the outbox on
disk, to a real HTTP server.

    python -m tests.bench.bench_alerts --rounds 20

From the moment at which the monitor's loop concludes that a VM is missing, to the moment at which the receiver has read
the whole request. In between: the incident is written and synced, the group is waited for (`alerts.group_wait`), the
notification is written and synced, and sent.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from healthmonitor.channels.build import build_channels
from healthmonitor.channels.channel import Channel
from healthmonitor.clouds.cloud import Power
from healthmonitor.core.configuration import ChannelConfiguration
from healthmonitor.core.judgement import Judgement
from healthmonitor.core.policy import MeltdownPolicy
from protocol.ids import InstanceId, VmCid
from tests.bench.supervised import quiet
from tests.integration.test_monitor_bus import POLICY, FakeAgent, RecordingResurrector, Site
from tests.support.nats import free_port, nats_server
from tests.support.waiting import until

ALLOWED_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    quiet()
    with tempfile.TemporaryDirectory() as directory:
        seconds = asyncio.run(_measure(Path(directory), rounds))
    median = statistics.median(seconds)
    print(
        f"verdict to page: median {median * 1000:.0f} ms, min {min(seconds) * 1000:.0f}, "
        f"max {max(seconds) * 1000:.0f} ({len(seconds)} rounds)"
    )
    verdict = "within" if median <= ALLOWED_SECONDS else "MORE THAN"
    print(f"median {median * 1000:.0f} ms, {verdict} the {ALLOWED_SECONDS * 1000:.0f} ms allowed")


class Receiver:
    """An HTTP server that takes everything and notes when."""

    def __init__(self) -> None:
        self.bodies: list[tuple[float, bytes]] = []

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        self.bodies.append((time.monotonic(), body))
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    def first_with(self, *words: bytes) -> float | None:
        return next((at for at, body in self.bodies if all(word in body for word in words)), None)


class TimingResurrector(RecordingResurrector):
    """Is told each turn's judgement: the verdict is there when the judgement is."""

    def __init__(self) -> None:
        super().__init__()
        self.missing_at: dict[InstanceId, float] = {}

    def take_losses(self) -> tuple[()]:
        return ()

    def set_judgement(self, judgement: Judgement) -> None:
        super().set_judgement(judgement)
        for instance in judgement.missing:
            self.missing_at.setdefault(instance, time.monotonic())
        for instance in [each for each in self.missing_at if each not in judgement.missing]:
            del self.missing_at[instance]


async def _measure(directory: Path, rounds: int) -> list[float]:
    receiver, port = Receiver(), free_port()
    server = await asyncio.start_server(receiver.take, "127.0.0.1", port)
    (channel,) = _webhook(directory, port)
    took: list[float] = []
    async with nats_server(directory) as nats:
        site = Site(nats, [FakeAgent(nats, number) for number in range(20)])
        site.resurrector = timing = TimingResurrector()
        site.channel = channel  # type: ignore[assignment]  # a real one instead of the recording one
        for agent in site.agents:
            await agent.start()
        async with site.monitor() as (monitor, _):
            # One is killed after the other, and none is rebuilt: that would be a meltdown
            monitor.set_policy(replace(POLICY, meltdown=MeltdownPolicy(enabled=False)))
            await until(lambda: all(monitor.fleet.heartbeat_seen(agent.id) for agent in site.agents), 30)
            await asyncio.sleep(3)  # its start is over: silence means something again
            for number in itertools.islice(itertools.cycle(range(20)), rounds):
                took.append(await _one(site, timing, receiver, number))
        for agent in site.agents:
            await agent.kill()
    server.close()
    await server.wait_closed()
    return took


async def _one(site: Site, timing: TimingResurrector, receiver: Receiver, number: int) -> float:
    agent, cid = site.agents[number], VmCid(f"vm-{number}")
    key = f"vm_missing:{agent.instance}".encode()
    receiver.bodies.clear()
    site.cloud.power[cid] = Power.OFF
    await agent.kill()
    await until(lambda: receiver.first_with(key, b"opened") is not None, 30)
    seconds = (receiver.first_with(key, b"opened") or 0.0) - timing.missing_at[agent.instance]
    site.cloud.power.clear()
    await agent.start()
    await until(lambda: receiver.first_with(key, b"resolved") is not None, 60)
    return seconds


def _webhook(directory: Path, port: int) -> list[Channel]:
    configuration = ChannelConfiguration("page", "webhook", {"url": f"http://127.0.0.1:{port}/page"})
    return build_channels([configuration], str(directory / "c.yml"), time.time, {})


if __name__ == "__main__":
    main()
