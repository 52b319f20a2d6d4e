"""The steps that deal with the VM that is lost or to be replaced: CONFIRM, GUARD, DRAIN, FENCE, DELETE_VM.

Laws: nothing irreversible before CONFIRM asked once more; nothing takes a disk from a VM without a fence proof.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from healthmonitor.agent_client import BusUnavailable, NoResponders, PingAnswer, RequestRefused
from healthmonitor.clouds.cloud import (
    CloudError,
    CloudUnavailable,
    FenceProof,
    Power,
    Unfenced,
    VmNotFound,
    VmObservation,
)
from healthmonitor.core.guard import FLEET
from healthmonitor.core.judgement import FleetView, Verdict
from healthmonitor.core.operation import AliveAgain, Done, Failed, Held, Outcome
from healthmonitor.core.records import Hold, Operation, OperationKind, VmBinding
from healthmonitor.steps.context import StepContext
from protocol.ids import VmCid

_DRAIN_TRIES = 3
_CONFIRMED_SECONDS = 1.0
"""How long a confirmation holds good."""
_UNKNOWN = VmObservation(Power.UNKNOWN, "the cloud did not say")


async def confirm(context: StepContext) -> Outcome:
    """Asks the agent and the cloud once more, both at once. An agent that answers is alive; a cloud that says off
    confirms; silence confirms only while the monitor's latest judgement still says missing."""
    vm = context.operation.old_vm
    if vm is None:
        return Done("no VM to confirm")
    asked = asyncio.create_task(_ask_agent(context, vm))
    observed = asyncio.create_task(_observe(context, vm))
    try:
        await asyncio.wait({asked, observed}, return_when=asyncio.FIRST_COMPLETED)
        if observed.done() and observed.result().power is Power.OFF:
            return Done(f"the cloud says off: {observed.result().evidence}")
        answer = await asked
        if isinstance(answer, PingAnswer):
            context.present.alive_again(context.instance)
            return AliveAgain("its agent answered when asked once more")
        observation = await observed
    finally:
        asked.cancel()
        observed.cancel()
        await asyncio.gather(asked, observed, return_exceptions=True)
    context.check_ours()
    if observation.power is Power.OFF:
        return Done(f"the cloud says off: {observation.evidence}")
    return _judged(context, vm, f"{answer}; cloud: {observation.power.value} ({observation.evidence})")


def _judged(context: StepContext, vm: VmBinding, what_was_seen: str) -> Outcome:
    if context.tools.fleet.verdict(vm.agent_id) is Verdict.ALIVE:
        context.present.alive_again(context.instance)
        return AliveAgain("its agent was heard again")
    judgement = context.present.judgement
    if judgement is None:
        return Held(Hold.CANNOT_TELL, "this monitor has only just begun to listen; it goes on when it can tell")
    missing = judgement.missing.get(context.instance)
    if missing is None or missing.agent != vm.agent_id:
        doubt = judgement.cannot_tell or "the monitor does not count it as missing at the moment"
        return Held(Hold.CANNOT_TELL, f"{doubt}; {what_was_seen}; it goes on when the monitor can tell")
    return Done(f"{missing.evidence}; {what_was_seen}")


async def _ask_agent(context: StepContext, vm: VmBinding) -> PingAnswer | str:
    """Its answer, or the sentence why there is none."""
    try:
        return await context.tools.agents.ping(
            vm.agent_id, vm.generation, context.present.policy.liveness.ask_timeout_seconds
        )
    except NoResponders:
        return "nobody listens on its agent's subject"
    except BusUnavailable as error:
        return f"its agent does not answer ({error})"
    except RequestRefused:
        return PingAnswer()  # the id is this VM's alone: whatever it says, it runs


async def _observe(context: StepContext, vm: VmBinding) -> VmObservation:
    if vm.vm_cid is None:
        return VmObservation(Power.UNKNOWN, "the cloud never told its id")
    cid = vm.vm_cid
    try:
        return await context.call_cloud(
            "observe",
            lambda: context.cloud().observe(cid),
            context.present.policy.liveness.observe_timeout_seconds,
        )
    except CloudError as error:
        return replace(_UNKNOWN, evidence=str(error))


async def guard(context: StepContext) -> Outcome:
    """Whether the VM may be rebuilt now: switches, storms, limits. One that was confirmed missing a while ago (it was
    held back, or another monitor takes over) may have come back meanwhile: then nothing is rebuilt, and before it is
    admitted after all it is asked once more."""
    vm = context.operation.old_vm
    # Not before it began either: a wall clock that was set back makes no old confirmation new.
    confirmed_lately = 0.0 <= context.tools.unix_time() - context.operation.step_started_at <= _CONFIRMED_SECONDS
    if not confirmed_lately and vm is not None and context.tools.fleet.verdict(vm.agent_id) is Verdict.ALIVE:
        context.present.alive_again(context.instance)
        return AliveAgain("its agent was heard again while it was held back")
    await _settle(context)
    held = context.present.held_back(context.operation)
    if held is not None:
        return held
    if not confirmed_lately:
        confirmed = await confirm(context)
        if not isinstance(confirmed, Done):
            return confirmed
    return await context.present.admission(context.operation)


