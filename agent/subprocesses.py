"""Programs of the VM (mkfs, mount, blkid …), each with a deadline.

Law: the loop never waits for a program, and never longer than the deadline for one that hangs: it is killed, and
where not even that helps (a process stuck in the kernel), it is left behind and said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass

OUTPUT_MAX_CHARACTERS = 2000
KILL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finished:
    status: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """One line for people."""
        return " ".join((self.stderr or self.stdout).split())[:OUTPUT_MAX_CHARACTERS]


class CommandFailed(Exception):
    """The program is missing, ended with an unexpected status, or did not end in time. The text names it."""


async def run(
    argv: Sequence[str], deadline_seconds: float, ok: tuple[int, ...] | None = (0,), outlives: bool = False
) -> Finished:
    """What the program said; CommandFailed when its status is not in `ok` (None: any status will do). `outlives`: goes
    on when the agent ends meanwhile, because cutting it in the middle would do harm."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{argv[0]} cannot be run: {error.strerror}; is its package installed?") from None
    try:
        async with asyncio.timeout(deadline_seconds):
            out, err = await process.communicate()
    except TimeoutError:
        await _kill(process)
        raise CommandFailed(f"{shlex.join(argv)} did not end within {deadline_seconds:g} s") from None
    except asyncio.CancelledError:
        if not outlives:
            await _kill(process)
        raise
    finished = Finished(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
    if ok is not None and finished.status not in ok:
        raise CommandFailed(f"{shlex.join(argv)} ended with {finished.status}: {finished.said}")
    return finished


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_SECONDS):
            await process.wait()
