"""Several real monitors on a real cluster of three nats-servers: takeover, in the middle of a resurrection too, handing
over, and any node of the cluster killed at any time. VMs are processes (`tests/support/process_cloud.py`)."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from protocol.ids import VmCid
from tests.support.monitors import Site, monitors_on_a_cluster
from tests.support.waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

INSTANCES = 3
TAKEOVER_GENEROUS_SECONDS = 90.0
"""The bound that the defaults promise (5 s) is `tests/unit/test_presence.py`'s; a busy machine may take longer."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with monitors_on_a_cluster(tmp_path_factory.mktemp("site"), 3) as made:
        await made.deploy(INSTANCES)
        await made.settled(INSTANCES)
        yield made


async def test_one_leads_and_the_others_are_warm(site: Site) -> None:
    """Each monitor says the same: who leads, since when and why, and that the others could lead at once."""
    await site.warm()
    leader = await site.leader()
    for monitor in site.monitors:
        found = await monitor.get("/v1/status")
        assert (found["monitor"]["leader_id"], found["monitor"]["leader_why"] != "") == (leader.name, True)
        assert {each["monitor"] for each in found["monitors"]} == {each.name for each in site.monitors}


async def test_a_killed_leader_is_followed(site: Site) -> None:
    """SIGKILL; another leads, and says why; the one that is gone is missed, and not any more when it is back."""
    await site.warm()
    old = await site.leader()
    killed_at = time.monotonic()
    await old.kill()
    new = await site.leader(TAKEOVER_GENEROUS_SECONDS, but=old)
    print(f"takeover after {time.monotonic() - killed_at:.2f} s")
    listed = await new.get("/v1/monitors")
    assert listed["leader_why"].startswith(f"{old.name} led and fell silent")
    key = f"monitor_missing:{old.name}"

    async def missed() -> bool:
        found = await new.get("/v1/incidents")
        return found is not None and key in [each["key"] for each in found["incidents"]]

    await until(missed, 120, f"{old.name} is missed", every_seconds=0.2)
    await old.start()
    await site.warm()

    async def resolved() -> bool:
        return not await missed()

    await until(resolved, 120, f"{old.name} is not missed any more", every_seconds=0.2)


async def test_stepping_down_hands_over_at_once(site: Site) -> None:
    """The reply comes when another leads; the one asked does not lead again meanwhile, and says so."""
    await site.warm()
    old = await site.leader()
    began_at = time.monotonic()
    response = await old.http.post("/v1/monitors/step-down", json={"seconds": 60, "because": "a test"})
    assert response.status_code == 200, response.text
    print(f"handed over after {time.monotonic() - began_at:.2f} s: {response.json()['text']}")
    new = await site.leader()
    assert new is not old
    assert response.json()["leader"] == new.name
    assert (await old.get("/v1/monitors"))["leader_why"].startswith(f"{old.name} stepped down, asked by")
    assert [event["subject"] for event in await site.events("operator.stepped_down")][-1] == old.name


@pytest.mark.parametrize("point", ["fence", "create_vm", "attach_disk"])
async def test_a_leader_killed_in_the_middle_of_a_resurrection(site: Site, point: str) -> None:
    """The leader kills itself with SIGKILL just after a call to the cloud; another one finishes. One VM more was made,
    none is left over, and the disk never had two writers."""
    await site.warm()
    before = await site.settled(INSTANCES)
    old = await site.leader()
    for monitor in site.monitors:
        await monitor.stop()
    doomed = site.directory / f"crash-{point}"
    await old.start("--crash-after", f"cloud:{point}", "--once", str(doomed))
    assert await site.leader() is old
    for monitor in site.monitors:
        if monitor is not old:
            await monitor.start()
    await site.warm()
    assert await site.leader() is old
    vms = {summary.vm_cid for summary in await site.cloud.list_vms()}
    lost = VmCid(before["shop/db/0"]["vm"]["vm_cid"])
    site.cloud.signal(lost, signal.SIGKILL)

    async def crashed() -> bool:
        return not old.runs

    await until(crashed, 180, f"{old.name} dies at {point}", every_seconds=0.05)
    died_at = time.monotonic()
    new = await site.leader(TAKEOVER_GENEROUS_SECONDS, but=old)
    print(f"at {point}: takeover after {time.monotonic() - died_at:.2f} s by {new.name}")
    await old.start()
    after = await site.settled(INSTANCES, rebuilt={"shop/db/0": before["shop/db/0"]["generation"] + 1})
    print(f"at {point}: rebuilt {time.monotonic() - died_at:.2f} s after the kill")
    assert after["shop/db/0"]["generation"] == before["shop/db/0"]["generation"] + 1
    now = {summary.vm_cid for summary in await site.cloud.list_vms()}
    assert len(now - vms) == 1
    assert lost not in now
    await site.no_disk_had_two_writers()


