"""Our own rules, broken one at a time, to show that the checkers would find it.

Law: a mutant is a patch of the real code for the length of one run, and is undone whatever happens. Its docstring says
what it breaks; `CAUGHT_BY` says which scenario and seed show it, and which checker (`mutant_table.py` tries them all).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from agent.commands import Commands
from agent.core import desired, disk_safety
from agent.core import reconcile as agent_rules
from healthmonitor.bus_alarm import NoteInMemory
from healthmonitor.core import fleet as fleet_module
from healthmonitor.core import guard, leadership, liveness, strays
from healthmonitor.core import operation as rules
from healthmonitor.core.hearing import OwnHearing
from healthmonitor.core.keys import vm_key
from healthmonitor.core.liveness import Heard, Hearing
from healthmonitor.core.meltdown import Meltdown
from healthmonitor.core.notifying.desk import Desk
from healthmonitor.core.operation import Done, Held, Outcome
from healthmonitor.core.records import Hold, Step, VmBinding
from healthmonitor.delivery import Line
from healthmonitor.monitor import Monitor
from healthmonitor.resurrector import Resurrector
from healthmonitor.steps import disk_steps, lost_vm, new_vm, taking
from healthmonitor.steps.context import StepContext
from protocol.ids import AgentId, Generation, Revision
from tests.simulation.bus import SimulatedServer

Mutant = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Caught:
    scenario: str
    seed: int
    checker: str


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """Runs what is inside with the mutant of that name; "" changes nothing."""
    with contextlib.ExitStack() as stack:
        if name:
            stack.enter_context(MUTANTS[name]())
        yield


def broken(name: str) -> str:
    """What the mutant breaks, in a sentence."""
    return " ".join((MUTANTS[name].__doc__ or "").split())


# Fencing.


def _fence_skipped() -> contextlib.AbstractContextManager[None]:
    """FENCE says done without asking the cloud."""

    async def fence(context: StepContext) -> Outcome:
        return Done("mutant", proof="none" if context.operation.old_vm is not None else "")

    return _step(Step.FENCE, fence)


def _proof_from_delete() -> contextlib.AbstractContextManager[None]:
    """That deleting succeeded is taken for a proof of fencing."""

    async def fence(context: StepContext) -> Outcome:
        outcome = await lost_vm.fence(context)
        vm = context.operation.old_vm
        if not isinstance(outcome, Held) or vm is None or vm.vm_cid is None:
            return outcome
        await context.cloud().delete_vm(vm.vm_cid)
        context.check_ours()
        return Done("deleted", proof=f"the cloud deleted {vm.vm_cid}")

    return _step(Step.FENCE, fence)


def _not_asked_again() -> contextlib.AbstractContextManager[None]:
    """CONFIRM asks nobody, and what came back while it was held is not noticed."""

    async def confirm(context: StepContext) -> Outcome:
        return Done("mutant")

    async def guard_only(context: StepContext) -> Outcome:
        held = context.present.held_back(context.operation)
        return held if held is not None else await context.present.admission(context.operation)

    return _both(_step(Step.CONFIRM, confirm), lambda: _step(Step.GUARD, guard_only))


# Believing.


def _late_heartbeat_renews() -> contextlib.AbstractContextManager[None]:
    """A heartbeat renews the lease as of when it was received, however long it was on its way."""
    real = liveness.hear

    def hear(life: Any, glance: Any, received_at: float, policy: Any) -> Heard:
        heard = real(life, glance, received_at, policy)
        life.alive_at = received_at
        return heard

    return _patched(fleet_module, "hear", hear)


def _cannot_tell_ignored() -> contextlib.AbstractContextManager[None]:
    """The monitor trusts its ears from the first moment, and whatever they suffer."""

    def at(self: OwnHearing, now: float) -> Hearing:
        return Hearing(float("-inf"))

    return _patched(OwnHearing, "at", at)


def _suspects_not_awaited() -> contextlib.AbstractContextManager[None]:
    """What is known to be lost is rebuilt at once, whatever happens to others in that moment."""

    async def settle(context: StepContext) -> None:
        return

    return _patched(lost_vm, "_settle", settle)


# Leading.


def _lease_kept_too_long() -> contextlib.AbstractContextManager[None]:
    """A leader that cannot renew goes on until two TTLs after its last renewal."""
    return _patched(leadership, "acts_until", lambda state, policy: state.renewed_at + 2.0 * policy.ttl_seconds)


def _lease_taken_early() -> contextlib.AbstractContextManager[None]:
    """A lease that was not renewed for a tenth of the TTL is taken."""
    real = leadership.decide
    return _patched(
        leadership,
        "decide",
        lambda state, now, policy: real(replace(state, seen_at=state.seen_at - 0.9 * policy.ttl_seconds), now, policy),
    )


def _lease_unchecked() -> contextlib.AbstractContextManager[None]:
    """After what was awaited, a step does not look whether this monitor still leads."""
    return _patched(StepContext, "check_ours", lambda self: None)


# Writing first.


def _written_after() -> contextlib.AbstractContextManager[None]:
    """A new VM's agent id, key and generation are written after the cloud was asked for it, not before."""

    async def create_vm(context: StepContext) -> Outcome:
        record, old = context.record(), context.operation.old_vm
        if record.vm is not None and (old is None or record.vm.key != old.key):
            return Done("made before")
        generation = Generation(max(record.generation, old.generation if old is not None else 0) + 1)
        vm = VmBinding(AgentId(context.tools.new_id()), generation, vm_key(record.instance, generation))
        request = new_vm._request(context, record, vm)
        cid = await context.call_cloud("create_vm", lambda: context.cloud().create_vm(request))
        record = context.record()
        await context.save_record(replace(record, vm=replace(vm, vm_cid=cid), generation=generation), record, "vm made")
        return Done(f"{cid}")

    return _step(Step.CREATE_VM, create_vm)


