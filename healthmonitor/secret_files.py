"""Reads files that hold secrets or certificates.

Law: a secret that everybody on the machine may read is refused, and so is a certificate that everybody may replace. The
text of an error never holds anything of the file.
"""

from __future__ import annotations

import stat
from pathlib import Path

SECRET_MAX_BYTES = 64 * 1024
CERTIFICATES_MAX_BYTES = 1024 * 1024
"""A system's whole bundle of authorities has some 200 KiB."""


def read_secret_file(path: Path, whole: bool = False) -> str:
    """One line without what surrounds it, or the file as it is. Raises OSError, or ValueError with what to do."""
    text = _read(path, SECRET_MAX_BYTES, stat.S_IROTH | stat.S_IWOTH, f"may read it; chmod 600 {path}")
    if not whole:
        text = text.strip()
        if len(text.splitlines()) > 1:
            raise ValueError("has more than one line; expected the secret alone")
    return text


def read_certificates_file(path: Path) -> str:
    """PEM text. Raises OSError, or ValueError with what to do."""
    return _read(path, CERTIFICATES_MAX_BYTES, stat.S_IWOTH, f"may replace it; chmod 644 {path}")


def _read(path: Path, max_bytes: int, forbidden_mode: int, may: str) -> str:
    with path.open("rb") as opened:
        mode = path.stat().st_mode
        payload = opened.read(max_bytes + 1)
    if mode & forbidden_mode:
        raise ValueError(f"everybody on this machine {may}")
    if len(payload) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes; is this the right file?")
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    if not text.strip():
        raise ValueError("is empty")
    return text
