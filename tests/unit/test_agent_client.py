"""What becomes of a request to an agent whose asker goes away."""

from __future__ import annotations

import asyncio
import gc
from random import Random

import pytest

from healthmonitor.agent_client import AgentClient
from protocol.bus import BusUnavailable
from protocol.ids import AgentId, MonitorId
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.loop import SimulatedLoop


class LateRefusal(SimulatedBus):
    """A request that was given up still takes a second, and ends with the error that it was about to raise."""

    async def request(self, subject: str, payload: bytes, timeout_seconds: float) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(1.0)
        raise BusUnavailable("no reply")


@pytest.mark.parametrize("cancellations", [1, 2])
def test_whoever_gives_up_a_request_leaves_no_error_behind(cancellations: int) -> None:
    """Also when given up once more while the request still ends: its error is nobody's, and is not logged as one that
    nobody looked at (storms, seed 841938410)."""
    loop = SimulatedLoop()

    async def give_up() -> None:
        bus = LateRefusal(SimulatedServer(Random(0)), "hm", 1)
        client = AgentClient(bus, MonitorId("hm"), lambda: "id")
        asked = asyncio.create_task(client.call(AgentId("a"), None, "ping", timeout_seconds=60.0))
        for _ in range(cancellations):
            await asyncio.sleep(0.1)
            asked.cancel()
        await asyncio.wait({asked})
        assert asked.cancelled()
        await asyncio.sleep(2.0)

    loop.run(give_up())
    gc.collect()
    assert loop.failures == []
    loop.forget()
