"""The resurrector against a cloud that fails, lies, hangs and forgets, and against storms and switches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from healthmonitor.core import operation as rules
from healthmonitor.core.judgement import Judgement
from healthmonitor.core.maintenance_changes import OnceWish
from healthmonitor.core.records import Hold, OperationKind, RolloutState, Step, Switches
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.operator_actions import Person
from protocol.ids import CloudName, OperationId
from tests.simulation.cloud import Fault, Machine, SimulatedVm
from tests.support.hands_world import SHOP, HandsWorld, deployment, group, in_world, place, policy

DB = place()
ANNA = Person("admin", "anna")
Play = Callable[[HandsWorld], Coroutine[Any, Any, None]]


async def _deployed(world: HandsWorld, instances: int = 1) -> None:
    world.start_monitor()
    await world.deploy(deployment(group(instances=instances)))
    await world.until(
        lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.DONE, "deployed"
    )


async def _held(world: HandsWorld, hold: Hold) -> None:
    await world.until(lambda: (o := world.operation(DB)) is not None and o.hold is hold, f"held: {hold}")


def _holds(world: HandsWorld) -> set[Hold]:
    return {operation.hold for operation in world.parts.journal.operations().values()}


async def _switch(world: HandsWorld, switches: Switches) -> None:
    journal = world.parts.journal
    await world.parts.process.call(world.loop.create_task, journal.save_switches(switches))
    world.parts.resurrector.wake()


def test_a_dead_host_is_never_rebuilt_past() -> None:
    """No proof: the disks stay, no VM is made, whatever time passes and however often the monitor starts; a person's
    word, given when the host is truly off, lets it go on."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        old = world.vm_of(DB)
        world.cloud.freeze_vm(old.cid)  # silent, and may go on writing at any moment
        old.host_dead = True
        await _held(world, Hold.UNFENCED)
        await world.restart_monitor()
        await asyncio.sleep(3600.0)
        operation = world.operation(DB)
        assert operation is not None
        assert (operation.step, operation.hold) == (Step.FENCE, Hold.UNFENCED)
        assert "resurgam fence confirm shop/db/0" in operation.error
        assert world.cloud.created == [old.cid]
        assert world.cloud.calls.count("fence") < 60, "retried with growing delay"
        world.cloud.kill_vm(old.cid, announced=False)
        await world.begin(lambda resurrector: resurrector.confirm_fence(DB, "anna"))
        await world.until(world.idle, "rebuilt")
        assert world.vm_of(DB).attached == {disk.cid for disk in world.record(DB).disks}
        assert not world.cloud.violations

    in_world(play)


