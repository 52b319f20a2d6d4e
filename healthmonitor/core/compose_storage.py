"""Volumes, tmpfs and devices of a container, from Compose's notation.

Law: data is on a persistent disk that the group declares, or on a path of the VM that the manifest names. There are
no anonymous volumes: what would be lost with the VM must be seen to be so.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection

from healthmonitor.core.yaml_places import Place, nearest
from protocol.spec import Device, Mount, MountKind

_DIRECTORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PERMISSIONS = re.compile(r"r?w?m?")


def read_volumes(place: Place, disks: Collection[str], containers: Collection[str]) -> tuple[list[Mount], list[str]]:
    """(mounts, tmpfs): a long-syntax volume may be of type tmpfs."""
    mounts: list[Mount] = []
    tmpfs: list[str] = []
    for item in place.items('a list such as ["data:/var/lib/data"]'):
        if item.is_mapping:
            _long(item, disks, containers, mounts, tmpfs)
        else:
            mount = _short(item, disks, containers)
            if mount is not None:
                mounts.append(mount)
    return mounts, tmpfs


def read_tmpfs(place: Place) -> list[str]:
    entries = []
    for text in place.text_or_texts("a path or a list of them"):
        path, colon, options = text.partition(":")
        target = _target(place, path)
        if target:
            entries.append(target + colon + options)
    return entries


def check_targets(mounts: list[Mount], tmpfs: list[str], place: Place) -> None:
    seen: set[str] = set()
    for target in [mount.target for mount in mounts] + [entry.partition(":")[0] for entry in tmpfs]:
        if target in seen:
            place.key_error(f"{target} is mounted twice in this container; each path can have one volume")
        seen.add(target)


def read_devices(place: Place) -> tuple[Device, ...]:
    devices: list[Device] = []
    for item in place.items('a list such as ["/dev/ttyUSB0:/dev/ttyUSB0"]'):
        if item.is_mapping:
            fields = item.fields(("source", "target", "permissions"), extensions=True)
            if "source" not in fields:
                item.error("source is missing; expected the device on the VM")
                continue
            host = fields["source"].text("a device")
            inside = fields["target"].text("a path") if "target" in fields else host
            permissions = fields["permissions"].text("of rwm") if "permissions" in fields else "rwm"
        else:
            parts = item.text("a device").split(":")
            if len(parts) > 3:
                item.wrong('"HOST[:CONTAINER[:rwm]]"')
                continue
            host, inside, permissions = (
                parts[0],
                parts[1] if len(parts) > 1 else parts[0],
                (parts[2:] and parts[2]) or "rwm",
            )
        if not host.startswith("/") or not inside.startswith("/"):
            item.wrong("absolute paths such as /dev/ttyUSB0")
        elif not permissions or not _PERMISSIONS.fullmatch(permissions):
            item.error(f"permissions {permissions!r}; expected some of rwm in this order")
        else:
            devices.append(Device(host, inside, permissions))
    return tuple(devices)


def _short(place: Place, disks: Collection[str], containers: Collection[str]) -> Mount | None:
    text = place.text('a volume such as "data:/path"')
    if not text:
        return None
    parts = text.split(":")
    if len(parts) == 1:
        if text.startswith("/"):
            place.error(
                f"{text} would be an anonymous volume, lost with the VM; write DISK:{text} for a persistent disk of "
                f"the group ({_declared(disks)}), or tmpfs: [{text}] for what may be lost"
            )
        else:
            place.wrong('"DISK:/path" or "/host/path:/path"')
        return None
    if len(parts) > 3:
        place.wrong('"SOURCE:/path" or "SOURCE:/path:ro"')
        return None
    read_only = False
    for option in parts[2].split(",") if len(parts) == 3 else []:
        if option == "ro":
            read_only = True
        elif option != "rw":
            place.error(f"option {option!r} is not supported; expected ro or rw")
    return _mount(place, parts[0], parts[1], read_only, "", disks, containers)


def _long(
    place: Place, disks: Collection[str], containers: Collection[str], mounts: list[Mount], tmpfs: list[str]
) -> None:
    fields = place.fields(
        ("type", "source", "target", "read_only", "bind", "volume", "tmpfs"),
        {"consistency": "has no effect on Linux; leave it out"},
        extensions=True,
    )
    kind = fields["type"].one_of(("volume", "bind", "tmpfs"), "volume") if "type" in fields else "volume"
    if "type" not in fields:
        place.error("type is missing; expected volume (a persistent disk), bind or tmpfs")
    if "target" not in fields:
        place.error("target is missing; expected the path in the container")
        return
    for other in {"bind", "volume", "tmpfs"} & fields.keys() - {kind}:
        fields[other].key_error(f"{other}: has no meaning with type: {kind}")
    target = fields["target"].text("a path")
    if kind == "tmpfs":
        entry = _tmpfs(place, fields, target)
        if entry:
            tmpfs.append(entry)
        return
    if "source" not in fields:
        place.error(f"source is missing; expected {'a path of the VM' if kind == 'bind' else _declared(disks)}")
        return
    source, subdirectory = fields["source"].text("a disk or a path"), ""
    if kind == "bind" and "bind" in fields:
        options = fields["bind"].fields(
            ("create_host_path",),
            {key: f"{key} is not supported" for key in ("propagation", "selinux", "recursive")},
        )
        if "create_host_path" in options and not options["create_host_path"].boolean(True):
            options["create_host_path"].error("create_host_path: false is not supported; a missing path is made")
    if kind == "volume" and "volume" in fields:
        options = fields["volume"].fields(("subpath", "nocopy"))
        subdirectory = options["subpath"].text("a directory") if "subpath" in options else ""
    if source and (kind == "bind") != source.startswith("/"):
        fields["source"].wrong("an absolute path of the VM" if kind == "bind" else f"a disk ({_declared(disks)})")
        return
    read_only = fields["read_only"].boolean() if "read_only" in fields else False
    mount = _mount(place, source, target, read_only, subdirectory, disks, containers)
    if mount is not None:
        mounts.append(mount)


def _tmpfs(place: Place, fields: dict[str, Place], target: str) -> str:
    if "source" in fields:
        fields["source"].key_error("a tmpfs has no source")
    path, options = _target(place, target), []
    inner = fields["tmpfs"].fields(("size", "mode")) if "tmpfs" in fields else {}
    if "size" in inner:
        options.append(f"size={inner['size'].text('a size')}")
    if "mode" in inner:
        options.append(f"mode={inner['mode'].text('a mode such as 1777')}")
    return path + (":" + ",".join(options) if options else "") if path else ""


def _mount(
    place: Place,
    source: str,
    target: str,
    read_only: bool,
    subdirectory: str,
    disks: Collection[str],
    containers: Collection[str],
) -> Mount | None:
    path = _target(place, target)
    if source.startswith("/"):
        host = posixpath.normpath(source)
        if ".." in source.split("/"):
            place.error(f"{source!r} with .. in it; write the path it stands for")
            return None
        return Mount(MountKind.BIND, "/" + host.lstrip("/"), path, read_only=read_only) if path else None
    if source.startswith((".", "~")) or not source:
        place.error(
            f"{source!r} is relative, and a VM has no working directory; write an absolute path of the VM, "
            f"or a persistent disk ({_declared(disks)})"
        )
        return None
    disk, _, inside = source.partition("/")
    directory = "/".join(part for part in (inside, subdirectory) if part)
    if disk not in disks:
        near = nearest(disk, disks)
        place.error(
            f"{disk!r} is no persistent disk of this group; "
            + (
                f"did you mean {near}?"
                if near
                else f"{_declared(disks)}; declare it: persistent_disks: {{{disk}: 10GiB}}"
            )
        )
        return None
    if directory and not _directory_is_fine(place, directory, containers):
        return None
    return Mount(MountKind.DISK, disk, path, directory, read_only) if path else None


def _directory_is_fine(place: Place, directory: str, containers: Collection[str]) -> bool:
    parts = directory.split("/")
    if not all(_DIRECTORY.fullmatch(part) for part in parts) or len(directory) > 200:
        place.error(f"directory {directory!r} on the disk; expected names of letters, digits, ., _ and -, without ..")
        return False
    if parts[0] in containers:
        place.error(
            f"directory {parts[0]!r} on the disk belongs to the container of that name; choose another to share"
        )
        return False
    return True


def _target(place: Place, text: str) -> str:
    path = "/" + posixpath.normpath(text).lstrip("/") if text.startswith("/") else ""
    if not path or path == "/" or ".." in text.split("/"):
        place.error(f"{text!r} as the path in the container; expected an absolute path below / such as /data")
        return ""
    return path


def _declared(disks: Collection[str]) -> str:
    return f"declared: {', '.join(sorted(disks))}" if disks else "none is declared in persistent_disks"
