"""Makes sure of a container's image: on this VM, from its registry, from the image store, in the order of its policy.

Laws: an image that is here is never given up for one that cannot be had: a registry that is down must not keep a
container down that could run. A pinned image is the very one: a registry that gives another for its digest has not
given it. One that no registry had, and that the store does not have either, is taken by its name as before.

Does not know: when an image is needed (the supervisor), how the store is read (agent/store_images.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import structlog

from agent.core.image_places import Place, places
from agent.engine import EngineUnavailable, ImageMissing
from protocol.images import IMAGE_ID, digest_of, repository_of
from protocol.spec import ContainerSpec, ImagePin, PullPolicy

log = structlog.get_logger(__name__)

RESOLVED_MAX = 1000


class ImageEngine(Protocol):
    async def image_present(self, image: str) -> bool: ...

    async def pull(self, image: str) -> None: ...


class ImageStore(Protocol):
    async def fetch(self, image: str) -> str:
        """Loads it into the engine and returns its id. `image`: a reference, or an image's id. ImageMissing,
        EngineUnavailable."""
        ...


class Images:
    """`store()`: None where there is no bus (yet)."""

    def __init__(self, engine: ImageEngine, store: Callable[[], ImageStore | None] = lambda: None) -> None:
        self._engine = engine
        self._store = store
        self._resolved: dict[str, str] = {}  # reference by digest → id of what the store gave for it

    async def provide(self, image: str, policy: PullPolicy, pin: ImagePin | None = None) -> str:
        """Returns how it was had, for people, when a container can be made of it. ImageMissing says what each place
        said; EngineUnavailable."""
        if pin is not None:
            try:
                return await self._search(image, policy, pin)
            except ImageMissing as error:
                if pin.digest:
                    raise ImageMissing(f"{image} pinned to {pin.image_id[:19]}: {error}") from None
                log.warning("image.pin_lost", image=image, pinned=pin.image_id, reason=str(error), instead="its name")
        return await self._search(image, policy, None)

    async def settled(self, container: ContainerSpec) -> ContainerSpec:
        """The container as it is to be created: pinned only to what is here."""
        pin = container.pin
        if pin is None and container.image in self._resolved:
            pin = ImagePin(container.image, self._resolved[container.image])
        if pin is not None and not await self._engine.image_present(pin.image_id):
            pin = None
        return container if pin == container.pinned else replace(container, pinned=pin)

    async def _search(self, image: str, policy: PullPolicy, pin: ImagePin | None) -> str:
        said: list[str] = []
        unknown: EngineUnavailable | None = None
        for place in places(policy, pin):
            try:
                if await self._had(place, image, pin):
                    how = f"{image} from {place.value}"
                    if said:
                        log.warning("image.had_elsewhere", image=image, place=place.value, reason="; ".join(said))
                    return how
                said.append(f"not on {place.value}")
            except ImageMissing as error:
                said.append(f"{place.value}: {error}")
            except EngineUnavailable as error:
                unknown = error
                said.append(f"{place.value}: {error}")
        if unknown is not None:
            raise EngineUnavailable("; ".join(said))
        if policy is PullPolicy.NEVER:
            raise ImageMissing(f"{image} is not on this VM, and the pull policy is never")
        raise ImageMissing("; ".join(said))

    async def _had(self, place: Place, image: str, pin: ImagePin | None) -> bool:
        match place:
            case Place.HERE:
                return await self._engine.image_present(pin.image_id if pin else self._resolved.get(image, image))
            case Place.REGISTRY:
                return await self._from_registry(image, pin)
            case Place.STORE:
                return await self._from_store(image, pin)

    async def _from_registry(self, image: str, pin: ImagePin | None) -> bool:
        if pin is None:
            await self._engine.pull(image)
            return True
        name = image.partition("@")[0]
        last = name.rpartition("/")[2]
        repository = name[: len(name) - len(last)] + last.partition(":")[0]
        await self._engine.pull(f"{repository}@{pin.digest}")
        if not await self._engine.image_present(pin.image_id):
            raise ImageMissing(f"gave another image for {repository_of(image)}@{pin.digest}")
        return True

    async def _from_store(self, image: str, pin: ImagePin | None) -> bool:
        store = self._store()
        if store is None:
            raise ImageMissing("not connected to the bus yet")
        image_id = await store.fetch(pin.image_id if pin else image)
        if digest_of(image) and not IMAGE_ID.fullmatch(image):
            # The engine knows names by digest only of what it pulled itself.
            while len(self._resolved) >= RESOLVED_MAX:
                del self._resolved[next(iter(self._resolved))]
            self._resolved[image] = image_id
        return True
