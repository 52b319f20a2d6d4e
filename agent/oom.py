"""How often the kernel killed a process of a container for lack of memory, read from the container's cgroup.

Law: never raises and never waits: None is "cannot tell". Works with cgroup v1 and v2, and from inside a cgroup
namespace, where /proc/<pid>/cgroup is relative to a root that is not the mount's.

Why: the engine tells only of a container whose first process died; a killed child goes unseen
(kubernetes#50632 and its many duplicates).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class OomCounters(Protocol):
    def kills(self, pid: int) -> int | None:
        """Kills so far in the cgroup of this process; None when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    root: str  # the directory of the hierarchy that is mounted
    mount_point: str
    file: str  # in each cgroup, with a line `oom_kill N`


class CgroupOomCounters:
    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._v1: _Hierarchy | None = None
        self._v2: _Hierarchy | None = None
        self._find_hierarchies()

    def kills(self, pid: int) -> int | None:
        if pid <= 0:
            return None
        try:
            memberships = (self._proc / str(pid) / "cgroup").read_text()
        except (OSError, UnicodeDecodeError):
            return None
        for line in memberships.splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            hierarchy = self._v2 if not controllers else self._v1 if "memory" in controllers.split(",") else None
            count = _count(hierarchy, path) if hierarchy is not None else None
            if count is not None:
                return count
        return None

    def _find_hierarchies(self) -> None:
        try:
            mounts = (self._proc / "self" / "mountinfo").read_text()
        except (OSError, UnicodeDecodeError):
            return
        for line in mounts.splitlines():
            before, _, after = line.partition(" - ")
            fields, kind = before.split(" "), after.split(" ")
            if len(fields) < 5 or len(kind) < 3:
                continue
            root, mount_point = fields[3], fields[4]
            if kind[0] == "cgroup" and "memory" in kind[2].split(","):
                self._v1 = self._v1 or _Hierarchy(root, mount_point, "memory.oom_control")
            elif kind[0] == "cgroup2":
                self._v2 = self._v2 or _Hierarchy(root, mount_point, "memory.events")


def _count(hierarchy: _Hierarchy, path: str) -> int | None:
    for candidate in _candidates(hierarchy, path):
        try:
            text = (Path(candidate) / hierarchy.file).read_text()
        except (OSError, UnicodeDecodeError):
            continue
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.isdecimal():
                return int(value)
    return None


def _candidates(hierarchy: _Hierarchy, path: str) -> list[str]:
    """Where the cgroup may be: its path below the mounted root, and, should the path be relative to the root of a
    namespace, as it stands."""
    below_root = os.path.relpath(path, hierarchy.root)
    found = [] if below_root.startswith("..") else [os.path.join(hierarchy.mount_point, below_root)]
    found.append(os.path.normpath(os.path.join(hierarchy.mount_point, path.lstrip("/"))))
    return found