def _key_not_kept() -> contextlib.AbstractContextManager[None]:
    """Each try to make a VM has a key of its own."""
    real = new_vm._request
    tries: list[int] = []

    def request(context: StepContext, record: Any, vm: VmBinding) -> Any:
        tries.append(1)
        return replace(real(context, record, vm), key=f"{vm.key}-try{len(tries)}", tags={})

    return _patched(new_vm, "_request", request)


def _acknowledged_unsynced() -> contextlib.AbstractContextManager[None]:
    """The bus acknowledges before it syncs, as JetStream does by default."""
    real = SimulatedServer.ask

    def ask(self: SimulatedServer, sender: Any, operation: Any, writes: bool, reply: Any) -> None:
        if not writes:
            real(self, sender, operation, writes, reply)
            return
        answered = False

        def at_once() -> None:
            """What it will give is worked out on a copy of the store, as it will be when all before it is written."""
            nonlocal answered
            store = copy.deepcopy(self.store)
            told, self.on_write = self.on_write, lambda bucket, key, value, revision: None
            for commit in self._commits:
                outcome = commit.apply(store)
            self.on_write = told
            answered = True
            reply(outcome)

        real(self, sender, operation, writes, lambda outcome: None if answered else reply(outcome))
        at_once()

    return _patched(SimulatedServer, "ask", ask)


# Disks.


def _formatted_unproven() -> contextlib.AbstractContextManager[None]:
    """A device that cannot be read is taken for blank, and formatted."""
    real = disk_safety.decide

    def decide(probe: Any, filesystem: str, size_mib: int) -> disk_safety.Decision:
        decision = real(probe, filesystem, size_mib)
        if decision.reason is disk_safety.Reason.UNREADABLE:
            return disk_safety.Decision(disk_safety.Verdict.FORMAT, disk_safety.Reason.BLANK, "mutant")
        return decision

    return _patched(disk_safety, "decide", decide)


def _attach_not_read_back() -> contextlib.AbstractContextManager[None]:
    """A disk counts as attached because the cloud said yes."""

    async def attach(context: StepContext, name: Any, cid: Any) -> Any:
        vm = context.vm().vm_cid
        assert vm is not None
        return await context.call_cloud("attach_disk", lambda: context.cloud().attach_disk(vm, cid))

    return _patched(disk_steps, "attach_read_back", attach)


def _disk_mark_ignored() -> contextlib.AbstractContextManager[None]:
    """A disk that bears another's mark is used all the same."""
    return _patched(disk_safety, "decide_marker", lambda marker, instance, disk: None)


# Storms.


def _meltdown_off() -> contextlib.AbstractContextManager[None]:
    """However many are lost at once, it is never a meltdown."""
    return _patched(Meltdown, "decide", lambda self, missing, sizes, overridden, now, suspects=(): {})


