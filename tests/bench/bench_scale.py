"""A big fleet, one real monitor process, a real nats-server: does it keep up, what does it cost, how soon does it know
that a thousand died.

    python -m tests.bench.bench_scale                      30,000 agents for half a minute
    python -m tests.bench.bench_scale --agents 100000 --seconds 300

In one run, one after the other: start-up with all instances known (their records are put into the journal before);
heartbeats of all agents (`tests/bench/load.py`) for `--seconds`, heard by the monitor and, beside it, by a bare nats-py
subscriber in a process of its own; `resurgam status`; a second monitor that takes over when the first is killed;
`--die` VMs that fall silent within 2 s. Figures are the process' own (`/metrics`) and the kernel's (`/proc`): CPU time,
resident memory. Limits are printed beside them; nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nats

from healthmonitor.journal import DEPLOYMENTS, INSTANCES
from protocol import codec
from protocol.ids import DeploymentName, instance_key
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.bench import invented_fleet
from tests.bench.invented_fleet import PER_DEPLOYMENT
from tests.support.nats import NatsServer, free_port
from tests.support.receivers import HttpReceiver
from tests.support.waiting import until

REPOSITORY = Path(__file__).resolve().parents[2]
INTERVAL_SECONDS = 10.0
LEASE_SECONDS = 30.0
MEMORY_ALLOWED_BYTES = 1536
TURN_ALLOWED_SECONDS = 0.050
RATIO_ALLOWED = 0.60
DEATHS_ALLOWED_SECONDS = 5.0
START_SECONDS_MAX = 600.0
RECEIVED = 'resurgam_heartbeats_total{what="received"}'
LATE = 'resurgam_heartbeats_total{what="late"}'
ALIVE = 'resurgam_vms{verdict="alive"}'
CRITICAL = 'resurgam_incidents_open{severity="critical"}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=30_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the load is measured")
    parser.add_argument("--die", type=int, default=1_000, help="0: nobody")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="resurgam-scale-"))
    try:
        return asyncio.run(Run(directory, arguments.agents, arguments.seconds, arguments.die).all())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# Processes, as the kernel sees them


@dataclass
class Watched:
    """A process that we started."""

    process: asyncio.subprocess.Process

    @property
    def cpu_seconds(self) -> float:
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)
        await self.process.wait()


class MonitorProcess:
    """The real program with a configuration of its own."""

    def __init__(self, directory: Path, name: str, nats_url: str, webhook_port: int) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._port = free_port()
        self._configuration = directory / f"{name}.yml"
        self._configuration.write_text(
            f"""
monitor: {name}
state_dir: {directory / name}
bus: {{urls: ["{nats_url}"]}}
http: {{listen: "127.0.0.1:{self._port}"}}
heartbeat: {{interval: {INTERVAL_SECONDS:g}s}}
resurrector: {{enabled: true}}
log_level: warning
channels:
  - {{name: page, type: webhook, options: {{url: "http://127.0.0.1:{webhook_port}/page"}}}}
clouds: {{}}
"""
        )
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=120.0)
        self._watched: Watched | None = None

    @property
    def api(self) -> str:
        return str(self.http.base_url)

    @property
    def watched(self) -> Watched:
        assert self._watched is not None
        return self._watched

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._watched = Watched(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "healthmonitor",
                    "--config",
                    str(self._configuration),
                    cwd=REPOSITORY,
                    stdout=log,
                    stderr=log,
                )
            )

    async def healthy(self) -> bool:
        if self.watched.process.returncode is not None:
            raise RuntimeError(f"monitor {self.name} ended: {self.log.read_text()[-3000:]}")
        try:
            return (await self.http.get("/healthz")).status_code == 200
        except httpx.TransportError:
            return False

    async def leads(self) -> bool:
        try:
            return bool((await self.http.get("/healthz")).json()["leader"])
        except httpx.TransportError:
            return False

    async def figures(self) -> dict[str, float]:
        """/metrics: name with labels → value."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


