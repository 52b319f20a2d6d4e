"""How many questions are put at once and in a second, on a clock that nobody waits for."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from healthmonitor.asker import AgentClient, Asker, PingAnswer
from healthmonitor.core.fleet import JUDGED_MAX, Fleet
from healthmonitor.core.policy import LivenessPolicy
from protocol.bus import Bus, NoResponders
from protocol.ids import AgentId, Generation, InstanceId
from tests.simulation.loop import SimulatedLoop

POLICY = LivenessPolicy(asks_max_in_flight=8, asks_per_second=40.0)


class Nobody:
    """Agents of a bus on which nobody listens: it says so after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked_at: list[float] = []
        self.in_flight = self.most_in_flight = 0

    async def ping(self, agent: AgentId, generation: Generation | None, timeout_seconds: float) -> PingAnswer:
        self.asked_at.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self.seconds)
        self.in_flight -= 1
        raise NoResponders(agent)


class Connected:
    connected = True
    connection_epoch = 1


async def ask(agents: Nobody, count: int, seconds: float, come_back: int = 0) -> float:
    """All fall silent at once; the last `come_back` are heard before anybody was asked. Lets the monitor turn four
    times a second; returns when it began."""
    loop = asyncio.get_running_loop()
    fleet = Fleet(POLICY, loop.time())
    everybody = [AgentId(f"agent-{n}") for n in range(count)]
    fleet.expect({agent: InstanceId(f"shop/db/{n}") for n, agent in enumerate(everybody)}, loop.time())
    for agent in everybody:
        fleet.disconnected(agent, loop.time())
    asks = fleet.decide(loop.time()).asks
    assert asks == tuple(everybody)
    asker = Asker(
        fleet, cast("Bus", Connected()), cast("AgentClient", agents), {}, POLICY, lambda agent: None, lambda: None
    )
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for agent in everybody[count - come_back :]:
            fleet.hear(agent, b"{}", loop.time() + 0.01)
        fleet.decide(loop.time() + 0.02)
        asker.begin(asks, (), tasks)
        while loop.time() < began + seconds:
            await asyncio.sleep(0.25)
            asker.begin((), (), tasks)
    return began


@pytest.mark.parametrize(("answered_after", "least"), [(0.0001, 70), (0.5, 30)])
def test_questions_keep_to_their_rate_and_number(answered_after: float, least: int) -> None:
    """Also when each is answered at once, as by a bus on which nobody listens; and the rate is made use of."""
    agents = Nobody(answered_after)
    began = SimulatedLoop().run(ask(agents, JUDGED_MAX, 2.0))
    assert agents.most_in_flight <= POLICY.asks_max_in_flight
    for at in agents.asked_at:
        by_then = sum(each <= at for each in agents.asked_at)
        assert by_then <= POLICY.asks_max_in_flight + POLICY.asks_per_second * (at - began) + 1
    assert len(agents.asked_at) >= least


def test_all_are_asked_in_order() -> None:
    """Nobody is left out for want of room."""
    agents = Nobody(0.0001)
    SimulatedLoop().run(ask(agents, 100, 4.0))
    assert len(agents.asked_at) == 100


def test_who_was_heard_while_it_waited_is_not_asked() -> None:
    """A mass that comes back leaves no questions behind that nobody needs answered."""
    agents = Nobody(0.0001)
    SimulatedLoop().run(ask(agents, 100, 4.0, come_back=90))
    assert len(agents.asked_at) == 10
