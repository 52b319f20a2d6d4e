"""ARCHITECTURE.md's table of files names what is there, and all of it."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("agent", "healthmonitor", "protocol")
WHOLE = ("healthmonitor/cli/",)
"""Folders that the table names as one."""


def named() -> list[str]:
    """Patterns of modules. A name without a folder is in the folder of the one before it in its row."""
    patterns = []
    for row in re.findall(r"^\| (`.*?) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE):
        folder = ""
        for name in (part.strip() for quoted in re.findall(r"`([^`]+)`", row) for part in quoted.split(",")):
            if name.split("/")[0] in PACKAGES:
                folder = name.rpartition("/")[0]
                patterns.append(name)
            else:
                patterns.append(f"{folder}/{name}")
    return patterns


def modules() -> list[str]:
    found = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted(str(path.with_suffix("")) for path in found if path.name != "__init__.py")


def test_every_module_is_in_the_table() -> None:
    """A new module comes with its idea, in a row of the table."""
    patterns = named()
    missing = [
        module
        for module in modules()
        if not module.startswith(WHOLE) and not any(fnmatch(module, pattern) for pattern in patterns)
    ]
    assert missing == []


def test_every_row_names_something() -> None:
    """A module that is gone, or was renamed, leaves no row behind."""
    there = [*modules(), *(folder.rstrip("/") for folder in WHOLE)]
    assert [pattern for pattern in named() if not any(fnmatch(module, pattern) for module in there)] == []
