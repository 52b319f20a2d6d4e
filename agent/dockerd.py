"""Starts the Docker daemon, and kills and starts one that hangs: through systemd where it runs, directly elsewhere.

Laws: only the daemon's own process is ever killed, by SIGKILL, which also ends a stopped one; containers live on
(live-restore, and their shims are processes of their own). Starting one that runs already is fine.

Does not know: when (agent/core/engine_watch.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from agent import subprocesses

log = structlog.get_logger(__name__)

SYSTEMD_RUNS = Path("/run/systemd/system")
SYSTEMCTL_SECONDS = 60.0
GONE_SECONDS = 10.0
POLL_SECONDS = 0.05


class DaemonError(Exception):
    """The daemon could not be started or ended; the text says what was tried. Try again later."""


class DockerDaemon(Protocol):
    async def start(self) -> None:
        """Returns when it was told to start, not when it answers. DaemonError."""
        ...

    async def restart_hard(self) -> None:
        """Ends it with SIGKILL, whatever it does, and starts it. DaemonError."""
        ...


class ReloadableDaemon(DockerDaemon, Protocol):
    async def reload(self) -> None:
        """It reads its configuration again; containers and the daemon go on. DaemonError."""
        ...


def docker_daemon(direct: DirectDaemon, unit: str = "docker.service") -> ReloadableDaemon:
    """The right one for this machine."""
    return SystemdDaemon(unit) if SYSTEMD_RUNS.is_dir() else direct


class SystemdDaemon:
    def __init__(self, unit: str = "docker.service") -> None:
        self._unit = unit

    async def start(self) -> None:
        # A unit that failed too often is refused by systemd; our own back-off stands above that limit.
        await self._systemctl("reset-failed", self._unit, ok=None)
        await self._systemctl("start", "--no-block", self._unit)

    async def restart_hard(self) -> None:
        # `systemctl restart` would wait for a hung daemon's stop time-out first.
        await self._systemctl("kill", "--kill-who=main", "--signal=SIGKILL", self._unit, ok=None)
        await self.start()

    async def reload(self) -> None:
        # One that does not run yet reads it when it starts.
        await self._systemctl("kill", "--kill-who=main", "--signal=SIGHUP", self._unit, ok=None)

    async def _systemctl(self, *arguments: str, ok: tuple[int, ...] | None = (0,)) -> None:
        try:
            await subprocesses.run(("systemctl", *arguments), SYSTEMCTL_SECONDS, ok=ok)
        except subprocesses.CommandFailed as error:
            raise DaemonError(str(error)) from None


class DirectDaemon:
    """`command` must name the pid file too (`--pidfile`). The daemon is detached: it outlives the agent."""

    def __init__(
        self,
        pid_file: Path = Path("/var/run/docker.pid"),
        log_file: Path = Path("/var/log/dockerd.log"),
        command: Sequence[str] = ("dockerd", "--live-restore"),
        containerd_pid_file: Path = Path("/var/run/docker/containerd/containerd.pid"),
    ) -> None:
        self._pid_file = pid_file
        self._containerd_pid_file = containerd_pid_file
        self._log_file = log_file
        self._command = tuple(command)
        self._child: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        if self._running_pid() is not None:
            return
        # dockerd refuses to start when its pid file names a process that exists, whatever process that is.
        self._pid_file.unlink(missing_ok=True)
        # Its containerd dies with it, and it takes one that nobody has reaped yet for one that runs: it then waits
        # 15 s for an answer, and gives up.
        if self._containerd_pid() is None:
            self._containerd_pid_file.unlink(missing_ok=True)
        self._child = self._spawn()
        log.info("dockerd.started", pid=self._child.pid)

    async def restart_hard(self) -> None:
        # Where dockerd hangs because its containerd does, only a new one of both helps; the shims stay.
        for find in (self._running_pid, self._containerd_pid):
            pid = find()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await self._gone(pid, find)
        await self.start()

    async def reload(self) -> None:
        pid = self._running_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)

    def pid(self) -> int | None:
        """Of the daemon that runs, whoever started it."""
        return self._running_pid()

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            with self._log_file.open("ab") as sink:
                return subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
                )
        except OSError as error:
            raise DaemonError(f"{self._command[0]} cannot be started: {error.strerror}") from None

    async def _gone(self, pid: int, find: Callable[[], int | None]) -> None:
        try:
            async with asyncio.timeout(GONE_SECONDS):
                while find() == pid:  # noqa: ASYNC110 - the end of a process that is not our child has no event
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise DaemonError(f"process {pid} is still there {GONE_SECONDS:g} s after SIGKILL") from None

    def _running_pid(self) -> int | None:
        if self._child is not None and self._child.poll() is None:
            return self._child.pid
        return _pid_of(self._pid_file, os.path.basename(self._command[0]))

    def _containerd_pid(self) -> int | None:
        return _pid_of(self._containerd_pid_file, "containerd")


def _pid_of(pid_file: Path, program: str) -> int | None:
    """The process that the file names, when it exists, is no zombie (those have no command line), and is that program
    rather than a reuse of its number."""
    try:
        pid = int(pid_file.read_text().strip())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.path.basename(arguments[0]) == program.encode() else None
