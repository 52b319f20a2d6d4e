"""Tells the other monitors that this one is there, and hears them; tells agents that their server is in touch.

Laws:
- Presences are core messages, at most once: nothing of them is stored, and a monitor that is cut off falls silent.
- What cannot be read is dropped and counted; it never disturbs anything.

Does not know: what follows from it (core/presence, leadership).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import Presence, Roster
from protocol import codec, subjects
from protocol.bus import Bus, BusUnavailable, Message, Subscription

log = structlog.get_logger("presence")

PRESENCE_MAX_BYTES = 16 * 1024
_LAST_WORD_SECONDS = 1.0


class Presences:
    """`present()` is what is told. `on_turn()` is called when another monitor began or ceased to lead. While
    `in_touch()`, agents are told so every `word_seconds()` (subjects.CENTRE)."""

    def __init__(
        self,
        bus: Bus,
        roster: Roster,
        present: Callable[[bool], Presence],
        policy: LeadershipPolicy,
        on_turn: Callable[[], None],
        in_touch: Callable[[], bool] = lambda: True,
        word_seconds: Callable[[], float] = lambda: 5.0,
    ) -> None:
        self._bus = bus
        self._roster = roster
        self._present = present
        self._policy = policy
        self._on_turn = on_turn
        self._in_touch = in_touch
        self._word_seconds = word_seconds
        self._word_at = float("-inf")
        self._subscription: Subscription | None = None
        self._due = asyncio.Event()
        self.unreadable = 0

    def announce(self) -> None:
        """Something changed that the others should know now."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled; says goodbye then."""
        self._subscription = await self._bus.subscribe(subjects.EVERY_MONITOR, self._heard)
        try:
            while True:
                self._due.clear()
                await self._tell(leaving=False)
                await self._tell_agents()
                try:
                    async with asyncio.timeout(self._policy.presence_seconds):
                        await self._due.wait()
                except TimeoutError:
                    pass
        finally:
            await self._say_goodbye()

    async def _tell(self, leaving: bool) -> None:
        presence = self._present(leaving)
        with contextlib.suppress(BusUnavailable):  # not being heard is what the others should see then
            await self._bus.publish(subjects.monitor(presence.monitor), codec.to_json(presence))

    async def _tell_agents(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._in_touch() and now - self._word_at >= self._word_seconds() - self._policy.presence_seconds / 2:
            self._word_at = now
            with contextlib.suppress(BusUnavailable):
                await self._bus.publish(subjects.CENTRE, b"")

    async def _say_goodbye(self) -> None:
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._tell(leaving=True)
                if self._subscription is not None:
                    await self._subscription.unsubscribe()
                await self._bus.flush(_LAST_WORD_SECONDS)
        except (BusUnavailable, TimeoutError) as error:
            log.info("the other monitors were not told that this one ends", error=str(error))

    def _heard(self, message: Message) -> None:
        try:
            if len(message.payload) > PRESENCE_MAX_BYTES:
                raise codec.Invalid(f"{len(message.payload)} bytes, more than {PRESENCE_MAX_BYTES}")
            presence = codec.from_json(Presence, message.payload)
            if message.subject != subjects.monitor(presence.monitor):
                raise codec.Invalid(f"it says that it is {presence.monitor!r}")
        except (codec.Invalid, UnicodeDecodeError) as error:
            self.unreadable += 1
            if self.unreadable == 1 or self.unreadable % 1000 == 0:
                log.warning("presence unreadable", subject=message.subject, error=str(error), so_far=self.unreadable)
            return
        if self._roster.heard(presence, asyncio.get_running_loop().time()):
            self._on_turn()
