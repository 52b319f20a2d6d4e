"""VMs that a cloud lists as ours: which of them does nobody name any more, and which of those may be removed?

They come about when a cloud makes a VM long after it was asked to: by then its creation was given up, and its key was
fenced and deleted as never made.

Laws:
- What a record or an operation names, by key or id, is no stray.
- Left over is proven, not guessed: it is of an older generation than its instance has now, or of an instance that the
  timeline says was forgotten, and its key is the one that we would have made it under. Whatever else there is (a VM
  newer than the journal, which may be an old copy; another site's) is only reported.

Does not know: when clouds are asked, how a VM is removed (healthmonitor/sweeper.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.keys import vm_key
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import InstanceRecord, Operation, SpareRecord, VmBinding
from healthmonitor.core.spares import KEY_PREFIX
from protocol.ids import CloudName, Generation, InstanceId, VmCid, split_instance_id

FORGOTTEN_EVENT = "instance.forgotten"
GENERATION_FIELD = "generation"
KINDS = frozenset({"vm_left_over", "vm_unknown"})
"""Of the deviations that strays are."""


class Standing(Enum):
    NAMED = "named by a record or an operation"
    WAITING = "something is under way for its instance"
    LEFT_OVER = "left over"
    UNCLEAR = "ours by its key, and not known to be left over"
    FOREIGN = "its key is of no instance"


@dataclass(frozen=True, slots=True)
class Listed:
    """As its cloud lists it."""

    cloud: CloudName
    vm_cid: VmCid
    key: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stray:
    """A VM that nobody names. `problem`: why it was not removed, though it is left over."""

    listed: Listed
    standing: Standing
    why: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal knows at one moment. `forgotten`: instances without a record that were deleted on purpose, and
    the generation of the last VM that each had."""

    records: Mapping[InstanceId, InstanceRecord]
    operations: Mapping[InstanceId, Operation]
    forgotten: Mapping[InstanceId, Generation]
    spares: Mapping[str, SpareRecord] = field(default_factory=dict)
    retired: frozenset[str] = frozenset()  # keys of spares that the timeline says were fenced and deleted

    def named(self) -> frozenset[str]:
        """Keys and ids of all VMs that are anybody's."""
        bindings: list[VmBinding | None] = [record.vm for record in self.records.values()]
        bindings += [operation.old_vm for operation in self.operations.values()]
        present: list[VmBinding | SpareRecord] = [binding for binding in bindings if binding is not None]
        present += self.spares.values()
        return frozenset(each.key for each in present) | frozenset(
            each.vm_cid for each in present if each.vm_cid is not None
        )


def judge(listed: Iterable[Listed], known: Known) -> Iterator[tuple[Listed, Standing, str]]:
    """Each with the reason, for people."""
    named = known.named()
    keys: dict[str, tuple[InstanceId, Generation]] | None = None
    for vm in listed:
        if vm.key in named or vm.vm_cid in named:
            yield vm, Standing.NAMED, "a record or an operation names it"
            continue
        if vm.key.startswith(KEY_PREFIX):
            yield vm, *_of_spare(vm.key, known)
            continue
        place = place_of(vm)
        if place is None:
            if keys is None:
                keys = _former_keys(known.records)
            place = keys.get(vm.key)
        if place is None:
            yield vm, Standing.FOREIGN, f"{vm.key or 'no key'} is the key of no instance that is known here"
        else:
            yield vm, *_of_instance(*place, known)


def place_of(vm: Listed) -> tuple[InstanceId, Generation] | None:
    """The instance and generation that its tags name, when that is what its key was made of."""
    try:
        instance, generation = InstanceId(vm.tags["instance"]), Generation(int(vm.tags["generation"]))
        split_instance_id(instance)
    except (KeyError, ValueError):
        return None
    return (instance, generation) if generation > 0 and vm_key(instance, generation) == vm.key else None


def evaluate_strays(strays: Iterable[Stray], policy: Policy) -> Iterator[Deviation]:
    for stray in strays:
        # An instance's id has slashes, and a cloud's may: it is about no instance's present VM.
        subject = f"{stray.listed.cloud}:{stray.listed.vm_cid}".replace("/", ":")
        if stray.standing is not Standing.LEFT_OVER:
            yield deviation("vm_unknown", subject, f"{stray.listed.key}: {stray.why}", policy)
        elif stray.problem:
            yield deviation("vm_left_over", subject, f"{stray.listed.key}: {stray.why}; {stray.problem}", policy)


def _of_spare(key: str, known: Known) -> tuple[Standing, str]:
    if key in known.retired:
        return Standing.LEFT_OVER, "a spare that was retired"
    return Standing.UNCLEAR, "a spare of which nothing is written: the journal may be an old copy, or another site's"


def _of_instance(instance: InstanceId, generation: Generation, known: Known) -> tuple[Standing, str]:
    record = known.records.get(instance)
    if record is not None and generation < record.generation:
        return Standing.LEFT_OVER, f"generation {generation} of {instance}, which is at generation {record.generation}"
    if instance in known.operations:
        return Standing.WAITING, f"something is under way for {instance}"
    if record is not None:
        return (
            Standing.UNCLEAR,
            f"it says that it is generation {generation} of {instance}, whose record knows {record.generation} and"
            " names another VM; the journal may be an old copy",
        )
    last = known.forgotten.get(instance)
    if last is not None and generation <= last:
        return Standing.LEFT_OVER, f"generation {generation} of {instance}, which was deleted"
    return Standing.UNCLEAR, f"nothing is written of {instance}: the journal may be an old copy, or another site's"


def _former_keys(records: Mapping[InstanceId, InstanceRecord]) -> dict[str, tuple[InstanceId, Generation]]:
    """For clouds that keep no tags."""
    return {
        vm_key(instance, Generation(number)): (instance, Generation(number))
        for instance, record in records.items()
        for number in range(1, record.generation + 1)
    }
