"""What the API tells of the monitor itself: is it well, what does it conclude, its figures. From memory, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from healthmonitor.core.agent_state import AgentView
from healthmonitor.core.judgement import Judgement
from healthmonitor.leadership import Leadership

LOOP_LATE_SECONDS = 5.0
"""The monitor's loop turns several times a second; one that has not for this long hangs."""


class Turning(Protocol):
    """The monitor's loop, as far as its health is concerned."""

    judgement: Judgement
    last_turn_at: float


class SiteState:
    """`now`: the loop's clock."""

    def __init__(
        self,
        monitor_id: str,
        bus_connected: Callable[[], bool],
        journal_open: Callable[[], bool],
        leadership: Leadership,
        turning: Turning,
        canary_silent_seconds: Callable[[], float],
        canary_lost_seconds: Callable[[], float],
        now: Callable[[], float],
        resurrection_configured: Callable[[], bool],
        metrics: Callable[[], bytes],
        strangers: Callable[[], Iterable[AgentView]],
        more_reasons: Callable[[], list[str]] = list,
    ) -> None:
        self._id = monitor_id
        self.bus_connected = bus_connected
        self._journal_open = journal_open
        self._leadership = leadership
        self._turning = turning
        self._canary_silent_seconds = canary_silent_seconds
        self._canary_lost_seconds = canary_lost_seconds
        self._now = now
        self.resurrection_configured = resurrection_configured
        self.metrics = metrics
        self.strangers = strangers
        self._more_reasons = more_reasons

    @property
    def id(self) -> str:
        return self._id

    def judgement(self) -> Judgement:
        return self._turning.judgement

    def reasons_unhealthy(self) -> list[str]:
        reasons = []
        late = self._now() - self._turning.last_turn_at
        if not self.bus_connected():
            reasons.append("bus: not connected")
        elif not self._journal_open():
            reasons.append("journal: not read yet")
        elif (silent := self._canary_silent_seconds()) > self._canary_lost_seconds():
            reasons.append(f"canary: the monitor has not heard itself through the bus for {silent:.1f} s")
        if late > LOOP_LATE_SECONDS:
            reasons.append(f"loop: no turn for {late:.1f} s")
        if not self.leader_name():
            reasons.append("leader: no monitor leads")
        return reasons + self._more_reasons()

    # Who leads, for the API and for people's actions.

    def is_leader(self) -> bool:
        return self._leadership.is_leader()

    def leader_name(self) -> str:
        lease = self._leadership.holder()
        if lease is not None and lease.holder:
            return lease.holder
        return self._id if self._leadership.is_leader() else ""

    def leader_address(self) -> str:
        lease = self._leadership.holder()
        return lease.address if lease is not None and lease.holder else ""
