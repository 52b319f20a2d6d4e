"""What is on the disks: file system, mark, and how often each was formatted. Kept by nobody but the disks themselves.

Law: content belongs to the disk, not to the VM or the cloud's record; a swapped device shows another disk's content.

Does not know: who may mount what (`agent/core/disk_safety.py` decides, `disks.py` asks it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.core.disk_safety import MIB, Blkid, Marker, Probe
from protocol.ids import DiskCid, DiskName, InstanceId

FOREIGN = DiskCid("somebody-elses")


@dataclass(slots=True)
class Content:
    size_mib: int = 1024
    filesystem: str = ""
    marker: Marker | None = None
    formats: int = 0
    unreadable: bool = False
    foreign: bool = False  # whatever its mark says

    def probe(self) -> Probe:
        size = self.size_mib * MIB
        if self.unreadable:
            return Probe(Blkid.ERROR, size_bytes=size, errors=("input/output error",))
        if self.filesystem:
            return Probe(Blkid.FOUND, self.filesystem, signatures=(self.filesystem,), size_bytes=size)
        return Probe(Blkid.NOTHING, signatures=(), first_mib_zero=True, last_mib_zero=True, size_bytes=size)

    def format(self, filesystem: str) -> None:
        self.filesystem, self.marker = filesystem, None
        self.formats += 1


@dataclass(slots=True)
class Platters:
    """`swapped`: while it holds, a device that turns up in a guest is not the disk that it says it is."""

    contents: dict[DiskCid, Content] = field(default_factory=dict)
    foreign: Content = field(
        default_factory=lambda: Content(
            filesystem="ext4",
            marker=Marker(InstanceId("other/db/0"), DiskName("data"), FOREIGN),
            formats=1,
            foreign=True,
        )
    )
    swapped: bool = False
    size_mib_of: Callable[[DiskCid], int] = lambda cid: 1024

    def of(self, cid: DiskCid) -> Content:
        content = self.contents.setdefault(cid, Content())
        content.size_mib = self.size_mib_of(cid)
        return content

    def behind(self, cid: DiskCid) -> Content:
        """What a guest finds at the device of that disk, which has just turned up."""
        return self.foreign if self.swapped else self.of(cid)
