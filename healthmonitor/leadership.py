"""The lease in the bus: this monitor's part in deciding who acts. The rules are in `core/leadership.py`.

Law: `is_leader()` is true only while no other monitor can have begun to act, whatever the bus does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from healthmonitor.core import leadership as rules
from healthmonitor.core.leadership import LeaseAction, LeaseState
from healthmonitor.core.policy import LeadershipPolicy
from protocol import codec
from protocol.bus import Bucket, Bus, BusUnavailable, WrongRevision
from protocol.ids import MonitorId

BUCKET = "leader"
KEY = "lease"
_RELEASE_SECONDS = 2.0

log = structlog.get_logger("leadership")


@dataclass(frozen=True, slots=True)
class Lease:
    """The key's value. `holder` is "" when the lease was given back. `incarnation` and `renewals` make every value
    unlike every other, so that a write without an answer is recognised when it is read back."""

    holder: str
    incarnation: str = ""
    renewals: int = 0
    address: str = ""  # where the holder's HTTP API listens, for people and other monitors


class Leadership:
    def __init__(
        self,
        bus: Bus,
        monitor_id: MonitorId,
        policy: LeadershipPolicy,
        incarnation: str = "",
        address: str = "",
    ) -> None:
        self._bus = bus
        self._monitor_id = monitor_id
        self._policy = policy
        self._incarnation = incarnation
        self._address = address
        self._state = LeaseState()
        self._renewals = 0
        self._lease: Lease | None = None
        self._reported = False
        self._callbacks: list[Callable[[bool], None]] = []
        self._bucket: Bucket | None = None
        self._stepping_down_until = 0.0

    def is_leader(self) -> bool:
        return rules.may_act(self._state, _now(), self._policy)

    def holder(self) -> Lease | None:
        """What the lease said when it was last read or written. None: nothing known."""
        return self._lease

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """`callback(is_leader)` after each change, from the loop."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Until cancelled; then the lease is given back, so that the next monitor need not wait for it to be over."""
        try:
            while True:
                pause = await self._turn()
                self._report()
                if self.is_leader():
                    # Look again when the right to act ends, even if the renewal hangs in the bus.
                    pause = min(pause, max(0.0, rules.acts_until(self._state, self._policy) - _now()))
                await asyncio.sleep(pause)
        finally:
            await self._give_back()

    async def step_down(self) -> None:
        """Gives the lease back and does not take it again for one TTL."""
        self._stepping_down_until = _now() + self._policy.ttl_seconds
        await self._give_back()

    async def _turn(self) -> float:
        try:
            async with asyncio.timeout(self._deadline_seconds()):
                await self._look()
                decision = rules.decide(self._state, _now(), self._policy)
                if decision.action is LeaseAction.WAIT:
                    return decision.next_check_seconds
                if _now() < self._stepping_down_until:
                    return self._policy.renew_seconds
                await self._write(decision.action, decision.reason)
                return self._policy.renew_seconds
        except (BusUnavailable, TimeoutError) as error:
            log.warning("lease not reached", error=str(error) or "no answer in time", leader=self.is_leader())
            return self._policy.renew_seconds / 2.0

    def _deadline_seconds(self) -> float:
        """A renewal that hangs must not outlive the right to act, or `on_change` would be late."""
        if not self.is_leader():
            return self._policy.ttl_seconds
        return max(0.01, rules.acts_until(self._state, self._policy) - _now())

    async def _look(self) -> None:
        entry = await (await self._opened()).get(KEY)
        if entry is None:
            self._lease = None
            self._state = rules.seen(self._state, None, False, _now())
            return
        try:
            self._lease = codec.from_json(Lease, entry.value)
        except codec.Invalid as error:
            log.error("lease cannot be read; it is taken when it is not renewed", error=str(error))
            self._lease = Lease(holder="unknown")
        held = self._state.held_revision
        if held not in (None, entry.revision) and self._incarnation and self._lease == self._present():
            # A write of ours that had no answer did arrive. When it began is not known any more, so the right to act
            # still counts from the last one that was answered; the next renewal follows at once.
            self._state = replace(self._state, seen_revision=entry.revision, held_revision=entry.revision)
            return
        self._state = rules.seen(self._state, entry.revision, self._lease.holder == "", _now())

    async def _write(self, action: LeaseAction, reason: str) -> None:
        bucket = await self._opened()
        self._renewals += 1
        lease = self._present()
        payload = codec.to_json(lease)
        began_at = _now()
        try:
            if action is LeaseAction.CREATE:
                revision = await bucket.create(KEY, payload)
            else:
                revision = await bucket.update(KEY, payload, self._known_revision())
        except WrongRevision:
            log.info("lease was written by another monitor", tried=action.value)
            self._state = rules.refused(self._state, _now())
            return
        self._state = rules.written(revision, began_at)
        self._lease = lease
        if action is not LeaseAction.RENEW:
            log.info("lease taken", reason=reason, revision=revision)

    async def _give_back(self) -> None:
        """Best effort: a lease that cannot be given back is over after its TTL anyway."""
        held = self._state.held_revision
        self._state = LeaseState(seen_revision=self._state.seen_revision, seen_at=_now())
        self._report()
        if held is None or self._bucket is None:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await self._bucket.update(KEY, codec.to_json(Lease(holder="")), held)
            log.info("lease given back")
        except (BusUnavailable, WrongRevision, TimeoutError) as error:
            log.info("lease not given back; it ends by itself", error=str(error) or "no answer in time")

    def _present(self) -> Lease:
        return Lease(self._monitor_id, self._incarnation, self._renewals, self._address)

    def _known_revision(self) -> int:
        revision = self._state.held_revision if self._state.held_revision is not None else self._state.seen_revision
        if revision is None:
            raise AssertionError("a lease that does not exist is created, not updated")
        return revision

    async def _opened(self) -> Bucket:
        if self._bucket is None:
            self._bucket = await self._bus.bucket(BUCKET)
        return self._bucket

    def _report(self) -> None:
        leader = self.is_leader()
        if leader == self._reported:
            return
        self._reported = leader
        log.info("leads now" if leader else "leads no more", monitor=self._monitor_id)
        for callback in self._callbacks:
            callback(leader)


def _now() -> float:
    return asyncio.get_running_loop().time()
