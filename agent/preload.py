"""Images baked into the stemcell, given to the engine before they are needed, so that no registry is.

Law: a file that was loaded is not loaded again while its images are there. A file that cannot be loaded is named, and
the others are loaded all the same.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from agent.engine import EngineError
from agent.store import KeptDocument, Write

log = structlog.get_logger(__name__)

IMAGES_DIRECTORY = Path("/usr/share/resurgam/images")


class ImageLoader(Protocol):
    async def image_present(self, image: str) -> bool: ...

    async def load_image(self, path: str) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class LoadedImages:
    """Images by the file they came from (`name:size:modified`)."""

    files: dict[str, tuple[str, ...]]


async def preload(
    engine: ImageLoader, directory: Path, loaded: KeptDocument[LoadedImages], write: Write = asyncio.to_thread
) -> tuple[str, ...]:
    """Loads what is not there yet; the images that every file held. The engine must be up."""
    known = dict((loaded.load() or LoadedImages({})).files)
    found: list[str] = []
    for path in image_files(directory):
        key = _key(path)
        try:
            if not await _all_present(engine, known.get(key, ())):
                known[key] = await engine.load_image(str(path))
                kept = LoadedImages({**known})
                await write(lambda kept=kept: loaded.save(kept))  # type: ignore[misc]
                log.info("preload.loaded", file=path.name, images=known[key])
        except (EngineError, OSError) as error:
            log.error("preload.failed", file=str(path), error=str(error), next="its images are pulled when needed")
            continue
        found.extend(known[key])
    return tuple(found)


def image_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.tar")) if directory.is_dir() else []


async def _all_present(engine: ImageLoader, images: tuple[str, ...]) -> bool:
    for image in images:
        if not await engine.image_present(image):
            return False
    return bool(images)


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
