"""The bus on NATS. Only `protocol/nats_*` import nats.

Law: nothing is kept to be sent late (the client's own buffer is off), connecting goes on for ever in the background,
subscriptions outlive reconnects, and a cut is noticed within `ping_seconds * 2` and some.

Why the pings are fast: nats-py by default notices a cut only after minutes and then delivers everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import nats.aio.client
import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsPySubscription
from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.kv import KeyValue

from protocol.bus import (
    BlobReader,
    Blobs,
    Bucket,
    BusUnavailable,
    Deleted,
    Entry,
    Extent,
    Inbox,
    InboxEntry,
    Log,
    LogEntry,
    Message,
    Queue,
    Subscription,
)
from protocol.nats_blobs import NatsBlobReader, NatsBlobs
from protocol.nats_client import RETRY_WAIT_SECONDS, ShortWayClient
from protocol.nats_errors import errors as _errors
from protocol.settings import BusSettings

log = structlog.get_logger(__name__)

JETSTREAM_TIMEOUT_SECONDS = 5.0
CONNECT_TIMEOUT_SECONDS = 3
PING_SECONDS = 2
PINGS_OUTSTANDING = 2
PENDING_MESSAGES = 1_000_000
PENDING_BYTES = 256 * 1024 * 1024
"""What one subscription may hold while its reader is behind; beyond it NATS drops, and the drop is logged."""
READ_BATCH = 500
READ_ON_SECONDS = 1.0
TAKEN_AT_ONCE = 100
"""Of a bucket that is read, between two moments in which others may go on: what is read is decoded, too."""
BEHIND_PAUSE_SECONDS = 0.05
QUEUE_DEDUPLICATION_SECONDS = 120.0
_NO_MESSAGE = 10037
_NO_SUCH_SEQUENCE = 10043
_DELETE_FAILED = 10057
"""JetStream's error codes for a sequence number that is not there, asked for and deleted."""


_Fetch = Callable[[int, float], Awaitable[list[LogEntry]]]
_FetchMessages = Callable[[int, float], Awaitable[list[Msg]]]


_CHANGEABLE = ("subjects", "max_msgs", "max_bytes", "max_msg_size", "num_replicas", "duplicate_window")
"""What a stream of ours may be given otherwise in a later version or configuration."""