async def _settle(context: StepContext) -> None:
    """Whether it was lost alone is not known in the moment in which it is known to be lost: what died with it is only
    suspect then, or not even that. Counted from when its loss was known, so that confirming it costs no time beside."""
    policy = context.present.policy
    if not policy.meltdown.enabled or len(context.tools.journal.instances()) <= 1:
        return  # nobody looks at what else was lost, or there is nothing that could have been
    loop = asyncio.get_running_loop()
    passed = max(0.0, context.tools.unix_time() - context.operation.started_at)
    settled_at = loop.time() + policy.meltdown.settle_seconds - passed
    given_up_at = loop.time() + policy.brewing_seconds - passed
    scopes = {FLEET, context.record().deployment}
    while True:
        judgement = context.present.judgement
        brews = judgement is not None and not scopes.isdisjoint(judgement.brewing)
        left = (given_up_at if brews else settled_at) - loop.time()
        if left <= 0:
            return
        await context.wait(left)


async def drain(context: StepContext) -> Outcome:
    """Lets the containers stop in order. A VM that cannot be asked is fenced without; fencing needs no consent."""
    vm = context.operation.old_vm
    if vm is None:
        return Done("no VM to drain")
    drain_seconds = context.policy.drain_seconds
    try:
        await context.tools.agents.ping(vm.agent_id, vm.generation, context.present.policy.liveness.ask_timeout_seconds)
        context.check_ours()
        await context.tools.agents.call_task(
            vm.agent_id,
            vm.generation,
            "drain",
            timeout_seconds=drain_seconds,
            answer_seconds=context.policy.agent_call_seconds,
            check=context.check_ours,
        )
    except NoResponders:
        return Done("not drained: nobody listens on its agent's subject")
    except (BusUnavailable, RequestRefused) as error:
        if context.operation.attempts + 1 >= _DRAIN_TRIES:
            return Done(f"not drained: {error}")
        return Failed(f"draining: {error}; tried {_DRAIN_TRIES} times, then fenced without")
    context.tools.crash_point("agent:drain")
    return Done("drained")


async def fence(context: StepContext) -> Outcome:
    """The old VM is made unable to write, with a proof from the hypervisor's side or a person's word. Without one it
    stays here, shown as unfenced, and its disks where they are."""
    vm = context.operation.old_vm
    if vm is None:
        return Done("no VM to fence")
    if context.operation.fence_proof:
        return Done("proven before")
    loop = asyncio.get_running_loop()
    if came_back(context.operation, context.tools.fleet, context.tools.unix_time(), loop.time()):
        context.present.alive_again(context.instance)
        return AliveAgain("its agent was heard again before it was fenced")
    cid = await _cid_of(context, vm)
    if cid is None:
        # Disks are attached only to a VM whose id stands in the journal (step ATTACH comes after), so this one,
        # should the cloud make it yet, never had any.
        return Done(
            "never made",
            proof=f"the cloud knows no VM under the key {vm.key}, and none was recorded: it never had a disk",
        )
    try:
        result = await context.call_cloud("fence", lambda: context.cloud().fence(cid), context.policy.fence_seconds)
    except CloudUnavailable as error:
        result = Unfenced(cid, str(error))
    match result:
        case FenceProof(vm_cid=proven, evidence=evidence) if proven == cid:
            return Done(evidence, proof=evidence or f"the cloud reports {cid} fenced")
        case FenceProof(vm_cid=other):
            return Failed(f"the cloud proved {other} instead of {cid}: a defect of its provider; please report it")
        case Unfenced(reason=reason):
            return Held(
                Hold.UNFENCED,
                f"no proof that {cid} cannot write any more: {reason}; its disks stay where they are. Make sure that"
                f" it is off (pull its power), then `resurgam fence confirm {context.instance}`",
            )


def came_back(operation: Operation, fleet: FleetView, unix_time: float, now: float) -> bool:
    """Whether a lost VM that could not be fenced, or was not yet, lives after all: it was heard since it was lost. (One
    that this operation made, or that is replaced on purpose, is fenced in any case.) `now`: loop seconds."""
    vm = operation.old_vm
    if vm is None or operation.kind is not OperationKind.RESURRECT or operation.vms_lost or operation.fence_proof:
        return False
    if operation.hold is Hold.UNFENCED or operation.attempts:  # tried, and not proven: it was missing
        match fleet.verdict(vm.agent_id):
            case Verdict.ALIVE:
                return True
            case Verdict.MISSING:
                return False
    # It may have been heard just before it was lost, so that only what it said since then counts. A wall clock that was
    # set forward meanwhile spares one that is off; it is missed again at once.
    lost_for = unix_time - operation.started_at
    return lost_for >= 0 and fleet.heard_after(vm.agent_id, now - lost_for)


async def delete_vm(context: StepContext) -> Outcome:
    """The cloud's record of the old VM is deleted, and the instance's."""
    vm = context.operation.old_vm
    if vm is not None:
        cid = await _cid_of(context, vm)
        if cid is not None:
            with contextlib.suppress(VmNotFound):  # deleted before
                await context.call_cloud("delete_vm", lambda: context.cloud().delete_vm(cid))
    record = context.record()
    if record.vm is not None and vm is not None and record.vm.key == vm.key:
        disks = tuple(disk.unplugged() for disk in record.disks)
        await context.save_record(replace(record, vm=None, disks=disks), record, "vm forgotten")
    return Done()


async def _cid_of(context: StepContext, vm: VmBinding) -> VmCid | None:
    if vm.vm_cid is not None:
        return vm.vm_cid
    return await context.call_cloud("find_vm", lambda: context.cloud().find_vm(vm.key))
