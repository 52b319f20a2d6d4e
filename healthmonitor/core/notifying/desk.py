"""The desk: what is told when. Incidents go in, notifications come out.

Laws:
- Level, not edge: what is open and in no thread is told as soon as nothing holds it back, whoever led before.
- What happens at once is told at once together: a group is sent when nothing joined it for `group_wait`, at the latest
  after `group_longest`, and at once when it is full.
- One thread from opening to resolution. It is told again with gaps that double, and escalated, until somebody
  acknowledges; it is over, and told so to everybody who was told, when its last incident is.
- What is inhibited, silenced or in a maintenance window is not told, and is told when that ends and it is still there.
- A loss that may be one of many is not told before that is known: it is then told as part of the meltdown, or alone.

Does not know: channels' insides, the outbox, what the text says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from healthmonitor.core.maintenance import Window, open_window
from healthmonitor.core.meltdown import FLEET
from healthmonitor.core.notifying.notification import Transition
from healthmonitor.core.notifying.routing import Route, Routed, Subject, routed
from healthmonitor.core.notifying.silences import describe, matching
from healthmonitor.core.notifying.thread import Acknowledgement, Member, Send, Thread, is_flapping, thread_id
from healthmonitor.core.policy import AlertPolicy
from healthmonitor.core.records import Incident, Silence

HELD_LOOK_SECONDS = 5.0
"""How often what is held back is looked at again when nothing else happens: silences and windows end by the clock."""
GATHERED_LOOK_SECONDS = 0.5
"""The same while it waits to be known whether a loss is one of many."""
OF_MANY = "others fell silent at the same time; in a moment it is known whether it is one of many"
_OF_MANY = frozenset({"vm_missing", "vm_suspect", "operation_held", "meltdown"})
"""Kinds that a meltdown explains: `incidents.py`."""
CLOSED_KEPT_SECONDS = 600.0
"""How long a thread that is over is remembered, so that a new leader does not tell of its incidents again."""
AGENT_ALERT = "agent_alert"
"""The kind of what happened once and has no end."""
PROGRESS_SECONDS = 60.0
"""When some of a thread are over it is said after this, then after twice as long, and so on."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says. `channels`: all there are. `delivery`: channel → fields of AlertPolicy that are its
    own."""

    routes: tuple[Route, ...] = ()
    channels: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()
    delivery: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is so at this moment."""

    subject_of: Callable[[Incident], Subject]
    silences: tuple[Silence, ...] = ()
    windows: tuple[Window, ...] = ()  # of maintenance, that people added
    melting: frozenset[str] = frozenset()
    """Scopes ("fleet", a deployment) in which a meltdown holds, or will if all suspects turn out to be missing."""
    melting_seconds: float = 0.0
    """For how long a loss waits, at most, for what is known of the others."""


@dataclass(frozen=True, slots=True)
class DeskDecision:
    sends: tuple[Send, ...] = ()
    forgotten: tuple[str, ...] = ()  # threads that are over for long
    next_check: float | None = None  # Unix seconds


@dataclass(slots=True)
class _Group:
    routed: Routed
    first_at: float
    last_at: float
    incidents: dict[str, Incident] = field(default_factory=dict)


@dataclass(slots=True)
class _Live:
    """A thread, with its members by key: a thousand of them end one by one."""

    thread: Thread
    members: dict[str, Member]
    incidents: dict[str, Incident]
    open: int
    raised: dict[str, None] = field(default_factory=dict)  # graver, or flapping, since they were told
    over_untold: int = 0

    def frozen(self) -> Thread:
        return replace(self.thread, members=tuple(self.members.values()))


