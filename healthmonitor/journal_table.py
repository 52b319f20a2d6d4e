"""One bucket of the journal in memory: key → value, and the revision at which it was read or written.

Laws: those of the journal (`healthmonitor/journal.py`). Reading is from memory; a value is written only over the very
value that its writer had before it; no answer is read back before anything is tried again; what cannot be read is
named, kept and never overwritten.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import structlog

from healthmonitor.core.carried_keys import carry, has_unknown
from protocol import codec
from protocol.bus import Bucket, BusUnavailable, Deleted, Entry, Extent, WrongRevision

K = TypeVar("K")
T = TypeVar("T")

_WRITE_TRIES = 3
_PAUSE_BETWEEN_TRIES_SECONDS = 0.2

log = structlog.get_logger("journal")


class Superseded(Exception):
    """Somebody else wrote this record since it was read: stop this work, and look again."""


class CorruptRecord(Exception):
    """A record that cannot be read. It is kept as it is; a person must look at it."""

    def __init__(self, bucket: str, key: str, problem: str) -> None:
        super().__init__(
            f"record {key} in bucket {bucket} cannot be read, is kept as it is, and nothing is done with it: {problem};"
            " if a newer monitor wrote it, upgrade this one; else put a valid value there, or delete the key"
        )
        self.bucket = bucket
        self.key = key


class Table(Generic[K, T]):
    """`identify`: what its users call a value. `read`: makes one of bytes, or raises `codec.Invalid`."""

    def __init__(
        self, name: str, kind: type[T], identify: Callable[[T], K], read: Callable[[bytes], T] | None = None
    ) -> None:
        self.name = name
        self.bucket: Bucket | None = None
        self.values: dict[str, T] = {}
        self.corrupt: dict[str, CorruptRecord] = {}
        self._identify = identify
        self._read = read or functools.partial(codec.from_json, kind)
        self._by_id: dict[K, T] = {}
        self._snapshot: Mapping[K, T] | None = None
        self._revisions: dict[str, int] = {}
        self._raw: dict[str, Any] = {}
        """Of those that have keys which this monitor does not know: all that stands there, as plain JSON."""
        self._uncertain: set[str] = set()
        """Keys whose last write had no answer, even after reading back failed."""
        self._written_during_reload: set[str] = set()
        self._read_up_to = 0  # revision of the bucket
        self._deleted: set[str] = set()  # keys of which only their deletion is stored

    async def reload(self) -> None:
        """Takes in what was written since the last reload, by anybody."""
        # What is written while the entries are on their way is newer than they may be, and stays.
        self._written_during_reload.clear()
        extent = await self.opened().read(self._read_up_to, self._take_in)
        told_of_all = extent.keys == len(self._revisions) + len(self._deleted) or bool(self._written_during_reload)
        if extent.revision < self._read_up_to or not told_of_all:
            log.info("all is read anew: an older copy was restored, or records were purged by hand", bucket=self.name)
            extent = await self._read_all()
        self._read_up_to = extent.revision
        self._uncertain -= set(self._uncertain) - self._written_during_reload

    async def _read_all(self) -> Extent:
        gone = {*self._revisions, *self._deleted}

        def take(entry: Entry | Deleted) -> None:
            gone.discard(entry.key)
            self._take_in(entry)

        extent = await self.opened().read(0, take)
        for key in gone - self._written_during_reload:
            self._forget(key)
            self._deleted.discard(key)
        return extent

    def _take_in(self, entry: Entry | Deleted) -> None:
        if entry.key in self._written_during_reload or entry.revision == self._revisions.get(entry.key):
            return
        if isinstance(entry, Deleted):
            self._forget(entry.key)
            self._deleted.add(entry.key)
        else:
            self._take(entry)

    async def save(self, key: str, value: T, replacing: T | None) -> None:
        await self._settle(key)
        if key in self.corrupt:
            raise self.corrupt[key]
        if self.values.get(key) != replacing:
            raise Superseded(f"{self.name}/{key} was changed meanwhile")
        payload = self._payload(key, value)
        revision = self._revisions.get(key)
        bucket = self.opened()
        for _ in range(_WRITE_TRIES):
            try:
                if revision is None:
                    written = await bucket.create(key, payload)
                else:
                    written = await bucket.update(key, payload, revision)
            except WrongRevision:
                await self._read_back(key)
                raise Superseded(f"{self.name}/{key} was written by somebody else") from None
            except BusUnavailable:
                self._uncertain.add(key)
                await asyncio.sleep(_PAUSE_BETWEEN_TRIES_SECONDS)
                entry = await bucket.get(key)
                if entry is not None and entry.value == payload:
                    written = entry.revision
                elif (None if entry is None else entry.revision) == revision:
                    continue
                else:
                    await self._read_back(key)
                    raise Superseded(f"{self.name}/{key} was written by somebody else") from None
            self._held(key, value, written)
            if key in self._raw:
                self._raw[key] = json.loads(payload)
            return
        raise BusUnavailable(f"{self.name}/{key}: not written, or not known to be, in {_WRITE_TRIES} tries")

    async def delete(self, key: str, replacing: T) -> None:
        await self._settle(key)
        held = self.values.get(key)
        if held is None:
            return
        if held != replacing:
            raise Superseded(f"{self.name}/{key} was changed meanwhile")
        try:
            await self.opened().delete(key, self._revisions[key])
        except WrongRevision:
            await self._read_back(key)
            raise Superseded(f"{self.name}/{key} was written by somebody else") from None
        except BusUnavailable:
            self._uncertain.add(key)
            raise
        self._written_during_reload.add(key)
        self._forget(key)
        self._deleted.add(key)

    async def _settle(self, key: str) -> None:
        if key in self._uncertain:
            await self._read_back(key)

    async def _read_back(self, key: str) -> None:
        entry = await self.opened().get(key)
        self._written_during_reload.add(key)
        self._uncertain.discard(key)
        if entry is None:
            self._forget(key)
        elif entry.revision != self._revisions.get(key):
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        self._revisions[entry.key] = entry.revision
        self._deleted.discard(entry.key)
        try:
            self._put(entry.key, self._read(entry.value))
            self.corrupt.pop(entry.key, None)
            self._note_unknown(entry)
        except codec.Invalid as error:
            self._raw.pop(entry.key, None)
            self._drop(entry.key)
            self.corrupt[entry.key] = CorruptRecord(self.name, entry.key, str(error))
            log.error("corrupt record", bucket=self.name, key=entry.key, problem=str(error))

    def _note_unknown(self, entry: Entry) -> None:
        """Nearly always the bytes are those that this monitor would write itself, and that is quickly seen."""
        self._raw.pop(entry.key, None)
        value = self.values[entry.key]
        if codec.to_json(value) == entry.value:
            return
        raw = json.loads(entry.value)
        if has_unknown(raw, codec.to_plain(value)):
            self._raw[entry.key] = raw

    def _payload(self, key: str, value: T) -> bytes:
        if key not in self._raw:
            return codec.to_json(value)
        carried = carry(self._raw[key], codec.to_plain(self.values[key]), codec.to_plain(value))
        return json.dumps(carried, separators=(",", ":"), ensure_ascii=False).encode()

    def _held(self, key: str, value: T, revision: int) -> None:
        self._written_during_reload.add(key)
        self._uncertain.discard(key)
        self._put(key, value)
        self._revisions[key] = revision
        self._deleted.discard(key)

    def snapshot(self) -> Mapping[K, T]:
        """All there is now; the same object until something changes. Not touched by later changes."""
        if self._snapshot is None:
            self._snapshot = MappingProxyType(dict(self._by_id))
        return self._snapshot

    def _put(self, key: str, value: T) -> None:
        self._drop(key)
        self.values[key] = self._by_id[self._identify(value)] = value
        self._snapshot = None

    def _drop(self, key: str) -> None:
        former = self.values.pop(key, None)
        if former is not None:
            self._by_id.pop(self._identify(former), None)
            self._snapshot = None

    def _forget(self, key: str) -> None:
        self._drop(key)
        self.corrupt.pop(key, None)
        self._revisions.pop(key, None)
        self._raw.pop(key, None)
        self._uncertain.discard(key)

    def opened(self) -> Bucket:
        if self.bucket is None:
            raise BusUnavailable("the journal is not open yet")
        return self.bucket
