"""Alerting as a running part: incidents in, letters written to the outbox, channels' lines kept going.

Laws:
- Written, then sent. Only the leader does either; when it leads anew it reads what was written and goes on from there.
- The one exception: that the bus itself is gone (`bus_alarm.py`).
- A notification is composed when it is sent, from what is known then; the outbox keeps it as it was said.

Does not know: how incidents come about, how a channel speaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog

from healthmonitor.bus_alarm import BUS_LOST, AlarmNote, BusAlarm, NoteInMemory
from healthmonitor.channels.channel import Channel, Item, Notification, Receipt, Transition
from healthmonitor.core.deviations import Deviation, deviation
from healthmonitor.core.maintenance_changes import in_force
from healthmonitor.core.notifying import wording
from healthmonitor.core.notifying.desk import Desk, Rules, Surroundings
from healthmonitor.core.notifying.routing import Subject, routed
from healthmonitor.core.notifying.thread import Acknowledgement, Send, Thread
from healthmonitor.core.policy import AlertPolicy, Policy
from healthmonitor.core.records import Event, Incident, Maintenance, Severity, Silence
from healthmonitor.delivery import Line
from healthmonitor.heard_alerts import AT_ONCE, HeardAlerts, IncidentOf
from healthmonitor.outbox import Letter, Outbox
from protocol.bus import Bus, BusUnavailable

log = structlog.get_logger("alerting")

RETRY_SECONDS = 0.5
LOOK_SECONDS = 1.0
"""The desk is looked at this often even when nothing is due: wall clocks jump."""
LOOK_FOR_CHANNELS_SECONDS = 20.0
"""A channel whose server was not there at the start, and for which nothing waits, is looked for this often."""
ALERTS_LOOK_SECONDS = 5.0
"""The inbox is looked at this often even when no alert was heard: one may have come while nobody listened."""
COMPOSE_LOGS_MAX = 5
"""Incidents of one notification whose log lines are asked for."""


class Knowledge(Protocol):
    """What is known of incidents; `healthmonitor/facts.py`."""

    def subject(self, incident: Incident) -> Subject: ...
    def item_maker(self, incidents: Mapping[str, Incident], unix_now: float) -> Callable[[Incident], Item]: ...
    async def log_lines(
        self, incidents: Iterable[Incident], most: int, seconds: float
    ) -> dict[str, tuple[str, ...]]: ...


class AlertJournal(Protocol):
    def incidents(self) -> Mapping[str, Incident]: ...
    def silences(self) -> Mapping[str, Silence]: ...
    def maintenance(self) -> Mapping[str, Maintenance]: ...
    async def read_incidents(self) -> Mapping[str, Incident]:
        """From the bus, not from memory, which may be as old as another monitor's leadership."""
        ...


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as people are shown it."""

    name: str
    waiting: int
    delivered: int
    failing: bool
    failures: int
    error: str
    failing_since: float | None
    next_try_at: float | None
    refused: int
    digested: int
    last_said: str
    last_delivered_at: float | None


class Alerting:
    def __init__(
        self,
        *,
        bus: Bus,
        journal: AlertJournal,
        knowledge: Knowledge,
        channels: Sequence[Channel],
        rules: Rules,
        policy: Policy,
        is_leader: Callable[[], bool],
        unix_time: Callable[[], float],
        tell: Callable[[Event], None],
        alert_of: IncidentOf,
        site: str,
        changed: Callable[[], None] = lambda: None,
        link: Callable[[str], str] = lambda incident_key: "",
        melting: Callable[[], frozenset[str]] = frozenset,
        note: AlarmNote | None = None,
    ) -> None:
        """`tell`: writes an event to the timeline when it can. `alert_of`: an agent's alert as an incident. `changed`:
        called when a channel begins or ceases to fail. `melting`: scopes in which many are lost, or may be
        (`desk.Surroundings`). `rules.channels` is what `channels` are called, whatever it says.
        `note`: where it stands that the loss of the bus was told; in memory only unless given."""
        self._bus = bus
        self._journal = journal
        self._knowledge = knowledge
        self._policy = policy
        self._is_leader = is_leader
        self._unix_time = unix_time
        self._tell = tell
        self._site = site
        self._link = link
        self._melting = melting
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(bus, policy.alerts.outbox_max_bytes)
        self._lines: dict[str, Line] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._retired: list[Channel] = []
        self._rules = rules
        self.desk: Desk | None = None  # only while leading
        self._seen_while_loading: dict[str, Incident] | None = None
        self._woken = asyncio.Event()
        self._dispatching = False
        self.running = False
        self._alerts = HeardAlerts(bus, alert_of)
        self._rung = True  # an agent's alert was heard
        self._alerts_looked_at = float("-inf")
        self._bus_alarm = BusAlarm(
            note or NoteInMemory(),
            lambda: bus.connected,
            is_leader,
            lambda: self._policy,
            unix_time,
            self._send_from_memory,
            self._waits_from_memory,
        )
        self._tests = 0
        self.set_channels(channels, rules)

    # What the monitor tells.

    def see(self, incident: Incident) -> None:
        """It is written down; now it is to be told. Before the desk is loaded there is no need, it reads the journal;
        what is written while it reads is kept, because it may read what was there a moment before."""
        if incident.kind == BUS_LOST:
            return
        if self.desk is not None:
            self.desk.see(incident)
            self._woken.set()
        elif self._seen_while_loading is not None:
            self._seen_while_loading[incident.key] = incident

    def ring(self) -> None:
        """An agent's alert was heard; it lies in the inbox, and is taken from there by whoever leads."""
        self._rung = True
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def unreachable(self, channels: Mapping[str, str]) -> None:
        """Channel → why its server was not there when it was looked for; it is looked for again."""
        for name, why in channels.items():
            if name in self._lines:
                self._lines[name].unreachable(why)

    def deviations(self) -> Iterable[Deviation]:
        """Channels that cannot deliver."""
        for line in self._lines.values():
            if error := line.failing():
                detail = f"{error}; {line.waiting()} notifications wait for it"
                yield deviation("channel_failing", line.name, detail, self._policy)

    # What people ask.

    def channels(self) -> list[ChannelView]:
        return [
            ChannelView(
                name=line.name,
                waiting=line.waiting(),
                delivered=line.state.delivered,
                failing=bool(line.failing()),
                failures=line.state.failures,
                error=line.state.error,
                failing_since=line.state.failing_since,
                next_try_at=line.state.next_try_at,
                refused=line.state.refused,
                digested=line.state.digested,
                last_said=line.state.last_said,
                last_delivered_at=line.state.last_delivered_at,
            )
            for line in self._lines.values()
        ]

    def warnings(self) -> list[str]:
        """For /healthz: the monitor is well, and somebody is not told."""
        return [
            f"channel {line.name}: cannot deliver: {line.failing()}; {line.waiting()} wait"
            for line in self._lines.values()
            if line.failing()
        ]

    async def test(self, channel: str, person: str) -> Receipt:
        """Sends a real one past the line. KeyError: no such channel; and whatever the channel raises."""
        line = self._lines[channel]
        now = self._unix_time()
        self._tests += 1
        incident = Incident(
            key=f"test:{channel}",
            kind="test",
            subject="shop/db/0",
            severity=Severity.WARNING,
            title=f"test of channel {channel}",
            detail=f"{person} asked for it; nothing is wrong",
            opened_at=now,
            updated_at=now,
            next_step="nothing",
        )
        identity = f"test-{channel}-{now:.3f}-{self._tests}"
        return await line.test(
            Notification(
                id=identity,
                thread=identity,
                transition=Transition.TEST,
                severity=Severity.WARNING,
                at=now,
                subject=f"[test] test of channel {channel}: nothing is wrong",
                items=(Item(incident, "shop/db/0, as an example", "nothing"),),
                site=self._site,
            )
        )

    def explain(self, incident: Incident) -> tuple[str, ...]:
        if self.desk is None:
            return ("this monitor does not lead, so it does not notify",)
        reasons = list(self.desk.explain(incident, self._unix_time(), self._around()))
        for name, line in self._lines.items():
            if line.failing():
                reasons.append(f"channel {name} cannot deliver now: {line.failing()}")
        return tuple(reasons)

    def look(self, incident: Incident) -> Item:
        """What is known of it now, but for log lines."""
        incidents = {key: each for key, each in self._journal.incidents().items() if each.resolved_at is None}
        return self._knowledge.item_maker(incidents, self._unix_time())(incident)

    def thread_of(self, key: str) -> Thread | None:
        return self.desk.thread_of(key) if self.desk is not None else None

    async def acknowledge(self, key: str, by: str, because: str) -> bool:
        """False: it is in no thread that is not over. Durable when it returns."""
        if self.desk is None:
            return False
        send = self.desk.acknowledge(key, Acknowledgement(by, because, self._unix_time()))
        if send is None:
            return False
        await self._dispatch([send])
        return True

    def look_again(self) -> None:
        """Silences or routes were changed."""
        if self.desk is not None:
            self.desk.look_again()
        self._woken.set()

    # The configuration.

    def set_policy(self, policy: Policy) -> None:
        self._policy = policy
        if self.desk is not None:
            self.desk.policy = policy.alerts

    def set_channels(self, channels: Sequence[Channel], rules: Rules) -> None:
        """Holds from now on. Channels of a name that was there take over what waits for it; letters for those that are
        gone are dropped when they are met, and the timeline says so."""
        former = self._lines
        self._rules = replace(rules, channels=tuple(channel.name for channel in channels))
        self._lines = {}
        for channel in channels:
            line = former.get(channel.name)
            if line is None:
                line = Line(
                    channel,
                    self._outbox,
                    partial(self._delivery_of, channel.name),
                    self._is_leader,
                    self._unix_time,
                    self._tell_of_channel,
                    self._changed,
                )
            elif line.channel is not channel:
                self._retired.append(line.channel)
                line.channel = channel
            self._lines[channel.name] = line
        self._retired.extend(line.channel for name, line in former.items() if name not in self._lines)
        if self.desk is not None:
            self.desk.rules = self._rules
            self.desk.look_again()
        self._woken.set()

    # Running.

    async def run(self) -> None:
        """Until cancelled. May be begun before the bus was ever there: that it is not is then told."""
        self.running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._bus_alarm.run(), name="alerting-bus")
                tasks.create_task(self._look_for_channels(), name="alerting-channels")
                while True:
                    await self._start_lines(tasks)
                    seconds = await self._turn()
                    await self._until_woken(seconds)
        finally:
            for line in self._lines.values():
                await line.channel.close()
            for channel in self._retired:
                await channel.close()

    def idle(self) -> bool:
        """Nothing waits: for tests."""
        alerts = self._rung or self._alerts.in_hand
        told = self.desk is None or (self.desk.untold() == 0 and not self._dispatching and not alerts)
        return told and all(not line.waiting() for line in self._lines.values())

    async def _turn(self) -> float:
        """Returns after how many seconds the next is due."""
        if not self._is_leader():
            if self.desk is not None:
                self._stop_leading()
            return LOOK_SECONDS
        try:
            if self.desk is None:
                await self._begin_leading()
            return await self._desk_turn()
        except BusUnavailable as error:
            # What the desk decided is decided: only what was written counts, so it starts anew from that
            log.warning("alerting.waits", error=str(error), next="reads the outbox again when the bus is back")
            self._stop_leading()
            return RETRY_SECONDS

    async def _begin_leading(self) -> None:
        self._seen_while_loading = {}
        try:
            await self._load_desk(self._seen_while_loading)
        finally:
            self._seen_while_loading = None

    async def _load_desk(self, seen_meanwhile: Mapping[str, Incident]) -> None:
        contents = await self._outbox.load()
        read = await self._journal.read_incidents()
        incidents = {key: each for key, each in read.items() if each.kind != BUS_LOST}
        now = self._unix_time()
        desk = Desk(self._policy.alerts, self._rules)
        desk.load(contents.threads.values(), incidents, now)
        for incident in self._journal.incidents().values():
            if incident.key not in incidents and incident.kind != BUS_LOST:
                desk.see(incident)
        for letter in contents.letters:
            for name in letter.channels:
                if name not in letter.done:
                    await self._put(name, letter)
        await self._alerts.open()
        self._rung = True
        for incident in seen_meanwhile.values():
            desk.see(incident)
        self.desk = desk
        log.info("alerting.leads", letters=len(contents.letters), threads=len(contents.threads))

    def _stop_leading(self) -> None:
        self.desk = None
        self._alerts.reset()
        for line in self._lines.values():
            line.clear()

    async def _desk_turn(self) -> float:
        desk = self.desk
        if desk is None:
            return RETRY_SECONDS
        await self._take_alerts(desk)
        decision = desk.decide(self._unix_time(), self._around())
        self._dispatching = bool(decision.sends)
        try:
            await self._dispatch(decision.sends)
        finally:
            self._dispatching = False
        if self._alerts.in_hand and desk.untold_notes() == 0:
            await self._alerts.done()
        for thread in decision.forgotten:
            await self._outbox.forget(thread)
        if self._rung:
            return 0.0
        if decision.next_check is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, max(0.0, decision.next_check - self._unix_time()))

    async def _take_alerts(self, desk: Desk) -> None:
        now = self._loop.time()
        if not self._rung and now - self._alerts_looked_at < ALERTS_LOOK_SECONDS:
            return
        self._rung, self._alerts_looked_at = False, now
        for incident in await self._alerts.take():
            if not desk.note(incident):
                continue
            fields = {"key": incident.key, "severity": incident.severity.name.lower()}
            text = f"{incident.title}: {incident.detail}"
            self._tell(Event(self._unix_time(), "incident.noted", incident.subject, text, fields))
        self._rung = self._rung or self._alerts.in_hand >= AT_ONCE

    async def _dispatch(self, sends: Sequence[Send]) -> None:
        """Writes each down, and hands it to its channels' lines."""
        if not sends:
            return
        alerts = self._policy.alerts
        asked = [each for send in sends if len(send.incidents) < wording.TABLE_FROM for each in send.incidents]
        logs = await self._knowledge.log_lines(
            asked[: COMPOSE_LOGS_MAX * 4], alerts.log_lines, alerts.log_lines_seconds
        )
        incidents = {key: each for key, each in self._journal.incidents().items() if each.resolved_at is None}
        make = self._knowledge.item_maker(incidents, self._unix_time())

        def item(incident: Incident) -> Item:
            made = make(incident)
            return replace(made, log_lines=logs[incident.key]) if incident.key in logs else made

        for send in sends:
            keys = {each.key for each in send.incidents if each.kind in wording.EXPLAINS_OTHERS}
            explained = [each for each in incidents.values() if each.inhibited_by in keys] if keys else []
            notification = wording.notification(
                send, item, explained, alerts.rows_max, self._unix_time(), self._site, self._link_of(send)
            )
            if not send.channels:
                await self._outbox.save(send.thread)
                continue
            letter = await self._outbox.put(notification, send.channels, send.thread)
            for name in send.channels:
                await self._put(name, letter)

    def _link_of(self, send: Send) -> str:
        """To the page of the first: an agent's own alert is no record, so it has none."""
        if send.transition is Transition.NOTED or not send.incidents:
            return ""
        return self._link(send.incidents[0].key)

    async def _put(self, name: str, letter: Letter) -> None:
        line = self._lines.get(name)
        if line is not None:
            line.put(letter)
            return
        text = f"channel {name} is not configured any more; it was not told: {letter.notification.subject}"
        log.error("alert.no_such_channel", channel=name, notification=letter.notification.id)
        self._tell(Event(self._unix_time(), "channel.gone", name, text, {"notification": letter.notification.id}))
        await self._outbox.done(letter, name)

    def _around(self) -> Surroundings:
        windows = in_force(self._journal.maintenance().values())
        silences, seconds = tuple(self._journal.silences().values()), self._policy.brewing_seconds
        return Surroundings(self._knowledge.subject, silences, windows, self._melting(), seconds)

    def _delivery_of(self, channel: str) -> AlertPolicy:
        """The section `alerts`, with what the channel has of its own."""
        own = self._rules.delivery.get(channel)
        return replace(self._policy.alerts, **own) if own else self._policy.alerts

    def _tell_of_channel(self, kind: str, subject: str, text: str, fields: dict[str, str]) -> None:
        self._tell(Event(self._unix_time(), kind, subject, text, fields))

    async def _start_lines(self, tasks: asyncio.TaskGroup) -> None:
        for name in [name for name in self._running if name not in self._lines]:
            self._running.pop(name).cancel()
        for name, line in self._lines.items():
            if name not in self._running:
                self._running[name] = tasks.create_task(line.run(), name=f"channel-{name}")
        retired, self._retired = self._retired, []
        for channel in retired:
            await channel.close()

    async def _look_for_channels(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_CHANNELS_SECONDS)
            for line in list(self._lines.values()):
                await line.look_again()

    async def _until_woken(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    # When the bus itself is gone.

    def _waits_from_memory(self, incident: Incident) -> bool:
        thread = self._thread_from_memory(incident)
        return any(line.holds(thread) for line in self._lines.values())

    def _thread_from_memory(self, incident: Incident) -> str:
        return f"bus-lost-{self._site}-{incident.opened_at:.0f}"

    def _send_from_memory(self, incident: Incident, transition: Transition) -> None:
        at = self._unix_time()
        way = routed(incident, Subject(), self._rules.routes, self._rules.channels, at)
        thread = self._thread_from_memory(incident)
        over = transition is Transition.RESOLVED
        subject = f"[resolved] the bus is back: {incident.resolution}" if over else f"[critical] {incident.title}"
        notification = Notification(
            id=f"{thread}-{transition.value}",
            thread=thread,
            transition=transition,
            severity=incident.severity,
            at=at,
            subject=subject,
            items=(Item(incident, f"monitor {self._site}", "it is tried again and again; nothing is rebuilt"),),
            site=self._site,
        )
        for name in way.channels:
            if name in self._lines:
                self._lines[name].put(Letter(notification, way.channels))
