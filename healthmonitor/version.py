"""The version of the installed distribution."""

from __future__ import annotations

from importlib import metadata


def _installed() -> str:
    try:
        return metadata.version("resurgam")
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "0+unknown"


VERSION = _installed()
