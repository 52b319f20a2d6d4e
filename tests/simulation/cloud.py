"""The simulated cloud: it keeps the truth about every VM and disk, and may be told to lie about it.

Laws:
- Once asked, it acts, whether or not whoever asked still lives to hear the answer.
- The truth (what runs, what is plugged in where) is kept apart from what it says; only `violations` looks at the truth.
- Every moment in which two VMs that are not off hold one disk is a violation, and is written down with its time.

Does not know: what runs in its VMs. `make_machine` gives it something to switch on and off.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Protocol, TypeVar

from healthmonitor.clouds.cloud import (
    CloudError,
    CloudRefused,
    CloudUnavailable,
    DiskHeld,
    DiskNotFound,
    DiskRequest,
    DiskSummary,
    FenceProof,
    Power,
    Unfenced,
    VmNotFound,
    VmObservation,
    VmRequest,
    VmSummary,
)
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from protocol.ids import CloudName, DiskCid, VmCid
from protocol.settings import AgentSettings

T = TypeVar("T")

LOCAL = CloudName("local")


class Machine(Protocol):
    """What the cloud switches: `tests.simulation.vm.Machine`, or a test's own."""

    def power_on(self) -> None: ...

    def power_off(self, announced: bool, why: str) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def attach(self, disk: DiskCid) -> None: ...

    def detach(self, disk: DiskCid) -> None: ...


class NoMachine:
    """A VM in which nothing runs."""

    def power_on(self) -> None: ...

    def power_off(self, announced: bool, why: str) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def attach(self, disk: DiskCid) -> None: ...

    def detach(self, disk: DiskCid) -> None: ...


class Fault(Enum):
    FAILS = "fails"  # nothing is done, CloudUnavailable
    REFUSED = "refused"  # nothing is done, CloudRefused (quota)
    UNANSWERED = "unanswered"  # it is done, CloudUnavailable
    HANGS = "hangs"  # it is done, and there is never an answer
    HALF_DONE = "half_done"  # half of it is done, and there is no answer; what that is is each call's `half`
    SLOW = "slow"  # `slow_seconds` more


@dataclass(slots=True)
class SimulatedVm:
    cid: VmCid
    request: VmRequest
    machine: Machine
    power: Power = Power.OFF  # the truth
    attached: set[DiskCid] = field(default_factory=set)  # the truth
    half_attached: set[DiskCid] = field(default_factory=set)  # held for it, and its guest does not see it yet
    host_dead: bool = False  # the cloud cannot reach the VM's host: it cannot say, and cannot fence
    boots: bool = True

    @property
    def can_write(self) -> bool:
        return self.power is not Power.OFF


@dataclass(slots=True)
class SimulatedDisk:
    cid: DiskCid
    request: DiskRequest
    size_mib: int
    said_free: bool = False  # the cloud's record says that nobody holds it, whatever is true
    stuck: bool = False  # detaching says yes and does nothing
    slips: bool = False  # attaching says yes and does nothing
    shared: bool = False  # attaching does not look who holds it


@dataclass(frozen=True, slots=True)
class Violation:
    at_seconds: float
    disk: DiskCid
    vms: frozenset[VmCid]


