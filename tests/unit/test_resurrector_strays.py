"""VMs that come to be after their creation was given up: found, confirmed, fenced, deleted, and nothing else is."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from healthmonitor.core.keys import vm_key
from healthmonitor.core.records import RolloutState, Switches
from healthmonitor.core.strays import Standing
from protocol.bus import Entry
from protocol.ids import Generation
from tests.simulation.cloud import Fault, SimulatedVm
from tests.support.hands_world import SHOP, HandsWorld, deployment, group, in_world, place, policy

DB = place()
SWEEP_SECONDS = 60.0
LEASE_SECONDS = 15.0
CONFIRMED_SECONDS = LEASE_SECONDS + 3 * SWEEP_SECONDS
"""By then whatever is left over was seen in two sweeps, whenever it came to be."""


async def _deployed(world: HandsWorld) -> None:
    await world.deploy(deployment(group()))
    await world.until(
        lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.DONE, "deployed"
    )


async def _with_a_late_vm(world: HandsWorld) -> SimulatedVm:
    """The creation of generation 1 takes effect after 30 s against a deadline of 10 s; it is given up meanwhile."""
    world.start_monitor()
    world.cloud.slow_seconds = 30.0
    world.cloud.plan_fault("create_vm", Fault.SLOW)
    await world.deploy(deployment(group()))
    await world.until(lambda: "create_vm" in world.cloud.calls, "the slow call is made")
    await world.begin(lambda resurrector: resurrector.begin_recreate(DB, "it takes too long"))
    await world.until(lambda: world.idle() and world.generation(DB) == 2, "generation 2 made")
    assert world.vm_of(DB).cid in {vm.cid for vm in world.cloud.running()}
    await world.until(lambda: len(world.cloud.running()) == 2, "the late one")
    (late,) = (vm for vm in world.cloud.running() if vm is not world.vm_of(DB))
    assert late.request.key == vm_key(DB, Generation(1))
    return late


async def _only_the_named_one(world: HandsWorld) -> None:
    (vm,) = world.cloud.running()
    assert vm is world.vm_of(DB)
    assert [other.cid for other in world.cloud.recorded()] == [vm.cid]
    assert vm.attached == {disk.cid for disk in world.record(DB).disks}
    assert not world.cloud.violations


async def _told(world: HandsWorld, kind: str) -> list[str]:
    entries = await world.parts.process.call(world.loop.create_task, world.parts.journal.last_events(1000))
    return [entry.event.text for entry in entries if entry.event.kind == kind]


def test_a_vm_that_is_made_after_its_deadline_is_removed() -> None:
    """Nobody names it: fenced with proof, deleted, and told. The one that replaced it is not touched."""

    async def play(world: HandsWorld) -> None:
        late = await _with_a_late_vm(world)
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", CONFIRMED_SECONDS)
        await _only_the_named_one(world)
        assert world.cloud.calls.index("fence") < world.cloud.calls.index("delete_vm")
        await asyncio.sleep(1.0)  # of simulated time: it is told once the cloud has answered
        (text,) = await _told(world, "vm.left_over_deleted")
        assert f"VM {late.cid}: fenced (process of {late.cid} reaped) and deleted" in text
        assert world.parts.resurrector.strays() == ()

    in_world(play)


def test_what_a_former_leader_saw_is_not_said_to_be_over() -> None:
    """A monitor that takes over says that it does not know of strays until it could have confirmed one itself; then it
    names the same."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        await _deployed(world)
        foreign = replace(
            world.vm_of(DB).request, key="other-db-0-g3", tags={"instance": "other/db/0", "generation": "3"}
        )
        await world.cloud.create_vm(foreign)
        await world.until(lambda: world.parts.resurrector.strays(), "seen", CONFIRMED_SECONDS)
        await world.restart_monitor()
        until = world.loop.time() + CONFIRMED_SECONDS
        while (strays := world.parts.resurrector.strays()) is None:
            assert world.loop.time() < until
            await asyncio.sleep(0.5)
        assert [stray.listed.key for stray in strays] == ["other-db-0-g3"]

    in_world(play)


