"""What must hold on real virtual machines: killed, frozen, cut off, many at once; monitors killed at every step.

One site for the whole module, because VMs cost seconds: each test leaves every instance as it should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from healthmonitor.clouds.cloud import DiskHeld
from protocol.ids import CloudName, DiskCid, VmCid
from tests.support import redis_client, vms
from tests.support.centre import Centre, centre
from tests.support.nats import free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

DB, WEB0, WEB1 = "shop/db/0", "shop/web/0", "shop/web/1"
KEYS = 50
POINTS_OF_A_STEP_MAX = 8
KILLS_MAX = 80


class Site:
    def __init__(self, centre: Centre, machines: vms.Machines, redis_port: int) -> None:
        self.centre = centre
        self.machines = machines
        self.redis_port = redis_port

    def manifest(self, web_image: str = "resurgam-demo/tools:1", web_marker: str = "one", watch: str = "120s") -> str:
        return f"""
name: shop
stemcell: demo
cloud: local
update: {{canaries: 1, max_in_flight: 1, canary_watch_time: {watch}, update_watch_time: {watch}}}
instance_groups:
  - name: db
    instances: 1
    vm: {{cpus: 1, memory: 512MiB, cloud_properties: {{forward_ports: ["127.0.0.1:{self.redis_port}:6379"]}}}}
    persistent_disks: {{data: 128MiB}}
    containers:
      redis:
        image: resurgam-demo/redis:1
        command: --dir /data --appendonly yes --appendfsync always --protected-mode no
        ports: ["6379:6379"]
        volumes: ["data:/data"]
        healthcheck: {{test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 5s, retries: 10, start_period: 30s}}
  - name: web
    instances: 2
    vm: {{cpus: 1, memory: 512MiB}}
    containers:
      front:
        image: {web_image}
        command: ["sh", "-c", "echo {web_marker}; while true; do sleep 3600 & wait; done"]
        stop_grace_period: 1s
      beside:
        image: resurgam-demo/tools:1
        command: ["sh", "-c", "while true; do sleep 3600 & wait; done"]
        stop_grace_period: 1s
