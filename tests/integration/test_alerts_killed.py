"""The monitor's alerting killed at random points, on a real nats-server: nothing is lost, little is doubled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from healthmonitor.channels.channel import Transition
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Incident
from healthmonitor.heard_alerts import INBOX_MAX_BYTES, HeardAlerts
from healthmonitor.journal import Journal
from healthmonitor.notifier import Notifier
from healthmonitor.outbox import OUTBOX
from protocol import alert, subjects
from protocol.alert import ALERT_MAX_BYTES, Alert
from protocol.bus import Bus
from protocol.ids import AgentId
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.subjects import AgentMessage
from tests.support.alerts import RecordingChannel, alert_incident, alerting, incident, over
from tests.support.nats import nats_server

KILLS = 100
NEVER = 10**9
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

    async def inbox(self, name: str, subjects: Sequence[str], max_bytes: int, message_max_bytes: int) -> Any:
        return DoomedStore(await self._real.inbox(name, subjects, max_bytes, message_max_bytes), self._doom)


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

    receivers: tuple[RecordingChannel, ...] = field(
        default_factory=lambda: (RecordingChannel("mail"), RecordingChannel("page"))
    )
    wrong: dict[str, Incident] = field(default_factory=dict)
    opened: dict[str, Incident] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def agent_client(url: str) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.open(BusSettings((url,)), "agent")
    await bus.wait_connected(10)
    try:
        yield bus
    finally:
        await bus.close()


async def live(world: World, url: str, doom: Doom, until_done: Callable[[Journal], bool]) -> bool:
    """One life of a monitor: from its start until it is done (True) or killed."""
    real = await NatsBus.open(BusSettings((url,)), "monitor")
    await real.wait_connected(10)
    bus: Any = DoomedBus(real, doom)
    journal = Journal(bus, time.time)
    done = asyncio.Event()

    async def process() -> None:
        await journal.open()
        part = alerting(bus, journal, [DoomedChannel(each, doom) for each in world.receivers], time.time, policy=POLICY)
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1])
async def test_killed_anywhere_every_incident_is_told_and_little_twice(tmp_path: Path, seed: int) -> None:
    """100 kills at random points between opening, writing, sending, marking and resolving: every channel is told of
    each incident as opened and as over, and of each alert that an agent sent. After one kill it is given at most one
    notification again, the same one under the same id, and never an incident again in another. Nothing is left over."""
    random = Random(seed)
    world = World()
    kills, names = 0, itertools.count()
    again: Counter[str] = Counter()
    async with nats_server(tmp_path) as server, agent_client(server.url) as agent:
        await HeardAlerts(agent, alert_incident).open()  # as the first monitor that ever led did
        while kills < KILLS:
            fresh = [incident(f"shop/db/{next(names)}", at=time.time()) for _ in range(random.randint(1, 3))]
            for opened in fresh:
                world.opened[opened.key] = world.wrong[opened.key] = opened
            number = next(names)
            sent = Alert("disk is hot", 3, 1, id=f"alert-{number}")
            await agent.publish(subjects.to_monitor(AgentMessage.ALERT, AgentId("a-1")), alert.encode(sent))
            world.alerts.append(alert_incident(AgentId("a-1"), sent).key)
            for wrong in (True, False):
                if not wrong:
                    world.wrong.clear()

                def settled(journal: Journal, wrong: bool = wrong) -> bool:
                    stands = {key for key, each in journal.incidents().items() if each.resolved_at is None}
                    return stands == set(world.wrong)

                ends = False
                while not ends:
                    doom = Doom(random.randint(8, 90) if kills < KILLS else NEVER)
                    before = [len(receiver.taken) for receiver in world.receivers]
                    ends = await live(world, server.url, doom, settled)
                    kills += not ends
                    for receiver, length in zip(world.receivers, before, strict=True):
                        known = {each.id for each in receiver.taken[:length]}
                        new = {each.id for each in receiver.taken[length:]} - known
                        doubled = len(receiver.taken) - length - len(new)
                        assert doubled <= 1, f"seed {seed}: {receiver.name} was told {doubled} again after one kill"
                        again[receiver.name] += doubled
        print(f"seed {seed}: {len(world.opened)} incidents, {kills} kills, doubled by life: {again}")
        assert kills == KILLS
        assert await (await agent.queue(OUTBOX, 64 * 2**20)).entries() == [], "what everybody has is removed"
        inbox = await agent.inbox("alerts", ["hm.agent.alert.*", "hm.director.alert"], INBOX_MAX_BYTES, ALERT_MAX_BYTES)
        assert await inbox.read(0, 10) == []
        for receiver in world.receivers:
            told = Counter(receiver.told())
            missing = [(word, key) for key in world.opened for word in ("opened", "resolved") if not told[(word, key)]]
            missing += [("noted", key) for key in world.alerts if not told[("noted", key)]]
            assert missing == [], f"seed {seed}: {receiver.name} was not told"
            within: dict[tuple[str, str], set[str]] = {}
            for each in receiver.taken:
                for item in each.items:
                    within.setdefault((each.transition.value, item.incident.key), set()).add(each.id)
            several = {what: ids for what, ids in within.items() if len(ids) > 1}
            assert several == {}, f"seed {seed}: told again in another notification"