def test_a_cloud_whose_delete_lies_leads_to_no_second_writer() -> None:
    """Somebody deletes the VM in the cloud, which forgets it and says its disk is free, while it goes on writing: no
    record is no proof."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        old = world.vm_of(DB)
        world.cloud.freeze_vm(old.cid)  # silent, and may go on writing at any moment
        old.host_dead = True
        await world.cloud.delete_vm(old.cid)
        assert await world.cloud.disk_holders(next(iter(old.attached))) == frozenset()
        await _held(world, Hold.UNFENCED)
        await asyncio.sleep(1000.0)
        assert world.cloud.created == [old.cid]
        assert not world.cloud.violations

    in_world(play)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize(
    "call",
    [
        "observe",
        "fence",
        "delete_vm",
        "disk_holders",
        "create_vm",
        "attach_disk",
        "list_disks",
        "create_disk",
        "detach_disk",
    ],
)
def test_every_fault_of_every_call_is_survived(call: str, fault: Fault) -> None:
    """A call that fails, is refused, half done, unanswered, hangs or is slow, twice in a row: the instance ends up
    with one VM and its disks, in creation and in resurrection alike."""

    async def play(world: HandsWorld) -> None:
        world.cloud.plan_fault(call, fault, times=2)
        await _deployed(world)
        world.cloud.clear_faults()
        world.cloud.plan_fault(call, fault, times=2)
        killed = world.vm_of(DB).cid
        world.cloud.kill_vm(killed)
        await world.until(lambda: world.generation(DB) > 1 and world.idle(), "rebuilt")
        await asyncio.sleep(60.0)
        (vm,) = world.cloud.running()
        assert vm is world.vm_of(DB)
        assert vm.cid != killed
        assert vm.attached == {disk.cid for disk in world.record(DB).disks}
        assert [other.cid for other in world.cloud.recorded()] == [vm.cid]
        assert not world.cloud.violations

    in_world(play, seed=len(call) * 31 + len(fault.value))


def test_a_stuck_disk_is_not_attached_elsewhere() -> None:
    """The cloud says detached and the hypervisor's side says held: it waits, says who holds it, and goes on when it
    is free."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        old = world.vm_of(DB)
        (disk,) = old.attached
        world.cloud.disks[disk].stuck = True
        world.cloud.kill_vm(old.cid)
        await _held(world, Hold.RETRYING)
        operation = world.operation(DB)
        assert operation is not None
        assert operation.step is Step.FREE_DISKS
        assert str(old.cid) in operation.error
        assert world.cloud.created == [old.cid]
        world.cloud.disks[disk].stuck = False
        await world.until(world.idle, "rebuilt")
        assert world.vm_of(DB).attached == {disk}

    in_world(play)


def test_an_attachment_is_believed_only_when_it_is_read_back() -> None:
    """The cloud says attached and the hypervisor's side says held by nobody: the VM is not given its containers, and
    attaching is tried until it is so."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        (disk,) = world.vm_of(DB).attached
        world.cloud.disks[disk].slips = True
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await _held(world, Hold.RETRYING)
        await asyncio.sleep(60.0)
        operation = world.operation(DB)
        assert operation is not None
        assert operation.step is Step.ATTACH
        assert "read back it is held by nobody" in operation.error
        assert world.machines[world.vm_of(DB).cid].asked == []
        world.cloud.disks[disk].slips = False
        await world.until(world.idle, "rebuilt")
        assert world.vm_of(DB).attached == {disk}

    in_world(play)


def test_a_disk_that_the_vm_never_sees_is_plugged_in_again() -> None:
    """The cloud recorded an attachment, says so when it is read back, and never carried it out: the agent has looked
    for the device three times, then the disk is detached and attached anew, which is told."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        (disk,) = world.vm_of(DB).attached
        world.cloud.plan_fault("attach_disk", Fault.HALF_DONE, times=1)
        world.cloud.disks[disk].slips = True
        world.cloud.kill_vm(world.vm_of(DB).cid)

        def step() -> Step | None:
            operation = world.operation(DB)
            return operation.step if operation is not None else None

        await world.until(lambda: step() is Step.MOUNT, "attached, by the cloud's word")
        assert world.vm_of(DB).half_attached == {disk}
        world.cloud.disks[disk].slips = False
        await world.until(world.idle, "rebuilt")
        assert world.vm_of(DB).attached == {disk}
        assert not world.vm_of(DB).half_attached
        entries = await world.parts.process.call(world.loop.create_task, world.parts.journal.last_events(1000))
        told = [entry.event.text for entry in entries if "its VM did not see it" in entry.event.text]
        assert len(told) == 1
        assert not world.cloud.violations

    in_world(play)


