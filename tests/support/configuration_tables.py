"""The tables of docs/configuration.md, made from the code.

`python -m tests.support.configuration_tables` prints them.
"""

from __future__ import annotations

from healthmonitor.core.configuration_keys import PRESETS, SECTIONS, Key, Kind, Section
from healthmonitor.core.policy import Policy
from healthmonitor.core.units import MIB, duration_text, size_text


def section_rows(section: Section) -> list[str]:
    policy = getattr(Policy(), section.policy)
    return [
        f"| `{section.name}.{key.name}` | {_value(key, getattr(policy, key.field))} | {_kind(key)} | {key.meaning} |"
        for key in section.keys
    ]


def preset_rows() -> list[str]:
    rows = []
    for section in SECTIONS:
        for key in section.keys:
            values = {name: preset.get(section.name, {}).get(key.name) for name, preset in PRESETS.items()}
            if any(value is not None for value in values.values()):
                default = getattr(getattr(Policy(), section.policy), key.field)
                cells = (_value(key, default if value is None else value) for value in values.values())
                rows.append(f"| {section.name}.{key.name} | {' | '.join(cells)} |")
    return rows


def _value(key: Key, value: float) -> str:
    match key.kind:
        case Kind.DURATION:
            return duration_text(value)
        case Kind.BOOLEAN:
            return "true" if value else "false"
        case Kind.COUNT:
            return str(int(value))
        case Kind.SHARE:
            return f"{value:.0%}"
        case Kind.SIZE:
            return size_text(int(value) // MIB)


def _kind(key: Key) -> str:
    match key.kind:
        case Kind.DURATION:
            return f"duration, {duration_text(key.minimum)} to {duration_text(key.maximum)}"
        case Kind.BOOLEAN:
            return "true or false"
        case Kind.COUNT:
            return f"{int(key.minimum)} to {int(key.maximum)}"
        case Kind.SHARE:
            return "share, more than 0 to 100%"
        case Kind.SIZE:
            return f"size, {size_text(int(key.minimum))} to {size_text(int(key.maximum))}"


if __name__ == "__main__":
    print("\n".join(preset_rows()))
    for one in SECTIONS:
        print(f"\n## {one.name}\n")
        print("\n".join(section_rows(one)))
