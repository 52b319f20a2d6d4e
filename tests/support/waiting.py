"""Waiting for a predicate, with a deadline: the only way a test waits."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar, overload

T = TypeVar("T")


@overload
async def until(
    predicate: Callable[[], Awaitable[T | None]],
    seconds: float = ...,
    what: str | Callable[[], str] = ...,
    every_seconds: float = ...,
) -> T: ...


@overload
async def until(
    predicate: Callable[[], T | Literal[False] | None],
    seconds: float = ...,
    what: str | Callable[[], str] = ...,
    every_seconds: float = ...,
) -> T: ...


async def until(
    predicate: Callable[[], object],
    seconds: float = 15.0,
    what: str | Callable[[], str] = "",
    every_seconds: float = 0.02,
) -> object:
    """The first true value of `predicate` (sync or async); AssertionError with `what` and the last value after
    `seconds`. What is to be read only then, as a log, is given as a function."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    value: object = None
    while True:
        result = predicate()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if loop.time() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {seconds:g} s: {said or predicate!r}; last value {value!r}")
        await asyncio.sleep(every_seconds)
