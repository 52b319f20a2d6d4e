"""What people may ask of disks: list them all; take a snapshot; keep an orphan, delete it, give it to an instance.

Laws: only the monitor that leads changes anything; what is changed is a record, with who and why in the timeline. A
disk that an instance has cannot be deleted here at all.

Does not know: HTTP; how a disk takes another's place (steps/disk_rework.py), how one is deleted (disk_care.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from healthmonitor.clouds.cloud import Cloud, CloudError, DiskSummary, snapshots_of
from healthmonitor.core import orphans, snapshots
from healthmonitor.core.operator_changes import Conflict, NotPossible
from healthmonitor.core.records import InstanceRecord, OrphanCause, OrphanDisk
from healthmonitor.journal import Journal, Superseded
from healthmonitor.operator_actions import Answer, Leader, NotFound, NotLeading, Person
from protocol.heartbeat import DiskReport
from protocol.ids import CloudName, DiskName, InstanceId, VmCid

UNUSED = ("orphan", "snapshot")
"""Roles of disks that no instance uses."""
LIST_SECONDS = 5.0
"""For asking a cloud who holds its disks; a list without that is better than none."""


@dataclass(frozen=True, slots=True)
class ListedDisk:
    """`instance`: whose it is or was, "" when no record says. `role`: in use, copy (being made), orphan, snapshot,
    or unknown (the cloud has it under our mark and no record names it). `holders` None: its cloud did not say."""

    cid: str
    cloud: CloudName
    instance: str
    name: str
    role: str
    size_mib: int
    filesystem: str = ""
    holders: frozenset[VmCid] | None = None
    report: DiskReport | None = None
    made_at: float = 0.0
    orphaned_at: float = 0.0
    kept_until: float = 0.0
    why: str = ""


class DiskActions:
    def __init__(
        self,
        journal: Journal,
        leader: Leader,
        clouds: Mapping[CloudName, Cloud],
        reports: Callable[[InstanceRecord], Sequence[DiskReport]],
        keep_seconds: Callable[[], float],
        unix_time: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._leader = leader
        self._clouds = clouds
        self._reports = reports
        self._keep_seconds = keep_seconds
        self._unix_time = unix_time
        self._wake = wake

    async def disks(self) -> list[ListedDisk]:
        """Every disk that a record names, an orphan, or that a cloud has under our mark."""
        known = dict(await asyncio.gather(*(self._of_cloud(name, cloud) for name, cloud in self._clouds.items())))
        found = [*self._of_instances(), *self._orphans()]
        seen = {(disk.cloud, disk.cid) for disk in found}
        listed = [self._with_holders(disk, known.get(disk.cloud)) for disk in found]
        for name, summaries in known.items():
            listed += [
                ListedDisk(
                    disk.disk_cid, name, disk.tags.get("instance", ""), disk.tags.get("disk", ""), "unknown",
                    disk.size_mib, holders=disk.holders,
                )
                for disk in summaries or ()
                if (name, disk.disk_cid) not in seen
            ]  # fmt: skip
        return sorted(listed, key=lambda disk: (disk.role in UNUSED, disk.instance, disk.name, disk.cid))

    async def keep(self, cid: str, seconds: float | None, person: Person, because: str) -> Answer:
        if seconds is not None and seconds <= 0:
            raise NotPossible("keeping it for no time would delete it", f"resurgam disks delete {cid}")
        await self._change(cid, lambda orphan: orphans.kept(orphan, seconds, self._unix_time()))
        how_long = "until a person says otherwise" if seconds is None else f"for {seconds:g} s from now"
        text = f"orphan {cid} is kept {how_long}"
        await self._note("operator.disk_kept", cid, text, person, because)
        return Answer(text, "resurgam disks list")

    async def delete(self, cid: str, person: Person, because: str) -> Answer:
        """An orphan only: it goes at the leader's next look, unless somebody still holds it."""
        await self._change(cid, lambda orphan: orphans.let_go(orphan, self._unix_time()))
        text = f"orphan {cid} is being deleted"
        await self._note("operator.disk_deleted", cid, text, person, because)
        self._wake()
        return Answer(text, "resurgam events --follow")

    async def attach(self, cid: str, instance: InstanceId, name: str, person: Person, because: str) -> Answer:
        """The orphan takes the place of the instance's disk `name`, which is kept as an orphan then. The containers are
        stopped for that."""
        self._check_leading()
        record = self._journal.instance(instance)
        if record is None:
            raise NotFound(f"there is no instance {instance!r}")
        orphans.given(self._orphan(cid), record, DiskName(name))  # says what is wrong before anything is changed
        claimed = await self._change(cid, lambda orphan: orphans.kept(orphan, None, self._unix_time()))
        changed = orphans.given(claimed, record, DiskName(name))
        try:
            await self._journal.save_instance(changed, record)
        except Superseded:
            raise Conflict(f"{instance} is being changed by others", "try again") from None
        text = f"{cid} takes the place of disk {name} of {instance}; its containers are stopped for that"
        await self._note("operator.disk_attached", instance, text, person, because)
        self._wake()
        return Answer(text, f"resurgam status {instance}")

    async def snapshot(
        self, instance: InstanceId, name: DiskName, seconds: float | None, person: Person, because: str
    ) -> Answer:
        """Of one of the instance's disks, as it is in a moment, while its containers run. `seconds`: how long it is
        kept, None as any orphan. It is written down here, and taken by the leader at once."""
        self._check_leading()
        record = self._journal.instance(instance)
        if record is None:
            raise NotFound(f"there is no instance {instance!r}")
        disk = next((each for each in record.disks if each.name == name), None)
        if disk is None or disk.cid is None:
            names = ", ".join(each.name for each in record.disks if each.cid) or "none"
            raise NotPossible(f"{instance} has no disk {name} (it has {names})")
        if snapshots_of(self._clouds.get(record.group.cloud)) is None:
            raise NotPossible(f"cloud {record.group.cloud} has no snapshots")
        now = self._unix_time()
        kept_until = 0.0 if seconds is None else now + seconds
        await self._journal.save_orphan(snapshots.intended(record, disk, disk.cid, now, kept_until, scheduled=False))
        text = f"a snapshot of disk {name} of {instance} is being taken"
        await self._note("operator.snapshot", instance, text, person, because)
        self._wake()
        return Answer(text, "resurgam disks list --orphans")

    async def _change(self, cid: str, change: Callable[[OrphanDisk], OrphanDisk]) -> OrphanDisk:
        self._check_leading()
        before = self._orphan(cid)
        after = change(before)
        try:
            await self._journal.change_orphan(after, before)
        except Superseded:
            raise Conflict(f"{cid} is being changed by others", "look at `resurgam disks list` and repeat") from None
        return after

    def _orphan(self, cid: str) -> OrphanDisk:
        orphan = orphans.find(self._journal.orphans().values(), cid)
        if orphan is not None:
            return orphan
        for disk in self._of_instances():
            if disk.cid == cid:
                raise NotPossible(
                    f"{cid} is disk {disk.name} of {disk.instance}, and no orphan",
                    "take it out of the manifest and deploy that; it is an orphan then",
                )
        raise NotFound(f"there is no orphan {cid!r}; `resurgam disks list` shows all disks")

    def _of_instances(self) -> list[ListedDisk]:
        found = []
        for record in self._journal.instances().values():
            reports = {report.name: report for report in self._reports(record)}
            for disk in record.disks:
                if disk.cid is not None:
                    why = disk.why or (f"not changed: {disk.given_up_why}" if disk.given_up_why else "")
                    found.append(
                        ListedDisk(
                            disk.cid, record.group.cloud, record.instance, disk.name, "in use", disk.size_mib,
                            disk.filesystem, report=reports.get(disk.name), made_at=disk.made_at, why=why,
                        )
                    )  # fmt: skip
                successor = disk.successor
                if successor is not None and successor.cid is not None:
                    found.append(
                        ListedDisk(
                            successor.cid, record.group.cloud, record.instance, disk.name, "copy", successor.size_mib,
                            successor.filesystem, made_at=successor.made_at, why=f"takes the place of {disk.cid}",
                        )
                    )  # fmt: skip
        return found

    def _orphans(self) -> list[ListedDisk]:
        named = {disk.cid for disk in self._of_instances()}
        return [
            ListedDisk(
                orphan.cid, orphan.cloud, orphan.instance, orphan.name,
                "snapshot" if orphan.cause is OrphanCause.SNAPSHOT else "orphan", orphan.size_mib, orphan.filesystem,
                made_at=orphan.made_at, orphaned_at=orphan.since,
                kept_until=orphans.ends_at(orphan, self._keep_seconds()),
                why=_why(orphan),
            )
            for orphan in self._journal.orphans().values()
            if orphan.cid not in named
        ]  # fmt: skip

    async def _of_cloud(self, name: CloudName, cloud: Cloud) -> tuple[CloudName, list[DiskSummary] | None]:
        try:
            async with asyncio.timeout(LIST_SECONDS):
                return name, await cloud.list_disks()
        except (TimeoutError, CloudError):
            return name, None  # shown as not known

    def _with_holders(self, disk: ListedDisk, listed: list[DiskSummary] | None) -> ListedDisk:
        summary = next((each for each in listed or () if each.disk_cid == disk.cid), None)
        if listed is not None and summary is None and disk.cid:
            return replace(disk, why="; ".join(part for part in (disk.why, "its cloud does not have it") if part))
        return disk if summary is None else replace(disk, holders=summary.holders)

    async def _note(self, kind: str, subject: str, text: str, person: Person, because: str) -> None:
        fields = {"by": str(person), **({"because": because} if because else {})}
        said = f"{text}; by {person}" + (f": {because}" if because else "")
        await self._journal.record(kind, subject, said, fields)

    def _check_leading(self) -> None:
        if not self._leader.is_leader():
            raise NotLeading(self._leader.leader_name(), self._leader.leader_address())


def _why(orphan: OrphanDisk) -> str:
    if orphan.deleting:
        return "being deleted"
    if orphan.cause is not OrphanCause.SNAPSHOT:
        return str(orphan.cause.value)
    how = "by schedule" if orphan.scheduled else "before a migration" if orphan.before_migration else "asked for"
    return f"of {orphan.snapshot_of}, {how}" + ("" if orphan.cid else ", being taken")
