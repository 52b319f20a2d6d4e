"""QEMU processes as the kernel sees them: started apart from us, found again, ended for certain.

Law: that a VM's process runs is known from the kernel alone, never from a pid that was once written down. Each VM
has a running lock, a file whose flock is inherited by everything that is started for the VM (QEMU's launcher, the
daemon it forks) and ends with the last of them. Lock free: nothing of that VM executes. A zombie holds no files, so
it counts as gone; a process that cannot be killed keeps the lock, so it never counts as gone.

Does not know: records, disks, the machine protocol.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import select
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAUNCH_SECONDS = 60.0
POLL_SECONDS = 0.02
LOCK_TRIES = 10
ERROR_MAX_CHARACTERS = 2000


class LaunchFailed(Exception):
    """QEMU did not start; the text is what it said. Definite: nothing runs."""


class AlreadyRunning(Exception):
    """The running lock is held: something of this VM runs already."""


@dataclass(frozen=True, slots=True)
class RunningProcess:
    pid: int
    state: str  # of /proc: R, S, D, T, …


async def start_detached(arguments: Sequence[str], directory: Path, running_lock: Path) -> None:
    """Runs QEMU in `directory` with `-daemonize`, to outlive us; its exit status tells of a failed start."""
    lock = os.open(running_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _take(lock, running_lock)
        launcher = await asyncio.create_subprocess_exec(
            *arguments,
            "-daemonize",
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            async with asyncio.timeout(LAUNCH_SECONDS):
                _, said = await launcher.communicate()
        except (TimeoutError, asyncio.CancelledError):
            launcher.kill()
            await launcher.wait()
            raise
    finally:
        os.close(lock)
    if launcher.returncode != 0:
        text = said.decode(errors="replace").strip()[-ERROR_MAX_CHARACTERS:]
        raise LaunchFailed(text or f"ended with {launcher.returncode}")


async def _take(lock: int, path: Path) -> None:
    """Whoever merely asks `is_held` has the lock for an instant, hence the few tries."""
    for attempt in range(LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == LOCK_TRIES - 1:
                raise AlreadyRunning(str(path)) from None
            await asyncio.sleep(POLL_SECONDS)
        else:
            return


def is_held(running_lock: Path) -> bool:
    """Whether anything that was started for the VM still runs."""
    try:
        lock = os.open(running_lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def scan() -> dict[Path, list[RunningProcess]]:
    """Processes that were given a pid file on their command line, QEMU itself and its launcher, by that file."""
    found: dict[Path, list[RunningProcess]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended while we looked
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if b"-pidfile" in words[:-1]:
                pid_file = Path(os.fsdecode(words[words.index(b"-pidfile") + 1]))
                found.setdefault(pid_file, []).append(RunningProcess(int(entry.name), _state(int(entry.name))))
    return found


def find(pid_file: Path) -> list[RunningProcess]:
    return scan().get(pid_file, [])


def has_open(pid: int, files: Iterable[Path]) -> set[Path]:
    """Those of `files` that the process has open, by device and inode."""
    wanted: dict[tuple[int, int], Path] = {}
    for file in files:
        with suppress(FileNotFoundError):
            status = os.stat(file)
            wanted[status.st_dev, status.st_ino] = file
    found = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    for descriptor in descriptors:
        with suppress(FileNotFoundError, ProcessLookupError):
            status = os.stat(f"/proc/{pid}/fd/{descriptor}")
            match = wanted.get((status.st_dev, status.st_ino))
            if match is not None:
                found.add(match)
    return found


async def kill(pid_file: Path, running_lock: Path, timeout_seconds: float) -> list[int] | None:
    """SIGKILLs whatever belongs to the VM and waits until the kernel has ended it: the pids that were ended, or None
    when something still runs after the time."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    ended: list[int] = []
    while True:
        for process in find(pid_file):
            if await _kill_one(process.pid, pid_file, deadline) and process.pid not in ended:
                ended.append(process.pid)
        if not is_held(running_lock) and not find(pid_file):
            return ended
        if asyncio.get_running_loop().time() >= deadline:
            return None
        await asyncio.sleep(POLL_SECONDS)


async def _kill_one(pid: int, pid_file: Path, deadline: float) -> bool:
    """The pidfd is opened first and the command line is read after, so the signal cannot meet a reused pid."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):
            return False
        raise
    try:
        if os.fsencode(pid_file) not in _command_line(pid):
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while not poll.poll(0):
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True
    finally:
        os.close(handle)


def image_is_locked(image: Path) -> bool:
    """Whether any process holds a lock of QEMU's (or any other) on the image: open file description locks, asked for
    without taking one. A missing image is not locked."""
    try:
        descriptor = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        question = _Flock(l_type=fcntl.F_WRLCK, l_whence=os.SEEK_SET, l_start=0, l_len=0, l_pid=0)
        answer = _Flock.from_buffer_copy(fcntl.fcntl(descriptor, _F_OFD_GETLK, bytes(question)))
        return bool(answer.l_type != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


class _Flock(ctypes.Structure):
    """struct flock of 64-bit Linux."""

    _fields_ = (
        ("l_type", ctypes.c_short),
        ("l_whence", ctypes.c_short),
        ("l_start", ctypes.c_int64),
        ("l_len", ctypes.c_int64),
        ("l_pid", ctypes.c_int32),
    )


_F_OFD_GETLK = 36


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _state(pid: int) -> str:
    """The letter after the command name, which may itself contain anything but ends with the last parenthesis."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
