"""References, the index of the image store, and what may go from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core import image_index
from healthmonitor.core.image_index import BadImage, Index, NeededImage, Removal
from healthmonitor.core.records import InstanceRecord
from protocol.ids import ContainerName, Revision, instance_id
from protocol.images import StoredImage, StoredLayer, digest_of, familiar, normalised, repository_of
from protocol.spec import ImagePin
from tests.support import images
from tests.support.hands_world import SHOP, deployment, group

A, B, C, D, E = (f"sha256:{letter * 64}" for letter in "abcde")
IDS = {"one": f"sha256:{'1' * 64}", "two": f"sha256:{'2' * 64}"}

REFERENCES = [
    ("redis", "docker.io/library/redis:latest", "redis:latest"),
    ("redis:7", "docker.io/library/redis:7", "redis:7"),
    ("docker.io/redis:7", "docker.io/library/redis:7", "redis:7"),
    ("index.docker.io/library/redis:7", "docker.io/library/redis:7", "redis:7"),
    ("team/app", "docker.io/team/app:latest", "team/app:latest"),
    ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
    ("registry:5000/team/app", "registry:5000/team/app:latest", "registry:5000/team/app:latest"),
    ("r.example/app:1", "r.example/app:1", "r.example/app:1"),
    (f"redis@{A}", f"docker.io/library/redis@{A}", f"redis@{A}"),
    (f"redis:7@{A}", f"docker.io/library/redis@{A}", f"redis@{A}"),
]


@pytest.mark.parametrize(("written", "whole", "short"), REFERENCES)
def test_references_are_read_as_the_engine_reads_them(written: str, whole: str, short: str) -> None:
    """Registry, namespace and tag that are left out are those of Docker Hub; whatever is whole stays."""
    assert normalised(written) == whole
    assert normalised(whole) == whole
    assert familiar(whole) == short
    assert repository_of(written) in whole
    assert digest_of(written) == (A if "@" in written else "")


def stored(image_id: str, *layers: str, pushed_at: float = 0.0) -> StoredImage:
    return StoredImage(image_id, 10, tuple(StoredLayer(each, 100, each) for each in layers), pushed_at=pushed_at)


def index() -> Index:
    """`one` has layers A and B, `two` B and C; D is a blob of no image."""
    images_there = {IDS["one"]: stored(IDS["one"], A, B), IDS["two"]: stored(IDS["two"], B, C, pushed_at=500.0)}
    references = {"docker.io/library/redis:7": IDS["one"], "docker.io/library/redis:8": IDS["two"]}
    blobs = {A: 100, B: 100, C: 100, D: 100, IDS["one"]: 10, IDS["two"]: 10}
    return Index(images_there, references, blobs)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("redis:7", "one"),
        ("docker.io/library/redis:8", "two"),
        (IDS["two"], "two"),
        (f"redis@{IDS['one']}", "one"),
        ("22222222", "two"),
        ("2222", ""),
        ("redis", ""),
        ("", ""),
    ],
)
def test_an_image_is_found_by_name_or_id(text: str, found: str) -> None:
    """Eight digits of an id are enough, and fewer are not."""
    image = index().find(text)
    assert (image.image_id if image else "") == IDS.get(found, "")


def test_size_counts_a_repeated_layer_once() -> None:
    """As the store does."""
    assert stored(IDS["one"], A, A, B).size_bytes == 210


NOBODY: tuple[NeededImage, ...] = ()
PRUNED = [
    ("nobody needs any", NOBODY, 1000.0, 0.0, frozenset(), {"one", "two"}, {A, B, C, D}),
    ("too young", NOBODY, 1000.0, 600.0, frozenset(), {"one"}, {A, D}),
    ("named", (NeededImage("redis:7", (), ("shop",)),), 1000.0, 0.0, frozenset(), {"two"}, {C, D}),
    ("pinned", (NeededImage("redis:9", (IDS["two"],), ("shop/db/0",)),), 1000.0, 0.0, frozenset(), {"one"}, {A, D}),
    ("by digest", (NeededImage(f"x@{IDS['one']}", (), ("shop",)),), 1000.0, 0.0, frozenset(), {"two"}, {C, D}),
    ("arriving", (NeededImage("redis:7", (), ("s",)), NeededImage("redis:8", (), ("s",))), 1e3, 0.0, frozenset({D}),
        set(), set()),
]  # fmt: skip


@pytest.mark.parametrize(("what", "wanted", "now", "older", "arriving", "gone", "blobs"), PRUNED)
def test_prune_takes_what_nobody_names(
    what: str,
    wanted: tuple[NeededImage, ...],
    now: float,
    older: float,
    arriving: frozenset[str],
    gone: set[str],
    blobs: set[str],
) -> None:
    """Layers that a remaining image has stay; those of a push under way too."""
    removal = image_index.prunable(index(), wanted, now, older, arriving)
    assert set(removal.images) == {IDS[name] for name in gone}
    assert set(removal.blobs) == blobs | {IDS[name] for name in gone}
    assert len(removal.references) == len(gone)


def test_deleting_one_of_two_names_keeps_the_image() -> None:
    """With its last name it goes, and with it the layers that no other has."""
    both = replace(index(), references={**index().references, "docker.io/library/redis:latest": IDS["one"]})
    only = "docker.io/library/redis:7"
    assert image_index.removal_of(both, IDS["one"], only) == Removal(references=(only,))
    assert image_index.removal_of(index(), IDS["one"], only) == Removal(
        (only,), (IDS["one"],), tuple(sorted((A, D, IDS["one"])))
    )


def test_what_deployments_and_instances_name_is_needed_by_them() -> None:
    """Of a manifest and of instances still at the revision before, with the ids they are pinned to."""
    old = group(image="redis:6")
    record = InstanceRecord(
        instance=instance_id("shop", "db", 0),
        deployment=SHOP,
        index=0,
        group=old,
        deployment_revision=Revision(1),
        revision=Revision(1),
        pinned_images={ContainerName("redis"): ImagePin("redis:6", IDS["one"])},
    )
    moved = replace(record, pinned_images={ContainerName("redis"): ImagePin("redis:5", IDS["two"])})
    found = image_index.needed([deployment(group())], [record])
    assert found == (
        NeededImage("redis:6", (IDS["one"],), ("shop/db/0",)),
        NeededImage("redis:7", (), ("shop",)),
    )
    assert image_index.needed([], [moved])[0].image_ids == ()
    assert image_index.needed([deployment(group())], [record], cloud="elsewhere") == ()


@pytest.mark.parametrize(
    ("config", "layers", "says"),
    [
        (b"{", 1, "no image's"),
        (b"[]", 1, "no image's"),
        (images.image([b"x"]).config, 2, "names 1 layers, and 2"),
        (b'{"rootfs": {"diff_ids": ["md5:1"]}}', 1, "no sha256"),
        (b" " * (4 * 1024 * 1024 + 1), 0, "more than"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config: bytes, layers: int, says: str) -> None:
    """With the reason."""
    with pytest.raises(BadImage, match=says):
        image_index.described(config, [(A, 1)] * layers, 0.0, "ada")
