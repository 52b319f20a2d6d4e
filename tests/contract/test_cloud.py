"""The laws of healthmonitor/clouds/cloud.py, asserted of every provider by the same tests."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from healthmonitor.clouds.cloud import (
    CloudError,
    CloudRefused,
    DiskHeld,
    DiskNotFound,
    DiskRequest,
    FenceProof,
    Power,
    Reshaping,
    Unfenced,
    VmNotFound,
    snapshots_of,
)
from healthmonitor.core.disk_changes import Growth
from protocol.ids import DISK_CID_MAX_CHARACTERS, DiskCid, VmCid
from tests.support import clouds
from tests.support.clouds import CloudBench, DockerBench, OwnEngine, QemuBench, interrupted, vm_request
from tests.support.nats import free_port

SIMULATED = "simulated"
REAL_PROVIDERS = [
    pytest.param("qemu", marks=pytest.mark.vm),
    pytest.param("docker", marks=pytest.mark.docker),
]
PROCESSES = "processes"
PROVIDERS = [SIMULATED, PROCESSES, *REAL_PROVIDERS]
FILESYSTEMS = ("ext4", "xfs")
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
        case "processes":
            async with clouds.process_bench(tmp_path / "cloud") as light:
                yield light
        case "qemu":
            async with clouds.qemu_bench(tmp_path / "cloud") as made:
                yield made
        case "docker":
            engine: OwnEngine = request.getfixturevalue("engine")
            async with clouds.docker_bench(tmp_path / "cloud", engine) as docker_made:
                yield docker_made


of_real_providers = pytest.mark.parametrize("bench", REAL_PROVIDERS, indirect=True)
"""For what the simulated cloud does not have: stemcells, files to lose, a delete that fences by itself."""

of_snapshotting_providers = of_real_providers
"""For what some clouds offer beside the port (`Snapshotting`), of disks whose bytes can be looked at."""

of_reshaping_providers = pytest.mark.parametrize("bench", [pytest.param("qemu", marks=pytest.mark.vm)], indirect=True)
"""For what some clouds offer beside the port (`Reshaping`)."""


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
    assert isinstance(await bench.cloud.fence(vm), FenceProof)
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
    assert (summary.size_mib, summary.holders) == (48, frozenset({vm}))


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
async def test_a_disk_grows_as_its_cloud_says_that_it_can(bench: CloudBench, filesystem: str) -> None:
    """What a cloud says of its disks is what it does, and every monitor is told the same: where one grows attached,
    whoever holds it sees the new size at once; where only detached ones grow, an attached one is refused; where none
    does, so is a detached one."""
    can = bench.cloud.disk_abilities.grows(filesystem)
    assert bench.another().disk_abilities.grows(filesystem) is can
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.attach_disk(vm, disk)
    if can in (Growth.MOUNTED, Growth.UNMOUNTED):
        await bench.another().resize_disk(disk, 48)
        assert await bench.seen_mib(disk) == 48
        return
    with pytest.raises(CloudRefused):
        await bench.cloud.resize_disk(disk, 48)
    await bench.cloud.detach_disk(vm, disk)
    if can is Growth.DETACHED:
        await bench.cloud.resize_disk(disk, 48)
    else:
        with pytest.raises(CloudRefused):
            await bench.cloud.resize_disk(disk, 48)


@pytest.mark.parametrize("suspensions", INTERRUPTIONS[::3])
async def test_growing_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever it was cut short, repeating it elsewhere ends with a disk of that size, also for who holds it."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.cloud.attach_disk(vm, disk)
    await interrupted(bench.cloud.resize_disk(disk, 48), suspensions)
    await bench.another().resize_disk(disk, 48)
    assert await bench.seen_mib(disk) == 48
    (summary,) = await bench.cloud.list_disks()
    assert (summary.size_mib, summary.holders) == (48, frozenset({vm}))


@of_snapshotting_providers
async def test_a_snapshot_is_a_disk_of_its_own(bench: QemuBench | DockerBench) -> None:
    """Taken while a VM holds the disk: all that it held at that moment and nothing later, of its size, held by nobody,
    with key and tags; the same key gives the same one, also from another monitor. The VM keeps its disk."""
    cloud = snapshots_of(bench.cloud)
    again = snapshots_of(bench.another())
    assert cloud is not None
    assert again is not None
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.write(disk, b"before")
    await bench.cloud.attach_disk(vm, disk)
    request = DiskRequest("d-at-1", 16, tags={"snapshot_of": disk})
    taken = await cloud.snapshot_disk(disk, request)
    assert await bench.cloud.disk_holders(disk) == {vm}
    assert await again.snapshot_disk(disk, request) == taken != disk
    listed = {summary.disk_cid: summary for summary in await bench.another().list_disks()}
    found = listed[taken]
    assert (found.key, found.size_mib, found.holders) == ("d-at-1", 16, NOBODY)
    assert found.tags == {"snapshot_of": disk}
    await bench.cloud.detach_disk(vm, disk)
    await bench.write(disk, b"later!")
    assert (await bench.read(taken, 6), await bench.read(disk, 6)) == (b"before", b"later!")
    await bench.cloud.attach_disk(vm, taken)
    await bench.cloud.detach_disk(vm, taken)
    await bench.cloud.delete_disk(taken)
    assert {summary.disk_cid for summary in await bench.cloud.list_disks()} == {disk}


@pytest.mark.parametrize("suspensions", INTERRUPTIONS[::3])
@of_snapshotting_providers
async def test_a_snapshot_is_finished_after_a_crash(bench: QemuBench | DockerBench, suspensions: int) -> None:
    """Wherever it was cut short, repeating it elsewhere ends with one snapshot, whole, and nothing left in the VM."""
    cloud, again = snapshots_of(bench.cloud), snapshots_of(bench.another())
    assert cloud is not None
    assert again is not None
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.write(disk, b"before")
    await bench.cloud.attach_disk(vm, disk)
    await interrupted(cloud.snapshot_disk(disk, DiskRequest("d-at-1", 16)), suspensions)
    taken = await again.snapshot_disk(disk, DiskRequest("d-at-1", 16))
    assert await bench.read(taken, 6) == b"before"
    assert {found.disk_cid: found.holders for found in await bench.cloud.list_disks()} == {disk: {vm}, taken: NOBODY}


@of_snapshotting_providers
async def test_a_snapshot_of_what_is_not_there_or_not_held(bench: QemuBench | DockerBench) -> None:
    """Said, and no disk is left of it that could be taken for one."""
    cloud = snapshots_of(bench.cloud)
    assert cloud is not None
    with pytest.raises(DiskNotFound):
        await cloud.snapshot_disk(DiskCid("d-none"), DiskRequest("x-at-1", 16))
    assert await bench.cloud.list_disks() == []


@of_snapshotting_providers
@pytest.mark.parametrize("suspensions", INTERRUPTIONS[::3])
async def test_a_snapshot_is_dropped(bench: QemuBench | DockerBench, suspensions: int) -> None:
    """However far it has come, also by whoever was not there when it was begun: nothing is left of it, its disk is as
    it was, and one that is begun anew is whole. One that never was, is fine."""
    cloud, again = snapshots_of(bench.cloud), snapshots_of(bench.another())
    assert cloud is not None
    assert again is not None
    await again.drop_snapshot("d-at-1")
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.write(disk, b"before")
    await bench.cloud.attach_disk(vm, disk)
    await interrupted(cloud.snapshot_disk(disk, DiskRequest("d-at-1", 16)), suspensions)
    await again.drop_snapshot("d-at-1")
    assert {found.disk_cid: found.holders for found in await bench.cloud.list_disks()} == {disk: {vm}}
    taken = await again.snapshot_disk(disk, DiskRequest("d-at-1", 16))
    assert await bench.read(taken, 6) == b"before"


@of_snapshotting_providers
@pytest.mark.parametrize("suspensions", INTERRUPTIONS[::3])
async def test_a_snapshot_keeps_no_disk_in_its_vm(bench: QemuBench | DockerBench, suspensions: int) -> None:
    """A disk is detached although its snapshot was begun, by whoever asks; the snapshot can be taken later."""
    cloud = snapshots_of(bench.cloud)
    assert cloud is not None
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.booted(vm)
    disk = await bench.cloud.create_disk(DiskRequest("d", 16))
    await bench.write(disk, b"before")
    await bench.cloud.attach_disk(vm, disk)
    await interrupted(cloud.snapshot_disk(disk, DiskRequest("d-at-1", 16)), suspensions)
    await bench.another().detach_disk(vm, disk)
    assert await bench.cloud.disk_holders(disk) == NOBODY
    await bench.cloud.attach_disk(vm, disk)
    taken = await cloud.snapshot_disk(disk, DiskRequest("d-at-1", 16))
    assert await bench.read(taken, 6) == b"before"


async def test_who_says_that_it_has_snapshots_has_them(bench: CloudBench) -> None:
    """And who does not is not asked."""
    assert (snapshots_of(bench.cloud) is not None) is bench.cloud.disk_abilities.snapshots


@of_reshaping_providers
async def test_a_vm_is_given_later_what_it_lacks(bench: CloudBench) -> None:
    """Made with its lasting properties only and given the others and other tags while it runs, by whichever monitor and
    as often as it is said: as a VM that was made with them."""
    port = free_port()
    properties = {"forward_ports": [f"127.0.0.1:{port}:6379"]}
    cloud = bench.cloud
    assert isinstance(cloud, Reshaping)
    lasting = cloud.lasting_properties(properties)
    assert all(properties[name] == value for name, value in lasting.items())
    vm = await cloud.create_vm(vm_request(bench, "k", cloud_properties=dict(lasting), tags={"spare": "k"}))
    assert not await reached(port)
    for _ in range(2):
        for monitor in (cloud, bench.another()):
            assert isinstance(monitor, Reshaping)
            await monitor.reshape_vm(vm, properties, {"instance": "shop/db/0"})
    assert await reached(port)
    (summary,) = await bench.another().list_vms()
    assert (summary.vm_cid, summary.tags, summary.power) == (vm, {"instance": "shop/db/0"}, Power.RUNNING)


@of_reshaping_providers
@pytest.mark.parametrize("suspensions", INTERRUPTIONS[::3])
async def test_reshaping_is_finished_after_a_crash(bench: CloudBench, suspensions: int) -> None:
    """Wherever it was cut short, repeating it elsewhere ends with all of it."""
    port = free_port()
    properties = {"forward_ports": [f"127.0.0.1:{port}:6379"]}
    cloud, again = bench.cloud, bench.another()
    assert isinstance(cloud, Reshaping)
    assert isinstance(again, Reshaping)
    vm = await cloud.create_vm(vm_request(bench, "k"))
    await interrupted(cloud.reshape_vm(vm, properties, {"instance": "shop/db/0"}), suspensions)
    await again.reshape_vm(vm, properties, {"instance": "shop/db/0"})
    assert await reached(port)
    assert [summary.tags for summary in await again.list_vms()] == [{"instance": "shop/db/0"}]


@of_reshaping_providers
async def test_what_cannot_be_reshaped(bench: CloudBench) -> None:
    """A VM that is not there, properties that are none, a VM that was fenced: said, and nothing runs that did not."""
    cloud = bench.cloud
    assert isinstance(cloud, Reshaping)
    with pytest.raises(VmNotFound):
        await cloud.reshape_vm(VmCid("vm-none"), {}, {})
    vm = await bench.cloud.create_vm(vm_request(bench, "k", tags={"spare": "k"}))
    cloud.lasting_properties({"no_such": 1})  # does not raise: wrong ones are create_vm's to refuse
    with pytest.raises(CloudRefused):
        await cloud.reshape_vm(vm, {"no_such": 1}, {})
    assert [summary.tags for summary in await bench.another().list_vms()] == [{"spare": "k"}]
    assert isinstance(await bench.cloud.fence(vm), FenceProof)
    with pytest.raises(CloudError):
        await cloud.reshape_vm(vm, {}, {"instance": "shop/db/0"})
    assert (await bench.cloud.observe(vm)).power is Power.OFF


@pytest.mark.parametrize("bench", [pytest.param("qemu", marks=pytest.mark.vm)], indirect=True)
async def test_reshaping_wakes_nobody(bench: QemuBench) -> None:
    """A VM that was made to stand still, by a person or by whoever is about to fence it, gets its ports and goes on
    standing still."""
    port = free_port()
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    await bench.cloud.freeze_vm(vm)
    await bench.another().reshape_vm(vm, {"forward_ports": [f"127.0.0.1:{port}:6379"]}, {"instance": "shop/db/0"})
    assert (await bench.cloud.observe(vm)).power is Power.PAUSED
    assert await reached(port)


async def reached(port: int) -> bool:
    """Whether somebody listens there on this machine."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_several_disks_keep_apart(bench: CloudBench) -> None:
    """Disks of one VM are attached side by side and each is told from the others."""
    vm = await bench.cloud.create_vm(vm_request(bench, "k"))
    disks = [await bench.cloud.create_disk(DiskRequest(f"d{number}", 16)) for number in range(3)]
    devices = {await bench.cloud.attach_disk(vm, disk) for disk in disks}
    assert len(devices) == 3
    for disk in disks:
        assert await bench.cloud.disk_holders(disk) == {vm}
