"""Every kind of deviation there is, in one table: the documentation is generated from it.

Law: a kind has one name for ever (incident keys are made of it), one severity unless the case says otherwise, and one
next step that a person can type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from healthmonitor.core.policy import Policy
from healthmonitor.core.records import Severity


class Deviation(msgspec.Struct, frozen=True, gc=False):
    """Expected is not actual. `subject`: an instance id, `<instance>/<container or disk>`, an agent, a deployment,
    "fleet" or "monitor". It becomes an incident when it has lasted for `after_seconds`."""

    kind: str
    subject: str
    severity: Severity
    title: str
    detail: str
    next_step: str
    after_seconds: float
    key: str = ""  # made of kind and subject; kept, because it is asked for in every turn

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "key", f"{self.kind}:{self.subject}")


@dataclass(frozen=True, slots=True)
class Kind:
    """`title` and `next_step` may use {subject} and {instance}. `after`: seconds, from the policy."""

    severity: Severity
    title: str
    meaning: str
    next_step: str
    after: Callable[[Policy], float]


def _at_once(policy: Policy) -> float:
    return policy.incidents.after_seconds


def _container(policy: Policy) -> float:
    return policy.incidents.container_after_seconds


def _lease(policy: Policy) -> float:
    return policy.liveness.lease_seconds


def _twice_container(policy: Policy) -> float:
    return 2 * policy.incidents.container_after_seconds


def _slow(policy: Policy) -> float:
    return policy.resurrection.healthy_seconds


def _grace(policy: Policy) -> float:
    """Longer than every start, so that a start is no incident."""
    return max(policy.liveness.start_grace_seconds, policy.liveness.lease_seconds) + policy.liveness.lease_seconds


def _stranger(policy: Policy) -> float:
    return policy.liveness.stranger_after_seconds


def _canary(policy: Policy) -> float:
    return policy.liveness.canary_lost_seconds


KINDS: Mapping[str, Kind] = {
    "vm_missing": Kind(
        Severity.CRITICAL,
        "{subject} is missing",
        "The VM was not heard for its lease and does not answer, or the cloud says that it is off.",
        "resurgam status {instance}",
        _at_once,
    ),
    "vm_suspect": Kind(
        Severity.WARNING,
        "{subject} is suspect",
        "The VM is silent; nothing is concluded yet.",
        "resurgam status {instance}",
        _lease,
    ),
    "heartbeats_missing": Kind(
        Severity.ERROR,
        "{subject} answers, but its heartbeats do not come",
        "The agent answers questions, so the VM lives; its heartbeats are lost on the way or not sent.",
        "resurgam status {instance}",
        _lease,
    ),
    "instance_has_no_vm": Kind(
        Severity.CRITICAL,
        "{subject} has no VM",
        "The instance is expected, has no VM, and no operation is making one.",
        "resurgam recreate {instance}",
        _twice_container,
    ),
    "agent_stranger": Kind(
        Severity.WARNING,
        "agent {subject} belongs to no deployment",
        "An agent sends heartbeats and no instance expects it: a BOSH agent, another site's, or a VM left over.",
        "resurgam status --strangers",
        _stranger,
    ),
    "agent_duplicate": Kind(
        Severity.ALERT,
        "an old VM of an instance still speaks: agent {subject}",
        "A VM that was replaced is heard: it runs, although its instance has another VM now.",
        "look for the VM in its cloud and switch it off",
        _lease,
    ),
    "vm_left_over": Kind(
        Severity.ERROR,
        "VM {subject} is left over and is not removed",
        "A VM of an earlier generation, or of a deleted instance, is still in its cloud, and nothing proves it off.",
        "make sure in its cloud that it is off, and delete it there",
        _at_once,
    ),
    "vm_unknown": Kind(
        Severity.WARNING,
        "VM {subject} is named by no record",
        "The cloud lists it as made by Resurgam, and it cannot be told whether it is left over: it is left alone.",
        "look at it in its cloud: delete it there, or restore the records that name it",
        _at_once,
    ),
    "spare_not_made": Kind(
        Severity.WARNING,
        "spare VM {subject} is not as it should be",
        "A VM that is booted in advance is not made, lacks images, or is not removed. It is tried again; whoever needs"
        " a VM meanwhile has one made.",
        "resurgam spares",
        _twice_container,
    ),
    "job_failing": Kind(
        Severity.ERROR,
        "the jobs of agent {subject} fail",
        "A BOSH agent reports job_state failing.",
        "bosh instances --failing --ps",
        _container,
    ),
    "container_not_running": Kind(
        Severity.ERROR,
        "container {subject} does not run",
        "A container is not as it should be: see its reason. The agent keeps trying.",
        "resurgam logs {instance} {name}",
        _container,
    ),
    "container_not_stopped": Kind(
        Severity.WARNING,
        "container {subject} runs and should be stopped",
        "A person stopped it, or its instance, and it still runs.",
        "resurgam status {instance}",
        _twice_container,
    ),
    "container_orphaned": Kind(
        Severity.WARNING,
        "container {subject} is in no specification and cannot be removed",
        "It carries our label and is left over.",
        "resurgam status {instance}",
        _slow,
    ),
    "engine_not_up": Kind(
        Severity.ERROR,
        "the Docker engine of {subject} does not answer",
        "It is down, or accepts and does not answer. The agent restarts it.",
        "resurgam status {instance}",
        _container,
    ),
    "disk_missing": Kind(
        Severity.CRITICAL,
        "disk {subject} is not there",
        "The VM does not see a disk that should be attached to it.",
        "resurgam status {instance}",
        _container,
    ),
    "disk_not_mounted": Kind(
        Severity.ERROR,
        "disk {subject} is not mounted",
        "The VM sees the disk and has not mounted it.",
        "resurgam restart {instance}",
        _twice_container,
    ),
    "disk_read_only": Kind(
        Severity.CRITICAL,
        "disk {subject} became read-only",
        "The file system was remounted read-only, usually after an I/O error.",
        "resurgam recreate {instance}",
        _at_once,
    ),
    "disk_failed": Kind(
        Severity.CRITICAL,
        "disk {subject} was refused",
        "A foreign signature, a file system that needs a person, or a failed mount. It is not formatted.",
        "resurgam status {instance}",
        _at_once,
    ),
    "disk_errors": Kind(
        Severity.CRITICAL,
        "disk {subject} has errors",
        "The file system has recorded errors on the disk; it is checked when it is mounted the next time.",
        "resurgam recreate {instance}",
        _at_once,
    ),
    "disk_full": Kind(
        Severity.CRITICAL,
        "disk {subject} is full",
        "As good as no space is left on it (`disks.full`).",
        "make it larger in the manifest and deploy that, or delete what is not needed",
        _at_once,
    ),
    "disk_filling": Kind(
        Severity.WARNING,
        "disk {subject} is filling",
        "Much of it is used (`disks.filling`), or it will be full within `disks.full_within` at its present growth.",
        "make it larger in the manifest and deploy that",
        _twice_container,
    ),
    "disk_growth_limit": Kind(
        Severity.ERROR,
        "disk {subject} has grown as far as it may",
        "It grows by itself (`grow`), has the size up to which it may, and is filling again.",
        "raise its `up_to`, or its size, in the manifest and deploy that",
        _at_once,
    ),
    "disk_inodes": Kind(
        Severity.ERROR,
        "disk {subject} is running out of inodes",
        "There will be no more files on it although there is space (`disks.inodes`).",
        "delete files, or make it larger in the manifest and deploy that",
        _container,
    ),
    "disk_not_changed": Kind(
        Severity.ERROR,
        "disk {subject} was not changed as the manifest says",
        "Its change was tried, could not be done, and was given up; the instance goes on with the disk as it was.",
        "deploy a manifest that asks for what is possible",
        _at_once,
    ),
    "specification_drift": Kind(
        Severity.WARNING,
        "{subject} does not run what is expected",
        "Revision, generation or a container's specification differs from the expected, and no operation is at work.",
        "resurgam recreate {instance}",
        _twice_container,
    ),
    "isolated": Kind(
        Severity.WARNING,
        "{subject} believes that it is cut off from the centre",
        "Its heartbeats come, but nothing reaches it.",
        "resurgam status {instance}",
        _lease,
    ),
    "operation_unfenced": Kind(
        Severity.ALERT,
        "{subject} is not rebuilt: nothing proves that its old VM cannot write",
        "The cloud gave no fence proof. The disk stays where it is until there is one or a person vouches.",
        "make sure that the old VM is off, then: resurgam fence confirm {instance}",
        _at_once,
    ),
    "operation_held": Kind(
        Severity.WARNING,
        "an operation on {subject} is held back",
        "Resurrection is switched off, paused or in maintenance, the budget is used up, or a meltdown holds.",
        "resurgam status {instance}",
        _at_once,
    ),
    "operation_retrying": Kind(
        Severity.ERROR,
        "an operation on {subject} keeps failing",
        "A step failed and is retried with growing delay.",
        "resurgam status {instance}",
        _twice_container,
    ),
    "operation_unhealthy": Kind(
        Severity.ERROR,
        "{subject} was built and its containers are not healthy",
        "Everything was done; the containers are not healthy yet.",
        "resurgam logs {instance}",
        _at_once,
    ),
    "cannot_tell": Kind(
        Severity.ERROR,
        "the monitor cannot tell who is alive",
        "Silence proves nothing now, so nothing is rebuilt.",
        "resurgam status",
        _grace,
    ),
    "mass_silence": Kind(
        Severity.ALERT,
        "a large share of the fleet went silent at once",
        "Most likely a network or a host, not the VMs: nothing is rebuilt on silence alone.",
        "resurgam status",
        _at_once,
    ),
    "bus_lost": Kind(
        Severity.CRITICAL,
        "the monitor has lost the bus",
        "It hears nobody and rebuilds nothing; agents keep their containers running on their own.",
        "look at the nats-server",
        _canary,
    ),
    "monitor_missing": Kind(
        Severity.ERROR,
        "monitor {subject} is silent",
        "Another health monitor was there and is not heard any more: fewer are left to take over.",
        "resurgam monitor list",
        _lease,
    ),
    "record_unreadable": Kind(
        Severity.CRITICAL,
        "record {subject} cannot be read",
        "Nothing is done with what it describes, and it is kept as it is. Perhaps a newer monitor wrote it.",
        "upgrade this monitor, or mend the record",
        _at_once,
    ),
    "meltdown": Kind(
        Severity.ALERT,
        "meltdown of {subject}: too many VMs were lost at once",
        "Resurrection waits until it is calm or a person says that it may go on.",
        "resurgam meltdown override",
        _at_once,
    ),
    "channel_failing": Kind(
        Severity.ERROR,
        "channel {subject} cannot deliver",
        "Notifications wait in the outbox and are tried again; this is told on the other channels.",
        "resurgam alert channels",
        _at_once,
    ),
    "incidents_overflow": Kind(
        Severity.ALERT,
        "there are more incidents than are kept",
        "Those beyond `incidents.incidents_max` are counted and told of one by one only when others are over.",
        "resurgam incidents",
        _at_once,
    ),
    "agent_alert": Kind(
        Severity.ERROR,
        "alert of {subject}",
        "An alert that an agent or a director sent.",
        "resurgam events",
        _at_once,
    ),
}


def deviation(
    kind: str,
    subject: str,
    detail: str,
    policy: Policy,
    *,
    instance: str = "",
    severity: Severity | None = None,
    title: str = "",
    after_seconds: float | None = None,
) -> Deviation:
    """A deviation of a kind in the table; KeyError for another. `instance` fills {instance}, by default the subject."""
    known = KINDS[kind]
    instance = instance or subject
    words = {"subject": subject, "instance": instance, "name": subject.removeprefix(instance).lstrip("/")}
    return Deviation(
        kind=kind,
        subject=subject,
        severity=severity or known.severity,
        title=title or known.title.format(**words),
        detail=detail,
        next_step=known.next_step.format(**words),
        after_seconds=known.after(policy) if after_seconds is None else after_seconds,
    )
