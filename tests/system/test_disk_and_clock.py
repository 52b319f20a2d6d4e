"""The disk full under JetStream, and the wall clock set back: nothing acknowledged is lost, nothing waits an hour."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.ids import VmCid
from tests.support.monitors import Site, monitors_on_a_cluster
from tests.support.waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1200)]

DISK_MIB = 64
LIBRARY = "libfaketimeMT.so.1"


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[list[Path]]:
    """Three file systems of DISK_MIB each."""
    made: list[Path] = []
    try:
        for number in range(3):
            place = tmp_path / f"disk-{number}"
            place.mkdir()
            options = ("-t", "tmpfs", "-o", f"size={DISK_MIB}m", f"resurgam-test-{number}")
            subprocess.run(("mount", *options, str(place)), check=True, capture_output=True)
            made.append(place)
        yield made
    finally:
        for place in made:
            subprocess.run(("umount", str(place)), check=True, capture_output=True)


def fill(place: Path) -> None:
    with (place / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            assert shutil.disk_usage(place).free < 65536


async def silence(site: Site, because: str) -> None:
    body = {"seconds": 86400, "because": because, "instance": "shop/none/0", "kind": "vm_suspect"}
    await site.call(lambda monitor: monitor.http.post("/v1/silences", json=body))


async def test_a_full_disk_under_the_bus(tmp_path: Path, small_disks: list[Path]) -> None:
    """One of three disks full: everything goes on. All three: nothing more is acknowledged, the monitor says so and
    neither ends nor rebuilds anything, and the VMs run on. After room was made and the nats-servers were restarted
    everything that was acknowledged is there."""
    async with monitors_on_a_cluster(tmp_path, 1, stores=small_disks) as site:
        await site.deploy(2)
        before = await site.settled(2)
        fill(small_disks[0])
        await silence(site, "one disk is full")
        for place in small_disks[1:]:
            fill(place)
        (monitor,) = site.monitors
        reasons: list[str] = []

        async def says_so() -> bool:
            nonlocal reasons
            reasons = (await monitor.http.get("/healthz")).json()["reasons"]
            return any(reason.startswith("store:") for reason in reasons)

        # Until something is written nobody notices; the lease is written all the time
        await until(says_so, 180, lambda: f"the monitor says that it cannot write\n{site.logs()}", every_seconds=0.2)
        print(reasons)
        body = {"seconds": 60, "because": "all are full", "instance": "shop/none/1"}
        refused = await monitor.http.post("/v1/silences", json=body)
        assert refused.status_code in (409, 503), refused.text
        assert monitor.runs
        for place in small_disks:
            (place / "fill").unlink()
        for node in site.cluster.nodes:
            await node.kill()
            await node.start()
        await silence(site, "room was made")
        after = await site.settled(2)
        assert {name: view["generation"] for name, view in after.items()} == {
            name: view["generation"] for name, view in before.items()
        }
        kept = {each["because"] for each in (await monitor.get("/v1/silences"))["silences"]}
        assert {"one disk is full", "room was made"} <= kept
        await site.no_disk_had_two_writers()


def faketime() -> Path:
    found = sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))
    assert found, "faketime is missing: tools/setup.sh test"
    return found[0]


async def test_a_clock_that_is_set_back_an_hour_holds_nothing_up(tmp_path: Path) -> None:
    """In the middle of a resurrection that waits for its next try: it goes on when it can, no VM is judged by the wall
    clock, and the leader leads on."""
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    lie = tmp_path / "lie"
    prefix = (
        "env",
        f"LD_PRELOAD={faketime()}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    )
    async with monitors_on_a_cluster(tmp_path, 1, ("--lying-fence", str(lie)), prefix) as site:
        await site.deploy(2)
        before = await site.settled(2)
        lie.touch()
        site.cloud.signal(VmCid(before["shop/db/0"]["vm"]["vm_cid"]), signal.SIGKILL)
        held: dict[str, Any] = {}

        async def waits() -> bool:
            nonlocal held
            held = {each["instance"]: each for each in (await site.status()).get("instances", [])}.get("shop/db/0", {})
            return (held.get("operation") or {}).get("hold") == "unfenced"

        await until(waits, 180, "it waits for a proof", every_seconds=0.05)
        last = (await site.events())[-1]["at"]
        clock.write_text("-3600\n")
        leader = (await site.leader()).name

        async def is_back() -> bool:
            """The monitor's own word for the time: something new stands in the timeline with an earlier time."""
            await silence(site, "what time is it")
            found = [event["at"] for event in await site.events()]
            return bool(min(found[-3:]) < last - 3000)

        await until(is_back, 120, "the monitor's clock is set back", every_seconds=0.2)
        lie.unlink()
        after = await site.settled(2)
        assert after["shop/db/0"]["generation"] == before["shop/db/0"]["generation"] + 1
        assert after["shop/db/1"]["generation"] == before["shop/db/1"]["generation"]
        assert (await site.leader()).name == leader
        await site.no_disk_had_two_writers()
