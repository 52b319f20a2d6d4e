"""What the agent keeps over restarts and reboots: one small file per document, in a directory only root may read.

Laws: a document is either its old or its new self, never half of one, whenever the power goes. A document that
cannot be read is moved aside and named in the log, and the agent goes on without it: a broken file must not keep
containers down.

Does not know: what the documents mean.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from protocol import codec

log = structlog.get_logger(__name__)

T = TypeVar("T")

CORRUPT_KEPT = 3
"""Broken files kept for a person to look at, per document."""


Write = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a call that waits for the disk, off the loop: `asyncio.to_thread`, or at once in a simulation."""


class KeptDocument(Protocol[T]):
    """A document as its users need it: `Document` here, a variable in a simulation."""

    def load(self) -> T | None: ...

    def save(self, value: T) -> None: ...


class Document(Generic[T]):
    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._kind = kind

    def load(self) -> T | None:
        """None when there is none, or when it was broken and has been moved aside. OSError when it is unreadable."""
        try:
            payload = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return codec.from_json(self._kind, payload)
        except codec.Invalid as error:
            aside = self._aside()
            log.error("store.corrupt", path=str(self._path), moved_to=str(aside), error=str(error))
            os.replace(self._path, aside)
            return None

    def save(self, value: T) -> None:
        """Returns when it is on the disk. OSError; then the old value is still there."""
        temporary = self._path.with_name(f".{self._path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            _write_all(descriptor, codec.to_json(value))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, self._path)
        sync_directory(self._path.parent)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)

    def _aside(self) -> Path:
        for number in range(CORRUPT_KEPT):
            aside = self._path.with_name(f"{self._path.name}.corrupt-{number}")
            if not aside.exists():
                return aside
        return aside


class Store:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)

    def document(self, name: str, kind: type[T]) -> Document[T]:
        return Document(self._directory / f"{name}.json", kind)


def sync_directory(directory: Path) -> None:
    """A rename is durable only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[os.write(descriptor, view) :]
