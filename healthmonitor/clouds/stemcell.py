"""Stemcells as they lie on disk: what a provider boots VMs from.

    <directory>/<name>/current -> <digest>
    <directory>/<name>/<digest>/  manifest.json, vmlinuz, initrd, root.qcow2 (for VMs), rootfs.tar (for containers)

Law: a stemcell's directory never changes once it has its name; a rebuilt one stands beside it, because VMs that run
keep reading the one they were made from.

Does not know: how it is built (healthmonitor/clouds/stemcell_build.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from healthmonitor.clouds.cloud import CloudRefused
from protocol import codec
from protocol.ids import is_name

MANIFEST = "manifest.json"
CURRENT = "current"


@dataclass(frozen=True, slots=True)
class StemcellManifest:
    name: str
    digest: str
    built_at: float = 0.0  # Unix seconds
    versions: Mapping[str, str] = field(default_factory=dict)  # of what matters inside: docker, kernel, resurgam, …
    images: tuple[str, ...] = ()  # tags of the container images baked in
    kernel_arguments: str = ""
    has_root: bool = True


@dataclass(frozen=True, slots=True)
class Stemcell:
    manifest: StemcellManifest
    directory: Path

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd"

    @property
    def root(self) -> Path:
        return self.directory / "root.qcow2"

    @property
    def rootfs(self) -> Path:
        return self.directory / "rootfs.tar"


def load(directory: Path, name: str) -> Stemcell:
    """The stemcell `name`, or exactly `name:digest`. CloudRefused when there is none or it is not whole."""
    plain, _, digest = name.partition(":")
    if not is_name(plain) or "/" in digest:
        raise CloudRefused(f"{name[:80]!r} is no stemcell's name; expected lower-case letters, digits, - and _")
    home = (directory / plain / (digest or CURRENT)).resolve()
    try:
        manifest = codec.from_json(StemcellManifest, (home / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        known = ", ".join(stemcell.manifest.name for stemcell in stored(directory)) or "none"
        raise CloudRefused(
            f"no stemcell {name!r} (there are: {known}); build it with: resurgam stemcell build {plain}"
        ) from None
    except codec.Invalid as error:
        raise CloudRefused(f"stemcell {name!r}: {home / MANIFEST} is damaged: {error}") from None
    return Stemcell(manifest, home)


def current_digest(directory: Path, name: str) -> str:
    """Of the build that `name` stands for now; "" when there is none."""
    try:
        return (directory / name / CURRENT).readlink().name
    except OSError:
        return ""


def stored(directory: Path) -> list[Stemcell]:
    """The current one of each name."""
    found = []
    for path in sorted(directory.glob(f"*/{CURRENT}/{MANIFEST}")):
        try:
            manifest = codec.from_json(StemcellManifest, path.read_bytes())
        except codec.Invalid:
            continue  # `load` says what is wrong with it; the others are still to be listed
        found.append(Stemcell(manifest, path.parent.resolve()))
    return found
