"""Where notifications go. One channel: one way to reach people.

Law: a channel may be told the same twice (at least once) and must say when it could not deliver: `ChannelUnavailable`
is retried, `ChannelRefused` is not.

Does not know: which incidents there are, which are inhibited.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from healthmonitor.core.records import Incident


class Transition(Enum):
    OPENED = "opened"
    CHANGED = "changed"
    RESOLVED = "resolved"
    NOTED = "noted"  # happened once and has no end: an agent's alert


class ChannelUnavailable(Exception):
    """Not delivered, or nobody knows. Tried again with growing delay."""


class ChannelRefused(Exception):
    """Will not be delivered however often it is tried; the text says why and what to do."""


class Channel(Protocol):
    @property
    def name(self) -> str: ...

    async def notify(self, incident: Incident, transition: Transition) -> None: ...
