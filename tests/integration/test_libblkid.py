"""What is asked in this process is what blkid and wipefs say: the same library, held to the programs on real images."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import libblkid
from agent.core.disk_safety import Blkid

MIB = 1024 * 1024
SIZE = 64 * MIB


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})


def mkfs(*argv: str) -> Callable[[Path], None]:
    def make(image: Path) -> None:
        made = run(*argv, str(image))
        assert made.returncode == 0, made.stderr

    return make


def write(*pieces: tuple[int, bytes]) -> Callable[[Path], None]:
    def make(image: Path) -> None:
        with image.open("r+b") as file:
            for offset, payload in pieces:
                file.seek(offset)
                file.write(payload)

    return make


def both(*makes: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(image: Path) -> None:
        for each in makes:
            each(image)

    return make


ENTRY = bytes([0, 0, 2, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (65536).to_bytes(4, "little")
MBR = (b"\0" * 446 + ENTRY).ljust(510, b"\0") + b"\x55\xaa"
LUKS = b"LUKS\xba\xbe\x00\x01" + b"\0" * 500
SWAP = (4086, b"SWAPSPACE2")
EXT4 = mkfs("mkfs.ext4", "-q", "-F")

XFS = both(lambda image: os.truncate(image, 400 * MIB), mkfs("mkfs.xfs", "-q"))


def ext4_within_xfs(image: Path) -> None:
    """Their superblocks lie at different places: both are whole."""
    XFS(image)
    superblock = image.read_bytes()[:512]
    EXT4(image)
    write((0, superblock))(image)


IMAGES: dict[str, tuple[Callable[[Path], None], Blkid]] = {
    "nothing": (lambda image: None, Blkid.NOTHING),
    "data": (write((4096, b"precious")), Blkid.NOTHING),
    "ext4": (EXT4, Blkid.FOUND),
    "ext2": (mkfs("mkfs.ext2", "-q", "-F"), Blkid.FOUND),
    "xfs": (XFS, Blkid.FOUND),
    "swap": (mkfs("mkswap"), Blkid.FOUND),
    "luks": (write((0, LUKS)), Blkid.FOUND),
    "partitions": (write((0, MBR)), Blkid.FOUND),
    "ext4 beside a partition table": (both(EXT4, write((0, MBR))), Blkid.FOUND),
    "ext4 whose checksum is wrong": (both(EXT4, write((1024 + 120, b"another label"))), Blkid.FOUND),
    "ext4 without its superblock": (both(EXT4, write((1024, b"\0" * 512))), Blkid.NOTHING),
    "ext4 that was swap": (both(mkfs("mkswap"), EXT4, write(SWAP)), Blkid.FOUND),
    "ext4 that was xfs": (ext4_within_xfs, Blkid.AMBIVALENT),
}


@pytest.mark.parametrize("what", IMAGES)
def test_the_library_says_what_the_programs_say(what: str, tmp_path: Path) -> None:
    """Verdict, types and signatures are those of `blkid -p` and `wipefs --no-act`, whatever is on the device."""
    make, expected = IMAGES[what]
    if "xfs" in what and shutil.which("mkfs.xfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("this machine has no mkfs.xfs")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    make(image)

    probed = run("blkid", "-p", "-o", "export", str(image))
    values = dict(line.partition("=")[::2] for line in probed.stdout.splitlines())
    wiped = run("wipefs", "--no-act", "--noheadings", "--output", "TYPE", str(image))
    assert wiped.returncode == 0, wiped.stderr

    descriptor = os.open(image, os.O_RDONLY)
    try:
        verdict, filesystem, table = libblkid.identify(descriptor)
        signatures = libblkid.signatures(descriptor)
    finally:
        os.close(descriptor)
    assert verdict is Blkid(probed.returncode)
    assert (filesystem, table) == (values.get("TYPE", ""), values.get("PTTYPE", ""))
    assert sorted(signatures) == sorted(wiped.stdout.split())
    assert verdict is expected
    assert filesystem == (what if what in ("ext4", "ext2", "xfs", "swap") else filesystem)


def test_what_cannot_be_read_is_an_error_and_not_blank() -> None:
    """A descriptor that is no device, and one that was closed."""
    reading, writing = os.pipe()
    try:
        with pytest.raises(libblkid.LibraryFailed):
            libblkid.identify(reading)
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(libblkid.LibraryFailed):
        libblkid.signatures(reading)
