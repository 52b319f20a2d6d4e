"""What is written, in which order, and what happens when the journal is away. Who is told: tests of the desk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest

from healthmonitor import notifier as module
from healthmonitor.channels.channel import Transition
from healthmonitor.core.records import Event, Incident, Severity
from healthmonitor.journal import Superseded
from healthmonitor.notifier import Notifier
from protocol.bus import BusUnavailable
from tests.support.waiting import until

MISSING = Incident("vm_missing:s/d/0", "vm_missing", "s/d/0", Severity.CRITICAL, "s/d/0 is missing", "why", 1.0, 1.0)


class Journal:
    def __init__(self) -> None:
        self.written: dict[str, Incident] = {}
        self.events: list[Event] = []
        self.refusals = 0
        self.superseded = False

    def incidents(self) -> Mapping[str, Incident]:
        return dict(self.written)

    async def save_incident(self, incident: Incident) -> None:
        if self.refusals:
            self.refusals -= 1
            raise BusUnavailable("away")
        if self.superseded:
            raise Superseded("written by somebody else")
        self.written[incident.key] = incident

    async def delete_incident(self, incident_key: str) -> None:
        del self.written[incident_key]

    async def append_event(self, event: Event) -> int:
        self.events.append(event)
        return len(self.events)


class Teller:
    """Alerting, as the notifier knows it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.told: list[str] = []

    def see(self, incident: Incident) -> None:
        assert self._journal.written.get(incident.key) == incident, "it is told only what is written"
        self.told.append(incident.key)


class Desk:
    def __init__(self) -> None:
        self.journal = Journal()
        self.leads = True
        self.teller = Teller(self.journal)
        self.notifier = Notifier(self.journal, self.teller, lambda: self.leads, lambda: 5.0)


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
    desk = Desk()
    desk.journal.refusals = 3
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: desk.teller.told)
        await until(desk.notifier.idle)
    assert MISSING.key in desk.journal.written
    assert [event.kind for event in desk.journal.events] == ["incident.opened"]


async def test_what_concerns_one_incident_stays_in_order() -> None:
    """However many are written at the same time."""
    desk = Desk()
    async with running(desk):
        for number in range(100):
            key = f"k{number % 10}"
            desk.notifier.put(replace(MISSING, key=key, detail=str(number)), Transition.CHANGED)
        await until(desk.notifier.idle)
    assert {each.detail for each in desk.journal.written.values()} == {str(number) for number in range(90, 100)}
    assert len(desk.teller.told) == 100


async def test_who_does_not_lead_writes_nothing_and_says_that_it_did_not() -> None:
    """What a deposed leader had in its line is left to the next one."""
    desk = Desk()
    desk.leads = False
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: desk.notifier.unwritten == 1)
    assert not desk.journal.written
    assert not desk.teller.told


async def test_what_another_leader_wrote_meanwhile_is_decided_anew() -> None:
    """It is not told over the other's word, and it is no defect (simulation: mixed, seed 12)."""
    desk = Desk()
    desk.journal.superseded = True
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        await until(lambda: desk.notifier.unwritten == 1)
    assert not desk.teller.told


async def test_old_resolved_incidents_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal keeps the last resolved ones and all that are open."""
    monkeypatch.setattr(module, "RESOLVED_KEPT", 3)
    monkeypatch.setattr(module, "PRUNE_EVERY", 6)
    desk = Desk()
    async with running(desk):
        desk.notifier.put(MISSING, Transition.OPENED)
        for n in range(6):
            desk.notifier.put(replace(MISSING, key=f"k{n}", resolved_at=float(n)), Transition.RESOLVED)
        await until(lambda: len(desk.journal.events) == 7)
        await until(lambda: len(desk.journal.written) == 4)
    assert set(desk.journal.written) == {MISSING.key, "k3", "k4", "k5"}
