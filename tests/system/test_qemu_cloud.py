"""What only real QEMU processes can show: VMs outlive their makers, kills between steps, locks held by strangers, warm
templates with the real agent inside."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from healthmonitor.clouds import qemu, qemu_machine, qemu_process, qmp
from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
    DiskHeld,
    DiskRequest,
    FenceProof,
    Power,
    Unfenced,
)
from healthmonitor.clouds.local_store import LocalStore, Stage
from protocol import heartbeat, subjects
from protocol.bus import Message
from protocol.heartbeat import EngineState, Heartbeat
from protocol.ids import AgentId, CloudName, Generation, VmCid
from protocol.nats_bus import NatsBus
from protocol.settings import AgentSettings, BusSettings
from protocol.subjects import AgentMessage
from tests.support import clouds, vms
from tests.support.clouds import QemuBench, vm_request
from tests.support.nats import NatsServer, free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

MAKE_VM = """
import asyncio, sys
from pathlib import Path
from tests.support.clouds import QemuBench, vm_request
bench = QemuBench(Path(sys.argv[1]))
asyncio.run(bench.cloud.create_vm(vm_request(bench, "k")))
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[QemuBench]:
    async with clouds.qemu_bench(tmp_path / "cloud") as made:
        yield made


@contextlib.asynccontextmanager
async def maker(directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that makes the VM `k`; killed at the end."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", MAKE_VM, str(directory))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_vm_outlives_its_maker(bench: QemuBench, tmp_path: Path) -> None:
    """The process that made a VM ends, and the VM runs on, found by others."""
    async with maker(tmp_path / "cloud") as process:
        assert await process.wait() == 0
    vm = await bench.cloud.find_vm("k")
    assert vm is not None
    assert (await bench.cloud.observe(vm)).power is Power.RUNNING


def _has_record(directory: Path) -> bool:
    return any(directory.glob("qemu/vms/*/vm.json"))


def _has_settings(directory: Path) -> bool:
    return any(directory.glob("qemu/vms/*/settings"))


def _is_launched(directory: Path) -> bool:
    return any(qemu_process.is_held(lock) for lock in directory.glob("qemu/vms/*/running.lock"))


def _has_pid(directory: Path) -> bool:
    return any(directory.glob("qemu/vms/*/qemu.pid"))


@pytest.mark.parametrize("moment", [_has_record, _has_settings, _is_launched, _has_pid])
async def test_a_killed_creation_is_finished(bench: QemuBench, tmp_path: Path, moment: Callable[[Path], bool]) -> None:
    """The maker is killed with -9 in the middle; whoever creates again gets one running VM and one process."""
    directory = tmp_path / "cloud"
    async with maker(directory) as process:
        await until(lambda: moment(directory), 30.0, "the moment", every_seconds=0.001)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    assert (await bench.cloud.observe(vm)).power is Power.RUNNING
    assert [summary.vm_cid for summary in await bench.cloud.list_vms()] == [vm]
    assert len(qemu_process.find(directory / "qemu/vms" / vm / "qemu.pid")) == 1


