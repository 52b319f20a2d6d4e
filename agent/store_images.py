"""Loads images from the image store on the bus into the engine.

Laws: one image at a time, one chunk on its way, at no more than the rate that the centre set, so that heartbeats of
this VM and of all others get through. Layers that the engine has already are not fetched. What the digest does not
confirm is not given to the engine. What was fetched lies in one file that is gone afterwards, whatever happens.

Does not know: when an image is needed (agent/images.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import IO, Protocol

import structlog

from agent.core.token_bucket import TokenBucket, take
from agent.engine import EngineError, EngineUnavailable, ImageMissing
from protocol import codec
from protocol.bus import Blob, BlobReader, BusUnavailable, NoResponders
from protocol.images import (
    CONFIG_MAX_BYTES,
    IMAGE_ID,
    StoredImage,
    StoredReference,
    digest_of,
    familiar,
    image_name,
    normalised,
    reference_name,
)

log = structlog.get_logger(__name__)

RECORD_MAX_BYTES = 256 * 1024
SILENCE_SECONDS = 60.0
"""Without a chunk, the bus being gone or not answering; then the fetch is given up, and whoever asked tries again."""
RETRY_SECONDS = 1.0
SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the VM's disk, beside the file that is fetched and as much again for the engine's copy of it."""
MIB = 1024 * 1024


