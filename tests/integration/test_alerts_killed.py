"""The monitor's alerting killed at random points, on a real nats-server: nothing is lost, little is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from healthmonitor.channels.channel import Transition
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Incident
from healthmonitor.journal import Journal
from healthmonitor.notifier import Notifier
from protocol.bus import Bus
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support.alerts import RecordingChannel, alerting, incident, over
from tests.support.nats import nats_server

KILLS = 100
POLICY = AlertPolicy(group_wait_seconds=0.005, group_longest_seconds=0.02, retry_first_seconds=0.01)


class Killed(BaseException):
    """The process ends here, without any clean-up."""


class Doom:
    """Counts the steps on the way to the disk and to the receiver, before and after each; at one of them all ends:
    nothing that this process still does has any effect."""

    def __init__(self, at_step: int) -> None:
        self._left = at_step
        self.struck = asyncio.Event()

    async def step(self, act: Callable[[], Awaitable[Any]]) -> Any:
        await self._pass()
        outcome = await act()
        await self._pass()
        return outcome

    async def _pass(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.struck.set()
        if self.struck.is_set():
            await asyncio.get_running_loop().create_future()  # for ever


class DoomedStore:
    """A bucket, log or queue whose every call is a step."""

    def __init__(self, real: Any, doom: Doom) -> None:
        self._real = real
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._real, name)
        return lambda *arguments, **named: self._doom.step(lambda: call(*arguments, **named))


class DoomedBus:
    def __init__(self, real: Bus, doom: Doom) -> None:
        self._real = real
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def bucket(self, name: str, history: int = 1) -> Any:
        return DoomedStore(await self._real.bucket(name, history), self._doom)

    async def log(self, name: str, max_entries: int, max_bytes: int) -> Any:
        return DoomedStore(await self._real.log(name, max_entries, max_bytes), self._doom)

    async def queue(self, name: str, max_bytes: int) -> Any:
        return DoomedStore(await self._real.queue(name, max_bytes), self._doom)


class DoomedChannel(RecordingChannel):
    """The receiver takes it, or the process was killed before."""

    def __init__(self, receiver: RecordingChannel, doom: Doom) -> None:
        super().__init__(receiver.name)
        self._receiver = receiver
        self._doom = doom

    async def deliver(self, notification: Any) -> Any:
        return await self._doom.step(lambda: self._receiver.deliver(notification))


@dataclass
class World:
    """What is outside the monitor: what is wrong, and who is told."""

    receiver: RecordingChannel = field(default_factory=RecordingChannel)
    wrong: dict[str, Incident] = field(default_factory=dict)
    opened: dict[str, Incident] = field(default_factory=dict)


async def live(world: World, url: str, doom: Doom, until_done: Callable[[Journal], bool]) -> bool:
    """One life of a monitor: from its start until it is done (True) or killed."""
    real = await NatsBus.open(BusSettings((url,)), "monitor")
    await real.wait_connected(10)
    bus: Any = DoomedBus(real, doom)
    journal = Journal(bus, time.time)
    done = asyncio.Event()

    async def process() -> None:
        await journal.open()
        part = alerting(bus, journal, [DoomedChannel(world.receiver, doom)], time.time, policy=POLICY)
        notifier = Notifier(journal, part, lambda: True, time.time)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(part.run())
            tasks.create_task(notifier.run())
            while not (notifier.idle() and part.idle() and part.desk is not None and until_done(journal)):
                # Level-driven, as the monitor is: whatever is wrong and not in the journal is opened, and so on
                known = {key: each for key, each in journal.incidents().items() if each.resolved_at is None}
                if notifier.idle():
                    for key, each in world.wrong.items():
                        if key not in known:
                            notifier.put(each, Transition.OPENED)
                    for key, each in known.items():
                        if key not in world.wrong:
                            notifier.put(over(each, time.time()), Transition.RESOLVED)
                await asyncio.sleep(0.002)
            done.set()

    task = asyncio.create_task(process())
    struck, finished = asyncio.create_task(doom.struck.wait()), asyncio.create_task(done.wait())
    async with asyncio.timeout(30):
        await asyncio.wait({task, struck, finished}, return_when=asyncio.FIRST_COMPLETED)
    if task.done() and task.exception() is not None:
        raise task.exception() or AssertionError
    for each in (task, struck, finished):
        each.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(task, struck, finished, return_exceptions=True)
    await real.close()
    return done.is_set() and not doom.struck.is_set()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1])
async def test_killed_anywhere_every_incident_is_told_and_little_twice(tmp_path: Path, seed: int) -> None:
    """100 kills at random points between opening, writing, sending, marking and resolving: each incident is told as
    opened and as over, and no more is told twice than there were kills."""
    random = Random(seed)
    world = World()
    kills, names = 0, itertools.count()
    async with nats_server(tmp_path) as server:
        while kills < KILLS:
            fresh = [incident(f"shop/db/{next(names)}", at=time.time()) for _ in range(random.randint(1, 3))]
            for each in fresh:
                world.opened[each.key] = world.wrong[each.key] = each
            for wrong in (True, False):
                if not wrong:
                    world.wrong.clear()

                def settled(journal: Journal, wrong: bool = wrong) -> bool:
                    stands = {key for key, each in journal.incidents().items() if each.resolved_at is None}
                    return stands == set(world.wrong)

                while kills < KILLS and not await live(world, server.url, Doom(random.randint(8, 75)), settled):
                    kills += 1
        world.wrong.clear()
        assert await live(
            world,
            server.url,
            Doom(10**9),
            lambda journal: not any(each.resolved_at is None for each in journal.incidents().values()),
        )
        told = Counter(world.receiver.told())
        missing = [
            (transition, key)
            for key in world.opened
            for transition in ("opened", "resolved")
            if not told[(transition, key)]
        ]
        sent = Counter(each.id for each in world.receiver.taken)
        doubled = sum(count - 1 for count in sent.values())
        print(f"seed {seed}: {len(world.opened)} incidents, {kills} kills, {sum(sent.values())} sent, {doubled} twice")
        print("not told:", missing)
        # One that was over before a killed monitor could tell of it is told once, as over
        assert [each for each in missing if each[0] == "resolved"] == [], f"seed {seed}"
        assert all(told[("resolved", key)] for _, key in missing), f"seed {seed}"
        assert doubled <= kills, f"seed {seed}"
        again = sum(count - 1 for count in told.values())
        assert again <= 3 * kills, f"seed {seed}: incidents told twice within other notifications"
