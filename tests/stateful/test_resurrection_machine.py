"""A resurrection cut short anywhere, by anything, any number of times in a row, and resumed: the real resurrector and
journal on a virtual clock.

After every step of every history: no disk has two writers, and no VM stands beside another of its instance that may
still write. At the end of every history: one VM, with its disks.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from healthmonitor.clouds.cloud import Power
from healthmonitor.core.records import RolloutState
from tests.simulation.cloud import Fault
from tests.support.hands_world import SHOP, HandsWorld, deployment, group, place

DB = place()
CALLS = (
    "observe",
    "fence",
    "delete_vm",
    "disk_holders",
    "detach_disk",
    "create_vm",
    "attach_disk",
)
CONVERGES_SECONDS = 1200.0


class ResurrectionMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = HandsWorld(0)
        self.go(self._deployed)

    def go(self, what: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.world.loop.run(what())

    async def _deployed(self) -> None:
        world = self.world
        world.start_monitor()
        await world.deploy(deployment(group(disks={"data": 100, "log": 50})))
        await world.until(
            lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.DONE, "deployed"
        )

    @initialize()
    def a_vm_is_lost(self) -> None:
        self.loses(False)

    @rule(frozen=st.booleans())
    def loses(self, frozen: bool) -> None:
        """Whatever runs for the instance now: the old VM, or the new one in the middle of being made."""

        async def lose() -> None:
            for vm in self.world.cloud.running():
                if frozen:
                    self.world.cloud.freeze_vm(vm.cid)
                else:
                    self.world.cloud.kill_vm(vm.cid)

        self.go(lose)

    @rule(points=st.integers(1, 12), seconds=st.sampled_from([2.0, 20.0]))
    def the_monitor_dies_after(self, points: int, seconds: float) -> None:
        """After so many more writes, calls and commands, if it comes so far in the time; another one goes on."""
        self.world.kill_at = len(self.world.points) + points
        self.passes(seconds)

    @rule(call=st.sampled_from(CALLS), fault=st.sampled_from(list(Fault)))
    def the_cloud_misbehaves(self, call: str, fault: Fault) -> None:
        self.world.cloud.plan_fault(call, fault)

    @rule()
    def the_host_is_cut_off(self) -> None:
        for vm in self.world.cloud.running():
            vm.host_dead = True

    @rule()
    def the_host_is_back(self) -> None:
        for vm in self.world.cloud.vms.values():
            vm.host_dead = False

    @rule()
    def the_next_vm_boots_never(self) -> None:
        self.world.next_boots = False

    @rule()
    def what_was_frozen_is_thawed(self) -> None:
        async def thaw() -> None:
            for vm in self.world.cloud.running():
                self.world.cloud.thaw_vm(vm.cid)

        self.go(thaw)

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 5.0, 30.0]))
    def passes(self, seconds: float) -> None:
        self.go(lambda: asyncio.sleep(seconds))

    @invariant()
    def no_disk_has_two_writers(self) -> None:
        assert not self.world.cloud.violations, self.world.describe()

    @invariant()
    def what_may_write_is_alone(self) -> None:
        """Of those that have a disk: one that the cloud makes long after it was given up has none, and is swept."""
        running = [vm.cid for vm in self.world.cloud.running() if vm.attached]
        assert len(running) <= 1, f"{running}: {self.world.describe()}"

    @invariant()
    def no_part_ended(self) -> None:
        assert not self.world.failures
        assert not self.world.loop.failures

    def teardown(self) -> None:
        try:
            self.go(self._converged)
        finally:
            self._forget()

    async def _converged(self) -> None:
        world = self.world
        world.kill_at = None
        world.next_boots = True
        world.cloud.clear_faults()
        for vm in world.cloud.running():
            world.cloud.thaw_vm(vm.cid)
        await world.until(self._is_as_it_should_be, "one VM with its disks", CONVERGES_SECONDS)

    def _is_as_it_should_be(self) -> bool:
        world = self.world
        if not world.idle() or world.record(DB).vm is None:
            return False
        running = world.cloud.running()
        return (
            len(running) == 1
            and running[0] is world.vm_of(DB)
            and running[0].power is Power.RUNNING
            and running[0].attached == {disk.cid for disk in world.record(DB).disks}
            and len(world.machines[running[0].cid].mounted) == 2
        )

    def _forget(self) -> None:
        """As `HandsWorld.run` does: what killed processes left behind goes here, and not in the middle of another."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            self.world.run(asyncio.sleep(0))
            gc.collect()
        finally:
            sys.unraisablehook = hook


TestResurrection = ResurrectionMachine.TestCase
TestResurrection.settings = settings(
    max_examples=20, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
