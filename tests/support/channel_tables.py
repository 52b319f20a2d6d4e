"""The tables of docs/channels/, made from the code.

`python -m tests.support.channel_tables` prints them.
"""

from __future__ import annotations

from healthmonitor.channels.body_template import NAMES
from healthmonitor.channels.build import TYPES
from healthmonitor.channels.options import ChannelType

HEAD = ["| option | default | value | meaning |", "|---|---|---|---|"]


def option_rows(kind: ChannelType) -> list[str]:
    """Head and rows; nothing for a channel without options."""
    rows = [f"| `{each.name}` | {_default(kind, each.name)} | {each.kind} | {each.meaning} |" for each in kind.options]
    return [*HEAD, *rows] if rows else []


def type_rows() -> list[str]:
    return [f"| [{name}]({name}.md) | {kind.summary} |" for name, kind in TYPES.items()]


def name_rows() -> list[str]:
    return [f"| `${{{name}}}` | {meaning} |" for name, meaning in NAMES.items()]


def _default(kind: ChannelType, name: str) -> str:
    [option] = [each for each in kind.options if each.name == name]
    if not option.required:
        return option.shown_default
    both = [each.name for each in kind.options if each.secret == option.secret and option.secret]
    return "one of the two is required" if both else "required"


if __name__ == "__main__":
    print("\n".join([*type_rows(), "", *name_rows()]))
    for one, its_kind in TYPES.items():
        print("\n".join([f"\n## {one}\n", *option_rows(its_kind)]))
