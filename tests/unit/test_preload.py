"""Baked images are loaded once, and again only when they are gone."""

from __future__ import annotations

from pathlib import Path

from agent.engine import EngineRefused
from agent.preload import LoadedImages, preload
from agent.store import Store


class Shelf:
    """An engine's images; `broken` files cannot be loaded."""

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.images: set[str] = set()
        self.loads: list[str] = []
        self._broken = broken

    async def image_present(self, image: str) -> bool:
        return image in self.images

    async def load_image(self, path: str) -> tuple[str, ...]:
        name = Path(path).name
        self.loads.append(name)
        if name in self._broken:
            raise EngineRefused("unexpected EOF")
        image = name.removesuffix(".tar") + ":1"
        self.images.add(image)
        return (image,)


def bake(directory: Path, *names: str) -> None:
    directory.mkdir()
    for name in names:
        (directory / name).write_bytes(name.encode())


async def test_each_file_is_loaded_once(tmp_path: Path) -> None:
    """The next boot skips them; a changed file is loaded anew."""
    images, loaded = tmp_path / "images", Store(tmp_path / "state").document("images", LoadedImages)
    bake(images, "redis.tar", "exporter.tar", "notes.txt")
    shelf = Shelf()
    assert await preload(shelf, images, loaded) == ("exporter:1", "redis:1")
    assert await preload(shelf, images, loaded) == ("exporter:1", "redis:1")
    assert shelf.loads == ["exporter.tar", "redis.tar"]
    (images / "redis.tar").write_bytes(b"a newer redis")
    await preload(shelf, images, loaded)
    assert shelf.loads == ["exporter.tar", "redis.tar", "redis.tar"]


async def test_an_image_that_was_removed_is_loaded_again(tmp_path: Path) -> None:
    """Somebody pruned the engine: what was baked in is still there to be had."""
    images, loaded = tmp_path / "images", Store(tmp_path / "state").document("images", LoadedImages)
    bake(images, "redis.tar")
    shelf = Shelf()
    await preload(shelf, images, loaded)
    shelf.images.clear()
    await preload(shelf, images, loaded)
    assert shelf.images == {"redis:1"}


async def test_a_broken_file_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """It is tried again at the next boot."""
    images, loaded = tmp_path / "images", Store(tmp_path / "state").document("images", LoadedImages)
    bake(images, "a.tar", "b.tar")
    shelf = Shelf(broken=("a.tar",))
    assert await preload(shelf, images, loaded) == ("b:1",)
    await preload(shelf, images, loaded)
    assert shelf.loads == ["a.tar", "b.tar", "a.tar"]


async def test_no_directory_is_no_error(tmp_path: Path) -> None:
    """A stemcell without baked images."""
    document = Store(tmp_path).document("images", LoadedImages)
    assert await preload(Shelf(), tmp_path / "nothing", document) == ()
