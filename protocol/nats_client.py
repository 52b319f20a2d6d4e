"""nats-py's client with a short way for subscriptions whose callback does not wait: what was read is cut into messages
here and the callback called at once, instead of a regular expression, two coroutines, a queue and a task for each.
That is most of what a heartbeat costs (tests/bench/bench_heartbeats.py).

Laws:
- Messages of one subscription reach it in the order in which the server sent them.
- Whatever is not a whole message of such a subscription is nats-py's: it gets it unchanged, one item of the protocol
  at a time, so that its own parser never holds a part of one.
- Who leaves a server goes to the one that was left longest ago (`ServerOrder`). nats-py shuffles its list before each
  try, and one time in three comes back to the very server that was left because it was cut off from the others.
- While much is heard the socket is read every GATHER_SECONDS and not at once, while very much is heard every
  GATHER_LONGER_SECONDS: otherwise each few messages cost a wake-up of the loop, which is more than the messages.
  Whatever comes over this connection is delayed by no more.

Does not know: what is subscribed, what a message means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import nats.aio.client
import structlog
from nats.aio.client import DEFAULT_BUFFER_SIZE, Server
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from protocol.bus import Message

log = structlog.get_logger("protocol.nats_bus")

GATHER_SECONDS = 0.010
GATHER_FROM_PER_SECOND = 2_000.0
"""Messages a second, on short ways, from which on they are gathered."""
GATHER_LONGER_SECONDS = 0.020
GATHER_LONGER_FROM_PER_SECOND = 6_000.0
_COUNTED_OVER_SECONDS = 0.1
RETRY_WAIT_SECONDS = 0.5
"""Between two tries to connect to the same server."""


class ShortWayClient(nats.aio.client.Client):
    """A nats-py whose parser is called otherwise takes the long way by itself: `deliver` in `nats_bus` calls the same
    callback."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = ShortWayParser(self)
        self._callbacks: dict[object, Callable[[Message], None]] = {}  # nats-py's callback → ours
        self.short_ways: dict[bytes, Callable[[Message], None]] = {}  # of the above those that got a message, by sid
        self._order = ServerOrder()

    def open_short_way(self, long_way: object, callback: Callable[[Message], None]) -> None:
        """Messages of the subscription whose callback is `long_way` go to `callback` from now on."""
        self._callbacks[long_way] = callback

    def close_short_way(self, long_way: object) -> None:
        if self._callbacks.pop(long_way, None) is not None:
            self.short_ways.clear()

    @property
    def server(self) -> str:
        """`host:port` of the server that it is connected to, or was last; "" before the first."""
        return str(self._current_server.uri.netloc) if self._current_server is not None else ""

    def next_server(self, pool: Sequence[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """nats-py's `reconnect_to_server_handler`: the server that is tried now, and for how long to wait before."""
        if self.server:
            self._order.left(self.server, time.monotonic())
        netloc, wait_seconds = self._order.next([each.uri.netloc for each in pool], time.monotonic())
        return next(each for each in pool if each.uri.netloc == netloc), wait_seconds

    async def gather(self, seconds: float) -> None:
        """Lets what comes lie in the socket for a moment. The connection may be another when this returns."""
        writer = getattr(self._transport, "_io_writer", None)  # a websocket has none, and is read at once
        transport = writer.transport if isinstance(writer, asyncio.StreamWriter) else None
        if isinstance(transport, asyncio.Transport) and not transport.is_closing():
            transport.pause_reading()
            try:
                await asyncio.sleep(seconds)
            finally:
                transport.resume_reading()

    def short_way(self, sid: bytes) -> Callable[[Message], None] | None:
        callback = self.short_ways.get(sid)
        if callback is None:
            subscription = self._subs.get(int(sid))
            if subscription is not None and (callback := self._callbacks.get(subscription._cb)) is not None:
                self.short_ways[sid] = callback
        return callback


class ServerOrder:
    """Which server is tried next: one that was never left, else the one that was left longest ago; of equals the first
    of the list, which the caller shuffles, so that the clients of a server that ends spread over the others."""

    def __init__(self, wait_seconds: float = RETRY_WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        self._left_at: dict[str, float] = {}

    def left(self, server: str, now: float) -> None:
        """A connection to `server` ended or could not be made. `now`: monotonic seconds."""
        self._left_at[server] = now

    def next(self, servers: Sequence[str], now: float) -> tuple[str, float]:
        """The one to try and for how many seconds to wait first: none comes twice within `wait_seconds`."""
        chosen = min(servers, key=lambda each: self._left_at.get(each, float("-inf")))
        again_at = self._left_at.get(chosen, float("-inf")) + self._wait_seconds
        return chosen, max(0.0, again_at - now)


class _Pace:
    """How many messages a second were heard lately."""

    def __init__(self) -> None:
        self._since = float("-inf")
        self._count = 0
        self._gather_seconds = 0.0

    def gather_seconds(self, count: int, now: float) -> float:
        """For how long to let the next ones gather; 0: not at all."""
        self._count += count
        if now - self._since >= _COUNTED_OVER_SECONDS:
            per_second = self._count / (now - self._since)
            self._since, self._count, self._gather_seconds = now, 0, 0.0
            if per_second >= GATHER_LONGER_FROM_PER_SECOND:
                self._gather_seconds = GATHER_LONGER_SECONDS
            elif per_second >= GATHER_FROM_PER_SECOND:
                self._gather_seconds = GATHER_SECONDS
        return self._gather_seconds


class ShortWayParser(Parser):
    def __init__(self, client: ShortWayClient) -> None:
        self._client = client
        self._resets = 0
        self._pace = _Pace()
        super().__init__(client)

    def reset(self) -> None:
        """The connection is another."""
        super().reset()
        self._resets += 1
        self._keep(b"", 0)

    def _keep(self, rest: bytes, wanted: int) -> None:
        """Of an item of which only the beginning has arrived. `wanted`: bytes without which looking again is idle."""
        self._rest = [rest] if rest else []
        self._held, self._wanted = len(rest), wanted

    async def parse(self, data: bytes = b"") -> None:
        """Raises nats-py's ProtocolError for what is not NATS' protocol."""
        read = len(data)
        if self._rest:
            self._rest.append(data)
            self._held += len(data)
            if self._held < self._wanted:
                return  # else a large message that comes in small pieces would be copied for each of them
            data = b"".join(self._rest)
            self._keep(b"", 0)
        client, short_way, resets = self._client, self._client.short_way, self._resets
        by_sid = client.short_ways
        at = wanted = count = size = 0
        try:
            while (line_end := data.find(b"\r\n", at)) >= 0:
                words = data[at:line_end].split()
                start = end = line_end + 2
                kind = words[0] if words else b""
                if kind != b"MSG" and kind != b"HMSG":
                    await super().parse(data[at:end])
                    if resets != self._resets:
                        return  # what follows was said on a connection that is not ours any more
                    at = end
                    continue
                if not 4 <= len(words) <= 6 or not words[-1].isdigit() or not words[2].isdigit():
                    raise ProtocolError(f"nats: malformed MSG {data[at:line_end]!r}")
                end += int(words[-1]) + 2
                if end > len(data):
                    wanted = end - at
                    break
                callback = by_sid.get(words[2]) or short_way(words[2]) if kind == b"MSG" else None
                if callback is None:
                    await self._long_way(words[1], data[at:end])
                    if resets != self._resets:
                        return
                else:
                    count += 1
                    size += end - start - 2
                    try:
                        reply_to = words[3].decode() if len(words) == 5 else ""
                        callback(Message(words[1].decode(), data[start : end - 2], reply_to))
                    except Exception:
                        # the edge of a task that is not ours: an error in one message must not end the connection
                        log.exception("bus.callback_failed", subject=words[1])
                at = end
            self._keep(data[at:], wanted)
        finally:
            client.stats["in_msgs"] += count
            client.stats["in_bytes"] += size
        seconds = self._pace.gather_seconds(count, asyncio.get_running_loop().time()) if count else 0.0
        if seconds and read < DEFAULT_BUFFER_SIZE:  # else there is more that was read already
            await client.gather(seconds)

    async def _long_way(self, subject: bytes, item: bytes) -> None:
        try:
            subject.decode()
        except UnicodeDecodeError:
            log.warning("bus.subject_unreadable", subject=subject, next="dropped: it would end nats-py's reading")
        else:
            await super().parse(item)
