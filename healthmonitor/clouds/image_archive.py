"""Container images as files ("docker archive", what `docker load` takes), written without any engine.

Law: the same root file system and configuration give the same bytes, so a stemcell's digest changes only when its
images do.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthmonitor.clouds.build_tools import BuildFailed

EPOCH = "1970-01-01T00:00:00Z"
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Healthcheck:
    test: tuple[str, ...]  # as Docker's: ("CMD", "redis-cli", "ping")
    interval_seconds: float = 5.0
    timeout_seconds: float = 3.0
    retries: int = 3


@dataclass(frozen=True, slots=True)
class ImageConfig:
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    working_directory: str = "/"
    ports: tuple[str, ...] = ()  # "6379/tcp"
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    healthcheck: Healthcheck | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def build_archive(rootfs: Path, tag: str, config: ImageConfig, out: Path) -> Path:
    """Writes an image of one layer, the tar `rootfs`, with the name `tag` (`repository:tag`) to `out`."""
    if ":" not in tag.rpartition("/")[2]:
        raise BuildFailed(f"image tag {tag!r}: expected repository:tag")
    with tempfile.TemporaryDirectory(prefix="resurgam-image-", dir=out.parent) as directory:
        layer = Path(directory, "layer.tar")
        _normalise(rootfs, layer)
        with layer.open("rb") as file:
            layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
        configuration = json.dumps(_configuration(config, layer_digest), sort_keys=True).encode()
        config_name = f"{hashlib.sha256(configuration).hexdigest()}.json"
        manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [f"{layer_digest}/layer.tar"]}]
        draft = Path(directory, "image.tar")
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, config_name, configuration)
            entry = tarfile.TarInfo(f"{layer_digest}/layer.tar")
            entry.size = layer.stat().st_size
            with layer.open("rb") as file:
                archive.addfile(entry, file)
            _add(archive, "manifest.json", json.dumps(manifest, sort_keys=True).encode())
        draft.chmod(0o644)
        draft.replace(out)
    return out


def tags_of(archive: Path) -> tuple[str, ...]:
    """The names under which `docker load` will know it; BuildFailed when it is no docker archive."""
    try:
        with tarfile.open(archive) as opened:
            member = opened.extractfile("manifest.json")
            manifest = json.load(member) if member is not None else []
        return tuple(str(tag) for image in manifest for tag in image.get("RepoTags") or ())
    except (OSError, tarfile.TarError, KeyError, ValueError, AttributeError) as error:
        raise BuildFailed(
            f"{archive} is no image archive (docker save -o {archive} IMAGE makes one): {error}"
        ) from None


def _normalise(rootfs: Path, layer: Path) -> None:
    """Sorted, without times, devices and what a container engine puts there itself."""
    with tarfile.open(rootfs) as source, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as target:
        members: list[tuple[str, tarfile.TarInfo]] = []
        for member in source.getmembers():
            name = member.name.removeprefix("./").strip("/")
            if name and name != "." and not member.isdev() and not name.startswith(("dev/", "proc/", "sys/")):
                members.append((name, member))
        names = dict(members)
        for name, member in sorted(members, key=lambda item: (item[1].islnk(), item[0])):
            copy = names[name].replace(name=name, mtime=0, uname="", gname="", deep=True)
            copy.pax_headers = {}
            if member.islnk():
                copy.linkname = member.linkname.removeprefix("./").strip("/")
            if member.isreg():
                target.addfile(copy, source.extractfile(member))
            else:
                target.addfile(copy)


def _configuration(config: ImageConfig, layer_digest: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in sorted(config.environment.items())],
        "Entrypoint": _or_none(config.entrypoint),
        "Cmd": _or_none(config.command),
        "WorkingDir": config.working_directory,
        "User": config.user,
        "Labels": dict(config.labels),
    }
    if config.ports:
        container["ExposedPorts"] = {port: {} for port in config.ports}
    if config.volumes:
        container["Volumes"] = {volume: {} for volume in config.volumes}
    if config.stop_signal:
        container["StopSignal"] = config.stop_signal
    if config.healthcheck is not None:
        container["Healthcheck"] = {
            "Test": list(config.healthcheck.test),
            "Interval": int(config.healthcheck.interval_seconds * NANOSECONDS),
            "Timeout": int(config.healthcheck.timeout_seconds * NANOSECONDS),
            "Retries": config.healthcheck.retries,
        }
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": EPOCH,
        "config": container,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": EPOCH, "created_by": "resurgam"}],
    }


def _or_none(words: Sequence[str]) -> list[str] | None:
    return list(words) or None


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
