"""From SIGKILL of a virtual machine to its containers healthy with their data, where a spare VM is ready; alone, and
with every core of this machine busy with something else.

    python -m tests.bench.bench_spare --rounds 5

What is measured is what bench_vm measures. Before each round a spare is ready again; the load begins after that, and
ends with the round.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys

from tests.bench.bench_vm import NETWORKS, Round, measure, report
from tests.support.centre import Centre
from tests.support.waiting import until

ALLOWED_SECONDS = 8.0
ALLOWED_LOADED = 2.0
SPARE_SECONDS = 300.0
CONFIGURATION = "spares: {local: 1}"
BURN = "while True: pass"
"""Of a core, one process."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only with this one")
    arguments = parser.parse_args()
    for network in arguments.network or NETWORKS:
        alone = asyncio.run(measure(network, arguments.rounds, CONFIGURATION, spare_is_ready))
        report(f"{network}, with a spare", alone)
        with Load() as load:
            loaded = asyncio.run(measure(network, arguments.rounds, CONFIGURATION, load.begins_when_ready))
        report(f"{network}, with a spare, every core busy", loaded)
        judge(alone, loaded)


def judge(alone: list[Round], loaded: list[Round]) -> None:
    median = statistics.median(each.total for each in alone)
    within = median <= ALLOWED_SECONDS
    print(f"  with a spare {median:.2f} s: {'within' if within else 'MORE THAN'} the {ALLOWED_SECONDS:g} s allowed")
    slower = statistics.median(each.total for each in loaded) / ALLOWED_SECONDS
    within = slower <= ALLOWED_LOADED
    print(f"  busy: {slower:.2f} x that: {'within' if within else 'MORE THAN'} the {ALLOWED_LOADED:g} x allowed")


async def spare_is_ready(site: Centre) -> None:
    async def ready() -> bool:
        spares = (await site.get("/v1/status"))["spares"]
        return any(spare["state"] == "ready" for spare in spares)

    await until(ready, SPARE_SECONDS, "a spare is ready")


class Load:
    """As many busy processes as there are cores."""

    def __init__(self) -> None:
        self._burning: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def begins_when_ready(self, site: Centre) -> None:
        """Making the next spare is not what is measured, so the load rests while that is done."""
        for process in self._burning:
            process.send_signal(signal.SIGSTOP)
        await spare_is_ready(site)
        if not self._burning:
            self._burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1)]
        for process in self._burning:
            process.send_signal(signal.SIGCONT)

    def _end(self) -> None:
        for process in self._burning:
            process.kill()
            process.wait()
        self._burning = []


if __name__ == "__main__":
    main()
