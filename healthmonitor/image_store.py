"""The image store on the bus: blobs in, checked; the index read and written.

Laws: a blob is written only after all of it came and its digest was found right, and is visible only when it is durable
as a whole; what an upload needs in memory is one piece, the rest lies in a file of `directory` until it is done. One
change at a time. Whatever ends in the middle leaves nothing but blobs that no image lists, and the next prune takes
those.

Does not know: who may, deployments (image_actions.py), HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import shutil
import tempfile
import time
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import structlog

from healthmonitor.core.image_index import BadImage, Index, Removal, described
from protocol import codec
from protocol.bus import Blob, BlobReader, Blobs, BlobsFull, Bus, BusError
from protocol.images import (
    CONFIG_MAX_BYTES,
    IMAGE_ID,
    IMAGE_PREFIX,
    REFERENCE_PREFIX,
    StoredImage,
    StoredReference,
    image_name,
    normalised,
    reference_name,
)
from protocol.subjects import IMAGE_STORE

log = structlog.get_logger(__name__)

UPLOADS_MAX = 4
SPARE_BYTES = 256 * 1024 * 1024
"""What an upload must leave free on the monitor's disk."""
PIECE_BYTES = 1024 * 1024
UNFINISHED_SECONDS = 3600.0
"""Chunks of a put that did not end, and blobs that no image lists, are left alone for so long: it may be under way."""
REFRESH_SECONDS = 60.0
MIB = 1024 * 1024


class StoreFull(Exception):
    """The image store's limit, or the disk, leaves no room. The text says which."""


class TooManyUploads(Exception):
    """Others are uploading; try again soon."""


@dataclass(frozen=True, slots=True)
class StoreFigures:
    used_bytes: int = 0
    limit_bytes: int = 0
    images: int = 0
    uploaded_bytes: int = 0