class StoreEngine(Protocol):
    async def image_present(self, image: str) -> bool: ...

    async def image_layers(self) -> tuple[tuple[str, ...], ...]:
        """Of each image that is here, its layers' diff ids, the lowest first."""
        ...

    async def load_image(self, path: str) -> tuple[str, ...]: ...

    async def tag_image(self, image_id: str, reference: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    image: str
    done_bytes: int
    total_bytes: int

    def __str__(self) -> str:
        return f"{self.image}: {self.done_bytes // MIB} of {max(1, self.total_bytes // MIB)} MiB from the image store"


class StoreImages:
    def __init__(
        self,
        reader: BlobReader,
        engine: StoreEngine,
        directory: Path,
        rate_bytes: Callable[[], int],
        free_bytes: Callable[[Path], int] = lambda directory: shutil.disk_usage(directory).free,
    ) -> None:
        """`directory`: where a fetched image lies until it is loaded. Emptied before each."""
        self._reader = reader
        self._engine = engine
        self._directory = directory
        self._rate_bytes = rate_bytes
        self._free_bytes = free_bytes
        self._turn = asyncio.Lock()
        self._bucket = TokenBucket()
        self.progress: Progress | None = None
        """Of the fetch that is under way."""
        self.fetched_bytes = 0

    async def fetch(self, image: str) -> str:
        """Its id, when the engine has it. ImageMissing when the store does not have it, or what it has is damaged;
        EngineUnavailable."""
        async with self._turn:
            try:
                stored = await self._find(image)
                if not await self._engine.image_present(stored.image_id):
                    await self._load(image, stored)
                if not digest_of(image):
                    await self._engine.tag_image(stored.image_id, familiar(normalised(image)))
                return stored.image_id
            except NoResponders:
                raise ImageMissing("there is none on this bus, or this VM may not read it") from None
            except BusUnavailable as error:
                raise EngineUnavailable(f"the bus: {error}") from None
            except codec.Invalid as error:
                raise ImageMissing(f"the record of {image} cannot be read: {error}") from None
            except OSError as error:
                raise ImageMissing(f"{image} cannot be kept on this VM: {error}") from None
            finally:
                self.progress = None

    async def _find(self, image: str) -> StoredImage:
        if IMAGE_ID.fullmatch(image):
            image_id = image
        else:
            reference = await self._reader.find(reference_name(image))
            if reference is None and not digest_of(image):
                raise ImageMissing(f"does not have {image}")
            image_id = digest_of(image)
            if reference is not None:
                image_id = codec.from_json(StoredReference, await self._whole(reference, RECORD_MAX_BYTES)).image_id
        record = await self._reader.find(image_name(image_id))
        if record is None:
            raise ImageMissing(f"does not have {image}")
        return codec.from_json(StoredImage, await self._whole(record, RECORD_MAX_BYTES))

    async def _load(self, image: str, stored: StoredImage) -> None:
        here = _layers_here(stored, await self._engine.image_layers())
        try:
            await self._fetch_and_load(image, stored, here)
        except EngineUnavailable:
            raise
        except EngineError as error:
            if not here:
                raise ImageMissing(f"the engine did not take {image}: {error}") from None
            log.warning("image.layers_missed", image=image, layers=here, reason=str(error), next="fetching all of it")
            await self._fetch_and_load(image, stored, 0)
        if not await self._engine.image_present(stored.image_id):
            raise ImageMissing(f"the engine took {image}, and does not have {stored.image_id} all the same")

    async def _fetch_and_load(self, image: str, stored: StoredImage, here: int) -> None:
        wanted = {layer.digest: layer.size_bytes for layer in stored.layers[here:]}
        total = stored.config_bytes + sum(wanted.values())
        await asyncio.to_thread(self._make_room, image, total)
        self.progress = Progress(image, 0, total)
        with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".tar") as file:
            config = await self._member(file, _member(stored.image_id), stored.image_id, keep=True)
            for digest in wanted:
                await self._member(file, _member(digest), digest)
            await asyncio.to_thread(_finish, file, stored, json.loads(config))
            log.info("image.fetched", image=image, bytes=total, layers=len(wanted), layers_here=here)
            await self._engine.load_image(file.name)

    def _make_room(self, image: str, size_bytes: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._directory.glob("*.tar"):
            left.unlink()
        free = self._free_bytes(self._directory)
        if free < 2 * size_bytes + SPARE_BYTES:
            raise ImageMissing(
                f"{image} needs {2 * size_bytes // MIB} MiB on this VM while it is loaded, and {free // MIB} MiB are"
                " free"
            )

    async def _member(self, file: IO[bytes], name: str, digest: str, keep: bool = False) -> bytes:
        """Appends one blob to the archive, its digest checked. `keep`: returns it too."""
        blob = await self._reader.find(digest)
        if blob is None:
            raise ImageMissing(f"lacks {digest}")
        if keep and blob.size_bytes > CONFIG_MAX_BYTES:
            raise ImageMissing(f"{digest} is no configuration: it has {blob.size_bytes} bytes")
        hashed, total, kept, position = hashlib.sha256(), 0, [], 0
        await asyncio.to_thread(file.write, _header(name, blob.size_bytes))
        while total < blob.size_bytes:
            chunk = await self._chunk(blob, position)
            if chunk is None:
                raise ImageMissing(f"{digest} was removed from it")
            payload, position = chunk
            total += len(payload)
            hashed.update(payload)
            if keep:
                kept.append(payload)
            await asyncio.to_thread(file.write, payload)
            self._count(len(payload))
        if f"sha256:{hashed.hexdigest()}" != digest:
            raise ImageMissing(f"{digest} is damaged in it: its content has the digest sha256:{hashed.hexdigest()}")
        await asyncio.to_thread(file.write, bytes(-total % tarfile.BLOCKSIZE))
        return b"".join(kept)

    async def _chunk(self, blob: Blob, after: int) -> tuple[bytes, int] | None:
        """The next one, at its time; asked for again while the bus is gone."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SILENCE_SECONDS
        while True:
            try:
                chunk = await self._reader.chunk(blob, after)
                break
            except (BusUnavailable, NoResponders):
                if loop.time() >= until:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
        if chunk is None:
            return None
        self._bucket, wait = take(self._bucket, len(chunk.payload), loop.time(), max(1, self._rate_bytes()))
        if wait > 0:
            await asyncio.sleep(wait)
        return chunk.payload, chunk.position

    async def _whole(self, blob: Blob, most_bytes: int) -> bytes:
        if blob.size_bytes > most_bytes:
            raise ImageMissing(f"{blob.name} has {blob.size_bytes} bytes, more than {most_bytes}")
        content = io.BytesIO()
        position = 0
        while content.tell() < blob.size_bytes and (chunk := await self._chunk(blob, position)) is not None:
            payload, position = chunk
            content.write(payload)
        return content.getvalue()

    def _count(self, count: int) -> None:
        self.fetched_bytes += count
        if self.progress is not None:
            done = self.progress.done_bytes + count
            self.progress = Progress(self.progress.image, done, self.progress.total_bytes)


def _layers_here(stored: StoredImage, images: tuple[tuple[str, ...], ...]) -> int:
    """How many of its lowest layers some image here has below its own: the engine has those, in that order."""
    wanted = tuple(layer.diff_id for layer in stored.layers)
    return max((_alike(wanted, layers) for layers in images), default=0)


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _member(digest: str) -> str:
    return f"{digest.removeprefix('sha256:')}.blob"


def _header(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    return entry.tobuf()


def _finish(file: IO[bytes], stored: StoredImage, config: object) -> None:
    """The manifest of docker's own format. Layers that were left out are named too: the engine looks for a file only
    where it lacks the layer."""
    if not isinstance(config, dict):
        raise ImageMissing(f"{stored.image_id} is no configuration")
    layers = [_member(layer.digest) for layer in stored.layers]
    manifest = json.dumps([{"Config": _member(stored.image_id), "RepoTags": None, "Layers": layers}]).encode()
    file.write(_header("manifest.json", len(manifest)) + manifest + bytes(-len(manifest) % tarfile.BLOCKSIZE))
    file.write(bytes(2 * tarfile.BLOCKSIZE))
    file.flush()
