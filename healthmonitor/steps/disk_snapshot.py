"""The step before containers are stopped for a migration: SNAPSHOT.

Laws: a snapshot's intent stands in the journal before the cloud is asked, and the containers run on meanwhile. A
migration only reads the disk that is copied and keeps it, so one that gets no snapshot goes on after some tries; which
disk is the way back is said in each case.

Does not know: snapshots that people and schedules ask for (healthmonitor/disk_care.py), how long they are kept.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from healthmonitor.clouds.cloud import CloudError, CloudRefused, DiskNotFound, DiskRequest, Snapshotting, snapshots_of
from healthmonitor.core import snapshots
from healthmonitor.core.operation import Done, Failed, Outcome
from healthmonitor.core.records import DiskBinding, DiskWay, OrphanDisk
from healthmonitor.steps.context import StepContext
from protocol.ids import DiskCid

TRIES_MAX = 5


async def snapshot(context: StepContext) -> Outcome:
    """Of each disk that is to be copied, while its containers run; where the cloud has no snapshots, the disk itself,
    which is kept, is named as the way back."""
    record = context.record()
    wanted = {disk.name for disk in record.group.disks}
    notes: list[str] = []
    for disk in record.disks:
        if disk.way is not DiskWay.COPY or disk.name not in wanted or disk.cid is None:
            continue
        cloud = snapshots_of(context.cloud())
        if cloud is None:
            notes.append(await _without(context, disk, disk.cid, f"cloud {record.group.cloud} has no snapshots"))
            continue
        outcome = await _with(context, cloud, disk, disk.cid)
        if isinstance(outcome, Failed):
            return outcome
        notes.append(outcome)
    return Done("; ".join(notes) or "no disk is copied")


async def _with(context: StepContext, cloud: Snapshotting, disk: DiskBinding, source: DiskCid) -> str | Failed:
    intent = await _intended(context, disk, source)
    if intent.cid:
        return f"disk {disk.name}: snapshot {intent.cid} is there"
    request = DiskRequest(
        intent.key,
        intent.size_mib,
        tags={"instance": context.instance, "disk": disk.name, "snapshot_of": source},
    )
    seconds = context.present.policy.disks.snapshot_seconds(intent.size_mib)
    try:
        cid = await context.call_cloud("snapshot_disk", lambda: cloud.snapshot_disk(source, request), seconds)
    except DiskNotFound:
        raise
    except CloudError as error:
        if not isinstance(error, CloudRefused) and context.operation.attempts + 1 < TRIES_MAX:
            raise
        return await _given_up(context, cloud, disk, source, intent, str(error))
    taken = replace(intent, cid=cid)
    context.check_ours()
    await context.tools.journal.change_orphan(taken, intent)
    context.tools.crash_point("journal:snapshot taken")
    note = f"snapshot {cid} of disk {disk.name} ({source}) is taken before its migration"
    await context.event("disk.snapshot", note, {"disk": cid, "of": source})
    return note


async def _intended(context: StepContext, disk: DiskBinding, source: DiskCid) -> OrphanDisk:
    """What this operation has written down before, also what an earlier one has begun; else it is written now."""
    journal = context.tools.journal
    known = snapshots.before_migration(journal.orphans().values(), context.record(), source, context.operation)
    if known is not None:
        return known
    intent = replace(
        snapshots.intended(context.record(), disk, source, context.tools.unix_time(), 0.0, scheduled=False),
        before_migration=True,
    )
    context.check_ours()
    await journal.save_orphan(intent)
    context.tools.crash_point("journal:snapshot intended")
    context.check_ours()
    return intent


async def _given_up(
    context: StepContext, cloud: Snapshotting, disk: DiskBinding, source: DiskCid, intent: OrphanDisk, why: str
) -> str:
    with contextlib.suppress(CloudError):  # what is left of it then is listed as unknown
        await context.call_cloud("drop_snapshot", lambda: cloud.drop_snapshot(intent.key))
    context.check_ours()
    await context.tools.journal.delete_orphan(intent)
    context.tools.crash_point("journal:snapshot given up")
    return await _without(context, disk, source, f"no snapshot was taken: {why}")


async def _without(context: StepContext, disk: DiskBinding, source: DiskCid, why: str) -> str:
    note = (
        f"disk {disk.name}: {why}; the way back from the migration is {source}, which is kept as it is:"
        f" resurgam disks attach {source} {context.instance} {disk.name}"
    )
    await context.event("disk.way_back", note, {"disk": source})
    return note
