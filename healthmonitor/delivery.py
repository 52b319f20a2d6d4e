"""One channel's line: its letters in order, tried until the receiver has them.

Laws:
- Lines know nothing of each other: a channel that is slow or away delays no other.
- A letter is marked done only after the receiver took it, and the next one waits for that mark: a crash doubles at most
  one notification of a channel. What is only in memory (the bus is gone) goes before, and waits for no mark.
- A receiver that says when to come again is not asked before. After failures in a row the circuit is open: the channel
  counts as failing, and is tried again with growing delay.
- Bounded: beyond `backlog_max` what waits is counted in one digest, which is itself a letter.

Does not know: routes, threads, what others are told.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from healthmonitor.channels.channel import Channel, ChannelRefused, ChannelUnavailable, Receipt
from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.notification import Item, Notification, Transition
from healthmonitor.core.notifying.wording import kind_in_words
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.outbox import Letter, Outbox
from protocol.bus import BusUnavailable

log = structlog.get_logger("channel")

ITEMS_MAX = 10_000
"""Incidents in the letters that wait in one line; beyond it they are digested as if they were too many letters."""
IN_MEMORY_MAX = 100
DELIVERED_KEPT = 1000
MARK_RETRY_SECONDS = 0.5
MARK_AT_END_SECONDS = 2.0
LONGEST_RETRY_AFTER_SECONDS = 86400.0
MINUTE = 60.0

Tell = Callable[[str, str, str, dict[str, str]], None]
"""(kind, subject, text, fields) of an event for the timeline."""


@dataclass(slots=True)
class LineState:
    """What people are shown of a channel."""

    delivered: int = 0
    failures: int = 0  # in a row
    failing_since: float | None = None  # Unix seconds
    error: str = ""
    next_try_at: float | None = None  # Unix seconds
    refused: int = 0
    digested: int = 0
    last_said: str = ""
    last_delivered_at: float | None = None
    circuit_open: bool = False
    unreached: bool = False  # nothing was tried yet; a look at its server says that it is not there


class Line:
    def __init__(
        self,
        channel: Channel,
        outbox: Outbox,
        policy: Callable[[], AlertPolicy],
        is_leader: Callable[[], bool],
        unix_time: Callable[[], float],
        tell: Tell,
        changed: Callable[[], None],
    ) -> None:
        """`changed`: called when the channel begins or ceases to fail."""
        self.channel = channel
        self.name = channel.name
        self.state = LineState()
        self._outbox = outbox
        self._policy = policy
        self._is_leader = is_leader
        self._unix_time = unix_time
        self._tell = tell
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Letter] = deque()
        self._in_memory: deque[Letter] = deque()
        self._items_waiting = 0
        self._unmarked: deque[Letter] = deque()
        self._delivered: dict[str, None] = {}
        self._woken = asyncio.Event()
        self._given_at: deque[float] = deque()  # loop's clock, of the last minute
        self._trying: Letter | None = None

    def put(self, letter: Letter) -> None:
        if letter.sequence:
            self._waiting.append(letter)
            self._items_waiting += len(letter.notification.items)
        elif len(self._in_memory) < IN_MEMORY_MAX:
            self._in_memory.append(letter)
        self._woken.set()

    def clear(self) -> None:
        """This monitor leads no more: what waits is in the outbox, for who does."""
        self._waiting.clear()
        self._items_waiting = 0
        self._woken.set()

    def waiting(self) -> int:
        return len(self._waiting) + len(self._in_memory) + len(self._unmarked) + (self._trying is not None)

    def holds(self, thread: str) -> bool:
        """Whether a letter of that thread waits that is in memory only."""
        return any(letter.notification.thread == thread for letter in self._in_memory)

    def failing(self) -> str:
        """Why the channel counts as failing; "" when it does not."""
        return self.state.error if self.state.circuit_open else ""

    def unreachable(self, why: str) -> None:
        """A look before anything is sent: people should know before they need it."""
        state = self.state
        if state.failures or state.circuit_open:
            return
        state.unreached, state.error = True, harmless.line(why)
        state.failing_since = self._unix_time()
        self._open_circuit()

    async def look_again(self) -> None:
        """Whether the server is there now; while nothing is delivered, nothing else would tell."""
        if not self.state.unreached:
            return
        try:
            async with asyncio.timeout(self._policy().try_seconds):
                await self.channel.reach()
        except (ChannelUnavailable, TimeoutError) as error:
            log.info("channel.still_unreachable", channel=self.name, error=harmless.line(str(error)))
            return
        if self.state.unreached:
            self._works_again()

    async def test(self, notification: Notification) -> Receipt:
        """Past the line. Raises what the channel raises."""
        async with asyncio.timeout(self._policy().try_seconds):
            receipt = await self.channel.deliver(notification)
        self._went_well(receipt)
        return receipt

    async def run(self) -> None:
        try:
            await self._deliver_for_ever()
        except asyncio.CancelledError:
            await self._mark_at_end()
            raise

    async def _deliver_for_ever(self) -> None:
        while True:
            await self._mark()
            letter = self._next()
            if letter is None:
                await self._until_woken(MARK_RETRY_SECONDS if self._unmarked else None)
                continue
            if letter.sequence and self._is_crowded():
                await self._digest()
                continue
            if (seconds := self._rate_seconds()) > 0:
                await self._until_woken(seconds)
                continue
            self._trying = letter
            delay = await self._try(letter)
            self._trying = None
            if delay is None:
                self._take(letter)
                if letter.sequence:
                    self._unmarked.append(letter)
            else:
                await self._pause(delay, letter)

    def _next(self) -> Letter | None:
        if self._in_memory:
            return self._in_memory[0]
        if not self._is_leader() or self._unmarked:
            return None
        while self._waiting and self._waiting[0].notification.id in self._delivered:
            again = self._waiting[0]  # read from the outbox anew after it was delivered
            self._take(again)
            self._unmarked.append(again)
            return None
        return self._waiting[0] if self._waiting else None

    def _take(self, letter: Letter) -> None:
        """Out of the line, unless the line was cleared meanwhile."""
        line = self._waiting if letter.sequence else self._in_memory
        if line and line[0] is letter:
            line.popleft()
            if letter.sequence:
                self._items_waiting -= len(letter.notification.items)

    async def _try(self, letter: Letter) -> float | None:
        """None: done with it, well or not. Otherwise after how many seconds to try again."""
        policy, now = self._policy(), self._unix_time()
        self._given_at.append(self._loop.time())
        try:
            async with asyncio.timeout(policy.try_seconds):
                receipt = await self.channel.deliver(letter.notification)
        except ChannelUnavailable as error:
            return self._failed(letter, str(error), min(error.retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))
        except TimeoutError:
            return self._failed(letter, f"no answer within {policy.try_seconds:g} s", 0.0)
        except ChannelRefused as error:
            self._refused(letter, str(error))
            return None
        except Exception as error:
            # The edge of one delivery: a defect in one channel must neither end the others nor stop its line for ever
            log.exception("channel.defect", channel=self.name, notification=letter.notification.id)
            self._refused(letter, f"a defect of the channel: {type(error).__name__}")
            return None
        self._delivered[letter.notification.id] = None
        if len(self._delivered) > DELIVERED_KEPT:
            del self._delivered[next(iter(self._delivered))]
        self._went_well(receipt)
        log.info(
            "alert.delivered",
            channel=self.name,
            notification=letter.notification.id,
            transition=letter.notification.transition.value,
            incidents=len(letter.notification.items) + letter.notification.left_out,
            seconds=round(max(0.0, self._unix_time() - now), 3),
            said=harmless.line(receipt.said, 200),
        )
        return None

    def _went_well(self, receipt: Receipt) -> None:
        state = self.state
        state.delivered += 1
        state.last_said = harmless.line(receipt.said)
        state.last_delivered_at = self._unix_time()
        self._works_again()

    def _works_again(self) -> None:
        state = self.state
        was_open, state.circuit_open, state.unreached = state.circuit_open, False, False
        state.failures, state.failing_since, state.error, state.next_try_at = 0, None, "", None
        if was_open:
            log.info("channel.works_again", channel=self.name)
            self._tell("channel.works_again", self.name, f"channel {self.name} delivers again", {})
            self._changed()

    def _failed(self, letter: Letter, error: str, at_least_seconds: float) -> float:
        policy, state = self._policy(), self.state
        state.unreached = False  # from here on the deliveries tell
        state.failures += 1
        state.error = harmless.line(error)
        if state.failing_since is None:
            state.failing_since = self._unix_time()
        doubled = policy.retry_first_seconds * 2.0 ** min(state.failures - 1, 40)
        delay = max(min(doubled, policy.retry_longest_seconds), at_least_seconds)
        state.next_try_at = self._unix_time() + delay
        log.warning(
            "channel.unavailable",
            channel=self.name,
            notification=letter.notification.id,
            failures=state.failures,
            error=state.error,
            retry_seconds=round(delay, 3),
        )
        if state.failures >= policy.circuit_after:
            self._open_circuit()
        return delay

    def _refused(self, letter: Letter, error: str) -> None:
        """It will not be delivered however often it is tried: people must hear that, on the other channels."""
        state = self.state
        state.refused += 1
        state.error = harmless.line(error)
        if state.failing_since is None:
            state.failing_since = self._unix_time()
        text = f"channel {self.name} refused a notification: {state.error}"
        log.error("channel.refused", channel=self.name, notification=letter.notification.id, error=state.error)
        fields = {"notification": letter.notification.id, "subject": letter.notification.subject}
        self._tell("channel.refused", self.name, text, fields)
        self._open_circuit()

    def _open_circuit(self) -> None:
        if self.state.circuit_open:
            return
        self.state.circuit_open = True
        log.error("channel.failing", channel=self.name, error=self.state.error)
        self._tell("channel.failing", self.name, f"channel {self.name} cannot deliver: {self.state.error}", {})
        self._changed()

    async def _mark(self) -> None:
        while self._unmarked and self._is_leader():
            try:
                await self._outbox.done(self._unmarked[0], self.name)
            except BusUnavailable as error:
                log.warning("outbox.not_marked", channel=self.name, error=str(error), next="retrying")
                return
            self._unmarked.popleft()
        if not self._is_leader():
            self._unmarked.clear()  # who leads now sends them once more, or this monitor, which remembers them

    async def _mark_at_end(self) -> None:
        """Asked to stop between a delivery and its mark: the mark is written all the same, or the next monitor would
        tell it again. Only a kill may double a notification."""
        try:
            async with asyncio.timeout(MARK_AT_END_SECONDS):
                await self._mark()
        except TimeoutError:
            log.warning("outbox.not_marked", channel=self.name, error="no answer in time", next="told once more")

    # More than can be sent.

    def _is_crowded(self) -> bool:
        policy = self._policy()
        if len(self._waiting) > policy.backlog_max or self._items_waiting > ITEMS_MAX + policy.rows_max:
            return len(self._waiting) > 1
        oldest = self._waiting[0].notification if self._waiting else None
        return (
            oldest is not None
            and oldest.transition is not Transition.DIGEST
            and self._unix_time() - oldest.at > policy.give_up_seconds
        )

    async def _digest(self) -> None:
        """All that waits becomes one letter, but for the end of what the receiver knows to be open."""
        waiting = list(self._waiting)
        begun_here = {each.notification.thread for each in waiting if each.notification.transition in _BEGINNINGS}
        absorbed = [
            each
            for each in waiting
            if each.notification.transition is not Transition.RESOLVED or each.notification.thread in begun_here
        ] or waiting
        notification = digest([each.notification for each in absorbed], self._unix_time(), self._policy().rows_max)
        try:
            letter = await self._outbox.put(notification, (self.name,), None)
            for each in absorbed:
                await self._outbox.done(each, self.name)
        except BusUnavailable as error:
            log.warning("outbox.not_digested", channel=self.name, error=str(error), next="retrying")
            await asyncio.sleep(MARK_RETRY_SECONDS)
            return
        gone = {id(each) for each in absorbed}
        kept = [each for each in self._waiting if id(each) not in gone]
        self._waiting = deque([letter, *kept])
        self._items_waiting = sum(len(each.notification.items) for each in self._waiting)
        self.state.digested += len(absorbed)
        log.warning("channel.digested", channel=self.name, notifications=len(absorbed))

    # Time.

    def _rate_seconds(self) -> float:
        """How long until one more is allowed in this minute."""
        now = self._loop.time()
        while self._given_at and self._given_at[0] <= now - MINUTE:
            self._given_at.popleft()
        if len(self._given_at) < self._policy().per_minute:
            return 0.0
        return self._given_at[0] + MINUTE - now

    async def _pause(self, seconds: float, tried: Letter) -> None:
        """Before the next try; a line that becomes too long meanwhile is digested at once, and what is only in memory
        does not wait for what is not."""
        until = self._loop.time() + seconds
        while (left := until - self._loop.time()) > 0:
            if self._in_memory and tried.sequence:
                return
            if self._is_leader() and self._waiting and self._is_crowded() and not self._unmarked:
                await self._digest()
                continue
            await self._until_woken(left)

    async def _until_woken(self, seconds: float | None) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass


def digest(notifications: list[Notification], at: float, rows_max: int) -> Notification:
    """One notification that says what it stands for."""
    transitions: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    rows: dict[str, Item] = {}
    incidents = 0
    for each in notifications:
        if each.transition is not Transition.DIGEST:
            transitions[each.transition.value] += 1
        incidents += len(each.items) + each.left_out
        for item in each.items:
            kinds[item.incident.kind] += 1
            rows[item.incident.key] = item
    worst_first = sorted(rows.values(), key=_how_bad)
    listed = tuple(worst_first[:rows_max])
    what = ", ".join(f"{count} {name}" for name, count in transitions.most_common()) or "earlier digests"
    of = ", ".join(f"{kind_in_words(kind)} ({count})" for kind, count in kinds.most_common(4))
    first, last = notifications[0], notifications[-1]
    return Notification(
        id=f"digest-{first.id}-{last.id}",
        thread=f"digest-{first.id}",
        transition=Transition.DIGEST,
        severity=min((each.severity for each in notifications), key=lambda severity: severity.value),
        at=at,
        subject=harmless.line(f"[digest] instead of {len(notifications)} notifications ({what}): {of}", 180),
        items=listed,
        left_out=max(0, incidents - len(listed)),
        site=first.site,
        link=first.link,
    )


def _how_bad(item: Item) -> tuple[bool, int]:
    return item.incident.resolved_at is not None, item.incident.severity.value


_BEGINNINGS = frozenset({Transition.OPENED, Transition.ESCALATED})
