"""Just enough of Redis' protocol to write data and read it back."""

from __future__ import annotations

import asyncio
import hashlib


async def command(port: int, *words: str, seconds: float = 5.0) -> str:
    """The reply as text; RuntimeError with the server's error, OSError or TimeoutError when it does not answer."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            parts = [f"*{len(words)}\r\n".encode()]
            for word in words:
                encoded = word.encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(encoded), encoded))
            writer.write(b"".join(parts))
            await writer.drain()
            return await _reply(reader)
        finally:
            writer.close()


async def _reply(reader: asyncio.StreamReader) -> str:
    line = (await reader.readline()).rstrip(b"\r\n")
    if not line:
        raise ConnectionError("closed without a reply")
    kind, rest = line[:1], line[1:].decode()
    if kind == b"-":
        raise RuntimeError(rest)
    if kind == b"$":
        if rest == "-1":
            return ""
        return (await reader.readexactly(int(rest) + 2))[:-2].decode()
    return rest


async def write_data(port: int, keys: int, prefix: str = "key") -> None:
    for number in range(keys):
        reply = await command(
            port, "SET", f"{prefix}:{number}", hashlib.sha256(f"{prefix}{number}".encode()).hexdigest()
        )
        assert reply == "OK", reply


async def checksum(port: int, keys: int, prefix: str = "key") -> str:
    """Over every value; of what `write_data` wrote it is `expected_checksum`."""
    digest = hashlib.sha256()
    for number in range(keys):
        digest.update((await command(port, "GET", f"{prefix}:{number}")).encode())
    return digest.hexdigest()


def expected_checksum(keys: int, prefix: str = "key") -> str:
    digest = hashlib.sha256()
    for number in range(keys):
        digest.update(_value(prefix, number).encode())
    return digest.hexdigest()


def _value(prefix: str, number: int) -> str:
    return hashlib.sha256(f"{prefix}{number}".encode()).hexdigest()
