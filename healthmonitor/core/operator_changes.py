"""What a person's word changes in the records, each as a pure function of the record before.

Law: a change that makes no sense is `NotPossible`, with what to do instead; one that changes nothing returns the
record as it was. The caller writes the result with compare-and-set and repeats on a conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from healthmonitor.core.manifest import Manifest
from healthmonitor.core.records import DeploymentRecord, InstanceRecord, RolloutState, Switches
from protocol.ids import Revision
from protocol.spec import Wanted

FOREVER_SECONDS = 100.0 * 365 * 86400
"""How long a pause without an end lasts: JSON has no infinity."""
PAUSE_MAX_SECONDS = 365.0 * 86400
OVERRIDE_MAX_SECONDS = 7 * 86400.0


class NotPossible(Exception):
    """The person asked for something that cannot be. `next_step`: what to do instead."""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


class Conflict(NotPossible):
    """Somebody else was quicker."""


def deployed(
    before: DeploymentRecord | None,
    manifest: Manifest,
    manifest_text: str,
    person: str,
    now_unix: float,
    if_revision: int | None,
) -> DeploymentRecord:
    """The record after a deploy: the next revision, its rollout about to begin."""
    present = before.revision if before is not None else 0
    if if_revision is not None and if_revision != present:
        raise Conflict(
            f"{manifest.name} was changed since its plan was shown (revision {if_revision} then, {present} now)",
            "look at the plan again and repeat",
        )
    if before is not None and before.deleting:
        raise NotPossible(f"{manifest.name} is being deleted", "wait until it is gone, then deploy it again")
    return DeploymentRecord(
        name=manifest.name,
        revision=Revision(present + 1),
        manifest=manifest,
        manifest_text=manifest_text,
        deployed_by=person,
        deployed_at=now_unix,
        rollout=RolloutState.CANARIES,
    )


def deleted(before: DeploymentRecord, disks: bool) -> DeploymentRecord:
    """The record after a delete; asked twice, `--disks` may be added, never taken back."""
    return replace(before, deleting=True, delete_disks=before.delete_disks or disks)


def stopped(record: InstanceRecord, containers: Sequence[str]) -> InstanceRecord:
    """All of it, or some containers."""
    if not containers:
        return _changed(record, replace(record, wanted=Wanted.STOPPED))
    _check(record, containers)
    names = tuple(sorted({*record.stopped_containers, *containers}))
    return _changed(record, replace(record, stopped_containers=names))


def started(record: InstanceRecord, containers: Sequence[str]) -> InstanceRecord:
    """All of it (which also ends `ignore`), or some containers."""
    if not containers:
        return _changed(record, replace(record, wanted=Wanted.STARTED, stopped_containers=(), ignore=False))
    _check(record, containers)
    names = tuple(name for name in record.stopped_containers if name not in containers)
    if record.wanted is Wanted.STOPPED:
        raise NotPossible(
            f"{record.instance} is stopped as a whole, so none of its containers can be started alone",
            f"resurgam start {record.instance}",
        )
    return _changed(record, replace(record, stopped_containers=names))


def ignored(record: InstanceRecord) -> InstanceRecord:
    """Nothing is told to the agent: only the monitor leaves it alone, so the revision stays."""
    return replace(record, ignore=True)


def resurrection_switched(before: Switches, enabled: bool) -> Switches:
    return replace(before, resurrection=enabled)


def paused(before: Switches, person: str, seconds: float | None, now_unix: float) -> Switches:
    if seconds is not None and not 0 < seconds <= PAUSE_MAX_SECONDS:
        raise NotPossible(f"a pause of {seconds:g} s is not possible", "1 second to 365 days, or none for no end")
    length = FOREVER_SECONDS if seconds is None else seconds
    return replace(before, paused_until=now_unix + length, paused_by=person)


def resumed(before: Switches) -> Switches:
    return replace(before, paused_until=0.0, paused_by="")


def meltdown_overridden(before: Switches, person: str, seconds: float, now_unix: float) -> Switches:
    if not 0 < seconds <= OVERRIDE_MAX_SECONDS:
        raise NotPossible(f"an override of {seconds:g} s is not possible", "1 second to 7 days")
    return replace(before, meltdown_overridden_until=now_unix + seconds, overridden_by=person)


def check_not_deleting(record: InstanceRecord) -> InstanceRecord:
    if record.deleting:
        raise NotPossible(f"{record.instance} is being deleted")
    return record


def _check(record: InstanceRecord, containers: Sequence[str]) -> None:
    known = [container.name for container in record.group.containers]
    for name in containers:
        if name not in known:
            raise NotPossible(f"{record.instance} has no container {name!r}", f"it has {', '.join(known)}")


def _changed(before: InstanceRecord, after: InstanceRecord) -> InstanceRecord:
    """What the agent is told changed, so its revision grows; otherwise the very same record."""
    check_not_deleting(before)
    return before if after == before else replace(after, revision=Revision(before.revision + 1))
