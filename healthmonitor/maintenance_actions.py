"""What people may ask of maintenance windows: list, add, end. Each change stands in the timeline with who and why.

Law: only the monitor that leads acts. A window is durable before it counts, and is kept in the journal, so whoever
leads next honours it too.

Does not know: HTTP, and what holds in a window (`core/guard.py`, `core/notifying/desk.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from healthmonitor.core import maintenance_changes as changes
from healthmonitor.core.maintenance import Window
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import Maintenance
from healthmonitor.operator_actions import Answer, Leader, NotFound, NotLeading, Person


class MaintenanceJournal(Protocol):
    def maintenance(self) -> Mapping[str, Maintenance]: ...
    async def save_maintenance(self, window: Maintenance, replacing: Maintenance | None) -> None: ...
    async def delete_maintenance(self, window: Maintenance) -> None: ...
    async def record(self, kind: str, subject: str, text: str, fields: Mapping[str, str] | None = None) -> int: ...


@dataclass(frozen=True, slots=True)
class Listed:
    """`added`: those that people added, latest first; `configured`: those of the configuration file."""

    added: tuple[Maintenance, ...]
    configured: tuple[Window, ...]


class MaintenanceActions:
    """`changed`: called when other windows hold than before."""

    def __init__(
        self,
        journal: MaintenanceJournal,
        leader: Leader,
        configured: Callable[[], Sequence[Window]],
        unix_time: Callable[[], float],
        new_id: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._leader = leader
        self._configured = configured
        self._unix_time = unix_time
        self._new_id = new_id
        self._changed = changed

    def windows(self) -> Listed:
        """Those that hold or will, and those over lately."""
        now = self._unix_time()
        kept = [each for each in self._journal.maintenance().values() if not self._is_old(each, now)]
        kept.sort(key=lambda each: each.created_at, reverse=True)
        return Listed(tuple(kept), tuple(self._configured()))

    async def add(self, wish: changes.Wish, person: Person, because: str) -> Answer:
        self._check_leading()
        window = changes.added(wish, self._new_id()[:8], str(person), because, self._unix_time())
        await self._forget_old()
        if len(self._journal.maintenance()) >= changes.WINDOWS_MAX:
            raise NotPossible(f"there are {changes.WINDOWS_MAX} windows already", "resurgam maintenance list")
        await self._journal.save_maintenance(window, None)
        self._changed()
        text = f"maintenance window {window.id}: {changes.describe(window)}"
        await self._note("maintenance.added", text, window, person, because)
        return Answer(text, f"resurgam maintenance end {window.id}", {"id": window.id})

    async def end(self, maintenance_id: str, person: Person, because: str) -> Answer:
        self._check_leading()
        window = self._journal.maintenance().get(maintenance_id)
        if window is None:
            raise NotFound(f"there is no maintenance window {maintenance_id[:80]!r} that can be ended here")
        after = changes.ended(window, str(person), self._unix_time())
        await self._journal.save_maintenance(after, window)
        self._changed()
        text = f"maintenance window {window.id} ({changes.describe(window)}) is ended"
        await self._note("maintenance.ended", text, window, person, because)
        return Answer(text, "resurgam maintenance list", {"id": window.id})

    def _is_old(self, window: Maintenance, now: float) -> bool:
        over_at = changes.over_at(window, now)
        return over_at is not None and over_at < now - changes.KEPT_SECONDS

    async def _forget_old(self) -> None:
        now = self._unix_time()
        for window in self._journal.maintenance().values():
            if self._is_old(window, now):
                await self._journal.delete_maintenance(window)

    async def _note(self, kind: str, text: str, window: Maintenance, person: Person, because: str) -> None:
        said = f"{text}; by {person}" + (f": {because}" if because else "")
        fields = {"by": str(person), "because": because, "maintenance": window.id}
        await self._journal.record(kind, "fleet", said, fields)

    def _check_leading(self) -> None:
        if not self._leader.is_leader():
            raise NotLeading(self._leader.leader_name(), self._leader.leader_address())
