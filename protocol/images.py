"""The image store's index: what an image is made of, and under which blob names it is found.

Laws: a layer or configuration is a blob named by its digest, kept once however many images have it; an image is a
record that lists them, named by its id; a reference (`redis:7`) is a record that names an image. Written in this
order and removed in the other, so that whatever is named is there.

Does not know: the bus, the engine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
"""An image's id is the digest of its configuration, as the engine shows it; also any other digest."""
LAYERS_MAX = 512
CONFIG_MAX_BYTES = 4 * 1024 * 1024
HUB = "docker.io"


@dataclass(frozen=True, slots=True)
class StoredLayer:
    digest: str  # of the blob, which may be compressed
    size_bytes: int
    diff_id: str  # digest of the layer's plain tar, as the configuration names it


@dataclass(frozen=True, slots=True)
class StoredImage:
    """`image_id` is also the name of the configuration's blob."""

    image_id: str
    config_bytes: int
    layers: tuple[StoredLayer, ...]
    architecture: str = ""
    os: str = ""
    pushed_at: float = 0.0  # Unix seconds
    pushed_by: str = ""

    @property
    def size_bytes(self) -> int:
        sizes = {layer.digest: layer.size_bytes for layer in self.layers}
        return self.config_bytes + sum(sizes.values())

    @property
    def blobs(self) -> frozenset[str]:
        return frozenset({self.image_id, *(layer.digest for layer in self.layers)})


@dataclass(frozen=True, slots=True)
class StoredReference:
    reference: str  # normalised
    image_id: str


IMAGE_PREFIX = "image/"
REFERENCE_PREFIX = "of/"


def image_name(image_id: str) -> str:
    return IMAGE_PREFIX + image_id


def reference_name(reference: str) -> str:
    return REFERENCE_PREFIX + normalised(reference)


def normalised(reference: str) -> str:
    """`redis` → `docker.io/library/redis:latest`, as the engine reads it; with a digest, the tag is of no account."""
    name, _, digest = reference.partition("@")
    head, slash, rest = name.partition("/")
    is_host = slash and ("." in head or ":" in head or head == "localhost")
    host, path = (head, rest) if is_host else (HUB, name)
    if host == "index.docker.io":
        host = HUB
    last = path.rpartition("/")[2]
    tag = last.partition(":")[2]
    if tag:
        path = path[: -len(tag) - 1]
    if host == HUB and "/" not in path:
        path = f"library/{path}"
    return f"{host}/{path}@{digest}" if digest else f"{host}/{path}:{tag or 'latest'}"


def familiar(reference: str) -> str:
    """A normalised reference as people write it."""
    return reference.removeprefix(f"{HUB}/library/").removeprefix(f"{HUB}/")


def digest_of(reference: str) -> str:
    """`sha256:…` that a reference names, or ""; of a bare image id too."""
    if IMAGE_ID.fullmatch(reference):
        return reference
    digest = reference.partition("@")[2]
    return digest if IMAGE_ID.fullmatch(digest) else ""


def repository_of(reference: str) -> str:
    """Normalised, without tag and digest: `docker.io/library/redis`."""
    whole = normalised(reference)
    name = whole.partition("@")[0]
    last = name.rpartition("/")[2]
    return name[: len(name) - len(last)] + last.partition(":")[0]
