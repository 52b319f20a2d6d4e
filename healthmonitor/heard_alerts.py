"""Alerts that agents and directors send of themselves (BOSH's `hm.agent.alert.<id>`, `hm.director.alert`).

Laws:
- The bus's server keeps each as soon as it has it (`protocol.bus.Inbox`), whether a monitor listens, leads, or was just
  killed; it is removed when the letter that tells of it is written down. What is heard on the subscription only says
  that it is worth looking.
- An alert that is sent again with the same id is the same.

Not promised: what never reached the server. BOSH's agents publish without waiting for an answer; one that publishes
with a request is told by the server that the alert is kept.

Does not know: who is told.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from healthmonitor.core.records import Incident
from protocol import alert as wire
from protocol import subjects
from protocol.alert import ALERT_MAX_BYTES, Alert
from protocol.bus import Bus, BusUnavailable, Inbox, InboxEntry
from protocol.heartbeat import Malformed
from protocol.ids import AgentId
from protocol.subjects import AgentMessage

log = structlog.get_logger("alerts")

INBOX = "alerts"
INBOX_MAX_BYTES = 64 * 1024 * 1024
"""Beyond it the oldest are dropped: while no monitor leads, nobody takes them out."""
AT_ONCE = 500
IDS_KEPT = 1000
REMOVALS_AT_ONCE = 32
_DIRECTOR = AgentId("director")

IncidentOf = Callable[[AgentId, Alert], Incident]


@dataclass(frozen=True, slots=True)
class _Id:
    agent: AgentId
    id: str


class HeardAlerts:
    """`incident_of`: what it is to people. Used by the monitor that leads."""

    def __init__(self, bus: Bus, incident_of: IncidentOf) -> None:
        self._bus = bus
        self._incident_of = incident_of
        self._inbox: Inbox | None = None
        self._read_to = 0
        self._in_hand: dict[int, _Id] = {}
        self._told: OrderedDict[_Id, None] = OrderedDict()

    @property
    def in_hand(self) -> int:
        return len(self._in_hand)

    async def open(self) -> None:
        """From the first time on, what is sent is kept."""
        subjects_ = (subjects.every_agent(AgentMessage.ALERT), subjects.DIRECTOR_ALERT)
        self._inbox = await self._bus.inbox(INBOX, subjects_, INBOX_MAX_BYTES, ALERT_MAX_BYTES)
        self.reset()

    def reset(self) -> None:
        """What was taken and is not done is taken again, by this monitor or another."""
        self._read_to = 0
        self._in_hand.clear()

    async def take(self) -> list[Incident]:
        """The next that nobody was told of, oldest first; they stay in the inbox until `done`."""
        taken: dict[str, Incident] = {}
        for entry in await self._opened().read(self._read_to, AT_ONCE - len(self._in_hand)):
            self._read_to = entry.sequence
            agent, alert = _agent_of(entry), _decoded(entry)
            if agent is None or alert is None or (alert.id and _Id(agent, alert.id) in self._told):
                await self._opened().remove(entry.sequence)
                continue
            self._in_hand[entry.sequence] = _Id(agent, alert.id)
            incident = self._incident_of(agent, alert)
            taken.setdefault(incident.key, incident)
        return list(taken.values())

    async def done(self) -> None:
        """All that was taken stands in letters now."""
        sequences = list(self._in_hand)
        for start in range(0, len(sequences), REMOVALS_AT_ONCE):
            part = sequences[start : start + REMOVALS_AT_ONCE]
            await asyncio.gather(*(self._opened().remove(sequence) for sequence in part))
            for sequence in part:
                self._remember(self._in_hand.pop(sequence))

    def _remember(self, each: _Id) -> None:
        if each.id:
            self._told[each] = None
            if len(self._told) > IDS_KEPT:
                self._told.popitem(last=False)

    def _opened(self) -> Inbox:
        if self._inbox is None:
            raise BusUnavailable("the inbox of alerts is not open yet")
        return self._inbox


def _agent_of(entry: InboxEntry) -> AgentId | None:
    return _DIRECTOR if entry.subject == subjects.DIRECTOR_ALERT else subjects.agent_of(entry.subject)


def _decoded(entry: InboxEntry) -> Alert | None:
    try:
        return wire.decode(entry.payload)
    except Malformed as error:
        log.warning("alert.malformed", subject=entry.subject, error=str(error))
        return None
