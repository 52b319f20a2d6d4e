"""One call at a time that may never return, such as asking a dead disk for its free space.

Law: a thread in such a call cannot be ended, so there is at most one of them; while it hangs, further calls fail at
once instead of piling up. The thread is a daemon: it never keeps the agent from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class StillHanging(Exception):
    """The call before this one has not returned yet."""


class LoneThread:
    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = False

    async def call(self, function: Callable[[], T], deadline_seconds: float) -> T:
        """What `function` returns or raises; TimeoutError after the deadline, StillHanging."""
        if self._busy:
            raise StillHanging(f"{self._name}: the call before this one has not returned")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:
                # the edge of a thread: whatever it was belongs to the caller
                self._busy = False
                _deliver(loop, _set_exception, future, error)
            else:
                self._busy = False
                _deliver(loop, _set_result, future, result)

        self._busy = True
        threading.Thread(target=work, name=self._name, daemon=True).start()
        async with asyncio.timeout(deadline_seconds):
            return await future


def _deliver(loop: asyncio.AbstractEventLoop, setter: Callable[..., None], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(setter, *arguments)


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
