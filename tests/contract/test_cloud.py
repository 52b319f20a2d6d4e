"""The laws of healthmonitor/clouds/cloud.py, asserted of every provider by the same tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from healthmonitor.clouds.cloud import (
    CloudRefused,
    DiskHeld,
    DiskNotFound,
    DiskRequest,
    FenceProof,
    Power,
    Unfenced,
    VmNotFound,
)
from protocol.ids import DISK_CID_MAX_CHARACTERS, DiskCid, VmCid
from tests.support import clouds
from tests.support.clouds import CloudBench, OwnEngine, interrupted, vm_request

SIMULATED = "simulated"
REAL_PROVIDERS = [
    pytest.param("qemu", marks=pytest.mark.vm),
    pytest.param("docker", marks=pytest.mark.docker),
]
PROVIDERS = [SIMULATED, *REAL_PROVIDERS]
NOBODY: frozenset[VmCid] = frozenset()
INTERRUPTIONS = (0, 1, 2, 3, 5, 8, 12, 16, 20, 26)
"""How often a call has waited for something when it is cut short."""


@pytest.fixture(scope="module")
def engine() -> Iterator[OwnEngine]:
    with tempfile.TemporaryDirectory(prefix="rsc-", dir="/tmp") as directory:
        made = OwnEngine(Path(directory, "engine"))
        yield made
        made.close()


@pytest.fixture(params=PROVIDERS)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CloudBench]:
    match request.param:
        case "simulated":
            yield clouds.SimulatedBench()
        case "qemu":
            async with clouds.qemu_bench(tmp_path / "cloud") as made:
                yield made
        case "docker":
            engine: OwnEngine = request.getfixturevalue("engine")
            async with clouds.docker_bench(tmp_path / "cloud", engine) as docker_made:
                yield docker_made


def of_real_providers(test: Callable[..., object]) -> Callable[..., object]:
    """For what the simulated cloud does not have: stemcells, files to lose, a delete that fences by itself."""
    return pytest.mark.parametrize("bench", REAL_PROVIDERS, indirect=True)(test)


async def test_a_key_makes_one_vm(bench: CloudBench) -> None:
    """Creating again with the same key, also from another monitor, gives the same VM; another key gives another."""
    first = await bench.cloud.create_vm(vm_request(bench, "shop-db-0-1"))
    assert await bench.cloud.create_vm(vm_request(bench, "shop-db-0-1")) == first
    assert await bench.another().create_vm(vm_request(bench, "shop-db-0-1")) == first
    second = await bench.cloud.create_vm(vm_request(bench, "shop-db-0-2"))
    assert second != first
    assert {vm.vm_cid: vm.key for vm in await bench.cloud.list_vms()} == {first: "shop-db-0-1", second: "shop-db-0-2"}
    assert await bench.another().find_vm("shop-db-0-1") == first


@pytest.mark.parametrize("suspensions", INTERRUPTIONS)
async def test_creating_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever creating was cut short, repeating it elsewhere ends with exactly one VM, and it runs."""
    await interrupted(bench.cloud.create_vm(vm_request(bench, "k")), suspensions)
    vm = await bench.another().create_vm(vm_request(bench, "k"))
    assert [summary.vm_cid for summary in await bench.cloud.list_vms()] == [vm]
    assert (await bench.cloud.observe(vm)).power is Power.RUNNING


async def test_names_and_tags_come_back(bench: CloudBench) -> None:
    """What a VM and a disk were tagged with is read back, so that strangers can be told apart."""
    await bench.cloud.create_vm(vm_request(bench, "k", tags={"instance": "shop/db/0"}))
    await bench.cloud.create_disk(DiskRequest("d", 16, tags={"disk": "data"}))
    (vm,) = await bench.another().list_vms()
    (disk,) = await bench.another().list_disks()
    assert (vm.key, vm.tags, vm.power) == ("k", {"instance": "shop/db/0"}, Power.RUNNING)
    assert (disk.key, disk.tags, disk.size_mib, disk.holders) == ("d", {"disk": "data"}, 16, NOBODY)


async def test_what_is_not_there(bench: CloudBench) -> None:
    """A VM without a record is gone, which is no proof; deleting it is fine; its key finds nothing."""
    ghost = VmCid("vm-000000000000")
    assert (await bench.cloud.observe(ghost)).power is Power.GONE
    assert isinstance(await bench.cloud.fence(ghost), Unfenced)
    await bench.cloud.delete_vm(ghost)
    assert await bench.cloud.find_vm("nothing") is None
    assert await bench.cloud.list_vms() == []


