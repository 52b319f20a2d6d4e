"""Spare VMs, as the monitor keeps and uses them: made, taken by whoever needs a VM, refilled, rebuilt, retired."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from healthmonitor.core.policy import Policy, SparePolicy
from healthmonitor.core.records import SpareState, Switches
from healthmonitor.core.spares import KEY_PREFIX
from protocol.ids import Generation
from tests.simulation.cloud import Fault
from tests.support.hands_world import CLOUD, HandsWorld, deployment, group, in_world, place, policy

DB = place()
CONFIRMED_SECONDS = 15.0 + 3 * 60.0
"""By then whatever is left over was seen in two sweeps."""


def with_spares(count: int = 1) -> Policy:
    return replace(policy(), spares=SparePolicy(per_size={CLOUD: count}))


async def deployed(world: HandsWorld, count: int = 1) -> None:
    """One database, and the spares that its size asks for, ready."""
    world.policy = with_spares(count)
    world.start_monitor()
    await world.deploy(deployment(group()))
    await world.until(lambda: world.idle() and world.generation(DB) == 1, "deployed")
    await world.until(lambda: len(world.spares()) == count, "spares ready")


async def told(world: HandsWorld, kind: str) -> list[str]:
    entries = await world.parts.process.call(world.loop.create_task, world.parts.journal.last_events(1000))
    return [entry.event.text for entry in entries if entry.event.kind == kind]


def test_so_many_spares_are_made_as_are_asked_for() -> None:
    """Booted VMs with an agent that fill no instance; no disk is theirs, and there are no more of them later."""

    async def play(world: HandsWorld) -> None:
        await deployed(world, count=2)
        await asyncio.sleep(60.0)
        assert len(world.spares()) == 2
        assert len(world.cloud.running()) == 3
        for spare in world.spares():
            assert spare.vm_cid is not None
            vm = world.cloud.vms[spare.vm_cid]
            assert vm.request.settings.instance is None
            assert vm.request.key.startswith(KEY_PREFIX)
            assert not vm.attached
            assert world.machines[vm.cid].images == {"redis:7"}

    in_world(play)


def test_a_lost_vm_is_replaced_by_a_spare_and_the_spare_by_another() -> None:
    """Nothing is created for it: the spare gets the disk and is told whom it is. Then there is a spare again."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        created = len(world.cloud.created)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.generation(DB) == 2 and world.idle(), "rebuilt")
        vm = world.record(DB).vm
        assert vm is not None
        assert (vm.vm_cid, vm.agent_id, vm.key, vm.spare) == (spare.vm_cid, spare.agent_id, spare.key, True)
        machine = world.machines[world.vm_of(DB).cid]
        assert machine.became == (DB, 2)
        assert machine.mounted == {disk.cid for disk in world.record(DB).disks}
        assert machine.asked.index("become") < machine.asked.index("mount_disk")
        assert len(await told(world, "spare.taken")) == 1
        await world.until(lambda: len(world.spares()) == 1, "refilled")
        assert len(world.cloud.created) == created + 1
        assert world.spares()[0].key != spare.key

    in_world(play)


def test_a_spare_that_was_taken_is_removed_like_any_vm() -> None:
    """Its instance's VM is lost again: fenced and deleted, and the next spare takes its place."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        for generation in (2, 3, 4):
            world.cloud.kill_vm(world.vm_of(DB).cid)
            await world.until(lambda g=generation: world.generation(DB) == g and world.idle(), "rebuilt")  # type: ignore[misc]
            await world.until(lambda: len(world.spares()) == 1, "refilled")
        assert len(world.cloud.recorded()) == 2
        await world.begin(lambda resurrector: resurrector.begin_delete(DB, "asked"))
        await world.until(lambda: world.idle() and DB not in world.parts.journal.instances(), "deleted")
        assert not world.cloud.violations

    in_world(play)


def test_a_deployment_takes_a_spare_too() -> None:
    """A second instance of the same size; a group of another size has its VM made."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        other = group("big", disks={})
        other = replace(other, vm=replace(other.vm, memory_mib=4096))
        await world.deploy(deployment(group(instances=2), other, revision=2))
        second, big = place(index=1), place("big")
        await world.until(lambda: world.idle() and world.generation(second) == 1 == world.generation(big), "deployed")
        vms = [world.record(each).vm for each in (second, big)]
        assert [vm is not None and vm.spare for vm in vms] == [True, False]
        assert vms[0] is not None
        assert vms[0].vm_cid == spare.vm_cid
        await world.until(lambda: len(world.spares()) == 2, "one spare of each size")

    in_world(play)


