"""The simulated bus: one server, many clients, and a network between them that lies as networks do.

Laws, those of a TCP connection to a NATS server with `sync_interval: always`:
- Within one connection messages keep their order. What was sent into a cut is held and arrives late, all at once,
  when the cut heals before anybody noticed it; when the connection was given up, it may be lost instead.
- Each side notices a cut by itself, after its own pings: seconds later, and not at the same moment.
- A write is acknowledged only when it is durable. A server that is killed keeps every write that it acknowledged, and
  of those it did not a prefix that the seed chooses: an operation that timed out may have been done.
- Core messages are at most once, except that the weather may also double one.

Does not know: what the messages mean.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, BinaryIO

from protocol.bus import (
    Blob,
    BlobReader,
    Blobs,
    BlobsFull,
    Bucket,
    BusUnavailable,
    Chunk,
    Deleted,
    Entry,
    Extent,
    Inbox,
    InboxEntry,
    Log,
    LogEntry,
    Message,
    NoResponders,
    Queue,
    Subscription,
    WrongRevision,
)
from tests.simulation.loop import Condition, Process, current_process

JETSTREAM_TIMEOUT_SECONDS = 5.0
FOLLOW_POLL_SECONDS = 0.25
QUEUE_DEDUPLICATION_SECONDS = 120.0
BLOB_CHUNK_BYTES = 64 * 1024
ROUTES_MAX = 20_000
INBOX = "_INBOX."
KEY = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(slots=True)
class Weather:
    """How the network is now; the nemesis changes it. Ranges are (least, most) seconds, drawn for each message."""

    latency_seconds: tuple[float, float] = (0.0002, 0.002)
    sync_seconds: tuple[float, float] = (0.0002, 0.003)
    notice_cut_seconds: tuple[float, float] = (4.0, 6.5)
    reconnect_seconds: tuple[float, float] = (0.5, 0.8)
    core_loss: float = 0.0
    core_double: float = 0.0
    acknowledgement_loss: float = 0.0
    kept_after_giving_up: float = 0.5
    """Chance that what lies in a given-up connection's send buffer still arrives when the cut heals in time."""


@dataclass(slots=True)
class Store:
    """What survives the server: buckets, logs, queues and blobs."""

    buckets: dict[str, StoredBucket] = field(default_factory=dict)
    blobs: dict[str, StoredBlobs] = field(default_factory=dict)
    logs: dict[str, StoredLog] = field(default_factory=dict)
    queues: dict[str, StoredQueue] = field(default_factory=dict)
    inboxes: dict[str, StoredInbox] = field(default_factory=dict)


@dataclass(slots=True)
class StoredBucket:
    entries: dict[str, Entry] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)  # key → revision
    revision: int = 0


@dataclass(slots=True)
class StoredLog:
    max_entries: int
    max_bytes: int
    entries: deque[LogEntry] = field(default_factory=deque)
    size_bytes: int = 0
    sequence: int = 0


@dataclass(slots=True)
class StoredQueue:
    max_bytes: int
    entries: dict[int, bytes] = field(default_factory=dict)
    keys: dict[str, tuple[int, float]] = field(default_factory=dict)  # key → sequence, when
    sequence: int = 0


@dataclass(slots=True)
class StoredBlobs:
    max_bytes: int
    named: dict[str, Blob] = field(default_factory=dict)
    chunks: dict[int, tuple[str, bytes, float]] = field(default_factory=dict)  # position → handle, payload, when
    position: int = 0


@dataclass(slots=True)
class StoredInbox:
    subjects: tuple[str, ...]
    max_bytes: int
    message_max_bytes: int
    entries: dict[int, InboxEntry] = field(default_factory=dict)
    sequence: int = 0

    def keep(self, message: Message) -> None:
        if len(message.payload) > self.message_max_bytes:
            return
        self.sequence += 1
        self.entries[self.sequence] = InboxEntry(self.sequence, message.subject, message.payload)
        while sum(len(each.payload) for each in self.entries.values()) > self.max_bytes:
            del self.entries[next(iter(self.entries))]


