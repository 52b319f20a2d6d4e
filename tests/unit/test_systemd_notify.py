"""What systemd is told, on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.systemd_notify import SystemdNotify


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver, {"NOTIFY_SOCKET": str(tmp_path / "notify")}


def test_each_message_is_one_datagram(systemd: tuple[socket.socket, dict[str, str]]) -> None:
    """A status is one line whatever it holds: a second line would be a message of its own."""
    receiver, environment = systemd
    notify = SystemdNotify(environment)
    notify.ready("up\nMAINPID=1")
    notify.alive()
    notify.alive("turn 7")
    notify.stopping()
    assert [receiver.recv(1024) for _ in range(4)] == [
        b"READY=1\nSTATUS=up MAINPID=1",
        b"WATCHDOG=1",
        b"WATCHDOG=1\nSTATUS=turn 7",
        b"STOPPING=1",
    ]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdogs_time_is_systemds(environment: dict[str, str], seconds: float) -> None:
    """Only when it is meant for this process."""
    assert SystemdNotify(environment).watchdog_seconds == seconds


def test_without_systemd_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """No socket named: no message, and no complaint about it."""
    SystemdNotify({}).ready("up")
    assert capfd.readouterr() == ("", "")
