"""PostgreSQL on a virtual machine, written to all the time: its disk grows under it, its VM is killed under it, and
what it promised is there.

A virtual machine, because only there a SIGKILL takes the guest's page cache with it: what comes back was flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from protocol.ids import CloudName, VmCid
from tests.support import postgres, vms
from tests.support.centre import Centre, centre
from tests.support.nats import free_port
from tests.support.postgres import Connection, Ledger, ServerError
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(420)]

DB = "pg/db/0"
BEFORE_MIB, AFTER_MIB, LAST_MIB = 176, 208, 312
GROW = f"{{at: 50%, by: 50%, up_to: {LAST_MIB}MiB}}"
FILLER = "insert into filler select repeat(md5(g::text), 60) from generate_series(1, 500) g"
"""A MiB: rows are too short to be compressed."""
FILLERS_MAX = 120
TOLD_SECONDS = 60.0
BALANCES = """
select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
(select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)
"""
"""Each transaction of pgbench adds the same to all four."""


@dataclass
class Site:
    centre: Centre
    machines: vms.Machines
    port: int

    async def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def restarts(self) -> dict[str, tuple[str, int]]:
        view = await self.centre.instance(DB)
        return {each["name"]: (each["container_id"], each["restarts"]) for each in view["containers"]}

    async def acknowledged(self, ledger: Ledger, more: int) -> None:
        wanted = len(ledger.acknowledged) + more
        await until(lambda: len(ledger.acknowledged) >= wanted, 120, f"{more} more transactions are acknowledged")

    async def grown(self, size_mib: int) -> None:
        """The file system itself, by its agent's word."""
        await self.centre.waits_for(
            DB,
            lambda view: (view["disks"][0]["filesystem_mib"] or 0) > size_mib * 0.85,
            f"the file system has {size_mib} MiB",
            TOLD_SECONDS,
        )

    async def fill_until_larger_than(self, size_mib: int) -> None:
        async with await Connection.open(*await self.address()) as connection:
            await connection.query("create table filler (words text)")
            for _ in range(FILLERS_MAX):
                await connection.query(FILLER)
                if (await self.centre.instance(DB))["disks"][0]["size_mib"] > size_mib:
                    return
        raise AssertionError(f"{FILLERS_MAX} MiB were written, and the disk still has {size_mib} MiB")

    async def taken(self) -> str:
        """The snapshot's cid, once it is there."""

        async def there() -> str:
            listed = (await self.centre.get("/v1/disks"))["disks"]
            return next((str(disk["cid"]) for disk in listed if disk["role"] == "snapshot" and disk["cid"]), "")

        return str(await until(there, 120, "the snapshot is taken", every_seconds=0.1))

    async def load_runs(self) -> None:
        """pgbench has made its tables and writes."""

        async def written() -> bool:
            with contextlib.suppress(ServerError):
                async with await Connection.open(*await self.address()) as connection:
                    return bool(await connection.query("select 1 from load_is_ready, pgbench_history limit 1"))
            return False

        await until(written, 120, "pgbench writes", every_seconds=0.5)

    async def balances_agree(self) -> None:
        async with await Connection.open(*await self.address()) as connection:
            ((*sums,),) = await connection.query(BALANCES)
        assert len(set(sums)) == 1, f"accounts, branches, tellers, history: {sums}"


@pytest.fixture
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp("pg")
    postgres.build_stemcell()
    port = free_port()
    async with (
        vms.machines(directory, CloudName("local"), stemcell=postgres.STEMCELL) as machines,
        centre(directory / "centre", machines.yaml) as running,
    ):
        await running.deploy(postgres.manifest(BEFORE_MIB, port), "pg")
        await running.running(DB, 240)
        yield Site(running, machines, port)


