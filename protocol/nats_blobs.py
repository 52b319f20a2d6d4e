"""Blobs on JetStream's object store: the layout of NATS' own clients, so that `nats object ls` shows what is there.

Laws: a reader needs no right but direct reads of this one stream (`$JS.API.DIRECT.GET.OBJ_<name>` and below), makes no
consumer, and has one chunk on its way at a time. A blob's name is written last, when every chunk of it is durable.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import BinaryIO

import nats.js.errors
from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.object_store import ObjectStore

from protocol.bus import Blob, BusUnavailable, Chunk
from protocol.nats_errors import errors

CHUNK_BYTES = 256 * 1024
"""Well below the server's max_payload (1 MiB), and short enough that a heartbeat never waits behind one."""
_DIGEST_TYPE = "SHA-256="

Context = Callable[[], JetStreamContext]
"""JetStream at this moment; BusUnavailable when not connected."""


class NatsBlobReader:
    def __init__(self, jetstream: Context, name: str) -> None:
        self._js = jetstream
        self._stream = f"OBJ_{name}"
        self._prefix = f"$O.{name}"

    async def find(self, name: str) -> Blob | None:
        return await self._described(self._name_subject(name))

    async def chunk(self, blob: Blob, after: int = 0) -> Chunk | None:
        subject = self._chunks_subject(blob.handle)
        with errors():
            try:
                found = await self._js().get_msg(self._stream, seq=after + 1, subject=subject, direct=True, next=True)
            except nats.js.errors.NotFoundError:
                return None
        return Chunk(found.data or b"", found.seq or 0)

    async def _described(self, subject: str) -> Blob | None:
        with errors():
            try:
                found = await self._js().get_msg(self._stream, subject=subject, direct=True)
            except nats.js.errors.NotFoundError:
                return None
        return _blob(found.data or b"{}")

    def _name_subject(self, name: str) -> str:
        return f"{self._prefix}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    def _chunks_subject(self, handle: str) -> str:
        return f"{self._prefix}.C.{handle}"


class NatsBlobs(NatsBlobReader):
    """Use `NatsBlobs.open(...)`."""

    @classmethod
    async def open(cls, jetstream: Context, name: str, max_bytes: int, replicas: int) -> NatsBlobs:
        """Looks before it creates: the server sets `max_bytes` aside, and asked to create what is there it looks for
        room for it a second time."""
        with errors():
            try:
                existing = (await jetstream().stream_info(f"OBJ_{name}")).config
            except nats.js.errors.NotFoundError:
                config = api.ObjectStoreConfig(storage=api.StorageType.FILE, max_bytes=max_bytes, replicas=replicas)
                await jetstream().create_object_store(name, config)
            else:
                if (existing.max_bytes, existing.num_replicas) != (max_bytes, replicas):
                    await jetstream().update_stream(existing, max_bytes=max_bytes, num_replicas=replicas)
        return cls(jetstream, name)

    async def put(self, name: str, content: BinaryIO) -> Blob:
        options = api.ObjectMetaOptions(max_chunk_size=CHUNK_BYTES)
        with errors():
            store = ObjectStore(self._prefix.removeprefix("$O."), self._stream, self._js())
            meta = api.ObjectMeta(name=name, options=options)
            # nats-py takes whatever has readinto, and says less in its types
            info = await store.put(name, content, meta)  # type: ignore[arg-type]
        return _blob(json.dumps(info.as_dict()).encode()) or Blob(name, 0, "", "")

    async def remove(self, name: str) -> None:
        """nats-py's own writes a mark of deletion first, for which a full store has no room: the name is purged."""
        blob = await self.find(name)
        if blob is None:
            return
        with errors():
            await self._js().purge_stream(self._stream, subject=self._name_subject(name))
            await self._js().purge_stream(self._stream, subject=self._chunks_subject(blob.handle))

    async def all(self) -> dict[str, Blob]:
        found = [await self._described(subject) for subject in await self._subjects("M")]
        return {blob.name: blob for blob in found if blob is not None}

    async def used_bytes(self) -> int:
        with errors():
            return (await self._js().stream_info(self._stream)).state.bytes

    async def sweep(self, older_than_seconds: float) -> int:
        named = {self._chunks_subject(blob.handle) for blob in (await self.all()).values()}
        swept = 0
        for subject in await self._subjects("C"):
            if subject in named:
                continue
            with errors():
                try:
                    newest = await self._js().get_msg(self._stream, subject=subject, direct=True)
                except nats.js.errors.NotFoundError:
                    continue
                if newest.time is None or (datetime.now(UTC) - newest.time).total_seconds() < older_than_seconds:
                    continue
                await self._js().purge_stream(self._stream, subject=subject)
                swept += 1
        return swept

    async def _subjects(self, kind: str) -> list[str]:
        with errors():
            info = await self._js().stream_info(self._stream, subjects_filter=f"{self._prefix}.{kind}.>")
        return sorted(info.state.subjects or {})


def _blob(payload: bytes) -> Blob | None:
    """None for one that a `nats object rm` marked as deleted."""
    try:
        told = json.loads(payload)
        if told.get("deleted"):
            return None
        digest = base64.urlsafe_b64decode(str(told["digest"]).removeprefix(_DIGEST_TYPE)).hex()
        return Blob(str(told["name"]), int(told["size"]), digest, str(told["nuid"]))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise BusUnavailable(f"the object store's entry cannot be read: {error!r}") from None
