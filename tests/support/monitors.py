"""Several real monitors on one real cluster of three nats-servers, with VMs that are processes: everything is killed,
stopped and cut off for real, and all of it starts in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from healthmonitor.clouds.stemcell import CURRENT, MANIFEST, StemcellManifest
from protocol import codec
from tests.support.nats import free_port
from tests.support.nats_cluster import PASSWORDS, NatsCluster, write_secret
from tests.support.process_cloud import ProcessCloud
from tests.support.waiting import until

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "test-token-of-some-length"
READY_SECONDS = 180.0
MANIFEST_TEXT = """
name: shop
stemcell: light
cloud: local
instance_groups:
  - name: db
    instances: {instances}
    vm: {{cpus: 1, memory: 128MiB}}
    persistent_disks: {{data: 64MiB}}
    containers:
      redis: {{image: "redis:7", volumes: ["data:/data"]}}
"""
POLICY_TEXT = """
preset: test
leadership: {ttl: 3s, renew: 500ms}
heartbeat: {interval: 1s, lease: 8s}
liveness: {ask_timeout: 1s, observe_timeout: 2s, canary_interval: 500ms, canary_lost: 4s}
meltdown: {enabled: false}
"""
"""Leadership as by default; a lease that a busy machine does not miss."""


class MonitorProgram:
    """One monitor as a process, spoken to over HTTP; perhaps in a network namespace (then through `via`)."""

    def __init__(
        self, directory: Path, name: str, cluster: NatsCluster, cloud: Path, address: str = "", namespace: str = ""
    ) -> None:
        self.name = name
        self.directory = directory
        self.namespace = namespace
        self.address = address or f"127.0.0.1:{free_port()}"
        self.log = directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self.http = httpx.AsyncClient(
            base_url=f"http://{self.address}", timeout=10.0, headers={"authorization": f"Bearer {TOKEN}"}
        )
        secrets = {
            word: write_secret(directory / f"{name}.{word}", text)
            for word, text in (
                ("token", TOKEN),
                ("password", PASSWORDS.monitor),
                ("system", PASSWORDS.system),
                ("agents", PASSWORDS.agents),
            )
        }
        urls = ", ".join(f'"{url}"' for url in cluster.urls)
        self.configuration = directory / f"{name}.yml"
        self.configuration.write_text(
            f"""
{POLICY_TEXT}
monitor: {name}
state_dir: {directory / "state"}
bus:
  urls: [{urls}]
  user: monitor
  password_file: {secrets["password"]}
  system_user: system
  system_password_file: {secrets["system"]}
  replicas: 3
agents: {{user: agents, password_file: {secrets["agents"]}}}
http: {{listen: "{self.address}", token_file: {secrets["token"]}}}
resurrector: {{enabled: true, retry_first: 200ms, retry_longest: 2s, agent_boot: 240s, max_in_flight: 10}}
clouds:
  local: {{provider: docker, directory: {cloud}, stemcells: {directory / "stemcells"}}}
"""
        )

    async def start(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        """`arguments`: of tests.support.monitor_process; `prefix`: a command that runs it."""
        namespace = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *namespace,
                *prefix,
                sys.executable,
                "-m",
                "tests.support.monitor_process",
                "--config",
                str(self.configuration),
                "--processes",
                *arguments,
                cwd=REPOSITORY,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.runs:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def freeze(self) -> None:
        """SIGSTOP; it takes no step any more when this returns."""
        self.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self._process.pid if self._process is not None else 0}/stat")
        await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 10, "it stands still", 0.001)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                await self.kill()

    async def get(self, path: str, **parameters: Any) -> Any:
        """The reply's JSON; None when it does not answer, or not with 200."""
        try:
            response = await self.http.get(path, params=parameters)
        except httpx.TransportError:
            return None
        return response.json() if response.status_code == 200 else None

    async def leads(self) -> bool:
        if not self.runs:
            return False
        try:
            return bool((await self.http.get("/healthz")).json()["leader"])
        except (httpx.TransportError, ValueError):
            return False


