"""Who else is there: the monitors of this bus, as each tells of itself, and which of them could take over.

Laws:
- A monitor is judged by when it was last heard on *our* clock; nothing it says of time is compared with anything.
- What is told is for people and for manners (who steps aside for whom). Who may act is decided by the lease alone.
- A presence of another version is read as far as it is understood: every field has a default, unknown keys are ignored.

Does not know: the bus. Times called `now` are monotonic seconds of this monitor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from healthmonitor.core.policy import LeadershipPolicy

PRESENCE_VERSION = 1
RECORDS_FORMAT = 1
"""Grows when a monitor of the former format would do harm with what a newer one writes down; it then refuses to lead.
A key more in a record needs no new format: an older monitor keeps it (core/carried_keys.py)."""


@dataclass(frozen=True, slots=True)
class Presence:
    """What a monitor tells every `presence_seconds`, over the bus. `incarnation` is new for every start."""

    monitor: str
    incarnation: str
    presence_version: int = PRESENCE_VERSION
    version: str = ""  # of the program
    records_format: int = RECORDS_FORMAT  # the newest that it understands
    address: str = ""  # of its HTTP API
    leads: bool = False
    warm: bool = False  # has read the journal and can tell who is alive
    state: str = ""  # a sentence for people: why it is not warm, or why it would not lead
    instances: int = 0  # that it has read
    vms_alive: int = 0  # that it hears
    started_at: float = 0.0  # Unix seconds
    leaving: bool = False  # ends by somebody's wish: not missed afterwards


@dataclass(frozen=True, slots=True)
class Heard:
    presence: Presence
    heard_at: float

    def silent_seconds(self, now: float) -> float:
        return max(0.0, now - self.heard_at)


class Roster:
    """The monitors that were heard, by name; `own` is this one, of this incarnation."""

    def __init__(self, own: str, incarnation: str, policy: LeadershipPolicy) -> None:
        self._own = own
        self._incarnation = incarnation
        self._policy = policy
        self._heard: dict[str, Heard] = {}
        self._namesake: Heard | None = None

    def heard(self, presence: Presence, now: float) -> bool:
        """Whether anybody who waits for the lease should look at it now: somebody began or ceased to lead."""
        if presence.monitor == self._own:
            if presence.incarnation != self._incarnation:
                self._namesake = Heard(presence, now)
            return False
        before = self._heard.get(presence.monitor)
        if before is None and len(self._heard) >= self._policy.monitors_max:
            return False
        self._heard[presence.monitor] = Heard(presence, now)
        return before is not None and before.presence.leads != presence.leads

    def others(self, now: float) -> tuple[Heard, ...]:
        """Every other monitor that was heard within `forgotten_seconds`, by name."""
        self._forget(now)
        return tuple(self._heard[name] for name in sorted(self._heard))

    def someone_is_ready(self, now: float, records_format: int = RECORDS_FORMAT) -> bool:
        """Whether another monitor is there that could lead at once."""
        return any(
            each.presence.warm
            and not each.presence.leaving
            and each.presence.records_format >= records_format
            and each.silent_seconds(now) < self._policy.present_seconds
            for each in self._heard.values()
        )

    def missing(self, now: float) -> tuple[Heard, ...]:
        """Those that were there, did not say that they leave, and are silent."""
        return tuple(
            each
            for each in self.others(now)
            if not each.presence.leaving and each.silent_seconds(now) >= self._policy.present_seconds
        )

    def namesake(self, now: float) -> Presence | None:
        """Another monitor that runs under this one's name now."""
        found = self._namesake
        return (
            found.presence if found is not None and found.silent_seconds(now) < self._policy.present_seconds else None
        )

    def _forget(self, now: float) -> None:
        for name in [name for name, each in self._heard.items() if self._is_past(each, now)]:
            del self._heard[name]

    def _is_past(self, each: Heard, now: float) -> bool:
        kept = self._policy.present_seconds if each.presence.leaving else self._policy.forgotten_seconds
        return each.silent_seconds(now) >= kept


def words(presence: Presence, silent_seconds: float, policy: LeadershipPolicy) -> str:
    """One word for what a monitor is doing."""
    if silent_seconds >= policy.present_seconds:
        return "silent"
    if presence.leaving:
        return "ending"
    if presence.leads:
        return "leads"
    return "warm" if presence.warm else "warming up"


def counts(heard: Iterable[Heard], now: float, policy: LeadershipPolicy) -> dict[str, int]:
    """How many monitors are in which state."""
    found: dict[str, int] = {}
    for each in heard:
        word = words(each.presence, each.silent_seconds(now), policy)
        found[word] = found.get(word, 0) + 1
    return found
