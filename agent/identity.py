"""What a VM takes from its settings: its host name, the time, fresh randomness after it was cloned from a template.

Laws: the clock is only ever set forward, to a time that is certainly past. A step that the VM does not allow (a
container as a VM has no clock of its own) is said and does no harm.
"""

from __future__ import annotations

import array
import base64
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable

import structlog

from agent import subprocesses
from protocol.settings import AgentSettings

log = structlog.get_logger(__name__)

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
CLOCK_BEHIND_SECONDS = 1.0
HWCLOCK_SECONDS = 20.0
ENTROPY_MAX_BYTES = 4096


def take_on(settings: AgentSettings, unix_time: Callable[[], float]) -> None:
    """Host name and clock. Quick: nothing here waits."""
    if settings.hostname:
        set_hostname(settings.hostname)
    behind_seconds = settings.unix_time - unix_time()
    if behind_seconds > CLOCK_BEHIND_SECONDS:
        _try("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, settings.unix_time))
        log.info("identity.clock_set", behind_seconds=round(behind_seconds, 1))


def set_hostname(hostname: str) -> None:
    if hostname != socket.gethostname():
        _try("hostname", lambda: socket.sethostname(hostname))


def credit_entropy(encoded: str, device: str = "/dev/random") -> None:
    """After a resume: clones of one snapshot have one random state, so each gets bytes of its own from the centre."""
    if not encoded:
        log.warning("identity.no_entropy", next="clones share a random state until each gathers its own")
        return
    try:
        seed = base64.b64decode(encoded, validate=True)[:ENTROPY_MAX_BYTES]
    except ValueError as error:
        log.error("identity.entropy_unreadable", error=str(error), expected="base64")
        return

    def credit() -> None:
        descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        try:
            request = struct.pack("ii", len(seed) * 8, len(seed)) + seed
            fcntl.ioctl(descriptor, RNDADDENTROPY, array.array("B", request))
            fcntl.ioctl(descriptor, RNDRESEEDCRNG)
        finally:
            os.close(descriptor)

    _try("entropy", credit)


async def read_hardware_clock() -> None:
    """The system clock from the hardware's, where there is one; it waits for the next full second."""
    try:
        await subprocesses.run(["hwclock", "--hctosys"], HWCLOCK_SECONDS)
    except subprocesses.CommandFailed as error:
        log.info("identity.no_hardware_clock", reason=str(error))


def _try(what: str, step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        log.warning("identity.not_set", what=what, error=str(error))
