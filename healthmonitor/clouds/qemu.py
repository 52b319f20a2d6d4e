"""The cloud `qemu`: virtual machines on this machine, one QEMU process each.

Law: the process is the VM. It runs on when the monitor ends, is found again through the kernel, and a VM whose
process was ended is never started again: whoever wants the instance back makes a new VM. A proof of fencing is written
before it is returned, and outlives the VM.

Does not know: instances; how disks are plugged (qemu_disks.py), how templates are made (qemu_template.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from healthmonitor.clouds import guest_settings, qemu_accel, qemu_machine, qemu_process, qmp
from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
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
from healthmonitor.clouds.local_disks import LocalDisks
from healthmonitor.clouds.local_store import LocalStore, Stage, Tombstone, VmRecord
from healthmonitor.clouds.local_vms import LOCK_SECONDS, LocalVms, deadline, require_fenced
from healthmonitor.clouds.qemu_disks import QemuPlugs
from healthmonitor.clouds.qemu_images import make_overlay, run
from healthmonitor.clouds.qemu_machine import CONTROL_SOCKET, MONITOR_SOCKET, Machine, PortForward, parse_forward
from healthmonitor.clouds.qemu_snapshots import QemuSnapshots
from healthmonitor.clouds.qemu_template import Progress, Template, Templates
from healthmonitor.clouds.stemcell import Stemcell, load
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from protocol.ids import CloudName, DiskCid, VmCid

log = structlog.get_logger(__name__)

RESUME_SECONDS = 60.0
OBSERVE_SECONDS = 2.0
QUIT_SECONDS = 1.0
KILL_SECONDS = 15.0
FENCE_LOCK_SECONDS = 10.0
POLL_SECONDS = 0.02
DISK_ABILITIES = DiskAbilities({"ext4": Growth.MOUNTED, "xfs": Growth.MOUNTED}, snapshots=True)
KNOWN_PROPERTIES = frozenset({"forward_ports"})


@dataclass(frozen=True, slots=True)
class QemuOptions:
    directory: Path
    stemcells: Path
    accel: str = "auto"  # auto, kvm, tcg
    warm: str = "auto"  # true: make a missing template first; false: always boot; auto: use a template that is there
    bus_host: str = qemu_machine.GUEST_HOST_ADDRESS
    qemu: str = "qemu-system-x86_64"
    qemu_img: str = "qemu-img"


class QemuCloud:
    def __init__(self, name: CloudName, options: QemuOptions) -> None:
        self._name = name
        self._options = options
        self._store = LocalStore(options.directory)
        self._vms = LocalVms(name, self._store)
        plugs = QemuPlugs(self._store)
        self._disks = LocalDisks(self._store, plugs)
        self._snapshots = QemuSnapshots(self._store, plugs)
        self._version = ""

    @property
    def name(self) -> CloudName:
        return self._name

    @property
    def disk_abilities(self) -> DiskAbilities:
        return DISK_ABILITIES

    async def create_vm(self, request: VmRequest) -> VmCid:
        stemcell = load(self._options.stemcells, request.stemcell)
        forwards = _forwards(request.cloud_properties)
        return await self._vms.create(request, stemcell, self._complete, forwards)

    def lasting_properties(self, cloud_properties: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ports are forwarded by a process that runs."""
        return {name: value for name, value in cloud_properties.items() if name != "forward_ports"}

    async def reshape_vm(self, vm: VmCid, cloud_properties: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        forwards = _forwards(cloud_properties)
        async with deadline(f"reshaping {vm}", LOCK_SECONDS + RESUME_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            record = self._store.read_vm(vm)
            if record is None:
                raise VmNotFound(f"no VM {vm}")
            record = dataclasses.replace(record, tags=dict(tags), forward_ports=forwards)
            await self._store.write_vm(record)
            await self._forward_all(record)

    async def find_vm(self, key: str) -> VmCid | None:
        return self._vms.find(key)

    async def observe(self, vm: VmCid) -> VmObservation:
        record = self._store.read_vm(vm)
        if record is None:
            return self._vms.unrecorded(vm)
        directory = self._store.vm_directory(vm)
        await asyncio.to_thread(_bound_console, directory / qemu_machine.CONSOLE)
        if not qemu_process.is_held(directory / "running.lock"):
            if record.stage is Stage.CREATING and self._store.read_proof(vm) is None:
                return VmObservation(Power.STARTING, "being created; its process was not started yet")
            return VmObservation(Power.OFF, "no process holds its running lock")
        try:
            async with qmp.connect(directory / MONITOR_SOCKET, OBSERVE_SECONDS) as machine:
                status = str((await machine.execute("query-status", timeout_seconds=OBSERVE_SECONDS))["status"])
        except qmp.QmpUnanswered as error:
            return await self._observe_mute(directory, str(error))
        except qmp.QmpRefused as error:
            return VmObservation(Power.UNKNOWN, f"QEMU refused query-status: {error}")
        power = {"running": Power.RUNNING, "inmigrate": Power.STARTING, "prelaunch": Power.STARTING}.get(
            status, Power.PAUSED
        )
        return VmObservation(power, f"QEMU says {status}")

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        proof = self._store.read_proof(vm)
        if proof is not None and not self._store.vm_directory(vm).exists():
            return FenceProof(vm, proof.evidence)
        if not self._store.vm_directory(vm).exists():
            return self._vms.unknown(vm)
        try:
            async with deadline(f"fencing {vm}", FENCE_LOCK_SECONDS + 2 * KILL_SECONDS + QUIT_SECONDS):
                # Ended before the lock is asked for: a change that hangs on a frozen QEMU ends with it.
                ended = await self._end(vm)
                async with self._store.locked(vm, FENCE_LOCK_SECONDS):
                    ended = [*ended, *await self._end(vm)]
                    if proof is None:
                        evidence = self._evidence(vm, ended)
                        await self._store.write_proof(vm, evidence)
                        log.info("vm.fenced", cloud=self._name, vm=vm, evidence=evidence)
                        return FenceProof(vm, evidence)
                    return FenceProof(vm, proof.evidence)
        except (CloudUnavailable, OSError) as error:
            return Unfenced(vm, f"{error}; end its process by hand and fence again, or vouch for it")

    async def delete_vm(self, vm: VmCid) -> None:
        directory = self._store.vm_directory(vm)
        if not directory.exists():
            return
        fenced = require_fenced(vm, await self.fence(vm))
        async with deadline(f"deleting {vm}", LOCK_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            if directory.exists():
                record = self._store.read_vm(vm)
                await self._store.bury_vm(Tombstone(vm, record.key if record else "", fenced.evidence))

    async def list_vms(self) -> list[VmSummary]:
        return await self._vms.summaries(self.observe)

    async def create_disk(self, request: DiskRequest) -> DiskCid:
        return await self._disks.create(request)

    async def delete_disk(self, disk: DiskCid) -> None:
        await self._disks.delete(disk)

    async def list_disks(self) -> list[DiskSummary]:
        return await self._disks.list()

    async def attach_disk(self, vm: VmCid, disk: DiskCid) -> str:
        return await self._disks.attach(vm, disk)

    async def detach_disk(self, vm: VmCid, disk: DiskCid) -> None:
        await self._disks.detach(vm, disk)

    async def disk_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        return await self._disks.holders(disk)

    async def resize_disk(self, disk: DiskCid, size_mib: int) -> None:
        await self._disks.resize(disk, size_mib)

    async def snapshot_disk(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        return await self._snapshots.take(disk, request)

    async def drop_snapshot(self, key: str) -> None:
        await self._snapshots.drop(key)

    async def close(self) -> None:
        """Nothing is kept open between calls."""

    async def build_template(self, stemcell_name: str, cpus: int, memory_mib: int, progress: Progress) -> str:
        """Makes the warm template for VMs of this size, unless it is there; its key. Earlier builds' templates that no
        VM goes back to are removed."""
        stemcell = load(self._options.stemcells, stemcell_name)
        machine = await self._machine(stemcell, cpus, memory_mib)
        templates = await self._templates()
        template = await templates.build(machine, stemcell, progress)
        used = frozenset(record.template for record in self._store.vms())
        await templates.remove_superseded(machine, stemcell, used)
        return template.key

    async def freeze_vm(self, vm: VmCid) -> None:
        """Stops the VM's processors, as an overloaded or failing host would. For drills and tests."""
        await self._order(vm, "stop")

    async def thaw_vm(self, vm: VmCid) -> None:
        await self._order(vm, "cont")

    def console(self, vm: VmCid) -> Path:
        """What the VM wrote to its serial port."""
        return self._store.vm_directory(vm) / qemu_machine.CONSOLE

    async def _order(self, vm: VmCid, command: str) -> None:
        if self._store.read_vm(vm) is None:
            raise VmNotFound(f"no VM {vm}")
        try:
            async with (
                self._store.locked(vm, LOCK_SECONDS),
                qmp.connect(self._store.vm_directory(vm) / CONTROL_SOCKET) as machine,
            ):
                await machine.execute(command)
        except (qmp.QmpUnanswered, qmp.QmpRefused) as error:
            raise CloudUnavailable(f"{command} of {vm}: {error}") from None

    async def _complete(self, record: VmRecord, request: VmRequest) -> None:
        """From whatever an interrupted creation left, to a VM that runs."""
        stemcell = load(self._options.stemcells, record.stemcell)
        directory = self._store.vm_directory(record.cid)
        if qemu_process.is_held(directory / "running.lock"):
            try:
                await self._go_on(record)
                return
            except CloudUnavailable as error:
                log.warning("vm.restarted_in_creation", cloud=self._name, vm=record.cid, reason=str(error))
                await self._end(record.cid)
        machine = await self._machine(stemcell, record.cpus, record.memory_mib)
        template = await self._template(machine, stemcell)
        record = dataclasses.replace(record, accel=machine.accel.value, template=template.key if template else "")
        await self._store.write_vm(record)
        for name in ("root.qcow2", qemu_machine.CONSOLE, CONTROL_SOCKET, MONITOR_SOCKET):
            (directory / name).unlink(missing_ok=True)
        try:
            settings = guest_settings.for_guest(request.settings, record.cid, self._options.bus_host)
            (directory / "settings").write_bytes(qemu_machine.padded_settings(settings))
        except ValueError as error:
            raise CloudRefused(str(error)) from None
        if machine.has_root:
            backing = template.root if template else stemcell.root
            await make_overlay(self._options.qemu_img, backing, directory / "root.qcow2")
        arguments = qemu_machine.arguments(machine, self._options.qemu, directory)
        try:
            await qemu_process.start_detached(
                [*arguments, *(template.incoming if template else ())], directory, directory / "running.lock"
            )
        except qemu_process.LaunchFailed as error:
            raise CloudUnavailable(f"QEMU did not start for {record.cid}: {error}") from None
        except qemu_process.AlreadyRunning:
            raise CloudUnavailable(f"{record.cid} is being started by another; look again") from None
        except FileNotFoundError:
            raise CloudUnavailable(f"{self._options.qemu} is not installed: apt-get install qemu-system-x86") from None
        await self._go_on(record)

    async def _go_on(self, record: VmRecord) -> None:
        """Waits until a saved state is loaded, lets the processors run, forwards the ports."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RESUME_SECONDS
        try:
            async with qmp.connect(self._store.vm_directory(record.cid) / CONTROL_SOCKET) as machine:
                while (status := (await machine.execute("query-status"))["status"]) == "inmigrate":
                    if loop.time() > deadline:
                        raise CloudUnavailable(f"{record.cid}: the template was not loaded in {RESUME_SECONDS:g} s")
                    await asyncio.sleep(POLL_SECONDS)
                if status != "running":
                    await machine.execute("cont")
        except (qmp.QmpRefused, qmp.QmpUnanswered) as error:
            raise self._failed(record, error) from None
        await self._forward_all(record)

    async def _forward_all(self, record: VmRecord) -> None:
        """Of a VM that stands still too, and it goes on standing still: whoever stopped it may be about to fence it."""
        try:
            async with qmp.connect(self._store.vm_directory(record.cid) / CONTROL_SOCKET) as machine:
                forwarded = await machine.execute("human-monitor-command", command_line="info usernet")
                for text in record.forward_ports:
                    await self._forward(machine, record, parse_forward(text), str(forwarded))
        except (qmp.QmpRefused, qmp.QmpUnanswered) as error:
            raise self._failed(record, error) from None

    def _failed(self, record: VmRecord, error: qmp.QmpRefused | qmp.QmpUnanswered) -> CloudUnavailable:
        return CloudUnavailable(f"{record.cid}: {error}; its console: {self.console(record.cid)}")

    async def _forward(self, machine: qmp.Qmp, record: VmRecord, wanted: PortForward, forwarded: str) -> None:
        for line in forwarded.splitlines():
            words = line.split()  # TCP[HOST_FORWARD] fd address port guest-address guest-port …
            named = words[:1] == [f"{wanted.protocol.upper()}[HOST_FORWARD]"]
            if named and words[2:4] == [wanted.address, str(wanted.host_port)]:
                return
        command = f"hostfwd_add {qemu_machine.NETWORK} {wanted.rule}"
        answer = await machine.execute("human-monitor-command", command_line=command)
        if answer.strip():
            where = f"{wanted.address}:{wanted.host_port}"
            raise CloudUnavailable(f"{record.cid}: {where} cannot be forwarded (is it in use?): {answer.strip()}")

    async def _machine(self, stemcell: Stemcell, cpus: int, memory_mib: int) -> Machine:
        if not self._version:
            self._version = (await run(self._options.qemu, "--version")).splitlines()[0]
        accel = await qemu_accel.choose(
            self._options.accel, self._options.qemu, self._version, stemcell, self._options.directory
        )
        return Machine(
            cpus=cpus,
            memory_mib=memory_mib,
            accel=accel,
            kernel=stemcell.kernel,
            initrd=stemcell.initrd,
            kernel_arguments=stemcell.manifest.kernel_arguments,
            has_root=stemcell.manifest.has_root,
        )

    async def _templates(self) -> Templates:
        return Templates(self._store, self._options.qemu, self._options.qemu_img, self._version)

    async def _template(self, machine: Machine, stemcell: Stemcell) -> Template | None:
        if self._options.warm == "false" or not machine.has_root:
            return None
        templates = await self._templates()
        template = templates.find(machine, stemcell)
        if template is None and self._options.warm == "true":
            template = await templates.build(machine, stemcell, lambda what, share: None)
        return template

    async def _end(self, vm: VmCid) -> list[int]:
        """Ends every process of the VM; the pids. CloudUnavailable when one of them does not end."""
        directory = self._store.vm_directory(vm)
        if not qemu_process.is_held(directory / "running.lock"):
            return []
        before = [process.pid for process in qemu_process.find(directory / "qemu.pid")]
        try:
            async with qmp.connect(directory / CONTROL_SOCKET, QUIT_SECONDS) as machine:
                await machine.execute("quit", timeout_seconds=QUIT_SECONDS)
        except (qmp.QmpUnanswered, qmp.QmpRefused) as error:
            log.debug("vm.quit_unanswered", vm=vm, reason=str(error))  # SIGKILL does not ask
        ended = await qemu_process.kill(directory / "qemu.pid", directory / "running.lock", KILL_SECONDS)
        if ended is None:
            pids = ", ".join(str(process.pid) for process in qemu_process.find(directory / "qemu.pid")) or "unknown"
            raise CloudUnavailable(f"process {pids} of {vm} did not end within {KILL_SECONDS:g} s of SIGKILL")
        return before or ended

    def _evidence(self, vm: VmCid, ended: list[int]) -> str:
        """One sentence, from what the kernel says now. CloudUnavailable when that is no proof."""
        directory = self._store.vm_directory(vm)
        if qemu_process.is_held(directory / "running.lock") or qemu_process.find(directory / "qemu.pid"):
            raise CloudUnavailable(f"{vm} still runs")
        if qemu_process.image_is_locked(directory / "root.qcow2"):
            raise CloudUnavailable(f"no process of {vm} is left, but its root image is still locked by another process")
        how = f"ended process {', '.join(str(pid) for pid in ended)}" if ended else "no process was left"
        return f"{how}; running lock and root image lock of {vm} are free on this host"

    async def _observe_mute(self, directory: Path, error: str) -> VmObservation:
        processes = await asyncio.to_thread(qemu_process.find, directory / "qemu.pid")
        if not processes:
            if not qemu_process.is_held(directory / "running.lock"):
                return VmObservation(Power.OFF, "its process ended just now")
            return VmObservation(Power.STARTING, "its process is being started")
        process = processes[0]
        power = Power.PAUSED if process.state in ("T", "t") else Power.UNKNOWN
        return VmObservation(power, f"process {process.pid} is there in state {process.state}, but {error}")


def _bound_console(console: Path) -> None:
    """Keeps the younger half of what has grown too long; what is written meanwhile is appended to that or lost."""
    try:
        size = console.stat().st_size
        if size <= qemu_machine.CONSOLE_MAX_BYTES:
            return
        with console.open("rb") as file:
            file.seek(size - qemu_machine.CONSOLE_MAX_BYTES // 2)
            rest = file.read()
        console.write_bytes(rest)
    except FileNotFoundError:
        return  # it is being created, or was deleted


def _forwards(properties: Mapping[str, Any]) -> tuple[str, ...]:
    unknown = sorted(set(properties) - KNOWN_PROPERTIES)
    if unknown:
        raise CloudRefused(
            f"unknown cloud_properties {', '.join(unknown)}; known: {', '.join(sorted(KNOWN_PROPERTIES))}"
        )
    rules = properties.get("forward_ports", ())
    if not isinstance(rules, list | tuple):
        raise CloudRefused("cloud_properties.forward_ports: expected a list, as [127.0.0.1:16379:6379]")
    try:
        for rule in rules:
            parse_forward(str(rule))
    except ValueError as error:
        raise CloudRefused(f"cloud_properties.forward_ports: {error}") from None
    return tuple(str(rule) for rule in rules)


def remove_everything(directory: Path) -> None:
    """After every VM was deleted: the provider's directory, with disks and templates. For `resurgam down`."""
    shutil.rmtree(directory, ignore_errors=False)