def test_it_is_not_removed_at_first_sight() -> None:
    """Two sweeps, a sweep's time apart: one look might have met the journal in the middle of a change."""

    async def play(world: HandsWorld) -> None:
        await _with_a_late_vm(world)
        since = world.loop.time()
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", CONFIRMED_SECONDS)
        assert world.loop.time() - since >= SWEEP_SECONDS

    in_world(play)


def test_clouds_are_looked_at_soon_after_an_operation_ended() -> None:
    """What it gave up is found without waiting for the next round."""

    async def play(world: HandsWorld) -> None:
        world.policy = policy(stray_sweep_seconds=3600.0)
        world.start_monitor()
        await _deployed(world)
        await asyncio.sleep(CONFIRMED_SECONDS)
        asked = world.cloud.calls.count("list_vms")
        await asyncio.sleep(CONFIRMED_SECONDS)
        assert world.cloud.calls.count("list_vms") == asked
        await world.begin(lambda resurrector: resurrector.begin_recreate(DB, "asked"))
        await world.until(lambda: world.idle() and world.generation(DB) == 2, "recreated")
        await world.until(lambda: world.cloud.calls.count("list_vms") > asked, "looked again", 15.0)

    in_world(play)


def test_a_new_leader_first_looks_for_itself() -> None:
    """What the former leader had seen counts for nothing, and in its first lease a leader does not sweep at all."""

    async def play(world: HandsWorld) -> None:
        await _with_a_late_vm(world)
        await asyncio.sleep(SWEEP_SECONDS / 2)
        await world.restart_monitor()
        await world.until(world.idle, "leads")
        asked, since = world.cloud.calls.count("list_vms"), world.loop.time()
        await world.until(lambda: world.cloud.calls.count("list_vms") > asked, "first sweep")
        assert world.loop.time() - since >= LEASE_SECONDS - 1.0
        assert world.parts.resurrector.strays() in (None, ())
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", CONFIRMED_SECONDS)
        assert world.loop.time() - since >= SWEEP_SECONDS + LEASE_SECONDS - 1.0
        await _only_the_named_one(world)

    in_world(play)


def test_a_deleted_instance_leaves_no_vm() -> None:
    """Its record is gone by the time that the late VM comes to be; the timeline says that it was deleted."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        world.cloud.slow_seconds = 30.0
        world.cloud.plan_fault("create_vm", Fault.SLOW)
        await world.deploy(deployment(group()))
        await world.until(lambda: "create_vm" in world.cloud.calls, "the slow call is made")
        await world.deploy(replace(world.parts.journal.deployments()[SHOP], deleting=True, delete_disks=True))
        await world.until(lambda: world.idle() and not world.parts.journal.instances(), "deleted")
        assert not world.cloud.recorded()
        await world.until(lambda: world.cloud.running(), "the late one")
        await world.until(lambda: not world.cloud.recorded(), "removed", CONFIRMED_SECONDS)
        assert not world.cloud.running()

    in_world(play)


def test_an_empty_journal_removes_nothing() -> None:
    """The journal was lost and everything runs: VMs of unknown instances are reported and stay as they are."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        await _deployed(world)
        vm = world.vm_of(DB)
        world.kill_monitor()
        world.server.store.buckets.clear()
        world.server.store.logs.clear()
        world.start_monitor()
        await asyncio.sleep(2 * CONFIRMED_SECONDS)
        assert world.cloud.running() == [vm]
        (stray,) = world.parts.resurrector.strays() or ()
        assert (stray.listed.vm_cid, stray.standing) == (vm.cid, Standing.UNCLEAR)

    in_world(play)


def test_an_unreadable_record_stops_the_sweeps() -> None:
    """It may be the one that names the VM."""

    async def play(world: HandsWorld) -> None:
        late = await _with_a_late_vm(world)
        bucket = world.server.store.buckets["operations"]
        bucket.revision += 1
        bucket.entries["other.db.0"] = Entry("other.db.0", b"not json", bucket.revision)
        await asyncio.sleep(2 * CONFIRMED_SECONDS)
        assert late in world.cloud.running()
        assert world.parts.resurrector.strays() in (None, ())

    in_world(play)


