"""Blocking calls that may hang, each in a thread of its own, with a deadline and a bound on how many there are.

Law: the caller never waits beyond its deadline. A thread that hangs cannot be ended, so it keeps its place until it
returns, and when all places are taken further calls fail at once or when their deadline is over: threads never pile
up. They are daemons: none keeps the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NotInTime(Exception):
    """The call did not return in time, or found no free thread in that time. Its outcome is unknown."""


class DeadlineThreads:
    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._places = asyncio.Semaphore(threads_max)

    async def call(self, deadline_seconds: float, function: Callable[[], T]) -> T:
        """What `function` returns or raises; NotInTime."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._places.acquire()
                self._start(loop, future, function)
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled() and future.exception() is not None:
                raise  # the function's own
            raise NotInTime(f"{self._name}: no answer within {deadline_seconds:g} s") from None

    def _start(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], function: Callable[[], T]) -> None:
        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # the edge of a thread: whatever it was belongs to the caller
                deliver(loop, self._finish, future, None, error)
            else:
                deliver(loop, self._finish, future, result, None)

        threading.Thread(target=work, name=self._name, daemon=True).start()

    def _finish(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._places.release()
        if future.done():
            return  # nobody waits any more
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def deliver(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    """From any thread; nothing happens when the loop was closed meanwhile."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)
