"""The steps that bring an instance's VM up: CREATE_VM, HEAR_AGENT, MOUNT, APPLY, HEALTHY.

Laws: a VM's generation, agent id and key are written before the cloud is called; an instance counts as healthy by
its own agent's heartbeat of this very specification, not by our having sent it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import replace

from healthmonitor.agent_client import BusUnavailable, NoResponders, RequestRefused
from healthmonitor.clouds.cloud import CloudError, Power, VmRequest
from healthmonitor.core import health
from healthmonitor.core.image_pins import pins_after
from healthmonitor.core.judgement import Verdict
from healthmonitor.core.keys import hostname, vm_key
from healthmonitor.core.operation import IN_PLACE, STEPS, Done, Failed, Held, Outcome, VmLost
from healthmonitor.core.records import Hold, InstanceRecord, Step, VmBinding, instance_spec
from healthmonitor.steps import disk_records, disk_steps, spare_vm
from healthmonitor.steps.context import StepContext
from protocol import codec
from protocol.envelope import NO_DEVICE
from protocol.ids import AgentId, ContainerName, Generation
from protocol.settings import AgentSettings
from protocol.spec import ImagePin

_ENTROPY_BYTES = 32
_LOOKS_FOR_DEVICE = 3
"""So often the agent looks for a disk that the cloud calls attached before it is plugged in again."""


async def create_vm(context: StepContext) -> Outcome:
    """The next generation's VM: a spare where one fits, else made under its key; either written down before it is done,
    so that a second try finds the first."""
    record = context.record()
    old = context.operation.old_vm
    vm = record.vm
    if vm is None or (old is not None and vm.key == old.key):
        generation = Generation(max(record.generation, old.generation if old is not None else 0) + 1)
        vm = await spare_vm.take(context, record, generation) or VmBinding(
            AgentId(context.tools.new_id()), generation, vm_key(record.instance, generation)
        )
        disks = tuple(disk.unplugged() for disk in record.disks)
        pins = _pins(context, record, old)
        record = await context.save_record(
            replace(record, vm=vm, generation=generation, disks=disks, pinned_images=pins), record, "vm intended"
        )
    if vm.spare:
        await spare_vm.bound(context, vm)
        return Done(f"{vm.vm_cid}, a spare, is generation {vm.generation}")
    if vm.vm_cid is None:
        request = _request(context, record, vm)
        cid = await context.call_cloud("create_vm", lambda: context.cloud().create_vm(request))
        record = context.record()
        if record.vm != vm:
            return Failed(f"the record changed while {vm.key} was made; looked at again")
        await context.save_record(replace(record, vm=replace(vm, vm_cid=cid)), record, "vm made")
        return Done(f"{cid}, generation {vm.generation}")
    return Done(f"{vm.vm_cid} was made before")


def _pins(context: StepContext, record: InstanceRecord, vm: VmBinding | None) -> Mapping[ContainerName, ImagePin]:
    """What the VM said last of the images that its containers run; what is on record, when it was not heard."""
    heartbeat = context.tools.fleet.last_heartbeat(vm.agent_id) if vm is not None else None
    return record.pinned_images if heartbeat is None else pins_after(record, heartbeat)


def _request(context: StepContext, record: InstanceRecord, vm: VmBinding) -> VmRequest:
    liveness = context.present.policy.liveness
    group = record.group
    return VmRequest(
        key=vm.key,
        name=hostname(record.instance),
        stemcell=group.stemcell,
        cpus=group.vm.cpus,
        memory_mib=group.vm.memory_mib,
        settings=AgentSettings(
            agent_id=vm.agent_id,
            bus=context.tools.agent_bus_settings(vm.agent_id),
            generation=vm.generation,
            instance=record.instance,
            hostname=hostname(record.instance),
            heartbeat_interval_seconds=liveness.heartbeat_interval_seconds,
            lease_seconds=liveness.lease_seconds,
            entropy=base64.b64encode(context.tools.random_bytes(_ENTROPY_BYTES)).decode(),
            unix_time=context.tools.unix_time(),
        ).with_registries(context.tools.registries()),
        cloud_properties=group.vm.cloud_properties,
        tags=spare_vm.vm_tags(record, vm.generation),
    )


async def hear_agent(context: StepContext) -> Outcome:
    """Waits for the new agent's first sign of life (a spare's: that it knows whose VM it is now), and looks whether its
    VM still runs meanwhile."""
    vm = context.vm()
    boot_seconds = context.policy.agent_boot_seconds
    until = context.ends_at(boot_seconds)
    next_look_at = 0.0
    while vm.spare or not _heard(context, vm):
        if vm.spare:
            try:
                refused = await spare_vm.become(context, vm)
                return _lost(context, vm, refused) if refused else Done(f"agent {vm.agent_id}, a spare's")
            except (BusUnavailable, NoResponders):
                pass  # it may have died since: looked at as one that boots
        now = asyncio.get_running_loop().time()
        if now >= until:
            return _lost(context, vm, f"its agent was not heard within {boot_seconds:g} s; look at its console")
        if now >= next_look_at:
            if not vm.spare and await _answers(context, vm):
                break
            power = await _power(context, vm)
            if power is Power.OFF:
                return _lost(context, vm, "the cloud says that it is off; look at its console")
            next_look_at = asyncio.get_running_loop().time() + context.policy.boot_look_seconds
        await context.wait(context.present.policy.turn_seconds)
    return Done(f"agent {vm.agent_id}")


def _heard(context: StepContext, vm: VmBinding) -> bool:
    fleet = context.tools.fleet
    return fleet.verdict(vm.agent_id) is Verdict.ALIVE or fleet.last_heartbeat(vm.agent_id) is not None


async def _answers(context: StepContext, vm: VmBinding) -> bool:
    try:
        await context.tools.agents.ping(vm.agent_id, vm.generation, context.present.policy.liveness.ask_timeout_seconds)
    except (BusUnavailable, NoResponders, RequestRefused):
        return False  # booting; the step's own deadline decides
    finally:
        context.check_ours()
    return True


async def _power(context: StepContext, vm: VmBinding) -> Power:
    if vm.vm_cid is None:
        return Power.UNKNOWN
    cid = vm.vm_cid
    try:
        observation = await context.call_cloud(
            "observe",
            lambda: context.cloud().observe(cid),
            context.present.policy.liveness.observe_timeout_seconds,
        )
    except CloudError:
        return Power.UNKNOWN  # asked again at the next look
    return observation.power


def _lost(context: StepContext, vm: VmBinding, error: str) -> Outcome:
    if Step.FENCE in STEPS[context.operation.kind]:
        return VmLost(vm, error)
    return Failed(f"{error}; an update rebuilds nothing: it is rebuilt when it counts as missing")


async def mount(context: StepContext) -> Outcome:
    """Every disk mounted by the agent, and its own list read back."""
    record = context.record()
    wanted = {disk.name for disk in record.group.disks}
    disks = [disk for disk in record.disks if disk.name in wanted and disk.cid is not None]
    if not disks:
        return Done("no disks")
    for disk in disks:
        if disk.successor is not None and disk.successor.ready:
            # What is written to it from now on is not on the copy.
            stale = replace(disk, successor=replace(disk.successor, ready=False))
            await disk_records.save_binding(context, stale, f"disk {disk.name} copy outdated")
        try:
            await context.call_agent(
                "mount_disk",
                disk.cid,
                {
                    "name": disk.name,
                    "device": disk.device,
                    "filesystem": disk.filesystem,
                    "mount_options": list(disk.mount_options),
                    "size_mib": disk.size_mib,
                    "replaces": disk.replaces,
                    "taken_from": disk.taken_from,
                },
            )
        except RequestRefused as error:
            tried = context.operation.attempts + 1
            # In a VM that was there before, a device that vanished may still be mounted: that is for a person.
            if NO_DEVICE not in str(error) or tried < _LOOKS_FOR_DEVICE or context.operation.kind in IN_PLACE:
                raise
            return await disk_steps.plug_again(context, disk)
    listed = await context.call_agent("list_disk")
    mounted = {str(item.get("cid", "")) if isinstance(item, dict) else str(item) for item in listed or ()}
    lacking = [f"{disk.name} ({disk.cid})" for disk in disks if disk.cid not in mounted]
    if lacking:
        return Failed(
            f"the agent says that it mounted, but does not list {', '.join(lacking)}; mounting is tried again"
        )
    return Done(", ".join(disk.name for disk in disks))


async def apply(context: StepContext) -> Outcome:
    """The agent is told what to run, and disks that are not wanted any more are released."""
    await send_specification(context)
    note = await disk_steps.release_unwanted(context)
    return Done(f"revision {context.record().revision}" + (f"; {note}" if note else ""))


async def send_specification(context: StepContext) -> None:
    record = context.record()
    wanted = {disk.name for disk in record.group.disks}
    spec = instance_spec(
        replace(record, disks=tuple(disk for disk in record.disks if disk.name in wanted)),
        context.present.policy.liveness.heartbeat_interval_seconds,
        context.present.policy.liveness.lease_seconds,
        context.present.policy.images.rate_bytes,
    )
    await context.call_agent("apply", codec.to_plain(spec))


async def healthy(context: StepContext) -> Outcome:
    """Waits until the agent reports everything as it should be. After `healthy_seconds` it is shown as unhealthy, and
    looked at again whenever something is heard."""
    until = context.ends_at(context.policy.healthy_seconds)
    sent_revision = context.record().revision
    while True:
        record = context.record()
        vm = context.vm()
        lacking = health.lacking(record, context.tools.fleet.last_heartbeat(vm.agent_id))
        if not lacking:
            pins = _pins(context, record, vm)
            if pins != record.pinned_images:
                await context.save_record(replace(record, pinned_images=pins), record, "images pinned")
            return Done("all containers are as they should be")
        if record.revision != sent_revision:
            # A newer specification came while this one was starting.
            await send_specification(context)
            sent_revision = record.revision
        if asyncio.get_running_loop().time() >= until:
            return Held(
                Hold.UNHEALTHY,
                f"not healthy after {context.policy.healthy_seconds:g} s: {'; '.join(lacking)}."
                f" Look with `resurgam logs {context.instance}`",
            )
        await context.wait(context.present.policy.turn_seconds)
