"""What libblkid finds on a device, asked in this process: the library that blkid and wipefs are made of.

Starting a program takes a tenth of a second and more where a VM is emulated, and a disk is probed while a database is
down. Law: nothing is written, and the answers are those of `blkid -p` and `wipefs --no-act`; a test holds them to it.

Blocks: to be called in a thread. Does not know: what follows from it (agent/core/disk_safety.py).
"""

from __future__ import annotations

import ctypes
import functools

from agent.core.disk_safety import Blkid

LIBRARY = "libblkid.so.1"
_NOTHING, _AMBIVALENT = 1, -2  # of blkid_do_safeprobe; 0: found
_SUBLKS_TYPE, _SUBLKS_MAGIC, _SUBLKS_BADCSUM = 1 << 5, 1 << 9, 1 << 10
_PARTS_FORCE_GPT, _PARTS_MAGIC = 1 << 1, 1 << 3
_SIGNATURES_MAX = 64


class LibraryFailed(Exception):
    """The library is missing, or could not read the device. The text says which."""


def load() -> None:
    """In advance, so that the first probe does not wait for it."""
    _library()


def identify(descriptor: int) -> tuple[Blkid, str, str]:
    """As `blkid -p`: the verdict, the file system's type, the partition table's type; "" for what is not there."""
    with _Probe(descriptor) as probe:
        probe.look_for(_SUBLKS_TYPE, 0)
        answer = _library().blkid_do_safeprobe(probe.handle)
        if answer == 0:
            return Blkid.FOUND, probe.value("TYPE"), probe.value("PTTYPE")
        if answer == _NOTHING:
            return Blkid.NOTHING, "", ""
        if answer == _AMBIVALENT:
            return Blkid.AMBIVALENT, "", ""
        raise LibraryFailed(f"libblkid could not read the device ({answer})")


def signatures(descriptor: int) -> tuple[str, ...]:
    """As `wipefs --no-act`: the type of everything that has a magic number, also where its checksum is wrong."""
    found: list[str] = []
    with _Probe(descriptor) as probe:
        probe.look_for(_SUBLKS_TYPE | _SUBLKS_MAGIC | _SUBLKS_BADCSUM, _PARTS_MAGIC | _PARTS_FORCE_GPT)
        while (answer := _library().blkid_do_probe(probe.handle)) == 0:
            for kind, magic in (("TYPE", "SBMAGIC"), ("PTTYPE", "PTMAGIC")):
                if name := probe.value(kind):
                    if probe.value(magic):
                        found.append(name)
                    break
            if len(found) > _SIGNATURES_MAX:
                raise LibraryFailed("libblkid finds no end of signatures")
        if answer != _NOTHING:
            raise LibraryFailed(f"libblkid could not read the device ({answer})")
    return tuple(found)


class _Probe:
    """Of one open descriptor, which stays its owner's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.handle: int | None = None

    def __enter__(self) -> _Probe:
        library = _library()
        self.handle = library.blkid_new_probe()
        if not self.handle:
            raise LibraryFailed("libblkid has no memory for a probe")
        if library.blkid_probe_set_device(self.handle, self._descriptor, 0, 0) != 0:
            library.blkid_free_probe(self.handle)
            raise LibraryFailed("libblkid could not take the device")
        return self

    def __exit__(self, *_: object) -> None:
        _library().blkid_free_probe(self.handle)

    def look_for(self, superblocks: int, partitions: int) -> None:
        library = _library()
        library.blkid_probe_enable_superblocks(self.handle, 1)
        library.blkid_probe_set_superblocks_flags(self.handle, superblocks)
        library.blkid_probe_enable_partitions(self.handle, 1)
        library.blkid_probe_set_partitions_flags(self.handle, partitions)

    def value(self, name: str) -> str:
        """Of the last thing found; "" when it has none. (Of a magic number: whether there is one.)"""
        text, length = ctypes.c_void_p(), ctypes.c_size_t()
        missing = _library().blkid_probe_lookup_value(
            self.handle, name.encode(), ctypes.byref(text), ctypes.byref(length)
        )
        if missing or not text.value:
            return ""
        return ctypes.string_at(text.value, length.value).rstrip(b"\0").decode(errors="replace") or "?"


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise LibraryFailed(f"{LIBRARY} cannot be loaded: {error}; is its package installed?") from None
    handle = ctypes.c_void_p
    library.blkid_new_probe.restype = handle
    library.blkid_free_probe.argtypes = [handle]
    library.blkid_probe_set_device.argtypes = [handle, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    for name in (
        "blkid_probe_enable_superblocks",
        "blkid_probe_set_superblocks_flags",
        "blkid_probe_enable_partitions",
        "blkid_probe_set_partitions_flags",
    ):
        getattr(library, name).argtypes = [handle, ctypes.c_int]
    library.blkid_do_safeprobe.argtypes = library.blkid_do_probe.argtypes = [handle]
    library.blkid_probe_lookup_value.argtypes = [
        handle,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_size_t),
    ]
    return library
