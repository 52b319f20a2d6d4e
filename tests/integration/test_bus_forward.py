"""The small process through which containers reach a bus on this machine's loopback."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from healthmonitor.clouds import qemu_process
from healthmonitor.clouds.bus_forward import BusForward
from healthmonitor.clouds.cloud import CloudUnavailable
from tests.support.waiting import until

BRIDGE = "127.0.0.2"
"""Also a loopback address, but not the one that the bus listens on."""
ENSURE = """
import asyncio, sys
from pathlib import Path
from healthmonitor.clouds.bus_forward import BusForward
asyncio.run(BusForward(Path(sys.argv[1])).ensure(sys.argv[2], [int(sys.argv[3])]))
"""


@pytest.fixture
async def bus_port() -> AsyncIterator[int]:
    """A bus that says back what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def forward(tmp_path: Path) -> AsyncIterator[BusForward]:
    made = BusForward(tmp_path)
    yield made
    await made.stop()


async def say(port: int) -> bytes:
    reader, writer = await asyncio.open_connection(BRIDGE, port)
    writer.write(b"hello\n")
    heard = await asyncio.wait_for(reader.readline(), 5.0)
    writer.close()
    await writer.wait_closed()
    return heard


def pids(tmp_path: Path, port: int) -> list[int]:
    return [process.pid for process in qemu_process.find(tmp_path / f"forward/{BRIDGE}_{port}.pid")]


async def test_what_listens_on_the_loopback_is_reached(forward: BusForward, bus_port: int, tmp_path: Path) -> None:
    """Both directions work; asking twice makes one process; stopping ends it."""
    await forward.ensure(BRIDGE, [bus_port])
    await forward.ensure(BRIDGE, [bus_port])
    assert await say(bus_port) == b"hello\n"
    assert len(pids(tmp_path, bus_port)) == 1
    await forward.stop()
    assert pids(tmp_path, bus_port) == []
    with pytest.raises(OSError):
        await say(bus_port)


async def test_it_outlives_who_started_it_and_is_started_again(
    forward: BusForward, bus_port: int, tmp_path: Path
) -> None:
    """The starting process ends and the bus stays reachable; killed, it is back when somebody looks after it."""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", ENSURE, str(tmp_path), BRIDGE, str(bus_port))
    assert await starter.wait() == 0
    assert await say(bus_port) == b"hello\n"
    (pid,) = pids(tmp_path, bus_port)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not pids(tmp_path, bus_port), 5.0, "it is killed")
    await forward.ensure(BRIDGE, [])
    assert await say(bus_port) == b"hello\n"


async def test_an_address_that_is_not_ours_is_said(forward: BusForward, bus_port: int) -> None:
    """What cannot be listened on is an error with the reason, not a VM that never speaks."""
    with pytest.raises(CloudUnavailable, match=r"192\.0\.2\.1"):
        await forward.ensure("192.0.2.1", [bus_port])