class SimulatedCloud:
    def __init__(
        self,
        make_machine: Callable[[SimulatedVm], Machine] = lambda vm: NoMachine(),
        random: Random | None = None,
        latency_seconds: tuple[float, float] = (0.0, 0.0),
        name: CloudName = LOCAL,
        vms_max: int = 10_000,
    ) -> None:
        self.latency_seconds = latency_seconds
        self.slow_seconds = 8.0
        self.vms_max = vms_max
        self.disk_abilities = DiskAbilities()
        self.delete_lies = False
        """delete_vm says yes, forgets the record, and the VM stays as it is (Nova with a dead compute host)."""
        self.violations: list[Violation] = []
        self.calls: list[str] = []
        self.created: list[VmCid] = []
        self.on_change: Callable[[], None] = lambda: None
        self.on_call: Callable[[str, VmCid | None, DiskCid | None, str], None] = lambda name, vm, disk, key: None
        """Told of every call as it is begun, in the process that asks."""
        self._name = name
        self._make_machine = make_machine
        self._random = random or Random(0)
        self._vms: dict[VmCid, SimulatedVm] = {}  # every one there ever was
        self._forgotten: set[VmCid] = set()
        self._disks: dict[DiskCid, SimulatedDisk] = {}
        self._proofs: dict[VmCid, FenceProof] = {}
        self._faults: dict[str, deque[Fault]] = {}
        self._numbers = 0

    # The truth, and faults: for tests and the nemesis.

    @property
    def vms(self) -> Mapping[VmCid, SimulatedVm]:
        """Every VM there ever was, as it truly is."""
        return self._vms

    @property
    def disks(self) -> Mapping[DiskCid, SimulatedDisk]:
        return self._disks

    def running(self) -> list[SimulatedVm]:
        return [vm for vm in self._vms.values() if vm.can_write]

    def recorded(self) -> list[SimulatedVm]:
        """Those that the cloud admits to."""
        return [vm for cid, vm in self._vms.items() if cid not in self._forgotten]

    def plan_fault(self, call: str, fault: Fault, times: int = 1) -> None:
        """The next `times` calls of that name go wrong."""
        self._faults.setdefault(call, deque()).extend([fault] * times)

    def clear_faults(self) -> None:
        self._faults.clear()
        self.delete_lies = False
        for vm in self._vms.values():
            vm.host_dead = False
        for disk in self._disks.values():
            disk.stuck = disk.slips = disk.shared = False

    def kill_vm(self, cid: VmCid, announced: bool = True) -> None:
        """SIGKILL of the hypervisor's process, or the host's power."""
        vm = self._vms[cid]
        if vm.power is not Power.OFF:
            vm.power = Power.OFF
            vm.machine.power_off(announced, "killed")
            self._changed()

    def freeze_vm(self, cid: VmCid) -> None:
        vm = self._vms[cid]
        if vm.power is Power.RUNNING:
            vm.power = Power.PAUSED
            vm.machine.freeze()
            self._changed()

    def thaw_vm(self, cid: VmCid) -> None:
        vm = self._vms[cid]
        if vm.power is Power.PAUSED:
            vm.power = Power.RUNNING
            vm.machine.thaw()
            self._changed()

    def switch_on(self, cid: VmCid) -> None:
        """As somebody in the cloud's console would."""
        vm = self._vms[cid]
        if vm.power is Power.OFF and cid not in self._forgotten:
            vm.power = Power.RUNNING
            vm.machine.power_on()
            self._changed()

    # The port.

    @property
    def name(self) -> CloudName:
        return self._name

    async def create_vm(self, request: VmRequest) -> VmCid:
        half_done = self._peek("create_vm") is Fault.HALF_DONE

        def act() -> VmCid:
            found = self._by_key(request.key)
            if found is None:
                if len(self.recorded()) >= self.vms_max:
                    raise CloudRefused(f"quota: {self.vms_max} VMs; delete some or have it raised")
                found = SimulatedVm(VmCid(f"vm-{self._next_number()}"), request, NoMachine())
                found.machine = self._make_machine(found)
                self._vms[found.cid] = found
                self.created.append(found.cid)
            if found.power is Power.OFF and not half_done and found.cid not in self._proofs:
                found.power = Power.RUNNING
                found.machine.power_on()
                self._changed()
            return found.cid

        return await self._call("create_vm", act, key=request.key)

    async def find_vm(self, key: str) -> VmCid | None:
        def act() -> VmCid | None:
            found = self._by_key(key)
            return None if found is None else found.cid

        return await self._call("find_vm", act)

    async def observe(self, vm: VmCid) -> VmObservation:
        def act() -> VmObservation:
            if vm in self._forgotten or vm not in self._vms:
                return VmObservation(Power.GONE, f"no record of {vm}")
            found = self._vms[vm]
            if found.host_dead:
                return VmObservation(Power.UNKNOWN, f"the host of {vm} does not answer")
            return VmObservation(found.power, f"its process is {found.power.value}")

        return await self._call("observe", act)

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        def act() -> FenceProof | Unfenced:
            if vm in self._proofs:
                return self._proofs[vm]
            if vm in self._forgotten or vm not in self._vms:
                return Unfenced(vm, "there is no record of it, and no proof was kept")
            found = self._vms[vm]
            if found.host_dead:
                return Unfenced(vm, "its host does not answer, so nothing says that it is off; look at the host")
            if found.power is not Power.OFF:
                found.power = Power.OFF
                found.machine.power_off(True, "fenced")
                self._changed()
            self._proofs[vm] = FenceProof(vm, f"process of {vm} reaped")
            return self._proofs[vm]

        return await self._call("fence", act, vm)

    async def delete_vm(self, vm: VmCid) -> None:
        def act() -> None:
            found = self._vms.get(vm)
            if found is None or vm in self._forgotten:
                return
            self._forgotten.add(vm)
            if self.delete_lies or found.host_dead:
                for cid in list(found.attached):
                    self._disks[cid].said_free = True
                    if not found.can_write:
                        self._unplug(found, cid)
                return
            if found.power is not Power.OFF:
                found.power = Power.OFF
                found.machine.power_off(True, "deleted")
            for cid in list(found.attached):
                self._unplug(found, cid)
            self._changed()

        await self._call("delete_vm", act, vm, half=lambda: self._switch_off(vm))

    async def list_vms(self) -> list[VmSummary]:
        def act() -> list[VmSummary]:
            return [
                VmSummary(vm.cid, vm.request.key, Power.UNKNOWN if vm.host_dead else vm.power, vm.request.tags)
                for vm in self.recorded()
            ]

        return await self._call("list_vms", act)

    async def create_disk(self, request: DiskRequest) -> DiskCid:
        def act() -> DiskCid:
            for disk in self._disks.values():
                if disk.request.key == request.key:
                    return disk.cid
            made = SimulatedDisk(DiskCid(f"disk-{self._next_number()}"), request, request.size_mib)
            self._disks[made.cid] = made
            return made.cid

        return await self._call("create_disk", act, key=request.key, half=act)

    async def snapshot_disk(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        """`Snapshotting`, where `disk_abilities` says so. What the disk holds is nobody's concern here."""

        def act() -> DiskCid:
            source = self._disks.get(disk)
            if source is None:
                raise DiskNotFound(f"no disk {disk}")
            for made in self._disks.values():
                if made.request.key == request.key:
                    return made.cid
            taken = SimulatedDisk(DiskCid(f"disk-{self._next_number()}"), request, source.size_mib)
            self._disks[taken.cid] = taken
            return taken.cid

        return await self._call("snapshot_disk", act, key=request.key, half=act)

    async def drop_snapshot(self, key: str) -> None:
        def act() -> None:
            for made in [disk for disk in self._disks.values() if disk.request.key == key]:
                holders = self._said_holders(made.cid)
                if holders:
                    raise DiskHeld(f"{made.cid} is attached to {', '.join(sorted(holders))}", holders)
                del self._disks[made.cid]

        await self._call("drop_snapshot", act, key=key)

    async def delete_disk(self, disk: DiskCid) -> None:
        def act() -> None:
            holders = self._said_holders(disk) if disk in self._disks else frozenset()
            if holders:
                raise DiskHeld(f"{disk} is attached to {', '.join(sorted(holders))}", holders)
            self._disks.pop(disk, None)

        await self._call("delete_disk", act, disk=disk)

    async def list_disks(self) -> list[DiskSummary]:
        def act() -> list[DiskSummary]:
            return [
                DiskSummary(disk.cid, disk.request.key, disk.size_mib, self._said_holders(disk.cid), disk.request.tags)
                for disk in self._disks.values()
            ]

        return await self._call("list_disks", act)

    async def attach_disk(self, vm: VmCid, disk: DiskCid) -> str:
        def act() -> str:
            if disk not in self._disks:
                raise DiskNotFound(f"no disk {disk}")
            found = self._recorded_vm(vm)
            others = self._said_holders(disk) - {vm}
            if others and not self._disks[disk].shared:
                raise DiskHeld(f"{disk} is attached to {', '.join(sorted(others))}", others)
            self._disks[disk].said_free = False
            if self._disks[disk].slips:
                return f"/dev/disk/by-id/virtio-{disk}"
            if disk not in found.attached:
                found.attached.add(disk)
                found.machine.attach(disk)
                self._changed()
            elif disk in found.half_attached:
                found.half_attached.discard(disk)
                found.machine.attach(disk)
            return f"/dev/disk/by-id/virtio-{disk}"

        return await self._call("attach_disk", act, vm, disk, half=lambda: self._half_attach(vm, disk))

    async def detach_disk(self, vm: VmCid, disk: DiskCid) -> None:
        def act() -> None:
            if disk in self._disks and not self._disks[disk].stuck and vm in self._vms:
                found = self._vms[vm]
                # A running VM whose record is gone cannot be reached any more; one that is off can be let go.
                if disk in found.attached and (vm not in self._forgotten or not found.can_write):
                    self._unplug(found, disk)
                    self._changed()

        await self._call("detach_disk", act, vm, disk)

    async def disk_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        def act() -> frozenset[VmCid]:
            if disk not in self._disks:
                raise DiskNotFound(f"no disk {disk}")
            return self._said_holders(disk)

        return await self._call("disk_holders", act)

    async def resize_disk(self, disk: DiskCid, size_mib: int) -> None:
        def act() -> None:
            if disk not in self._disks:
                raise DiskNotFound(f"no disk {disk}")
            if size_mib < self._disks[disk].size_mib:
                raise CloudRefused(f"{disk} has {self._disks[disk].size_mib} MiB; disks do not shrink")
            if Growth.DETACHED in self.disk_abilities.growth.values() and self._said_holders(disk):
                raise CloudRefused(f"{disk} is attached; only a detached one grows")
            self._disks[disk].size_mib = size_mib

        await self._call("resize_disk", act, disk=disk, half=act)

    async def close(self) -> None:
        """VMs keep running."""

    # How a call goes.

    async def _call(
        self,
        name: str,
        act: Callable[[], T],
        vm: VmCid | None = None,
        disk: DiskCid | None = None,
        key: str = "",
        half: Callable[[], object] = lambda: None,
    ) -> T:
        """`half`: what is done when only half of it is."""
        self.calls.append(name)
        self.on_call(name, vm, disk, key)
        fault = self._take_fault(name)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def answered(error: CloudError | None, result: T | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # T may be None

        def carry_out() -> None:
            error: CloudError | None = None
            result: T | None = None
            if fault in (Fault.FAILS, Fault.REFUSED):
                refused = fault is Fault.REFUSED
                error = CloudRefused(f"{name}: quota") if refused else CloudUnavailable(f"{name}: busy")
            elif fault is Fault.HALF_DONE and name != "create_vm":
                half()
                error = CloudUnavailable(f"{name}: the connection broke in the middle")
            else:
                try:
                    result = act()
                except CloudError as raised:
                    error = raised
                if fault in (Fault.UNANSWERED, Fault.HALF_DONE):
                    error = CloudUnavailable(f"{name}: the connection broke before the answer")
            if fault is not Fault.HANGS:
                loop.call_later(self._latency(), answered, error, result, context=contextvars.Context())

        before = self._latency() + (self.slow_seconds if fault is Fault.SLOW else 0.0)
        # In the world's context, not in the asking process's: its death does not stop the cloud.
        loop.call_later(before, carry_out, context=contextvars.Context())
        return await answer

    def _latency(self) -> float:
        return self._random.uniform(*self.latency_seconds) / 2.0

    def _peek(self, name: str) -> Fault | None:
        planned = self._faults.get(name)
        return planned[0] if planned else None

    def _take_fault(self, name: str) -> Fault | None:
        planned = self._faults.get(name)
        return planned.popleft() if planned else None

    def _by_key(self, key: str) -> SimulatedVm | None:
        return next((vm for vm in self.recorded() if vm.request.key == key), None)

    def _recorded_vm(self, cid: VmCid) -> SimulatedVm:
        if cid not in self._vms or cid in self._forgotten:
            raise VmNotFound(f"no VM {cid}")
        return self._vms[cid]

    def _said_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        if self._disks[disk].said_free:
            return frozenset()
        return frozenset(vm.cid for vm in self._vms.values() if disk in vm.attached)

    def _switch_off(self, cid: VmCid) -> None:
        """Half of a deletion: it is off, and its record and its disks are still there."""
        found = self._vms.get(cid)
        if found is None or cid in self._forgotten or self.delete_lies or found.host_dead:
            return
        if found.power is not Power.OFF:
            found.power = Power.OFF
            found.machine.power_off(True, "half deleted")
            self._changed()

    def _half_attach(self, cid: VmCid, disk: DiskCid) -> None:
        """Half of an attachment: the disk is held for the VM, whose guest does not see it."""
        found = self._vms.get(cid)
        if found is None or cid in self._forgotten or disk not in self._disks or disk in found.attached:
            return
        if self._said_holders(disk) - {cid} and not self._disks[disk].shared:
            return
        self._disks[disk].said_free = False
        found.attached.add(disk)
        found.half_attached.add(disk)
        self._changed()

    def _unplug(self, vm: SimulatedVm, disk: DiskCid) -> None:
        if disk not in self._disks or not self._disks[disk].stuck:
            vm.attached.discard(disk)
            vm.half_attached.discard(disk)
            vm.machine.detach(disk)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _changed(self) -> None:
        writers: dict[DiskCid, list[VmCid]] = {}
        for vm in self._vms.values():
            if vm.attached and vm.can_write:
                for disk in vm.attached:
                    writers.setdefault(disk, []).append(vm.cid)
        for disk in self._disks:
            if len(writers.get(disk, ())) > 1:
                violation = Violation(asyncio.get_running_loop().time(), disk, frozenset(writers[disk]))
                self.violations.append(violation)
        self.on_change()


def settings_of(vm: SimulatedVm) -> AgentSettings:
    return vm.request.settings