async def test_a_frozen_leader_does_nothing_after_another_began(site: Site) -> None:
    """SIGSTOP in the middle of a resurrection, and SIGCONT once another monitor has finished it: nothing is done
    twice."""
    await site.warm()
    before = await site.settled(INSTANCES)
    old = await site.leader()
    vms = {summary.vm_cid for summary in await site.cloud.list_vms()}
    site.cloud.signal(VmCid(before["shop/db/1"]["vm"]["vm_cid"]), signal.SIGKILL)

    async def begun() -> bool:
        found = await old.get("/v1/operations")
        return found is not None and bool(found["operations"])

    await until(begun, 180, "the resurrection has begun", every_seconds=0.01)
    with site.cloud.untouched():
        await old.freeze()
    try:
        others = [each for each in site.monitors if each is not old]
        rest = Site(site.directory, site.cluster, others)
        after = await rest.settled(INSTANCES, rebuilt={"shop/db/1": before["shop/db/1"]["generation"] + 1})
    finally:
        old.signal(signal.SIGCONT)
    await site.warm()
    assert await site.settled(INSTANCES) is not None
    assert after["shop/db/1"]["generation"] == before["shop/db/1"]["generation"] + 1
    now = {summary.vm_cid for summary in await site.cloud.list_vms()}
    assert len(now - vms) == 1
    await site.no_disk_had_two_writers()


async def test_any_node_of_the_cluster_may_be_killed_while_things_are_under_way(site: Site) -> None:
    """Each node in turn, the one that leads the operations' stream first, is killed with SIGKILL while VMs are rebuilt
    and people write; it comes back before the next. Whatever was acknowledged is there in the end."""
    await site.warm()
    before = await site.settled(INSTANCES)
    first = await site.cluster.stream_leader("KV_operations")
    nodes = [first, *(node for node in site.cluster.nodes if node is not first)]
    acknowledged: list[str] = []
    vms = {summary.vm_cid for summary in await site.cloud.list_vms()}
    for number, node in enumerate(nodes):
        site.cloud.signal(VmCid(before[f"shop/db/{number}"]["vm"]["vm_cid"]), signal.SIGKILL)
        await node.kill()
        word = f"while node {number} was away"
        body = {"seconds": 3600, "because": word, "instance": f"shop/none/{number}", "kind": "vm_suspect"}
        await site.call(lambda monitor, body=body: monitor.http.post("/v1/silences", json=body))  # type: ignore[misc]
        acknowledged.append(word)
        instance = f"shop/db/{number}"
        await site.settled(INSTANCES, rebuilt={instance: before[instance]["generation"] + 1})
        await node.start()
        await site.cluster.stream_leader("KV_operations")
        await caught_up(site)
    after = await site.settled(INSTANCES)
    for instance, view in before.items():
        assert after[instance]["generation"] == view["generation"] + 1, instance
    assert len({summary.vm_cid for summary in await site.cloud.list_vms()} - vms) == INSTANCES
    leader = await site.leader()
    kept = {each["because"] for each in (await leader.get("/v1/silences"))["silences"]}
    assert set(acknowledged) <= kept
    await site.no_disk_had_two_writers()


async def caught_up(site: Site) -> None:
    """All three nodes run, and each is a current replica of every stream: only then may the next be killed."""

    async def whole() -> bool:
        return all([await node.is_current() for node in site.cluster.nodes])

    await until(whole, 180, "every node has caught up", every_seconds=0.2)
