"""A disk that changes, cut short at each of its journalled steps: monitor, agent and VM killed there, on real disks
(loop devices in a container VM). Never lost, never two writers, always finished or begun anew.

What is killed is killed at a known moment: the monitor ends itself when it has written that the step is reached, so
nobody acts while agent or VM are killed, and the next monitor finds just that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from healthmonitor.core.operation import STEPS
from healthmonitor.core.records import OperationKind, Step
from protocol.ids import CloudName
from tests.support import vms
from tests.support.centre import Centre
from tests.support.clouds import OwnEngine
from tests.support.waiting import until
from tests.system.test_container_vm_life import BRIDGE, Inside, container_site, own_bridge

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(420)]

INSTANCE = "chain/all/0"
"""Of Inside."""
SECONDS = 120.0
BEGUN = "begun change_disks"
"""What is written when its first step is reached."""
REACHED = tuple(BEGUN if step is Step.MAKE_DISKS else step.value for step in STEPS[OperationKind.CHANGE_DISKS])[:-1]
OF_NO_OTHER = frozenset({Step.SNAPSHOT.value, Step.QUIESCE.value, Step.REWORK.value, Step.SWAP.value, BEGUN})
"""The others are steps of the update before it too."""
DISK = "/var/lib/resurgam/disks/data"
MAKE_FILES = f"""
set -e; mkdir -p {DISK}/archive/sub; cd {DISK}/archive
for n in $(seq 8); do head -c 1048576 /dev/urandom > sub/file$n; done
truncate -s 16M hole; echo end >> hole; ln sub/file1 linked; ln -s sub/file2 pointing; chown 1234:4321 sub/file3; sync
"""
SUMS = (
    f"cd {DISK}/archive && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum && ls -lnR . | sha256sum"
)
WRITER = (
    "n=$$(wc -l < /data/log); while true; do n=$$((n + 1)); echo $$n >> /data/log; sync /data/log; sleep 0.05; done"
)
MANIFEST = """
name: chain
stemcell: demo
cloud: local
instance_groups:
  - name: all
    instances: 1
    vm: {{cpus: 1, memory: 512MiB}}
    persistent_disks: {{data: {size}MiB}}
    containers:
      writer:
        image: resurgam-demo/tools:1
        command: ["sh", "-c", "touch /data/log; {writer}"]
        volumes: ["data:/data"]
        network_mode: host
        stop_grace_period: 1s
