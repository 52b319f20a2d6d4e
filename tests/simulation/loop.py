"""An asyncio event loop whose time is virtual and whose tasks belong to processes that can be killed and frozen.

Laws:
- Nothing waits: when nothing is ready, time jumps to the next timer. Nothing is left to the machine: what runs
  next follows from what was scheduled, sets of tasks iterate in the order of creation, and garbage is collected at
  fixed virtual times. The same seed gives the same steps (with PYTHONHASHSEED fixed, because sets of strings differ).
- A killed process never takes another step: no `finally`, no `except CancelledError`, as with SIGKILL. A frozen one
  takes its steps when it is thawed, all at once, as with SIGSTOP.
- Real I/O raises `RealIo`; nothing ready and no timer raises `Deadlock`; too many steps or too much real time raises
  `OutOfBudget`. Work for threads (`asyncio.to_thread`) runs at once, in the loop.

Does not know: what the processes are.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import heapq
import sys
import time
from asyncio import events
from collections.abc import Callable, Coroutine, Iterator
from enum import Enum
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

COLLECT_EVERY_SECONDS = 300.0
"""Of virtual time: garbage is collected then and at no other time."""
BUDGET_CHECK_STEPS = 4096


class Deadlock(Exception):
    """Every task waits for something that nothing will ever do. The text names the tasks."""


class RealIo(Exception):
    """Simulated code asked for a socket, a pipe, a signal or a thread."""


class OutOfBudget(Exception):
    """More steps or more real time than the run may take: probably something spins."""


class Condition(Enum):
    RUNNING = "running"
    FROZEN = "frozen"
    KILLED = "killed"


class Process:
    """One operating system process: every task and timer that is started in it, and in its tasks, is its own."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.condition = Condition.RUNNING
        self.steps = 0
        self.thawed_at = float("-inf")
        self._loop = loop
        self._kill_at_step: int | None = None
        self._waiting: list[events.Handle] = []
        self._tasks: list[_Task] = []
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)
        self._on_end: list[Callable[[str], None]] = []

    def start(self, main: Coroutine[Any, Any, None], on_end: Callable[[str], None] | None = None) -> None:
        """Runs `main` in this process. `on_end(text)` when it returns ("") or raises (what)."""
        if on_end is not None:
            self._on_end.append(on_end)
        task = self._context.run(self._loop.create_task, main, name=self.name)
        task.add_done_callback(self._ended, context=contextvars.Context())

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` as if the process called it: tasks and timers that it starts are the process's."""
        return self._context.run(function, *arguments)

    @property
    def context(self) -> contextvars.Context:
        return self._context

    @property
    def alive(self) -> bool:
        return self.condition is not Condition.KILLED

    def kill(self) -> None:
        self.condition = Condition.KILLED
        self._waiting.clear()
        self._on_end.clear()
        self._loop.bury(self._tasks)
        self._tasks = []

    def kill_after(self, steps: int) -> None:
        """Kills it at the await that it reaches after that many more steps."""
        self._kill_at_step = self.steps + steps

    def freeze(self) -> None:
        if self.condition is Condition.RUNNING:
            self.condition = Condition.FROZEN

    def thaw(self) -> None:
        if self.condition is Condition.FROZEN:
            self.condition = Condition.RUNNING
            self.thawed_at = self._loop.time()
            waiting, self._waiting = self._waiting, []
            self._loop.requeue(waiting)

    def may_run(self, handle: events.Handle) -> bool:
        """Asked by the loop for each step. Keeps the step for later when the process is frozen."""
        match self.condition:
            case Condition.RUNNING:
                self.steps += 1
                if self._kill_at_step is not None and self.steps > self._kill_at_step:
                    self._loop.call_soon(self._loop.on_kill, self, context=contextvars.Context())
                    self._kill_at_step = None
                    self.kill()
                    return False
                return True
            case Condition.FROZEN:
                self._waiting.append(handle)
                return False
            case Condition.KILLED:
                return False

    def coroutines(self) -> list[object]:
        """Of its tasks that are not done."""
        return [task.get_coro() for task in self._tasks if not task.done()]

    def adopt(self, task: _Task) -> None:
        self._tasks.append(task)
        if len(self._tasks) > 256:
            self._tasks = [kept for kept in self._tasks if not kept.done()]

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self.alive:
            return
        if task.cancelled():
            text = "cancelled"
        else:
            error = task.exception()
            text = "" if error is None else _describe(error)
        for callback in self._on_end:
            callback(text)


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_process() -> Process | None:
    """The process whose step runs now; None in the world around them."""
    return _process.get()


class SimulatedLoop(asyncio.BaseEventLoop):
    """`on_kill(process)` is called when `Process.kill_after` struck."""

    def __init__(self, max_steps: int = 50_000_000, max_real_seconds: float = 600.0) -> None:
        super().__init__()
        self._now = 1000.0
        self._clock_resolution = 1e-9
        self._selector = _Selector()
        self.steps = 0
        self.on_kill: Callable[[Process], None] = lambda process: None
        self.failures: list[str] = []
        self._max_steps = max_steps
        self._real_deadline = time.monotonic() + max_real_seconds
        self._next_collection = self._now + COLLECT_EVERY_SECONDS
        self._serial = 0
        self._graveyard: list[_Task] = []
        self._timers: list[tuple[float, int, _TimerHandle]] = []
        self._timer_serial = 0
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_failure)

    def time(self) -> float:
        return self._now

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Runs `main` to its end, with the collector off but for fixed virtual times."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return self.run_until_complete(main)
        finally:
            if was_enabled:
                gc.enable()

    def forget(self) -> None:
        """Closes the loop and lets go of every task that never ended; what their clean-up says is nobody's business."""
        with _quiet():
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._graveyard.clear()
            self._ready.clear()  # type: ignore[attr-defined]
            self._timers.clear()
            self.close()
            gc.collect()

    def bury(self, tasks: list[_Task]) -> None:
        """Keeps the tasks of a killed process from being collected: collecting would run their clean-up."""
        for task in tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self._graveyard.append(task)

    def requeue(self, handles: list[events.Handle]) -> None:
        self._ready.extend(handle for handle in handles if not handle.cancelled())  # type: ignore[attr-defined]

    # What asyncio calls.

    def _call_soon(self, callback: Any, args: Any, context: Any) -> events.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> events.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        handle = _TimerHandle(when, callback, args, self, context)
        self._timer_serial += 1  # apart from that of tasks: sets of those are quick only while their numbers are dense
        heapq.heappush(self._timers, (when, self._timer_serial, handle))
        return handle

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _run_once(self) -> None:
        """As asyncio's, without a selector: what is ready now, in order; when nothing is, time goes on."""
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        self.steps += 1
        if self.steps % BUDGET_CHECK_STEPS == 0:
            self._check_budget()
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                waiting = "; ".join(self._waiting_tasks())
                raise Deadlock(f"nothing is ready and no timer is set; waiting: {waiting}")
            self._advance_to(timers[0][0])
        now = self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> events.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # handed to whoever awaits it, as a thread pool does
            future.set_exception(error)
        return future

    def create_future(self) -> asyncio.Future[Any]:
        self._serial += 1
        future = _Future(loop=self)
        future.serial = self._serial
        return future

    def _write_to_self(self) -> None:
        """Wakes a selector that sleeps; ours never does."""

    def _process_events(self, event_list: Any) -> None:
        """There is no I/O."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RealIo("simulated code asked the event loop for real I/O")

    add_reader = remove_reader = add_writer = remove_writer = _refuse  # type: ignore[assignment]
    add_signal_handler = _refuse  # type: ignore[assignment]
    _make_socket_transport = _make_ssl_transport = _make_datagram_transport = _refuse
    _make_read_pipe_transport = _make_write_pipe_transport = _make_subprocess_transport = _refuse
    sock_recv = sock_recv_into = sock_sendall = sock_connect = sock_accept = _refuse
    getaddrinfo = getnameinfo = _refuse

    # Own.

    def _advance_to(self, when: float) -> None:
        self._now = max(self._now, when)
        if self._now >= self._next_collection:
            self._next_collection = self._now + COLLECT_EVERY_SECONDS
            with _quiet():
                gc.collect()

    def _check_budget(self) -> None:
        if self.steps > self._max_steps:
            raise OutOfBudget(f"more than {self._max_steps} steps at virtual second {self._now:.3f}")
        if time.monotonic() > self._real_deadline:
            raise OutOfBudget(f"out of real time at virtual second {self._now:.3f} after {self.steps} steps")

    def _make_task(self, loop: Any, coro: Any, **kwargs: Any) -> _Task:
        self._serial += 1
        task = _Task(coro, self._serial, loop=loop, **kwargs)
        process = _process.get()
        if process is not None:
            process.adopt(task)
        return task

    def _waiting_tasks(self) -> list[str]:
        tasks = sorted((task for task in asyncio.all_tasks(self) if isinstance(task, _Task)), key=lambda t: t.serial)
        return [f"{task.get_name()} in {task.get_coro().__qualname__}" for task in tasks][:20]  # type: ignore[union-attr]

    def _note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{self._now:.3f} {context.get('message')}: {_describe(error)}")


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """Hashes by order of creation, so that a set of tasks has an order that does not hang on addresses."""

    def __init__(self, coro: Any, serial: int, **kwargs: Any) -> None:
        self.serial = serial  # before asyncio takes it into its set of all tasks: there all would hash alike
        super().__init__(coro, **kwargs)

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Future(asyncio.Future):  # type: ignore[type-arg]
    """Hashes by order of creation too."""

    serial = 0

    def __hash__(self) -> int:
        return self.serial

    def __eq__(self, other: object) -> bool:
        return self is other


class _Handle(events.Handle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)  # type: ignore[attr-defined]
        if process is None or process.may_run(self):
            super()._run()


class _TimerHandle(events.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)  # type: ignore[attr-defined]
        if process is None or process.may_run(self):
            super()._run()


class _Selector:
    """BaseEventLoop closes one."""

    def close(self) -> None:
        """Nothing to close."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what is said while the coroutines of killed processes are thrown away."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def _describe(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({'; '.join(_describe(inner) for inner in error.exceptions)})"
    return f"{type(error).__name__}: {error}"
