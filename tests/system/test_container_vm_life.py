"""What must hold inside a VM, with the agent as it is installed (systemd unit, own dockerd): in a container VM, which
starts in seconds and lets a test reach inside.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from protocol import heartbeat
from protocol.bus import Message
from protocol.ids import CloudName
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support import vms
from tests.support.centre import Centre, centre
from tests.support.clouds import OwnEngine
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

INSTANCE = "chain/all/0"
BRIDGE = "rsgtest0"
BRIDGE_ADDRESS = "10.211.77.1/24"
MANIFEST = """
name: chain
stemcell: demo
cloud: local
instance_groups:
  - name: all
    instances: 1
    vm: {cpus: 1, memory: 512MiB}
    persistent_disks: {data: 64MiB}
    containers:
      first:
        image: resurgam-demo/tools:1
        command: ["sh", "-c", "date >> /data/starts; while true; do sleep 3600 & wait; done"]
        volumes: ["data:/data"]
        stop_grace_period: 1s
      second: &waits
        image: resurgam-demo/tools:1
        command: ["sh", "-c", "while true; do sleep 3600 & wait; done"]
        stop_grace_period: 1s
        depends_on: [first]
      third: {<<: *waits, depends_on: [second]}
      apart: {<<: *waits, depends_on: []}
      narrow: {<<: *waits, depends_on: [], mem_limit: 32m}
"""


class Inside:
    """The VM of the instance, reached through the engine that runs it."""

    def __init__(self, site: Centre, engine: OwnEngine) -> None:
        self.site = site
        self.engine = engine

    async def run(self, *command: str) -> str:
        vm = await asyncio.to_thread(self.vm)
        done = await asyncio.to_thread(
            subprocess.run,
            ("docker", "-H", self.engine.host, "exec", vm, *command),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def vm(self) -> str:
        """By the engine's word: the monitor may be dead."""
        client = self.engine.client()
        try:
            (found,) = client.containers()
            return str(found["Id"])
        finally:
            client.close()

    async def signal(self, name: str, pid: str) -> None:
        """There is no `kill` but the shell's own."""
        await self.run("sh", "-c", f"kill -{name} {int(pid)}")

    async def main_pid(self, unit: str) -> str:
        return await self.run("systemctl", "show", "--property=MainPID", "--value", unit)

    async def runs(self) -> dict[str, str]:
        """Container → when it was last started, by its engine's own word."""
        names = (await self.run("docker", "ps", "-aq")).split()
        lines = await self.run("docker", "inspect", "-f", "{{.Name}} {{.State.StartedAt}}{{.State.Running}}", *names)
        return {line.split()[0].strip("/"): line.split()[1] for line in lines.splitlines()}

    async def kill_process_of(self, container: str) -> None:
        pid = await self.run("docker", "inspect", "-f", "{{.State.Pid}}", container)
        await self.signal("KILL", pid)

    async def all_run_anew(self, before: dict[str, str], names: set[str], seconds: float = 60.0) -> dict[str, str]:
        async def anew() -> dict[str, str] | None:
            now = await self.runs()
            good = set(now) == set(before) and all(run.endswith("true") for run in now.values())
            return now if good and all(now[name] != before[name] for name in names) else None

        found = await until(anew, seconds, f"{names} run anew", every_seconds=0.2)
        assert found is not None
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inside(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inside]:
    await asyncio.to_thread(vms.build_stemcell)
    directory = tmp_path_factory.mktemp("containers")
    with own_bridge():
        engine = OwnEngine(directory / "engine", bridge=BRIDGE)
        try:
            async with container_site(directory, engine) as site:
                await site.deploy(MANIFEST, "chain")
                await site.running(INSTANCE, 120)
                yield Inside(site, engine)
        finally:
            engine.close()


@asynccontextmanager
async def container_site(directory: Path, engine: OwnEngine) -> AsyncIterator[Centre]:
    """VMs and disks are ended before the engine is: a loop device would outlive it."""
    options = DockerOptions(directory / "cloud", vms.CACHE / "stemcells", docker_host=engine.host)
    yaml = (
        f"{{provider: docker, directory: {options.directory}, stemcells: {options.stemcells}, "
        f'docker_host: "{options.docker_host}"}}'
    )
    cloud = DockerCloud(CloudName("local"), options)
    try:
        # An agent that is started anew by systemd has to be back within the lease, also on a busy machine.
        async with centre(directory / "centre", yaml, "heartbeat: {lease: 8s}") as site:
            yield site
    finally:
        for summary in await cloud.list_vms():
            await cloud.fence(summary.vm_cid)
            await cloud.delete_vm(summary.vm_cid)
        for disk in await cloud.list_disks():
            await cloud.delete_disk(disk.disk_cid)
        await cloud.close()


