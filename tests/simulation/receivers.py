"""Who is told: receivers of alerts that keep what they were given, and may be away, slow, or take it without saying so.

Law: what was taken is kept, in order, whatever became of the monitor that sent it.

Does not know: what should have been told (`checkers.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from healthmonitor.channels.channel import ChannelUnavailable, Notification, Receipt
from tests.simulation.story import Trace, Voice


class Mood(Enum):
    WELL = "well"
    AWAY = "away"  # takes nothing
    DOUBTFUL = "doubtful"  # takes it and does not say so


@dataclass(slots=True)
class Receiver:
    """One for all monitors, as a mail server is."""

    name: str
    random: Random
    trace: Trace
    mood: Mood = Mood.WELL
    seconds: tuple[float, float] = (0.02, 0.5)
    taken: list[Notification] = field(default_factory=list)

    def take(self, notification: Notification) -> None:
        self.taken.append(notification)
        keys = ", ".join(item.incident.key for item in notification.items[:5])
        self.trace.tell(Voice.TOLD, self.name, f"{notification.transition.value}: {keys} (#{notification.id[-6:]})")


class ReceiverChannel:
    """`healthmonitor.channels.channel.Channel` of one monitor to a receiver."""

    def __init__(self, receiver: Receiver) -> None:
        self.name = receiver.name
        self._receiver = receiver

    async def deliver(self, notification: Notification) -> Receipt:
        receiver, loop = self._receiver, asyncio.get_running_loop()
        mood = receiver.mood
        before = receiver.random.uniform(*receiver.seconds)
        if mood is not Mood.AWAY:
            # In the world's context: what was sent arrives, whether or not the sender lives to hear so.
            loop.call_later(before, receiver.take, notification, context=contextvars.Context())
        await asyncio.sleep(before + receiver.random.uniform(*receiver.seconds))
        if mood is not Mood.WELL:
            raise ChannelUnavailable(f"{receiver.name} is {mood.value}")
        return Receipt("250 taken")

    async def reach(self) -> None:
        if self._receiver.mood is Mood.AWAY:
            raise ChannelUnavailable(f"{self._receiver.name} is {self._receiver.mood.value}")

    async def close(self) -> None:
        """Nothing to close."""
