"""Frozen dataclasses to JSON and back, validated by pydantic, with every error at once.

Laws:
- Unknown keys are ignored (a newer peer may send them); a missing or wrong value raises `Invalid`, which lists where
  and what.
- Numbers are finite. JSON has no other, so what had one could be read (`1e999`), written as null, and never read again.
"""

from __future__ import annotations

from typing import Any, NewType, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class Invalid(ValueError):
    """What was read is not of the expected shape. The text has a line per error: `path: what was expected`."""


def to_json(value: Any) -> bytes:
    return _adapter(type(value)).dump_json(value)


def to_plain(value: Any) -> Any:
    """Only dict, list, str, int, float, bool and None."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_json(kind: type[T], payload: bytes | str) -> T:
    try:
        return cast("T", _adapter(kind).validate_json(payload))
    except ValidationError as error:
        raise Invalid(_lines(error)) from None


def from_plain(kind: type[T], value: Any) -> T:
    try:
        return cast("T", _adapter(kind).validate_python(value))
    except ValidationError as error:
        raise Invalid(_lines(error)) from None


def prepare(kind: type[Any]) -> None:
    """Builds what `kind` needs in advance, so that the first use does not wait for it."""
    _adapter(kind)


_FINITE = ConfigDict(allow_inf_nan=False)
_adapters: dict[type[Any], TypeAdapter[Any]] = {}
"""Building one costs milliseconds; there are as many as there are types, so it does not grow."""


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    adapter = _adapters.get(kind)
    if adapter is None:
        # By another name: pydantic takes no configuration for a dataclass itself, while one that is named inherits it.
        named = NewType("named", kind)  # type: ignore[valid-type, valid-newtype]
        adapter = _adapters[kind] = TypeAdapter(named, config=_FINITE)
    return adapter


def _lines(error: ValidationError) -> str:
    return "\n".join(
        f"{'.'.join(str(part) for part in item['loc']) or '(whole)'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)[:50]
    )
