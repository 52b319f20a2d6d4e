"""A database whose disk changes in ways that its containers must stop for, on real disks (loop devices in a container
VM): grown unmounted, copied to another disk; with monitor, agent and VM killed while that is done.

One site for the module: each test leaves the instance as it should be, and the ledger is compared after each.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from healthmonitor.clouds.cloud import DiskSummary
from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from protocol.ids import CloudName, DiskCid
from tests.support import postgres, vms
from tests.support.centre import Centre
from tests.support.clouds import OwnEngine
from tests.support.postgres import Ledger
from tests.support.waiting import until
from tests.system.test_container_vm_life import BRIDGE, container_site, own_bridge

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

DB = "pg/db/0"
SIZE_MIB, LARGER_MIB = 448, 512
FILES = 120
"""Of a MiB each, beside the database: so much that a copy of them can be met in the middle."""
CHANGE_SECONDS = 120.0
DISK = "/var/lib/resurgam/disks/data"
MAKE_FILES = f"""
set -e; mkdir -p {DISK}/archive/sub; cd {DISK}/archive
for n in $(seq {FILES}); do head -c 1048576 /dev/urandom > sub/file$n; done
truncate -s 64M hole; echo end >> hole; ln sub/file1 linked; ln -s sub/file2 pointing; chown 1234:4321 sub/file3; sync
"""
SUMS = f"cd {DISK}/archive && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum && find . | wc -l"
GROWTH_POINTS = ("agent:unmount_disk", "cloud:resize_disk", "journal:disk data grown")
"""In the order in which a growth that stops the containers passes them; each may be the last that a monitor does. All
of them are killed at in tests/unit/test_resurrector_crash_points.py; here those after which a real disk is between
two states."""
COPY_POINTS = (
    "journal:disk data copy intended",
    "journal:disk data copy attached",
    "agent:copy_disk",
    "cloud:detach_disk",
    "journal:disk data orphaned",
    "journal:disk data swapped",
)


class Site:
    def __init__(self, centre: Centre, engine: OwnEngine, cloud: DockerCloud) -> None:
        self.centre = centre
        self.engine = engine
        self.cloud = cloud
        self.ledger = Ledger(self.address)
        self.sums = ""

    async def vm(self) -> str:
        return str((await self.centre.instance(DB))["vm"]["vm_cid"])

    async def address(self) -> tuple[str, int]:
        """By the engine's word: the monitor may be dead."""

        def find() -> tuple[str, int]:
            client = self.engine.client()
            try:
                for container in client.containers():
                    for network in container["NetworkSettings"]["Networks"].values():
                        if network["IPAddress"]:
                            return str(network["IPAddress"]), 5432
            finally:
                client.close()
            raise ConnectionError("no VM runs just now")

        return await asyncio.to_thread(find)

    async def inside(self, script: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            ("docker", "-H", self.engine.host, "exec", await self.vm(), "sh", "-c", script),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    async def kill_vm(self) -> None:
        client = self.engine.client()
        client.kill(await self.vm(), "SIGKILL")
        client.close()

    async def disk(self) -> DiskSummary:
        cid = (await self.centre.instance(DB))["disks"][0]["cid"]
        return next(disk for disk in await self.cloud.list_disks() if disk.disk_cid == cid)

    async def ask_for(self, size_mib: int) -> None:
        """`--migrate` said, so that a smaller disk is a copy."""
        body = {"manifest": postgres.manifest(size_mib, load=False), "migrate": True}
        response = await self.centre.http.put("/v1/deployments/pg", json=body)
        assert response.status_code == 202, response.text

    async def has(self, size_mib: int) -> None:
        """The disk is of that size, nobody but the one VM holds it, and whatever was on it is there."""

        def changed(view: dict[str, Any]) -> bool:
            disk = view["disks"][0]
            return view["tone"] == "good" and disk["size_mib"] == size_mib and not disk["waits"]

        await self.centre.waits_for(DB, changed, f"its disk has {size_mib} MiB", CHANGE_SECONDS)
        acknowledged = len(self.ledger.acknowledged)
        await until(lambda: len(self.ledger.acknowledged) > acknowledged + 10, 30, "transactions are acknowledged")
        assert await self.inside(SUMS) == self.sums, "the files beside the database are not what they were"
        await self.ledger.compare()
        vms_there = {summary.vm_cid for summary in await self.cloud.list_vms()}
        assert vms_there == {await self.vm()}
        assert (await self.disk()).holders == vms_there


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    await asyncio.to_thread(postgres.build_stemcell)
    directory = tmp_path_factory.mktemp("moves")
    with own_bridge():
        engine = OwnEngine(directory / "engine", bridge=BRIDGE)
        try:
            async with container_site(directory, engine) as running:
                options = DockerOptions(directory / "cloud", vms.CACHE / "stemcells", docker_host=engine.host)
                cloud = DockerCloud(CloudName("local"), options)
                await running.deploy(postgres.manifest(SIZE_MIB, load=False), "pg")
                await running.running(DB, 180)
                made = Site(running, engine, cloud)
                await made.inside(MAKE_FILES)
                made.sums = await made.inside(SUMS)
                await made.ledger.prepare()
                async with made.ledger:
                    yield made
                await cloud.close()
        finally:
            engine.close()


async def test_a_disk_grows_unmounted_and_the_monitor_is_killed_at_each_step(site: Site) -> None:
    """The containers stop, the disk is grown, they run again; the monitor is killed after each step of that."""
    before = await site.disk()
    await killed_at_each(site, GROWTH_POINTS, LARGER_MIB)
    await site.has(LARGER_MIB)
    assert (await site.disk()).disk_cid == before.disk_cid


async def test_a_disk_is_copied_and_the_monitor_is_killed_at_each_step(site: Site) -> None:
    """A smaller disk takes its place: all files are the same, the old disk is kept, held by nobody; the monitor is
    killed after each step of that."""
    before = await site.disk()
    await killed_at_each(site, COPY_POINTS, SIZE_MIB)
    await site.has(SIZE_MIB)
    assert (await site.disk()).disk_cid != before.disk_cid
    disks = {disk.disk_cid: disk for disk in await site.cloud.list_disks()}
    assert disks[before.disk_cid].holders == frozenset()
    assert before.disk_cid in await orphans(site)


@pytest.mark.parametrize(("who", "size_mib"), [("agent", SIZE_MIB - 16), ("vm", SIZE_MIB - 32)])
async def test_a_copy_outlives_its_killed_agent_and_its_killed_vm(site: Site, who: str, size_mib: int) -> None:
    """SIGKILL in the middle of a copy: nothing starts on half a disk, the copy is made after all, nothing is lost."""
    await site.ask_for(size_mib)
    await site.centre.waits_for(DB, _is_copying, "it copies", 60)
    generation = (await site.centre.instance(DB))["generation"]
    if who == "vm":
        await site.kill_vm()
    else:
        pid = await site.inside("systemctl show --property=MainPID --value resurgam-agent.service")
        await site.inside(f"kill -KILL {int(pid)}")
    await site.has(size_mib)
    after = await site.centre.instance(DB)
    assert after["generation"] == generation + (who == "vm")


async def test_amcheck_finds_nothing_after_all_that(site: Site) -> None:
    """Every table and every index, on the disk that is there in the end."""
    tables, indexes = await postgres.check_every_byte(site.address)
    assert tables > 50
    assert indexes > 50


async def killed_at_each(site: Site, points: tuple[str, ...], size_mib: int) -> None:
    """The change is asked for, and each monitor in turn is the last that passes a point, until all have been."""
    for number, point in enumerate(points):
        await site.centre.kill_monitor()
        once = site.centre.directory / f"once-{size_mib}-{number}"
        await site.centre.start_monitor("--crash-after", point, "--once", str(once), wait=number == 0)
        if number == 0:
            await site.ask_for(size_mib)
        await site.centre.monitor_ended(90)
        assert once.exists(), f"the monitor ended, but not at {point}: {site.centre.log.read_text()[-2000:]}"
        assert all(len(disk.holders) <= 1 for disk in await site.cloud.list_disks())
    await site.centre.start_monitor()


async def orphans(site: Site) -> set[DiskCid]:
    listed = (await site.centre.get("/v1/disks"))["disks"]
    return {DiskCid(disk["cid"]) for disk in listed if disk["role"] == "orphan"}


def _is_copying(view: dict[str, Any]) -> bool:
    return (view["operation"] or {}).get("step") == "rework"