class Desk:
    """Times are Unix seconds: they are for people, and outlive this process."""

    def __init__(self, policy: AlertPolicy, rules: Rules) -> None:
        self.policy = policy
        self.rules = rules
        self._live: dict[str, _Live] = {}  # thread → what is known of it, also those over lately
        self._thread_of: dict[str, str] = {}  # incident → thread, while it is not over
        self._waiting: dict[str, Incident] = {}  # seen and not looked at yet
        self._held: dict[str, tuple[Incident, str]] = {}  # and why
        self._groups: dict[tuple[object, ...], _Group] = {}
        self._noted: dict[str, Incident] = {}
        self._note_told_in: dict[str, str] = {}  # what happened once → its thread, while that is remembered
        self._held_looked_at = float("-inf")
        self._look_again = False
        self._decided_at = float("-inf")

    def load(self, threads: Iterable[Thread], incidents: Mapping[str, Incident], now: float) -> None:
        """What a former leader, or this monitor before its restart, wrote down."""
        remembered: set[tuple[str, float]] = set()
        for thread in threads:
            live = _Live(
                thread,
                {each.key: each for each in thread.members},
                {e.key: incidents[e.key] for e in thread.members if e.over_at is None and e.key in incidents},
                sum(each.over_at is None for each in thread.members),
            )
            self._live[thread.id] = live
            remembered.update((each.key, each.opened_at) for each in thread.members)
            if thread.kind == AGENT_ALERT:
                self._note_told_in.update((each.key, thread.id) for each in thread.members)
            elif thread.over_at is None:
                self._load_members(live, incidents, now)
        for incident in incidents.values():
            is_news = incident.resolved_at is None or (
                incident.resolved_at > now - CLOSED_KEPT_SECONDS
                and (incident.key, incident.opened_at) not in remembered
                and not incident.inhibited_by
            )
            if incident.key in self._thread_of:
                self.see(incident)
            elif is_news:
                self._waiting.setdefault(incident.key, incident)

    def _load_members(self, live: _Live, incidents: Mapping[str, Incident], now: float) -> None:
        """Those that are not over by the thread's last word belong to it while the record is of the same incident. One
        that was over and opened again meanwhile is another, perhaps in another thread: here it is over."""
        for member in [each for each in live.members.values() if each.over_at is None]:
            incident = incidents.get(member.key)
            if incident is not None and incident.opened_at == member.opened_at:
                self._thread_of[member.key] = live.thread.id
                continue
            live.incidents[member.key] = _superseded(member, live.thread.kind, incident, now)
            _end(live, member.key, now)

    def see(self, incident: Incident) -> None:
        """An incident was opened, has changed, or is over."""
        key = incident.key
        if key in self._thread_of:
            self._in_thread(incident)
        elif key in self._waiting:
            self._waiting[key] = incident
        elif (group := self._group_of(key)) is not None:
            group.incidents[key] = incident
        elif incident.resolved_at is None:
            self._held.pop(key, None)
            self._waiting[key] = incident
        else:
            self._held.pop(key, None)  # over before anybody was told

    def note(self, incident: Incident) -> bool:
        """Something that happened once and has no end. False: it was told already."""
        if incident.key in self._note_told_in:
            return False
        self._noted[incident.key] = incident
        return True

    def look_again(self) -> None:
        """Silences, routes or windows were changed."""
        self._look_again = True

    def acknowledge(self, key: str, word: Acknowledgement) -> Send | None:
        """None: it is in no thread that is not over."""
        live = self._live_of(key)
        if live is None:
            return None
        live.thread = replace(live.thread, acknowledged=word)
        return self._send(live, Transition.ACKNOWLEDGED, live.thread.channels, list(live.incidents.values()), word.at)

    def decide(self, now: float, around: Surroundings) -> DeskDecision:
        if now < self._decided_at:
            self._clock_went_back(now)
        self._decided_at = now
        self._sort(now, around)
        sends = [*self._noted_sends(now, around), *self._due_groups(now, around)]
        checks: list[float] = []
        for live in self._live.values():
            if live.thread.over_at is None:
                sends.extend(self._news_of(live, now, around, checks))
        forgotten = [
            each.thread.id for each in self._live.values() if (each.thread.over_at or now) < now - CLOSED_KEPT_SECONDS
        ]
        for thread in forgotten:
            for key in self._live.pop(thread).members:
                if self._note_told_in.get(key) == thread:
                    del self._note_told_in[key]
        checks.extend(self._due_at(group) for group in self._groups.values())
        if self._held:
            checks.append(self._held_looked_at + self._held_look_seconds())
        checks.extend(
            each.thread.over_at + CLOSED_KEPT_SECONDS + 1.0
            for each in self._live.values()
            if each.thread.over_at is not None
        )
        return DeskDecision(tuple(sends), tuple(forgotten), min(checks, default=None))

    def explain(self, incident: Incident, now: float, around: Surroundings) -> tuple[str, ...]:
        """Why it went where it went, or why not."""
        subject = around.subject_of(incident)
        way = routed(incident, subject, self.rules.routes, self.rules.channels, now)
        reasons = list(way.reasons)
        reasons.append(f"its channels are {', '.join(way.channels)}" if way.channels else "its route has no channels")
        held = self._why_held(incident, subject, way, now, around)
        if held:
            reasons.append(f"held back: {held}")
        live = self._live_of(incident.key)
        if live is not None:
            reasons.extend(_thread_reasons(live.thread, live.open, self._repeat_at(live)))
        elif incident.key in self._waiting or self._group_of(incident.key) is not None:
            reasons.append("it waits for others to join its notification")
        elif incident.resolved_at is not None:
            reasons.append("it is over")
        elif not held:
            reasons.append("it is about to be told")
        return tuple(reasons)

    def threads(self) -> list[Thread]:
        """All that are not over, and those over lately."""
        return [live.frozen() for live in self._live.values()]

    def thread_of(self, key: str) -> Thread | None:
        live = self._live_of(key)
        return None if live is None else live.frozen()

    def untold_notes(self) -> int:
        return len(self._noted)

    def untold(self) -> int:
        """Incidents that nobody was told of yet, and threads whose end nobody was told of."""
        ended = sum(live.open == 0 and live.thread.over_at is None for live in self._live.values())
        grouped = sum(len(group.incidents) for group in self._groups.values())
        return len(self._waiting) + len(self._held) + len(self._noted) + grouped + ended

    def _clock_went_back(self, now: float) -> None:
        """Whatever is dated in what is now the future would wait until the clock is there again: it is dated now."""
        self._held_looked_at = float("-inf")
        for group in self._groups.values():
            group.first_at, group.last_at = min(group.first_at, now), min(group.last_at, now)
        for live in self._live.values():
            thread = live.thread
            live.thread = replace(thread, opened_at=min(thread.opened_at, now), told_at=min(thread.told_at, now))

    # What is not told yet.

    def _sort(self, now: float, around: Surroundings) -> None:
        """What was seen, and what was held back, into groups or back."""
        if self._look_again or now - self._held_looked_at >= self._held_look_seconds():
            self._look_again = False
            self._held_looked_at = now
            for key, (incident, _) in self._held.items():
                self._waiting.setdefault(key, incident)
            self._held.clear()
        for key, incident in self._waiting.items():
            subject = around.subject_of(incident)
            way = routed(incident, subject, self.rules.routes, self.rules.channels, now)
            why = self._why_held(incident, subject, way, now, around)
            if why:
                if incident.resolved_at is None:
                    self._held[key] = (incident, why)
                continue
            name = (way.route, way.channels, way.escalate, way.repeat_seconds, incident.kind)
            group = self._groups.get(name)
            if group is None or len(group.incidents) >= self.policy.group_max:
                if group is not None:
                    self._groups[(*name, group.first_at, len(self._groups))] = group  # full: it is due
                group = self._groups[name] = _Group(way, now, now)
            group.incidents[key] = incident
            group.last_at = now
        self._waiting.clear()

    def _held_look_seconds(self) -> float:
        waits = any(why == OF_MANY for _, why in self._held.values())
        return GATHERED_LOOK_SECONDS if waits else HELD_LOOK_SECONDS

    def _why_held(self, incident: Incident, subject: Subject, way: Routed, now: float, around: Surroundings) -> str:
        if incident.inhibited_by:
            return f"{incident.inhibited_by} explains it"
        if _is_of_many(incident, subject, around, now):
            return OF_MANY
        why = self._why_muted(incident, subject, now, around)
        if why:
            return why
        if not way.channels:
            return f"route {way.route} has no channels"
        if way.quiet is not None:
            return f"quiet hours of route {way.route}: {way.quiet}"
        return ""

    def _why_muted(self, incident: Incident, subject: Subject, now: float, around: Surroundings) -> str:
        silence = matching(around.silences, incident, subject, now)
        if silence is not None:
            return f"silence {silence.id} by {silence.created_by} ({describe(silence)}): {silence.because}"
        window = open_window((*self.rules.windows, *around.windows), now) if subject.deployment else None
        if window is not None:
            return f"maintenance window: {window.reason or 'no reason given'}"
        return ""

    def _due_at(self, group: _Group) -> float:
        if len(group.incidents) >= self.policy.group_max:
            return group.first_at
        return min(group.last_at + self.policy.group_wait_seconds, group.first_at + self.policy.group_longest_seconds)

    def _due_groups(self, now: float, around: Surroundings) -> Iterable[Send]:
        for name in [name for name, group in self._groups.items() if now >= self._due_at(group)]:
            group = self._groups.pop(name)
            incidents: list[Incident] = []
            for key, incident in group.incidents.items():
                why = self._why_held(incident, around.subject_of(incident), group.routed, now, around)
                if not why:
                    incidents.append(incident)
                elif incident.resolved_at is None:  # its cause was found, or it was silenced, while it waited
                    self._held[key] = (incident, why)
            if incidents:
                yield self._open(incidents, group.routed, now)

    def _open(self, incidents: list[Incident], way: Routed, now: float) -> Send:
        members = {each.key: _member(each) for each in incidents}
        still_open = [each for each in incidents if each.resolved_at is None]
        repeat = self.policy.repeat_seconds if way.repeat_seconds is None else way.repeat_seconds
        thread = Thread(
            id=thread_id(incidents[0]),
            number=0,
            route=way.route,
            kind=incidents[0].kind,
            channels=(),
            members=(),
            opened_at=now,
            told_at=now,
            escalate=way.escalate,
            repeat_seconds=repeat,
        )
        live = _Live(thread, members, {each.key: each for each in incidents}, len(still_open))
        self._live[thread.id] = live
        self._thread_of.update((each.key, thread.id) for each in still_open)
        if not still_open:
            live.thread = replace(live.thread, over_at=now)
        transition = Transition.OPENED if still_open else Transition.RESOLVED
        return self._send(live, transition, way.channels, incidents, now)

    def _noted_sends(self, now: float, around: Surroundings) -> Iterable[Send]:
        if not self._noted:
            return
        grouped: dict[tuple[str, ...], list[Incident]] = {}
        for incident in self._noted.values():
            subject = around.subject_of(incident)
            way = routed(incident, subject, self.rules.routes, self.rules.channels, now)
            if way.channels and not self._why_muted(incident, subject, now, around):
                grouped.setdefault(way.channels, []).append(incident)
        self._noted.clear()
        for channels, incidents in grouped.items():
            for start in range(0, len(incidents), self.policy.group_max):
                part = incidents[start : start + self.policy.group_max]
                thread = Thread(
                    id=thread_id(part[0]),
                    number=1,
                    route="",
                    kind=part[0].kind,
                    channels=channels,
                    members=tuple(_member(each) for each in part),
                    opened_at=now,
                    told_at=now,
                    over_at=now,
                )
                self._live[thread.id] = _Live(thread, {each.key: each for each in thread.members}, {}, 0)
                self._note_told_in.update((each.key, thread.id) for each in part)
                yield Send(thread, Transition.NOTED, channels, tuple(part))

    # What was told.

    def _in_thread(self, incident: Incident) -> None:
        live = self._live[self._thread_of[incident.key]]
        member = live.members[incident.key]
        live.incidents[incident.key] = incident
        if incident.resolved_at is not None:
            self._over(incident.key, incident.resolved_at)
            return
        flapping = is_flapping(incident)
        if incident.severity.value < member.severity.value or (flapping and not member.flapping):
            live.raised[incident.key] = None
        live.members[incident.key] = replace(member, severity=incident.severity, flapping=flapping)

    def _over(self, key: str, at: float) -> None:
        _end(self._live[self._thread_of.pop(key)], key, at)

    def _news_of(self, live: _Live, now: float, around: Surroundings, checks: list[float]) -> Iterable[Send]:
        thread = live.thread
        if live.open == 0:
            live.thread = replace(thread, over_at=now)
            yield self._send(live, Transition.RESOLVED, thread.channels, list(live.incidents.values()), now)
            live.incidents.clear()
            return
        if live.raised:
            raised = [live.incidents[key] for key in live.raised]
            live.raised.clear()
            way = routed(raised[0], around.subject_of(raised[0]), self.rules.routes, self.rules.channels, now)
            if not all(self._why_muted(each, around.subject_of(each), now, around) for each in raised):
                channels = tuple(dict.fromkeys((*thread.channels, *way.channels)))
                yield self._send(live, Transition.CHANGED, channels, raised, now)
        escalate_at, repeat_at, progress_at = self._escalate_at(live), self._repeat_at(live), self._progress_at(live)
        due = [at for at in (escalate_at, repeat_at, progress_at) if at is not None]
        if due and min(due) <= now:
            if self._is_muted(live, now, around):
                checks.append(now + HELD_LOOK_SECONDS)
                return
            if escalate_at is not None and escalate_at <= now:
                step = thread.escalate[thread.escalated]
                live.thread = replace(live.thread, escalated=thread.escalated + 1)
                yield self._send(live, Transition.ESCALATED, step.channels, _open_of(live), now)
            elif repeat_at is not None and repeat_at <= now:
                live.thread = replace(live.thread, repeats=live.thread.repeats + 1)
                yield self._send(live, Transition.REPEATED, live.thread.channels, _open_of(live), now)
            else:
                live.thread = replace(live.thread, progresses=live.thread.progresses + 1)
                over = [each for each in live.incidents.values() if each.resolved_at is not None]
                yield self._send(live, Transition.CHANGED, live.thread.channels, [*over, *_open_of(live)], now)
                for each in over:
                    del live.incidents[each.key]  # said once
        checks.extend(
            at for at in (self._escalate_at(live), self._repeat_at(live), self._progress_at(live)) if at is not None
        )

    def _is_muted(self, live: _Live, now: float, around: Surroundings) -> bool:
        """Whether all that is not over is inhibited, silenced, in a window, or quiet at this hour."""
        for incident in _open_of(live):
            subject = around.subject_of(incident)
            way = routed(incident, subject, self.rules.routes, self.rules.channels, now)
            if not incident.inhibited_by and way.quiet is None and not self._why_muted(incident, subject, now, around):
                return False
        return True

    def _escalate_at(self, live: _Live) -> float | None:
        thread = live.thread
        if thread.acknowledged is not None or thread.escalated >= len(thread.escalate):
            return None
        return thread.opened_at + thread.escalate[thread.escalated].after_seconds

    def _repeat_at(self, live: _Live) -> float | None:
        thread = live.thread
        if thread.acknowledged is not None or not thread.repeat_seconds:
            return None
        gap = thread.repeat_seconds * 2.0 ** min(thread.repeats, 40)
        return thread.told_at + max(thread.repeat_seconds, min(gap, self.policy.repeat_longest_seconds))

    def _progress_at(self, live: _Live) -> float | None:
        if not live.over_untold:
            return None
        return live.thread.told_at + PROGRESS_SECONDS * 2.0 ** min(live.thread.progresses, 40)

    def _send(
        self, live: _Live, transition: Transition, channels: tuple[str, ...], incidents: list[Incident], now: float
    ) -> Send:
        live.over_untold = 0
        live.thread = replace(
            live.thread,
            number=live.thread.number + 1,
            channels=tuple(dict.fromkeys((*live.thread.channels, *channels))),
            told_at=now,
        )
        return Send(live.frozen(), transition, channels, tuple(incidents))

    def _group_of(self, key: str) -> _Group | None:
        return next((group for group in self._groups.values() if key in group.incidents), None)

    def _live_of(self, key: str) -> _Live | None:
        thread = self._thread_of.get(key)
        return None if thread is None else self._live[thread]


