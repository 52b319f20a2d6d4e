"""Active checks: asks suspect agents over the bus and their clouds over their API, and tells the fleet what came.

Laws: as many at once and in a second as the policy says, the rest wait in order; every question begun is reported back
to the fleet, however it ends; a question that could not be put says nothing about the agent.

Does not know: what follows from an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import structlog

from healthmonitor.clouds.cloud import Cloud, CloudError, Power, VmNotFound, VmObservation
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.policy import LivenessPolicy
from protocol.bus import Bus, BusUnavailable, NoResponders
from protocol.envelope import RequestRefused
from protocol.ids import AgentId, CloudName, Generation, VmCid

log = structlog.get_logger("asker")


class PingAnswer(Protocol):
    @property
    def boot_id(self) -> str: ...
    @property
    def uptime_seconds(self) -> float | None: ...


class AgentClient(Protocol):
    async def ping(self, agent: AgentId, generation: Generation | None, timeout_seconds: float) -> PingAnswer:
        """NoResponders, BusUnavailable (also after the time), RequestRefused."""
        ...


class Asker:
    """`where(agent)`: cloud and VM that the agent's instance is bound to."""

    def __init__(
        self,
        fleet: Fleet,
        bus: Bus,
        agents: AgentClient,
        clouds: Mapping[CloudName, Cloud],
        policy: LivenessPolicy,
        where: Callable[[AgentId], tuple[CloudName, VmCid] | None],
        wake: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._fleet = fleet
        self._bus = bus
        self._agents = agents
        self._clouds = clouds
        self._where = where
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._to_ask: deque[AgentId] = deque()
        self._asking = 0
        self._allowed = float(policy.asks_max_in_flight)  # questions that may be begun now
        self._allowed_at = self._loop.time()
        self._to_observe: dict[CloudName, deque[tuple[AgentId, VmCid]]] = {}
        self._observing: Counter[CloudName] = Counter()

    def begin(self, asks: Iterable[AgentId], observes: Iterable[AgentId], tasks: asyncio.TaskGroup) -> None:
        self._to_ask.extend(asks)
        for agent in observes:
            place = self._where(agent)
            if place is None or place[0] not in self._clouds:
                evidence = "no cloud to ask" if place is None else f"cloud {place[0]} is not configured"
                self._fleet.not_observed(agent, self._loop.time(), evidence)
            else:
                self._to_observe.setdefault(place[0], deque()).append((agent, place[1]))
        self._start(tasks)

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        """Called in each turn, and when a question is over."""
        now = self._loop.time()
        allowed = self._allowed + (now - self._allowed_at) * self.policy.asks_per_second
        self._allowed, self._allowed_at = min(allowed, float(self.policy.asks_max_in_flight)), now
        while self._to_ask and self._asking < self.policy.asks_max_in_flight and self._allowed >= 1.0:
            agent = self._to_ask.popleft()
            if not self._fleet.awaits_answer(agent):
                continue  # it was heard while it waited here
            self._allowed -= 1.0
            self._asking += 1
            tasks.create_task(self._ask(agent, tasks))
        for name, waiting in self._to_observe.items():
            while waiting and self._observing[name] < self.policy.observes_max_in_flight:
                self._observing[name] += 1
                agent, vm = waiting.popleft()
                tasks.create_task(self._observe(name, agent, vm, tasks))

    async def _ask(self, agent: AgentId, tasks: asyncio.TaskGroup) -> None:
        fleet, loop = self._fleet, self._loop
        asked_at = loop.time()
        epoch = self._bus.connection_epoch
        try:
            answer = await self._agents.ping(agent, None, self.policy.ask_timeout_seconds)
            fleet.answered(agent, asked_at, loop.time(), answer.boot_id, answer.uptime_seconds)
        except RequestRefused:
            # It refuses, so it lives: the id in the subject is this VM's alone.
            fleet.answered(agent, asked_at, loop.time(), "", None)
        except NoResponders:
            fleet.unanswered(agent, asked_at, loop.time(), "asked: nobody listens there")
        except BusUnavailable as error:
            now = loop.time()
            if self._bus.connected and self._bus.connection_epoch == epoch:
                fleet.unanswered(agent, asked_at, now, f"asked: no answer within {now - asked_at:.1f} s")
            else:
                fleet.ask_failed(agent, now, f"could not be asked: {error}")
        except Exception as error:
            # A task's edge: whatever an adapter raises, the question must be reported back, or none would follow.
            log.exception("ask.failed", agent=agent)
            fleet.ask_failed(agent, loop.time(), f"could not be asked: {error!r}")
        finally:
            self._asking -= 1
        self._wake()
        self._start(tasks)

    async def _observe(self, name: CloudName, agent: AgentId, vm: VmCid, tasks: asyncio.TaskGroup) -> None:
        fleet, loop = self._fleet, self._loop
        asked_at = loop.time()
        try:
            async with asyncio.timeout(self.policy.observe_timeout_seconds):
                observation = await self._clouds[name].observe(vm)
            fleet.observed(agent, observation, asked_at)
        except VmNotFound as error:
            fleet.observed(agent, VmObservation(Power.GONE, str(error)), asked_at)
        except TimeoutError:
            fleet.not_observed(agent, loop.time(), f"no answer within {self.policy.observe_timeout_seconds:g} s")
        except CloudError as error:
            fleet.not_observed(agent, loop.time(), str(error))
        except Exception as error:
            # A task's edge, as above: a provider's own error must not end the monitor.
            log.exception("observe.failed", cloud=name, vm=vm)
            fleet.not_observed(agent, loop.time(), repr(error))
        finally:
            self._observing[name] -= 1
        self._wake()
        self._start(tasks)
