"""Where the files are that come with the program and are no code: systemd's units, the pinned versions.

Law: in a source tree they lie at its top, in an installed wheel in `resurgam_shipped` beside the packages
(pyproject.toml puts them there). The latter is looked for first: beside an installed package there may be anything, a
package called systemd too.
"""

from __future__ import annotations

from pathlib import Path

import healthmonitor

PACKAGE = Path(healthmonitor.__file__).resolve().parent
_INSTALLED = PACKAGE.parent / "resurgam_shipped"


class NotShipped(Exception):
    """The installation is not whole; the text says what is missing and where it was looked for."""


def source_tree() -> Path | None:
    """The tree this code runs from; None when it runs from an installed wheel."""
    return None if _INSTALLED.is_dir() else PACKAGE.parent


def systemd_units() -> Path:
    """The directory of the unit files."""
    return _find("systemd")


def constraints() -> Path:
    """Every dependency, pinned, with hashes."""
    return _find("constraints.txt")


def _find(name: str) -> Path:
    path = (source_tree() or _INSTALLED) / name
    if not path.exists():
        raise NotShipped(f"{path} is missing; install the wheel again, or run from the source tree")
    return path
