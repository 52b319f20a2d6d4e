"""How two container specifications differ, in words for people.

Law: a value that may be a secret is never shown, only that it changed. Which values those are is a guess by name
and shape, and it guesses on the side of hiding.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from protocol.spec import ContainerSpec

_SHOWN_MAX = 60
_SECRET = re.compile(
    r"pass|pwd|secret|token|credential|auth|private|cookie|salt|dsn|signature|api_?key|access_?key|(^|[_-])key($|[_=-])",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^/\s@]+@")
_LONG_RANDOM = re.compile(r"[A-Za-z0-9+/=_-]{32,}")


def container_differences(before: ContainerSpec, after: ContainerSpec) -> tuple[str, ...]:
    """One line per field that changed, `image: redis:7 → redis:7.2`; per entry for environment, labels and the like."""
    lines: list[str] = []
    for field in dataclasses.fields(ContainerSpec):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        name = _key(field.name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines.extend(mapping_differences(name, old, new))
        elif field.name == "image":
            lines.append(f"image: {old} → {new}")  # a digest is long and random, and no secret
        else:
            lines.append(f"{name}: {shown(name, old)} → {shown(name, new)}")
    return tuple(lines)


def mapping_differences(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    lines: list[str] = []
    for key in sorted({*before, *after}):
        if key not in after:
            lines.append(f"{name}: {key} removed")
        elif key not in before:
            lines.append(f"{name}: {key} added ({shown(key, after[key])})")
        elif before[key] != after[key]:
            lines.append(f"{name}: {key}: {shown(key, before[key])} → {shown(key, after[key])}")
    return tuple(lines)


def shown(name: str, value: Any) -> str:
    """`value` in a few words, or that it is hidden."""
    text = _text(value)
    # A digest or a path is long too; what gives a random string away is that it stands where no image or path does.
    secret = _SECRET.search(name) or _USER_IN_URL.search(text) or _SECRET.search(text)
    if secret or any("/" not in part and ":" not in part for part in _LONG_RANDOM.findall(text)):
        return "(hidden)"
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 1] + "…"


def _key(field: str) -> str:
    """The manifest's word for a field: `mem_limit_bytes` is `mem_limit`."""
    if field == "mounts":
        return "volumes"
    for unit in ("_seconds", "_bytes", "_microseconds"):
        field = field.removesuffix(unit)
    return field


def _text(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, str):
        return plain or "none"
    if plain is None or plain == []:
        return "none"
    if isinstance(plain, list) and all(isinstance(part, str) for part in plain):
        return " ".join(plain)
    return json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
        return {name: _plain(inner) for name, inner in changed.items() if inner != defaults[name]}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value
