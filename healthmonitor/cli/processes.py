"""Background processes that outlive the command that started them, each known by a pid file.

Law: a pid alone proves nothing, because pids are used again. The pid file also holds when that process started (the
kernel's ticks since boot) and the boot it belongs to; a process is ours only when all three agree. Nothing else is
ever signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Background:
    """A process of ours that runs, or ran."""

    name: str
    pid_file: Path
    log_file: Path

    def pid(self) -> int | None:
        """The pid while it runs; None when it does not, or when the pid now belongs to somebody else."""
        try:
            noted = json.loads(self.pid_file.read_text(encoding="utf-8"))
            pid, ticks, boot = int(noted["pid"]), int(noted["start_ticks"]), str(noted["boot_id"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if boot != _boot_id() or start_ticks(pid) != ticks:
            return None
        return pid

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Starts it in a session of its own, its output appended to the log. Returns at once."""
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            noted_size = log.tell()
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/",
                env=dict(environment) if environment is not None else None,
            )
        ticks = start_ticks(process.pid)
        noted = {"pid": process.pid, "start_ticks": ticks, "boot_id": _boot_id(), "log_from": noted_size}
        temporary = self.pid_file.with_suffix(".new")
        temporary.write_text(json.dumps(noted) + "\n", encoding="utf-8")
        os.replace(temporary, self.pid_file)
        process.returncode = 0  # it is not our child to wait for; init reaps it after this command has ended
        return process.pid

    def end(self, term_seconds: float, kill_seconds: float = 5.0) -> bool:
        """SIGTERM, then SIGKILL after `term_seconds`. True when it is gone, False when even that did not end it."""
        pid = self.pid()
        if pid is not None:
            for number, patience in ((signal.SIGTERM, term_seconds), (signal.SIGKILL, kill_seconds)):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
                if wait_until(lambda: self.pid() is None, patience):
                    break
            if self.pid() is not None:
                return False
        self.pid_file.unlink(missing_ok=True)
        return True

    def last_lines(self, count: int = 15) -> tuple[str, ...]:
        """The end of what it logged since its last start."""
        try:
            began = int(json.loads(self.pid_file.read_text(encoding="utf-8")).get("log_from", 0))
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(began, size - 16384))
                return tuple(file.read().decode("utf-8", "replace").splitlines()[-count:])
        except FileNotFoundError:
            return ()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it does not run (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in ("Z", "X"):
        _reap(pid)
        return None
    return int(fields[19])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Looks every POLL_SECONDS until the condition holds or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _boot_id() -> str:
    return BOOT_ID.read_text(encoding="ascii").strip()


def _reap(pid: int) -> None:
    """When this very command started it, its end has to be taken note of; otherwise init does."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