class NatsBus:
    """Use `NatsBus.open(...)`: it returns at once and connects in the background."""

    def __init__(self, settings: BusSettings, name: str, replicas: int = 1) -> None:
        self._settings = settings
        self._name = name
        self._replicas = replicas
        self._client = ShortWayClient()
        self._jetstream: JetStreamContext | None = None
        self._epoch = 0
        self._callbacks: list[Callable[[bool], None]] = []
        self._subscriptions: list[_Subscription] = []
        self._connecting: asyncio.Task[None] | None = None
        self._first_connection = asyncio.Event()
        self._closed = False

    @classmethod
    async def open(cls, settings: BusSettings, name: str, replicas: int = 1) -> NatsBus:
        """`name` is what the server calls this connection: an agent gives its agent id."""
        bus = cls(settings, name, replicas)
        bus._connecting = asyncio.create_task(bus._connect_for_ever(), name="bus-connect")
        return bus

    @property
    def connected(self) -> bool:
        return not self._closed and self._epoch > 0 and self._client.is_connected

    @property
    def server(self) -> str:
        """`host:port` of the server that it is connected to, or was last; "" before the first."""
        return self._client.server

    @property
    def connection_epoch(self) -> int:
        return self._epoch

    def on_connection_change(self, callback: Callable[[bool], None]) -> None:
        self._callbacks.append(callback)

    async def wait_connected(self, timeout_seconds: float) -> None:
        """BusUnavailable when there was no first connection in time."""
        try:
            await asyncio.wait_for(self._first_connection.wait(), timeout_seconds)
        except TimeoutError:
            raise BusUnavailable(
                f"no connection to {', '.join(self._settings.urls)} within {timeout_seconds:g} s"
            ) from None

    async def publish(self, subject: str, payload: bytes) -> None:
        if not self.connected:
            raise BusUnavailable("not connected")
        with _errors():
            await self._client.publish(subject, payload)

    async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> Subscription:
        subscription = _Subscription(self, subject, callback)
        self._subscriptions.append(subscription)
        if self._epoch > 0:
            with _errors():
                await subscription.start()
        return subscription

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        if not self.connected:
            raise BusUnavailable("not connected")
        with _errors():
            reply = await self._client.request(subject, payload, timeout=timeout_seconds)
            return reply.data

    async def flush(self, timeout_seconds: float) -> None:
        if not self.connected:
            raise BusUnavailable("not connected")
        with _errors():
            async with asyncio.timeout(timeout_seconds):
                # Twice: nats-py writes the PING at once, ahead of what waits to be written. When the first PONG is
                # back, that has been written, and the second PING is behind it.
                for _ in range(2):
                    # it takes a whole number of seconds in its types, and any number in fact
                    await self._client.flush(timeout=timeout_seconds)  # type: ignore[arg-type]

    async def move(self, why: str) -> None:
        if self.connected and len(self._settings.urls) > 1:
            log.warning("bus.moves", reason=why, server=self.server)
            await self._client.force_reconnect()

    async def bucket(self, name: str, history: int = 1) -> Bucket:
        with _errors():
            store = await self._js().create_key_value(
                api.KeyValueConfig(bucket=name, history=history, storage=api.StorageType.FILE, replicas=self._replicas)
            )
        return _Bucket(store, self._js(), f"KV_{name}")

    async def log(self, name: str, max_entries: int, max_bytes: int) -> Log:
        config = api.StreamConfig(
            name=f"LOG_{name}",
            subjects=[f"log.{name}"],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_msgs=max_entries,
            max_bytes=max_bytes,
            num_replicas=self._replicas,
        )
        await self._stream(config)
        return _Log(self._js(), f"LOG_{name}", f"log.{name}")

    async def queue(self, name: str, max_bytes: int) -> Queue:
        config = api.StreamConfig(
            name=f"QUEUE_{name}",
            subjects=[f"queue.{name}"],
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW,
            max_bytes=max_bytes,
            num_replicas=self._replicas,
            duplicate_window=QUEUE_DEDUPLICATION_SECONDS,
        )
        await self._stream(config)
        return _Queue(self._js(), f"QUEUE_{name}", f"queue.{name}")

    async def blobs(self, name: str, max_bytes: int) -> Blobs:
        return await NatsBlobs.open(self._js, name, max_bytes, self._replicas)

    def blob_reader(self, name: str) -> BlobReader:
        return NatsBlobReader(self._js, name)

    async def inbox(self, name: str, subjects: Sequence[str], max_bytes: int, message_max_bytes: int) -> Inbox:
        config = api.StreamConfig(
            name=f"INBOX_{name}",
            subjects=list(subjects),
            storage=api.StorageType.FILE,
            retention=api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.OLD,
            max_bytes=max_bytes,
            max_msg_size=message_max_bytes,
            num_replicas=self._replicas,
        )
        await self._stream(config)
        return _Inbox(self._js(), f"INBOX_{name}")

    async def _stream(self, config: api.StreamConfig) -> None:
        """Looks before it creates: the server sets `max_bytes` aside, and asked to create what is there it looks for
        room for it a second time."""
        with _errors():
            try:
                standing = (await self._js().stream_info(str(config.name))).config
            except nats.js.errors.NotFoundError:
                await self._js().add_stream(config)
            else:
                wanted = {name: getattr(config, name) for name in _CHANGEABLE}
                if any(value and value != getattr(standing, name) for name, value in wanted.items()):
                    await self._js().update_stream(config)

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
            await self._client.close()

    async def _connect_for_ever(self) -> None:
        tls = _tls(self._settings)
        while True:
            try:
                await self._client.connect(
                    servers=list(self._settings.urls),
                    name=self._name,
                    user=self._settings.user or None,
                    password=self._settings.password or None,
                    user_credentials=(
                        nats.aio.client.RawCredentials(self._settings.credentials)
                        if self._settings.credentials
                        else None
                    ),
                    tls=tls,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    reconnect_to_server_handler=self._client.next_server,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    reconnect_time_wait=RETRY_WAIT_SECONDS,  # type: ignore[arg-type]
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=PINGS_OUTSTANDING,
                    pending_size=0,
                )
                break
            except (TimeoutError, nats.errors.Error, OSError) as error:
                log.warning("bus.connect_failed", urls=self._settings.urls, error=repr(error), next="retrying")
                await asyncio.sleep(RETRY_WAIT_SECONDS)
        self._jetstream = self._client.jetstream(timeout=JETSTREAM_TIMEOUT_SECONDS)
        for subscription in list(self._subscriptions):
            with _errors():
                await subscription.start()
        self._epoch = 1
        self._first_connection.set()
        self._tell(True)

    async def _on_error(self, error: Exception) -> None:
        log.warning("bus.error", error=repr(error), connected=self._client.is_connected)

    async def _on_disconnected(self) -> None:
        if self._epoch > 0 and not self._closed:
            log.warning("bus.disconnected", next="reconnecting")
            self._tell(False)

    async def _on_reconnected(self) -> None:
        self._epoch += 1
        log.info("bus.reconnected", epoch=self._epoch)
        self._tell(True)

    def _tell(self, connected: bool) -> None:
        for callback in self._callbacks:
            callback(connected)

    def _js(self) -> JetStreamContext:
        if self._jetstream is None or not self.connected:
            raise BusUnavailable("not connected")
        return self._jetstream

    def _forget(self, subscription: _Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)