"""

    async def vm(self, instance: str) -> VmCid:
        return VmCid((await self.centre.instance(instance))["vm"]["vm_cid"])

    async def disk(self) -> DiskCid:
        return DiskCid((await self.centre.instance(DB))["disks"][0]["cid"])

    async def all_run(self, seconds: float = 180.0) -> None:
        for instance in (DB, WEB0, WEB1):
            await self.centre.running(instance, seconds)

    async def data_is_intact(self) -> None:
        async def same() -> bool:
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                return await redis_client.checksum(self.redis_port, KEYS) == redis_client.expected_checksum(KEYS)
            return False

        await until(same, 30, "the data is intact")

    async def exactly_one_vm_each(self) -> None:
        """The sentence "exactly one VM and one attachment", read from the cloud."""
        expected = {await self.vm(instance) for instance in (DB, WEB0, WEB1)}
        there = {summary.vm_cid for summary in await self.machines.cloud.list_vms()}
        assert there == expected, f"VMs in the cloud {there}, in the records {expected}"
        holders = await self.machines.cloud.disk_holders(await self.disk())
        assert holders == {await self.vm(DB)}

    async def resurrections(self) -> int:
        return sum(1 for _ in await self.centre.events("operation.begun") if "resurrect" in str(_["fields"]))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    async with (
        vms.machines(directory, CloudName("local"), sizes=((1, 512),)) as machines,
        centre(directory / "centre", machines.yaml) as running,
    ):
        site = Site(running, machines, free_port())
        await running.deploy(site.manifest())
        await site.all_run()
        await redis_client.write_data(site.redis_port, KEYS)
        yield site


async def test_a_killed_vm_is_missed_within_seconds_and_comes_back_with_its_data(site: Site) -> None:
    """SIGKILL of the VM: confirmed missing within 3 s, fenced, rebuilt, its disk reattached, containers healthy, data
    equal."""
    before = await site.centre.instance(DB)
    killed_at = time.time()
    site.machines.kill(VmCid(before["vm"]["vm_cid"]))
    after = await site.centre.running(DB, 120, generation=before["generation"] + 1)
    assert after["vm"]["vm_cid"] != before["vm"]["vm_cid"]
    await site.data_is_intact()
    await site.exactly_one_vm_each()
    begun = [event for event in await site.centre.events("operation", DB) if event["at"] > killed_at]
    assert begun[0]["at"] - killed_at <= 3.0, begun[0]
    steps = [event["fields"].get("step", "") for event in begun]
    assert steps.index("fence") < steps.index("create_vm") < steps.index("mount") < steps.index("healthy"), steps


async def test_a_frozen_vm_is_rebuilt_after_its_lease_and_its_old_self_never_writes_again(site: Site) -> None:
    """A VM that stands still (QMP stop) is suspect, missing after its lease, fenced and rebuilt; its process is gone,
    so that thawing it cannot happen."""
    before = await site.centre.instance(DB)
    old = VmCid(before["vm"]["vm_cid"])
    await site.machines.freeze(old)
    frozen_at = time.time()
    await site.centre.waits_for(DB, lambda view: view["verdict"] in ("suspect", "missing"), "suspect", 10)
    await site.centre.running(DB, 120, generation=before["generation"] + 1)
    begun = [event for event in await site.centre.events("operation", DB) if event["at"] > frozen_at]
    assert begun[0]["at"] - frozen_at >= 2.0 - 0.5, "missing before its lease was over"
    assert not site.machines.processes(old)
    await site.data_is_intact()
    await site.exactly_one_vm_each()


async def test_a_disk_cannot_be_attached_to_a_second_vm(site: Site) -> None:
    """The cloud refuses the disk of a running instance to any other VM, and names who holds it."""
    with pytest.raises(DiskHeld) as refused:
        await site.machines.cloud.attach_disk(await site.vm(WEB0), await site.disk())
    assert refused.value.holders == {await site.vm(DB)}
    await site.data_is_intact()


async def test_a_bus_that_is_down_for_half_a_minute_rebuilds_nothing(site: Site) -> None:
    """nats-server down for 30 s: no resurrection, and not one container was restarted."""
    before = await site.centre.get("/v1/status")
    await site.centre.nats.stop(kill=True)
    await asyncio.sleep(30)  # the length of the outage is what is tested
    await site.centre.nats.start()
    await until(site.centre._healthy, 60, "the monitor recovers by itself")
    await site.all_run(60)
    after = await site.centre.get("/v1/status")
    assert _vms(after) == _vms(before)
    assert _runs(after) == _runs(before)


async def test_a_monitor_restarted_in_quiet_and_in_noise_rebuilds_nothing(site: Site) -> None:
    """Killed and started again, once while nothing happens and three times in a row without a pause: no VM is rebuilt,
    no container restarted."""
    before = await site.centre.get("/v1/status")
    await site.centre.kill_monitor()
    await site.centre.start_monitor()
    await site.all_run(60)
    for _ in range(3):
        await site.centre.kill_monitor()
        await site.centre.start_monitor(wait=False)
        await asyncio.sleep(0.5)  # in the midst of its start
    await site.centre.kill_monitor()
    await site.centre.start_monitor()
    await site.all_run(60)
    after = await site.centre.get("/v1/status")
    assert _vms(after) == _vms(before)
    assert _runs(after) == _runs(before)


async def test_only_what_changed_is_restarted(site: Site) -> None:
    """A changed command of one container: canary first, that container alone is made anew, on every VM of its group."""
    before = await site.centre.get("/v1/status")
    await site.centre.deploy(site.manifest(web_marker="two"))
    await until(lambda: _rollout_is(site, "done"), 180, "the rollout is done")
    await site.all_run()
    after = await site.centre.get("/v1/status")
    assert _vms(after) == _vms(before)
    changed = {name for name, run in _runs(after).items() if _runs(before)[name] != run}
    assert changed == {(WEB0, "front"), (WEB1, "front")}
    applied = [event["subject"] for event in await site.centre.events("operation.step") if _is_apply(event)]
    assert applied[-2:] == [WEB0, WEB1], "the canary goes first"


async def test_a_failing_canary_stops_the_rest(site: Site) -> None:
    """An image that does not exist fails at the canary; the second instance keeps what it had, nothing is rolled back
    or forth by itself, and the next good manifest mends it."""
    before = _runs(await site.centre.get("/v1/status"))
    await site.centre.deploy(site.manifest(web_image="resurgam-demo/no-such-image:1", watch="15s"))
    await until(lambda: _rollout_is(site, "failed"), 120, "the rollout has failed")
    now = await site.centre.get("/v1/status")
    assert _runs(now)[WEB1, "front"] == before[WEB1, "front"]
    deployment = now["deployments"][0]
    assert "web/0" in deployment["rollout_error"]
    await site.centre.deploy(site.manifest(web_marker="two"))
    await until(lambda: _rollout_is(site, "done"), 180, "the rollout is done")
    await site.all_run()


async def test_a_monitor_killed_at_every_step_leaves_one_vm_and_one_attachment(site: Site) -> None:
    """SIGKILL after each journal write and each cloud call of one resurrection: each next start goes on, and in the
    end there is one VM, one attachment, and the data."""
    before = await site.centre.instance(DB)
    site.centre.points.unlink(missing_ok=True)
    await site.centre.kill_monitor()
    site.machines.kill(VmCid(before["vm"]["vm_cid"]))
    kills = 0
    view: dict[str, Any] = {}
    while kills < KILLS_MAX and not (view.get("tone") == "good" and view["generation"] > before["generation"]):
        # A later point each time, and round again: a step passes several points before its end is written down, and
        # must be killed at each of them and get through in the end.
        point = str(1 + kills % POINTS_OF_A_STEP_MAX)
        await site.centre.start_monitor("--crash-at", point, "--points", str(site.centre.points), wait=False)
        ended = asyncio.create_task(site.centre.monitor_ended(300))
        while not ended.done():
            await asyncio.wait({ended}, timeout=0.2)
            view = await site.centre.instance(DB)
            if view.get("tone") == "good" and view["generation"] > before["generation"]:
                break
        if not ended.done():
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
            await site.centre.kill_monitor()
        kills += 1
    points = site.centre.points.read_text().split("\n")
    assert 8 <= kills < KILLS_MAX, points
    await site.centre.start_monitor()
    await site.centre.running(DB, 120, generation=before["generation"] + 1)
    await site.data_is_intact()
    await site.exactly_one_vm_each()


async def test_a_cloud_that_cannot_prove_leads_to_unfenced_and_a_person_decides(site: Site) -> None:
    """A delete that lies and no proof: the disk stays where it is, no second VM is made, people are told; a person's
    word lets it go on, and is kept."""
    lying = site.centre.directory / "lying"
    lying.touch()
    await site.centre.kill_monitor()
    await site.centre.start_monitor("--lying-fence", str(lying))
    await site.all_run()
    before = await site.centre.instance(DB)
    old = VmCid(before["vm"]["vm_cid"])
    await site.machines.freeze(old)
    held = await site.centre.waits_for(
        DB, lambda view: (view["operation"] or {}).get("hold") == "unfenced", "held as unfenced", 60
    )
    assert "fence confirm" in held["next"]
    assert await site.machines.cloud.disk_holders(await site.disk()) == {old}
    await until(lambda: _incident_is_open(site, "operation_unfenced", DB), 10, "people are told")
    assert len(await site.machines.cloud.list_vms()) == 3
    site.machines.kill(old)  # what the person does before vouching
    lying.unlink()
    await site.centre.post("/v1/fence/confirm", {"instance": DB, "because": "pulled its plug"})
    await site.centre.running(DB, 120, generation=before["generation"] + 1)
    await site.data_is_intact()


async def test_all_vms_gone_at_once_is_a_meltdown_until_a_person_says_go_on(site: Site) -> None:
    """Every VM killed: resurrection is held back and says so; a person's word lets it go on."""
    before = await site.centre.get("/v1/status")
    for vm in _vms(before).values():
        site.machines.kill(vm)
    await until(lambda: _melts(site), 60, "meltdown")
    for instance in _vms(before):
        held = await site.centre.waits_for(
            instance, lambda view: (view["operation"] or {}).get("hold") == "meltdown", "held by the meltdown", 30
        )
        assert "meltdown" in held["next"]
    await until(lambda: _incident_is_open(site, "meltdown", "fleet"), 10, "people are told")
    await site.centre.post("/v1/switches/meltdown", {"seconds": 600, "because": "the host was restarted"})
    await site.all_run()
    await site.data_is_intact()
    await site.exactly_one_vm_each()


