"""Long requests, as BOSH's agent has them: the caller gets an id at once and asks for the outcome.

Laws: running ones are bounded and so are finished ones; a finished task is kept until newer ones push it out, so that
an answer lost on the bus can be asked for again. Tasks do not outlive the agent: a caller that hears "could not be
found" asks for the thing itself again, which is why everything that runs here may be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

log = structlog.get_logger(__name__)

RUNNING_MAX = 16
FINISHED_MAX = 128
WAIT_MAX_SECONDS = 60.0


class TaskFault(Exception):
    """The answer to a question about a task: it failed, is unknown, or cannot be cancelled."""


@dataclass(slots=True)
class _Task:
    method: str
    cancellable: bool
    running: asyncio.Task[Any]
    progress: Callable[[], Any]


class Tasks:
    def __init__(self, new_id: Callable[[], str], explain: Callable[[Exception], str]) -> None:
        """`explain`: the message that a caller gets for an exception."""
        self._new_id = new_id
        self._explain = explain
        self._tasks: dict[str, _Task] = {}

    def start(
        self,
        group: asyncio.TaskGroup,
        method: str,
        work: Coroutine[Any, Any, Any],
        cancellable: bool = False,
        progress: Callable[[], Any] = lambda: None,
    ) -> dict[str, Any]:
        """BOSH's answer for a task that was begun. TaskFault when too many run. `progress`: how far it is, for who asks
        while it runs; None says nothing."""
        running = [task for task in self._tasks.values() if not task.running.done()]
        if len(running) >= RUNNING_MAX:
            work.close()
            raise TaskFault(f"{RUNNING_MAX} tasks run already; ask again later")
        self._drop_oldest()
        task_id = self._new_id()
        self._tasks[task_id] = _Task(method, cancellable, group.create_task(self._guard(method, work)), progress)
        return _running(task_id, None)

    def running(self, task_id: str) -> dict[str, Any] | None:
        """The answer for a task that still runs; None when it does not."""
        task = self._tasks.get(task_id)
        return None if task is None or task.running.done() else _running(task_id, task.progress())

    async def outcome(self, task_id: str, wait_seconds: float = 0.0) -> Any:
        """The bare value when done, BOSH's running answer while not; TaskFault when it failed or is unknown."""
        task = self._get(task_id)
        if not task.running.done() and wait_seconds > 0:
            await asyncio.wait({task.running}, timeout=min(wait_seconds, WAIT_MAX_SECONDS))
        if not task.running.done():
            return _running(task_id, task.progress())
        if task.running.cancelled():
            raise TaskFault(f"Task {task_id} result: Task was cancelled")
        outcome = task.running.result()
        if isinstance(outcome, _Failed):
            raise TaskFault(f"Task {task_id} result: {outcome.message}")
        return outcome

    async def ended(self, task_id: str) -> None:
        """Once it is over, however; at once when it is not known."""
        task = self._tasks.get(task_id)
        if task is not None:
            await asyncio.wait({task.running})

    def cancel(self, task_id: str) -> str:
        task = self._get(task_id)
        if not task.cancellable:
            raise TaskFault(f"cancelling {task.method} is not supported")
        task.running.cancel()
        return "canceled"

    def _get(self, task_id: str) -> _Task:
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskFault(f"Task with id {task_id[:80]} could not be found")
        return task

    def _drop_oldest(self) -> None:
        finished = [task_id for task_id, task in self._tasks.items() if task.running.done()]
        for task_id in finished[: max(0, len(finished) - FINISHED_MAX + 1)]:
            del self._tasks[task_id]

    async def _guard(self, method: str, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await work
        except Exception as error:
            # the edge of the task: its failure belongs to whoever asks for the outcome, and must not end the agent
            log.warning("task.failed", method=method, error=repr(error))
            return _Failed(self._explain(error))


@dataclass(frozen=True, slots=True)
class _Failed:
    message: str


def _running(task_id: str, progress: Any) -> dict[str, Any]:
    answer = {"agent_task_id": task_id, "state": "running"}
    return answer if progress is None else {**answer, "progress": progress}