class SimulatedServer:
    """`digest` changes with every message and write: two runs with equal digests did the same."""

    def __init__(self, random: Random, weather: Weather | None = None) -> None:
        self.random = random
        self.weather = weather or Weather()
        self.store = Store()
        self.up = True
        self.digest = 0
        self.delivered = 0
        self.on_write: Callable[[str, str, bytes | None, int], None] = lambda bucket, key, value, revision: None
        self.on_delivered: Callable[[SimulatedBus, str, float], None] = lambda client, subject, published_at: None
        self.on_sent: Callable[[SimulatedBus, str, bytes], None] = lambda client, subject, payload: None
        self.acknowledged: dict[str, int] = {}
        """Bucket → the highest revision of it that any client was told is written."""
        self._connections: dict[int, Connection] = {}  # by their numbers, in the order in which they came
        self._commits: deque[_Commit] = deque()
        self._routes = _Routes()
        self._clients: list[SimulatedBus] = []
        self._disconnect_heard: list[SimulatedSystemEvents] = []
        self._accepted = 0

    def client(self, name: str) -> SimulatedBus:
        """A bus for the process that runs now. Not connected yet: see `SimulatedBus.open`."""
        bus = SimulatedBus(self, name, len(self._clients))
        self._clients.append(bus)
        return bus

    # Faults.

    def cut(self, client: SimulatedBus, to_server: bool = True, from_server: bool = True) -> None:
        client.cut_to_server, client.cut_from_server = to_server, from_server
        for connection in [*client.at_server, *client.given_up]:
            connection.apply_cut()

    def heal(self, client: SimulatedBus) -> None:
        self.cut(client, to_server=False, from_server=False)

    def reconsider(self, client: SimulatedBus) -> None:
        """To be called after the client's process was frozen or thawed."""
        for connection in client.at_server:
            connection.watch()

    def client_killed(self, client: SimulatedBus, announced: bool) -> None:
        """Its process is gone. `announced`: its kernel closed the connection; otherwise only pings will tell."""
        for connection in list(client.at_server):
            if announced and not client.cut_to_server:
                connection.to_server.send(partial(self.drop, connection))
            else:
                connection.client_gone = True
                connection.watch()

    def crash(self) -> None:
        """Killed: connections end, writes not yet acknowledged are kept up to a point that the seed chooses."""
        if not self.up:
            return
        self.up = False
        survive = self.random.randint(0, len(self._commits))
        for commit in list(self._commits)[:survive]:
            commit.apply(self.store)
        for commit in self._commits:
            commit.timer.cancel()
        self._commits.clear()
        for connection in list(self._connections.values()):
            self.drop(connection)

    def start(self) -> None:
        self.up = True

    # The server's side of connections.

    def accept(self, connection: Connection) -> None:
        self._accepted += 1
        connection.number = self._accepted
        self._connections[connection.number] = connection
        connection.client.at_server.append(connection)
        for number, pattern in connection.patterns.items():
            self._routes.add(connection, number, pattern)

    def subscribed(self, connection: Connection, number: int, pattern: str | None) -> None:
        """None: no more."""
        if number in connection.patterns and connection.open_at_server:
            self._routes.remove(connection, number, connection.patterns[number])
        connection.patterns.pop(number, None)
        if pattern is not None:
            connection.patterns[number] = pattern
            if connection.open_at_server:
                self._routes.add(connection, number, pattern)

    def drop(self, connection: Connection) -> None:
        """The server gives a connection up, or learns that the client closed it."""
        if not connection.open_at_server:
            return
        connection.open_at_server = False
        connection.watch()
        del self._connections[connection.number]
        connection.client.at_server.remove(connection)
        for number, pattern in connection.patterns.items():
            self._routes.remove(connection, number, pattern)
        connection.to_client.send(partial(connection.client.lost, connection))
        if self.up:
            for heard in self._disconnect_heard:
                heard.tell(connection.client.name)

    def route(
        self,
        sender: Connection,
        message: Message,
        published_at: float,
        wants_responder: Callable[[], None] | None = None,
    ) -> None:
        if not sender.open_at_server:
            return
        for inbox in self.store.inboxes.values():
            if any(matches(pattern, message.subject) for pattern in inbox.subjects):
                inbox.keep(message)
        receivers = self._receivers(message.subject)
        if not receivers and wants_responder is not None:
            sender.to_client.send(wants_responder)
        for connection, number in receivers:
            if self.weather.core_loss and self.random.random() < self.weather.core_loss:
                continue
            times = 2 if self.weather.core_double and self.random.random() < self.weather.core_double else 1
            for _ in range(times):
                self.note(message.subject, message.payload)
                connection.to_client.send(partial(connection.client.deliver, connection, number, message, published_at))

    def ask(
        self, sender: Connection, operation: Callable[[Store], Any], writes: bool, reply: Callable[[Any], None]
    ) -> None:
        """Carries out an operation on the store; a write takes effect and is answered when it is durable, in order."""
        if not sender.open_at_server:
            return
        if not writes:
            sender.to_client.send(partial(reply, _attempt(operation, self.store)))
            return
        loop = asyncio.get_running_loop()
        seconds = self.random.uniform(*self.weather.sync_seconds)
        after = max(loop.time(), self._commits[-1].at if self._commits else 0.0)
        commit = _Commit(after + seconds, operation, sender, reply)
        commit.timer = loop.call_at(commit.at, self._commit, commit)
        self._commits.append(commit)

    def note(self, name: str, payload: bytes) -> None:
        self.delivered += 1
        moment = repr(asyncio.get_running_loop().time()).encode()
        self.digest = zlib.crc32(payload, zlib.crc32(moment + name.encode(), self.digest))

    def _receivers(self, subject: str) -> list[tuple[Connection, int]]:
        if subject.startswith(INBOX):
            client = self._clients[int(subject.split(".")[1])]
            return [(connection, 0) for connection in client.at_server]
        return self._routes.to(subject)

    def _commit(self, commit: _Commit) -> None:
        # Timers of one moment come in any order: a write never overtakes another
        while self._commits and self._commits[0].at <= commit.at:
            first = self._commits.popleft()
            outcome = first.apply(self.store)
            self.note("write", repr(outcome).encode()[:100])
            if not (self.weather.acknowledgement_loss and self.random.random() < self.weather.acknowledgement_loss):
                first.sender.to_client.send(partial(first.reply, outcome))


