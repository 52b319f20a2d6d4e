"""Where an agent looks for an image, the rate at which it loads from the store, and what it makes of what it finds."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tarfile
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.image_places import Place, places
from agent.core.token_bucket import BURST_SECONDS, TokenBucket, take
from agent.engine import EngineRefused, EngineUnavailable, ImageMissing
from agent.images import Images
from agent.store_images import StoreImages
from protocol import codec
from protocol.bus import Blobs, Bus
from protocol.ids import ContainerName
from protocol.images import StoredImage, StoredLayer, StoredReference, image_name, normalised, reference_name
from protocol.spec import ContainerSpec, ImagePin, PullPolicy
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.support import images
from tests.support.images import MadeImage

ID = f"sha256:{'1' * 64}"
DIGEST = f"sha256:{'2' * 64}"
HERE, REGISTRY, STORE = Place.HERE, Place.REGISTRY, Place.STORE
PIN, PIN_OF_NO_REGISTRY = ImagePin("redis:7", ID, DIGEST), ImagePin("redis:7", ID)

ORDERS = [
    (PullPolicy.MISSING, None, (HERE, REGISTRY, STORE)),
    (PullPolicy.MISSING, PIN, (HERE, REGISTRY, STORE)),
    (PullPolicy.MISSING, PIN_OF_NO_REGISTRY, (HERE, STORE)),
    (PullPolicy.ALWAYS, None, (REGISTRY, STORE, HERE)),
    (PullPolicy.ALWAYS, PIN, (HERE, REGISTRY, STORE)),
    (PullPolicy.NEVER, None, (HERE,)),
    (PullPolicy.NEVER, PIN, (HERE,)),
    (PullPolicy.STORE, None, (HERE, STORE)),
    (PullPolicy.STORE, PIN, (HERE, STORE)),
]


@pytest.mark.parametrize(("policy", "pin", "order"), ORDERS)
def test_the_order_of_places(policy: PullPolicy, pin: ImagePin | None, order: tuple[Place, ...]) -> None:
    """The table of docs/images.md."""
    assert places(policy, pin) == order


@dataclass
class World:
    """An engine and a registry. `present`: names and ids; `registry`: what a pull of a name brings."""

    present: set[str] = field(default_factory=set)
    registry: dict[str, set[str]] = field(default_factory=dict)
    down: bool = False
    pulled: list[str] = field(default_factory=list)

    async def image_present(self, image: str) -> bool:
        return image in self.present

    async def pull(self, image: str) -> None:
        self.pulled.append(image)
        if self.down:
            raise EngineUnavailable("no answer")
        if image not in self.registry:
            raise ImageMissing("no such manifest")
        self.present |= self.registry[image]


@dataclass
class Store:
    world: World
    holds: dict[str, str] = field(default_factory=dict)  # reference or id → id
    asked: list[str] = field(default_factory=list)

    async def fetch(self, image: str) -> str:
        self.asked.append(image)
        if image not in self.holds:
            raise ImageMissing(f"does not have {image}")
        self.world.present |= {self.holds[image], *(() if "@" in image else (image,))}
        return self.holds[image]


OUTCOMES = [
    # policy, pin, here, registry, store, ends as, pulls, asks of the store
    (PullPolicy.MISSING, None, {"redis:7"}, {}, {}, "this VM", [], []),
    (PullPolicy.MISSING, None, set(), {"redis:7": {"redis:7"}}, {"redis:7": ID}, "its registry", ["redis:7"], []),
    (PullPolicy.MISSING, None, set(), {}, {"redis:7": ID}, "the image store", ["redis:7"], ["redis:7"]),
    (PullPolicy.MISSING, None, set(), {}, {}, "no such manifest", ["redis:7"], ["redis:7"]),
    (PullPolicy.ALWAYS, None, {"redis:7"}, {}, {}, "this VM", ["redis:7"], ["redis:7"]),
    (PullPolicy.ALWAYS, None, {"redis:7"}, {}, {"redis:7": ID}, "the image store", ["redis:7"], ["redis:7"]),
    (PullPolicy.NEVER, None, set(), {"redis:7": {"redis:7"}}, {"redis:7": ID}, "the pull policy is never", [], []),
    (PullPolicy.STORE, None, set(), {"redis:7": {"redis:7"}}, {}, "does not have", [], ["redis:7"]),
    (PullPolicy.STORE, None, set(), {"redis:7": {"redis:7"}}, {"redis:7": ID}, "the image store", [], ["redis:7"]),
    # a pinned image is looked for by what it is
    (PullPolicy.ALWAYS, PIN, {ID}, {"redis:7": {"redis:7"}}, {}, "this VM", [], []),
    (PullPolicy.MISSING, PIN, {"redis:7"}, {f"redis@{DIGEST}": {ID}}, {}, "its registry", [f"redis@{DIGEST}"], []),
    (PullPolicy.MISSING, PIN, {"redis:7"}, {}, {ID: ID}, "the image store", [f"redis@{DIGEST}"], [ID]),
    (PullPolicy.MISSING, PIN, {"redis:7"}, {"redis:7": {"redis:7"}}, {}, "pinned to", [f"redis@{DIGEST}"], [ID]),
    (PullPolicy.MISSING, PIN, set(), {f"redis@{DIGEST}": {"other"}}, {}, "gave another", [f"redis@{DIGEST}"], [ID]),
    # one that no registry had is taken by its name when it is nowhere any more
    (PullPolicy.MISSING, PIN_OF_NO_REGISTRY, {"redis:7"}, {}, {}, "this VM", [], [ID]),
]


@pytest.mark.parametrize(("policy", "pin", "here", "registry", "holds", "ends", "pulls", "asks"), OUTCOMES)
async def test_what_is_asked_and_how_it_ends(
    policy: PullPolicy,
    pin: ImagePin | None,
    here: set[str],
    registry: dict[str, set[str]],
    holds: dict[str, str],
    ends: str,
    pulls: list[str],
    asks: list[str],
) -> None:
    """Each place in its turn, no place behind the one that has it, and what is not to be had says what each said."""
    world = World(set(here), registry)
    store = Store(world, holds)
    try:
        said = await Images(world, lambda: store).provide("redis:7", policy, pin)
    except ImageMissing as error:
        said = str(error)
    assert ends in said
    assert (world.pulled, store.asked) == (pulls, asks)


async def test_a_registry_that_does_not_answer_is_no_proof_that_there_is_none() -> None:
    """Nowhere else either: the outcome is unknown, and it is tried again."""
    world = World(down=True)
    with pytest.raises(EngineUnavailable, match="its registry: no answer; the image store: does not have"):
        await Images(world, lambda: Store(world)).provide("redis:7", PullPolicy.MISSING)


async def test_a_container_is_made_of_the_pinned_image_only_where_it_is() -> None:
    """Otherwise of what its name says; a name by digest that the store gave is made of that image."""
    world = World({ID})
    store = Store(world, {f"redis@{DIGEST}": ID})
    source = Images(world, lambda: store)
    pinned = ContainerSpec(ContainerName("db"), "redis:7", pinned=PIN)
    assert await source.settled(pinned) == pinned
    world.present.clear()
    assert (await source.settled(pinned)).pinned is None
    by_digest = ContainerSpec(ContainerName("db"), f"redis@{DIGEST}")
    await source.provide(by_digest.image, PullPolicy.STORE)
    assert (await source.settled(by_digest)).pin == ImagePin(by_digest.image, ID)


@given(
    st.lists(st.tuples(st.integers(0, 300_000), st.floats(0, 2)), min_size=1, max_size=50), st.integers(1, 50_000_000)
)
def test_no_more_than_the_rate_is_taken(takes: list[tuple[int, float]], rate: int) -> None:
    """Whoever waits as told takes at most burst + rate x time + the one taken last, over the whole time."""
    bucket, now, total = TokenBucket(), 0.0, 0
    for count, idle in takes:
        bucket, wait = take(bucket, count, now, rate)
        total += count
        now += wait + idle
        assert total <= rate * BURST_SECONDS + rate * now + 1e-3 * total + 1


@dataclass
class LoadingEngine:
    """Takes archives as `docker load` does: a layer may be left out where an image here has it at the same place."""

    images: dict[str, tuple[str, ...]] = field(default_factory=dict)  # id → layers
    tags: dict[str, str] = field(default_factory=dict)
    loaded: list[list[str]] = field(default_factory=list)  # members of each archive
    refuses_gaps: bool = False

    async def image_present(self, image: str) -> bool:
        return image in self.images

    async def image_layers(self) -> tuple[tuple[str, ...], ...]:
        return tuple(self.images.values())

    async def tag_image(self, image_id: str, reference: str) -> None:
        self.tags[reference] = image_id

    async def load_image(self, path: str) -> tuple[str, ...]:
        with tarfile.open(path) as archive:
            members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
            content = {name: file.read() for name, file in members.items() if file is not None}
        self.loaded.append(sorted(content))
        (entry,) = json.loads(content["manifest.json"])
        config = content[entry["Config"]]
        layers = tuple(json.loads(config)["rootfs"]["diff_ids"])
        for number, name in enumerate(entry["Layers"]):
            there = any(known[: number + 1] == layers[: number + 1] for known in self.images.values())
            if name not in content and (self.refuses_gaps or not there):
                raise EngineRefused(f"open {name}: no such file")
            if name in content and f"sha256:{hashlib.sha256(content[name]).hexdigest()}" != layers[number]:
                raise EngineRefused("invalid diffID")
        self.images[f"sha256:{hashlib.sha256(config).hexdigest()}"] = layers
        return ()


async def put(blobs: Blobs, name: str, made: MadeImage, damaged: bool = False) -> None:
    """As a push leaves it."""
    for layer in made.layers:
        await blobs.put(images.digest(layer), io.BytesIO(layer[:-1] + b"x" if damaged else layer))
    await blobs.put(made.image_id, io.BytesIO(made.config))
    layers = tuple(StoredLayer(images.digest(each), len(each), images.digest(each)) for each in made.layers)
    record = StoredImage(made.image_id, len(made.config), layers)
    await blobs.put(image_name(made.image_id), io.BytesIO(codec.to_json(record)))
    named = StoredReference(normalised(name), made.image_id)
    await blobs.put(reference_name(name), io.BytesIO(codec.to_json(named)))


BASE = images.layer({"bin/sh": Random(1).randbytes(300_000)})
ONE = images.image([BASE, images.layer({"one": b"1"})])
TWO = images.image([BASE, images.layer({"two": b"2"})])


@dataclass
class StoreWorld:
    bus: Bus
    blobs: Blobs
    engine: LoadingEngine
    store: StoreImages
    server: SimulatedServer
    free: int = 1 << 40
    rate: int = 1 << 30


async def store_world(directory: Path) -> StoreWorld:
    server = SimulatedServer(Random(1))
    bus: SimulatedBus = await server.client("one").open()
    await bus.wait_connected(5)
    blobs, engine = await bus.blobs("images", 1 << 30), LoadingEngine()
    store = StoreImages(
        bus.blob_reader("images"), engine, directory / "images", lambda: world.rate, lambda path: world.free
    )
    world = StoreWorld(bus, blobs, engine, store, server)
    return world


async def test_an_image_is_loaded_whole_checked_and_named(tmp_path: Path) -> None:
    """By name and by id; nothing of it stays behind; fetched again, nothing is read but the index."""
    world = await store_world(tmp_path)
    await put(world.blobs, "redis:7", ONE)
    assert await world.store.fetch("docker.io/library/redis:7") == ONE.image_id
    assert world.engine.tags == {"redis:7": ONE.image_id}
    assert list((tmp_path / "images").iterdir()) == []
    fetched = world.store.fetched_bytes
    assert fetched == len(ONE.config) + sum(map(len, ONE.layers))
    assert await world.store.fetch(ONE.image_id) == ONE.image_id
    assert (len(world.engine.loaded), world.store.fetched_bytes) == (1, fetched)
    assert world.store.progress is None


async def test_layers_that_are_here_are_not_fetched(tmp_path: Path) -> None:
    """Of an image that has the same below; an engine that does not go along with it gets all of them."""
    world = await store_world(tmp_path)
    await put(world.blobs, "one:1", ONE)
    await put(world.blobs, "two:2", TWO)
    await world.store.fetch("one:1")
    before = world.store.fetched_bytes
    await world.store.fetch("two:2")
    assert world.store.fetched_bytes - before < len(BASE)
    assert len(world.engine.loaded[1]) == 3  # configuration, its own layer, manifest
    del world.engine.images[TWO.image_id]
    world.engine.refuses_gaps = True
    await world.store.fetch("two:2")
    assert [len(members) for members in world.engine.loaded] == [4, 3, 3, 4]


async def test_what_is_damaged_or_lacking_never_reaches_the_engine(tmp_path: Path) -> None:
    """A layer that is not what its digest says, one that is gone, an unknown name, no store, no room."""
    world = await store_world(tmp_path)
    await put(world.blobs, "bad:1", ONE, damaged=True)
    await put(world.blobs, "gone:1", TWO)
    await world.blobs.remove(images.digest(TWO.layers[1]))
    for name, says in (("bad:1", "is damaged in it"), ("gone:1", "lacks sha256"), ("none:1", "does not have none:1")):
        with pytest.raises(ImageMissing, match=says):
            await world.store.fetch(name)
    world.free = 600_000
    with pytest.raises(ImageMissing, match="0 MiB are free"):
        await world.store.fetch("gone:1")
    elsewhere = StoreImages(world.bus.blob_reader("elsewhere"), world.engine, tmp_path, lambda: 1)
    with pytest.raises(ImageMissing, match="there is none on this bus"):
        await elsewhere.fetch("bad:1")
    assert world.engine.loaded == []
    assert list((tmp_path / "images").iterdir()) == []


async def test_a_bus_that_goes_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    """The fetch goes on with the chunk it was at."""
    world = await store_world(tmp_path)
    await put(world.blobs, "one:1", ONE)
    world.rate = 200_000  # so that there is a middle
    fetching = asyncio.create_task(world.store.fetch("one:1"))
    while world.store.fetched_bytes < 70_000:
        await asyncio.sleep(0.01)
    world.server.crash()
    world.server.start()
    world.rate = 1 << 30
    assert await fetching == ONE.image_id
    assert world.store.fetched_bytes == len(ONE.config) + sum(map(len, ONE.layers))


async def test_one_image_at_a_time(tmp_path: Path) -> None:
    """Whoever comes second waits, and finds the layers of the first."""
    world = await store_world(tmp_path)
    await put(world.blobs, "one:1", ONE)
    await put(world.blobs, "two:2", TWO)
    both: list[Coroutine[Any, Any, str]] = [world.store.fetch("one:1"), world.store.fetch("two:2")]
    assert await asyncio.gather(*both) == [ONE.image_id, TWO.image_id]
    assert [len(members) for members in world.engine.loaded] == [4, 3]
