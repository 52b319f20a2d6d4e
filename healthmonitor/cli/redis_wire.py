"""As much of Redis' protocol as the demonstration needs: one command, one reply."""

from __future__ import annotations

import socket
from typing import BinaryIO

LINE_MAX_BYTES = 64 * 1024
REPLY_MAX_BYTES = 16 * 1024 * 1024

Reply = bytes | int | None | list["Reply"]


class RedisRefused(Exception):
    """Redis answered with an error; the text is its own."""


class Redis:
    """One connection. OSError (ConnectionError included) when it is lost."""

    def __init__(self, host: str, port: int, timeout_seconds: float) -> None:
        self._socket = socket.create_connection((host, port), timeout=timeout_seconds)
        self._file: BinaryIO = self._socket.makefile("rb")

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def call(self, *words: str | bytes) -> Reply:
        """The reply to one command; RedisRefused when it is an error."""
        parts = [word if isinstance(word, bytes) else word.encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(request)
        return self._reply()

    def _reply(self) -> Reply:
        line = self._file.readline(LINE_MAX_BYTES)
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was lost")
        kind, rest = line[:1], line[1:-2]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise RedisRefused(rest.decode(errors="replace"))
            case b":":
                return int(rest)
            case b"$":
                return self._bulk(int(rest))
            case b"*":
                return [self._reply() for _ in range(int(rest))]
            case _:
                raise ConnectionError(f"not Redis: {line[:40]!r}")

    def _bulk(self, size: int) -> bytes | None:
        if size < 0:
            return None
        if size > REPLY_MAX_BYTES:
            raise ConnectionError(f"a reply of {size} bytes")
        content = self._file.read(size + 2)
        if len(content) != size + 2:
            raise ConnectionError("the connection was lost")
        return content[:-2]