async def test_no_proof_while_something_of_the_vm_runs(
    bench: QemuBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as anything holds the VM's running lock, as a process that cannot be killed would, there is no proof."""
    monkeypatch.setattr(qemu, "KILL_SECONDS", 1.0)
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.kill(vm)
    with (tmp_path / "cloud/qemu/vms" / vm / "running.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = await bench.cloud.fence(vm)
        assert isinstance(refused, Unfenced)
        assert "did not end" in refused.reason
        with pytest.raises(CloudUnavailable):
            await bench.cloud.delete_vm(vm)
    assert isinstance(await bench.cloud.fence(vm), FenceProof)


async def test_a_disk_that_a_stranger_has_open_is_held(bench: QemuBench, tmp_path: Path) -> None:
    """A lock on the image by a process that is no VM of ours is enough to refuse."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    file = tmp_path / f"cloud/qemu/disks/{disk}.raw"
    server = await asyncio.create_subprocess_exec(
        "qemu-nbd", "--format=raw", f"--socket={tmp_path / 'nbd'}", "--persistent", str(file)
    )
    try:
        await until(lambda: qemu_process.image_is_locked(file), 10.0, "the stranger has it")
        with pytest.raises(DiskHeld):
            await bench.cloud.attach_disk(vm, disk)
        with pytest.raises(DiskHeld):
            await bench.cloud.delete_disk(disk)
    finally:
        server.kill()
        await server.wait()
    await bench.cloud.attach_disk(vm, disk)


async def test_qemu_itself_refuses_a_second_writer(bench: QemuBench, tmp_path: Path) -> None:
    """The backstop: past all our records, QEMU's lock on the image keeps a second VM out."""
    old = await bench.cloud.create_vm(vm_request(bench, "old"))
    new = await bench.cloud.create_vm(vm_request(bench, "new"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.attach_disk(old, disk)
    file = {"driver": "file", "filename": str(tmp_path / f"cloud/qemu/disks/{disk}.raw"), "locking": "on"}
    async with qmp.connect(tmp_path / "cloud/qemu/vms" / new / qemu_machine.CONTROL_SOCKET) as machine:
        await machine.execute("blockdev-add", driver="raw", node_name="second", file=file)
        with pytest.raises(qmp.QmpRefused, match="lock"):
            await machine.execute("device_add", driver="virtio-blk-pci", drive="second", bus="port1")


async def test_a_vm_has_room_for_so_many_disks(bench: QemuBench) -> None:
    """One disk more than there are ports is refused, and is then held by nobody."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disks = [await bench.cloud.create_disk(DiskRequest(f"d{n}", 16)) for n in range(qemu_machine.DISK_PORTS + 1)]
    for disk in disks[:-1]:
        await bench.cloud.attach_disk(vm, disk)
    with pytest.raises(CloudRefused):
        await bench.cloud.attach_disk(vm, disks[-1])
    assert await bench.cloud.disk_holders(disks[-1]) == frozenset()


async def test_ports_are_forwarded_to_one_vm(bench: QemuBench) -> None:
    """A forwarded port answers; a second VM does not get it, and gets it once the first was fenced."""
    port = free_port()
    properties = {"forward_ports": [f"127.0.0.1:{port}:6379"]}
    first = await bench.cloud.create_vm(vm_request(bench, "first", cloud_properties=properties))
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    second = vm_request(bench, "second", cloud_properties=properties)
    with pytest.raises(CloudUnavailable, match=str(port)):
        await bench.cloud.create_vm(second)
    await bench.cloud.fence(first)
    await bench.cloud.create_vm(second)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


async def test_a_creation_that_only_missed_its_end_changes_nothing(bench: QemuBench, tmp_path: Path) -> None:
    """The VM runs and its port is forwarded, and only the note of it was lost: repeating leaves the process alone."""
    asked = vm_request(bench, "k", cloud_properties={"forward_ports": [f"{free_port()}:6379"]})
    vm = await bench.cloud.create_vm(asked)
    store = LocalStore(tmp_path / "cloud/qemu")
    record = store.read_vm(vm)
    assert record is not None
    before = qemu_process.find(store.vm_directory(vm) / "qemu.pid")
    await store.write_vm(dataclasses.replace(record, stage=Stage.CREATING))
    assert await bench.another().create_vm(asked) == vm
    assert [found.pid for found in qemu_process.find(store.vm_directory(vm) / "qemu.pid")] == [before[0].pid]
    assert store.read_vm(vm) == record


async def test_a_console_does_not_grow_without_end(bench: QemuBench) -> None:
    """What is too long is cut to its younger half, and QEMU goes on writing behind it."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.booted(vm)
    with bench.cloud.console(vm).open("ab") as console:
        console.write(b"x" * qemu_machine.CONSOLE_MAX_BYTES + b"the end")
    await bench.cloud.observe(vm)
    kept = bench.cloud.console(vm).read_bytes()
    assert len(kept) == qemu_machine.CONSOLE_MAX_BYTES // 2
    assert kept.endswith(b"the end")
    assert (await bench.cloud.observe(vm)).power is Power.RUNNING


@pytest.mark.parametrize(
    "properties",
    [{"forward_ports": ["6379"]}, {"forward_ports": "127.0.0.1:1:1"}, {"forward_ports": ["0:1"]}, {"colour": "red"}],
)
async def test_wrong_properties_are_refused(bench: QemuBench, properties: dict[str, object]) -> None:
    """A definite no, before anything is made."""
    with pytest.raises(CloudRefused):
        await bench.cloud.create_vm(vm_request(bench, "k", cloud_properties=properties))
    assert await bench.cloud.list_vms() == []


async def test_a_vm_wakes_from_a_template_as_somebody(tmp_path: Path) -> None:
    """Two VMs of one template: each agent is heard under its own id, with a working engine, and at different times
    neither is the other; a VM that is cut off by SIGKILL is off at once."""
    server = NatsServer(tmp_path / "nats")
    await server.start()
    heard: dict[str, Heartbeat] = {}

    def hear(message: Message) -> None:
        agent = subjects.agent_of(message.subject)
        if agent is not None:
            heard[agent] = heartbeat.decode(message.payload)

    def is_up(agent: str) -> bool:
        found = heard.get(agent)
        return found is not None and found.resurgam is not None and found.resurgam.engine is EngineState.UP

    try:
        async with vms.machines(tmp_path / "vms", CloudName("local")) as machines:
            bus = await NatsBus.open(BusSettings(urls=(server.url,)), "test")
            await until(lambda: bus.connected, 15.0, "the bus")
            await bus.subscribe(subjects.every_agent(AgentMessage.HEARTBEAT), hear)
            made: list[VmCid] = []
            for name in ("first", "second"):
                settings = AgentSettings(
                    agent_id=AgentId(name),
                    bus=BusSettings(urls=(server.url,)),
                    generation=Generation(1),
                    heartbeat_interval_seconds=1.0,
                )
                bench_request = vm_request(
                    _Named(vms.STEMCELL),
                    name,
                    memory_mib=512,  # the size that there is a template for
                    settings=settings,
                )
                made.append(await machines.cloud.create_vm(bench_request))
                await until(functools.partial(is_up, name), 60.0, f"{name} is heard")
            machines.kill(made[0])
            await until(lambda: not machines.processes(made[0]), 5.0, "the process ends")
            assert (await machines.cloud.observe(made[0])).power is Power.OFF
            assert (await machines.cloud.observe(made[1])).power is Power.RUNNING
            await bus.close()
    finally:
        await server.stop()


class _Named:
    def __init__(self, stemcell: str) -> None:
        self.stemcell = stemcell