@contextmanager
def own_bridge() -> Iterator[None]:
    for command in (
        ("ip", "link", "add", BRIDGE, "type", "bridge"),
        ("ip", "address", "add", BRIDGE_ADDRESS, "dev", BRIDGE),
        ("ip", "link", "set", BRIDGE, "up"),
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(("ip", "link", "delete", BRIDGE), check=True, capture_output=True, timeout=10)


async def test_a_killed_process_and_its_chain_run_again_in_order(inside: Inside) -> None:
    """SIGKILL of a container's process: it runs again, a three-level chain of dependents is restarted in order, the
    unrelated container is not touched."""
    before = await inside.runs()
    await inside.kill_process_of("first")
    after = await inside.all_run_anew(before, {"first", "second", "third"})
    assert after["first"] < after["second"] < after["third"]
    assert after["apart"] == before["apart"]
    await inside.site.running(INSTANCE, 30)


@pytest.mark.parametrize("signal_name", ["KILL", "STOP"])
async def test_the_engine_recovers_unaided_and_heartbeats_never_pause(inside: Inside, signal_name: str) -> None:
    """dockerd killed, and dockerd frozen: another one answers, no container was restarted, and no two heartbeats are
    further apart than the lease allows by far."""
    before = await inside.runs()
    old = await inside.main_pid("docker.service")
    async with listening(inside.site) as heard:
        await inside.signal(signal_name, old)

        async def another() -> bool:
            return await inside.main_pid("docker.service") not in ("0", old)

        await until(another, 120, "another dockerd", every_seconds=0.5)
        await inside.site.running(INSTANCE, 60)
        await until(lambda: len(heard) > 5, 30, "heartbeats")
        gaps = [later - earlier for earlier, later in itertools.pairwise(heard)]
    assert max(gaps) < 2.0, gaps  # the interval is 0.5 s
    assert await inside.runs() == before


async def test_an_agent_killed_with_9_restarts_nothing(inside: Inside) -> None:
    """systemd starts it again; it adopts what runs."""
    before = await inside.runs()
    old = await inside.main_pid("resurgam-agent.service")
    await inside.signal("KILL", old)

    async def another() -> bool:
        return await inside.main_pid("resurgam-agent.service") not in ("0", old)

    await until(another, 30, "another agent", every_seconds=0.2)
    killed_at = time.time()
    await until(lambda: _heard_since(inside.site, killed_at), 30, "the new agent is heard")
    await inside.site.running(INSTANCE, 30)
    assert await inside.runs() == before


async def test_a_child_killed_for_lack_of_memory_is_seen_and_named(inside: Inside) -> None:
    """With the stemcell's own container runtime: the limit holds, and the agent names what the engine does not tell."""
    before = await inside.runs()
    await inside.run("docker", "exec", "narrow", "sh", "-c", "head -c 200000000 /dev/zero | tail > /dev/null || true")

    def named(view: dict[str, Any]) -> bool:
        return any(each["name"] == "narrow" and each["reason"] == "oom_child" for each in view["containers"])

    await inside.site.waits_for(INSTANCE, named, "it is named", 30)
    assert await inside.runs() == before


async def test_a_container_vm_killed_comes_back_with_its_disk(inside: Inside) -> None:
    """The VM's first process killed: fenced by the engine's own word, rebuilt, the disk's content still there."""
    before = await inside.site.instance(INSTANCE)
    starts = len((await inside.run("docker", "exec", "first", "cat", "/data/starts")).splitlines())
    client = inside.engine.client()
    client.kill(before["vm"]["vm_cid"], "SIGKILL")
    client.close()
    await inside.site.running(INSTANCE, 120, generation=before["generation"] + 1)
    assert len((await inside.run("docker", "exec", "first", "cat", "/data/starts")).splitlines()) > starts


@asynccontextmanager
async def listening(site: Centre) -> AsyncIterator[list[float]]:
    """When heartbeats came, on the loop's clock."""
    loop = asyncio.get_running_loop()
    heard: list[float] = []
    bus = await NatsBus.open(BusSettings(urls=(site.nats.url,)), "listener")

    def note(message: Message) -> None:
        if heartbeat.decode(message.payload).resurgam is not None and "canary" not in message.subject:
            heard.append(loop.time())

    await bus.subscribe("hm.agent.heartbeat.*", note)
    await bus.wait_connected(10)
    try:
        yield heard
    finally:
        await bus.close()


async def _heard_since(site: Centre, unix_seconds: float) -> Any:
    view = await site.instance(INSTANCE)
    return view.get("verdict") == "alive" and time.time() > unix_seconds + 1.0
