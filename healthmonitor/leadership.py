"""The lease in the bus: this monitor's part in deciding who acts. The rules are in `core/leadership.py`.

Laws:
- `is_leader()` is true only while no other monitor can have begun to act, whatever the bus does.
- A monitor never takes a lease under which records of a newer format were written: it says why, and waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from healthmonitor.core import leadership as rules
from healthmonitor.core.leadership import LeaseAction, LeaseState
from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import RECORDS_FORMAT
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
    since: float = 0.0  # Unix seconds; when it was taken
    why: str = ""  # a sentence for people: why the holder took it, or why the last holder gave it back
    former: str = ""  # who gave it back
    records_format: int = 1  # the newest that any holder wrote
    version: str = ""  # of the holder's program


@dataclass(frozen=True, slots=True)
class Manners:
    """What else matters beside the lease. `someone_is_ready(format)`: another monitor could lead at once. `is_ready`:
    this one could."""

    someone_is_ready: Callable[[int], bool] = lambda records_format: True  # as far as is known
    is_ready: Callable[[], bool] = lambda: True


class Leadership:
    def __init__(
        self,
        bus: Bus,
        monitor_id: MonitorId,
        policy: LeadershipPolicy,
        incarnation: str = "",
        address: str = "",
        version: str = "",
        unix_time: Callable[[], float] = lambda: 0.0,
        manners: Manners | None = None,
        records_format: int = RECORDS_FORMAT,
    ) -> None:
        self._bus = bus
        self._monitor_id = monitor_id
        self._policy = policy
        self._incarnation = incarnation
        self._address = address
        self._version = version
        self._unix_time = unix_time
        self._manners = manners or Manners()
        self._format = records_format
        self._state = LeaseState()
        self._renewals = 0
        self._since = 0.0
        self._why = ""
        self._lease: Lease | None = None
        self._reported = False
        self._callbacks: list[Callable[[bool], None]] = []
        self._given_back: list[Callable[[], None]] = []
        self._bucket: Bucket | None = None
        self._aside_until = 0.0
        self._woken = asyncio.Event()
        self._turning = asyncio.Lock()
        self._reached_at: float | None = None  # when the lease was read or written last
        self._proven_at: float | None = None  # when it was last seen that the store takes writes
        self._newest_revision: int | None = None
        self._moved_at = float("-inf")

    def is_leader(self) -> bool:
        return rules.may_act(self._state, _now(), self._policy)

    def holder(self) -> Lease | None:
        """What the lease said when it was last read or written. None: nothing known."""
        return self._lease

    def refusal(self) -> str:
        """Why this monitor would not lead now; "" when it would."""
        newest = self._lease.records_format if self._lease is not None else 0
        if newest > self._format:
            version = self._lease.version if self._lease is not None else ""
            return (
                f"records of format {newest} were written by a newer monitor ({version or 'version not known'});"
                f" this one knows format {self._format}: upgrade it"
            )
        left = self._aside_until - _now()
        return f"stepped down, for another {left:.0f} s" if left > 0 else ""

    def out_of_touch_seconds(self) -> float | None:
        """For how long the lease could not be read or written; None before the first time."""
        return None if self._reached_at is None else _now() - self._reached_at

    def in_touch(self) -> bool:
        """Whether the lease was written within the last TTL, by this monitor or another: this one is where the bus's
        store is. That it could be read proves nothing: a server that was cut off goes on answering what it knew."""
        return self._proven_at is not None and _now() - self._proven_at < self._policy.ttl_seconds

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """`callback(is_leader)` after each change, from the loop."""
        self._callbacks.append(callback)

    def on_given_back(self, callback: Callable[[], None]) -> None:
        """`callback()` once the lease is free for others."""
        self._given_back.append(callback)

    def wake(self) -> None:
        """Something was heard that makes it worth looking at the lease now."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; then the lease is given back, so that the next monitor need not wait for it to be over."""
        try:
            while True:
                self._woken.clear()
                async with self._turning:
                    pause = await self._turn()
                self._report()
                if self.is_leader():
                    # Look again when the right to act ends, even if the renewal hangs in the bus.
                    pause = min(pause, max(0.0, rules.acts_until(self._state, self._policy) - _now()))
                await self._pause(pause)
        finally:
            await self._give_back(f"{self._monitor_id} ended")

    async def step_down(self, seconds: float | None = None, why: str = "") -> bool:
        """Gives the lease back, and leaves it to others for so long (by default one TTL) as one of them could take it.
        False: it was not ours, or could not be given back and ends by itself."""
        async with self._turning:
            self._aside_until = _now() + (self._policy.ttl_seconds if seconds is None else seconds)
            return await self._give_back(why or f"{self._monitor_id} stepped down")

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _turn(self) -> float:
        try:
            async with asyncio.timeout(self._deadline_seconds()):
                await self._look()
                decision = rules.decide(self._state, _now(), self._policy)
                if decision.action is LeaseAction.WAIT:
                    return decision.next_check_seconds
                if self._leaves_it(decision.action):
                    return self._policy.renew_seconds
                await self._write(decision.action, self._reason(decision.action, decision.reason))
                return self._policy.renew_seconds
        except (BusUnavailable, TimeoutError) as error:
            log.warning("lease not reached", error=str(error) or "no answer in time", leader=self.is_leader())
            await self._perhaps_move()
            return self._policy.renew_seconds / 2.0

    def _leaves_it(self, action: LeaseAction) -> bool:
        """Whether a lease that could be taken is left to others."""
        if action is LeaseAction.RENEW:
            return False
        newest = self._lease.records_format if self._lease is not None else 0
        if newest > self._format:
            log.error("does not lead", reason=self.refusal())
            return True
        self._state = rules.free(self._state, _now())
        wishes_to = _now() < self._aside_until or not self._manners.is_ready()
        ready = self._manners.someone_is_ready(newest)
        return rules.stands_aside(self._state, _now(), wishes_to, ready, self._policy)

    def _reason(self, action: LeaseAction, reason: str) -> str:
        if action is LeaseAction.TAKE and self._lease is not None:
            if self._lease.holder == "" and self._lease.why:
                return self._lease.why
            if self._lease.holder:
                return f"{self._lease.holder} led and fell silent: {reason}"
        return reason

    def _deadline_seconds(self) -> float:
        """A renewal that hangs must not outlive the right to act, or `on_change` would be late."""
        if not self.is_leader():
            return self._policy.ttl_seconds
        return max(0.01, rules.acts_until(self._state, self._policy) - _now())

    async def _perhaps_move(self) -> None:
        """A server that was cut off from the rest of the bus keeps its clients, and stores nothing for them."""
        now = _now()
        if self._reached_at is None or not self._bus.connected:
            return
        proven_at = self._reached_at if self._proven_at is None else self._proven_at
        unreached_for = now - max(self._reached_at, self._moved_at)
        unproven_for = now - max(proven_at, self._moved_at)
        patience_seconds = self._policy.move_after_seconds
        # Where the store only has to elect, the lease is written again within a TTL of that.
        if unreached_for >= patience_seconds or unproven_for >= patience_seconds + self._policy.ttl_seconds:
            self._moved_at = now
            await self._bus.move("the lease cannot be reached through this server")

    async def _look(self) -> None:
        entry = await (await self._opened()).get(KEY)
        self._reached_at = _now()
        if entry is not None:
            if self._newest_revision is not None and entry.revision > self._newest_revision:
                self._proven_at = self._reached_at  # somebody wrote it since
            self._newest_revision = max(entry.revision, self._newest_revision or 0)
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
        if action is not LeaseAction.RENEW:
            self._since, self._why = self._unix_time(), reason
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
        self._proven_at, self._newest_revision = began_at, revision
        self._lease = lease
        if action is not LeaseAction.RENEW:
            log.info("lease taken", reason=reason, revision=revision)

    async def _give_back(self, why: str) -> bool:
        """Best effort: a lease that cannot be given back is over after its TTL anyway."""
        held = self._state.held_revision
        self._state = LeaseState(seen_revision=self._state.seen_revision, seen_at=_now())
        self._report()
        if held is None or self._bucket is None:
            return False
        free = Lease(holder="", why=why, former=self._monitor_id, records_format=self._format, version=self._version)
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                try:
                    await self._bucket.update(KEY, codec.to_json(free), held)
                except WrongRevision:
                    # Perhaps our own last renewal, whose answer did not come any more.
                    entry = await self._bucket.get(KEY)
                    if entry is None or entry.value != codec.to_json(self._present()):
                        raise
                    await self._bucket.update(KEY, codec.to_json(free), entry.revision)
        except (BusUnavailable, WrongRevision, TimeoutError) as error:
            log.info("lease not given back; it ends by itself", error=str(error) or "no answer in time")
            return False
        self._lease = free
        log.info("lease given back", reason=why)
        for callback in self._given_back:
            callback()
        return True

    def _present(self) -> Lease:
        return Lease(
            self._monitor_id,
            self._incarnation,
            self._renewals,
            self._address,
            self._since,
            self._why,
            records_format=self._format,
            version=self._version,
        )

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
