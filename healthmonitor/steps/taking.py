"""Takes the present step of an operation: calls its function, and makes an outcome of every expected error.

Law: an error becomes a sentence that says who was asked, what they said, and what happens next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from healthmonitor.agent_client import BusUnavailable, NoResponders, RequestRefused
from healthmonitor.clouds.cloud import CloudError, CloudRefused, CloudUnavailable
from healthmonitor.core.operation import Failed, Outcome
from healthmonitor.core.records import Step
from healthmonitor.steps import disk_rework, disk_snapshot, disk_steps, lost_vm, new_vm
from healthmonitor.steps.context import NoSuchCloud, StepContext

TAKE: Mapping[Step, Callable[[StepContext], Awaitable[Outcome]]] = MappingProxyType(
    {
        Step.CONFIRM: lost_vm.confirm,
        Step.GUARD: lost_vm.guard,
        Step.DRAIN: lost_vm.drain,
        Step.FENCE: lost_vm.fence,
        Step.DELETE_VM: lost_vm.delete_vm,
        Step.MAKE_DISKS: disk_steps.make_disks,
        Step.FREE_DISKS: disk_steps.free_disks,
        Step.CREATE_VM: new_vm.create_vm,
        Step.ATTACH: disk_steps.attach,
        Step.HEAR_AGENT: new_vm.hear_agent,
        Step.SNAPSHOT: disk_snapshot.snapshot,
        Step.QUIESCE: disk_rework.quiesce,
        Step.REWORK: disk_rework.rework,
        Step.SWAP: disk_rework.swap,
        Step.MOUNT: new_vm.mount,
        Step.APPLY: new_vm.apply,
        Step.HEALTHY: new_vm.healthy,
        Step.FORGET: disk_steps.forget,
    }
)


async def take(context: StepContext) -> Outcome:
    """The outcome of the operation's present step. Raises NotOurs, Superseded and CorruptRecord, and defects."""
    step = context.operation.step
    try:
        return await TAKE[step](context)
    except CloudUnavailable as error:
        return Failed(f"{step.value}: the cloud does not answer or is busy: {error}; looked at and tried again")
    except CloudRefused as error:
        return Failed(f"{step.value}: the cloud refuses: {error}; tried again, in case that changes (quota, manifest)")
    except CloudError as error:
        return Failed(f"{step.value}: {error}; tried again")
    except NoSuchCloud as error:
        return Failed(f"{step.value}: {error}")
    except NoResponders:
        return Failed(f"{step.value}: nobody listens on the agent's subject; asked again, and rebuilt if it is missing")
    except BusUnavailable as error:
        return Failed(f"{step.value}: {error}; tried again")
    except RequestRefused as error:
        return Failed(f"{step.value}: the agent refuses: {error}; tried again")
