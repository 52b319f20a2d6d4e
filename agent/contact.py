"""Whether the centre can be reached: a round trip through the bus, again and again; and the centre's word, without
which another of the bus's servers is tried.

Law: nobody waits for this; the answer is whatever the last round trips said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from agent.core import isolation
from agent.core.isolation import Centre, Contact
from protocol import subjects
from protocol.bus import Bus, BusError, BusUnavailable, Message
from protocol.spec import OnIsolation

log = structlog.get_logger(__name__)

ROUND_TRIPS_PER_LEASE = 5


class CentreContact:
    def __init__(
        self,
        bus: Bus,
        lease_seconds: Callable[[], float],
        on_isolation: Callable[[], OnIsolation],
        stop_containers: Callable[[bool], None],
    ) -> None:
        """`stop_containers(True)` when isolated and the group wants that; `(False)` when the centre is back."""
        self._bus = bus
        self._lease_seconds = lease_seconds
        self._on_isolation = on_isolation
        self._stop_containers = stop_containers
        self._stopping = False
        self.isolated = False
        self._wake = asyncio.Event()
        self._centre = Centre()
        bus.on_connection_change(lambda _: self._wake.set())

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        contact = Contact(since=loop.time())
        with contextlib.suppress(BusUnavailable):  # it is heard once there is a connection
            await self._bus.subscribe(subjects.CENTRE, self._heard_centre)
        while True:
            self._wake.clear()
            step_seconds = self._lease_seconds() / ROUND_TRIPS_PER_LEASE
            contact = await self._round_trip(contact, step_seconds)
            decision = isolation.decide(contact, loop.time(), self._lease_seconds(), self._on_isolation())
            self._tell(decision)
            due_at = min(decision.next_check, await self._perhaps_move(loop.time()))
            delay = max(0.01, min(step_seconds, due_at - loop.time()))
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _round_trip(self, contact: Contact, timeout_seconds: float) -> Contact:
        if not self._bus.connected:
            return contact
        began_at = asyncio.get_running_loop().time()
        try:
            await self._bus.flush(timeout_seconds)
        except BusError as error:
            log.debug("contact.no_round_trip", error=str(error))
            return contact
        return isolation.proven(contact, began_at)

    def _heard_centre(self, message: Message) -> None:
        self._centre = isolation.word_heard(asyncio.get_running_loop().time())

    async def _perhaps_move(self, now: float) -> float:
        """When to look again, loop seconds."""
        at = isolation.move_at(self._centre, self._lease_seconds())
        if at is None or not self._bus.connected:
            return float("inf")
        if now < at:
            return at
        self._centre = isolation.moved(self._centre, now)
        await self._bus.move("the centre is not heard through this server")
        return now

    def _tell(self, decision: isolation.Decision) -> None:
        if decision.isolated != self.isolated:
            log.warning(
                "contact.changed",
                isolated=decision.isolated,
                reason=decision.reason.value,
                containers="stopped" if decision.stop_containers else "kept",
            )
        self.isolated = decision.isolated
        if decision.stop_containers != self._stopping:
            self._stopping = decision.stop_containers
            self._stop_containers(decision.stop_containers)