class SystemEvents:
    """Disconnects of other clients as the server sees them, heard as a user of the system account."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus

    async def on_disconnect(self, callback: Callable[[str], None]) -> Subscription:
        """`callback(name)` with the client's connection name, whenever a client's connection ended."""

        def heard(message: Message) -> None:
            try:
                name = json.loads(message.payload)["client"].get("name", "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                log.warning("bus.system_event_unreadable", subject=message.subject, error=repr(error))
                return
            if name and isinstance(name, str):
                callback(name)

        return await self._bus.subscribe("$SYS.ACCOUNT.*.DISCONNECT", heard)


class _Subscription:
    def __init__(self, bus: NatsBus, subject: str, callback: Callable[[Message], None]) -> None:
        self._bus = bus
        self._subject = subject
        self._callback = callback
        self._real: NatsPySubscription | None = None
        self._deliver: object = None
        self._ended = False

    async def start(self) -> None:
        callback = self._callback

        async def deliver(message: Msg) -> None:
            if self._ended:
                return
            try:
                callback(Message(message.subject, message.data, message.reply))
            except Exception:
                # the edge of a task that is not ours: an error in one message must not end the subscription
                log.exception("bus.callback_failed", subject=message.subject)

        if self._real is None:
            self._bus._client.open_short_way(deliver, callback)
            self._deliver = deliver
            self._real = await self._bus._client.subscribe(
                self._subject,
                cb=deliver,
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )

    async def unsubscribe(self) -> None:
        self._ended = True
        self._bus._forget(self)
        self._bus._client.close_short_way(self._deliver)
        if self._real is not None and self._bus.connected:
            with _errors():
                await self._real.unsubscribe()


class _Bucket:
    def __init__(self, store: KeyValue, jetstream: JetStreamContext, stream: str) -> None:
        self._store = store
        self._jetstream = jetstream
        self._stream = stream
        self._prefix = f"$KV.{stream.removeprefix('KV_')}."

    async def get(self, key: str) -> Entry | None:
        with _errors():
            try:
                entry = await self._store.get(key)
            except nats.js.errors.KeyNotFoundError:  # KeyDeletedError too
                return None
            except nats.js.errors.KeyDeletedError:
                return None
            return Entry(key, entry.value or b"", entry.revision or 0)

    async def create(self, key: str, value: bytes) -> int:
        with _errors():
            return await self._store.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        with _errors():
            return await self._store.update(key, value, last=revision)

    async def put(self, key: str, value: bytes) -> int:
        with _errors():
            return await self._store.put(key, value)

    async def delete(self, key: str, revision: int | None = None) -> None:
        if await self.get(key) is None:
            return
        with _errors():
            await self._store.delete(key, last=revision)

    async def entries(self) -> dict[str, Entry]:
        """In a cluster the reader may stand on a server whose copy is behind: what it gave is held against the number
        of the last write, which the stream's leader knows, and read again until it is no older than the call."""
        with _errors():
            async with asyncio.timeout(JETSTREAM_TIMEOUT_SECONDS):
                last = (await self._store.status()).stream_info.state.last_seq
                while True:
                    found, newest = await self._read_all()
                    if newest >= last or not await self._is_stored(last):
                        return found
                    await asyncio.sleep(BEHIND_PAUSE_SECONDS)

    async def _is_stored(self, sequence: int) -> bool:
        """False: the last write was purged since, by hand. There is nothing to wait for."""
        try:
            await self._jetstream.get_msg(self._stream, sequence)
        except nats.js.errors.APIError as error:
            if error.err_code in (_NO_MESSAGE, _NO_SUCH_SEQUENCE):
                return False
            raise
        return True

    async def _read_all(self) -> tuple[dict[str, Entry], int]:
        """What the reader gives, and the highest number in it."""
        found: dict[str, Entry] = {}
        newest = 0
        with _errors():
            watcher = await self._store.watchall()
            try:
                while True:
                    update = await watcher.updates(timeout=JETSTREAM_TIMEOUT_SECONDS)  # type: ignore[no-untyped-call]
                    if update is None:
                        return found, newest
                    newest = max(newest, update.revision or 0)
                    if update.operation in ("DEL", "PURGE"):
                        found.pop(update.key, None)
                    else:
                        found[update.key] = Entry(update.key, update.value or b"", update.revision or 0)
            finally:
                await watcher.stop()  # type: ignore[no-untyped-call]

    async def read(self, after: int, take: Callable[[Entry | Deleted], None]) -> Extent:
        """In a cluster the reader may stand on a server whose copy is behind; see `entries`."""
        with _errors():
            state = (await self._jetstream.stream_info(self._stream)).state
        last, reached = int(state.last_seq), after
        loop = asyncio.get_running_loop()
        until = loop.time() + JETSTREAM_TIMEOUT_SECONDS
        while state.messages and reached < last:
            reached = await self._read_on(reached, last, take)
            if reached >= last:
                break
            with _errors():
                if not await self._is_stored(last):
                    break
            if loop.time() > until:
                raise BusUnavailable(f"{self._stream}: read up to {reached} of {last}, and no further")
            await asyncio.sleep(BEHIND_PAUSE_SECONDS)
        return Extent(last, int(state.messages))

    async def _read_on(self, after: int, last: int, take: Callable[[Entry | Deleted], None]) -> int:
        """Up to `last`, or as far as there is anything; returns the highest number read."""
        reached = after
        async with _reader(self._jetstream, self._stream, f"{self._prefix}>", after) as fetch:
            while reached < last:
                batch = await fetch(TAKEN_AT_ONCE, READ_ON_SECONDS)
                for message in batch:
                    reached = message.metadata.sequence.stream
                    key = message.subject.removeprefix(self._prefix)
                    if message.headers and message.headers.get("KV-Operation") in ("DEL", "PURGE"):
                        take(Deleted(key, reached))
                    else:
                        take(Entry(key, message.data, reached))
                if not batch or batch[-1].metadata.num_pending == 0:
                    break
        return reached