@of_real_providers
async def test_an_unknown_stemcell_is_refused(bench: CloudBench) -> None:
    """A definite no leaves no VM behind."""
    with pytest.raises(CloudRefused):
        await bench.cloud.create_vm(vm_request(bench, "k", stemcell="no-such-stemcell"))
    assert await bench.cloud.find_vm("k") is None


async def test_a_killed_vm_is_off(bench: CloudBench) -> None:
    """The hypervisor's side says at once that a killed VM is off; its key goes on to name it."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    assert (await bench.cloud.observe(vm)).power is Power.RUNNING
    await bench.kill(vm)
    assert (await bench.another().observe(vm)).power is Power.OFF
    assert await bench.cloud.find_vm("k") == vm
    assert await bench.cloud.create_vm(vm_request(bench, "k")) == vm


async def test_a_frozen_vm_is_not_off(bench: CloudBench) -> None:
    """A VM that executes nothing may go on, so it is never said to be off."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.freeze(vm)
    assert (await bench.cloud.observe(vm)).power in (Power.PAUSED, Power.UNKNOWN)


@pytest.mark.parametrize("before", ["running", "frozen", "killed"])
async def test_fencing_gives_a_proof_again_and_again(bench: CloudBench, before: str) -> None:
    """Fenced is fenced, in whatever state it was found: now, when asked again, by another monitor, after deletion."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    if before == "frozen":
        await bench.freeze(vm)
    if before == "killed":
        await bench.kill(vm)
    proof = await bench.cloud.fence(vm)
    assert isinstance(proof, FenceProof), proof
    assert proof.vm_cid == vm
    assert proof.evidence
    assert (await bench.cloud.observe(vm)).power is Power.OFF
    assert isinstance(await bench.cloud.fence(vm), FenceProof)
    assert isinstance(await bench.another().fence(vm), FenceProof)
    await bench.cloud.delete_vm(vm)
    await bench.cloud.delete_vm(vm)
    assert (await bench.cloud.observe(vm)).power is Power.GONE
    assert isinstance(await bench.another().fence(vm), FenceProof)


@pytest.mark.parametrize("suspensions", INTERRUPTIONS[:6])
async def test_fencing_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever fencing was cut short, repeating it elsewhere gives the proof."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await interrupted(bench.cloud.fence(vm), suspensions)
    assert isinstance(await bench.another().fence(vm), FenceProof)
    assert (await bench.cloud.observe(vm)).power is Power.OFF


async def test_a_fenced_vm_never_runs_again(bench: CloudBench) -> None:
    """Its key still names it, and a VM made with the key after it was deleted is another one."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.cloud.fence(vm)
    assert await bench.cloud.create_vm(vm_request(bench, "k")) == vm
    assert (await bench.cloud.observe(vm)).power is Power.OFF
    await bench.cloud.delete_vm(vm)
    again = await bench.cloud.create_vm(vm_request(bench, "k"))
    assert again != vm
    assert (await bench.cloud.observe(again)).power is Power.RUNNING


async def test_deleting_a_running_vm_ends_it(bench: CloudBench) -> None:
    """What is deleted does not go on unseen, and its disks stay, free."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.attach_disk(vm, disk)
    await bench.cloud.delete_vm(vm)
    assert await bench.cloud.list_vms() == []
    assert await bench.cloud.disk_holders(disk) == NOBODY
    assert [summary.disk_cid for summary in await bench.cloud.list_disks()] == [disk]


@of_real_providers
async def test_deleting_leaves_a_proof(bench: CloudBench) -> None:
    """A VM that was deleted while it ran was fenced for that, and the proof is kept."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.cloud.delete_vm(vm)
    assert isinstance(await bench.another().fence(vm), FenceProof)


async def test_a_key_makes_one_disk(bench: CloudBench) -> None:
    """Creating again gives the same disk; its cid is a serial number that a guest can see in full."""
    first = await bench.cloud.create_disk(DiskRequest("shop-db-0-data", 16))
    assert await bench.another().create_disk(DiskRequest("shop-db-0-data", 16)) == first
    assert await bench.cloud.create_disk(DiskRequest("shop-db-1-data", 16)) != first
    assert len(await bench.cloud.list_disks()) == 2
    assert len(first) <= DISK_CID_MAX_CHARACTERS


