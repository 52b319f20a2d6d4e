"""Deletes disks that no instance uses, when their time is over, and takes snapshots. Only the leader does.

Laws: the deletion is written down before the cloud is asked, with compare-and-set, so that whoever gives an orphan to
an instance at that moment and this do not both succeed; then it is asked anew whether a record names the disk, and read
back from the hypervisor's side that nobody holds it. What is held, or in doubt, is left and looked at again. A
snapshot is an orphan without a cid before the cloud is asked for it; whoever leads goes on from that.

Does not know: whose time is over (core/orphans.py), when a snapshot is due (core/snapshots.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from healthmonitor.clouds.cloud import CloudError, DiskNotFound, DiskRequest, snapshots_of
from healthmonitor.core import orphans, snapshots
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import OrphanDisk
from healthmonitor.journal import Superseded
from healthmonitor.steps.context import Tools
from protocol.bus import BusUnavailable

LOOKS_APART_SECONDS = 1.0

log = structlog.get_logger("disk-care")


class DiskCare:
    def __init__(self, tools: Tools, policy: Callable[[], Policy]) -> None:
        self._tools = tools
        self._policy = policy
        self._due = asyncio.Event()
        self._told: dict[str, str] = {}  # by cid, or a snapshot's key

    def wake(self) -> None:
        """A person may have said that one is to go."""
        self._due.set()

    async def run(self) -> None:
        """While this monitor leads, until cancelled."""
        await asyncio.sleep(self._policy().liveness.lease_seconds)
        while True:
            self._due.clear()
            try:
                await self._look()
            except (BusUnavailable, Superseded) as error:
                log.warning("orphans not looked after; looked at again", error=str(error))
            except Exception:
                # The edge of this task: a defect in it must not end the resurrector.
                log.exception("looking after orphans failed by a defect; looked at again")
            await asyncio.sleep(LOOKS_APART_SECONDS)
            try:
                async with asyncio.timeout(self._policy().disks.look_seconds):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        journal, now = self._tools.journal, self._tools.unix_time()
        if journal.switches().paused_until > now:
            return
        await self._see_to_snapshots(now)
        over = orphans.due(journal.orphans().values(), self._policy().disks.keep_orphans_seconds, now)
        if not over:
            return
        if journal.corrupt():
            log.warning("no orphan is deleted: an unreadable record may name any disk")
            return
        for orphan in over:
            problem = await self._delete(orphan)
            if problem and self._told.get(orphan.cid) != problem:
                self._told[orphan.cid] = problem
                await journal.record("disk.not_deleted", orphan.instance, f"orphan {orphan.cid} stays: {problem}")

    async def _see_to_snapshots(self, now: float) -> None:
        """Those that are due are written down, those that were written down are taken, those beyond what is kept are
        let go."""
        journal, keep_seconds = self._tools.journal, self._policy().disks.keep_orphans_seconds
        for intent in list(snapshots.due(journal.instances().values(), journal.orphans().values(), now)):
            if self._tools.is_leader():
                await journal.save_orphan(intent)
                self._tools.crash_point("journal:snapshot intended")
        for orphan in list(journal.orphans().values()):
            # What is being done with an instance may unplug its disks, so nothing is begun then; its own snapshots
            # are taken by it.
            busy = journal.operation(orphan.instance) is not None
            if snapshots.is_being_taken(orphan) and not busy and self._tools.is_leader():
                await self._take(orphan, now)
        surplus = snapshots.surplus(journal.instances(), journal.orphans().values(), keep_seconds, now)
        for before, after in list(surplus):
            if self._tools.is_leader():
                await journal.change_orphan(after, before)
                self._tools.crash_point("journal:snapshot let go")

    async def _take(self, intent: OrphanDisk, now: float) -> None:
        tools, journal = self._tools, self._tools.journal
        cloud = snapshots_of(tools.clouds.get(intent.cloud))
        source = snapshots.source_of(intent, journal.instance(intent.instance))
        if source is None:
            await self._give_up(intent, f"{intent.instance} does not have {intent.snapshot_of} any more")
            return
        if cloud is None:
            await self._give_up(intent, f"cloud {intent.cloud} has no snapshots")
            return
        tags = {"instance": intent.instance, "disk": intent.name, "snapshot_of": source}
        problem = ""
        try:
            async with asyncio.timeout(self._policy().resurrection.cloud_call_seconds):
                cid = await cloud.snapshot_disk(source, DiskRequest(intent.key, intent.size_mib, tags=tags))
            tools.crash_point("cloud:snapshot taken")
        except TimeoutError:
            problem = "the cloud has not finished it yet"
        except CloudError as error:
            problem = str(error)
        if not tools.is_leader():
            return
        if not problem:
            await journal.change_orphan(replace(intent, cid=cid), intent)
            tools.crash_point("journal:snapshot taken")
            text = f"snapshot {cid} of disk {intent.name} ({source}) is taken"
            await journal.record("disk.snapshot", intent.instance, text, {"disk": cid, "of": source})
            self._told.pop(intent.key, None)
        elif now >= intent.since + self._policy().disks.snapshot_seconds(intent.size_mib):
            await self._give_up(intent, problem)
        elif self._told.get(intent.key) != problem:
            self._told[intent.key] = problem
            text = f"snapshot of disk {intent.name}: {problem}; looked at again"
            await journal.record("disk.snapshot_waits", intent.instance, text)

    async def _give_up(self, intent: OrphanDisk, why: str) -> None:
        """What the cloud has made of it meanwhile, or still makes, is no snapshot, and nobody's."""
        cloud = snapshots_of(self._tools.clouds.get(intent.cloud))
        try:
            if cloud is not None:
                async with asyncio.timeout(self._policy().resurrection.cloud_call_seconds):
                    await cloud.drop_snapshot(intent.key)
        except (CloudError, TimeoutError) as error:
            log.warning("a snapshot that was given up is not removed yet", key=intent.key, error=str(error))
            return
        if not self._tools.is_leader():
            return
        await self._tools.journal.delete_orphan(intent)
        self._told.pop(intent.key, None)
        text = f"no snapshot of disk {intent.name} was taken: {why}"
        await self._tools.journal.record("disk.snapshot_failed", intent.instance, text)

    async def _delete(self, orphan: OrphanDisk) -> str:
        """What hinders it; "" when it is gone."""
        tools = self._tools
        cloud = tools.clouds.get(orphan.cloud)
        if cloud is None:
            return f"cloud {orphan.cloud} is not in the configuration"
        if not tools.is_leader():
            return ""
        problem = orphans.spared(orphan, tools.journal.instances().values(), tools.journal.operations())
        if problem:
            return problem
        going = replace(orphan, deleting=True)
        if going != orphan:
            await tools.journal.change_orphan(going, orphan)
            tools.crash_point("journal:orphan going")
        problem = orphans.spared(orphan, tools.journal.instances().values(), tools.journal.operations())
        if problem:
            await tools.journal.change_orphan(orphan, going)
            return problem
        try:
            async with asyncio.timeout(self._policy().resurrection.cloud_call_seconds):
                holders = await cloud.disk_holders(orphan.cid)
                if holders:
                    return f"it is held by {', '.join(sorted(holders))}; detach it there"
                tools.crash_point("cloud:orphan free")
                if not tools.is_leader():
                    return ""
                await cloud.delete_disk(orphan.cid)
                tools.crash_point("cloud:orphan deleted")
        except DiskNotFound:
            log.info("orphan gone", disk=orphan.cid)  # deleted before, and its record not
        except TimeoutError:
            return "the cloud does not answer; tried again"
        except CloudError as error:
            return f"{error}; tried again"
        if not tools.is_leader():
            return ""
        await tools.journal.delete_orphan(going)
        text = f"orphan {orphan.cid} (disk {orphan.name} of {orphan.instance}) was deleted: its time was over"
        await tools.journal.record("disk.deleted", orphan.instance, text, {"disk": orphan.cid})
        self._told.pop(orphan.cid, None)
        return ""