def test_a_disk_that_another_vm_holds_is_not_attached_beside_it() -> None:
    """In a cloud that attaches one disk to several VMs without a word: asked first who holds it, never two writers."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        vm = world.vm_of(DB)
        (disk,) = vm.attached
        await world.deploy(deployment(group(disks={}), revision=2))
        await world.until(lambda: world.idle() and not vm.attached, "let go")
        theirs = await world.cloud.create_vm(replace(vm.request, key="theirs", tags={}))
        world.cloud.disks[disk].shared = True
        await world.cloud.attach_disk(theirs, disk)
        await world.deploy(deployment(group(), revision=3))
        await _held(world, Hold.RETRYING)
        await asyncio.sleep(60.0)
        operation = world.operation(DB)
        assert operation is not None
        assert f"is held by {theirs}" in operation.error
        assert not world.cloud.violations
        await world.cloud.detach_disk(theirs, disk)
        await world.until(world.idle, "attached")
        assert vm.attached == {disk}
        assert not world.cloud.violations

    in_world(play)


def test_a_lost_disk_is_never_replaced_by_an_empty_one() -> None:
    """A disk that the cloud does not find stops the operation at once and for good; nothing is made in its place."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        (disk,) = world.vm_of(DB).attached
        world.cloud.kill_vm(world.vm_of(DB).cid)
        lost = world.cloud._disks.pop(disk)
        await _held(world, Hold.RETRYING)
        await asyncio.sleep(600.0)
        operation = world.operation(DB)
        assert operation is not None
        assert "none is made in its place" in operation.error
        assert world.cloud.calls.count("create_disk") == 1
        world.cloud._disks[disk] = lost
        await world.until(world.idle, "rebuilt")
        assert world.vm_of(DB).attached == {disk}

    in_world(play)


def test_a_vm_that_never_boots_is_replaced_after_its_time() -> None:
    """The agent is not heard within agent_boot_seconds: that VM is fenced and deleted before another is made."""

    async def play(world: HandsWorld) -> None:
        make = world.cloud._make_machine

        def make_the_first_two_never_boot(vm: SimulatedVm) -> Machine:
            vm.boots = len(world.cloud.created) > 1
            return make(vm)

        world.cloud._make_machine = make_the_first_two_never_boot
        await _deployed(world)
        assert world.generation(DB) == 3
        assert len(world.cloud.recorded()) == 1
        assert not world.cloud.violations

    in_world(play)


def test_a_vm_that_dies_booting_is_replaced_without_waiting_for_its_time() -> None:
    """The cloud says off while its agent is awaited: it need not be awaited any longer."""

    async def play(world: HandsWorld) -> None:
        world.start_monitor()
        await world.deploy(deployment(group()))
        await world.until(lambda: (o := world.operation(DB)) is not None and o.step is Step.HEAR_AGENT, "booting")
        at = world.loop.time()
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(world.idle, "created")
        assert world.loop.time() - at < world.policy.resurrection.agent_boot_seconds / 2
        assert world.generation(DB) == 2

    in_world(play)


async def _disable(world: HandsWorld) -> None:
    world.parts.resurrector.set_policy(policy(enabled=False))


async def _enable(world: HandsWorld) -> None:
    world.parts.resurrector.set_policy(policy())


async def _pause(world: HandsWorld) -> None:
    await _switch(world, Switches(paused_until=world.unix_time() + 500.0, paused_by="anna"))


async def _resume(world: HandsWorld) -> None:
    await _switch(world, Switches())


async def _melt(world: HandsWorld) -> None:
    world.meltdowns["fleet"] = "11 of 20"


async def _override(world: HandsWorld) -> None:
    await _switch(world, Switches(meltdown_overridden_until=world.unix_time() + 600.0))


async def _open_window(world: HandsWorld) -> None:
    await _maintenance(world, lambda actions: actions.add(OnceWish(700.0), ANNA, "new switches"))


async def _end_window(world: HandsWorld) -> None:
    (window,) = world.parts.journal.maintenance()
    await _maintenance(world, lambda actions: actions.end(window, ANNA, "done early"))


async def _maintenance(world: HandsWorld, ask: Callable[[MaintenanceActions], Coroutine[Any, Any, object]]) -> None:
    """A person's word, as the API carries it out."""
    parts = world.parts
    leader = _Leads()
    actions = MaintenanceActions(
        parts.journal, leader, lambda: (), world.unix_time, lambda: "window-1", parts.resurrector.wake
    )
    await parts.process.call(world.loop.create_task, ask(actions))