class _Routes:
    """Who has subscribed to what: whole subjects by name, patterns one by one, of which there are few."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[tuple[int, int], Connection]] = {}
        self._patterns: dict[str, dict[tuple[int, int], Connection]] = {}
        self._known: dict[str, list[tuple[Connection, int]]] = {}

    def add(self, connection: Connection, number: int, pattern: str) -> None:
        self._known.clear()
        self._kept(pattern).setdefault(pattern, {})[connection.number, number] = connection

    def remove(self, connection: Connection, number: int, pattern: str) -> None:
        self._known.clear()
        kept = self._kept(pattern)
        del kept[pattern][connection.number, number]
        if not kept[pattern]:
            del kept[pattern]

    def to(self, subject: str) -> list[tuple[Connection, int]]:
        """Connections in the order in which they came, each with the number of its subscription."""
        known = self._known.get(subject)
        if known is None:
            if len(self._known) > ROUTES_MAX:
                self._known.clear()
            found = dict(self._exact.get(subject, {}))
            for pattern, subscribed in self._patterns.items():
                if matches(pattern, subject):
                    found |= subscribed
            known = self._known[subject] = [(found[place], place[1]) for place in sorted(found)]
        return known

    def _kept(self, pattern: str) -> dict[str, dict[tuple[int, int], Connection]]:
        return self._patterns if "*" in pattern or ">" in pattern else self._exact


class Connection:
    """One TCP connection: a pipe each way, and what each side believes of it."""

    def __init__(self, server: SimulatedServer, client: SimulatedBus) -> None:
        self.client = client
        self.number = 0  # in the order in which the server took them
        self.open_at_client = True
        self.open_at_server = True
        self.client_gone = False
        self.patterns: dict[int, str] = {}
        self.to_server = Pipe(server, _WORLD)
        self.to_client = Pipe(server, client.context)
        self._server = server
        self._client_notices: asyncio.TimerHandle | None = None
        self._server_notices: asyncio.TimerHandle | None = None

    def apply_cut(self) -> None:
        self.to_server.set_cut(self.client.cut_to_server)
        self.to_client.set_cut(self.client.cut_from_server)
        self.watch()

    def watch(self) -> None:
        """Starts or stops the clocks by which each side finds out that the other cannot be reached."""
        loop = asyncio.get_running_loop()
        cut = self.to_server.cut or self.to_client.cut
        silent = cut or self.client_gone or self.client.frozen
        draw = partial(self._server.random.uniform, *self._server.weather.notice_cut_seconds)
        if self.open_at_client and cut:
            if self._client_notices is None:
                self._client_notices = loop.call_later(
                    draw(), self.client.lost, self, context=self.client.context.copy()
                )
        elif self._client_notices is not None:
            self._client_notices.cancel()
            self._client_notices = None
        if self.open_at_server and silent:
            if self._server_notices is None:
                self._server_notices = loop.call_later(draw(), self._server.drop, self, context=_WORLD.copy())
        elif self._server_notices is not None:
            self._server_notices.cancel()
            self._server_notices = None


class Pipe:
    """One direction of a connection: in order, delayed, and holding what is sent while it is cut."""

    def __init__(self, server: SimulatedServer, context: contextvars.Context) -> None:
        self.cut = False
        self._server = server
        self._context = context
        self._held: list[Callable[[], None]] = []
        self._last_at = 0.0

    def send(self, arrive: Callable[[], None]) -> None:
        if self.cut:
            self._held.append(arrive)
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + self._server.random.uniform(*self._server.weather.latency_seconds)
        self._last_at = at = max(at, self._last_at + 1e-6)
        loop.call_at(at, arrive, context=self._context.copy())

    def set_cut(self, cut: bool) -> None:
        self.cut = cut
        if not cut:
            held, self._held = self._held, []
            for arrive in held:
                self.send(arrive)

    def discard(self) -> None:
        self._held.clear()


class SimulatedBus:
    """One client. Made by `SimulatedServer.client`, in the process that uses it, and opened there."""

    def __init__(self, server: SimulatedServer, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.cut_to_server = False
        self.cut_from_server = False
        self.given_up: list[Connection] = []
        self.at_server: list[Connection] = []
        """Its connections that the server has not given up."""
        self.process: Process | None = current_process()
        self.context = contextvars.copy_context()
        self.server = server
        self._connection: Connection | None = None
        self.connected_since = 0.0
        self._epoch = 0
        self._callbacks: list[Callable[[bool], None]] = []
        self._subscriptions: dict[int, _Subscription] = {}
        self._numbers = 0
        self._replies: dict[str, asyncio.Future[bytes]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._first_connection = asyncio.Event()
        self._closed = False

    async def open(self) -> SimulatedBus:
        """Returns at once; connecting goes on in the background, for ever."""
        self._connecting = asyncio.create_task(self._connect_for_ever(), name=f"bus-connect {self.name}")
        return self

    async def wait_connected(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._first_connection.wait()
        except TimeoutError:
            raise BusUnavailable(f"no connection within {timeout_seconds:g} s") from None

    @property
    def frozen(self) -> bool:
        return self.process is not None and self.process.condition is Condition.FROZEN

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def connection_epoch(self) -> int:
        return self._epoch

    def on_connection_change(self, callback: Callable[[bool], None]) -> None:
        self._callbacks.append(callback)

    async def publish(self, subject: str, payload: bytes) -> None:
        connection = self._require()
        self.server.on_sent(self, subject, payload)
        now = asyncio.get_running_loop().time()
        connection.to_server.send(partial(self.server.route, connection, Message(subject, payload), now))

    async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> Subscription:
        self._numbers += 1
        subscription = _Subscription(self, self._numbers, subject, callback)
        self._subscriptions[subscription.number] = subscription
        if self._connection is not None:
            self._announce(self._connection, subscription.number, subject)
        return subscription

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        connection = self._require()
        self.server.on_sent(self, subject, payload)
        self._numbers += 1
        inbox = f"{INBOX}{self.number}.{self._numbers}"
        now = asyncio.get_running_loop().time()
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._replies[inbox] = future

        def nobody() -> None:
            if not future.done():
                future.set_exception(NoResponders("nobody listens"))

        connection.to_server.send(
            partial(self.server.route, connection, Message(subject, payload, inbox), now, wants_responder=nobody)
        )
        try:
            reply: bytes = await _within(future, timeout_seconds, f"no reply on {subject}")
            return reply
        finally:
            del self._replies[inbox]

    async def move(self, why: str) -> None:
        """There is one server."""

    async def flush(self, timeout_seconds: float) -> None:
        await self._ask(lambda store: None, writes=False, timeout_seconds=timeout_seconds)

    async def bucket(self, name: str, history: int = 1) -> Bucket:
        await self._ask(lambda store: store.buckets.setdefault(name, StoredBucket()) and None, writes=True)
        return _Bucket(self, name)

    async def log(self, name: str, max_entries: int, max_bytes: int) -> Log:
        def open_log(store: Store) -> None:
            log = store.logs.setdefault(name, StoredLog(max_entries, max_bytes))
            log.max_entries, log.max_bytes = max_entries, max_bytes

        await self._ask(open_log, writes=True)
        return _Log(self, name)

    async def queue(self, name: str, max_bytes: int) -> Queue:
        def open_queue(store: Store) -> None:
            store.queues.setdefault(name, StoredQueue(max_bytes)).max_bytes = max_bytes

        await self._ask(open_queue, writes=True)
        return _Queue(self, name)

    async def blobs(self, name: str, max_bytes: int) -> Blobs:
        def open_blobs(store: Store) -> None:
            store.blobs.setdefault(name, StoredBlobs(max_bytes)).max_bytes = max_bytes

        await self._ask(open_blobs, writes=True)
        return _Blobs(self, name)

    def blob_reader(self, name: str) -> BlobReader:
        return _Blobs(self, name)

    async def inbox(self, name: str, subjects: Sequence[str], max_bytes: int, message_max_bytes: int) -> Inbox:
        def open_inbox(store: Store) -> None:
            inbox = store.inboxes.setdefault(name, StoredInbox(tuple(subjects), max_bytes, message_max_bytes))
            inbox.subjects, inbox.max_bytes, inbox.message_max_bytes = tuple(subjects), max_bytes, message_max_bytes

        await self._ask(open_inbox, writes=True)
        return _Inbox(self, name)

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.open_at_client = False
            connection.to_server.send(partial(self.server.drop, connection))

    # Called by the network.

    def deliver(self, connection: Connection, number: int, message: Message, published_at: float) -> None:
        if connection is not self._connection:
            return
        self.server.on_delivered(self, message.subject, published_at)
        if number == 0:
            future = self._replies.get(message.subject)
            if future is not None and not future.done():
                future.set_result(message.payload)
            return
        subscription = self._subscriptions.get(number)
        if subscription is not None:
            subscription.callback(message)

    def lost(self, connection: Connection) -> None:
        """The connection ended, or this side gives it up."""
        if connection is not self._connection:
            return
        self._connection = None
        connection.open_at_client = False
        connection.watch()
        connection.to_client.discard()
        weather = self.server.weather
        if connection.to_server.cut and self.server.random.random() < weather.kept_after_giving_up:
            self.given_up = [*self.given_up[-3:], connection]
        else:
            connection.to_server.discard()
        if connection.open_at_server:
            connection.to_server.send(partial(self.server.drop, connection))
        self._tell(False)
        self._wake.set()

    async def _connect_for_ever(self) -> None:
        while True:
            latency = self.server.random.uniform(*self.server.weather.latency_seconds)
            await asyncio.sleep(3 * latency)
            if self.server.up and not self.cut_to_server and not self.cut_from_server:
                connection = Connection(self.server, self)
                for subscription in self._subscriptions.values():
                    connection.patterns[subscription.number] = subscription.subject
                self.server.accept(connection)
                self._connection = connection
                self._epoch += 1
                self.connected_since = asyncio.get_running_loop().time()
                self._wake.clear()
                self._first_connection.set()
                self._tell(True)
                await self._wake.wait()
            await asyncio.sleep(self.server.random.uniform(*self.server.weather.reconnect_seconds))

    def _tell(self, connected: bool) -> None:
        for callback in self._callbacks:
            callback(connected)

    def _require(self) -> Connection:
        if self._connection is None:
            raise BusUnavailable("not connected")
        return self._connection

    def _announce(self, connection: Connection, number: int, subject: str | None) -> None:
        def arrive() -> None:
            self.server.subscribed(connection, number, subject)

        connection.to_server.send(arrive)

    def forget(self, subscription: _Subscription) -> None:
        self._subscriptions.pop(subscription.number, None)
        if self._connection is not None:
            self._announce(self._connection, subscription.number, None)

    async def _ask(
        self,
        operation: Callable[[Store], Any],
        writes: bool,
        timeout_seconds: float = JETSTREAM_TIMEOUT_SECONDS,
    ) -> Any:
        connection = self._require()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def reply(outcome: Any) -> None:
            if not future.done() and connection is self._connection:
                future.set_result(outcome)

        connection.to_server.send(partial(self.server.ask, connection, operation, writes, reply))
        outcome = await _within(future, timeout_seconds, "no acknowledgement")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class SimulatedSystemEvents:
    """Disconnects as the server sees them (`protocol.nats_bus.SystemEvents`), heard over this client."""

    def __init__(self, bus: SimulatedBus) -> None:
        self._bus = bus
        self._callback: Callable[[str], None] | None = None

    async def on_disconnect(self, callback: Callable[[str], None]) -> Subscription:
        self._callback = callback
        self._bus.server._disconnect_heard.append(self)
        return self

    async def unsubscribe(self) -> None:
        self._bus.server._disconnect_heard.remove(self)

    def tell(self, name: str) -> None:
        connection = self._bus._connection
        if connection is not None and self._callback is not None and connection.open_at_server:
            connection.to_client.send(partial(self._callback, name))


class _Subscription:
    def __init__(self, bus: SimulatedBus, number: int, subject: str, callback: Callable[[Message], None]) -> None:
        self.number = number
        self.subject = subject
        self.callback = callback
        self._bus = bus

    async def unsubscribe(self) -> None:
        self._bus.forget(self)


class _Bucket:
    def __init__(self, bus: SimulatedBus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def get(self, key: str) -> Entry | None:
        found: Entry | None = await self._bus._ask(lambda store: self._of(store).entries.get(key), writes=False)
        return found

    async def create(self, key: str, value: bytes) -> int:
        return await self._write(key, value, lambda entry: entry is None, "exists")

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await self._write(
            key, value, lambda entry: entry is not None and entry.revision == revision, f"is not at {revision}"
        )

    async def put(self, key: str, value: bytes) -> int:
        return await self._write(key, value, lambda entry: True, "")

    async def delete(self, key: str, revision: int | None = None) -> None:
        await self._write(
            key, None, lambda entry: revision is None or (entry is not None and entry.revision == revision), "differs"
        )

    async def entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = await self._bus._ask(lambda store: dict(self._of(store).entries), writes=False)
        return found

    async def read(self, after: int, take: Callable[[Entry | Deleted], None]) -> Extent:
        def read(store: Store) -> tuple[Extent, list[Entry | Deleted]]:
            bucket = self._of(store)
            extent = Extent(bucket.revision, len(bucket.entries) + len(bucket.deleted))
            changed: list[Entry | Deleted] = [each for each in bucket.entries.values() if each.revision > after]
            changed.extend(Deleted(key, at) for key, at in bucket.deleted.items() if at > after)
            return extent, sorted(changed, key=lambda each: each.revision)

        extent, changed = await self._bus._ask(read, writes=False)
        for each in changed:
            take(each)
        return extent  # type: ignore[no-any-return]

    async def _write(self, key: str, value: bytes | None, allowed: Callable[[Entry | None], bool], why: str) -> int:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a key")
        server = self._bus.server

        def write(store: Store) -> int:
            bucket = self._of(store)
            entry = bucket.entries.get(key)
            if entry is None and value is None:
                return bucket.revision
            if not allowed(entry):
                raise WrongRevision(f"{self._name}/{key} {why}")
            bucket.revision += 1
            if value is None:
                bucket.entries.pop(key, None)
                bucket.deleted[key] = bucket.revision
            else:
                bucket.deleted.pop(key, None)
                bucket.entries[key] = Entry(key, value, bucket.revision)
            server.on_write(self._name, key, value, bucket.revision)
            return bucket.revision

        revision: int = await self._bus._ask(write, writes=True)
        server.acknowledged[self._name] = max(revision, server.acknowledged.get(self._name, 0))
        return revision

    def _of(self, store: Store) -> StoredBucket:
        return store.buckets[self._name]


class _Log:
    def __init__(self, bus: SimulatedBus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def append(self, payload: bytes) -> int:
        def append(store: Store) -> int:
            log = store.logs[self._name]
            log.sequence += 1
            log.entries.append(LogEntry(log.sequence, payload))
            log.size_bytes += len(payload)
            while len(log.entries) > log.max_entries or log.size_bytes > log.max_bytes:
                log.size_bytes -= len(log.entries.popleft().payload)
            return log.sequence

        sequence: int = await self._bus._ask(append, writes=True)
        return sequence

    async def read(self, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        def read(store: Store) -> list[LogEntry]:
            return [entry for entry in store.logs[self._name].entries if entry.sequence > after][:limit]

        found: list[LogEntry] = await self._bus._ask(read, writes=False)
        return found

    async def last(self, limit: int) -> list[LogEntry]:
        def last(store: Store) -> list[LogEntry]:
            return list(store.logs[self._name].entries)[-limit:] if limit else []

        found: list[LogEntry] = await self._bus._ask(last, writes=False)
        return found

    async def follow(self, after: int) -> AsyncIterator[LogEntry]:
        at = after
        while True:
            for entry in await self.read(at):
                at = entry.sequence
                yield entry
            await asyncio.sleep(FOLLOW_POLL_SECONDS)


class _Queue:
    def __init__(self, bus: SimulatedBus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def put(self, payload: bytes, key: str) -> int:
        loop = asyncio.get_running_loop()

        def put(store: Store) -> int | BusUnavailable:
            queue, now = store.queues[self._name], loop.time()
            queue.keys = {k: v for k, v in queue.keys.items() if now - v[1] < QUEUE_DEDUPLICATION_SECONDS}
            if key in queue.keys:
                return queue.keys[key][0]
            if sum(map(len, queue.entries.values())) + len(payload) > queue.max_bytes:
                return BusUnavailable("the queue is full")
            queue.sequence += 1
            queue.entries[queue.sequence] = payload
            queue.keys[key] = (queue.sequence, now)
            return queue.sequence

        stored: int | BusUnavailable = await self._bus._ask(put, writes=True)
        if isinstance(stored, BusUnavailable):
            raise stored
        return stored

    async def get(self, sequence: int) -> bytes | None:
        found: bytes | None = await self._bus._ask(
            lambda store: store.queues[self._name].entries.get(sequence), writes=False
        )
        return found

    async def entries(self) -> list[LogEntry]:
        def read(store: Store) -> list[LogEntry]:
            return [LogEntry(sequence, payload) for sequence, payload in store.queues[self._name].entries.items()]

        found: list[LogEntry] = await self._bus._ask(read, writes=False)
        return found

    async def remove(self, sequence: int) -> None:
        def remove(store: Store) -> None:
            store.queues[self._name].entries.pop(sequence, None)

        await self._bus._ask(remove, writes=True)


class _Blobs:
    """Each chunk is a write of its own, as on the real server, so a put can end in the middle."""

    def __init__(self, bus: SimulatedBus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._puts = 0

    async def find(self, name: str) -> Blob | None:
        def find(blobs: StoredBlobs) -> Blob | None:
            return blobs.named.get(name)

        found: Blob | None = await self._do(find, writes=False)
        return found

    async def chunk(self, blob: Blob, after: int = 0) -> Chunk | None:
        def chunk(blobs: StoredBlobs) -> Chunk | None:
            positions = [at for at, (handle, _, _) in blobs.chunks.items() if handle == blob.handle and at > after]
            return Chunk(blobs.chunks[min(positions)][1], min(positions)) if positions else None

        found: Chunk | None = await self._do(chunk, writes=False)
        return found

    async def put(self, name: str, content: BinaryIO) -> Blob:
        loop = asyncio.get_running_loop()
        self._puts += 1
        handle = f"{self._bus.name}-{self._bus.connection_epoch}-{self._puts}-{loop.time()}"
        digest, size = hashlib.sha256(), 0

        def add(blobs: StoredBlobs, payload: bytes) -> None:
            if sum(len(kept) for _, kept, _ in blobs.chunks.values()) + len(payload) > blobs.max_bytes:
                raise BlobsFull("maximum bytes exceeded")
            blobs.position += 1
            blobs.chunks[blobs.position] = (handle, payload, loop.time())

        def forget(blobs: StoredBlobs) -> None:
            blobs.chunks = {at: kept for at, kept in blobs.chunks.items() if kept[0] != handle}

        while payload := content.read(BLOB_CHUNK_BYTES):
            digest.update(payload)
            size += len(payload)
            try:
                await self._do(partial(add, payload=payload), writes=True)
            except BusUnavailable:
                await self._do(forget, writes=True)
                raise
        blob = Blob(name, size, digest.hexdigest(), handle)

        def show(blobs: StoredBlobs) -> None:
            before = blobs.named.get(name)
            blobs.named[name] = blob
            if before is not None:
                blobs.chunks = {at: kept for at, kept in blobs.chunks.items() if kept[0] != before.handle}

        await self._do(show, writes=True)
        return blob

    async def remove(self, name: str) -> None:
        def remove(blobs: StoredBlobs) -> None:
            blob = blobs.named.pop(name, None)
            if blob is not None:
                blobs.chunks = {at: kept for at, kept in blobs.chunks.items() if kept[0] != blob.handle}

        await self._do(remove, writes=True)

    async def all(self) -> dict[str, Blob]:
        found: dict[str, Blob] = await self._do(lambda blobs: dict(blobs.named), writes=False)
        return found

    async def used_bytes(self) -> int:
        used: int = await self._do(lambda blobs: sum(len(kept[1]) for kept in blobs.chunks.values()), writes=False)
        return used

    async def sweep(self, older_than_seconds: float) -> int:
        now = asyncio.get_running_loop().time()

        def sweep(blobs: StoredBlobs) -> int:
            named = {blob.handle for blob in blobs.named.values()}
            newest: dict[str, float] = {}
            for handle, _, at in blobs.chunks.values():
                newest[handle] = max(at, newest.get(handle, 0.0))
            stale = {handle for handle, at in newest.items() if handle not in named and now - at >= older_than_seconds}
            blobs.chunks = {at: kept for at, kept in blobs.chunks.items() if kept[0] not in stale}
            return len(stale)

        swept: int = await self._do(sweep, writes=True)
        return swept

    async def _do(self, what: Callable[[StoredBlobs], Any], writes: bool) -> Any:
        def operation(store: Store) -> Any:
            if self._name not in store.blobs:
                return NoResponders(f"there is no store {self._name}")
            try:
                return what(store.blobs[self._name])
            except BlobsFull as full:
                return full

        outcome = await self._bus._ask(operation, writes)
        if isinstance(outcome, (NoResponders, BlobsFull)):
            raise outcome
        return outcome


class _Inbox:
    def __init__(self, bus: SimulatedBus, name: str) -> None:
        self._bus = bus
        self._name = name

    async def read(self, after: int, limit: int) -> list[InboxEntry]:
        def read(store: Store) -> list[InboxEntry]:
            return [entry for entry in store.inboxes[self._name].entries.values() if entry.sequence > after][:limit]

        found: list[InboxEntry] = await self._bus._ask(read, writes=False)
        return found

    async def remove(self, sequence: int) -> None:
        def remove(store: Store) -> None:
            store.inboxes[self._name].entries.pop(sequence, None)

        await self._bus._ask(remove, writes=True)


class _Commit:
    """A write on its way to the disk."""

    timer: asyncio.TimerHandle

    def __init__(
        self, at: float, operation: Callable[[Store], Any], sender: Connection, reply: Callable[[Any], None]
    ) -> None:
        self.at = at
        self.sender = sender
        self.reply = reply
        self._operation = operation

    def apply(self, store: Store) -> Any:
        return _attempt(self._operation, store)


_WORLD = contextvars.Context()
"""Where the server's own steps run: in no process."""


def _attempt(operation: Callable[[Store], Any], store: Store) -> Any:
    try:
        return operation(store)
    except WrongRevision as refusal:
        return refusal


async def _within(future: asyncio.Future[Any], seconds: float, what: str) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await future
    except TimeoutError:
        raise BusUnavailable(f"{what} within {seconds:g} s") from None


def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS subject matches a pattern with `*` and `>`."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(given) > index
        if index >= len(given) or (token != "*" and token != given[index]):
            return False
    return len(wanted) == len(given)
