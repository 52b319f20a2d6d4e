"""Waiting for a predicate, with a deadline: the only way a test waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    predicate: Callable[[], T | Awaitable[T]], seconds: float = 15.0, what: str = "", every_seconds: float = 0.02
) -> T:
    """The first true value of `predicate` (sync or async); AssertionError with `what` and the last value after
    `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    value: T | None = None
    while True:
        result = predicate()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or predicate!r}; last value {value!r}")
        await asyncio.sleep(every_seconds)