def _meltdown_forgotten() -> contextlib.AbstractContextManager[None]:
    """A monitor that takes over knows nothing of what was lost before."""
    return _patched(Resurrector, "take_losses", lambda self: ())


def _concurrency_ignored() -> contextlib.AbstractContextManager[None]:
    """However many are being rebuilt, another may begin."""
    return _patched(guard, "_concurrency", lambda inputs: None)


def _budget_ignored() -> contextlib.AbstractContextManager[None]:
    """However many were rebuilt within the hour, another may begin."""
    return _patched(guard, "_budget", lambda inputs: None)


def _tried_once() -> contextlib.AbstractContextManager[None]:
    """A step that failed is not tried again."""
    real = Resurrector._until_due

    async def until_due(self: Resurrector, operation: Any, woken: Any) -> bool:
        if operation.hold is not Hold.RETRYING:
            return await real(self, operation, woken)
        await woken.wait()
        woken.clear()
        return False

    return _patched(Resurrector, "_until_due", until_due)


def _left_over_guessed() -> contextlib.AbstractContextManager[None]:
    """A VM with our tags that nobody names is left over."""
    real = strays._of_instance

    def of_instance(instance: Any, generation: Any, known: Any) -> tuple[strays.Standing, str]:
        standing, why = real(instance, generation, known)
        return (strays.Standing.LEFT_OVER if standing is strays.Standing.UNCLEAR else standing), why

    return _patched(strays, "_of_instance", of_instance)


# What agents are told.


def _stale_specification_applied() -> contextlib.AbstractContextManager[None]:
    """An agent takes a specification that is older than the one that it has."""
    real = desired.accept
    return _patched(
        desired,
        "accept",
        lambda held, seen, spec, instance, generation: real(held, Revision(0), spec, instance, generation),
    )


def _old_generation_accepted() -> contextlib.AbstractContextManager[None]:
    """An agent does what was meant for another VM of its instance."""
    real = desired.accept
    return _both(
        _patched(
            desired,
            "accept",
            lambda held, seen, spec, instance, generation: real(held, Revision(0), spec, instance, spec.generation),
        ),
        lambda: _patched(Commands, "_refusal", lambda self, request, method: None if method else "unknown message"),
    )


# What agents see.


def _events_alone() -> contextlib.AbstractContextManager[None]:
    """The agent trusts the engine's events, and never looks by itself."""
    real = agent_rules._next_look_seconds

    def next_look(situation: Any) -> float:
        seconds = real(situation)
        return 1e6 if seconds >= situation.policy.full_look_seconds else seconds

    return _patched(agent_rules, "_next_look_seconds", next_look)


# What people are told.


def _incident_never_resolved() -> contextlib.AbstractContextManager[None]:
    """The end of an incident is not written down."""
    real = Monitor._put
    return _patched(Monitor, "_put", lambda self, decision: real(self, replace(decision, resolved=())))


def _end_not_told() -> contextlib.AbstractContextManager[None]:
    """That an incident is over is written, and told to nobody."""
    real = Desk.see

    def see(self: Desk, incident: Any) -> None:
        if incident.resolved_at is None:
            real(self, incident)

    return _patched(Desk, "see", see)


def _alarm_forgotten() -> contextlib.AbstractContextManager[None]:
    """A monitor that starts does not know that the one before it told of the bus's loss."""
    return _patched(NoteInMemory, "load", lambda self: None)


def _told_once() -> contextlib.AbstractContextManager[None]:
    """What a receiver does not take at once is not tried again."""
    real = Line._failed

    def failed(self: Line, letter: Any, error: str, at_least_seconds: float) -> None:
        real(self, letter, error, at_least_seconds)  # and no word on when to try again

    return _patched(Line, "_failed", failed)


def _failing_in_silence() -> contextlib.AbstractContextManager[None]:
    """A step that fails is tried again, and nobody is told that it fails."""
    real = rules._again

    def again(operation: Any, hold: Any, error: str, now_unix: float, policy: Any) -> Any:
        after = real(operation, hold, error, now_unix, policy)
        return after if hold is not Hold.RETRYING else replace(after, hold=Hold.NONE, error="")

    return _patched(rules, "_again", again)