def _is_of_many(incident: Incident, subject: Subject, around: Surroundings, now: float) -> bool:
    if incident.kind not in _OF_MANY or not around.melting or now - incident.opened_at >= around.melting_seconds:
        return False
    if incident.kind == "meltdown":
        return incident.subject != FLEET and FLEET in around.melting
    return FLEET in around.melting or subject.deployment in around.melting


def _member(incident: Incident) -> Member:
    return Member(incident.key, incident.opened_at, incident.severity, is_flapping(incident), incident.resolved_at)


def _end(live: _Live, key: str, at: float) -> None:
    live.members[key] = replace(live.members[key], over_at=at)
    live.raised.pop(key, None)
    live.open -= 1
    live.over_untold += 1


def _superseded(member: Member, kind: str, now_of_that_key: Incident | None, now: float) -> Incident:
    """Of an incident whose record is gone, because it was over for so long that it was pruned, or is of the next."""
    gone = "its record is gone" if now_of_that_key is None else "it was opened again since"
    return Incident(
        key=member.key,
        kind=kind,
        subject=member.key.partition(":")[2],
        severity=member.severity,
        title=member.key if now_of_that_key is None else now_of_that_key.title,
        detail="",
        opened_at=member.opened_at,
        updated_at=now,
        resolved_at=now,
        resolution=f"over; {gone}, so since when is not known",
    )


def _open_of(live: _Live) -> list[Incident]:
    return [each for each in live.incidents.values() if each.resolved_at is None]


def _thread_reasons(thread: Thread, still_open: int, repeat_at: float | None) -> Iterable[str]:
    yield (
        f"told {thread.number} times in thread {thread.id} to {', '.join(thread.channels)}; "
        f"{still_open} of its {len(thread.members)} incidents are open"
    )
    if thread.acknowledged is not None:
        word = thread.acknowledged
        yield f"acknowledged by {word.by}: {word.because}; so it is neither repeated nor escalated"
        return
    if repeat_at is not None:
        yield f"repeated {thread.repeats} times; next {repeat_at - thread.told_at:.0f} s after the last notification"
    for number, step in enumerate(thread.escalate):
        word_ = "was" if number < thread.escalated else "will be"
        yield f"{word_} escalated to {', '.join(step.channels)} {step.after_seconds:.0f} s after it was told first"
