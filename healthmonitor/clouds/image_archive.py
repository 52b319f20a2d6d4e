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
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from healthmonitor.clouds.build_tools import BuildFailed

EPOCH = "1970-01-01T00:00:00Z"
NANOSECONDS = 1_000_000_000
LEFT_TO_THE_ENGINE = ("dev/", "proc/", "sys/")


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


@dataclass(frozen=True, slots=True)
class Contents:
    """What of a root file system goes into the image: paths that match `keep` and not `drop` (shell patterns, `*` also
    crosses slashes), then `links` (path -> target) and empty `directories`."""

    keep: tuple[str, ...] = ("*",)
    drop: tuple[str, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    directories: tuple[str, ...] = ()

    def wants(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self.keep) and not any(
            fnmatchcase(path, pattern) for pattern in self.drop
        )


EVERYTHING = Contents()


def build_archive(rootfs: Path, tag: str, config: ImageConfig, out: Path, contents: Contents = EVERYTHING) -> Path:
    """Writes an image of one layer, from the tar `rootfs`, with the name `tag` (`repository:tag`) to `out`."""
    if ":" not in tag.rpartition("/")[2]:
        raise BuildFailed(f"image tag {tag!r}: expected repository:tag")
    with tempfile.TemporaryDirectory(prefix="resurgam-image-", dir=out.parent) as directory:
        layer = Path(directory, "layer.tar")
        _write_layer(rootfs, layer, contents)
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


def _write_layer(rootfs: Path, layer: Path, contents: Contents) -> None:
    """Sorted, without times and owners' names, devices and what a container engine puts there itself."""
    with tarfile.open(rootfs) as source, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as target:
        members: dict[str, tarfile.TarInfo] = {}
        for member in source.getmembers():
            name = member.name.removeprefix("./").strip("/")
            if name not in ("", ".") and not member.isdev() and not name.startswith(LEFT_TO_THE_ENGINE):
                members[name] = member
        wanted = {name for name, member in members.items() if not member.isdir() and contents.wants(name)}
        wanted |= {str(parent) for name in wanted for parent in PurePosixPath(name).parents} & set(members)
        # What a hard link points at comes before it.
        for name in sorted(wanted, key=lambda name: (members[name].islnk(), name)):
            copy = members[name].replace(name=name, mtime=0, uname="", gname="", deep=True)
            copy.pax_headers = {}
            if copy.islnk():
                copy.linkname = copy.linkname.removeprefix("./").strip("/")
            target.addfile(copy, source.extractfile(members[name]) if copy.isreg() else None)
        for name in sorted({*contents.directories} - wanted):
            target.addfile(_entry(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755))
        for name in sorted({*contents.links} - wanted):
            link = _entry(name, tarfile.SYMTYPE, 0o777)
            link.linkname = contents.links[name]
            target.addfile(link)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = kind, mode
    return entry


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