"""


@dataclass
class Site:
    centre: Centre
    inside: Inside
    cloud: DockerCloud
    size_mib: int = 96
    sums: str = ""
    lines: int = 0
    once: Path = Path()
    numbers: count[int] = field(default_factory=count)

    async def ask_for(self, size_mib: int) -> None:
        """Larger: it grows unmounted. Smaller: it is copied."""
        self.size_mib = size_mib
        body = {"manifest": MANIFEST.format(size=size_mib, writer=WRITER), "migrate": True}
        response = await self.centre.http.put("/v1/deployments/chain", json=body)
        assert response.status_code == 202, response.text

    async def monitor_dies_at(self, reached: str) -> None:
        """One that has been started and ends itself."""
        await self.centre.monitor_ended(SECONDS)
        assert self.once.exists(), f"the monitor ended, but not at {reached}: {await self.centre.story()}"

    async def start_doomed(self, reached: str, wait: bool = False) -> None:
        self.once = self.centre.directory / f"once-{next(self.numbers)}"
        point = f"journal:{reached}"
        await self.centre.start_monitor("--crash-after", point, "--once", str(self.once), wait=wait)

    async def kill_agent(self) -> None:
        async def runs() -> str:
            """The last one may have been killed a moment ago: systemd names no process then."""
            pid = await self.inside.main_pid("resurgam-agent.service")
            return pid if pid != "0" else ""

        pid = await until(runs, SECONDS, "an agent runs", every_seconds=0.2)
        await self.inside.signal("KILL", str(pid))

    async def kill_vm(self) -> None:
        client = self.inside.engine.client()
        try:
            for container in client.containers():
                client.kill(container["Id"], "SIGKILL")
        finally:
            client.close()

    async def nobody_shares(self) -> None:
        assert all(len(disk.holders) <= 1 for disk in await self.cloud.list_disks())

    async def is_whole(self) -> None:
        """The disk is what was asked for, in one VM, and has every file and every line that was ever written."""

        def changed(view: dict[str, Any]) -> bool:
            disk = view["disks"][0]
            idle = view["operation"] is None and not disk["waits"]
            return idle and view["tone"] == "good" and disk["size_mib"] == self.size_mib

        view = await self.centre.waits_for(INSTANCE, changed, f"its disk has {self.size_mib} MiB", SECONDS)
        assert await self.inside.run("sh", "-c", SUMS) == self.sums, "the files are not what they were"
        before = self.lines

        async def written() -> bool:
            lines = (await self.inside.run("docker", "exec", "writer", "cat", "/data/log")).split()
            assert lines[: len(lines)] == [str(number) for number in range(1, len(lines) + 1)], "a line is lost"
            self.lines = len(lines)
            return self.lines > before

        await until(written, SECONDS, "lines are written", every_seconds=0.2)
        holders = {disk.disk_cid: disk.holders for disk in await self.cloud.list_disks() if disk.holders}
        assert holders == {view["disks"][0]["cid"]: frozenset({view["vm"]["vm_cid"]})}
        assert [summary.vm_cid for summary in await self.cloud.list_vms()] == [view["vm"]["vm_cid"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    await asyncio.to_thread(vms.build_stemcell)
    directory = tmp_path_factory.mktemp("cut-short")
    with own_bridge():
        engine = OwnEngine(directory / "engine", bridge=BRIDGE)
        try:
            async with container_site(directory, engine) as centre:
                options = DockerOptions(directory / "cloud", vms.CACHE / "stemcells", docker_host=engine.host)
                made = Site(centre, Inside(centre, engine), DockerCloud(CloudName("local"), options))
                await made.ask_for(made.size_mib)
                await centre.running(INSTANCE, SECONDS)
                await made.inside.run("sh", "-c", MAKE_FILES)
                made.sums = await made.inside.run("sh", "-c", SUMS)
                yield made
                await made.cloud.close()
        finally:
            engine.close()


@pytest.mark.parametrize("by_mib", [16, -16], ids=["grown", "copied"])
async def test_monitor_and_agent_killed_at_every_step_of_one_change(site: Site, by_mib: int) -> None:
    """Each monitor reaches the next step and dies, and the agent with it at every other step: the change is finished
    by the last, nothing is lost."""
    await site.centre.kill_monitor()
    for number, reached in enumerate(REACHED):
        await site.start_doomed(reached, wait=number == 0)
        if number == 0:
            await site.ask_for(site.size_mib + by_mib)
        await site.monitor_dies_at(reached)
        await site.nobody_shares()
        if number % 2 == (by_mib > 0):  # one change's odd steps, the other's even ones
            await site.kill_agent()
    await site.centre.start_monitor()
    await site.is_whole()


@pytest.mark.parametrize("reached", REACHED)
async def test_a_vm_killed_at_each_step_of_a_change(site: Site, reached: str) -> None:
    """The VM is rebuilt with the disk that has everything, then the change is made, or is found made."""
    by_mib = -8 if REACHED.index(reached) % 3 else 16
    generation = (await site.centre.instance(INSTANCE))["generation"]
    await site.centre.kill_monitor()
    for number, point in enumerate([reached] if reached in OF_NO_OTHER else [BEGUN, reached]):
        await site.start_doomed(point, wait=number == 0)
        if number == 0:
            await site.ask_for(site.size_mib + by_mib)
        await site.monitor_dies_at(point)
    await site.kill_vm()
    await site.nobody_shares()
    await site.centre.start_monitor()
    await site.is_whole()
    assert (await site.centre.instance(INSTANCE))["generation"] == generation + 1