MUTANTS: Mapping[str, Mutant] = MappingProxyType(
    {
        "fence-skipped": _fence_skipped,
        "proof-from-delete": _proof_from_delete,
        "not-asked-again": _not_asked_again,
        "late-heartbeat-renews": _late_heartbeat_renews,
        "cannot-tell-ignored": _cannot_tell_ignored,
        "suspects-not-awaited": _suspects_not_awaited,
        "lease-kept-too-long": _lease_kept_too_long,
        "lease-taken-early": _lease_taken_early,
        "lease-unchecked": _lease_unchecked,
        "written-after": _written_after,
        "key-not-kept": _key_not_kept,
        "acknowledged-unsynced": _acknowledged_unsynced,
        "disk-mark-ignored": _disk_mark_ignored,
        "formatted-unproven": _formatted_unproven,
        "attach-not-read-back": _attach_not_read_back,
        "meltdown-off": _meltdown_off,
        "meltdown-forgotten": _meltdown_forgotten,
        "concurrency-ignored": _concurrency_ignored,
        "budget-ignored": _budget_ignored,
        "tried-once": _tried_once,
        "left-over-guessed": _left_over_guessed,
        "stale-specification-applied": _stale_specification_applied,
        "old-generation-accepted": _old_generation_accepted,
        "events-alone": _events_alone,
        "incident-never-resolved": _incident_never_resolved,
        "end-not-told": _end_not_told,
        "alarm-forgotten": _alarm_forgotten,
        "told-once": _told_once,
        "failing-in-silence": _failing_in_silence,
    }
)

CAUGHT_BY: Mapping[str, Caught] = MappingProxyType(
    {
        "fence-skipped": Caught("killing", 5, "always_proven_before_replaced"),
        "proof-from-delete": Caught("killing", 0, "always_written_first"),
        "not-asked-again": Caught("lateness", 6, "always_heard_is_spared"),
        "late-heartbeat-renews": Caught("lateness", 1, "always_young_enough"),
        "cannot-tell-ignored": Caught("restarts", 10, "never_rebuilt"),
        "suspects-not-awaited": Caught("together", 8, "all_held"),
        "lease-kept-too-long": Caught("acting", 0, "always_one_leader"),
        "lease-taken-early": Caught("acting", 0, "always_one_actor"),
        "lease-unchecked": Caught("acting", 5, "always_one_actor"),
        "written-after": Caught("acting", 0, "always_written_first"),
        "key-not-kept": Caught("disks", 0, "always_written_first"),
        "acknowledged-unsynced": Caught("acting", 0, "always_written_first"),
        "disk-mark-ignored": Caught("disks", 0, "always_own_disk"),
        "formatted-unproven": Caught("disks", 3, "always_formatted_once"),
        "attach-not-read-back": Caught("disks", 8, "finally_as_expected"),
        "meltdown-off": Caught("storms", 0, "always_within_share"),
        "meltdown-forgotten": Caught("storms", 2, "always_within_share"),
        "concurrency-ignored": Caught("limits", 2, "always_few_at_once"),
        "budget-ignored": Caught("limits", 10, "always_within_budget"),
        "tried-once": Caught("disks", 0, "finally_as_expected"),
        "left-over-guessed": Caught("killing", 0, "always_ours"),
        "stale-specification-applied": Caught("words", 2, "always_newest_applied"),
        "old-generation-accepted": Caught("words", 0, "always_newest_applied"),
        "events-alone": Caught("engines", 0, "finally_as_expected"),
        "incident-never-resolved": Caught("alerts", 0, "finally_incidents_resolved"),
        "end-not-told": Caught("alerts", 0, "finally_delivered"),
        "alarm-forgotten": Caught("alerts", 0, "finally_delivered"),
        "told-once": Caught("alerts", 0, "finally_delivered"),
        "failing-in-silence": Caught("disks", 0, "always_visible"),
    }
)


def _step(step: Step, function: Callable[[StepContext], Any]) -> contextlib.AbstractContextManager[None]:
    return _patched(taking, "TAKE", MappingProxyType({**taking.TAKE, step: function}))


@contextlib.contextmanager
def _both(
    first: contextlib.AbstractContextManager[None], second: Callable[[], contextlib.AbstractContextManager[None]]
) -> Iterator[None]:
    with first, second():
        yield


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
