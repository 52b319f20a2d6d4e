"""Seeds that the code itself draws: another version of it draws others, the same version always the same.

Law: only what can change the outcome of a run counts: the packages and the simulation, by path and content. A change of
anything else looks nowhere new, and cannot fail by accident.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ("protocol", "agent", "healthmonitor", "tests/simulation")
FROM = 1_000_000
"""Above all seeds that are named anywhere."""
SPAN = 1_000_000_000


def code_hash(root: Path = ROOT) -> str:
    """Hexadecimal, of every Python file that counts."""
    digest = hashlib.sha256()
    for part in COUNTED:
        for path in sorted((root / part).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def new_seeds(code: str, count: int) -> list[int]:
    """`code`: what `code_hash` gave."""
    first = FROM + int(code[:12], 16) % SPAN
    return list(range(first, first + count))
