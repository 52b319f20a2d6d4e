"""Disks that grow by themselves: when, to what size, and how far (`grow: {at: 85%, by: 25%, up_to: 100GiB}`).

Laws: a disk grows by itself only up to what its manifest says, one step at a time: not before the last one is on the
file system and `grow_apart_seconds` are over. The manifest's size stays the least; what a disk has grown to is kept
over every deploy but one that asks for less than the last did. No disk is copied for this: where none grows in place,
people are told instead.

Does not know: how a disk is made larger (`core/disk_changes.py` says how, healthmonitor/steps do it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from healthmonitor.core.disk_changes import DiskAbilities, Growth
from healthmonitor.core.manifest import DiskGrowth, DiskRequirement
from healthmonitor.core.policy import DiskPolicy
from healthmonitor.core.records import DiskBinding, DiskWay, InstanceRecord
from healthmonitor.core.units import size_text
from protocol.heartbeat import DiskState
from protocol.ids import DiskName

ON_DISK_SHARE = 0.7
"""A file system of at least this share of its disk has taken the last growth in; the rest is its own bookkeeping, which
of a small xfs (300 MiB, of them 64 MiB of log) is a fifth."""


class Report(Protocol):
    """What an agent says of a disk."""

    @property
    def state(self) -> DiskState: ...
    @property
    def percent(self) -> float: ...
    @property
    def size_mib(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Step:
    """A disk that is to grow now. `why`: for people."""

    disk: DiskName
    size_mib: int
    why: str


def due(
    record: InstanceRecord,
    reports: Callable[[], Mapping[DiskName, Report]],
    abilities: DiskAbilities,
    policy: DiskPolicy,
    now: float,
) -> tuple[Step, ...]:
    """The disks of an instance that are to grow now. `now`: Unix seconds. `reports` is asked only where one may."""
    growing = {disk.name: disk for disk in record.group.disks if disk.grow is not None}
    if not growing:
        return ()
    said = reports()
    found = []
    for binding in record.disks:
        wanted, report = growing.get(binding.name), said.get(binding.name)
        if wanted is None or wanted.grow is None or report is None:
            continue
        size_mib = _next_size(binding, wanted.grow, report, abilities, policy, now)
        if size_mib is not None:
            size = f"{size_text(binding.size_mib)} → {size_text(size_mib)}"
            why = f"disk {binding.name} is {report.percent:.0f} % used and grows by itself: {size}"
            found.append(Step(binding.name, size_mib, why))
    return tuple(found)


def grown(record: InstanceRecord, steps: tuple[Step, ...], now: float) -> InstanceRecord:
    """The record in which these sizes are asked for."""
    sizes = {step.disk: step.size_mib for step in steps}
    disks = tuple(
        replace(disk, grown_mib=sizes[disk.name], grown_at=now) if disk.name in sizes else disk for disk in record.disks
    )
    return replace(record, disks=disks)


def with_growth(wanted: DiskRequirement, binding: DiskBinding | None) -> DiskRequirement:
    """What is asked for, and what the disk has grown to beside it. A manifest that asks for less than the one before
    is a person's word, and counts alone."""
    if binding is None or binding.grown_mib <= wanted.size_mib or wanted.size_mib < binding.required_mib:
        return wanted
    return replace(wanted, size_mib=binding.grown_mib)


def at_limit(binding: DiskBinding, wanted: DiskRequirement | None, percent: float) -> str:
    """Why a disk that is used as far as it should grow at does not grow any more; "" when that is not so."""
    grow = wanted.grow if wanted is not None else None
    if grow is None or percent / 100.0 < grow.at_share or binding.size_mib < grow.up_to_mib:
        return ""
    return f"{percent:.0f} % used, and it has the {size_text(binding.size_mib)} up to which it may grow by itself"


def _next_size(
    binding: DiskBinding,
    grow: DiskGrowth,
    report: Report,
    abilities: DiskAbilities,
    policy: DiskPolicy,
    now: float,
) -> int | None:
    settled = (
        binding.cid is not None
        and binding.way is DiskWay.NONE
        and binding.given_up_for is None
        and binding.grown_mib <= binding.size_mib
        and report.state is DiskState.MOUNTED
        and report.size_mib >= binding.size_mib * ON_DISK_SHARE
        and now >= binding.grown_at + policy.grow_apart_seconds
    )
    if not settled or report.percent / 100.0 < grow.at_share or binding.size_mib >= grow.up_to_mib:
        return None
    if abilities.grows(binding.filesystem) is Growth.NEVER:
        return None
    return min(grow.up_to_mib, binding.size_mib + max(1, round(binding.size_mib * grow.by_share)))
