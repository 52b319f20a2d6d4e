"""What tests of alerting stand on: incidents, a channel that writes down what it is given, and an alerting part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from healthmonitor.alerting import Alerting
from healthmonitor.bus_alarm import AlarmNote
from healthmonitor.channels.channel import Channel, ChannelRefused, ChannelUnavailable, Item, Notification, Receipt
from healthmonitor.core.deviations import KINDS
from healthmonitor.core.incidents import instance_of
from healthmonitor.core.notifying.desk import Rules
from healthmonitor.core.notifying.routing import Subject
from healthmonitor.core.policy import AlertPolicy, Policy
from healthmonitor.core.records import Event, Incident, Severity
from protocol.alert import Alert
from protocol.bus import Bus
from protocol.ids import AgentId

SITE = "hm"


def incident(
    subject: str = "shop/db/0",
    kind: str = "vm_missing",
    *,
    at: float = 1000.0,
    severity: Severity | None = None,
    over_at: float | None = None,
    inhibited_by: str = "",
    title: str = "",
) -> Incident:
    known = KINDS.get(kind)
    return Incident(
        key=f"{kind}:{subject}",
        kind=kind,
        subject=subject,
        severity=severity or (known.severity if known else Severity.ERROR),
        title=title or f"{subject} {kind}",
        detail="because",
        opened_at=at,
        updated_at=over_at or at,
        resolved_at=over_at,
        resolution="" if over_at is None else f"over after {over_at - at:.0f} s",
        inhibited_by=inhibited_by,
        next_step=f"resurgam status {subject}",
    )


def over(opened: Incident, at: float) -> Incident:
    return replace(opened, resolved_at=at, updated_at=at, resolution=f"over after {at - opened.opened_at:.0f} s")


class RecordingChannel:
    """`script`: what it does with the next ones, instead of taking them: an error to raise, or seconds to take."""

    def __init__(self, name: str = "recording", script: Iterable[Exception | float] = ()) -> None:
        self.name = name
        self.script: list[Exception | float] = list(script)
        self.down: Exception | None = None
        self.taken: list[Notification] = []
        self.tries = 0
        self.try_times: list[float] = []
        self.closed = False
        self.on_take: Callable[[Notification], None] = lambda notification: None

    async def deliver(self, notification: Notification) -> Receipt:
        self.tries += 1
        self.try_times.append(asyncio.get_running_loop().time())
        if self.down is not None:
            raise self.down
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if step is not None:
            await asyncio.sleep(step)
        self.taken.append(notification)
        self.on_take(notification)
        return Receipt("250 taken")

    async def reach(self) -> None:
        return None

    async def close(self) -> None:
        self.closed = True

    def told(self) -> list[tuple[str, str]]:
        """(transition, incident) of everything that was taken, in order."""
        return [(each.transition.value, item.incident.key) for each in self.taken for item in each.items]

    def transitions(self) -> list[str]:
        return [each.transition.value for each in self.taken]


def unavailable(text: str = "421 later", retry_after_seconds: float = 0.0) -> ChannelUnavailable:
    return ChannelUnavailable(text, retry_after_seconds)


def refused(text: str = "550 no such user") -> ChannelRefused:
    return ChannelRefused(text)


class PlainKnowledge:
    """What is known of incidents when nothing is."""

    def subject(self, about: Incident) -> Subject:
        return subject_of(about)

    def item_maker(self, incidents: Mapping[str, Incident], unix_now: float) -> Callable[[Incident], Item]:
        return lambda each: Item(each, each.subject, "")

    async def log_lines(self, incidents: Iterable[Incident], most: int, seconds: float) -> dict[str, tuple[str, ...]]:
        return {}


def subject_of(about: Incident) -> Subject:
    instance = instance_of(about)
    if not instance:
        return Subject()
    deployment, group, _ = instance.split("/")
    return Subject(deployment, group, instance)


def alert_incident(agent: AgentId, alert: Alert) -> Incident:
    return incident(f"{agent}:{alert.id}", "agent_alert", over_at=1.0)


def alerting(
    bus: Bus,
    journal: object,
    channels: Iterable[Channel],
    unix_time: Callable[[], float],
    *,
    policy: AlertPolicy | None = None,
    rules: Rules | None = None,
    is_leader: Callable[[], bool] = lambda: True,
    events: list[Event] | None = None,
    note: AlarmNote | None = None,
) -> Alerting:
    told = events if events is not None else []
    return Alerting(
        bus=bus,
        journal=journal,  # type: ignore[arg-type]  # a journal, or a fake of one
        knowledge=PlainKnowledge(),
        channels=list(channels),
        rules=rules or Rules(),
        policy=replace(Policy(), alerts=policy or AlertPolicy()),
        is_leader=is_leader,
        unix_time=unix_time,
        tell=told.append,
        alert_of=alert_incident,
        site=SITE,
        note=note,
    )
