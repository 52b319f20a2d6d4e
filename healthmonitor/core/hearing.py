"""What the monitor's own hearing is worth: whether silence of others means anything now.

Laws: silence counts only from when the monitor has heard without a gap; while the bus is lost or the canary does not
come round, and for one lease after a start or a return, nothing is concluded at all.

Does not know: any agent. Times are the loop's clock.
"""

from __future__ import annotations

from healthmonitor.core.liveness import NEVER, Hearing
from healthmonitor.core.policy import LivenessPolicy


class OwnHearing:
    def __init__(self, policy: LivenessPolicy, started_at: float) -> None:
        self.policy = policy
        self.connected = True
        self._started_at = started_at
        self._back_at = NEVER
        self._canary_at = started_at
        self._canary_back_at = NEVER
        self._lagged_at = NEVER
        self._lag_seconds = 0.0

    def begins(self, at: float) -> None:
        """It listens only now: what it reads before it does may take long."""
        self._started_at = max(self._started_at, at)
        self._canary_at = max(self._canary_at, at)

    def bus_changed(self, connected: bool, at: float) -> None:
        if connected and not self.connected:
            self._back_at = at
            self._canary_at = max(self._canary_at, at)
        self.connected = connected

    def canary_heard(self, at: float) -> None:
        """`at`: when the canary was sent, so that one that lay in a buffer proves no more than it may."""
        if at - self._canary_at > self.policy.canary_lost_seconds:
            self._canary_back_at = at
        self._canary_at = max(self._canary_at, at)

    def canary_silent_seconds(self, now: float) -> float:
        """Since the monitor last heard itself through the bus (or began to listen): asked by its health check."""
        return now - self._canary_at

    def lagged(self, seconds: float, at: float) -> None:
        """The loop's turn came `seconds` late; what should have been heard meanwhile is only being read now."""
        self._lagged_at = at
        self._lag_seconds = seconds
        self._canary_at = max(self._canary_at, at - self.policy.canary_interval_seconds)

    def lag(self, now: float) -> str:
        """The last lag, in words."""
        return f"the monitor's loop was {self._lag_seconds:.1f} s late {now - self._lagged_at:.0f} s ago"

    def at(self, now: float) -> Hearing:
        policy = self.policy
        since = max(self._started_at, self._back_at, self._canary_back_at, self._lagged_at)
        if not self.connected:
            return Hearing(now, "the bus is not connected")
        canary_age = now - self._canary_at
        if canary_age > policy.canary_lost_seconds:
            return Hearing(now, f"the monitor's own heartbeat through the bus has not come back for {canary_age:.0f} s")
        if now < self._started_at + policy.start_grace_seconds:
            return Hearing(since, f"the monitor began to listen only {now - self._started_at:.0f} s ago")
        if now < self._back_at + max(policy.lease_seconds, policy.start_grace_seconds):
            return Hearing(since, f"the bus came back only {now - self._back_at:.0f} s ago")
        if now < self._canary_back_at + policy.lease_seconds:
            return Hearing(since, f"the monitor hears itself again only since {now - self._canary_back_at:.0f} s")
        return Hearing(since)
