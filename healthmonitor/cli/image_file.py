"""Container images in a file: what `docker save` writes, and OCI layouts (a tar of one, or its directory tarred).

Laws: nothing is unpacked to the disk and no layer is held in memory. What is named is read and its digest computed
here, never believed. An OCI index of several platforms gives the one that is asked for.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

PIECE_BYTES = 1024 * 1024
JSON_MAX_BYTES = 16 * 1024 * 1024
PLATFORM = "linux/amd64"
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


class BadImageFile(Exception):
    """It is no image archive; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class FileBlob:
    digest: str
    size_bytes: int
    member: str


@dataclass(frozen=True, slots=True)
class FileImage:
    config: FileBlob
    layers: tuple[FileBlob, ...]
    references: tuple[str, ...]

    @property
    def blobs(self) -> dict[str, FileBlob]:
        """In the order to send them: what is refused for want of room leaves the least behind."""
        return {blob.digest: blob for blob in (*self.layers, self.config)}


class ImageFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = tarfile.open(path)  # noqa: SIM115 - closed by close()
            self._members = {member.name.removeprefix("./"): member for member in self._archive.getmembers()}
        except (OSError, tarfile.TarError) as error:
            raise BadImageFile(f"{path} cannot be read as a tar archive: {error}") from None
        self._digests: dict[str, FileBlob] = {}

    def __enter__(self) -> ImageFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._archive.close()

    def images(self, platform: str = PLATFORM) -> tuple[FileImage, ...]:
        """BadImageFile when there is none."""
        try:
            if "manifest.json" in self._members:
                found = tuple(self._legacy(entry) for entry in self._json("manifest.json"))
            elif "index.json" in self._members:
                found = tuple(self._oci(platform))
            else:
                raise BadImageFile(
                    f"{self._path} has neither manifest.json nor index.json:"
                    f" make it with docker save -o {self._path} IMAGE"
                )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadImageFile(f"{self._path} is no image archive: {error!r}") from None
        if not found:
            raise BadImageFile(f"{self._path} holds no image for {platform}")
        return found

    def content(self, blob: FileBlob) -> Iterator[bytes]:
        with self._open(blob.member) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _legacy(self, entry: Any) -> FileImage:
        return FileImage(
            self._blob(str(entry["Config"])),
            tuple(self._blob(str(layer)) for layer in entry["Layers"]),
            tuple(str(tag) for tag in entry.get("RepoTags") or ()),
        )

    def _oci(self, platform: str) -> Iterator[FileImage]:
        for entry in self._json("index.json")["manifests"]:
            yield from self._oci_entry(entry, _names(entry), platform)

    def _oci_entry(self, entry: Any, names: tuple[str, ...], platform: str) -> Iterator[FileImage]:
        told = entry.get("platform")
        if told and f"{told.get('os')}/{told.get('architecture')}" != platform:
            return
        digest = str(entry["digest"])
        manifest = self._json(_oci_member(digest))
        if "manifests" in manifest:
            for inner in manifest["manifests"]:
                yield from self._oci_entry(inner, names, platform)
            return
        layers = tuple(self._checked(str(layer["digest"])) for layer in manifest["layers"])
        repositories = {name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name for name in names}
        by_digest = tuple(f"{repository}@{digest}" for repository in sorted(repositories))
        yield FileImage(self._checked(str(manifest["config"]["digest"])), layers, (*names, *by_digest))

    def _checked(self, digest: str) -> FileBlob:
        blob = self._blob(_oci_member(digest))
        if blob.digest != digest:
            raise BadImageFile(f"{self._path}: {blob.member} has the digest {blob.digest}, not {digest}: it is damaged")
        return blob

    def _blob(self, member: str) -> FileBlob:
        known = self._digests.get(member)
        if known is None:
            digest, size = hashlib.sha256(), 0
            with self._open(member) as file:
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    size += len(piece)
            known = self._digests[member] = FileBlob(f"sha256:{digest.hexdigest()}", size, member)
        return known

    def _json(self, member: str) -> Any:
        with self._open(member) as file:
            return json.loads(file.read(JSON_MAX_BYTES))

    def _open(self, member: str) -> IO[bytes]:
        found = self._members.get(member)
        # docker save links layers that several images share
        opened = self._archive.extractfile(found) if found is not None else None
        if opened is None:
            raise BadImageFile(f"{self._path} names {member}, and does not have it: it is cut off, or no image archive")
        return opened


def _oci_member(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


def _names(entry: Any) -> tuple[str, ...]:
    """A whole name; a bare tag (`7`), as some tools write it, names nothing."""
    annotations = entry.get("annotations") or {}
    for key in _NAME_ANNOTATIONS:
        name = str(annotations.get(key) or "")
        if ":" in name or "/" in name:
            return (name,)
    return ()