class ImageStore:
    def __init__(self, bus: Bus, directory: Path, limit_bytes: Callable[[], int]) -> None:
        """`limit_bytes` may change with a reload; the next opening applies it."""
        self._bus = bus
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._blobs: Blobs | None = None
        self._opened_limit = 0
        self._changing = asyncio.Lock()
        self._places = asyncio.Semaphore(UPLOADS_MAX)
        self._arrived: dict[str, float] = {}  # digest → when, on the monotonic clock; not yet listed by an image
        self._figures = StoreFigures()

    @property
    def figures(self) -> StoreFigures:
        """As of the last look, at most a minute ago."""
        return replace(self._figures, limit_bytes=self._limit_bytes())

    async def run(self) -> None:
        """Opens the store and keeps the figures up to date, until cancelled. What an earlier monitor was receiving
        when it ended is removed."""
        await asyncio.to_thread(_empty, self._directory)
        complaint = ""
        while True:
            try:
                index = await self.index()
                self._note(len(index.images), await self.used_bytes())
                complaint = ""
            except (BusError, StoreFull, codec.Invalid) as error:  # a monitor without images still does its main job
                if str(error) != complaint:
                    log.warning("images.store_unavailable", error=str(error), next="tried again")
                complaint = str(error)
            await asyncio.sleep(REFRESH_SECONDS)

    async def index(self) -> Index:
        blobs = await self._opened()
        listed = await blobs.all()
        images: dict[str, StoredImage] = {}
        references: dict[str, str] = {}
        for name, blob in listed.items():
            if name.startswith(IMAGE_PREFIX):
                image = codec.from_json(StoredImage, await _whole(blobs, blob))
                images[image.image_id] = image
            elif name.startswith(REFERENCE_PREFIX):
                reference = codec.from_json(StoredReference, await _whole(blobs, blob))
                references[reference.reference] = reference.image_id
        sizes = {name: blob.size_bytes for name, blob in listed.items() if IMAGE_ID.fullmatch(name)}
        return Index(images, {each: of for each, of in references.items() if of in images}, sizes)

    async def missing(self, digests: Sequence[str]) -> tuple[str, ...]:
        """Those of them that have to be uploaded. The others are kept for the push that asks."""
        there = await (await self._opened()).all()
        for digest in digests:
            if digest in there:
                self._arrived[digest] = time.monotonic()
        return tuple(digest for digest in dict.fromkeys(digests) if digest not in there)

    async def receive(self, digest: str, size_bytes: int, content: AsyncIterable[bytes]) -> bool:
        """Stores one blob. False: it was there. BadImage when it is not what its digest says; StoreFull."""
        blobs = await self._opened()
        if await blobs.find(digest) is not None:
            self._arrived[digest] = time.monotonic()
            return False
        if self._places.locked():
            raise TooManyUploads(f"{UPLOADS_MAX} uploads are under way")
        async with self._places:
            await self._check_room(size_bytes)
            with tempfile.TemporaryFile(dir=self._directory) as file:
                found = await _spool(content, file, size_bytes)
                if found != digest:
                    raise BadImage(f"the digest of what came is {found}, not {digest}; nothing was stored")
                await self._put(blobs, digest, file)
        return True

    async def commit(
        self, config: str, layers: Sequence[str], references: Sequence[str], now_unix: float, person: str
    ) -> StoredImage:
        """Names an image whose blobs are all there. BadImage when one is not, or they do not fit together."""
        async with self._changing:
            blobs = await self._opened()
            there = await blobs.all()
            lacking = [digest for digest in (config, *layers) if digest not in there]
            if lacking:
                raise BadImage(f"not in the store: {', '.join(lacking)}; push again")
            if there[config].size_bytes > CONFIG_MAX_BYTES:
                raise BadImage(f"{config} has {there[config].size_bytes} bytes: too many for a configuration")
            text = await _whole(blobs, there[config])
            sizes = [(digest, there[digest].size_bytes) for digest in layers]
            image = replace(described(text, sizes, now_unix, person), image_id=config)
            await self._write(blobs, image_name(config), codec.to_json(image))
            for reference in references:
                named = StoredReference(normalised(reference), config)
                await self._write(blobs, reference_name(reference), codec.to_json(named))
            for digest in image.blobs:
                self._arrived.pop(digest, None)
            self._note(self._figures.images + (image_name(config) not in there), await blobs.used_bytes())
            return image

    async def remove(self, choose: Callable[[Index, frozenset[str]], Removal]) -> tuple[Removal, int]:
        """Removes what `choose` says of the index as it is now, and the bytes that this gave back. Its second argument
        are blobs of pushes under way."""
        async with self._changing:
            blobs = await self._opened()
            before = await blobs.used_bytes()
            index = await self.index()
            removal = choose(index, self._arriving())
            for reference in removal.references:
                await blobs.remove(REFERENCE_PREFIX + reference)
            for image_id in removal.images:
                await blobs.remove(image_name(image_id))
            for digest in removal.blobs:
                await blobs.remove(digest)
            await blobs.sweep(UNFINISHED_SECONDS)
            used = await blobs.used_bytes()
            self._note(len(index.images) - len(removal.images), used)
            return removal, max(0, before - used)

    async def used_bytes(self) -> int:
        return await (await self._opened()).used_bytes()

    async def _opened(self) -> Blobs:
        limit = self._limit_bytes()
        if self._blobs is None or limit != self._opened_limit:
            try:
                self._blobs = await self._bus.blobs(IMAGE_STORE, limit)
            except BlobsFull as error:
                raise StoreFull(
                    f"the bus has no room for an image store of {limit // MIB} MiB ({error}); set images.store_size"
                    " lower in the monitor's configuration, or give JetStream more (max_file_store)"
                ) from None
            self._opened_limit = limit
        return self._blobs

    async def _check_room(self, size_bytes: int) -> None:
        await asyncio.to_thread(self._directory.mkdir, parents=True, exist_ok=True, mode=0o700)
        used, limit = await self.used_bytes(), self._limit_bytes()
        if used + size_bytes > limit:
            raise StoreFull(_full(used, limit, size_bytes))
        free = (await asyncio.to_thread(shutil.disk_usage, self._directory)).free
        if free < size_bytes + SPARE_BYTES:
            raise StoreFull(
                f"{size_bytes // MIB} MiB need as much on the monitor's disk while they arrive, and {self._directory}"
                f" has {free // MIB} MiB free, {SPARE_BYTES // MIB} of which are left alone"
            )

    async def _put(self, blobs: Blobs, digest: str, file: BinaryIO) -> None:
        file.seek(0)
        try:
            stored = await blobs.put(digest, file)
        except BlobsFull:
            raise StoreFull(_full(await blobs.used_bytes(), self._limit_bytes(), file.seek(0, io.SEEK_END))) from None
        if f"sha256:{stored.sha256}" != digest:  # the file changed under us: a disk that lies
            await blobs.remove(digest)
            raise BadImage(f"what was stored has the digest sha256:{stored.sha256}, not {digest}; it was removed")
        self._arrived[digest] = time.monotonic()
        self._figures = replace(self._figures, uploaded_bytes=self._figures.uploaded_bytes + stored.size_bytes)

    async def _write(self, blobs: Blobs, name: str, payload: bytes) -> None:
        try:
            await blobs.put(name, io.BytesIO(payload))
        except BlobsFull:
            raise StoreFull(_full(await blobs.used_bytes(), self._limit_bytes(), len(payload))) from None

    def _arriving(self) -> frozenset[str]:
        now = time.monotonic()
        self._arrived = {digest: at for digest, at in self._arrived.items() if now - at < UNFINISHED_SECONDS}
        return frozenset(self._arrived)

    def _note(self, images: int, used_bytes: int) -> None:
        self._figures = replace(self._figures, images=images, used_bytes=used_bytes)


async def _spool(content: AsyncIterable[bytes], file: BinaryIO, size_bytes: int) -> str:
    """Writes what comes, in pieces, in a thread; its digest. BadImage when it is not of the size that was said."""
    digest, total = hashlib.sha256(), 0
    piece = bytearray()

    def write() -> None:
        digest.update(piece)
        file.write(piece)

    async for part in content:
        total += len(part)
        if total > size_bytes:
            raise BadImage(f"more than the {size_bytes} bytes that were announced came; nothing was stored")
        piece += part
        if len(piece) >= PIECE_BYTES:
            await asyncio.to_thread(write)
            piece.clear()
    await asyncio.to_thread(write)
    if total != size_bytes:
        raise BadImage(f"{total} bytes came, {size_bytes} were announced; nothing was stored")
    return f"sha256:{digest.hexdigest()}"


async def _whole(reader: BlobReader, blob: Blob) -> bytes:
    """A small one, of the index."""
    parts: list[bytes] = []
    position = 0
    while sum(map(len, parts)) < blob.size_bytes:
        chunk = await reader.chunk(blob, position)
        if chunk is None:
            break
        parts.append(chunk.payload)
        position = chunk.position
    return b"".join(parts)


def _full(used: int, limit: int, wanted: int) -> str:
    return (
        f"the image store is full: it holds {used // MIB} MiB of {limit // MIB} MiB, and {max(1, wanted // MIB)} MiB"
        " more do not fit"
    )


def _empty(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in directory.iterdir():
        with contextlib.suppress(OSError):
            left.unlink()
