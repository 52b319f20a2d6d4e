"""What the bus says, told to the fleet: heartbeats, shutdowns, alerts, disconnects, and the monitor's own canary.

Laws:
- The heartbeat's path is one synchronous call for a message: no task, no await, no log line.
- The agent's id comes from the subject.
- The canary takes the same way as every heartbeat: the same subscription, the same callback.

Does not know: verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from healthmonitor.core.fleet import Fleet
from protocol import heartbeat as wire
from protocol import subjects
from protocol.bus import Bus, BusUnavailable, Message, Subscription
from protocol.heartbeat import EngineState, Extension, Heartbeat, Malformed
from protocol.ids import AgentId, MonitorId, is_token
from protocol.subjects import AgentMessage

log = structlog.get_logger("ears")

_HEARTBEAT_PREFIX = subjects.to_monitor(AgentMessage.HEARTBEAT, AgentId(""))


class SystemEvents(Protocol):
    """What the bus's server says of other clients."""

    async def on_disconnect(self, callback: Callable[[str], None]) -> Subscription:
        """`callback(name)`: the connection of the client of that name ended. An agent's name is its id."""
        ...


class Ears:
    """`wake()` is called when something was heard that is worth a turn; `on_alert()` for each
    alert, which lies in the inbox (`heard_alerts.py`)."""

    def __init__(
        self,
        bus: Bus,
        fleet: Fleet,
        monitor_id: MonitorId,
        incarnation: str,
        wake: Callable[[], None],
        on_alert: Callable[[], None],
        system_events: SystemEvents | None = None,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._canary = subjects.canary(monitor_id)
        self._incarnation = incarnation
        self._wake = wake
        self._on_alert = on_alert
        self._system_events = system_events
        self._subscriptions: list[Subscription] = []
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self.canaries_heard = 0
        self.canary_seconds = 0.0  # how long the last one was on its way, our own backlog included

    async def open(self) -> None:
        self._bus.on_connection_change(self._connection_changed)
        self._fleet.own.bus_changed(self._bus.connected, self._loop.time())
        for subject, callback in (
            (subjects.every_agent(AgentMessage.HEARTBEAT), self._heartbeat),
            (subjects.every_agent(AgentMessage.ALERT), self._alert),
            (subjects.every_agent(AgentMessage.SHUTDOWN), self._shutdown),
            (subjects.DIRECTOR_ALERT, self._alert),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, callback))
        if self._system_events is not None:
            self._subscriptions.append(await self._system_events.on_disconnect(self._disconnected))

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        self._subscriptions.clear()

    async def sing(self, interval_seconds: Callable[[], float]) -> None:
        """Sends the canary for ever. What cannot be sent is not: its absence is the message."""
        sequence = 0
        while True:
            sequence += 1
            extension = Extension(
                sequence=sequence,
                boot_id=self._incarnation,
                sent_at_seconds=self._loop.time(),
                engine=EngineState.UP,
            )
            payload = wire.encode(Heartbeat(job_state="running", resurgam=extension))
            try:
                await self._bus.publish(subjects.to_monitor(AgentMessage.HEARTBEAT, self._canary), payload)
            except BusUnavailable as error:
                log.debug("canary.not_sent", error=str(error))
            await asyncio.sleep(interval_seconds())

    def _heartbeat(self, message: Message) -> None:
        agent = AgentId(message.subject[len(_HEARTBEAT_PREFIX) :])
        try:
            notable = self._fleet.hear_known(agent, message.payload, self._now())
            if notable is None:
                notable = self._heard_of_nobody(agent, message.payload)
        except Malformed:
            return  # counted by the fleet; a line for each would let one agent fill the log
        if notable:
            self._wake()

    def _heard_of_nobody(self, agent: AgentId, payload: bytes) -> bool:
        if agent.startswith(subjects.MONITOR_CANARY_AGENT):
            self._canary_heard(agent, payload)
            return False
        if not is_token(agent):
            self._fleet.counters.malformed += 1
            return False
        return self._fleet.hear(agent, payload, self._now())

    def _canary_heard(self, agent: AgentId, payload: bytes) -> None:
        if agent != self._canary:
            return  # another monitor's
        try:
            extension = wire.glance(payload).resurgam
        except Malformed:
            return
        if extension is not None and extension.boot_id == self._incarnation:
            self.canaries_heard += 1
            self.canary_seconds = self._now() - extension.sent_at_seconds
            self._fleet.own.canary_heard(extension.sent_at_seconds)

    def _shutdown(self, message: Message) -> None:
        agent = subjects.agent_of(message.subject)
        if agent is not None:
            log.info("agent.shutdown", agent=agent)
            self._fleet.shut_down(agent, self._loop.time())
            self._wake()

    def _alert(self, message: Message) -> None:
        self._on_alert()  # the bus's server keeps it: it is read from there

    def _disconnected(self, client_name: str) -> None:
        agent = AgentId(client_name)
        if self._fleet.knows(agent):
            log.info("agent.disconnected", agent=agent)
            self._fleet.disconnected(agent, self._loop.time())
            self._wake()

    def _connection_changed(self, connected: bool) -> None:
        self._fleet.own.bus_changed(connected, self._loop.time())
        self._wake()
