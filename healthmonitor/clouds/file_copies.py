"""A file's content as another file: shared where the file system can (reflink), else copied, holes left as holes.

Law: what `renew` returns from is equal to its source, provided that nobody wrote to that meanwhile. A copy that has
most of it already costs reading, and writing only what differs.

Does not know: who writes to the source, and how they are kept from it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

CLONE = 0x40049409  # FICLONE, linux/fs.h
CHUNK_BYTES = 1024 * 1024
ZEROS = bytes(CHUNK_BYTES)
CANNOT_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})


def share(source: Path, target: Path) -> bool:
    """All of it at once, whatever its size. False where the file system cannot."""
    with source.open("rb") as read, target.open("r+b") as written:
        try:
            fcntl.ioctl(written.fileno(), CLONE, read.fileno())
        except OSError as error:
            if error.errno not in CANNOT_CLONE:
                raise
            return False
    return True


def can_share(directory: Path) -> bool:
    """Whether files in `directory` can share their content; asked with two small ones, which are removed again."""
    one, two = directory / f".share-{os.getpid()}-1", directory / f".share-{os.getpid()}-2"
    try:
        one.write_bytes(ZEROS[:4096])
        two.touch()
        return share(one, two)
    finally:
        for path in (one, two):
            path.unlink(missing_ok=True)


def renew(source: Path, target: Path, check: Callable[[], None]) -> None:
    """`target` becomes equal to `source`. `check` is called at least once for each MiB that is looked at, and ends the
    copying by raising."""
    with source.open("rb") as read, target.open("r+b") as written:
        size = os.fstat(read.fileno()).st_size
        os.ftruncate(written.fileno(), size)
        there = 0
        for begin, end in _extents(read.fileno(), size):
            _clear(written.fileno(), there, begin, check)
            for offset in range(begin, end, CHUNK_BYTES):
                check()
                chunk = os.pread(read.fileno(), min(CHUNK_BYTES, end - offset), offset)
                if chunk != os.pread(written.fileno(), len(chunk), offset):
                    os.pwrite(written.fileno(), chunk, offset)
            there = end
        _clear(written.fileno(), there, size, check)


def _clear(descriptor: int, begin: int, end: int, check: Callable[[], None]) -> None:
    """Zeros where the source has a hole, and the copy may have something from before."""
    for first, last in _extents(descriptor, end, begin):
        for offset in range(first, last, CHUNK_BYTES):
            check()
            length = min(CHUNK_BYTES, last - offset)
            if os.pread(descriptor, length, offset) != ZEROS[:length]:
                os.pwrite(descriptor, ZEROS[:length], offset)


def _extents(descriptor: int, size: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Where there is something between `begin` and `size`."""
    offset = begin
    while offset < size:
        try:
            first = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        if first >= size:
            return
        last = min(size, os.lseek(descriptor, first, os.SEEK_HOLE))
        yield first, last
        offset = last


def sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    with contextlib.closing(_Directory(file.parent)) as directory:
        os.fsync(directory.descriptor)


class _Directory:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.descriptor)
