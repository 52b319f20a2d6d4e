"""From SIGKILL of a virtual machine to its containers healthy with their data, and how much of that is our own.

    python -m tests.bench.bench_vm --rounds 7

A real VM (warm template), a Redis with a persistent disk, a real monitor. The floor is what nobody could leave out:
the cloud's calls, the boot of the agent, the start of the container until its health check passes. Our own is the rest:
noticing, deciding, writing the journal, asking the agent, checking and mounting the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.ids import CloudName, VmCid
from tests.support import redis_client, vms
from tests.support.centre import Centre, centre
from tests.support.nats import free_port

INSTANCE = "shop/db/0"
ALLOWED_SECONDS = 15.0
ALLOWED_OWN_SECONDS = 1.0
KEYS = 20
CLOUD = frozenset({"fence", "delete_vm", "make_disks", "free_disks", "create_vm", "attach"})
BOOT = frozenset({"hear_agent"})
CONTAINERS = frozenset({"healthy"})
NETWORKS = ("network_mode: host", 'ports: ["6379:6379"]')
"""The VM's own network, and the instance's bridge: Docker sets the latter up by starting itself anew four times for
each container, which costs seconds where every instruction is emulated."""


@dataclass(frozen=True)
class Round:
    total: float
    cloud: float
    boot: float
    containers: float
    steps: Mapping[str, float]  # of the operation, in order; what is before the first is noticing

    @property
    def own(self) -> float:
        return self.total - self.floor

    @property
    def floor(self) -> float:
        return self.cloud + self.boot + self.containers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only with this one")
    arguments = parser.parse_args()
    for network in arguments.network or NETWORKS:
        rounds = asyncio.run(measure(network, arguments.rounds))
        report(network, rounds)


def report(network: str, rounds: list[Round]) -> None:
    def median(name: str) -> float:
        values: list[float] = [getattr(each, name) for each in rounds]
        return statistics.median(values)

    total, own = median("total"), median("own")
    totals = sorted(each.total for each in rounds)
    print(f"VM killed, Redis with `{network}`, {len(rounds)} rounds, medians in seconds:")
    print(f"  total {total:.2f} (min {totals[0]:.2f}, max {totals[-1]:.2f})")
    steps = {name: statistics.median(each.steps.get(name, 0.0) for each in rounds) for name in rounds[0].steps}
    print(f"  steps: {', '.join(f'{name} {seconds:.2f}' for name, seconds in steps.items())}")
    print(f"  cloud {median('cloud'):.2f}, boot {median('boot'):.2f}, container start {median('containers'):.2f}")
    print(f"  own {own:.2f}; total / floor {statistics.median(each.total / each.floor for each in rounds):.2f}")
    for what, value, allowed in (("total", total, ALLOWED_SECONDS), ("own", own, ALLOWED_OWN_SECONDS)):
        print(f"  {what} {value:.2f} s: {'within' if value <= allowed else 'MORE THAN'} the {allowed:g} s allowed")


async def measure(
    network: str,
    rounds: int,
    configuration: str = "",
    before_each: Callable[[Centre], Awaitable[None]] | None = None,
) -> list[Round]:
    """`before_each`: awaited before each VM is killed."""
    directory = Path(tempfile.mkdtemp(prefix="resurgam-bench-"))
    port = free_port()
    try:
        async with (
            vms.machines(directory, CloudName("local"), sizes=((1, 512),)) as machines,
            centre(directory / "centre", machines.yaml, configuration) as site,
        ):
            await site.deploy(manifest(network, port))
            view = await site.running(INSTANCE, 300)
            await redis_client.write_data(port, KEYS)
            measured = []
            for _ in range(rounds):
                if before_each is not None:
                    await before_each(site)
                killed_at = time.time()
                machines.kill(VmCid(view["vm"]["vm_cid"]))
                view = await site.running(INSTANCE, 300, generation=view["generation"] + 1)
                assert await redis_client.checksum(port, KEYS) == redis_client.expected_checksum(KEYS)
                measured.append(await one_round(site, killed_at))
            return measured
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def manifest(network: str, port: int) -> str:
    return f"""
name: shop
stemcell: demo
cloud: local
instance_groups:
  - name: db
    instances: 1
    vm: {{cpus: 1, memory: 512MiB, cloud_properties: {{forward_ports: ["127.0.0.1:{port}:6379"]}}}}
    persistent_disks: {{data: 128MiB}}
    containers:
      redis:
        image: resurgam-demo/redis:1
        command: ["--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--protected-mode", "no"]
        {network}
        volumes: ["data:/data"]
        healthcheck: {{test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 10s, retries: 10, start_period: 30s}}
"""


async def one_round(site: Centre, killed_at: float) -> Round:
    """From the timeline: each step with how long it took, and when the last was done."""
    events = [event for event in await site.events("operation", INSTANCE) if event["at"] > killed_at]
    done = next(event["at"] for event in reversed(events) if event["kind"] == "operation.done")

    def seconds(steps: frozenset[str]) -> float:
        return sum(_seconds(event) for event in events if event["fields"].get("step") in steps)

    steps = {event["fields"]["step"]: _seconds(event) for event in events if "step" in event["fields"]}
    total = done - killed_at
    steps = {"noticing and writing": total - sum(steps.values()), **steps}
    return Round(total, seconds(CLOUD), seconds(BOOT), seconds(CONTAINERS), steps)


def _seconds(event: dict[str, Any]) -> float:
    return float(event["fields"].get("seconds", 0.0))


if __name__ == "__main__":
    main()
