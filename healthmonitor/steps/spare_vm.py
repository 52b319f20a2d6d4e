"""A spare as the VM of an instance: taken in CREATE_VM, told whom it is now in HEAR_AGENT.

Laws: a spare is marked as taken before any record names it, and a record names it before anything is done with it; so
whoever finds either goes on, and no spare is ever two instances'. An agent that will not be told is a VM that is lost.

Does not know: which spares there should be (core/spares), how they are made (healthmonitor/spares.py).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from healthmonitor.agent_client import RequestRefused
from healthmonitor.clouds.cloud import Reshaping
from healthmonitor.core import spares
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.keys import hostname
from healthmonitor.core.records import InstanceRecord, SpareState, VmBinding
from healthmonitor.journal import Superseded
from healthmonitor.steps.context import StepContext, lasting_properties
from protocol.ids import Generation


async def take(context: StepContext, record: InstanceRecord, generation: Generation) -> VmBinding | None:
    """The spare that this VM of the instance will be, marked as taken. None: there is none that fits."""
    tools, group = context.tools, record.group
    pool = spares.pool_of(group, lambda cloud, properties: lasting_properties(tools.clouds.get(cloud), properties))
    spare = spares.choose(
        tools.journal.spares().values(),
        pool,
        tools.stemcell_version(pool.cloud, pool.stemcell),
        record.instance,
        generation,
        frozenset(image.key for image in spares.images_of(group, record.pinned_images)),
        lambda agent: tools.fleet.verdict(agent) is Verdict.ALIVE,
    )
    if spare is None:
        return None
    if spare.state is SpareState.READY:
        taken = replace(spare, state=SpareState.TAKEN, taken_by=record.instance, taken_generation=generation)
        context.check_ours()
        try:
            await tools.journal.save_spare(taken, spare)
        except Superseded:
            return None  # somebody was quicker, or it is retired: a VM is made
        tools.crash_point("journal:spare taken")
        context.check_ours()
    return VmBinding(spare.agent_id, generation, spare.key, spare.vm_cid, spare=True)


async def bound(context: StepContext, vm: VmBinding) -> None:
    """Once the record names it: it is nobody's spare any more, and gets what its cloud can give it later."""
    journal, record = context.tools.journal, context.record()
    spare = journal.spare(vm.key)
    if spare is not None and spare.state is SpareState.TAKEN:
        with contextlib.suppress(Superseded):  # whoever changed it saw that a record names it
            await journal.delete_spare(spare)
        context.tools.crash_point("journal:spare bound")
        await context.event("spare.taken", f"it takes spare {vm.vm_cid} ({vm.key})", {"key": vm.key})
        context.check_ours()
    cloud, cid = context.cloud(), vm.vm_cid
    if isinstance(cloud, Reshaping) and cid is not None:
        properties, tags = record.group.vm.cloud_properties, vm_tags(record, vm.generation)
        await context.call_cloud("reshape_vm", lambda: cloud.reshape_vm(cid, properties, tags))


async def become(context: StepContext, vm: VmBinding) -> str:
    """Tells its agent which instance it is from now on. "" when it knows; otherwise why it refuses."""
    name = hostname(context.instance)
    try:
        await context.tools.agents.call(
            vm.agent_id,
            vm.generation,
            "become",
            {"instance": context.instance, "generation": vm.generation, "hostname": name},
            timeout_seconds=context.policy.agent_call_seconds,
        )
    except RequestRefused as error:
        return f"the spare's agent refuses to be {context.instance}: {error}"
    finally:
        context.check_ours()
    context.tools.crash_point("agent:become")
    return ""


def vm_tags(record: InstanceRecord, generation: Generation) -> dict[str, str]:
    return {
        "instance": record.instance,
        "deployment": record.deployment,
        "group": record.group.name,
        "index": str(record.index),
        "generation": str(generation),
    }