def test_a_spare_that_dies_is_rebuilt() -> None:
    """Fenced and deleted, and another made; it concerns no instance."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        world.cloud.kill_vm(spare.vm_cid)
        await world.until(lambda: world.parts.journal.spare(spare.key) is None, "retired")
        await world.until(lambda: len(world.spares()) == 1, "another")
        assert not world.parts.journal.operations()
        assert len(world.cloud.recorded()) == 2
        assert await told(world, "spare.retired") == [f"fenced (process of {spare.vm_cid} reaped) and deleted"]

    in_world(play)


def test_a_dead_spare_is_not_taken() -> None:
    """Spare and VM die in one moment: the instance gets a VM that is made for it."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        world.cloud.kill_vm(spare.vm_cid)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await asyncio.sleep(4.0)
        await world.until(lambda: world.generation(DB) >= 2 and world.idle(), "rebuilt")
        assert world.vm_of(DB).cid != spare.vm_cid
        await world.until(lambda: len(world.spares()) == 1 and len(world.cloud.recorded()) == 2, "as before")

    in_world(play)


def test_a_spare_that_dies_while_it_is_taken_costs_another_try() -> None:
    """Its agent does not take on the instance any more: it is fenced and deleted, and a VM is made."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        cid = spare.vm_cid
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.generation(DB) == 2, "taken")
        world.cloud.kill_vm(cid)
        await world.until(lambda: world.idle() and world.vm_of(DB).cid != cid, "rebuilt once more")
        assert cid not in {vm.cid for vm in world.cloud.recorded()}
        assert not world.cloud.violations

    in_world(play)


def test_an_agent_that_will_not_be_told_is_replaced() -> None:
    """It says that it is somebody else's: whatever that means, this instance does not run there."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        world.machines[spare.vm_cid].became = ("blog/one/0", 0)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.generation(DB) == 3 and world.idle(), "rebuilt with another")
        assert spare.vm_cid not in {vm.cid for vm in world.cloud.recorded()}

    in_world(play)


def test_an_update_of_what_was_a_spare_rebuilds_nothing() -> None:
    """It is told once more whose it is, which it knows; an agent that refuses is for a person, not for an update."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.generation(DB) == 2 and world.idle(), "rebuilt")
        await world.deploy(deployment(group(image="redis:8"), revision=2))
        await world.until(lambda: world.idle() and world.record(DB).deployment_revision == 2, "updated")
        assert world.generation(DB) == 2
        world.machines[world.vm_of(DB).cid].became = ("blog/one/0", 2)
        await world.deploy(deployment(group(image="redis:9"), revision=3))
        await world.until(
            lambda: (operation := world.operation(DB)) is not None and "refuses to be" in operation.error, "told"
        )
        assert world.generation(DB) == 2

    in_world(play)


def test_a_new_stemcell_replaces_spares() -> None:
    """Those of the former build are retired, and none of them is taken meanwhile."""

    async def play(world: HandsWorld) -> None:
        world.stemcell_version = "one"
        await deployed(world)
        (old,) = world.spares()
        world.stemcell_version = "two"
        await world.until(lambda: [spare.version for spare in world.spares()] == ["two"], "replaced")
        assert old.vm_cid not in {vm.cid for vm in world.cloud.recorded()}

    in_world(play)


def test_without_a_wish_for_them_spares_go() -> None:
    """The configuration says none any more, or nobody asks for their size."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        world.policy = policy()
        world.parts.resurrector.set_policy(world.policy)
        await world.until(lambda: not world.parts.journal.spares(), "gone")
        assert len(world.cloud.recorded()) == 1

    in_world(play)


def test_filling_up_waits_for_those_who_need_a_vm_now() -> None:
    """While a VM is made for an instance no spare is made."""

    async def play(world: HandsWorld) -> None:
        world.policy = with_spares()
        world.start_monitor()
        await world.deploy(deployment(group()))
        await world.until(lambda: world.generation(DB) == 1, "begun")
        while not world.idle():
            assert not world.parts.journal.spares()
            await asyncio.sleep(0.05)
        await world.until(lambda: len(world.spares()) == 1, "then")

    in_world(play)


