"""Commands about copying one disk of this VM to another: `disk_use`, `copy_disk`, `release_copy`.

Law: the same copy asked for again while it runs is that copy, not a second one; so a
monitor that takes over follows it.

Does not know: how a copy is made (agent/disk_copy.py).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from agent import arguments
from agent.arguments import BadArguments
from agent.core.desired import Refused
from agent.core.disk_safety import disk_fault
from agent.tasks import Tasks
from protocol.envelope import Request
from protocol.ids import DiskCid, InstanceId
from protocol.spec import DiskSpec


class Copies(Protocol):
    def progress(self) -> dict[str, Any] | None:
        """Of the copy that runs; None when none does."""
        ...

    async def use(self, cid: DiskCid) -> dict[str, Any]:
        """Bytes and inodes of a mounted disk; {} when it is not mounted."""
        ...

    async def copy(self, source: DiskSpec, target: DiskSpec, instance: InstanceId) -> dict[str, Any]: ...

    async def release(self, *cids: DiskCid) -> None: ...


class Begin(Protocol):
    def __call__(
        self, method: str, work: Coroutine[Any, Any, Any], cancellable: bool, progress: Callable[[], Any]
    ) -> dict[str, Any]: ...


class CopyMethods:
    def __init__(self, copies: Copies, tasks: Tasks, instance: Callable[[], InstanceId | None], begin: Begin) -> None:
        self._copies = copies
        self._tasks = tasks
        self._instance = instance
        self._begin = begin
        self._running: tuple[DiskCid, DiskCid, str] | None = None  # from, to, task

    async def disk_use(self, request: Request) -> Any:
        return await self._copies.use(DiskCid(arguments.text(request, 0, "a disk's cid")))

    async def copy_disk(self, request: Request) -> Any:
        source, target = _disk(request, 0), _disk(request, 1)
        if source.cid == target.cid:
            raise BadArguments("argument 2: a disk is not copied to itself")
        instance = self._instance()
        if instance is None:
            raise Refused("this VM fills no instance yet; it owns no disk")
        if self._running is not None and self._running[:2] == (source.cid, target.cid):
            answer = self._tasks.running(self._running[2])
            if answer is not None:
                return answer
        work = self._copies.copy(source, target, instance)
        answer = self._begin("copy_disk", work, cancellable=True, progress=self._copies.progress)
        self._running = (source.cid, target.cid, answer["agent_task_id"])
        return answer

    async def release_copy(self, request: Request) -> Any:
        """Ends the copy between these, if it runs, and lets go of both."""
        source = DiskCid(arguments.text(request, 0, "the cid that is copied from"))
        target = DiskCid(arguments.text(request, 1, "the cid that is copied to"))
        if self._running is not None and self._running[:2] == (source, target):
            if self._tasks.running(self._running[2]) is not None:
                self._tasks.cancel(self._running[2])
            await self._tasks.ended(self._running[2])
        await self._copies.release(source, target)
        return "released"


def _disk(request: Request, position: int) -> DiskSpec:
    disk = arguments.value(request, position, DiskSpec)
    fault = disk_fault(disk)
    if fault is not None:
        raise BadArguments(f"argument {position + 1}: {fault}")
    return disk
