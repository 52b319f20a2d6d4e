"""Images in files: both formats, and files that are none."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from healthmonitor.cli.image_file import BadImageFile, ImageFile
from tests.support import images

BASE = images.layer({"bin/sh": b"shell" * 1000})
ONE = images.image([BASE, images.layer({"one": b"1"})])
TWO = images.image([BASE, images.layer({"two": b"2"})])


def test_a_docker_archive_of_two_images_shares_their_layer(tmp_path: Path) -> None:
    """A layer that is a link is the layer it points at."""
    path = images.docker_archive(tmp_path / "both.tar", {"one:1": ONE, "two:2": TWO})
    with ImageFile(path) as file:
        one, two = file.images()
        assert (one.references, two.references) == (("one:1",), ("two:2",))
        assert (one.config.digest, two.config.digest) == (ONE.image_id, TWO.image_id)
        assert one.layers[0].digest == two.layers[0].digest == images.digest(BASE)
        assert b"".join(file.content(two.layers[0])) == BASE
        assert b"".join(file.content(two.config)) == TWO.config


def test_an_oci_layout_gives_the_platform_that_is_asked_for(tmp_path: Path) -> None:
    """Compressed layers are kept as they are; the name also by the manifest's digest."""
    path = images.oci_archive(tmp_path / "oci.tar", "docker.io/library/one:1", ONE, other_platform=TWO)
    with ImageFile(path) as file:
        (one,) = file.images()
        (two,) = file.images("linux/arm64")
        assert (one.config.digest, two.config.digest) == (ONE.image_id, TWO.image_id)
        assert gzip.decompress(b"".join(file.content(one.layers[0]))) == BASE
        assert one.references[0] == "docker.io/library/one:1"
        assert one.references[1].startswith("docker.io/library/one@sha256:")
        with pytest.raises(BadImageFile, match="no image for linux/s390x"):
            file.images("linux/s390x")


def test_a_compressed_archive_is_read_too(tmp_path: Path) -> None:
    """As `docker save … | gzip` makes it."""
    plain = images.docker_archive(tmp_path / "one.tar", {"one:1": ONE})
    packed = tmp_path / "one.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with ImageFile(packed) as file:
        assert file.images()[0].config.digest == ONE.image_id


def _rewritten(path: Path, change: dict[str, bytes | None]) -> Path:
    target = path.with_name(f"{len(list(path.parent.iterdir()))}.tar")
    with tarfile.open(path) as source, tarfile.open(target, "w") as archive:
        for member in source.getmembers():
            content = change.get(member.name, b"")
            if content is None:
                continue
            if content:
                images._add(archive, member.name, content)
            else:
                archive.addfile(member, source.extractfile(member) if member.isreg() else None)
    return target


def test_what_is_no_image_is_said_to_be_none(tmp_path: Path) -> None:
    """No tar, no manifest, a manifest that names what is not there, a blob that is not what its name says."""
    text = tmp_path / "text.tar"
    text.write_text("hello")
    with pytest.raises(BadImageFile, match="cannot be read as a tar"):
        ImageFile(text)
    docker = images.docker_archive(tmp_path / "one.tar", {"one:1": ONE})
    oci = images.oci_archive(tmp_path / "oci.tar", "one:1", ONE)
    config_member = f"blobs/{ONE.image_id.replace(':', '/')}"
    for path, says in (
        (_rewritten(docker, {"manifest.json": None}), "neither manifest.json nor index.json"),
        (_rewritten(docker, {"0-1/layer.tar": None}), "names 0-1/layer.tar, and does not have it"),
        (_rewritten(docker, {"manifest.json": b'[{"Config": 1}]'}), "does not have it|no image archive"),
        (_rewritten(docker, {"manifest.json": b"{"}), "no image archive"),
        (_rewritten(oci, {config_member: b"{}"}), "it is damaged"),
    ):
        with ImageFile(path) as file, pytest.raises(BadImageFile, match=says):
            file.images()
