"""The monitor's records as they stand in the bus's store, decoded, and what each write changed, in a line for people.

Does not know: what the records should be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from healthmonitor.core.records import DeploymentRecord, Incident, InstanceRecord, Operation, SpareRecord
from healthmonitor.journal import DEPLOYMENTS, INCIDENTS, INSTANCES, OPERATIONS, SPARES
from protocol import codec
from protocol.bus import Entry
from tests.simulation.bus import Store, StoredBucket
from tests.simulation.checkers import Records

T = TypeVar("T")
R = TypeVar("R")


class RecordsInStore:
    """Decodes each value once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoded: dict[tuple[str, str], tuple[int, object]] = {}
        self._read: dict[str, tuple[int, Any]] = {}  # bucket → the revision that it was read at, and what was in it

    def all(self) -> Records:
        return Records(
            deployments=self._of(DEPLOYMENTS, DeploymentRecord, tuple),
            instances=self._of(INSTANCES, InstanceRecord, lambda found: {each.instance: each for each in found}),
            operations=self._of(OPERATIONS, Operation, lambda found: {each.instance: each for each in found}),
            incidents=self._of(INCIDENTS, Incident, tuple),
            spares=self._of(SPARES, SpareRecord, lambda found: {each.key: each for each in found}),
        )

    def revision(self, name: str) -> int:
        return self._store.buckets.get(name, StoredBucket()).revision

    def _of(self, name: str, kind: type[T], arrange: Callable[[list[T]], R]) -> R:
        """Made anew only when the bucket was written."""
        bucket = self._store.buckets.get(name, StoredBucket())
        read = self._read.get(name)
        if read is None or read[0] != bucket.revision:
            found = [self._entry(name, kind, key, entry) for key, entry in bucket.entries.items()]
            read = self._read[name] = (bucket.revision, arrange(found))
            self._forget_gone(name, bucket)
        arranged: R = read[1]
        return arranged

    def _entry(self, name: str, kind: type[T], key: str, entry: Entry) -> T:
        known = self._decoded.get((name, key))
        if known is None or known[0] != entry.revision:
            known = self._decoded[name, key] = (entry.revision, codec.from_json(kind, entry.value))
        decoded: T = known[1]  # type: ignore[assignment]  # of the kind that it was decoded as
        return decoded

    def _forget_gone(self, name: str, bucket: StoredBucket) -> None:
        for key in [key for key in self._decoded if key[0] == name and key[1] not in bucket.entries]:
            del self._decoded[key]


def operation_line(before: Operation | None, after: Operation | None) -> str:
    """What became of an operation; "" when nothing that people follow."""
    if after is None:
        return "" if before is None else f"{before.kind.value} over"
    what = f"{after.kind.value} of {after.old_vm.key}" if after.old_vm is not None else after.kind.value
    if before is None or before.id != after.id:
        return f"{what} begun: {after.reason}"
    if before.step is not after.step:
        note = after.timings[-1].note if after.timings else ""
        return f"{what}: {before.step.value} → {after.step.value}" + (f" ({note})" if note else "")
    if (before.hold, before.error) != (after.hold, after.error):
        return f"{what}: {after.step.value} {after.hold.value}: {after.error}"
    return ""


def incident_line(before: Incident | None, after: Incident | None) -> str:
    if after is None:
        return ""
    if after.resolved_at is not None:
        return "" if before is not None and before.resolved_at is not None else f"resolved: {after.resolution}"
    return f"opened: {after.detail}" if before is None or before.resolved_at is not None else ""


def spare_line(before: SpareRecord | None, after: SpareRecord | None) -> str:
    if after is None:
        return "" if before is None else f"no spare any more ({before.state.value})"
    if before is None or before.state is not after.state:
        whose = f" by {after.taken_by}" if after.taken_by else ""
        return f"{after.state.value}{whose} ({after.vm_cid or 'no VM yet'})"
    return f"{after.state.value}: {after.error}" if after.error != before.error else ""
