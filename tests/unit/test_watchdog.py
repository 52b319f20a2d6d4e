"""What systemd hears of an agent whose tasks stand still, on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from agent.__main__ import SUPERVISOR_LATE_SECONDS
from agent.engine import ActualContainer
from agent.supervisor import Supervisor
from agent.watchdog import IDLE_SECONDS, Watched, watch
from protocol.systemd_notify import SystemdNotify
from tests.simulation.engine import EngineFault, MemoryNotes, SimulatedEngine
from tests.simulation.loop import SimulatedLoop
from tests.stateful.test_reconcile_machine import instance

HOUR = 3600.0


class Heard(SystemdNotify):
    def __init__(self) -> None:
        super().__init__({})
        self.last_at = 0.0

    def alive(self, status: str = "") -> None:
        self.last_at = asyncio.get_running_loop().time()


class StuckEngine(SimulatedEngine):
    """A look that never ends, not even at its deadline: the defect that the watchdog is for."""

    stuck = False

    async def look(self) -> tuple[ActualContainer, ...]:
        if self.stuck:
            await asyncio.Event().wait()
        return await super().look()


class UselessDaemon:
    """Does not help: what is wrong with the engine stays wrong."""

    async def start(self) -> None:
        return

    async def restart_hard(self) -> None:
        return


async def watched_supervisor(engine: StuckEngine, fault: EngineFault, stuck: bool) -> float:
    """For how long systemd has heard nothing, one hour after `fault`."""
    notify = Heard()
    supervisor = Supervisor(engine, UselessDaemon(), engine, MemoryNotes(), lambda container, mounts: {})
    supervisor.set_desired(instance({"db": 1, "cache": 1}, 1))
    watched = Watched("supervisor", lambda: supervisor.turned_at, SUPERVISOR_LATE_SECONDS)
    tasks = [asyncio.create_task(supervisor.run()), asyncio.create_task(watch(notify, (watched,)))]
    loop = asyncio.get_running_loop()
    await asyncio.sleep(HOUR)
    assert loop.time() - notify.last_at <= IDLE_SECONDS
    engine.fault, engine.stuck = fault, stuck
    await asyncio.sleep(HOUR)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return loop.time() - notify.last_at


@pytest.mark.parametrize("fault", EngineFault)
def test_an_engine_that_does_not_answer_is_not_the_agents_fault(fault: EngineFault) -> None:
    """Dead or hung for an hour: the supervisor turns on, and systemd hears of it."""
    engine = StuckEngine()
    assert SimulatedLoop().run(watched_supervisor(engine, fault, stuck=False)) <= IDLE_SECONDS


def test_a_supervisor_that_stands_still_is_told_by_silence() -> None:
    """Its loop hangs in a look for ever: systemd hears no more, and starts the agent anew."""
    engine = StuckEngine()
    silent_seconds = SimulatedLoop().run(watched_supervisor(engine, EngineFault.NONE, stuck=True))
    assert HOUR - SUPERVISOR_LATE_SECONDS - 2 * IDLE_SECONDS <= silent_seconds <= HOUR