def test_a_spare_that_cannot_be_made_is_shown_and_tried_again() -> None:
    """The cloud refuses: nothing but the spare waits, and it is there once the cloud can."""

    async def play(world: HandsWorld) -> None:
        world.policy = with_spares()
        world.cloud.vms_max = 1
        world.start_monitor()
        await world.deploy(deployment(group()))
        await world.until(lambda: world.spares(SpareState.MAKING) and world.spares(SpareState.MAKING)[0].error, "shown")
        (spare,) = world.spares(SpareState.MAKING)
        assert "quota" in spare.error
        assert world.idle()
        world.cloud.vms_max = 10
        await world.until(lambda: [each.key for each in world.spares()] == [spare.key], "made after all")
        assert world.spares()[0].error == ""

    in_world(play)


def test_a_spare_that_never_speaks_is_replaced_after_growing_delays() -> None:
    """Its VM boots never: fenced, deleted, another made, not in a spin."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        made = len(world.cloud.created)
        world.cloud.plan_fault("create_vm", Fault.HALF_DONE, times=1000)
        world.cloud.kill_vm(spare.vm_cid)
        await asyncio.sleep(400.0)
        assert 1 <= len(world.cloud.created) - made <= 20
        world.cloud.clear_faults()
        await world.until(lambda: len(world.spares()) == 1 and len(world.cloud.recorded()) == 2, "made after all")

    in_world(play)


def test_images_that_cannot_be_had_are_shown_and_asked_for_again() -> None:
    """A spare without them is a spare all the same."""

    async def play(world: HandsWorld) -> None:
        world.unobtainable_images.add("redis:7")
        await deployed(world)
        await world.until(lambda: bool(world.spares()[0].images_error), "shown")
        assert "redis:7: no such image" in world.spares()[0].images_error
        world.unobtainable_images.clear()
        await world.until(lambda: world.spares()[0].images == ("redis:7",), "had after all")
        assert world.spares()[0].images_error == ""

    in_world(play)


def test_paused_nothing_is_made_and_nothing_removed() -> None:
    """A person who pauses means spares too."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        parts = world.parts
        paused = Switches(paused_until=world.unix_time() + 100.0)
        await parts.process.call(world.loop.create_task, parts.journal.save_switches(paused))
        world.cloud.kill_vm(spare.vm_cid)
        await asyncio.sleep(60.0)
        assert [each.key for each in world.spares()] == [spare.key]
        await world.until(lambda: [each.key for each in world.spares()] not in ([], [spare.key]), "after the pause")

    in_world(play)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_spare_that_was_taken_and_not_bound_is_used_or_given_back(goes_on: bool) -> None:
    """The monitor ends between the two writes: the next one binds it, or, when the operation is gone, gives it back."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        generation = Generation(world.record(DB).generation + 1)
        taken = replace(spare, state=SpareState.TAKEN, taken_by=DB, taken_generation=generation)
        parts = world.parts
        if goes_on:
            world.cloud.plan_fault("fence", Fault.SLOW)
            world.cloud.kill_vm(world.vm_of(DB).cid)
            await world.until(lambda: world.operation(DB) is not None, "begun")
        await parts.process.call(world.loop.create_task, parts.journal.save_spare(taken, spare))
        if goes_on:
            await world.until(lambda: world.generation(DB) == 2 and world.idle(), "bound")
            assert world.vm_of(DB).cid == spare.vm_cid
        else:
            await world.until(lambda: [each.key for each in world.spares()] == [spare.key], "given back")
            assert world.spares()[0].taken_by is None

    in_world(play)


def test_a_spare_that_comes_late_is_swept() -> None:
    """Its creation was given up, and its record with it: the timeline proves that it is nobody's."""

    async def play(world: HandsWorld) -> None:
        await deployed(world)
        (spare,) = world.spares()
        assert spare.vm_cid is not None
        world.cloud.slow_seconds = 40.0
        world.cloud.plan_fault("create_vm", Fault.SLOW)
        world.cloud.kill_vm(spare.vm_cid)
        await world.until(lambda: bool(world.spares(SpareState.MAKING)), "being made")
        world.policy = policy()
        world.parts.resurrector.set_policy(world.policy)
        await world.until(lambda: not world.parts.journal.spares(), "given up")
        await world.until(lambda: len(world.cloud.running()) == 2, "made late")
        await world.until(lambda: len(world.cloud.recorded()) == 1, "swept", CONFIRMED_SECONDS)
        assert world.cloud.running() == [world.vm_of(DB)]

    in_world(play)