class _Leads:
    def is_leader(self) -> bool:
        return True

    def leader_name(self) -> str:
        return "hm"

    def leader_address(self) -> str:
        return ""


async def _spend(world: HandsWorld) -> None:
    world.parts.resurrector.set_policy(policy(hourly_budget=0))


@pytest.mark.parametrize(
    ("hold", "begin", "end"),
    [
        (Hold.DISABLED, _disable, _enable),
        (Hold.PAUSED, _pause, _resume),
        (Hold.MELTDOWN, _melt, _override),
        (Hold.MAINTENANCE, _open_window, _end_window),
        (Hold.BUDGET, _spend, _enable),
    ],
)
def test_what_holds_back_is_shown_and_ends_at_once(
    hold: Hold, begin: Callable[[HandsWorld], Awaitable[None]], end: Callable[[HandsWorld], Awaitable[None]]
) -> None:
    """Nothing is fenced nor made while it holds, over a monitor's restart too; when it ends, the operation goes on
    within a second."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        await begin(world)
        await asyncio.sleep(0.5)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await _held(world, hold)
        await asyncio.sleep(300.0)
        assert len(world.cloud.created) == 1
        assert "fence" not in world.cloud.calls
        written = world.server.store.buckets["operations"].revision
        await asyncio.sleep(100.0)
        assert world.server.store.buckets["operations"].revision == written, "an unchanged hold is not written again"
        at = world.loop.time()
        await end(world)
        await world.until(lambda: world.cloud.calls.count("fence") > 0, "fenced", 10.0)
        assert world.loop.time() - at < 1.0
        await world.until(world.idle, "rebuilt")

    in_world(play)


def test_a_maintenance_window_outlives_the_monitor_that_was_told_of_it() -> None:
    """It is read from the journal by whoever leads next, holds rebuilding back, and ends by itself."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        await _open_window(world)
        until = world.unix_time() + 700.0
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await _held(world, Hold.MAINTENANCE)
        operation = world.operation(DB)
        assert operation is not None
        assert "new switches" in operation.error
        await world.restart_monitor()
        await _held(world, Hold.MAINTENANCE)
        while world.unix_time() < until - 1.0:
            assert "fence" not in world.cloud.calls
            await asyncio.sleep(1.0)
        await world.until(world.idle, "rebuilt after its end", 300.0)

    in_world(play)


def test_no_more_than_so_many_at_once_and_so_many_an_hour() -> None:
    """Six lost VMs: at no moment are more than max_in_flight being rebuilt, and the budget stops the fifth, also after
    another monitor took over."""

    async def play(world: HandsWorld) -> None:
        world.policy = policy(max_in_flight=2, hourly_budget=4)
        await _deployed(world, instances=6)
        made = len(world.cloud.created)
        for index in range(6):
            world.cloud.kill_vm(world.vm_of(place(index=index)).cid)
        most = 0
        while len(world.cloud.created) < made + 4:
            await asyncio.sleep(0.05)
            passed = [
                operation
                for operation in world.parts.journal.operations().values()
                if operation.step not in (Step.CONFIRM, Step.GUARD, Step.DONE)
            ]
            most = max(most, len(passed))
        assert most == 2
        await world.until(lambda: _holds(world) == {Hold.BUDGET}, "the rest held by the budget")
        await world.restart_monitor()
        await world.until(lambda: _holds(world) == {Hold.BUDGET}, "held by the next monitor too")
        await asyncio.sleep(20.0)
        assert len(world.cloud.created) == made + 4
        world.clock_ahead_seconds += 3500.0
        await asyncio.sleep(5.0)
        assert len(world.cloud.created) == made + 4, "the hour is not over"
        world.clock_ahead_seconds += 100.0
        await world.until(world.idle, "the last two rebuilt in the next hour")
        assert len(world.cloud.created) == made + 6

    in_world(play)


