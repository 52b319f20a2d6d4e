"""A client of QEMU's machine protocol: one short connection for each piece of work.

Law: every call has a deadline; when it passes the outcome is unknown (`QmpUnanswered`), and the connection is of no
more use, because a late answer would be taken for the next call's.

A client of our own, although QEMU's project keeps one (`qemu.qmp`): that one reads in background tasks for
long-lived sessions. Here a connection lives for a few commands, a server socket takes one client at a time, and
answer and events can be read in the order in which they come, without any task.

Does not know: what the commands do (healthmonitor/clouds/qemu*.py).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

LINE_MAX_BYTES = 8 * 1024 * 1024
"""`query-named-block-nodes` of a VM with many disks is the longest answer: some ten KiB a disk."""
CLOSE_SECONDS = 1.0


class QmpRefused(Exception):
    """QEMU answered with an error. Definite: nothing was changed by this command."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        super().__init__(f"{command}: {description}")
        self.kind = kind
        self.description = description


class QmpUnanswered(Exception):
    """No connection, or no answer in time. The outcome of the command is unknown."""


class Qmp:
    """An open connection, past the greeting. Not to be used by two tasks at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._events: list[dict[str, Any]] = []

    async def execute(self, command: str, *, timeout_seconds: float = 10.0, **arguments: Any) -> Any:
        """The command's return value; argument names are written with `_` for `-`."""
        request = {
            "execute": command,
            "arguments": {name.replace("_", "-"): value for name, value in arguments.items()},
        }
        try:
            async with asyncio.timeout(timeout_seconds):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                while True:
                    message = await self._read()
                    if "return" in message:
                        return message["return"]
                    if "error" in message:
                        error = message["error"]
                        if not isinstance(error, dict):
                            raise ValueError("an error that is no object")
                        raise QmpRefused(command, str(error.get("class", "")), str(error.get("desc", "")))
        except TimeoutError:
            raise QmpUnanswered(f"{command}: no answer in {timeout_seconds:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise QmpUnanswered(f"{command}: connection lost ({error or type(error).__name__})") from None

    async def wait_for_event(
        self, matches: Callable[[str, dict[str, Any]], bool], timeout_seconds: float
    ) -> dict[str, Any] | None:
        """The data of the first event, since the connection was opened, for which `matches(name, data)`; None when
        none came in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    while self._events:
                        event = self._events.pop(0)
                        found: dict[str, Any] = event.get("data", {})
                        if matches(event["event"], found):
                            return found
                    await self._read()
        except TimeoutError:
            return None
        except (OSError, EOFError, ValueError) as error:
            raise QmpUnanswered(f"waiting for an event: connection lost ({error or type(error).__name__})") from None

    async def _read(self) -> dict[str, Any]:
        """The next message; an event is kept aside as well."""
        line = await self._reader.readline()
        if not line:
            raise EOFError("closed by QEMU")
        try:
            message = json.loads(line)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("not an object")
        if isinstance(message.get("event"), str) and isinstance(message.get("data", {}), dict):
            self._events.append(message)
        return message


async def _open(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """By way of the directory's descriptor, because the address of a UNIX socket ends after 107 bytes."""
    directory = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{socket.name}", limit=LINE_MAX_BYTES)
    finally:
        os.close(directory)


@asynccontextmanager
async def connect(socket: Path, timeout_seconds: float = 5.0) -> AsyncIterator[Qmp]:
    """A connection that is ready for commands. QmpUnanswered when QEMU does not greet in time."""
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            async with asyncio.timeout(timeout_seconds):
                reader, writer = await _open(socket)
                qmp = Qmp(reader, writer)
                greeting = await qmp._read()
                if "QMP" not in greeting:
                    raise ValueError("no greeting")
        except TimeoutError:
            raise QmpUnanswered(f"QEMU did not greet within {timeout_seconds:g} s") from None
        except (OSError, EOFError, ValueError) as error:
            raise QmpUnanswered(f"no connection to QEMU ({error or type(error).__name__})") from None
        await qmp.execute("qmp_capabilities", timeout_seconds=timeout_seconds)
        yield qmp
    finally:
        if writer is not None:
            writer.close()
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await writer.wait_closed()
            except (OSError, TimeoutError):
                pass  # the other end is gone, or hangs: closing our end is all that can be done
