"""Arguments of a request, taken apart: each is of the expected kind, or the sender is told what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from protocol import codec
from protocol.envelope import Request
from protocol.ids import ContainerName

T = TypeVar("T")

NAMES_MAX = 1000


class BadArguments(Exception):
    """The sender's fault; the text says which argument and what was expected."""


def text(request: Request, position: int, what: str) -> str:
    value = _at_least(request, position + 1)[position]
    if not isinstance(value, str) or not value or len(value) > 512:
        raise BadArguments(f"argument {position + 1}: expected {what}")
    return value


def number(request: Request, position: int, default: int, lowest: int, highest: int) -> int:
    if len(request.arguments) <= position or request.arguments[position] is None:
        return default
    value = request.arguments[position]
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise BadArguments(f"argument {position + 1}: expected a whole number from {lowest} to {highest}")
    return value


def options(request: Request, position: int) -> Mapping[str, Any]:
    """An object, {} when it is absent or null."""
    value = request.arguments[position] if len(request.arguments) > position else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadArguments(f"argument {position + 1}: expected an object")
    return value


def seconds(values: Mapping[str, Any], key: str, default: float, highest: float) -> float:
    value = values.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= highest:
        raise BadArguments(f"{key}: expected a number of seconds from 0 to {highest:g}")
    return float(value)


def names(request: Request) -> tuple[ContainerName, ...]:
    """Container names, as one array or one by one; none means all."""
    values = request.arguments
    if len(values) == 1 and isinstance(values[0], list):
        values = tuple(values[0])
    if len(values) > NAMES_MAX or not all(isinstance(value, str) and value for value in values):
        raise BadArguments(f"expected at most {NAMES_MAX} container names")
    return tuple(dict.fromkeys(ContainerName(value) for value in values))


def value(request: Request, position: int, kind: type[T]) -> T:
    """The argument as a `kind`, validated."""
    plain = _at_least(request, position + 1)[position]
    try:
        return codec.from_plain(kind, plain)
    except codec.Invalid as error:
        lines = "; ".join(str(error).splitlines())
        raise BadArguments(f"argument {position + 1}: {lines}") from None


def _at_least(request: Request, count: int) -> tuple[Any, ...]:
    if len(request.arguments) < count:
        raise BadArguments(f"Not enough arguments, expected {count}, got {len(request.arguments)}")
    return request.arguments
