"""The monitor is killed at every point of taking a spare, of filling up, and of retiring one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from healthmonitor.core.policy import SparePolicy
from healthmonitor.core.records import SpareState
from tests.support.hands_world import CLOUD, HandsWorld, deployment, group, in_world, place, policy

DB = place()
SHARES = 4


async def _begin(world: HandsWorld) -> None:
    """Deployed, with a spare; from here on the monitor may be killed."""
    kill_at, world.kill_at = world.kill_at, None
    world.policy = replace(policy(), spares=SparePolicy(per_size={CLOUD: 1}))
    world.stemcell_version = "one"
    world.start_monitor()
    await world.deploy(deployment(group()))
    await world.until(lambda: world.idle() and world.generation(DB) == 1 and len(world.spares()) == 1, "deployed")
    await world.until(lambda: world.spares()[0].images == ("redis:7",), "images")
    world.points.clear()
    world.kill_at = kill_at


async def resurrect(world: HandsWorld) -> None:
    world.cloud.kill_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.generation(DB) > 1, "a second VM")


async def recreate(world: HandsWorld) -> None:
    await world.begin(lambda resurrector: resurrector.begin_recreate(DB, "asked"))


async def rebuild_stemcell(world: HandsWorld) -> None:
    world.stemcell_version = "two"
    await world.until(lambda: any(spare.version == "two" for spare in world.spares()), "a spare of the new build")


async def both_die(world: HandsWorld) -> None:
    cid = world.spares()[0].vm_cid
    assert cid is not None
    world.cloud.kill_vm(cid)
    world.cloud.kill_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.generation(DB) > 1, "a second VM")


SCENARIOS: dict[str, Callable[[HandsWorld], Awaitable[None]]] = {
    "resurrect": resurrect,
    "recreate": recreate,
    "rebuild_stemcell": rebuild_stemcell,
    "both_die": both_die,
}


async def _play(world: HandsWorld, name: str) -> None:
    await _begin(world)
    await SCENARIOS[name](world)
    await world.until(lambda: world.idle() and len(world.spares()) == 1, "idle, with a spare")
    await world.until(lambda: len(world.cloud.recorded()) == 2 == len(world.parts.journal.spares()) + 1, "no remains")
    # What a late call or a second leader might still spoil.
    await asyncio.sleep(15.0)
    assert not world.failures
    assert not world.cloud.violations
    vm = world.vm_of(DB)
    (spare,) = world.parts.journal.spares().values()
    assert spare.state is SpareState.READY
    assert {each.cid for each in world.cloud.running()} == {vm.cid, spare.vm_cid}, "one VM and one spare"
    assert vm.cid != spare.vm_cid
    assert vm.attached == world.machines[vm.cid].mounted == {disk.cid for disk in world.record(DB).disks}
    assert spare.vm_cid is not None
    assert not world.cloud.vms[spare.vm_cid].attached
    assert world.machines[spare.vm_cid].became is None
    spec = world.machines[vm.cid].spec
    assert spec is not None
    assert (spec.instance, spec.generation) == (DB, world.record(DB).generation)


@pytest.mark.parametrize("name", SCENARIOS)
def test_undisturbed(name: str) -> None:
    """Every scenario ends as it should, and goes through the points that it is about."""
    points = in_world(lambda world: _play(world, name))
    taken = {"journal:spare taken", "journal:spare bound", "agent:become", "journal:spare intended"}
    retired = {"journal:spare retiring", "journal:spare fenced", "cloud:spare delete_vm", "journal:spare retired"}
    lost = {"journal:spare taken", "journal:spare bound", "cloud:fence"}
    expected = {"resurrect": taken, "recreate": taken, "rebuild_stemcell": retired, "both_die": lost}
    assert expected[name] <= set(points)


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_point(name: str, share: int) -> None:
    """Whatever point it is killed at, in the end the instance has one VM with its disk, and there is one spare that is
    nobody's: no VM is two instances', none is left over, and no spare is lost."""
    failures = []
    points = list(enumerate(in_world(lambda world: _play(world, name)), start=1))
    for number, point in points[share::SHARES]:
        try:
            in_world(lambda world: _play(world, name), seed=number, kill_at=number)
        except AssertionError as error:
            failures.append(f"killed at point {number}, {point}: {error}")
    assert not failures, "\n".join(failures)
