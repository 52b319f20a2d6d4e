"""The monitors of this bus as people see them: who leads, since when and why, who else is there and how far it is; and
the one thing that may be asked of them, to step down.

Law: stepping down is written to the timeline before the lease is given back, and is refused where nobody could follow.

Does not know: HTTP, and how the lease works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.policy import LeadershipPolicy, Policy
from healthmonitor.core.presence import Heard, Presence, Roster, counts, words
from healthmonitor.core.units import duration_text
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership
from healthmonitor.operator_actions import Answer, NotLeading, Person

_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Standing:
    """How far this monitor is: read from memory whenever it is told."""

    why_not_warm: Callable[[], str]  # "" when it could lead at once
    vms_alive: Callable[[], int]


class Monitors:
    def __init__(
        self,
        own: Presence,
        roster: Roster,
        leadership: Leadership,
        journal: Journal,
        standing: Standing,
        policy: LeadershipPolicy,
        now: Callable[[], float],
    ) -> None:
        self._own = own
        self._roster = roster
        self._leadership = leadership
        self._journal = journal
        self._standing = standing
        self._policy = policy
        self._now = now

    # Told to the other monitors.

    def present(self, leaving: bool = False) -> Presence:
        why_not = self._standing.why_not_warm()
        return Presence(
            monitor=self._own.monitor,
            incarnation=self._own.incarnation,
            version=self._own.version,
            records_format=self._own.records_format,
            address=self._own.address,
            leads=self._leadership.is_leader(),
            warm=not why_not,
            state=why_not or self._leadership.refusal(),
            instances=len(self._journal.instances()),
            vms_alive=self._standing.vms_alive(),
            started_at=self._own.started_at,
            leaving=leaving,
        )

    def someone_is_ready(self, records_format: int) -> bool:
        return self._roster.someone_is_ready(self._now(), records_format)

    def is_ready(self) -> bool:
        return not self._standing.why_not_warm()

    # Told to people.

    def leader(self) -> dict[str, Any]:
        """Who leads, since when (Unix seconds) and why; empty words where nobody does."""
        lease = self._leadership.holder()
        if lease is None or not lease.holder:
            return {"leader_id": "", "leader_address": "", "leader_since": 0.0, "leader_why": ""}
        return {
            "leader_id": lease.holder,
            "leader_address": lease.address,
            "leader_since": lease.since,
            "leader_why": lease.why,
        }

    def views(self) -> list[dict[str, Any]]:
        """This monitor first, then the others by name."""
        now = self._now()
        own = Heard(self.present(), now)
        return [self._view(own, now, True), *(self._view(each, now, False) for each in self._roster.others(now))]

    def states(self) -> dict[str, int]:
        """How many monitors are in which state."""
        now = self._now()
        return counts([Heard(self.present(), now), *self._roster.others(now)], now, self._policy)

    def reasons_unhealthy(self) -> list[str]:
        reasons = self._store_away()
        other = self._roster.namesake(self._now())
        if other is None:
            return reasons
        return [
            *reasons,
            f"name: another monitor is called {other.monitor} too, at {other.address or 'an unknown address'}:"
            " give each its own (the key `monitor` of its configuration)",
        ]

    def _store_away(self) -> list[str]:
        silent = self._leadership.out_of_touch_seconds()
        if silent is None or silent < self._policy.ttl_seconds:
            return []
        return [
            f"store: nothing could be read from or written to the bus's store for {silent:.1f} s: fewer than a majority"
            " of the nats-servers run, or their disks are full (after making room they must be restarted)"
        ]

    def deviations(self, policy: Policy) -> Iterator[Deviation]:
        """What is wrong with the monitors themselves and with what they wrote."""
        now = self._now()
        for each in self._roster.missing(now):
            last = f"last heard {duration_text(round(each.silent_seconds(now)))} ago at {each.presence.address or '?'}"
            yield deviation("monitor_missing", each.presence.monitor, last, policy)
        for error in self._journal.corrupt():
            yield deviation("record_unreadable", f"{error.bucket}/{error.key}", str(error), policy)

    async def step_down(self, seconds: float, person: Person, because: str) -> Answer:
        if not self._leadership.is_leader():
            leader = self.leader()
            raise NotLeading(leader["leader_id"], leader["leader_address"])
        if seconds > self._policy.aside_longest_seconds:
            longest = duration_text(self._policy.aside_longest_seconds)
            raise NotPossible(f"a monitor steps down for {longest} at most", "stop it for longer: systemctl stop")
        if not self._roster.someone_is_ready(self._now()):
            raise NotPossible(
                "no other monitor is there that could lead at once",
                "`resurgam monitor list` says who is there and how far",
            )
        own = self._own.monitor
        said = f"{own} steps down for {duration_text(seconds)}; by {person}" + (f": {because}" if because else "")
        fields = {"by": str(person), **({"because": because} if because else {})}
        await self._journal.record("operator.stepped_down", own, said, fields)
        why = f"{own} stepped down, asked by {person}" + (f": {because}" if because else "")
        await self._leadership.step_down(seconds, why)
        follower = await self._follower()
        text = f"{own} has stepped down for {duration_text(seconds)}; "
        text += f"{follower} leads now" if follower else "no other monitor leads yet"
        return Answer(text, "resurgam monitor list", {"leader": follower})

    async def _follower(self) -> str:
        """Who leads now, waited for as long as it may take."""
        until = self._now() + self._policy.ttl_seconds + self._policy.presence_seconds
        while self._now() < until:
            for each in self._roster.others(self._now()):
                if each.presence.leads and each.silent_seconds(self._now()) < self._policy.present_seconds:
                    return each.presence.monitor
            if self._leadership.is_leader():
                break  # nobody else took it
            await asyncio.sleep(_LOOK_SECONDS)
        return ""

    def _view(self, heard: Heard, now: float, own: bool) -> dict[str, Any]:
        presence = heard.presence
        return {
            "monitor": presence.monitor,
            "this": own,
            "doing": words(presence, heard.silent_seconds(now), self._policy),
            "state": presence.state,
            "version": presence.version,
            "records_format": presence.records_format,
            "address": presence.address,
            "instances": presence.instances,
            "vms_alive": presence.vms_alive,
            "started_at": presence.started_at,
            "silent_seconds": heard.silent_seconds(now),
        }
