"""Images fetched ahead of need, by the centre's word: `fetch_images`, and the parts that it stands on put together.

Laws: what cannot be had is named and does not keep the others from being fetched. A fetch may be repeated: what is here
is not fetched again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agent.engine import EngineError
from agent.images import ImageEngine, Images
from agent.store_images import StoreEngine, StoreImages
from protocol.bus import Bus
from protocol.spec import IMAGE_RATE_BYTES, ImagePin, InstanceSpec, PullPolicy
from protocol.subjects import IMAGE_STORE

IMAGES_MAX = 200


@dataclass(frozen=True, slots=True)
class WantedImage:
    image: str
    policy: PullPolicy = PullPolicy.MISSING
    pinned: ImagePin | None = None


class Fetching(Protocol):
    """One `fetch_images`."""

    async def run(self) -> dict[str, Any]: ...

    def progress(self) -> str: ...


class FetchImages(Protocol):
    def begin(self, wanted: tuple[WantedImage, ...], rate_bytes: int) -> Fetching: ...


class AllEngine(ImageEngine, StoreEngine, Protocol):
    """All that images ask of the engine."""

    def login(self, registry_auth: Mapping[str, Any]) -> None: ...


class AgentImages:
    """`directory`: where a fetched image lies until it is loaded."""

    def __init__(self, engine: AllEngine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self._store: StoreImages | None = None
        self._told_rate = 0
        self.images = Images(engine, lambda: self._store)

    def login(self, registry_auth: Mapping[str, Any]) -> None:
        """A template's settings have none; those of the VM that it becomes do."""
        self._engine.login(registry_auth)

    def connect(self, bus: Bus, spec: Callable[[], InstanceSpec | None]) -> None:
        """From now on there is a store. The rate is the specification's, or what `fetch_images` said last."""

        def rate() -> int:
            held = spec()
            return held.image_rate_bytes if held is not None else self._told_rate or IMAGE_RATE_BYTES

        self._store = StoreImages(bus.blob_reader(IMAGE_STORE), self._engine, self._directory, rate)

    def begin(self, wanted: tuple[WantedImage, ...], rate_bytes: int) -> Fetching:
        self._told_rate = rate_bytes or self._told_rate
        return ImagesOneByOne(self.images, wanted, lambda: self._store)


class ImagesOneByOne:
    def __init__(
        self,
        images: Images,
        wanted: tuple[WantedImage, ...],
        store: Callable[[], StoreImages | None] = lambda: None,
    ) -> None:
        self._images = images
        self._wanted = wanted
        self._store = store
        self._done = 0

    async def run(self) -> dict[str, Any]:
        had: dict[str, str] = {}
        failed: dict[str, str] = {}
        for each in self._wanted:
            try:
                had[each.image] = await self._images.provide(each.image, each.policy, each.pinned)
            except EngineError as error:
                failed[each.image] = str(error)
            self._done += 1
        return {"had": had, "failed": failed}

    def progress(self) -> str:
        store = self._store()
        now = f"; {store.progress}" if store is not None and store.progress is not None else ""
        return f"{self._done} of {len(self._wanted)} images{now}"
