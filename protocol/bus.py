"""The bus as its users need it: messages, requests, buckets (key-value with revisions) and one append-only log.

Law: a time-out is neither failure nor success. What is written to a bucket or log and acknowledged is on disk.
`protocol.nats_bus.NatsBus` is the real one, `tests.simulation.bus.SimulatedBus` the lying one; both pass
`tests/contract/test_bus.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec


class BusError(Exception):
    """Base of what a bus raises."""


class BusUnavailable(BusError):
    """Not connected, or no answer in time: the outcome is unknown. Read back, then retry."""


class NoResponders(BusError):
    """Nobody listens on that subject at this moment. Definite: nothing was delivered."""


class WrongRevision(BusError):
    """The key was changed by somebody else, or exists already. Definite: nothing was written. Read and decide anew."""


class KeyMissing(BusError):
    """No such key."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A struct, because one is made for each heartbeat and it costs a quarter of a frozen dataclass."""

    subject: str
    payload: bytes
    reply_to: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    sequence: int
    payload: bytes


class Subscription(Protocol):
    async def unsubscribe(self) -> None: ...


class Bucket(Protocol):
    """Keys are [A-Za-z0-9._-]+. Every call raises BusUnavailable when the outcome is unknown."""

    async def get(self, key: str) -> Entry | None: ...

    async def create(self, key: str, value: bytes) -> int:
        """The new revision; WrongRevision when the key exists."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """The new revision; WrongRevision unless the key's revision is `revision`."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Last writer wins; only for what nobody else writes."""
        ...

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Deleting a missing key is fine; WrongRevision when `revision` is given and is not the key's."""
        ...

    async def entries(self) -> dict[str, Entry]:
        """All keys, at one moment no older than the call."""
        ...


class Log(Protocol):
    async def append(self, payload: bytes) -> int:
        """The sequence number under which it is stored durably."""
        ...

    async def read(self, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Entries with sequence > after, oldest first."""
        ...

    async def last(self, limit: int) -> list[LogEntry]: ...

    def follow(self, after: int) -> AsyncIterator[LogEntry]:
        """Entries with sequence > after, those stored and those to come, until the iterator is closed."""
        ...


class Queue(Protocol):
    """Entries that stay, in order, until each is removed; nothing is left of one that was."""

    async def put(self, payload: bytes, key: str) -> int:
        """The sequence number under which it is stored durably. Of puts with the same `key` within two minutes only
        the first is stored, and all return its number: a put whose answer was lost may be repeated."""
        ...

    async def get(self, sequence: int) -> bytes | None:
        """None when there is no such entry (any more)."""
        ...

    async def entries(self) -> list[LogEntry]:
        """All that is there, oldest first, at one moment no older than the call."""
        ...

    async def remove(self, sequence: int) -> None:
        """Removing what is not there is fine."""
        ...


class Bus(Protocol):
    @property
    def connected(self) -> bool: ...

    @property
    def connection_epoch(self) -> int:
        """Grows by one with each connection made; 0 before the first."""
        ...

    def on_connection_change(self, callback: Callable[[bool], None]) -> None:
        """`callback(connected)` on each loss and each (re)connection, from the loop."""
        ...

    async def publish(self, subject: str, payload: bytes) -> None:
        """At most once. Raises BusUnavailable when not connected: nothing is kept to be sent late."""
        ...

    async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> Subscription:
        """`callback` is called in order from the loop and must not block; the subscription outlives reconnects."""
        ...

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        """NATS request and reply. NoResponders at once, BusUnavailable after the time."""
        ...

    async def flush(self, timeout_seconds: float) -> None:
        """Returns when the server has taken everything published so far; BusUnavailable otherwise."""
        ...

    async def bucket(self, name: str, history: int = 1) -> Bucket:
        """Opens it, makes it when missing (file storage, replicas as configured)."""
        ...

    async def log(self, name: str, max_entries: int, max_bytes: int) -> Log: ...

    async def queue(self, name: str, max_bytes: int) -> Queue:
        """Opens it, makes it when missing. A put that would make it larger than `max_bytes` raises BusUnavailable."""
        ...

    async def close(self) -> None: ...
