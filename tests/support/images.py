"""Small container images in files, in both formats, and with layers that several of them share."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def layer(files: Mapping[str, bytes]) -> bytes:
    """A layer's plain tar, the same for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class MadeImage:
    layers: tuple[bytes, ...]
    config: bytes

    @property
    def image_id(self) -> str:
        return digest(self.config)


def image(layers: Sequence[bytes], command: Sequence[str] = ("/bin/sh",), **more: Any) -> MadeImage:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/bin"], **more},
        "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in layers]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "test"} for _ in layers],
    }
    return MadeImage(tuple(layers), json.dumps(config, sort_keys=True).encode())


def docker_archive(path: Path, images: Mapping[str, MadeImage]) -> Path:
    """As `docker save` of the engines up to 24 writes it: a layer that was written before is a link."""
    manifest = []
    written: dict[str, str] = {}
    with tarfile.open(path, "w") as archive:
        for number, (name, made) in enumerate(images.items()):
            config = f"{made.image_id[7:]}.json"
            _add(archive, config, made.config)
            members = []
            for at, content in enumerate(made.layers):
                member = f"{number}-{at}/layer.tar"
                if digest(content) in written:
                    link = tarfile.TarInfo(member)
                    link.type, link.linkname = tarfile.SYMTYPE, f"../{written[digest(content)]}"
                    archive.addfile(link)
                else:
                    _add(archive, member, content)
                    written[digest(content)] = member
                members.append(member)
            manifest.append({"Config": config, "RepoTags": [name], "Layers": members})
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return path


def oci_archive(path: Path, name: str, made: MadeImage, other_platform: MadeImage | None = None) -> Path:
    """An OCI layout with an index of two platforms and compressed layers."""
    blobs: dict[str, bytes] = {}

    def keep(content: bytes) -> tuple[str, int]:
        blobs[digest(content)] = content
        return digest(content), len(content)

    def manifest(of: MadeImage, architecture: str) -> dict[str, Any]:
        config, size = keep(of.config)
        layers = [dict(zip(("digest", "size"), keep(gzip.compress(each, mtime=0)), strict=True)) for each in of.layers]
        text = json.dumps({"schemaVersion": 2, "config": {"digest": config, "size": size}, "layers": layers}).encode()
        held, length = keep(text)
        return {"digest": held, "size": length, "platform": {"os": "linux", "architecture": architecture}}

    entries = [manifest(made, "amd64")]
    if other_platform is not None:
        entries.insert(0, manifest(other_platform, "arm64"))
    inner, size = keep(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    index = {
        "schemaVersion": 2,
        "manifests": [{"digest": inner, "size": size, "annotations": {"io.containerd.image.name": name}}],
    }
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for held, content in blobs.items():
            _add(archive, f"blobs/{held.replace(':', '/')}", content)
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
