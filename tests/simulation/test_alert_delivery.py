"""Alerting in virtual time on the simulated bus: channels that are away for hours, storms, a bus that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from healthmonitor.alerting import Alerting
from healthmonitor.bus_alarm import AlarmNote, NoteInMemory
from healthmonitor.channels.channel import Notification, Transition
from healthmonitor.core.notifying.desk import Rules
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Event, Incident, Maintenance, Silence
from healthmonitor.outbox import Outbox
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.loop import SimulatedLoop
from tests.support.alerts import RecordingChannel, alerting, incident, over, refused, unavailable

HOUR = 3600.0
POLICY = AlertPolicy(repeat_seconds=0.0)


class Journal:
    """What is written down, in memory."""

    def __init__(self) -> None:
        self.written: dict[str, Incident] = {}
        self.while_reading: Callable[[], None] = lambda: None

    def incidents(self) -> Mapping[str, Incident]:
        return dict(self.written)

    async def read_incidents(self) -> Mapping[str, Incident]:
        read = dict(self.written)
        self.while_reading()  # what is read was there a moment ago
        return read

    def maintenance(self) -> Mapping[str, Maintenance]:
        return {}

    def silences(self) -> Mapping[str, Silence]:
        return {}


@dataclass
class Site:
    loop: SimulatedLoop
    server: SimulatedServer
    bus: SimulatedBus
    part: Alerting
    channels: list[RecordingChannel]
    journal: Journal
    events: list[Event] = field(default_factory=list)
    leads: bool = True
    task: asyncio.Task[None] | None = None  # the part, running

    @property
    def now(self) -> float:
        return self.loop.time()

    def open(self, *incidents: Incident) -> None:
        for each in incidents:
            self.journal.written[each.key] = each
            self.part.see(each)

    def end(self, each: Incident) -> None:
        self.open(over(each, self.now))

    async def until(self, predicate: Callable[[], object], seconds: float = 600.0) -> None:
        async with asyncio.timeout(seconds):
            while not predicate():
                await asyncio.sleep(0.01 if seconds <= 600 else 1.0)

    async def quiet(self, seconds: float = 4 * HOUR) -> None:
        """Until everything is told."""
        await self.until(self.part.idle, seconds)


def simulated(
    scenario: Callable[[Site], Awaitable[None]],
    channels: list[RecordingChannel],
    policy: AlertPolicy = POLICY,
    rules: Rules | None = None,
    note: AlarmNote | None = None,
) -> None:
    loop = SimulatedLoop(max_real_seconds=60.0)

    async def main() -> None:
        server = SimulatedServer(Random(7))
        bus = await server.client("hm").open()
        await bus.wait_connected(5)
        journal, events = Journal(), list[Event]()
        state = {"leads": lambda: True}
        part = alerting(
            bus,
            journal,
            channels,
            loop.time,
            policy=policy,
            rules=rules,
            is_leader=lambda: state["leads"](),
            events=events,
            note=note,
        )
        site = Site(loop, server, bus, part, channels, journal, events)
        # A leader holds its lease through the bus
        state["leads"] = lambda: site.leads and bus.connected
        task = site.task = asyncio.create_task(part.run())
        await site.until(lambda: part.desk is not None)
        await scenario(site)
        task = site.task or task
        task.cancel()
        await asyncio.wait({task})
        await bus.close()
        assert task.cancelled(), task
        assert all(channel.closed for channel in channels)

    try:
        loop.run(main())
        assert not loop.failures, loop.failures
    finally:
        loop.forget()


def vm(number: int, at: float = 1000.0, kind: str = "vm_missing") -> Incident:
    return incident(f"shop/db/{number}", kind, at=at)


def test_smtp_down_for_an_hour_delays_nobody_else_and_loses_nothing() -> None:
    """Delivered after, in order; the pager hears everything at once, also that mail does not work."""
    mail, pager = RecordingChannel("mail"), RecordingChannel("pager")

    async def scenario(site: Site) -> None:
        mail.down = unavailable("connection refused")
        began = site.now
        opened = []
        for number in range(40):
            each = vm(number, site.now)
            opened.append(each)
            site.open(each)

            def is_paged(key: str = each.key) -> bool:
                return ("opened", key) in pager.told()

            await site.until(is_paged)
            assert site.now - each.opened_at < 0.5, "the pager does not wait for mail"
            if number % 2:
                site.end(each)
            await asyncio.sleep(90)
        await site.until(lambda: site.now - began > HOUR, 2 * HOUR)
        assert mail.taken == []
        assert site.part.channels()[0].failing
        assert "cannot deliver" in site.part.warnings()[0]
        assert [each.kind for each in site.part.deviations()] == ["channel_failing"]
        assert site.part.channels()[0].waiting > 50
        mail.down = None
        await site.quiet()
        assert [each.id for each in mail.taken] == [each.id for each in pager.taken]
        assert site.part.warnings() == []
        assert "channel.failing" in [event.kind for event in site.events]
        assert "channel.works_again" in [event.kind for event in site.events]

    simulated(scenario, [mail, pager])
    gaps = [later - earlier for earlier, later in pairwise(mail.try_times)]
    assert max(gaps[:20]) <= 301, "retried at least every five minutes"


def test_who_says_when_to_come_again_is_not_asked_before() -> None:
    """Retry-After wins over the delay of our own."""
    channel = RecordingChannel("pager", [unavailable("429", 600.0)])

    async def scenario(site: Site) -> None:
        site.open(vm(0, site.now))
        await site.quiet()

    simulated(scenario, [channel])
    assert channel.try_times[1] - channel.try_times[0] >= 600


def test_a_channel_is_given_no_more_a_minute_than_it_may() -> None:
    """Beyond its rate notifications wait; none is lost."""
    channel = RecordingChannel("sms")

    async def scenario(site: Site) -> None:
        for number in range(30):
            site.open(incident(f"shop/db/{number}", f"kind_{number}", at=site.now))
        await site.quiet()

    simulated(scenario, [channel], AlertPolicy(per_minute=10, repeat_seconds=0.0))
    assert len(channel.taken) == 30
    for start in channel.try_times:
        assert sum(start <= moment < start + 59.9 for moment in channel.try_times) <= 10


def test_a_channel_may_have_rules_of_its_own() -> None:
    """One is tried every ten seconds and counts as failing after the first failure, the other as the section says."""
    hasty, patient = RecordingChannel("hasty"), RecordingChannel("patient")
    hasty.down = patient.down = unavailable()
    own = {"retry_first_seconds": 10.0, "retry_longest_seconds": 10.0, "circuit_after": 1, "give_up_seconds": HOUR}

    async def scenario(site: Site) -> None:
        site.open(vm(1))
        await site.until(lambda: hasty.tries == 1 and patient.tries == 1)
        assert [view.failing for view in site.part.channels()] == [True, False]
        await site.until(lambda: hasty.tries == 6)
        assert {round(later - earlier, 3) for earlier, later in pairwise(hasty.try_times)} == {10.0}
        assert [round(later - earlier, 3) for earlier, later in pairwise(patient.try_times)][:4] == [1, 2, 4, 8]
        hasty.down = patient.down = None
        await site.quiet()
        assert hasty.told() == patient.told() == [("opened", vm(1).key)]

    simulated(scenario, [hasty, patient], rules=Rules(delivery={"hasty": own}))


def test_what_is_refused_is_not_tried_again_and_people_hear_of_it() -> None:
    """The next one is tried; the channel counts as failing until it takes one."""
    mail, log = RecordingChannel("mail", [refused()]), RecordingChannel("log")

    async def scenario(site: Site) -> None:
        site.open(vm(0, site.now))
        await site.quiet()
        assert mail.tries == 1
        assert site.part.channels()[0].refused == 1
        assert [each.subject for each in site.part.deviations()] == ["mail"]
        site.end(vm(0))
        await site.quiet()
        assert mail.transitions() == ["resolved"]
        assert list(site.part.deviations()) == []

    simulated(scenario, [mail, log])


def test_a_defect_of_a_channel_ends_neither_its_line_nor_the_others() -> None:
    """It is said, as a refusal is."""
    broken, log = RecordingChannel("broken", [ZeroDivisionError("oops")]), RecordingChannel("log")

    async def scenario(site: Site) -> None:
        site.open(vm(0, site.now))
        await site.quiet()
        site.open(vm(1, site.now))
        await site.quiet()

    simulated(scenario, [broken, log])
    assert (len(broken.taken), len(log.taken)) == (1, 2)


def test_a_receiver_that_hangs_is_given_up_and_tried_again() -> None:
    """After the time that one try may take."""
    channel = RecordingChannel("slow", [10_000.0])

    async def scenario(site: Site) -> None:
        site.open(vm(0, site.now))
        await site.quiet()

    simulated(scenario, [channel])
    assert (channel.tries, len(channel.taken)) == (2, 1)
    assert channel.try_times[1] - channel.try_times[0] >= 60


def test_ten_thousand_incidents_in_a_second_are_grouped_and_all_accounted_for() -> None:
    """A few notifications, each within what the bus takes; listed or counted, none is missing."""
    channel, dead = RecordingChannel("mail"), RecordingChannel("dead")
    dead.down = unavailable()

    async def scenario(site: Site) -> None:
        for batch in range(10):
            site.open(*[vm(1000 * batch + number, site.now) for number in range(1000)])
            await asyncio.sleep(0.1)
        await site.until(lambda: sum(len(n.items) + n.left_out for n in channel.taken) == 10_000)
        assert len(channel.taken) <= 20
        for number in range(10_000):
            site.end(vm(number))
        await site.until(
            lambda: (
                sum(n.transition is Transition.RESOLVED for n in channel.taken)
                == len([n for n in channel.taken if n.transition is Transition.OPENED])
            )
        )
        dead.down = None
        await site.until(lambda: dead.taken and not site.part.channels()[1].waiting)

    simulated(scenario, [channel, dead])
    members = [n for n in channel.taken if n.transition is Transition.OPENED]
    assert all(len(n.items) == 500 and n.left_out == 500 for n in members)
    assert sum(len(n.items) + n.left_out for n in dead.taken) == 20_000


def test_a_backlog_that_is_too_long_becomes_a_digest_that_says_what_it_leaves_out() -> None:
    """Ends of what the receiver knows to be open are kept; everything else is counted."""
    channel, log = RecordingChannel("mail"), RecordingChannel("log")

    async def scenario(site: Site) -> None:
        site.open(incident("shop/db/999", at=site.now))
        await site.quiet()
        channel.down = unavailable()
        for number in range(100):
            site.open(incident(f"shop/db/{number}", f"kind_{number % 7}", at=site.now))
            await asyncio.sleep(1)
        site.end(incident("shop/db/999", at=site.now - 100))
        await asyncio.sleep(20)
        assert site.part.channels()[0].waiting <= 21
        channel.down = None
        await site.quiet()

    simulated(scenario, [channel, log], AlertPolicy(backlog_max=20, repeat_seconds=0.0, per_minute=1000))
    assert len(log.taken) == 102
    assert channel.transitions().count("resolved") == 1
    digests = [each for each in channel.taken if each.transition is Transition.DIGEST]
    assert len(digests) == 1
    counted = sum(len(each.items) + each.left_out for each in channel.taken)
    assert counted == 102, "each incident is told, or listed or counted in the digest"
    assert "instead of" in digests[0].subject
    assert "kind" in digests[0].subject


def test_when_the_bus_is_gone_that_one_alert_is_sent_from_memory() -> None:
    """Once, and its end; what waited in the outbox is delivered when the bus is back, once."""
    channel = RecordingChannel("mail")

    async def scenario(site: Site) -> None:
        site.open(vm(0, site.now))
        await site.quiet()
        site.server.crash()
        await site.until(lambda: "bus_lost:monitor" in [key for _, key in channel.told()], 60)
        await asyncio.sleep(1000)
        site.server.start()
        await site.until(lambda: site.part.desk is not None)
        await site.until(lambda: len(channel.taken) == 3)
        site.open(vm(1, site.now))
        await site.quiet()

    simulated(scenario, [channel])
    assert channel.told() == [
        ("opened", "vm_missing:shop/db/0"),
        ("opened", "bus_lost:monitor"),
        ("resolved", "bus_lost:monitor"),
        ("opened", "vm_missing:shop/db/1"),
    ]


def test_the_end_of_the_buss_loss_is_told_by_the_next_process() -> None:
    """Who told of the loss dies before the bus is back, or before its end reached everybody: the next process of this
    monitor tells the end, under the same thread, and forgets it then."""
    channel = RecordingChannel("mail")
    note = NoteInMemory()

    async def scenario(site: Site) -> None:
        async def killed_and_started_again() -> Alerting:
            assert site.task is not None
            site.task.cancel()
            await asyncio.wait({site.task})
            channel.closed = False
            part = alerting(
                site.bus, site.journal, [channel], lambda: site.now, is_leader=lambda: site.bus.connected, note=note
            )
            site.task = asyncio.create_task(part.run())
            return part

        site.server.crash()
        await site.until(lambda: channel.transitions() == ["opened"], 60)
        await killed_and_started_again()
        site.server.start()
        await site.until(lambda: "resolved" in channel.transitions(), 60)
        await site.until(lambda: note.load() is None, 60)

        site.server.crash()
        await site.until(lambda: channel.transitions().count("opened") == 2, 60)
        channel.down = unavailable("away")
        site.server.start()
        await site.until(lambda: site.bus.connected)
        await asyncio.sleep(5.0)
        assert note.load() is not None, "its end has not reached everybody"
        await killed_and_started_again()
        channel.down = None
        await site.until(lambda: channel.transitions().count("resolved") == 2, 60)
        await site.until(lambda: note.load() is None, 60)

    simulated(scenario, [channel], note=note)
    threads = [each.thread for each in channel.taken]
    assert threads[0] == threads[1] != threads[2] == threads[3]


def test_who_does_not_lead_sends_nothing_and_who_leads_again_sends_once() -> None:
    """What was delivered and not marked is not sent again by the same monitor."""
    channel = RecordingChannel("mail")

    async def scenario(site: Site) -> None:
        site.leads = False
        await site.until(lambda: site.part.desk is None)
        site.open(vm(0, site.now))
        await asyncio.sleep(100)
        assert channel.taken == []
        site.leads = True
        await site.until(lambda: channel.taken)
        await site.quiet()
        for _ in range(5):
            site.leads = False
            await site.until(lambda: site.part.desk is None)
            site.leads = True
            await site.until(lambda: site.part.desk is not None)
        await asyncio.sleep(100)

    simulated(scenario, [channel])
    assert channel.told() == [("opened", "vm_missing:shop/db/0")]


def test_a_server_that_comes_and_goes_doubles_nothing() -> None:
    """Every incident is told; a restart of the bus alone sends nothing twice."""
    channel = RecordingChannel("mail")

    async def scenario(site: Site) -> None:
        random = Random(3)
        for number in range(60):
            site.open(vm(number, site.now))
            await asyncio.sleep(random.uniform(0.0, 1.0))
            if number % 10 == 5:
                site.server.crash()
                await asyncio.sleep(random.uniform(0.0, 2.0))
                site.server.start()
        await site.until(lambda: site.part.desk is not None and site.part.idle(), HOUR)

    simulated(scenario, [channel])
    keys = [key for _, key in channel.told() if key != "bus_lost:monitor"]
    assert sorted(keys) == sorted(f"vm_missing:shop/db/{number}" for number in range(60))


def test_channels_are_changed_while_it_runs() -> None:
    """A new one is told from then on, a changed one takes over what waits, one that is gone is said to be."""
    mail, pager = RecordingChannel("mail"), RecordingChannel("pager")
    better, chat = RecordingChannel("mail"), RecordingChannel("chat")

    async def scenario(site: Site) -> None:
        mail.down = pager.down = unavailable()
        site.open(vm(0, site.now))
        await site.until(lambda: mail.tries and pager.tries)
        site.part.set_channels([better, chat], Rules())
        site.open(vm(1, site.now))
        await site.until(lambda: len(better.taken) == 2 and len(chat.taken) == 1)
        await site.until(lambda: mail.closed and pager.closed)

    simulated(scenario, [mail, pager])
    assert [key for _, key in better.told()] == ["vm_missing:shop/db/0", "vm_missing:shop/db/1"]


def test_asked_to_stop_right_after_a_delivery_it_still_writes_that_it_was_made() -> None:
    """A restart of the monitor tells nothing twice: only a kill may."""
    channel = RecordingChannel()

    async def scenario(site: Site) -> None:
        task = site.task
        assert task is not None

        def stop(notification: Notification) -> None:
            task.cancel()

        channel.on_take = stop
        site.open(incident())
        await asyncio.wait({task})
        assert channel.transitions() == ["opened"]
        outbox = Outbox(site.bus, 1 << 20)
        assert (await outbox.load()).letters == []

    simulated(scenario, [channel])


def test_what_ends_while_a_new_leader_reads_is_told_to_be_over() -> None:
    """The record that it reads is a moment old, and what was written meanwhile is not lost."""
    channel = RecordingChannel()

    async def scenario(site: Site) -> None:
        opened = incident()
        site.open(opened)
        await site.quiet()
        site.leads = False
        await site.until(lambda: site.part.desk is None)
        site.journal.while_reading = lambda: site.end(opened)
        site.leads = True
        await site.until(lambda: site.part.desk is not None)
        await site.quiet()
        assert channel.transitions() == ["opened", "resolved"]

    simulated(scenario, [channel])
