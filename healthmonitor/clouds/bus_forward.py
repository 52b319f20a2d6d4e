"""Lets containers reach a bus that listens on this machine's loopback: a small process that forwards a port of the
bridge's address there.

Law: it is a process of its own, so that agents keep their bus while the monitor is restarted; at most one for each
address and port, kept apart by a lock that ends with it (qemu_process.py); started again whenever it is found missing.

Does not know: the bus.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import healthmonitor
from healthmonitor.clouds import qemu_process
from healthmonitor.clouds.cloud import CloudUnavailable

START_SECONDS = 10.0
CHUNK_BYTES = 64 * 1024
CONNECTIONS_MAX = 1000
PROJECT = Path(healthmonitor.__file__).parent.parent


class BusForward:
    def __init__(self, directory: Path) -> None:
        self._directory = directory / "forward"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def ensure(self, address: str, ports: Iterable[int]) -> None:
        """Forwards `address:port` to the loopback's `port`, and looks after those that were asked for before."""
        for port in ports:
            (self._directory / f"{address}_{port}").touch()
        for wanted in sorted(self._directory.glob("*_*")):
            if not wanted.name.endswith((".lock", ".pid", ".log")):
                await self._start(wanted)

    async def stop(self) -> None:
        """Ends them all; agents lose the bus."""
        for wanted in sorted(self._directory.glob("*_*.lock")):
            base = wanted.with_suffix("")
            await qemu_process.kill(_pid_file(base), wanted, timeout_seconds=5.0)
            base.unlink(missing_ok=True)

    async def _start(self, wanted: Path) -> None:
        lock_file = wanted.with_name(f"{wanted.name}.lock")
        if qemu_process.is_held(lock_file):
            return
        address, _, port = wanted.name.rpartition("_")
        log_file = wanted.with_name(f"{wanted.name}.log")
        with lock_file.open("a") as lock, log_file.open("wb") as said:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another monitor is starting it
            launcher = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, address, port, "-pidfile", str(_pid_file(wanted)), ""),
                cwd=PROJECT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        try:
            async with asyncio.timeout(START_SECONDS):
                status = await launcher.wait()
        except TimeoutError:
            status = -1
        finally:
            if launcher.returncode is None:
                launcher.kill()
                await launcher.wait()
        if status != 0:
            text = (await asyncio.to_thread(log_file.read_text, errors="replace")).strip()[-500:]
            raise CloudUnavailable(f"the bus cannot be offered to containers on {address}:{port}: {text or status}")


def serve_detached(address: str, port: int) -> None:
    """Listens, then goes on in a process of its own: when this returns, connections are accepted."""
    listener = socket.create_server((address, port), backlog=128)
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    asyncio.run(forward(listener, port))


async def forward(listener: socket.socket, port: int) -> None:
    """Serves until SIGTERM."""
    places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with places:
            await _join(reader, writer, port)

    server = await asyncio.start_server(serve, sock=listener)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with server:
        await stopped.wait()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    try:
        with suppress(OSError):  # one end went away, or the bus is not up: the other end is told by being closed
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                # When one direction ends the connection is over: NATS closes both at once.
                tasks = [
                    asyncio.create_task(_pump(reader, inner_writer)),
                    asyncio.create_task(_pump(inner_reader, writer)),
                ]
                _, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in rest:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                inner_writer.close()
    finally:
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


def _pid_file(wanted: Path) -> Path:
    """A name on the command line, by which the process is found; nothing is written there."""
    return wanted.with_name(f"{wanted.name}.pid")


if __name__ == "__main__":
    serve_detached(sys.argv[1], int(sys.argv[2]))
