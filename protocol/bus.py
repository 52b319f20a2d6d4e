"""The bus as its users need it: messages, requests, buckets (key-value with revisions), logs, queues, and large values
in chunks (blobs).

Law: a time-out is neither failure nor success. What is written to a bucket or log and acknowledged is on disk.
`protocol.nats_bus.NatsBus` is the real one, `tests.simulation.bus.SimulatedBus` the lying one; both pass
`tests/contract/test_bus.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import msgspec


class BusError(Exception):
    """Base of what a bus raises."""


class BusUnavailable(BusError):
    """Not connected, or no answer in time: the outcome is unknown. Read back, then retry."""


class NoResponders(BusError):
    """Nobody listens on that subject at this moment. Definite: nothing was delivered."""


class WrongRevision(BusError):
    """The key was changed by somebody else, or exists already. Definite: nothing was written. Read and decide anew."""


class BlobsFull(BusUnavailable):
    """No room for it: the limit of the store, or of the server, is reached. Definite: nothing of it is visible."""


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
class Deleted:
    key: str
    revision: int  # of the deletion


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a bucket reaches: its latest revision, and of how many keys something is stored, be it that they were
    deleted. Fewer than were told of: some were purged by hand, which leaves no trace of which."""

    revision: int
    keys: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Blob:
    """One large value. `handle` names this very content: what is put under the name later has another."""

    name: str
    size_bytes: int
    sha256: str  # hexadecimal
    handle: str


@dataclass(frozen=True, slots=True)
class Chunk:
    payload: bytes
    position: int  # to go on after it


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A message as it was published, by whomever."""

    sequence: int
    subject: str
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

    async def read(self, after: int, take: Callable[[Entry | Deleted], None]) -> Extent:
        """`take` gets the latest of each key that was written or deleted after revision `after`, in their order, a few
        at a time so that the loop is not held up. Returns how far the bucket reached at a moment not before the call;
        with a revision smaller than `after`, and nothing taken, when an older copy was put in its place."""
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


class BlobReader(Protocol):
    """Reads blobs, one chunk for each question, so that whoever reads sets the pace and never has more than one
    chunk on its way. NoResponders when there is no such store."""

    async def find(self, name: str) -> Blob | None:
        """None when there is none of that name."""
        ...

    async def chunk(self, blob: Blob, after: int = 0) -> Chunk | None:
        """The chunk behind the one at position `after`; the first with 0. None when there is no other: at the end, and
        also when the blob was removed meanwhile, so the reader counts bytes and compares the digest."""
        ...


class Blobs(BlobReader, Protocol):
    """A store of large values in chunks. Names are [A-Za-z0-9._:/@-]+. A blob is visible when all of it is durable,
    and not before. One writer at a time."""

    async def put(self, name: str, content: BinaryIO) -> Blob:
        """Replaces what has the name. `content` is read in a thread. BlobsFull."""
        ...

    async def remove(self, name: str) -> None:
        """Removing what is not there is fine. Works in a full store too."""
        ...

    async def all(self) -> dict[str, Blob]: ...

    async def used_bytes(self) -> int:
        """What the server counts: chunks, names, and what puts that never ended left behind."""
        ...

    async def sweep(self, older_than_seconds: float) -> int:
        """Removes chunks of puts that did not end, when the newest of them is older than this; how many puts."""
        ...


class Inbox(Protocol):
    """What others publish, kept by the server as soon as it has it, whether anybody listens or not. In order, until
    removed; when it is full the oldest goes."""

    async def read(self, after: int, limit: int) -> list[InboxEntry]:
        """Entries with sequence > after, oldest first, at one moment no older than the call."""
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

    async def move(self, why: str) -> None:
        """Lets go of the present server and connects to another, when there are several. Returns at once."""
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

    async def blobs(self, name: str, max_bytes: int) -> Blobs:
        """Opens it, makes it when missing. A put that would make it larger than `max_bytes` raises BlobsFull."""
        ...

    def blob_reader(self, name: str) -> BlobReader:
        """For those who may only read; asks nobody, also when there is no such store."""
        ...

    async def inbox(self, name: str, subjects: Sequence[str], max_bytes: int, message_max_bytes: int) -> Inbox:
        """Opens it, makes it when missing: from then on the server keeps what is published on these subjects (wild
        cards as in `subscribe`), but for larger messages. Who publishes with a request is told that it is kept."""
        ...

    async def close(self) -> None: ...
