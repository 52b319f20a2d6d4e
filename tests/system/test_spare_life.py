"""A spare virtual machine takes the place of one that was killed, on real VMs: with disk, data and ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.ids import CloudName, DiskCid, VmCid
from tests.support import redis_client, vms
from tests.support.centre import Centre, centre
from tests.support.nats import free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

DB = "shop/db/0"
KEYS = 50
SPARE_SECONDS = 240.0


def manifest(port: int) -> str:
    return f"""
name: shop
stemcell: demo
cloud: local
instance_groups:
  - name: db
    instances: 1
    vm: {{cpus: 1, memory: 512MiB, cloud_properties: {{forward_ports: ["127.0.0.1:{port}:6379"]}}}}
    persistent_disks: {{data: 128MiB}}
    containers:
      redis:
        image: resurgam-demo/redis:1
        command: --dir /data --appendonly yes --appendfsync always --protected-mode no
        network_mode: host
        volumes: ["data:/data"]
        healthcheck: {{test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 5s, retries: 10, start_period: 30s}}
"""


async def spare(site: Centre) -> dict[str, Any]:
    async def ready() -> dict[str, Any] | None:
        spares = (await site.get("/v1/status"))["spares"]
        return next((each for each in spares if each["state"] == "ready" and each["images"]), None)

    found: dict[str, Any] = await until(ready, SPARE_SECONDS, "a spare is ready", every_seconds=0.1)
    return found


async def test_a_killed_vm_is_replaced_by_the_spare(tmp_path: Path) -> None:
    """No VM is made for it: the spare gets the disk and the forwarded port, and is that instance's from then on. After
    that another spare is made, and nothing is left of the VM that was killed."""
    port = free_port()
    async with (
        vms.machines(tmp_path, CloudName("local"), sizes=((1, 512),)) as machines,
        centre(tmp_path / "centre", machines.yaml, "spares: {local: 1}") as site,
    ):
        await site.deploy(manifest(port))
        before = await site.running(DB, 300)
        await redis_client.write_data(port, KEYS)
        waiting = await spare(site)
        disk = DiskCid(before["disks"][0]["cid"])
        machines.kill(VmCid(before["vm"]["vm_cid"]))
        after = await site.running(DB, 240, generation=before["generation"] + 1)
        assert (after["vm"]["vm_cid"], after["vm"]["agent_id"]) == (waiting["vm_cid"], waiting["agent_id"])
        assert await machines.cloud.disk_holders(disk) == {VmCid(waiting["vm_cid"])}
        assert await redis_client.checksum(port, KEYS) == redis_client.expected_checksum(KEYS)
        kinds = [event["kind"] for event in await site.events("spare.")]
        assert "spare.taken" in kinds
        steps = [event["fields"]["step"] for event in await site.events("operation.step", DB)]
        assert steps.count("create_vm") == 2
        another = await spare(site)
        assert another["vm_cid"] != waiting["vm_cid"]
        listed = {summary.vm_cid for summary in await machines.cloud.list_vms()}
        assert listed == {VmCid(waiting["vm_cid"]), VmCid(another["vm_cid"])}
