"""A container as a VM, with the real stemcell and agent: heard over a bus on the loopback, its data outliving it."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from healthmonitor.clouds.cloud import CloudUnavailable, DiskRequest, FenceProof, Power, VmRequest
from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from protocol import heartbeat, subjects
from protocol.bus import Message
from protocol.heartbeat import EngineState, Heartbeat
from protocol.ids import AgentId, CloudName, Generation, VmCid
from protocol.nats_bus import NatsBus
from protocol.settings import AgentSettings, BusSettings
from protocol.subjects import AgentMessage
from tests.support import vms
from tests.support.clouds import OwnEngine
from tests.support.nats import NatsServer
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

BRIDGE = "rsgtest0"
GATEWAY = "172.29.9.1"
HEARD_SECONDS = 90.0


@pytest.fixture
def engine() -> Iterator[OwnEngine]:
    """On a bridge of its own."""
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=True)
        with tempfile.TemporaryDirectory(prefix="rsd-", dir="/tmp") as directory:
            made = OwnEngine(Path(directory, "engine"), BRIDGE)
            yield made
            made.close()
    finally:
        subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


@pytest.fixture
async def cloud(engine: OwnEngine, tmp_path: Path) -> AsyncIterator[DockerCloud]:
    await asyncio.to_thread(vms.build_stemcell)
    options = DockerOptions(tmp_path / "cloud", vms.CACHE / "stemcells", docker_host=engine.host)
    made = DockerCloud(CloudName("boxes"), options)
    yield made
    for summary in await made.list_vms():
        await made.delete_vm(summary.vm_cid)
    for disk in await made.list_disks():
        await made.delete_disk(disk.disk_cid)
    await made.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    made = NatsServer(tmp_path / "nats")
    await made.start()
    yield made
    await made.stop()


def request(name: str, server: NatsServer) -> VmRequest:
    settings = AgentSettings(
        agent_id=AgentId(name),
        bus=BusSettings(urls=(server.url,)),
        generation=Generation(1),
        heartbeat_interval_seconds=1.0,
    )
    return VmRequest(name, name, vms.STEMCELL, 1, 512, settings)


async def test_data_outlives_a_container_vm(cloud: DockerCloud, engine: OwnEngine, server: NatsServer) -> None:
    """Its agent is heard through the forwarder; a mounted disk is not taken from it; fenced, its disk is free, and what
    was written is read by the next VM."""
    heard: dict[str, Heartbeat] = {}

    def hear(message: Message) -> None:
        agent = subjects.agent_of(message.subject)
        if agent is not None:
            heard[agent] = heartbeat.decode(message.payload)

    def is_up(agent: str) -> bool:
        found = heard.get(agent)
        return found is not None and found.resurgam is not None and found.resurgam.engine is EngineState.UP

    bus = await NatsBus.open(BusSettings(urls=(server.url,)), "test")
    await until(lambda: bus.connected, 15.0, "the bus")
    await bus.subscribe(subjects.every_agent(AgentMessage.HEARTBEAT), hear)
    disk = await cloud.create_disk(DiskRequest("shop-db-0-data", 64))

    old = await cloud.create_vm(request("first", server))
    await until(lambda: is_up("first"), HEARD_SECONDS, "the first agent is heard, its engine up")
    device = await cloud.attach_disk(old, disk)
    inside(engine, old, f"mke2fs -q {device} && mount {device} /mnt && echo kept > /mnt/file && sync")
    with pytest.raises(CloudUnavailable, match="in use"):
        await cloud.detach_disk(old, disk)
    assert await cloud.disk_holders(disk) == {old}

    await cloud.freeze_vm(old)
    assert (await cloud.observe(old)).power is Power.PAUSED
    assert isinstance(await cloud.fence(old), FenceProof)
    assert await cloud.disk_holders(disk) == frozenset()

    new = await cloud.create_vm(request("second", server))
    await until(lambda: is_up("second"), HEARD_SECONDS, "the second agent is heard, its engine up")
    assert await cloud.attach_disk(new, disk) == device
    assert inside(engine, new, f"mount {device} /mnt && cat /mnt/file").strip() == "kept"
    inside(engine, new, "umount /mnt")
    await cloud.detach_disk(new, disk)
    assert await cloud.disk_holders(disk) == frozenset()
    await bus.close()


def inside(engine: OwnEngine, vm: VmCid, command: str) -> str:
    """What the command printed in the VM; AssertionError when it failed."""
    client = engine.client()
    run = client.exec_create(vm, ["sh", "-c", command])["Id"]
    printed = client.exec_start(run).decode()
    status = client.exec_inspect(run)["ExitCode"]
    client.close()
    assert status == 0, printed
    return printed
