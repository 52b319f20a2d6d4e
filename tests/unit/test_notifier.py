"""Who is told of what, in which order, and what happens when the journal or a channel is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest

from healthmonitor import notifier as module
from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable, Transition
from healthmonitor.core.records import Event, Incident, Severity
from healthmonitor.notifier import Notifier
from protocol.bus import BusUnavailable
from tests.support.waiting import until

MISSING = Incident("vm_missing:s/d/0", "vm_missing", "s/d/0", Severity.CRITICAL, "s/d/0 is missing", "why", 1.0, 1.0)
EXPLAINED = replace(MISSING, key="engine_not_up:s/d/0", kind="engine_not_up", inhibited_by=MISSING.key)


class Journal:
    def __init__(self) -> None:
        self.written: dict[str, Incident] = {}
        self.events: list[Event] = []
        self.refusals = 0

    def incidents(self) -> Mapping[str, Incident]:
        return dict(self.written)

    async def save_incident(self, incident: Incident) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BusUnavailable("away")
        self.written[incident.key] = incident

    async def delete_incident(self, incident_key: str) -> None:
        del self.written[incident_key]

    async def append_event(self, event: Event) -> int:
        self.events.append(event)
        return len(self.events)


class Channel:
    def __init__(self, name: str, errors: list[Exception] | None = None) -> None:
        self.name = name
        self.errors = errors or []
        self.told: list[tuple[str, Transition]] = []

    async def notify(self, incident: Incident, transition: Transition) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.told.append((incident.key, transition))


class Desk:
    def __init__(self, *channels: Channel) -> None:
        self.journal = Journal()
        self.leads = True
        self.notifier = Notifier(self.journal, channels, lambda: self.leads, lambda: 5.0)


@contextlib.asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[None]:
    task = asyncio.create_task(desk.notifier.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_SECONDS", 0.01)


async def test_it_is_written_before_it_is_told_also_when_the_journal_is_away_for_a_while() -> None:
    """A journal that does not answer delays the notification; it does not lose it."""
    channel = Channel("a")
    desk = Desk(channel)
    desk.journal.refusals = 3
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: channel.told)
    assert MISSING.key in desk.journal.written
    assert [event.kind for event in desk.journal.events] == ["incident.opened"]


async def test_an_explained_incident_is_written_and_told_only_when_its_explanation_goes() -> None:
    """A missing VM inhibits the alerts of what is on it; what outlives it is told then, as opened."""
    channel = Channel("a")
    desk = Desk(channel)
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        desk.notifier.put(EXPLAINED, Transition.OPENED)
        desk.notifier.put(replace(MISSING, resolved_at=9.0), Transition.RESOLVED)
        desk.notifier.put(replace(EXPLAINED, inhibited_by=""), Transition.CHANGED)
        await until(lambda: len(channel.told) == 3)
    assert channel.told == [
        (MISSING.key, Transition.OPENED),
        (MISSING.key, Transition.RESOLVED),
        (EXPLAINED.key, Transition.OPENED),
    ]
    assert len(desk.journal.events) == 4


async def test_what_was_never_told_is_not_told_to_be_over() -> None:
    """An inhibited incident that ends with its cause is heard of by nobody."""
    channel = Channel("a")
    desk = Desk(channel)
    async with running(desk):
        desk.notifier.put(EXPLAINED, Transition.OPENED)
        desk.notifier.put(replace(EXPLAINED, resolved_at=9.0), Transition.RESOLVED)
        await until(lambda: len(desk.journal.events) == 2)
        await until(desk.notifier.idle)
    assert channel.told == []


async def test_each_channel_has_its_own_line() -> None:
    """One that cannot deliver is retried and shown, one that refuses or is broken is passed over; others go on."""
    slow = Channel("slow", [ChannelUnavailable("greylisted"), ChannelUnavailable("greylisted")])
    refusing = Channel("refusing", [ChannelRefused("no such recipient")])
    broken = Channel("broken", [ValueError("defect")])
    good = Channel("good")
    desk = Desk(slow, refusing, broken, good)
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: "slow" in desk.notifier.undelivered)
        desk.notifier.put(replace(MISSING, resolved_at=9.0), Transition.RESOLVED)
        await until(lambda: len(slow.told) == 2)
        await until(desk.notifier.idle)
    both = [(MISSING.key, Transition.OPENED), (MISSING.key, Transition.RESOLVED)]
    assert (slow.told, good.told) == (both, both)
    assert refusing.told == broken.told == both[1:]
    assert not desk.notifier.undelivered


async def test_who_does_not_lead_writes_nothing_and_says_that_it_did_not() -> None:
    """What a deposed leader had in its line is left to the next one."""
    channel = Channel("a")
    desk = Desk(channel)
    desk.leads = False
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: desk.notifier.unwritten == 1)
    assert not desk.journal.written
    assert not channel.told


async def test_old_resolved_incidents_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal keeps the last resolved ones and all that are open."""
    monkeypatch.setattr(module, "RESOLVED_KEPT", 3)
    desk = Desk()
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        for n in range(6):
            desk.notifier.put(replace(MISSING, key=f"k{n}", resolved_at=float(n)), Transition.RESOLVED)
        await until(lambda: len(desk.journal.events) == 7)
        await until(lambda: len(desk.journal.written) == 4)
    assert set(desk.journal.written) == {MISSING.key, "k3", "k4", "k5"}
