"""Deviations over time: incidents that are opened, changed and resolved.

Laws:
- One key from opening to resolution, also over a restart of the monitor.
- What nobody can know now is not resolved: an incident ends when its subject is known to be as it should.
- One cause, one alarm: what another open incident explains carries that one's key in `inhibited_by`.
- What comes and goes too often stays open, is said to flap, and is resolved when it has been quiet for the window.
- A decision costs what has changed since the last; of what is as it was it only makes sure that it is.

Does not know: who is told, and how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from healthmonitor.core.deviations import Deviation
from healthmonitor.core.policy import IncidentPolicy
from healthmonitor.core.reasons import without_numbers
from healthmonitor.core.records import Incident

_ABOUT_THE_VM = frozenset({"vm_missing", "vm_suspect"})
_NOT_EXPLAINED_BY_THE_VM = _ABOUT_THE_VM | {"operation_unfenced", "operation_held", "operation_retrying"}
_ABOUT_ALL = frozenset({"bus_lost", "cannot_tell", "mass_silence", "meltdown", "channel_failing", "incidents_overflow"})
"""Never refused for want of room: there are few, and they explain the others."""
_MONITOR = ("bus_lost:monitor", "cannot_tell:monitor", "mass_silence:fleet")


@dataclass(frozen=True, slots=True)
class IncidentDecision:
    opened: tuple[Incident, ...] = ()
    changed: tuple[Incident, ...] = ()
    resolved: tuple[Incident, ...] = ()
    next_check: float | None = None
    """When a deviation will have lasted long enough, or a flapping one been quiet for long enough."""


class Incidents:
    """`known`: incidents of the journal that are open. Monotonic times are the loop's clock, `unix_now` is written."""

    def __init__(self, policy: IncidentPolicy, known: Iterable[Incident] = ()) -> None:
        self.policy = policy
        self._open: dict[str, Incident] = {each.key: each for each in known if each.resolved_at is None}
        self._as_said: dict[str, Deviation] = {}  # of which the open incident says all already
        self._explained: set[str] = set()  # open ones whose cause was looked for
        self._explains: dict[str, dict[str, None]] = {}  # key of a cause → what it would explain of those
        self._opened_at: dict[str, float] = {}  # of those that were opened here
        self._seen_since: dict[str, float] = {}  # deviations that are there now
        self._absent_since: dict[str, float] = {}  # of open incidents
        self._openings: dict[str, tuple[float, ...]] = {}
        self.refused = 0  # beyond the limit, in the last decision

    def open(self) -> Mapping[str, Incident]:
        return self._open

    def decide(
        self, deviations: Iterable[Deviation], unsure: Callable[[Incident], bool], now: float, unix_now: float
    ) -> IncidentDecision:
        """`unsure(incident)`: whether nobody can know now if it is over."""
        present = {each.key: each for each in deviations}
        for key in [key for key in self._seen_since if key not in present]:
            del self._seen_since[key]
            self._as_said.pop(key, None)
        checks: list[float] = []
        opened: list[Incident] = []
        changed: list[Incident] = []
        self.refused = 0
        as_said = self._as_said
        for key, deviation in present.items():
            if as_said.get(key) is deviation:
                continue
            since = self._seen_since.setdefault(key, now)
            known = self._open.get(key)
            if known is not None:
                self._returned(key, now)
                updated = _updated(known, deviation, self._flaps(key), unix_now)
                if updated is not known:
                    self._open[key] = updated
                    changed.append(updated)
                as_said[key] = deviation
            elif now - since < deviation.after_seconds:
                checks.append(since + deviation.after_seconds)
            elif len(self._open) >= self.policy.incidents_max and deviation.kind not in _ABOUT_ALL:
                self.refused += 1
            else:
                self._count_opening(key, now)
                self._opened_at[key] = now
                self._open[key] = incident = _opened(deviation, self._flaps(key), unix_now)
                opened.append(incident)
        resolved = self._resolve(present, unsure, now, unix_now, checks)
        explained = self._explain(resolved, unix_now)
        opened = [self._open[each.key] for each in opened]
        fresh = {each.key for each in opened}
        changed_keys = {each.key: None for each in (*changed, *explained) if each.key in self._open}
        return IncidentDecision(
            tuple(opened),
            tuple(self._open[key] for key in changed_keys if key not in fresh),
            tuple(resolved),
            min(checks, default=None),
        )

    def _resolve(
        self,
        present: Mapping[str, Deviation],
        unsure: Callable[[Incident], bool],
        now: float,
        unix_now: float,
        checks: list[float],
    ) -> list[Incident]:
        resolved: list[Incident] = []
        for key, incident in list(self._open.items()):
            if key in present or unsure(incident):
                continue
            absent_since = self._absent_since.setdefault(key, now)
            if self._flaps(key) and now - absent_since < self.policy.flap_window_seconds:
                checks.append(absent_since + self.policy.flap_window_seconds)
                continue
            del self._open[key]
            del self._absent_since[key]
            self._as_said.pop(key, None)
            opened_at = self._opened_at.pop(key, None)
            resolved.append(over(incident, None if opened_at is None else now - opened_at, unix_now))
        self._forget_openings(now)
        return resolved

    def _explain(self, resolved: Iterable[Incident], unix_now: float) -> list[Incident]:
        """Sets `inhibited_by` anew wherever what opened or ended may be the cause; returns what changed by that."""
        affected: dict[str, None] = {}
        for ended in resolved:
            affected.update(self._explains.get(ended.key, {}))
            self._explained.discard(ended.key)
            for cause in _causes(ended):
                if (explains := self._explains.get(cause)) is not None:
                    explains.pop(ended.key, None)
                    if not explains:
                        del self._explains[cause]
        for key in [key for key in self._open if key not in self._explained]:
            self._explained.add(key)
            for cause in _causes(self._open[key]):
                self._explains.setdefault(cause, {})[key] = None
            affected[key] = None
            affected.update(
                self._explains.get(key, {})
            )  # those that are new too and not there yet are looked at anyway
        changed = []
        for key in affected:
            incident = self._open.get(key)
            if incident is None:
                continue
            cause = self._cause(incident)
            if cause != incident.inhibited_by:
                self._open[key] = updated = replace(incident, inhibited_by=cause, updated_at=unix_now)
                changed.append(updated)
        return changed

    def _cause(self, incident: Incident) -> str:
        for cause in _causes(incident):
            if cause != incident.key and cause in self._open:
                return cause
        return ""

    def _returned(self, key: str, now: float) -> None:
        if self._absent_since.pop(key, None) is not None:
            self._count_opening(key, now)

    def _count_opening(self, key: str, now: float) -> None:
        self._openings[key] = (*self._openings.get(key, ()), now)[-self.policy.flap_count :]

    def _flaps(self, key: str) -> bool:
        openings = self._openings.get(key, ())
        return len(openings) >= self.policy.flap_count and openings[-1] - openings[0] <= self.policy.flap_window_seconds

    def _forget_openings(self, now: float) -> None:
        for key in [key for key in self._openings if key not in self._open]:
            if now - self._openings[key][-1] > self.policy.flap_window_seconds:
                del self._openings[key]