def test_doubt_rebuilds_nothing() -> None:
    """While the monitor cannot tell, a silent VM is not rebuilt; nor is one that answers when asked."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        world.cannot_tell = "the bus was lost 2 s ago"
        await asyncio.sleep(1.0)
        world.cloud.freeze_vm(world.vm_of(DB).cid)
        await asyncio.sleep(100.0)
        assert world.parts.journal.operations() == {}
        world.cloud.thaw_vm(world.vm_of(DB).cid)
        world.cannot_tell = ""
        await asyncio.sleep(100.0)
        assert len(world.cloud.created) == 1

    in_world(play)


def test_a_vm_lost_while_its_containers_start_is_rebuilt() -> None:
    """An instance that nobody can make healthy, and whose VM then dies, is not forgotten behind its operation."""

    async def play(world: HandsWorld) -> None:
        world.broken_images.add("redis:7")
        world.start_monitor()
        await world.deploy(deployment(group()))
        await _held(world, Hold.UNHEALTHY)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.generation(DB) == 2, "a second VM")
        await _held(world, Hold.UNHEALTHY)
        world.broken_images.clear()
        await world.until(world.idle, "healthy")

    in_world(play)


def test_a_fix_overtakes_what_fails() -> None:
    """A failing canary stops the rollout; the next deployment mends it without anybody's help."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world, instances=3)
        world.broken_images.add("redis:8")
        await world.deploy(deployment(group(instances=3, image="redis:8"), revision=2))
        await world.until(
            lambda: world.parts.journal.deployments()[SHOP].rollout is RolloutState.FAILED, "failed", 600.0
        )
        assert [world.record(place(index=index)).deployment_revision for index in range(3)] == [2, 1, 1]
        await world.deploy(deployment(group(instances=3, image="redis:9"), revision=3))
        await world.until(
            lambda: world.idle() and world.parts.journal.deployments()[SHOP].rollout is RolloutState.DONE, "mended"
        )
        specs = [world.machines[world.vm_of(place(index=index)).cid].spec for index in range(3)]
        assert [spec.containers[0].image for spec in specs if spec is not None] == ["redis:9"] * 3
        assert len(world.cloud.created) == 3

    in_world(play)


def test_an_agent_with_another_specification_is_told_again() -> None:
    """Drift between record and agent is mended by an update, without touching the VM."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        machine = world.machines[world.vm_of(DB).cid]
        assert machine.spec is not None
        machine.spec = replace(machine.spec, revision=type(machine.spec.revision)(0))
        await world.until(lambda: machine.spec is not None and machine.spec.revision > 0, "told again")
        await world.until(world.idle, "over")
        assert len(world.cloud.created) == 1

    in_world(play)


def test_an_unknown_cloud_is_said_not_guessed() -> None:
    """A cloud that is not in the configuration any more: said in the operation, and nothing is forgotten."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        world.kill_monitor()
        world.start_monitor(clouds={CloudName("other"): world.cloud})
        await world.until(lambda: world.idle(), "a leader")
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(lambda: world.operation(DB) is not None and world.operation(DB).error, "said")  # type: ignore[union-attr]
        operation = world.operation(DB)
        assert operation is not None
        assert "cloud local is not in the monitor's configuration" in operation.error

    in_world(play)


