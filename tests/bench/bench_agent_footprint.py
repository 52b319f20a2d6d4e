"""What supervision costs when nothing happens: resident memory and CPU of a process of its own that runs the
supervisor with the Docker engine and N containers.

    python -m tests.bench.bench_agent_footprint --seconds 60

Included: interpreter, supervisor, Docker SDK, event stream, probes every 2 s, full looks every 10 s, kill counters.
Not included: heartbeats, bus, commands, disks (they are measured with the whole agent), dockerd itself.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from pathlib import Path

import psutil

from agent.dockerd import DirectDaemon
from tests.bench.supervised import instance, quiet, supervisor, wait_for
from tests.support.dockerd import IMAGE, own_docker

MEMORY_ALLOWED_MB = 60.0
CPU_ALLOWED_PERCENT = 1.0
SETTLE_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--containers", type=int, default=20)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asyncio.run(_child(Path(arguments.child), arguments.containers))
        return
    with own_docker() as docker:
        command = (sys.executable, "-m", "tests.bench.bench_agent_footprint", "--child", str(docker.directory))
        child = subprocess.Popen((*command, "--containers", str(arguments.containers)), stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()  # settled
            for _ in range(arguments.rounds):
                _print_round(psutil.Process(child.pid), arguments.seconds, arguments.containers)
        finally:
            child.kill()
            child.wait()


def _print_round(process: psutil.Process, seconds: float, containers: int) -> None:
    time.sleep(SETTLE_SECONDS)
    before, began_at = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after, lasted = process.cpu_times(), time.monotonic() - began_at
    cpu_percent = 100.0 * (after.user + after.system - before.user - before.system) / lasted
    memory_mb = process.memory_info().rss / 1e6
    fits = memory_mb <= MEMORY_ALLOWED_MB and cpu_percent <= CPU_ALLOWED_PERCENT
    print(
        f"{containers} containers, idle for {lasted:.0f} s: "
        f"{memory_mb:.1f} MB resident (allowed {MEMORY_ALLOWED_MB:.0f}), "
        f"{cpu_percent:.2f} % of a core (allowed {CPU_ALLOWED_PERCENT:.0f}): {'within' if fits else 'NOT WITHIN'}"
    )


async def _child(directory: Path, containers: int) -> None:
    quiet()
    daemon = DirectDaemon(directory / "docker.pid", directory / "dockerd.log", ("dockerd",))
    supervising = supervisor(str(directory / "docker.sock"), daemon)
    supervising.set_desired(instance(IMAGE, [f"c{number:02d}" for number in range(containers)]))
    task = asyncio.create_task(supervising.run())
    await wait_for(lambda: supervising.report().settled)
    print("settled", flush=True)
    await task


if __name__ == "__main__":
    main()
