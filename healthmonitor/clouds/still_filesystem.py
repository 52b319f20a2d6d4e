"""A file system that stands still for a moment: what was written is on its device, and nothing more is written.

Laws:
- It goes on, whatever happens: when the work is done or fails, when this process ends, and after the deadline. A small
  process of its own sees to that; it waits for our end of a pipe to be closed, which the kernel does for whoever dies.
- Whether it stood still to the end is known afterwards, and said.

Does not know: what is done meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from healthmonitor.clouds.cloud import CloudUnavailable

FREEZE = 0xC0045877  # FIFREEZE, linux/fs.h
THAW = 0xC0045878  # FITHAW
END_SECONDS = 5.0
THAWER = 'timeout "$1" cat > /dev/null; exec fsfreeze --unfreeze "/dev/fd/$2" 2> /dev/null'


def mount_point(pid: int, device: Path) -> Path | None:
    """Where `device` is mounted, as the process `pid` sees it; a path that leads there from outside too."""
    number = os.stat(device).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in lines:
        fields = line.split(" ")
        if fields[2] == wanted:
            inside = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            return Path(f"/proc/{pid}/root{inside}")
    return None


@contextlib.contextmanager
def standing_still(place: Path, seconds: float) -> Iterator[float]:
    """The file system that is mounted at `place`, for at most so long; gives the moment (`time.monotonic`) at which it
    goes on by itself. CloudUnavailable when it cannot be stopped, or did not stand still to the end."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CloudUnavailable(f"{place} cannot be opened: {error.strerror}; looked at again") from None
    try:
        with _thawer(descriptor, seconds) as thawer:
            ends_at = time.monotonic() + seconds
            try:
                _order(descriptor, FREEZE, f"{place} cannot be made to stand still")
            except CloudUnavailable:
                thawer.kill()  # it may stand still by another's doing, which is not ours to end
                raise
            try:
                if thawer.poll() is not None:  # it waited from before the order on, so it may have come too early
                    raise CloudUnavailable(f"{place}: nothing would make it go on in time; tried again")
                yield ends_at
            finally:
                _order(descriptor, THAW, f"{place} did not stand still for {seconds:g} s")
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _thawer(descriptor: int, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["/bin/sh", "-c", THAWER, "thawer", f"{seconds:g}", str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _order(descriptor: int, order: int, failure: str) -> None:
    try:
        fcntl.ioctl(descriptor, order, 0)
    except OSError as error:
        why = "it went on before" if error.errno == errno.EINVAL and order == THAW else error.strerror
        raise CloudUnavailable(f"{failure}: {why}; tried again") from None
