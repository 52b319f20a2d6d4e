"""Mounting in this process, by the library that mount(8) is made of: the same options, without starting a program.

Blocks, for as long as the kernel takes to replay a journal: to be called in a thread.

Does not know: what may be mounted (agent/core/disk_safety.py).
"""

from __future__ import annotations

import ctypes
import functools

LIBRARY = "libmount.so.1"
_SAID_MAX_BYTES = 1024


class MountFailed(Exception):
    """It is not mounted; the text is what mount(8) would say."""


def load() -> None:
    """In advance, so that the first mount does not wait for it."""
    _library()


def mount(device: str, directory: str, filesystem: str, options: str) -> None:
    library = _library()
    context = library.mnt_new_context()
    if not context:
        raise MountFailed("libmount has no memory for a context")
    try:
        for setter, text in (
            (library.mnt_context_set_source, device),
            (library.mnt_context_set_target, directory),
            (library.mnt_context_set_fstype, filesystem),
            (library.mnt_context_set_options, options),
        ):
            if setter(context, text.encode()) != 0:
                raise MountFailed(f"libmount does not take {text!r}")
        answer = library.mnt_context_mount(context)
        said = ctypes.create_string_buffer(_SAID_MAX_BYTES)
        status = library.mnt_context_get_excode(context, answer, said, ctypes.sizeof(said))
        if status != 0:
            why = " ".join(said.value.decode(errors="replace").split()) or f"status {status}"
            raise MountFailed(f"mounting {device} at {directory}: {why}")
    finally:
        library.mnt_free_context(context)


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise MountFailed(f"{LIBRARY} cannot be loaded: {error}; is its package installed?") from None
    context = ctypes.c_void_p
    library.mnt_new_context.restype = context
    library.mnt_free_context.argtypes = [context]
    for name in ("source", "target", "fstype", "options"):
        getattr(library, f"mnt_context_set_{name}").argtypes = [context, ctypes.c_char_p]
    library.mnt_context_mount.argtypes = [context]
    library.mnt_context_get_excode.argtypes = [context, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
    return library