class _Log:
    def __init__(self, jetstream: JetStreamContext, stream: str, subject: str) -> None:
        self._js = jetstream
        self._stream = stream
        self._subject = subject

    async def append(self, payload: bytes) -> int:
        with _errors():
            return (await self._js.publish(self._subject, payload)).seq

    async def read(self, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        with _errors():
            state = (await self._js.stream_info(self._stream)).state
        if state.last_seq <= after or state.messages == 0:
            return []
        wanted = min(limit, state.last_seq - max(after, state.first_seq - 1))
        found: list[LogEntry] = []
        async with self.reader(after) as fetch:
            while len(found) < wanted:
                batch = await fetch(min(READ_BATCH, wanted - len(found)), JETSTREAM_TIMEOUT_SECONDS)
                if not batch:
                    break  # entries in the middle were discarded meanwhile
                found.extend(batch)
        return found

    async def last(self, limit: int) -> list[LogEntry]:
        with _errors():
            state = (await self._js.stream_info(self._stream)).state
        return await self.read(max(0, state.last_seq - limit), limit)

    async def follow(self, after: int) -> AsyncIterator[LogEntry]:
        at = after
        while True:
            async with self.reader(at) as fetch:
                # A reader that heard nothing for a while is made anew: its consumer may be gone with a server
                for _ in range(10):
                    for entry in await fetch(READ_BATCH, 1.0):
                        at = entry.sequence
                        yield entry

    @contextlib.asynccontextmanager
    async def reader(self, after: int) -> AsyncIterator[_Fetch]:
        async with _reader(self._js, self._stream, self._subject, after) as fetch_messages:

            async def fetch(limit: int, timeout_seconds: float) -> list[LogEntry]:
                messages = await fetch_messages(limit, timeout_seconds)
                return [LogEntry(message.metadata.sequence.stream, message.data) for message in messages]

            yield fetch


@contextlib.asynccontextmanager
async def _reader(jetstream: JetStreamContext, stream: str, subject: str, after: int) -> AsyncIterator[_FetchMessages]:
    """Reads a stream from the message after `after` on."""
    with _errors():
        subscription = await jetstream.pull_subscribe(
            subject,
            stream=stream,
            config=api.ConsumerConfig(
                deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=after + 1,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=30.0,
            ),
        )

    async def fetch(limit: int, timeout_seconds: float) -> list[Msg]:
        with _errors():
            try:
                return await subscription.fetch(limit, timeout=timeout_seconds)
            except nats.errors.TimeoutError:
                return []

    try:
        yield fetch
    finally:
        with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
            await subscription.unsubscribe()


class _Queue:
    def __init__(self, jetstream: JetStreamContext, stream: str, subject: str) -> None:
        self._js = jetstream
        self._stream = stream
        self._subject = subject
        self._log = _Log(jetstream, stream, subject)

    async def put(self, payload: bytes, key: str) -> int:
        with _errors():
            return (await self._js.publish(self._subject, payload, headers={"Nats-Msg-Id": key})).seq

    async def get(self, sequence: int) -> bytes | None:
        with _errors():
            try:
                return (await self._js.get_msg(self._stream, sequence)).data or b""
            except nats.js.errors.APIError as error:
                if error.err_code == _NO_MESSAGE:
                    return None
                raise

    async def entries(self) -> list[LogEntry]:
        with _errors():
            state = (await self._js.stream_info(self._stream)).state
        found: list[LogEntry] = []
        if state.messages == 0:
            return found
        async with self._log.reader(0) as fetch:
            while len(found) < state.messages:
                batch = await fetch(READ_BATCH, JETSTREAM_TIMEOUT_SECONDS)
                if not batch:
                    break  # some were removed meanwhile
                found.extend(entry for entry in batch if entry.sequence <= state.last_seq)
                if batch[-1].sequence >= state.last_seq:
                    break
        return found

    async def remove(self, sequence: int) -> None:
        await _remove(self._js, self._stream, sequence)


class _Inbox:
    def __init__(self, jetstream: JetStreamContext, stream: str) -> None:
        self._js = jetstream
        self._stream = stream

    async def read(self, after: int, limit: int) -> list[InboxEntry]:
        """One by one: there are few, and what was removed between them is skipped by the server."""
        with _errors():
            state = (await self._js.stream_info(self._stream)).state
        found: list[InboxEntry] = []
        at = max(after + 1, state.first_seq)
        while at <= state.last_seq and len(found) < limit and state.messages:
            with _errors():
                try:
                    message = await self._js.get_msg(self._stream, at, next=True, subject=">")
                except nats.js.errors.APIError as error:
                    if error.err_code == _NO_MESSAGE:
                        break
                    raise
            at = (message.seq or at) + 1
            found.append(InboxEntry(message.seq or 0, message.subject or "", message.data or b""))
        return found

    async def remove(self, sequence: int) -> None:
        await _remove(self._js, self._stream, sequence)


async def _remove(jetstream: JetStreamContext, stream: str, sequence: int) -> None:
    with _errors():
        try:
            await jetstream.delete_msg(stream, sequence)
        except nats.js.errors.APIError as error:
            is_gone = error.err_code in (_NO_MESSAGE, _NO_SUCH_SEQUENCE)
            if not is_gone and not (error.err_code == _DELETE_FAILED and error.description == "no message found"):
                raise


def _tls(settings: BusSettings) -> ssl.SSLContext | None:
    if not settings.ca and not settings.certificate:
        return None
    context = ssl.create_default_context(cadata=settings.ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate:
        # ssl loads a client certificate from files only
        with tempfile.TemporaryDirectory() as directory:
            certificate, key = Path(directory, "certificate.pem"), Path(directory, "key.pem")
            certificate.write_text(settings.certificate)
            key.touch(mode=0o600)
            key.write_text(settings.private_key)
            context.load_cert_chain(certificate, key)
    return context