def over(incident: Incident, lasted_seconds: float | None, unix_now: float) -> Incident:
    """`lasted_seconds`: as measured, None when nobody measured it. It does not end before it began, however clocks are
    set: receivers refuse that."""
    ended = replace(incident, lasted_seconds=lasted_seconds, updated_at=unix_now)
    took = ended.took_seconds(unix_now)
    resolution = "over; for how long it was there nobody knows, the clock was set" if took is None else ""
    return replace(
        ended, resolved_at=max(unix_now, incident.opened_at), resolution=resolution or f"over after {took:.0f} s"
    )


def instance_of(incident: Incident) -> str:
    """The instance that the incident is about, "" when it is about none."""
    parts = incident.subject.split("/")
    return "/".join(parts[:3]) if len(parts) >= 3 else ""


def _causes(incident: Incident) -> Iterable[str]:
    """Keys of incidents that would explain this one, the deepest first."""
    if incident.kind == "cannot_tell":
        yield "bus_lost:monitor"
    if incident.kind == "meltdown":
        yield "meltdown:fleet"
    instance = instance_of(incident)
    if not instance:
        return
    if incident.kind in ("vm_suspect", "operation_held"):
        yield from _MONITOR
    if incident.kind in ("vm_missing", "vm_suspect", "operation_held"):
        yield "meltdown:fleet"
        yield f"meltdown:{instance.split('/')[0]}"
    if incident.kind not in _NOT_EXPLAINED_BY_THE_VM:
        yield f"vm_missing:{instance}"
        yield f"operation_unfenced:{instance}"
    if incident.kind == "container_not_running":
        yield f"engine_not_up:{instance}"


def _opened(deviation: Deviation, flapping: bool, unix_now: float) -> Incident:
    return Incident(
        key=deviation.key,
        kind=deviation.kind,
        subject=deviation.subject,
        severity=deviation.severity,
        title=_title(deviation, flapping),
        detail=deviation.detail,
        opened_at=unix_now,
        updated_at=unix_now,
        next_step=deviation.next_step,
    )


def _updated(incident: Incident, deviation: Deviation, flapping: bool, unix_now: float) -> Incident:
    title = _title(deviation, flapping)
    if incident.title == title and incident.severity is deviation.severity and _same(incident.detail, deviation.detail):
        return incident
    return replace(
        incident,
        title=title,
        severity=deviation.severity,
        detail=deviation.detail,
        next_step=deviation.next_step,
        updated_at=unix_now,
    )


def _title(deviation: Deviation, flapping: bool) -> str:
    return f"{deviation.title} (flapping)" if flapping else deviation.title


def _same(before: str, now: str) -> bool:
    """Whether two details differ in numbers only: how long, how often. That is no news."""
    return before == now or without_numbers(before) == without_numbers(now)