class Site:
    def __init__(self, directory: Path, cluster: NatsCluster, monitors: Sequence[MonitorProgram]) -> None:
        self.directory = directory
        self.cluster = cluster
        self.monitors = list(monitors)
        self.cloud = ProcessCloud(directory / "cloud")

    async def leader(self, seconds: float = READY_SECONDS, but: MonitorProgram | None = None) -> MonitorProgram:
        """The monitor that leads, once one does; never two at a look."""

        async def found() -> MonitorProgram | None:
            leading = [each for each in self.monitors if each is not but and await each.leads()]
            return leading[0] if leading else None

        return await until(found, seconds, lambda: f"a monitor leads\n{self.logs()}", every_seconds=0.05)

    async def warm(self, seconds: float = READY_SECONDS) -> None:
        """Every monitor that runs leads or could at once, by the word of one of them."""

        async def all_warm() -> bool:
            running = [each for each in self.monitors if each.runs]
            listed = await running[0].get("/v1/monitors")
            if listed is None:
                return False
            doing = {each["monitor"]: each["doing"] for each in listed["monitors"]}
            names = {each.name for each in running}
            words = sorted(doing.get(name, "") for name in names)
            return words == sorted(["leads", *(["warm"] * (len(names) - 1))])

        await until(all_warm, seconds, "all monitors are warm", every_seconds=0.2)

    async def call(self, request: Callable[[MonitorProgram], Awaitable[httpx.Response]], seconds: float = 180.0) -> Any:
        """Asks whoever leads until it is acknowledged (as a person would, who sees that it was not)."""
        last = ""

        async def done() -> Any:
            nonlocal last
            for monitor in self.monitors:
                if not await monitor.leads():
                    continue
                try:
                    response = await request(monitor)
                except httpx.TransportError as error:
                    last = repr(error)
                    continue
                if response.status_code in (200, 201, 202):
                    return response.json()
                last = f"{response.status_code} {response.text}"
                assert response.status_code in (409, 503), last
            return None

        try:
            return await until(done, seconds, "acknowledged", every_seconds=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}; last: {last}\n{self.logs()}") from None

    async def deploy(self, instances: int) -> Any:
        body = {"manifest": MANIFEST_TEXT.format(instances=instances)}
        return await self.call(lambda monitor: monitor.http.put("/v1/deployments/shop", json=body))

    async def status(self) -> dict[str, Any]:
        """The leader's; {} while there is none."""
        for monitor in self.monitors:
            if await monitor.leads():
                found = await monitor.get("/v1/status")
                if found is not None and found["monitor"]["leader"]:
                    return dict(found)
        return {}

    async def settled(
        self, instances: int, seconds: float = 300.0, rebuilt: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Every instance runs as it should, no operation is under way: instance → its view. `rebuilt`: instance →
        generation that it must have reached, for one whose loss may not have been noticed yet."""
        last: dict[str, Any] = {}

        async def good() -> dict[str, dict[str, Any]] | None:
            nonlocal last
            last = await self.status()
            found = {each["instance"]: each for each in last.get("instances", [])}
            fine = len(found) == instances and all(
                each["tone"] == "good" and each["operation"] is None for each in found.values()
            )
            fine = fine and all(found[name]["generation"] >= least for name, least in (rebuilt or {}).items())
            rolled = all(each["rollout"] in ("done", "none") for each in last.get("deployments", []))
            return found if fine and rolled else None

        try:
            running: dict[str, dict[str, Any]] = await until(good, seconds, f"{instances} instances run", 0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast: {last}\n{self.logs()}") from None
        return running

    async def events(self, kind: str = "", last: int = 5000) -> list[dict[str, Any]]:
        """Of whichever monitor answers: none does while the bus has no leader for its store."""

        async def answered() -> dict[str, Any] | None:
            for monitor in self.monitors:
                if monitor.runs and (found := await monitor.get("/v1/events", last=last)) is not None:
                    return dict(found)
            return None

        found = await until(answered, 60, "a monitor answers", every_seconds=0.2)
        return [event for event in found["events"] if event["kind"].startswith(kind)]

    async def no_disk_had_two_writers(self) -> None:
        """By the disks themselves: once another VM wrote, the former never writes again."""
        for disk in await self.cloud.list_disks():
            writers = self.cloud.writers(disk.disk_cid)
            assert len(writers) == len(set(writers)), f"{disk.key}: {writers}\n{self.logs()}"

    def logs(self, characters: int = 3000) -> str:
        return "\n".join(
            f"--- {each.name}\n{each.log.read_text()[-characters:]}" for each in self.monitors if each.log.exists()
        )

    async def close(self) -> None:
        for monitor in self.monitors:
            await monitor.stop()
            await monitor.http.aclose()
        for summary in await self.cloud.list_vms():
            await self.cloud.delete_vm(summary.vm_cid)


def light_stemcell(directory: Path) -> None:
    """A stemcell by name only: that is all that deploying asks for."""
    home = directory / "stemcells" / "light" / "1"
    home.mkdir(parents=True)
    (home / MANIFEST).write_bytes(codec.to_json(StemcellManifest("light", "1")))
    (home.parent / CURRENT).symlink_to("1")


@contextlib.asynccontextmanager
async def monitors_on_a_cluster(
    directory: Path,
    count: int,
    arguments: Sequence[str] = (),
    prefix: Sequence[str] = (),
    stores: Sequence[Path | None] = (None, None, None),
) -> AsyncIterator[Site]:
    """Everything started, all monitors warm; all of it ended afterwards. `arguments`, `prefix`: of
    `MonitorProgram.start`; `stores`: where the nats-servers keep things."""
    cluster = NatsCluster(directory / "bus", stores=stores)
    light_stemcell(directory)
    programs = [
        MonitorProgram(directory, f"hm-{'abc'[number]}", cluster, directory / "cloud") for number in range(count)
    ]
    site = Site(directory, cluster, programs)
    try:
        await cluster.start()
        for program in programs:
            await program.start(*arguments, prefix=prefix)
        await site.warm()
        yield site
    finally:
        await site.close()
        await cluster.stop()
