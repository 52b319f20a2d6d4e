"""Stemcells for tests, cached below `.cache/` of the source tree.

`bare`: a kernel and an initial RAM disk that loads the disk driver and then idles, and the same as a container's root
file system. It is up in a few seconds even under TCG and has no agent, which is all that a provider's contract needs.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from healthmonitor.clouds import initrd, stemcell_base
from healthmonitor.clouds.stemcell import CURRENT, MANIFEST, StemcellManifest
from protocol import codec

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "stemcells"
BARE = "bare"
BARE_DIGEST = "bare-2"
BARE_READY = b"RESURGAM BARE READY"
IDLE = f"""\
echo "{BARE_READY.decode()}"
while true; do sleep 3600; done
"""
NEEDED = ("boot/vmlinuz", "usr/lib/modules/", "lib/modules/", "bin/busybox", "usr/bin/busybox")


def bare(directory: Path) -> None:
    """Puts the stemcell `bare` into `directory`."""
    target = _cached_bare()
    home = directory / BARE
    home.mkdir(parents=True, exist_ok=True)
    shutil.copytree(target, home / BARE_DIGEST, copy_function=_link, dirs_exist_ok=True)
    (home / CURRENT).unlink(missing_ok=True)
    (home / CURRENT).symlink_to(BARE_DIGEST)


def _link(source: str, target: str) -> None:
    shutil.copyfile(source, target)


def _cached_bare() -> Path:
    target = CACHE / f".{BARE_DIGEST}"
    if target.exists():
        return target
    base = stemcell_base.base_archive(CACHE / ".cache", stemcell_base.PACKAGES, lambda what, share: None)
    draft = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        root = draft / "root"
        with tarfile.open(base) as archive:
            wanted = [member for member in archive if member.name.removeprefix("./").startswith(NEEDED)]
            archive.extractall(root, members=wanted, filter="tar")
        if (root / "lib").is_dir() and not (root / "usr/lib").exists():
            (root / "usr").mkdir(exist_ok=True)
            (root / "lib").rename(root / "usr/lib")
        built = draft / "built"
        built.mkdir()
        shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), built / "vmlinuz")
        (built / "initrd").write_bytes(initrd.build(root, IDLE))
        _write_rootfs(root, built / "rootfs.tar")
        manifest = StemcellManifest(name=BARE, digest=BARE_DIGEST, has_root=False)
        (built / MANIFEST).write_bytes(codec.to_json(manifest))
        built.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write_rootfs(root: Path, target: Path) -> None:
    """busybox, with an init that idles."""
    busybox = next(root / place for place in initrd.BUSYBOX_PLACES if (root / place).is_file())
    with tarfile.open(target, "w") as archive:
        archive.add(busybox, arcname="bin/busybox")
        for applet in ("bin/sh", "bin/awk", "bin/mount", "bin/sleep", "bin/cat", "bin/echo"):
            link = tarfile.TarInfo(applet)
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for directory in ("proc", "sys", "dev", "run", "tmp", "etc", "var/lib/docker"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        script = f"#!/bin/sh\necho '{BARE_READY.decode()}'\nwhile true; do sleep 3600; done\n".encode()
        entry = tarfile.TarInfo("sbin/init")
        entry.size, entry.mode = len(script), 0o755
        archive.addfile(entry, io.BytesIO(script))
