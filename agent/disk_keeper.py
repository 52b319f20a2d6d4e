"""Which persistent disks this VM should have mounted, and keeping them so.

Laws: a disk that the specification names, or that was mounted by command, is mounted again after a reboot and whenever
it is lost, with a growing delay between tries. A disk that was unmounted by command stays so until it is mounted by
command or named by a newer specification: the cloud is about to detach it. Reports are made from what was last read;
making one never touches a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from agent import disk_probe, libmount, subprocesses
from agent.core import mount_table
from agent.core.mount_table import Mounted
from agent.core.vitals_shape import Usage
from agent.disk_tools import DiskBusy, DiskMissing, DiskRefused
from agent.lone_thread import LoneThread, StillHanging
from agent.store import KeptDocument, Write
from agent.vitals import disk_usage
from protocol.heartbeat import DiskReport, DiskState
from protocol.ids import DiskCid, DiskName, InstanceId
from protocol.spec import DiskSpec, InstanceSpec

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
WAIT_IN_BACKGROUND_SECONDS = 2.0
WAIT_BY_COMMAND_SECONDS = 30.0
RETRY_FIRST_SECONDS = 1.0
RETRY_LONGEST_SECONDS = 30.0
USAGE_SECONDS = 4.0
DISKS_MAX = 64
DETAIL_MAX_CHARACTERS = 300


class Tools(Protocol):
    def directory(self, disk: DiskSpec) -> str: ...

    async def mount(self, disk: DiskSpec, instance: InstanceId, thread: LoneThread, wait_seconds: float) -> str: ...

    async def unmount(self, disk: DiskSpec, thread: LoneThread) -> bool: ...

    def mounted_anywhere(self, cid: DiskCid) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class KnownDisks:
    """Kept over restarts. `by_command`: mounted or announced by command, with the cloud's hint. `released`: unmounted
    by command, at that revision of the specification."""

    by_command: tuple[DiskSpec, ...] = ()
    released: Mapping[DiskCid, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Kept:
    disk: DiskSpec
    state: DiskState = DiskState.MISSING
    detail: str = "not looked for yet"
    usage: Usage | None = None
    errors: int = 0
    tries: int = 0
    next_try: float = 0.0
    device: str = ""  # "major:minor" while it is mounted
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    thread: LoneThread = field(default_factory=lambda: LoneThread("disk"))
    usage_thread: LoneThread = field(default_factory=lambda: LoneThread("disk-usage"))


class UnknownDisk(Exception):
    """No disk of that cid is known here."""


class DiskKeeper:
    def __init__(
        self,
        tools: Tools,
        known: KeptDocument[KnownDisks],
        on_mounts: Callable[[Mapping[DiskName, str]], None],
        on_change: Callable[[], None] | None = None,
        read_mounts: Callable[[], tuple[Mounted, ...]] = disk_probe.mounts,
        write: Write = asyncio.to_thread,
    ) -> None:
        """`on_mounts` is told of every change of what is mounted, `on_change` of every change of the reports; `write`
        runs a call that waits for the disk of the VM itself."""
        self._tools = tools
        self._document = known
        self._known = known.load() or KnownDisks()
        self._on_mounts = on_mounts
        self._callbacks: list[Callable[[], None]] = [] if on_change is None else [on_change]
        self._read_mounts = read_mounts
        self._write = write
        self._instance: InstanceId | None = None
        self._revision = 0
        self._named: frozenset[DiskCid] = frozenset()
        self._kept: dict[DiskCid, _Kept] = {}
        self._told: dict[DiskName, str] | None = None
        self._wake = asyncio.Event()
        self._remembering = asyncio.Lock()

    def set_wanted(self, spec: InstanceSpec | None, instance: InstanceId | None) -> None:
        """Those of the specification and those mounted by command; the keeper sees to them in the background."""
        owner = spec.instance if spec is not None else instance
        if owner != self._instance:
            for kept in self._kept.values():
                kept.tries, kept.next_try = 0, 0.0  # what was refused for want of an owner need not wait any longer
        self._instance = owner
        self._revision = spec.revision if spec is not None else 0
        hints = {disk.cid: disk.device for disk in self._known.by_command}
        named = {disk.cid: disk for disk in spec.disks} if spec is not None else {}
        self._named = frozenset(named)
        for disk in (*self._known.by_command, *named.values()):
            self._keep(_with_hint(disk, hints.get(disk.cid, "")))
        for cid in list(self._kept):
            kept = self._kept[cid]
            if cid not in named and cid not in hints and not kept.device and not kept.lock.locked():
                del self._kept[cid]
        self._wake.set()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def reports(self) -> tuple[DiskReport, ...]:
        """Of the disks that should be here: one that was let go, and that no specification names, is no news."""
        return tuple(
            _report(kept)
            for cid, kept in sorted(self._kept.items())
            if kept.device or cid in self._named or not self._released(kept)
        )

    def mounted(self) -> dict[DiskName, str]:
        return {kept.disk.name: self._tools.directory(kept.disk) for kept in self._kept.values() if kept.device}

    def mounted_cids(self) -> list[DiskCid]:
        return sorted(cid for cid, kept in self._kept.items() if kept.device)

    def first_mounted(self) -> str | None:
        return next(iter(sorted(self.mounted().values())), None)

    def known(self, cid: DiskCid) -> DiskSpec | None:
        kept = self._kept.get(cid)
        return kept.disk if kept is not None else None

    async def add(self, disk: DiskSpec) -> None:
        """Remembers the cloud's hint for a disk that will be mounted later."""
        self._refuse_too_many(disk)
        kept = self._kept.get(disk.cid)
        revision = self._revision
        unmounted = disk.cid not in self._named and (kept is None or not kept.device)

        def announced(known: KnownDisks) -> KnownDisks:
            released = dict(known.released)
            if unmounted:
                released.setdefault(disk.cid, revision)  # announced is not yet mounted
            return KnownDisks((*_without(known.by_command, disk.cid), disk), released)

        await self._remember(announced)
        self._keep(disk)

    async def mount(self, disk: DiskSpec) -> str:
        """Mounts it now and keeps it mounted; the directory. Raises what `DiskTools.mount` raises."""
        self._refuse_too_many(disk)

        def wanted(known: KnownDisks) -> KnownDisks:
            return KnownDisks(
                (*_without(known.by_command, disk.cid), disk),
                {cid: revision for cid, revision in known.released.items() if cid != disk.cid},
            )

        # Beside each other: a database is down meanwhile. Whoever asked hears of it only when both are done.
        remembering = asyncio.ensure_future(self._remember(wanted))
        try:
            kept = self._keep(disk)
            async with kept.lock:
                await self._try(kept, WAIT_BY_COMMAND_SECONDS)
        finally:
            await remembering
        return self._tools.directory(disk)

    async def unmount(self, cid: DiskCid) -> bool:
        """False when it was not mounted. DiskBusy, CommandFailed; UnknownDisk when it is not known here, and nowhere
        mounted either."""
        kept = self._kept.get(cid)
        if kept is None:
            places = self._tools.mounted_anywhere(cid)
            if places:
                raise DiskBusy(f"{cid} is mounted at {', '.join(places)}, and not by this agent; unmount it by hand")
            raise UnknownDisk(f"no disk {cid} is known here")
        revision = self._revision
        await self._remember(lambda known: KnownDisks(known.by_command, {**known.released, cid: revision}))
        async with kept.lock:
            was_mounted = await self._tools.unmount(kept.disk, kept.thread)
            kept.state, kept.detail, kept.usage, kept.device = DiskState.ATTACHED, "unmounted by command", None, ""
        self._tell()
        return was_mounted

    async def remove(self, cid: DiskCid) -> None:
        """Forgets it: the cloud has detached it. DiskBusy while it is mounted. Fine when it is not known."""
        kept = self._kept.get(cid)
        if kept is not None and kept.device:
            raise DiskBusy(f"{cid} is mounted; unmount it first")
        await self._remember(
            lambda known: KnownDisks(
                _without(known.by_command, cid),
                {key: revision for key, revision in known.released.items() if key != cid},
            )
        )
        self._kept.pop(cid, None)
        self._changed()

    async def run(self) -> None:
        """Mounts what should be and is not, and reads back what is. Each disk has a task of its own, so that one
        that hangs holds up no other."""
        loop = asyncio.get_running_loop()
        tasks: dict[DiskCid, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for cid, kept in list(self._kept.items()):
                    task = tasks.get(cid)
                    if task is None or task.done():
                        tasks[cid] = group.create_task(self._look_after(kept), name=f"disk-{cid}")
                tasks = {cid: task for cid, task in tasks.items() if cid in self._kept or not task.done()}
                due = [kept.next_try for kept in self._kept.values() if not kept.device]
                delay = min([LOOK_SECONDS, *(max(0.05, at - loop.time()) for at in due)])
                try:
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    async def _look_after(self, kept: _Kept) -> None:
        if kept.lock.locked():
            return  # a command is at it
        async with kept.lock:
            self._read_back(kept)
            self._tell()
            if kept.device:
                await self._measure(kept)
            elif not self._released(kept) and asyncio.get_running_loop().time() >= kept.next_try:
                try:
                    await self._try(kept, WAIT_IN_BACKGROUND_SECONDS)
                except Exception as error:
                    # the edge of this disk's task: whatever it was stands in the report, and is tried again
                    log.warning("disk.not_mounted", disk=kept.disk.name, cid=kept.disk.cid, error=str(error))
        self._tell()

    async def _try(self, kept: _Kept, wait_seconds: float) -> None:
        try:
            if self._instance is None:
                raise DiskRefused("this VM fills no instance yet; it cannot own a disk")
            await self._tools.mount(kept.disk, self._instance, kept.thread, wait_seconds)
        except Exception as error:
            kept.state = DiskState.MISSING if isinstance(error, DiskMissing) else DiskState.FAILED
            kept.detail = _explain(error)
            kept.tries += 1
            delay = min(RETRY_LONGEST_SECONDS, RETRY_FIRST_SECONDS * 2 ** min(kept.tries - 1, 10))
            kept.next_try = asyncio.get_running_loop().time() + delay
            self._changed()
            raise
        kept.tries, kept.next_try = 0, 0.0
        mounted = mount_table.mounted_at(self._read_mounts(), self._tools.directory(kept.disk))
        kept.device = mounted.device if mounted is not None else ""
        self._read_back(kept)
        await self._measure(kept)
        self._tell()

    def _read_back(self, kept: _Kept) -> None:
        """Of a disk that was mounted: is it still, and may it be written?"""
        if not kept.device:
            return
        mounted = mount_table.mounted_at(self._read_mounts(), self._tools.directory(kept.disk))
        if mounted is None or mounted.device != kept.device:
            kept.state, kept.detail = DiskState.ATTACHED, "was mounted and is not any more"
            log.warning("disk.lost", disk=kept.disk.name, cid=kept.disk.cid, detail=kept.detail)
            kept.device, kept.usage = "", None
        elif not disk_probe.device_is_there(mounted.device):
            kept.state, kept.detail = DiskState.MISSING, "its device is gone while it is mounted"
        elif mounted.read_only and "ro" not in kept.disk.mount_options:
            kept.state, kept.detail = DiskState.READ_ONLY, "the file system turned read-only; see the kernel's log"
        else:
            kept.state, kept.detail = DiskState.MOUNTED, ""
        kept.errors = disk_probe.recorded_errors(kept.device) if kept.device else 0

    async def _measure(self, kept: _Kept) -> None:
        directory = self._tools.directory(kept.disk)
        try:
            kept.usage = await kept.usage_thread.call(lambda: disk_usage(directory), USAGE_SECONDS)
        except (TimeoutError, StillHanging):
            kept.state, kept.detail = DiskState.FAILED, f"does not answer within {USAGE_SECONDS:g} s"
        except OSError as error:
            kept.state, kept.detail = DiskState.FAILED, f"cannot be read: {error.strerror}"

    def _keep(self, disk: DiskSpec) -> _Kept:
        kept = self._kept.get(disk.cid)
        if kept is None:
            kept = self._kept[disk.cid] = _Kept(disk)
        elif kept.disk != disk:
            kept.disk, kept.tries, kept.next_try = disk, 0, 0.0
        self._wake.set()
        return kept

    def _released(self, kept: _Kept) -> bool:
        revision = self._known.released.get(kept.disk.cid)
        return revision is not None and (revision >= self._revision or kept.disk.cid not in self._named)

    def _changed(self) -> None:
        for callback in self._callbacks:
            callback()

    def _tell(self) -> None:
        """The supervisor and the heartbeat, of what is mounted."""
        mounted = self.mounted()
        if mounted != self._told:
            self._told = mounted
            self._on_mounts(mounted)
            self._changed()

    async def _remember(self, change: Callable[[KnownDisks], KnownDisks]) -> None:
        async with self._remembering:
            known = change(self._known)
            if known != self._known:
                await self._write(lambda: self._document.save(known))
                self._known = known

    def _refuse_too_many(self, disk: DiskSpec) -> None:
        if len(_without(self._known.by_command, disk.cid)) >= DISKS_MAX:
            raise DiskRefused(f"more than {DISKS_MAX} disks; remove those that are gone with remove_persistent_disk")


def using(spec: InstanceSpec | None, disk: DiskName) -> Iterable[str]:
    """Names of the containers whose volumes lie on `disk`."""
    if spec is None:
        return ()
    return tuple(
        container.name
        for container in spec.containers
        if any(mount.kind.value == "disk" and mount.source == disk for mount in container.mounts)
    )


def _without(disks: tuple[DiskSpec, ...], cid: DiskCid) -> tuple[DiskSpec, ...]:
    return tuple(disk for disk in disks if disk.cid != cid)


def _with_hint(disk: DiskSpec, hint: str) -> DiskSpec:
    if disk.device or not hint:
        return disk
    return DiskSpec(disk.name, disk.cid, hint, disk.filesystem, disk.mount_options, disk.size_mib)


def _report(kept: _Kept) -> DiskReport:
    usage = kept.usage or Usage(0.0, 0.0)
    return DiskReport(
        name=kept.disk.name,
        cid=kept.disk.cid,
        state=kept.state,
        percent=round(usage.percent, 1),
        inode_percent=round(usage.inode_percent, 1),
        size_mib=usage.size_mib,
        detail=kept.detail[:DETAIL_MAX_CHARACTERS],
        errors=kept.errors,
    )


def _explain(error: Exception) -> str:
    match error:
        case TimeoutError() | StillHanging():
            return "the device does not answer in time"
        case DiskMissing() | DiskRefused() | libmount.MountFailed() | disk_probe.NotADevice():
            return str(error)
        case subprocesses.CommandFailed() | OSError():
            return str(error)
        case _:
            return repr(error)