async def test_deleting_a_deployment_leaves_no_vm_and_keeps_the_disk(site: Site) -> None:
    """After the delete no VM is left; the disk is, because nobody said to delete it."""
    disk = await site.disk()
    response = await site.centre.http.delete("/v1/deployments/shop")
    assert response.status_code == 202

    async def gone() -> bool:
        return not (await site.centre.get("/v1/status"))["instances"]

    await until(gone, 120, "every instance is deleted")
    assert await site.machines.cloud.list_vms() == []
    assert disk in {summary.disk_cid for summary in await site.machines.cloud.list_disks()}


def _vms(status: dict[str, Any]) -> dict[str, VmCid]:
    return {view["instance"]: VmCid(view["vm"]["vm_cid"]) for view in status["instances"]}


def _runs(status: dict[str, Any]) -> dict[tuple[str, str], tuple[str, int]]:
    return {
        (view["instance"], container["name"]): (container["container_id"], container["restarts"])
        for view in status["instances"]
        for container in view["containers"]
    }


async def _rollout_is(site: Site, state: str) -> bool:
    return bool((await site.centre.get("/v1/status"))["deployments"][0]["rollout"] == state)


async def _melts(site: Site) -> bool:
    return bool((await site.centre.get("/v1/status"))["meltdowns"])


async def _incident_is_open(site: Site, kind: str, subject: str) -> bool:
    incidents = (await site.centre.get("/v1/incidents"))["incidents"]
    return any(incident["kind"] == kind and incident["subject"] == subject for incident in incidents)


def _is_apply(event: dict[str, Any]) -> bool:
    return bool(event["fields"].get("step") == "apply")
