"""Loop devices: a file as a block device of this machine.

Law: what is attached is read from the kernel. A device that is let go while something still uses it stays until that
ends, and counts as attached until then.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from healthmonitor.clouds.cloud import CloudUnavailable
from healthmonitor.clouds.qemu_images import run


async def of_file(file: Path) -> list[Path]:
    """The loop devices on top of `file`."""
    printed = await run("losetup", "--json", "--associated", str(file), "--output", "NAME")
    devices = json.loads(printed)["loopdevices"] if printed.strip() else []
    return [Path(device["name"]) for device in devices]


async def attach(file: Path) -> Path:
    """The loop device of `file`; the one there is, if there is one."""
    await run("losetup", "--find", "--nooverlap", str(file))
    devices = await of_file(file)
    if len(devices) != 1:
        raise CloudUnavailable(f"{file} has {len(devices)} loop devices; expected one")
    return devices[0]


async def release(file: Path) -> bool:
    """Whether `file` has no loop device any more. False: something still uses it; it goes when that ends."""
    for device in await of_file(file):
        await run("losetup", "--detach", str(device))
    return not await of_file(file)


async def reread_size(file: Path) -> None:
    for device in await of_file(file):
        await run("losetup", "--set-capacity", str(device))


def make_node(device: Path, node: Path) -> None:
    """The device under another name, which may be in another mount namespace (`/proc/<pid>/root/…`)."""
    number = os.stat(device).st_rdev
    try:
        found = os.stat(node)
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == number:
            return
        node.unlink()
    except FileNotFoundError:
        node.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(node, stat.S_IFBLK | 0o660, number)
