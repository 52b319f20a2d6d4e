"""Where notifications go. One channel: one way to reach people.

Laws:
- A notification is delivered when the receiver has taken it, and only then does `deliver` return. It may be delivered
  twice (at least once): `id` is the same on every try, and receivers that can tell duplicates are given it.
- `ChannelUnavailable` is tried again, `ChannelRefused` is not: the text says why and what a person can do.
- Text that comes from outside (titles, log lines) is data: a channel shows it harmlessly, whatever is in it.

Does not know: routes, silences, the outbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from healthmonitor.core.notifying.notification import Item, Notification, Transition

__all__ = [
    "Channel",
    "ChannelRefused",
    "ChannelUnavailable",
    "Item",
    "NotTrusted",
    "Notification",
    "Receipt",
    "Transition",
]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the receiver said when it took the notification."""

    said: str


class ChannelUnavailable(Exception):
    """Not delivered, or nobody knows. Tried again with growing delay, not before `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ChannelRefused(Exception):
    """Will not be delivered however often it is tried; the text says why and what to do."""


class NotTrusted(ChannelUnavailable):
    """The server is there, and its certificate is not trusted. `option`: what names the server in the configuration."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


class Channel(Protocol):
    @property
    def name(self) -> str: ...

    async def deliver(self, notification: Notification) -> Receipt: ...

    async def reach(self) -> None:
        """Returns when its server is there and trusted, or when there is none to ask; nothing is sent. Raises
        ChannelUnavailable."""
        ...

    async def close(self) -> None: ...
