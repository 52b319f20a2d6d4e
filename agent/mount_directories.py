"""The directory of the VM behind each mount of a container.

Law: a directory on a persistent disk never lies outside that disk, whatever the specification or a link on the disk
says; a host path that is not there is an error, never made silently. No two targets of a container share a directory
unless the manifest names one.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from pathlib import Path

from agent.engine import EngineRefused
from protocol.ids import ContainerName, DiskName
from protocol.spec import ContainerSpec, Mount, MountKind

_PLAIN = frozenset(string.ascii_letters + string.digits + ":_.")


def prepare(container: ContainerSpec, disks: Mapping[DiskName, str]) -> dict[str, str]:
    """Target path → directory (or file, for a host path), made where it is ours to make. Blocks. EngineRefused."""
    return {mount.target: _source(container, mount, disks) for mount in container.mounts}


def escape_path(path: str) -> str:
    """As systemd-escape --path does: `/var/lib/my-x` → `var-lib-my\\x2dx`; `/` → `-`."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "-"
    text = "".join(_escaped(character) for part in ["/".join(parts)] for character in part)
    return "\\x2e" + text[1:] if text.startswith(".") else text


def directory_on_disk(root: str, container: ContainerName, mount: Mount) -> Path:
    """Where a mount of kind DISK lies. EngineRefused when it would leave the disk."""
    relative = Path(mount.subdirectory) if mount.subdirectory else Path(container) / escape_path(mount.target)
    if relative.is_absolute() or ".." in relative.parts:
        raise EngineRefused(f"{mount.target}: {relative} leads out of disk {mount.source}")
    return Path(root) / relative


def _source(container: ContainerSpec, mount: Mount, disks: Mapping[DiskName, str]) -> str:
    if mount.kind is MountKind.BIND:
        if not os.path.exists(mount.source):
            raise EngineRefused(
                f"{mount.target}: {mount.source} does not exist on this VM; make it, or correct the path"
            )
        return mount.source
    root = disks.get(DiskName(mount.source))
    if root is None:
        raise EngineRefused(f"{mount.target}: disk {mount.source} is not mounted")
    path = directory_on_disk(root, container.name, mount)
    try:
        _make(Path(root), path, _owner(container.user))
    except OSError as error:
        raise EngineRefused(f"{mount.target}: {path} cannot be made: {error.strerror}") from None
    return str(path)


def _make(root: Path, path: Path, owner: tuple[int, int] | None) -> None:
    """Makes what is missing of `path` below `root`, mode 0755; only the last, and only when new, is given away."""
    if not os.path.isdir(root):
        raise EngineRefused(f"{root} is not there")
    current = root
    parts = path.relative_to(root).parts
    for number, part in enumerate(parts, start=1):
        current = current / part
        try:
            current.mkdir(mode=0o755)
        except FileExistsError:
            pass
        else:
            current.chmod(0o755)
            if owner is not None and number == len(parts):
                os.chown(current, *owner)
        # A container may have written a link where a directory should be; we and the engine would follow it.
        if not current.resolve().is_relative_to(root.resolve()):
            raise EngineRefused(f"{current} is a link that leads out of the disk")


def _owner(user: str) -> tuple[int, int] | None:
    """Only where numbers were given: names are the image's, and unknown here."""
    uid, _, gid = user.partition(":")
    if not uid.isdecimal() or (gid and not gid.isdecimal()):
        return None
    return int(uid), int(gid or uid)


def _escaped(character: str) -> str:
    if character == "/":
        return "-"
    if character in _PLAIN:
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())