@pytest.mark.parametrize("suspensions", INTERRUPTIONS[:4])
async def test_making_a_disk_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever making a disk was cut short, repeating it ends with exactly one, of the wanted size."""
    await interrupted(bench.cloud.create_disk(DiskRequest("d", 16)), suspensions)
    disk = await bench.another().create_disk(DiskRequest("d", 16))
    assert [(found.disk_cid, found.size_mib) for found in await bench.cloud.list_disks()] == [(disk, 16)]


@of_real_providers
async def test_a_lost_disk_is_not_made_anew(bench: CloudBench) -> None:
    """A disk whose data is gone is missing, for every call: an empty one in its place would hide the loss."""
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.lose_disk(disk)
    with pytest.raises(DiskNotFound):
        await bench.cloud.create_disk(DiskRequest("d", 16))
    with pytest.raises(DiskNotFound):
        await bench.cloud.attach_disk(vm, disk)
    with pytest.raises(DiskNotFound):
        await bench.cloud.disk_holders(disk)


async def test_disks_and_vms_that_are_not_there(bench: CloudBench) -> None:
    """Each missing thing has its own error; removing what is gone is fine."""
    ghost_disk, ghost_vm = DiskCid("d-000000000000"), VmCid("vm-000000000000")
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    with pytest.raises(DiskNotFound):
        await bench.cloud.attach_disk(vm, ghost_disk)
    with pytest.raises(VmNotFound):
        await bench.cloud.attach_disk(ghost_vm, disk)
    with pytest.raises(DiskNotFound):
        await bench.cloud.disk_holders(ghost_disk)
    with pytest.raises(DiskNotFound):
        await bench.cloud.resize_disk(ghost_disk, 32)
    await bench.cloud.delete_disk(ghost_disk)
    await bench.cloud.detach_disk(vm, disk)
    await bench.cloud.detach_disk(ghost_vm, disk)
    await bench.cloud.delete_disk(disk)
    await bench.cloud.delete_disk(disk)
    assert await bench.cloud.list_disks() == []


async def test_a_disk_goes_in_and_out(bench: CloudBench) -> None:
    """Attached, attached again, detached, detached again, three times over; the device's name stays the same."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.booted(vm)
    devices = set()
    for _ in range(3):
        devices.add(await bench.cloud.attach_disk(vm, disk))
        devices.add(await bench.another().attach_disk(vm, disk))
        assert await bench.another().disk_holders(disk) == {vm}
        await bench.cloud.detach_disk(vm, disk)
        await bench.another().detach_disk(vm, disk)
        assert await bench.cloud.disk_holders(disk) == NOBODY
    (device,) = devices
    assert device.startswith("/dev/disk/by-id/")
    assert device.endswith(disk)


@pytest.mark.parametrize("holder", ["running", "frozen"])
async def test_a_disk_never_has_two_vms(bench: CloudBench, holder: str) -> None:
    """Another VM is refused as long as the first holds it, answering or not; fenced and detached, it lets go."""
    old = await bench.cloud.create_vm(vm_request(bench, "old"))
    new = await bench.cloud.create_vm(vm_request(bench, "new"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.attach_disk(old, disk)
    if holder == "frozen":
        await bench.freeze(old)
    with pytest.raises(DiskHeld) as refusal:
        await bench.another().attach_disk(new, disk)
    assert refusal.value.holders == {old}
    assert await bench.cloud.disk_holders(disk) == {old}
    with pytest.raises(DiskHeld):
        await bench.cloud.delete_disk(disk)
    assert isinstance(await bench.cloud.fence(old), FenceProof)
    await bench.cloud.detach_disk(old, disk)
    assert await bench.cloud.disk_holders(disk) == NOBODY
    await bench.cloud.attach_disk(new, disk)
    assert await bench.cloud.disk_holders(disk) == {new}


@pytest.mark.parametrize("suspensions", INTERRUPTIONS)
async def test_attaching_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever attaching was cut short, repeating it elsewhere ends with this one VM holding the disk."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await interrupted(bench.cloud.attach_disk(vm, disk), suspensions)
    await bench.another().attach_disk(vm, disk)
    assert await bench.another().disk_holders(disk) == {vm}


async def test_a_disk_grows_and_never_shrinks(bench: CloudBench) -> None:
    """Free or attached it grows; growing to the size it has is fine; smaller is refused."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.resize_disk(disk, 32)
    await bench.cloud.attach_disk(vm, disk)
    await bench.cloud.resize_disk(disk, 48)
    await bench.another().resize_disk(disk, 48)
    with pytest.raises(CloudRefused):
        await bench.cloud.resize_disk(disk, 47)
    (summary,) = await bench.cloud.list_disks()
    assert (summary.size_mib, summary.holders) == (48, {vm})


async def test_several_disks_keep_apart(bench: CloudBench) -> None:
    """Disks of one VM are attached side by side and each is told from the others."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disks = [await bench.cloud.create_disk(DiskRequest(f"d{number}", 16)) for number in range(3)]
    devices = {await bench.cloud.attach_disk(vm, disk) for disk in disks}
    assert len(devices) == 3
    for disk in disks:
        assert await bench.cloud.disk_holders(disk) == {vm}
