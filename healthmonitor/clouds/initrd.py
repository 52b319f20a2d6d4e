"""The initial RAM disk of a stemcell: busybox, the modules of a virtual disk, and a script that mounts the root.

Law: it holds nothing that depends on the machine it is built on. A distribution's own is seven times larger and takes
seconds longer under TCG. The archive is written here ("newc" cpio), so that no tool is needed for it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from healthmonitor.clouds.qemu_accel import PROBE_ARGUMENT, PROBE_LINE

MODULES = ("virtio_pci", "virtio_blk")
BUSYBOX_PLACES = ("bin/busybox", "usr/bin/busybox")

MOUNT_ROOT = f"""\
case "$cmdline" in *{PROBE_ARGUMENT}*) echo "{PROBE_LINE.decode()}"; poweroff -f;; esac
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -gt 600 ] && {{ echo "resurgam: no root disk /dev/vda"; reboot -f; }}
    sleep 0.05
done
mount -t ext4 /dev/vda /new || {{ echo "resurgam: the root disk cannot be mounted"; reboot -f; }}
umount /proc /sys
mount --move /dev /new/dev
exec switch_root /new /sbin/init
"""

_PRELUDE = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /new
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
cmdline=$(cat /proc/cmdline)
"""


@dataclass(frozen=True, slots=True)
class Entry:
    path: str  # relative
    mode: int  # with the file type
    content: bytes = b""


def build(root: Path, script: str = MOUNT_ROOT, modules: Iterable[str] = MODULES) -> bytes:
    """From an unpacked root file system with busybox and one kernel. FileNotFoundError, KeyError when it lacks them."""
    busybox = next((root / place for place in BUSYBOX_PLACES if (root / place).is_file()), None)
    if busybox is None:
        raise FileNotFoundError(f"{root} holds no busybox")
    module_directory = kernel_modules(root)
    files = load_order(module_directory, modules)
    loads = "".join(f"insmod /modules/{PurePosixPath(file).name}\n" for file in files)
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "modules")]
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries.append(Entry("init", stat.S_IFREG | 0o755, f"{_PRELUDE}{loads}{script}".encode()))
    for file in files:
        content = (module_directory / file).read_bytes()
        entries.append(Entry(f"modules/{PurePosixPath(file).name}", stat.S_IFREG | 0o644, content))
    return newc(entries)


def kernel_modules(root: Path) -> Path:
    """The directory of the one kernel's modules."""
    found = sorted((root / "usr/lib/modules").glob("*/modules.dep"))
    if not found:
        raise FileNotFoundError(f"{root} holds no kernel modules")
    return found[-1].parent


def load_order(module_directory: Path, modules: Iterable[str]) -> list[str]:
    """Files of the modules and of what they need, each after what it needs. A module that is built in is left out."""
    needs: dict[str, tuple[str, list[str]]] = {}
    for line in (module_directory / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[_module_name(file)] = (file, rest.split())
    built_in = {_module_name(line) for line in (module_directory / "modules.builtin").read_text().splitlines()}
    ordered: list[str] = []

    def add(file: str, needed: list[str]) -> None:
        for other in needed:
            add(*needs[_module_name(other)])
        if file not in ordered:
            ordered.append(file)

    for module in modules:
        if module not in built_in:
            add(*needs[module])
    return ordered


def newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive as the kernel reads it; every time stamp is 0, so the same entries give the same bytes."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += b"\0" * (-len(archive) % 4)
        archive += entry.content
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


def _module_name(path: str) -> str:
    return PurePosixPath(path).name.partition(".ko")[0].replace("-", "_")