async def test_what_was_acknowledged_outlives_growth_and_a_killed_vm(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Several clients and pgbench write all the time. The disk is made larger under them by a deploy, and then, as it
    fills, by itself: no transaction fails, no container is restarted, and the file system is larger. The VM is killed
    under them: after the resurrection every acknowledged transaction is there, pgbench's sums agree, and amcheck finds
    nothing in any table or index."""
    ledger = Ledger(site.address)
    await ledger.prepare()
    async with ledger:
        await site.load_runs()
        await site.acknowledged(ledger, 30)
        before = await site.restarts()
        ledger.forget_pauses()
        await site.centre.deploy(postgres.manifest(AFTER_MIB, site.port, grow=GROW), "pg")
        await site.grown(AFTER_MIB)
        await site.fill_until_larger_than(AFTER_MIB)
        await site.grown(LAST_MIB)
        await site.acknowledged(ledger, 30)
        pause = ledger.longest_pause_seconds
        assert ledger.failures == [], "a transaction failed while its disk grew"
        assert await site.restarts() == before, "a container was restarted while its disk grew"
        await site.balances_agree()

        view = await site.centre.running(DB, 60)
        during = len(ledger.acknowledged)
        site.machines.kill(VmCid(view["vm"]["vm_cid"]))
        await site.centre.running(DB, 180, generation=view["generation"] + 1)
        await site.acknowledged(ledger, 30)
    assert ledger.failures, "nobody noticed that the VM was killed"
    await ledger.compare()
    await site.balances_agree()
    tables, indexes = await postgres.check_every_byte(site.address)
    with capsys.disabled():
        print(
            f"\n  {BEFORE_MIB} → {AFTER_MIB} → {LAST_MIB} MiB under load: longest pause of a transaction {pause:.2f} s;"
            f" {during} acknowledged before the VM was killed, {len(ledger.acknowledged)} in all, none lost;"
            f" amcheck: {tables} tables, {indexes} indexes"
        )


async def test_a_snapshot_put_back_is_the_database_of_its_moment(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken while several clients and pgbench write, put back while they write: the database has what was committed at
    one moment between the request and its answer, all of it and nothing else, and amcheck finds nothing in any table or
    index. The disk that was there until then is kept."""
    ledger = Ledger(site.address)
    loop = asyncio.get_running_loop()
    await ledger.prepare()
    async with ledger:
        await site.load_runs()
        await site.acknowledged(ledger, 30)
        asked_at = loop.time()
        await site.centre.post("/v1/disks/snapshots", {"instance": DB, "disk": "data"})
        snapshot = await site.taken()
        taken_at = loop.time()
        await site.acknowledged(ledger, 30)
        assert ledger.failures == [], "a transaction failed while the snapshot was taken"
        pause = ledger.longest_pause_seconds
        disk = (await site.centre.instance(DB))["disks"][0]["cid"]
        body = {"instance": DB, "disk": "data", "because": "the test"}
        await site.centre.post(f"/v1/disks/{snapshot}/attach", body)
        put_back_at = loop.time()
        await site.centre.waits_for(
            DB,
            lambda view: view["disks"][0]["cid"] == snapshot and view["tone"] == "good",
            "the snapshot is in its place",
            240,
        )
        await site.acknowledged(ledger, 10)
    there = {entry for entry in await ledger.there() if ledger.begun_at[entry] < put_back_at}
    ledger.is_of_one_moment(there, asked_at, taken_at)
    await site.balances_agree()
    tables, indexes = await postgres.check_every_byte(site.address)
    kept = [each for each in (await site.centre.get("/v1/disks"))["disks"] if each["cid"] == disk]
    assert [each["role"] for each in kept] == ["orphan"]
    with capsys.disabled():
        print(
            f"\n  snapshot of {BEFORE_MIB} MiB under load: there {taken_at - asked_at:.1f} s after it was asked for,"
            f" longest pause of a transaction {pause:.2f} s; {len(there)} transactions of its moment put back,"
            f" {len(ledger.acknowledged)} acknowledged in all; amcheck: {tables} tables, {indexes} indexes"
        )
