"""systemd's notification protocol, sd_notify(3), as agent and monitor speak it: ready, alive, stopping.

Law: without systemd every call does nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)


class SystemdNotify:
    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        own = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        microseconds = environment.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(microseconds) / 1e6 if own and microseconds.isdigit() else 0.0
        """Within which time systemd wants to hear that we are alive; 0: it does not."""

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def alive(self, status: str = "") -> None:
        self._send(f"WATCHDOG=1\nSTATUS={_one_line(status)}" if status else "WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("systemd.notify_failed", error=str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
