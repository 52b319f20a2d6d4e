"""Running the tools that build stemcells and images: bounded, with what they said in the error.

Law: what is missing is named with the command that installs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SAID_MAX_CHARACTERS = 3000

Progress = Callable[[str, float], None]
"""(what is being done, share done from 0 to 1)"""

PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "tar": "tar",
    "chroot": "coreutils",
    "apt-config": "apt",
}


class BuildFailed(Exception):
    """What was built is not there; nothing half-made was left in its place. The text says why and what to do."""


def require_tools(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool, path=_search_path()) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
        raise BuildFailed(
            f"missing: {', '.join(missing)}; install with: apt-get install --no-install-recommends {packages}"
        )
    if os.geteuid() != 0:
        raise BuildFailed("building a root file system needs root: repeat the command with sudo")


def run(
    command: Sequence[str],
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> str:
    """What it printed (standard output and error). BuildFailed when it fails or takes too long."""
    settings = {**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8", **(environment or {})}
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
        env=settings,
        text=True,
        errors="replace",
    ) as process:
        watchdog = _Watchdog(process, timeout_seconds)
        with watchdog:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if on_line is not None:
                    on_line(line.strip())
            process.wait()
    said = "".join(lines)
    if watchdog.fired:
        raise BuildFailed(
            f"{command[0]}: no end within {timeout_seconds:g} s; it said last: {said[-SAID_MAX_CHARACTERS:]}"
        )
    if process.returncode != 0:
        raise BuildFailed(f"{command[0]} failed ({process.returncode}): {said[-SAID_MAX_CHARACTERS:].strip()}")
    return said


class _Watchdog:
    """Kills the process when its time is over, so that reading its output ends too."""

    def __init__(self, process: subprocess.Popen[str], timeout_seconds: float) -> None:
        self.fired = False
        self._process = process
        self._timer = threading.Timer(timeout_seconds, self._fire)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _fire(self) -> None:
        self.fired = True
        self._process.kill()


def _search_path() -> str:
    """mke2fs and chroot are in directories that not every user's PATH has."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