def test_two_monitors_make_one_vm() -> None:
    """The leader is frozen in the middle of a resurrection, another takes over, and the first wakes up: one VM."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        first = world.parts
        lost = world.vm_of(DB).cid
        world.start_monitor()
        world.cloud.kill_vm(lost)
        while (o := first.journal.operation(DB)) is None or o.step is not Step.CREATE_VM:
            await asyncio.sleep(0.01)
        first.process.freeze()
        world.server.reconsider(first.bus)
        await world.until(lambda: world.generation(DB) == 2 and world.idle(), "taken over")
        first.process.thaw()
        world.server.reconsider(first.bus)
        await asyncio.sleep(60.0)
        assert not first.leadership.is_leader()
        (vm,) = world.cloud.running()
        assert vm is world.vm_of(DB)
        assert world.generation(DB) == 2
        assert len(world.cloud.recorded()) == 1
        assert not world.cloud.violations

    in_world(play)


def test_our_own_share_of_a_resurrection_is_small() -> None:
    """From the word that a VM is missing to healthy containers, all but boot and cloud calls is under a second."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        world.cloud.latency_seconds = (0.0, 0.0)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        at = world.loop.time()
        await world.until(lambda: world.generation(DB) == 2 and world.idle(), "rebuilt")
        assert world.loop.time() - at < 2.0 + 1.0, "boot takes 2 s here"

    in_world(play)


def test_a_clock_that_is_set_back_delays_nothing() -> None:
    """Two hours back in the middle of a retry and of a boot that will never end: neither waits for the clock to be
    there again."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        world.cloud.plan_fault("create_vm", Fault.FAILS, times=2)
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await _held(world, Hold.RETRYING)
        world.clock_ahead_seconds -= 7200.0
        await world.until(lambda: world.generation(DB) == 2 and world.idle(), "rebuilt", 120.0)
        world.next_boots = False
        world.cloud.kill_vm(world.vm_of(DB).cid)
        await world.until(
            lambda: (o := world.operation(DB)) is not None and o.step is Step.HEAR_AGENT, "waits for its agent"
        )
        world.clock_ahead_seconds -= 7200.0
        await world.until(lambda: world.generation(DB) == 4 and world.idle(), "made once more", 600.0)

    in_world(play)


def test_a_clock_that_is_set_back_confirms_nothing() -> None:
    """A VM that was confirmed missing before, was held back, and came back is not rebuilt because the confirmation
    looks new."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world)
        await _pause(world)
        vm = world.vm_of(DB)
        world.cloud.freeze_vm(vm.cid)
        await _held(world, Hold.PAUSED)
        world.clock_ahead_seconds -= 7200.0
        world.cloud.thaw_vm(vm.cid)
        await world.until(lambda: world.parts.fleet.verdict(world.record(DB).vm.agent_id).value == "alive", "heard")  # type: ignore[union-attr]
        await _resume(world)
        await world.until(world.idle, "over", 120.0)
        assert world.vm_of(DB) is vm
        assert world.cloud.calls.count("fence") == 0

    in_world(play)


def test_who_takes_over_admits_nothing_before_it_knows_what_was_lost() -> None:
    """A judgement of before it led does not know the losses that its predecessor saw; those are told once, also of
    what was rebuilt meanwhile."""

    async def play(world: HandsWorld) -> None:
        await _deployed(world, instances=2)
        world.cloud.kill_vm(world.vm_of(place(index=1)).cid)
        await world.until(lambda: world.generation(place(index=1)) == 2 and world.idle(), "the first is rebuilt")
        world.judges = False
        await world.restart_monitor()
        await world.until(lambda: world.parts.leadership.is_leader(), "leads")
        world.parts.resurrector.set_judgement(Judgement(world.loop.time() - 100.0))
        await asyncio.sleep(2.0)
        operation = rules.begin(
            OperationId("x"), DB, OperationKind.RESURRECT, "lost", world.unix_time(), world.record(DB).vm
        )
        held = world.parts.resurrector.held_back(operation)
        assert held is not None
        assert held.hold is Hold.CANNOT_TELL
        losses = world.parts.resurrector.take_losses()
        assert losses is not None
        assert [loss.instance for loss in losses] == [place(index=1)]
        assert world.parts.resurrector.take_losses() is None
        world.parts.resurrector.set_judgement(Judgement(world.loop.time()))
        assert world.parts.resurrector.held_back(operation) is None

    in_world(play)