# The run


@dataclass
class Samples:
    """Of one second each, while the load is on."""

    backlog: list[float] = field(default_factory=list)
    canary_seconds: list[float] = field(default_factory=list)
    longest_turn_seconds: list[float] = field(default_factory=list)
    loop_late_seconds: list[float] = field(default_factory=list)


class Run:
    def __init__(self, directory: Path, agents: int, seconds: float, die: int) -> None:
        self._directory = directory
        self._agents = agents
        self._seconds = seconds
        self._die = die
        self._server = NatsServer(directory / "nats")
        self._told: list[dict[str, float]] = []  # by the load
        self._receiver = HttpReceiver()
        self._empty_rss = 0

    async def all(self) -> int:
        load = os.getloadavg()
        print(f"{self._agents} agents, every {INTERVAL_SECONDS:g} s; load average before: {load[0]:.1f} {load[1]:.1f}")
        await self._receiver.start()
        empty = self._empty_rss = await self._empty_monitor()
        await self._put_records()
        await self._server.start()
        monitors = [
            MonitorProcess(self._directory, name, self._server.url, self._receiver.port) for name in ("first", "second")
        ]
        first, second = monitors
        try:
            loaded = await self._start_up(first, empty)
            async with self._load():
                await self._hear(first, loaded)
                await self._status(first)
                await self._take_over(first, second)
                if self._die:
                    await self._deaths(second)
        except Exception:
            for monitor in monitors:
                if monitor.log.exists():
                    print(f"the end of {monitor.name}'s log:\n{monitor.log.read_text()[-3000:]}")
            raise
        finally:
            for monitor in monitors:
                if monitor._watched is not None:
                    await monitor.watched.end(signal.SIGKILL)
                await monitor.http.aclose()
            await self._server.stop()
            await self._receiver.stop()
        load = os.getloadavg()
        print(f"load average after: {load[0]:.1f} {load[1]:.1f}")
        return 0

    # Start-up

    async def _empty_monitor(self) -> int:
        """Resident bytes of a monitor that knows nothing."""
        server = NatsServer(self._directory / "empty-nats")
        await server.start()
        monitor = MonitorProcess(self._directory, "empty", server.url, self._receiver.port)
        await monitor.start()
        await until(monitor.healthy, 60, "an empty monitor is healthy")
        await asyncio.sleep(1)
        rss = monitor.watched.rss_bytes
        await monitor.watched.end()
        await monitor.http.aclose()
        await server.stop()
        return rss

    async def _put_records(self) -> None:
        """Straight into the buckets' streams, not synced one by one: 100,000 acknowledged writes would take minutes."""
        configuration = self._server.directory / "nats.conf"
        durable = configuration.read_text()
        configuration.write_text(durable.replace("sync_interval: always", ""))
        await self._server.start()
        bus = await NatsBus.open(BusSettings((self._server.url,)), "records")
        await bus.wait_connected(10)
        for name in (INSTANCES, DEPLOYMENTS):
            await bus.bucket(name)
        client = await nats.connect(self._server.url)
        size = 0
        for n in range(self._agents):
            value = codec.to_json(invented_fleet.record(n))
            size += len(value)
            await client.publish(f"$KV.{INSTANCES}.{instance_key(invented_fleet.instance(n))}", value)
            if n % 500 == 499:
                await client.flush(60)
        for n in range(0, self._agents, PER_DEPLOYMENT):
            name = DeploymentName(invented_fleet.deployment(n))
            await client.publish(f"$KV.{DEPLOYMENTS}.{name}", codec.to_json(invented_fleet.deployment_record(name)))
        await client.flush(60)

        async def stored() -> bool:
            info = await client.jetstream().stream_info(f"KV_{INSTANCES}")
            return bool(info.state.messages == self._agents)

        await until(stored, 120, "all records are stored")
        await client.close()
        await bus.close()
        await self._server.stop()
        configuration.write_text(durable)
        print(f"journal: {self._agents} instance records of {size / self._agents:.0f} bytes")

    async def _start_up(self, monitor: MonitorProcess, empty_rss: int) -> int:
        began = time.monotonic()
        await monitor.start()
        await until(monitor.leads, START_SECONDS_MAX, "the monitor leads")
        leads = time.monotonic() - began
        await until(lambda: self._knows(monitor), START_SECONDS_MAX, "the monitor knows all")
        knows = time.monotonic() - began
        figures = await monitor.figures()
        await asyncio.sleep(3)
        rss = monitor.watched.rss_bytes
        print(
            f"start-up: leads after {leads:.1f} s, judges all after {knows:.1f} s, {monitor.watched.cpu_seconds:.1f} s "
            f"of CPU; longest turn {figures['resurgam_turn_longest_seconds'] * 1000:.0f} ms"
        )
        print(
            f"memory: empty {mib(empty_rss)}, with all records {mib(rss)}: "
            f"{(rss - empty_rss) / self._agents:.0f} bytes a record (expected state, nothing heard yet)"
        )
        return rss

    async def _knows(self, monitor: MonitorProcess) -> bool:
        figures = await monitor.figures()
        return sum(value for name, value in figures.items() if name.startswith("resurgam_vms{")) >= self._agents

    # The load

    @contextlib.asynccontextmanager
    async def _load(self) -> AsyncIterator[None]:
        load = await self._python("tests.bench.load", "--agents", self._agents, "--interval", INTERVAL_SECONDS,
                                  "--seconds", 86400)  # fmt: skip
        reading = asyncio.create_task(self._read(load))
        try:
            await until(lambda: bool(self._told), START_SECONDS_MAX, "the load begins")
            yield
        finally:
            await load.end(signal.SIGKILL)
            await reading

    async def _python(self, module: str, *arguments: object) -> Watched:
        return Watched(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, "--url", self._server.url, *map(str, arguments),
                cwd=REPOSITORY, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
        )  # fmt: skip

    async def _read(self, load: Watched) -> None:
        assert load.process.stdout is not None
        self._load_process = load
        async for line in load.process.stdout:
            self._told.append(json.loads(line))

    async def _hear(self, monitor: MonitorProcess, rss_before: int) -> None:
        bare = await self._python("tests.bench.bare_subscriber")
        assert bare.process.stdout is not None

        async def all_heard() -> bool:
            return (await monitor.figures())[RECEIVED] >= self._agents

        await until(all_heard, 10 * INTERVAL_SECONDS, "all agents were heard once")
        await asyncio.sleep(INTERVAL_SECONDS)
        samples = Samples()
        figures = await monitor.figures()
        began, cpu, bare_cpu = time.monotonic(), monitor.watched.cpu_seconds, bare.cpu_seconds
        heard, bare_heard = figures[RECEIVED], await self._count(bare)
        turns, cpu_turns = figures["resurgam_turns_total"], figures["resurgam_turn_seconds_total"]
        while time.monotonic() < began + self._seconds:
            await asyncio.sleep(1)
            await self._sample(monitor, samples)
        took = time.monotonic() - began
        figures = await monitor.figures()
        cpu, bare_cpu = monitor.watched.cpu_seconds - cpu, bare.cpu_seconds - bare_cpu
        heard = figures[RECEIVED] - heard
        bare_heard = await self._count(bare) - bare_heard
        rss = monitor.watched.rss_bytes
        await bare.end()
        turns, cpu_turns = figures["resurgam_turns_total"] - turns, figures["resurgam_turn_seconds_total"] - cpu_turns
        sizes = self._told[0]["bytes"]
        print(f"load for {took:.0f} s: {heard / took:.0f} heartbeats/s of {sizes:.0f} bytes heard, "
              f"{bare_heard / took:.0f}/s by the bare subscriber beside it")  # fmt: skip
        print(f"  {'listener':<10}{'CPU s':>8}{'CPU share':>11}{'msg/CPU-s':>11}")
        for name, count, used in (("bare", bare_heard, bare_cpu), ("monitor", heard, cpu)):
            print(f"  {name:<10}{used:>8.1f}{used / took:>10.0%} {count / used:>11.0f}")
        ratio = (heard / cpu) / (bare_heard / bare_cpu)
        limit("takes in, of what the bare one takes for a second of CPU", ratio, RATIO_ALLOWED, "", at_least=True)
        print(
            f"  of the monitor's CPU {cpu_turns / cpu:.0%} went into {turns / took:.1f} turns/s; the rest is hearing, "
            "the bus, the metrics asked every second"
        )
        thirds = max(1, len(samples.backlog) // 3)
        print(
            f"  not heard yet, median of the first third {statistics.median(samples.backlog[:thirds]):.0f}, of the "
            f"last {statistics.median(samples.backlog[-thirds:]):.0f}, most {max(samples.backlog):.0f} heartbeats; "
            f"the canary took {statistics.median(samples.canary_seconds) * 1000:.0f} ms (median), "
            f"{max(samples.canary_seconds) * 1000:.0f} ms at most, "
            f"{statistics.median(samples.canary_seconds[-thirds:]) * 1000:.0f} ms in the last third"
        )
        limit("longest turn", max(samples.longest_turn_seconds) * 1000, TURN_ALLOWED_SECONDS * 1000, " ms")
        settled = max(samples.longest_turn_seconds[-thirds:]) * 1000
        print(f"  in the last third and the minute or two before it: {settled:.0f} ms; at first all are heard anew")
        print(f"  the loop was late by at most {max(samples.loop_late_seconds) * 1000:.0f} ms (sampled)")
        print(
            f"  alive {figures[ALIVE]:.0f} of {self._agents}, late heartbeats {figures[LATE]:.0f}, "
            f"questions {figures['resurgam_questions_to_agents_total']:.0f}"
        )
        limit("memory for each agent heard", (rss - rss_before) / self._agents, MEMORY_ALLOWED_BYTES, " bytes")
        in_all = (rss - self._empty_rss) / self._agents
        print(
            f"  resident in all: {mib(rss)}, {in_all:.0f} bytes for each instance, its record and what its agent says"
        )

    async def _sample(self, monitor: MonitorProcess, samples: Samples) -> None:
        figures = await monitor.figures()
        heard_at = time.monotonic()
        latest = next(facts for facts in reversed(self._told) if "sent" in facts)
        rate = self._told[0]["rate"]
        sent = latest["turns"] + (heard_at - latest["at"]) * rate
        samples.backlog.append(sent - figures[RECEIVED])
        samples.canary_seconds.append(figures["resurgam_canary_seconds"])
        samples.longest_turn_seconds.append(figures["resurgam_turn_longest_lately_seconds"])
        samples.loop_late_seconds.append(figures["resurgam_loop_lag_seconds"])

    async def _count(self, bare: Watched) -> int:
        assert bare.process.stdin is not None
        assert bare.process.stdout is not None
        bare.process.stdin.write(b"\n")
        await bare.process.stdin.drain()
        return int(await bare.process.stdout.readline())

    # People, and other monitors

    async def _status(self, monitor: MonitorProcess) -> None:
        for arguments in (("status",), ("status", "shop-7"), ("status", "shop-7/web/3")):
            began = time.monotonic()
            command = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "healthmonitor.cli", "--api", monitor.api, *arguments,
                cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await command.communicate()
            took = time.monotonic() - began
            figures = await monitor.figures()
            lines = len(output.splitlines())
            print(
                f"resurgam {' '.join(arguments)}: {took:.1f} s, {lines} lines, {len(output)} bytes, ended with "
                f"{command.returncode}; right after it the loop was late by "
                f"{figures['resurgam_loop_lag_seconds'] * 1000:.0f} ms"
            )
        began = time.monotonic()
        answer = await monitor.http.get("/v1/status")
        print(f"GET /v1/status: {time.monotonic() - began:.2f} s, {len(answer.content)} bytes")

    async def _take_over(self, first: MonitorProcess, second: MonitorProcess) -> None:
        began = time.monotonic()
        await second.start()
        await until(second.healthy, START_SECONDS_MAX, "the second monitor is healthy")
        print(f"take-over: the second monitor is ready after {time.monotonic() - began:.1f} s", end="")
        await asyncio.sleep(LEASE_SECONDS + 3)
        killed_at = time.monotonic()
        await first.watched.end(signal.SIGKILL)
        await until(second.leads, 60, "the second monitor leads", every_seconds=0.02)
        print(f", leads {time.monotonic() - killed_at:.2f} s after the first was killed", end="")
        await until(lambda: self._can_tell(second), 60, "the second monitor can tell", every_seconds=0.05)
        print(f", judges after {time.monotonic() - killed_at:.2f} s")

    async def _can_tell(self, monitor: MonitorProcess) -> bool:
        figures = await monitor.figures()
        return not figures["resurgam_cannot_tell"] and figures[ALIVE] == self._agents

    async def _deaths(self, monitor: MonitorProcess) -> None:
        self._receiver.requests.clear()
        assert self._load_process.process.stdin is not None
        self._load_process.process.stdin.write(b"%d\n" % self._die)
        await self._load_process.process.stdin.drain()
        await until(lambda: any("died" in facts for facts in self._told), 60, "they died")
        deaths = next(facts for facts in self._told if "died" in facts)
        over_at = deaths["last_beat"] + LEASE_SECONDS
        print(
            f"{deaths['died']:.0f} VMs fell silent within {deaths['last_died_at'] - deaths['first_died_at']:.1f} s; "
            f"their leases are over from {deaths['first_last_beat'] + LEASE_SECONDS - over_at:+.1f} s to 0 s (the last)"
        )
        seen: dict[str, float] = {}
        missing: list[float] = []
        while time.monotonic() < over_at + 20:
            await asyncio.sleep(0.05)
            figures = await monitor.figures()
            now = time.monotonic() - over_at
            missing.append(figures["resurgam_vms_missing"])
            if figures["resurgam_vms_missing"] >= deaths["died"]:
                seen.setdefault("all are judged missing", now)
            if any(name.startswith("resurgam_meltdown{") for name in figures):
                seen.setdefault("meltdown", now)
            if figures.get(CRITICAL, 0) >= deaths["died"]:
                seen.setdefault("all are open incidents", now)
            if self._pages_of_the_loss():
                seen.setdefault("it is told", now)
        for what, at in sorted(seen.items(), key=lambda item: item[1]):
            limit(what, at, DEATHS_ALLOWED_SECONDS, " s after the last lease")
        print(
            f"  most missing at once {max(missing):.0f}; longest turn lately "
            f"{figures['resurgam_turn_longest_lately_seconds'] * 1000:.0f} ms"
        )
        limit("notifications of the loss", len(self._pages_of_the_loss()), 1, "")
        for page in (request.json() for request in self._receiver.requests):
            details = [item["detail"] for item in page["items"][:1]]
            print(f"    {page['subject']}: {details}, {len(page['items'])} rows and {page['left_out']} left out")

    def _pages_of_the_loss(self) -> list[dict[str, Any]]:
        """Not those of the monitor that was killed before."""
        pages = [request.json() for request in self._receiver.requests]
        return [page for page in pages if any(not item["kind"].startswith("monitor_") for item in page["items"])]


def limit(what: str, value: float, allowed: float, unit: str, at_least: bool = False) -> None:
    good = value >= allowed if at_least else value <= allowed
    digits = 2 if allowed < 10 else 0
    bound = "at least" if at_least else "at most"
    print(f"  {what}: {value:.{digits}f}{unit}, {bound} {allowed:g}: {'met' if good else 'NOT met'}")


def mib(count: float) -> str:
    return f"{count / 1024 / 1024:.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
