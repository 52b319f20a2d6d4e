"""How long nobody leads: `python -m tests.bench.bench_takeover --rounds 10`.

Two real monitors on a real cluster of three nats-servers on this machine, with the default lease. Each round the one
that leads is killed with SIGKILL, then the other is asked to step down; and once the nats-server that leads the lease's
bucket is killed. Beside each the bound that the policy gives.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from http import HTTPStatus
from pathlib import Path

from healthmonitor.core.policy import LeadershipPolicy
from tests.support.monitors import MonitorProgram, Site, monitors_on_a_cluster
from tests.support.waiting import until

FOLLOWED_SECONDS = 60.0


async def main(rounds: int) -> None:
    policy = LeadershipPolicy()
    killed, asked = [], []
    with tempfile.TemporaryDirectory(prefix="resurgam-takeover-") as directory:
        async with monitors_on_a_cluster(Path(directory), 2) as site:
            for _ in range(rounds):
                await site.warm()
                old = await site.leader()
                began_at = time.monotonic()
                await old.kill()
                await followed(site, old)
                killed.append(time.monotonic() - began_at)
                await old.start()
                await site.warm()
                old = await site.leader()
                asked.append(await stepped_down(old))
            await site.warm()
            node = await site.cluster.stream_leader("KV_leader")
            began_at = time.monotonic()
            await node.kill()
            await until(lambda: nobody(site), FOLLOWED_SECONDS, "nobody leads")
            await site.leader()
            without_server = time.monotonic() - began_at
    bound = policy.ttl_seconds + policy.renew_seconds
    print("what                                             least  median    most  bound")
    print(row(f"the leader killed, another leads ({rounds} x)", killed, f"{bound:.1f} s and a write"))
    print(row(f"the leader asked to step down, another leads ({rounds} x)", asked, "one renewal and a write"))
    print(row("the lease's nats-server killed, somebody leads", [without_server], "JetStream's election, 4 to 9 s"))


async def stepped_down(leader: MonitorProgram) -> float:
    """How long it took, from the question that it agreed to: it refuses while nobody could follow, and who was only
    just started could not."""
    took = 0.0

    async def agrees() -> bool:
        nonlocal took
        began_at = time.monotonic()
        response = await leader.http.post("/v1/monitors/step-down", json={"seconds": 1})
        if response.status_code == HTTPStatus.CONFLICT:
            return False
        response.raise_for_status()
        took = time.monotonic() - began_at
        return True

    await until(agrees, FOLLOWED_SECONDS, "the leader agrees to step down", every_seconds=0.5)
    return took


async def followed(site: Site, old: MonitorProgram) -> None:
    (other,) = [each for each in site.monitors if each is not old]
    await until(other.leads, FOLLOWED_SECONDS, "the other leads", every_seconds=0.01)


async def nobody(site: Site) -> bool:
    return not any([await each.leads() for each in site.monitors])


def row(what: str, seconds: list[float], bound: str) -> str:
    figures = (min(seconds), statistics.median(seconds), max(seconds))
    return f"{what:<48} " + " ".join(f"{each:5.2f} s" for each in figures) + f"  {bound}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    asyncio.run(main(parser.parse_args().rounds))