def test_a_paused_site_is_not_swept_clean() -> None:
    """A person paused: nothing is removed until that is over."""

    async def play(world: HandsWorld) -> None:
        late = await _with_a_late_vm(world)
        until = world.unix_time() + 3 * CONFIRMED_SECONDS
        journal = world.parts.journal
        await world.parts.process.call(
            world.loop.create_task, journal.save_switches(Switches(paused_until=until, paused_by="anna"))
        )
        await asyncio.sleep(2 * CONFIRMED_SECONDS)
        assert late in world.cloud.running()
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", 2 * CONFIRMED_SECONDS)

    in_world(play)


def test_what_cannot_be_fenced_stays_and_is_shown() -> None:
    """No proof: not deleted, however long; shown with the reason; tried seldom; removed once its host answers."""

    async def play(world: HandsWorld) -> None:
        late = await _with_a_late_vm(world)
        late.host_dead = True
        tried = world.cloud.calls.count("fence")
        await asyncio.sleep(1200.0)
        assert late in world.cloud.running()
        assert late in world.cloud.recorded()
        (stray,) = world.parts.resurrector.strays() or ()
        assert stray.standing is Standing.LEFT_OVER
        assert "its host does not answer" in stray.problem
        assert 3 <= world.cloud.calls.count("fence") - tried <= 6, "tried seldom"
        assert len(await _told(world, "vm.left_over_stays")) == 1, "said once while nothing changes"
        late.host_dead = False
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", 4000.0)
        await _only_the_named_one(world)

    in_world(play)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("call", ["list_vms", "fence", "delete_vm"])
def test_every_fault_while_sweeping_is_survived(call: str, fault: Fault) -> None:
    """A call that fails, lies in its answer or hangs: it is removed in the end, and nothing else is."""

    async def play(world: HandsWorld) -> None:
        await _with_a_late_vm(world)
        world.cloud.plan_fault(call, fault, times=2)
        await world.until(lambda: len(world.cloud.recorded()) == 1, "removed", 4 * CONFIRMED_SECONDS)
        await _only_the_named_one(world)

    in_world(play)


def test_foreign_vms_are_only_reported() -> None:
    """Another's VM in the same cloud is listed to people and never touched."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        await _deployed(world)
        request = world.vm_of(DB).request
        other = await world.cloud.create_vm(replace(request, key="theirs-1", tags={}))
        await asyncio.sleep(2 * CONFIRMED_SECONDS)
        assert world.cloud.vms[other].can_write
        (stray,) = world.parts.resurrector.strays() or ()
        assert (stray.listed.vm_cid, stray.standing) == (other, Standing.FOREIGN)

    in_world(play)


def test_a_vm_that_gets_a_name_while_it_is_fenced_is_not_deleted() -> None:
    """The place is deployed anew under the key of the VM that is just being removed: the new operation finds it
    fenced, and makes another."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        await _deployed(world)
        standing = world.parts.journal.deployments()[SHOP]
        request = world.vm_of(DB).request
        await world.deploy(replace(standing, deleting=True))
        await world.until(lambda: world.idle() and not world.parts.journal.instances(), "deleted")
        late = await world.cloud.create_vm(request)
        world.cloud.slow_seconds = 5.0
        world.cloud.plan_fault("fence", Fault.SLOW)
        fenced = world.cloud.calls.count("fence")
        await world.until(lambda: world.cloud.calls.count("fence") > fenced, "being fenced", CONFIRMED_SECONDS)
        await world.deploy(deployment(group(), revision=2))
        await world.until(lambda: DB in world.parts.journal.instances(), "there again")
        await world.until(lambda: world.idle() and world.generation(DB) > 0, "deployed anew")
        await asyncio.sleep(2 * CONFIRMED_SECONDS)
        assert not world.cloud.vms[late].can_write
        assert await _told(world, "vm.left_over_deleted") == []
        await _only_the_named_one(world)

    in_world(play)
