"""The image store as a value: which images there are, which are needed, what may go.

Laws: an image that a deployment or an instance names is never among what may go. A blob may go when no image lists
it. What cannot be read is kept.

Does not know: where blobs lie.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from healthmonitor.core.records import DeploymentRecord, InstanceRecord
from protocol.images import (
    CONFIG_MAX_BYTES,
    IMAGE_ID,
    LAYERS_MAX,
    StoredImage,
    StoredLayer,
    digest_of,
    familiar,
    normalised,
)


class BadImage(ValueError):
    """What was pushed is no image; the text says why."""


@dataclass(frozen=True, slots=True)
class Index:
    """`references`: normalised reference → image id. `blobs`: digest → bytes, of layers and configurations."""

    images: Mapping[str, StoredImage] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, int] = field(default_factory=dict)

    def names_of(self, image_id: str) -> tuple[str, ...]:
        return tuple(sorted(familiar(each) for each, of in self.references.items() if of == image_id))

    def find(self, text: str) -> StoredImage | None:
        """By reference, id, or an id's first 8 or more digits; None also when those are of several."""
        named = self.references.get(normalised(text)) if text and not IMAGE_ID.fullmatch(text) else None
        if named is not None:
            return self.images.get(named)
        digits = (digest_of(text) or text).removeprefix("sha256:")
        found = [
            image for image_id, image in self.images.items() if image_id.removeprefix("sha256:").startswith(digits)
        ]
        return found[0] if len(digits) >= 8 and len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class NeededImage:
    """`references`: as manifests write them. `users`: deployments and instances, for people."""

    reference: str
    image_ids: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes: references first, then images, then blobs."""

    references: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.references or self.images or self.blobs)


def needed(
    deployments: Iterable[DeploymentRecord], instances: Iterable[InstanceRecord], cloud: str = ""
) -> tuple[NeededImage, ...]:
    """Every image that a deployment's manifest or an instance names, by reference; only of one cloud when it is given.
    An instance in the middle of a rollout may still be of the revision before."""
    users: dict[str, set[str]] = {}
    ids: dict[str, set[str]] = {}
    for deployment in deployments:
        for group in deployment.manifest.groups:
            for container in group.containers if cloud in ("", group.cloud) else ():
                users.setdefault(container.image, set()).add(str(deployment.name))
    for record in instances:
        for container in record.group.containers if cloud in ("", record.group.cloud) else ():
            users.setdefault(container.image, set()).add(str(record.instance))
            pin = record.pinned_images.get(container.name)
            if pin is not None and pin.image == container.image:
                ids.setdefault(container.image, set()).add(pin.image_id)
    return tuple(
        NeededImage(image, tuple(sorted(ids.get(image, ()))), tuple(sorted(users[image]))) for image in sorted(users)
    )


def users_of(index: Index, image_id: str, wanted: Iterable[NeededImage]) -> tuple[str, ...]:
    """Who names this very image, by reference or by pin."""
    found: set[str] = set()
    for each in wanted:
        by_reference = index.references.get(normalised(each.reference)) == image_id
        if by_reference or image_id in each.image_ids or digest_of(each.reference) == image_id:
            found.update(each.users)
    return tuple(sorted(found))


def removal_of(index: Index, image_id: str, only_reference: str = "") -> Removal:
    """Taking one image out; with `only_reference` that name alone, and the image with it when it has no other."""
    names = {reference for reference, of in index.references.items() if of == image_id}
    if only_reference and names - {only_reference}:
        return Removal(references=(only_reference,))
    return Removal(tuple(sorted(names)), (image_id,), _unlisted(index, {image_id}, frozenset()))


def prunable(
    index: Index, wanted: Iterable[NeededImage], now_unix: float, older_than_seconds: float, arriving: frozenset[str]
) -> Removal:
    """Images that nobody names and that were pushed long enough ago; blobs that no remaining image lists, but for
    those that are `arriving`: of a push that has not named its image yet."""
    wanted = tuple(wanted)
    gone = {
        image_id
        for image_id, image in index.images.items()
        if now_unix - image.pushed_at >= older_than_seconds and not users_of(index, image_id, wanted)
    }
    references = tuple(sorted(reference for reference, of in index.references.items() if of in gone))
    return Removal(references, tuple(sorted(gone)), _unlisted(index, gone, arriving))


def described(config: bytes, digests: Iterable[tuple[str, int]], now_unix: float, person: str) -> StoredImage:
    """The index record of an image whose blobs are all there; BadImage when configuration and layers do not fit."""
    layers = tuple(digests)
    if len(config) > CONFIG_MAX_BYTES:
        raise BadImage(f"the configuration has {len(config)} bytes, more than {CONFIG_MAX_BYTES}")
    if len(layers) > LAYERS_MAX:
        raise BadImage(f"{len(layers)} layers, more than {LAYERS_MAX}")
    try:
        told = json.loads(config)
        diff_ids = [str(each) for each in told["rootfs"]["diff_ids"]]
        architecture, system = str(told.get("architecture", "")), str(told.get("os", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadImage(f"the configuration is no image's: {error!r}") from None
    if len(diff_ids) != len(layers):
        raise BadImage(f"the configuration names {len(diff_ids)} layers, and {len(layers)} were given")
    if not all(IMAGE_ID.fullmatch(each) for each in diff_ids):
        raise BadImage("the configuration names a layer by something that is no sha256 digest")
    return StoredImage(
        image_id="",
        config_bytes=len(config),
        layers=tuple(
            StoredLayer(digest, size, diff_id) for (digest, size), diff_id in zip(layers, diff_ids, strict=True)
        ),
        architecture=architecture,
        os=system,
        pushed_at=now_unix,
        pushed_by=person,
    )


def _unlisted(index: Index, gone: set[str], arriving: frozenset[str]) -> tuple[str, ...]:
    kept: set[str] = set(arriving)
    for image_id, image in index.images.items():
        if image_id not in gone:
            kept |= image.blobs
    return tuple(sorted(set(index.blobs) - kept))
