"""The monitor's records as they stand in the bus's store, decoded, and what each write changed, in a line for people.

Does not know: what the records should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from healthmonitor.core.records import DeploymentRecord, Incident, InstanceRecord, Operation
from healthmonitor.journal import DEPLOYMENTS, INCIDENTS, INSTANCES, OPERATIONS
from protocol import codec
from tests.simulation.bus import Store, StoredBucket
from tests.simulation.checkers import Records

T = TypeVar("T")


class RecordsInStore:
    """Decodes each value once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoded: dict[tuple[str, str], tuple[int, object]] = {}

    def all(self) -> Records:
        return Records(
            deployments=tuple(self._of(DEPLOYMENTS, DeploymentRecord).values()),
            instances={record.instance: record for record in self._of(INSTANCES, InstanceRecord).values()},
            operations={operation.instance: operation for operation in self._of(OPERATIONS, Operation).values()},
            incidents=tuple(self._of(INCIDENTS, Incident).values()),
        )

    def revisions(self) -> Mapping[tuple[str, str], int]:
        return {
            (name, key): entry.revision
            for name, bucket in self._store.buckets.items()
            for key, entry in bucket.entries.items()
        }

    def _of(self, name: str, kind: type[T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for key, entry in self._store.buckets.get(name, StoredBucket()).entries.items():
            known = self._decoded.get((name, key))
            if known is None or known[0] != entry.revision:
                known = self._decoded[name, key] = (entry.revision, codec.from_json(kind, entry.value))
            found[key] = known[1]  # type: ignore[assignment]  # of the kind that it was decoded as
        return found


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
