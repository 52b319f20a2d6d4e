"""A loss is not rebuilt before it is known whether it was one of many."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from healthmonitor.core.policy import MeltdownPolicy
from healthmonitor.core.records import Hold, Step
from tests.support.hands_world import HandsWorld, deployment, group, in_world, place, policy

DB = place()
SETTLE_SECONDS = 3.0


async def _lost(world: HandsWorld, enabled: bool = True, instances: int = 2) -> None:
    world.policy = replace(policy(), meltdown=MeltdownPolicy(enabled=enabled, settle_seconds=SETTLE_SECONDS))
    world.start_monitor()
    await world.deploy(deployment(group(instances=instances)))
    await world.until(lambda: world.idle() and world.generation(DB) == 1, "created")
    world.cloud.kill_vm(world.vm_of(DB).cid)
    await world.until(lambda: world.operation(DB) is not None, "begun")


async def _held_back_seconds(world: HandsWorld) -> float:
    """From the beginning of the operation until it passed its guard."""

    def passed() -> float | None:
        operation = world.operation(DB)
        timings = () if operation is None else operation.timings
        passed_at = [timing.started_at + timing.seconds for timing in timings if timing.step is Step.GUARD]
        return passed_at[0] - operation.started_at if operation is not None and passed_at else None

    await world.until(passed, "admitted")
    seconds = passed()
    assert seconds is not None
    return seconds


def test_it_is_admitted_once_its_loss_has_settled() -> None:
    """Counted from when the loss was known: what confirming takes is within it."""

    async def play(world: HandsWorld) -> None:
        await _lost(world)
        assert SETTLE_SECONDS <= await _held_back_seconds(world) < SETTLE_SECONDS + 0.5

    in_world(play)


def test_without_meltdown_protection_nothing_is_waited_for() -> None:
    """Nobody would look at what else was lost."""

    async def play(world: HandsWorld) -> None:
        await _lost(world, enabled=False)
        assert await _held_back_seconds(world) < 1.0

    in_world(play)


def test_the_only_instance_there_is_waits_for_nobody() -> None:
    """Nothing else could have died with it."""

    async def play(world: HandsWorld) -> None:
        await _lost(world, instances=1)
        assert await _held_back_seconds(world) < 1.0

    in_world(play)


def test_a_meltdown_that_is_seen_while_it_settles_holds_it() -> None:
    """The neighbours' deaths become known a moment later: it is held with them."""

    async def play(world: HandsWorld) -> None:
        await _lost(world)
        await asyncio.sleep(SETTLE_SECONDS / 2)
        world.meltdowns["fleet"] = "3 of 3"
        await world.until(lambda: _held(world), "held")
        assert "fence" not in world.cloud.calls

    in_world(play)


@pytest.mark.parametrize("scope", ["fleet", "shop"])
def test_suspects_that_would_make_it_a_meltdown_are_waited_for(scope: str) -> None:
    """As long as it brews in its scope; when the suspects live after all it goes on at once."""

    async def play(world: HandsWorld) -> None:
        world.brewing.add(scope)
        await _lost(world)
        await asyncio.sleep(SETTLE_SECONDS + 1.0)
        operation = world.operation(DB)
        assert operation is not None
        assert operation.step is Step.GUARD
        world.brewing.clear()
        assert SETTLE_SECONDS + 1.0 <= await _held_back_seconds(world) < SETTLE_SECONDS + 2.0

    in_world(play)


def test_suspects_are_not_waited_for_without_end() -> None:
    """An inquiry that comes to no end holds nobody longer than it should have taken."""

    async def play(world: HandsWorld) -> None:
        world.brewing.add("fleet")
        await _lost(world)
        longest = world.policy.brewing_seconds
        assert longest == 6.0
        assert longest <= await _held_back_seconds(world) < longest + 2.0

    in_world(play)


def test_what_brews_elsewhere_holds_nobody() -> None:
    """Another deployment's storm is its own, unless it is the fleet's."""

    async def play(world: HandsWorld) -> None:
        world.brewing.add("other")
        await _lost(world)
        assert await _held_back_seconds(world) < SETTLE_SECONDS + 0.5

    in_world(play)


def _held(world: HandsWorld) -> bool:
    operation = world.operation(DB)
    return operation is not None and operation.hold is Hold.MELTDOWN
