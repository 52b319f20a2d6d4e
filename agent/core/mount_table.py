"""`/proc/<pid>/mountinfo`, read into values.

Does not know: where the text comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

READ_ONLY = frozenset({"ro", "emergency_ro", "shutdown"})


@dataclass(frozen=True, slots=True)
class Mounted:
    device: str  # "major:minor"
    root: str  # the directory of the file system that is mounted
    target: str
    options: frozenset[str]  # of the mount and of the file system together
    filesystem: str
    source: str

    @property
    def read_only(self) -> bool:
        """Also when the file system itself takes no more writes: since Linux 6.15 an ext4 that saw an error, or was
        shut down, says so in words of its own, and the mount's flag stays as it was."""
        return not READ_ONLY.isdisjoint(self.options)


def parse(text: str) -> tuple[Mounted, ...]:
    """The mounts in the order in which they were made; a line that is not as proc(5) says is left out."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        found.append(
            Mounted(
                device=before[2],
                root=_unescape(before[3]),
                target=_unescape(before[4]),
                options=frozenset((*before[5].split(","), *after[2].split(","))),
                filesystem=after[0],
                source=_unescape(after[1]),
            )
        )
    return tuple(found)


def mounted_at(table: tuple[Mounted, ...], target: str) -> Mounted | None:
    """What is seen at `target`: of several mounts on one another, the last."""
    for mounted in reversed(table):
        if mounted.target == target:
            return mounted
    return None


def targets_of(table: tuple[Mounted, ...], device: str) -> tuple[str, ...]:
    return tuple(mounted.target for mounted in table if mounted.device == device)


def _unescape(text: str) -> str:
    """Spaces and the like stand as three octal digits."""
    if "\\" not in text:
        return text
    out, index = bytearray(), 0
    raw = text.encode()
    while index < len(raw):
        digits = raw[index + 1 : index + 4]
        if raw[index] == 0x5C and len(digits) == 3 and all(0x30 <= digit <= 0x37 for digit in digits):
            out.append(int(digits, 8) & 0xFF)
            index += 4
        else:
            out.append(raw[index])
            index += 1
    return out.decode(errors="surrogateescape")
