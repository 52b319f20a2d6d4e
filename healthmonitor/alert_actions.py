"""What people may ask of alerting: test, explain, acknowledge, silence. Each change stands in the timeline with who
asked and why.

Law: only the monitor that leads acts, but for testing a channel, which any may. A silence has an end and a reason.

Does not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from healthmonitor.alerting import ChannelView
from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable, Item, Receipt
from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.silences import KEPT_SECONDS, LONGEST_SECONDS, describe, is_on
from healthmonitor.core.notifying.thread import Thread
from healthmonitor.core.operator_changes import NotPossible
from healthmonitor.core.records import Incident, Silence
from healthmonitor.core.units import duration_text
from healthmonitor.journal import EventEntry
from healthmonitor.operator_actions import Answer, Leader, NotFound, NotLeading, Person

SILENCES_MAX = 1000


class AlertsJournal(Protocol):
    def incidents(self) -> Mapping[str, Incident]: ...
    def silences(self) -> Mapping[str, Silence]: ...
    async def save_silence(self, silence: Silence, replacing: Silence | None) -> None: ...
    async def delete_silence(self, silence: Silence) -> None: ...
    async def last_events(self, limit: int) -> list[EventEntry]: ...
    async def record(self, kind: str, subject: str, text: str, fields: Mapping[str, str] | None = None) -> int: ...


class AlertingPart(Protocol):
    def channels(self) -> list[ChannelView]: ...
    def explain(self, incident: Incident) -> tuple[str, ...]: ...
    def look(self, incident: Incident) -> Item: ...
    def thread_of(self, key: str) -> Thread | None: ...
    async def test(self, channel: str, person: str) -> Receipt: ...
    async def acknowledge(self, key: str, by: str, because: str) -> bool: ...
    def look_again(self) -> None: ...
    def warnings(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class SilenceWish:
    deployment: str = ""
    group: str = ""
    instance: str = ""
    kind: str = ""


class AlertActions:
    def __init__(
        self,
        journal: AlertsJournal,
        alerting: AlertingPart,
        leader: Leader,
        unix_time: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._journal = journal
        self._alerting = alerting
        self._leader = leader
        self._unix_time = unix_time
        self._new_id = new_id

    # Looking.

    def channels(self) -> list[ChannelView]:
        return self._alerting.channels()

    def warnings(self) -> list[str]:
        return self._alerting.warnings()

    def silences(self) -> list[Silence]:
        """Those that hold, and those over lately."""
        oldest = self._unix_time() - KEPT_SECONDS
        kept = [each for each in self._journal.silences().values() if each.ends_at > oldest]
        return sorted(kept, key=lambda each: each.ends_at)

    def explain(self, key: str) -> tuple[Incident, tuple[str, ...], Thread | None]:
        self._check_leading()
        incident = self._incident(key)
        return incident, self._alerting.explain(incident), self._alerting.thread_of(incident.key)

    def look(self, key: str) -> tuple[Item, tuple[str, ...], Thread | None]:
        """For the incident's page; any monitor may be asked."""
        incident = self._journal.incidents().get(key)
        if incident is None:
            raise NotFound(f"there is no incident {key[:200]!r}")
        return self._alerting.look(incident), self._alerting.explain(incident), self._alerting.thread_of(key)

    async def events(self, limit: int) -> list[EventEntry]:
        return await self._journal.last_events(limit)

    # Acting.

    async def test(self, channel: str, person: Person) -> Answer:
        """Sends a real one. NotPossible with what the server said when it did not take it."""
        names = [view.name for view in self._alerting.channels()]
        if channel not in names:
            raise NotFound(f"there is no channel {channel!r}; there are {', '.join(names) or 'none'}")
        try:
            receipt = await self._alerting.test(channel, str(person))
        except ChannelUnavailable as error:
            raise NotPossible(
                f"channel {channel} is unavailable: {harmless.line(str(error))}", "try again later"
            ) from None
        except ChannelRefused as error:
            hint = "correct the channel's options and reload"
            raise NotPossible(f"channel {channel} refused it: {harmless.line(str(error))}", hint) from None
        except TimeoutError:
            raise NotPossible(f"channel {channel} did not answer in time", "alerts.try_timeout says how long") from None
        said = harmless.line(receipt.said)
        if self._leader.is_leader():
            fields = {"by": str(person), "said": said}
            await self._journal.record(
                "alert.tested", channel, f"channel {channel} was tested by {person}: {said}", fields
            )
        return Answer(f"channel {channel} took it: {said}", "", {"channel": channel, "said": said})

    async def acknowledge(self, key: str, person: Person, because: str) -> Answer:
        self._check_leading()
        incident = self._incident(key)
        _check_reason(because)
        if incident.resolved_at is not None:
            raise NotPossible(f"{incident.key} is over")
        if not await self._alerting.acknowledge(incident.key, str(person), because):
            raise NotPossible(
                f"nobody was told of {incident.key} yet, so there is nothing to acknowledge",
                f"resurgam alert explain {incident.key}",
            )
        text = f"{incident.key} is acknowledged: it is neither repeated nor escalated until it is over"
        await self._note("alert.acknowledged", incident.subject, text, person, because, {"key": incident.key})
        return Answer(text, f"resurgam alert explain {incident.key}", {"key": incident.key})

    async def silence(self, wish: SilenceWish, seconds: float, person: Person, because: str) -> Answer:
        self._check_leading()
        _check_reason(because)
        if not (wish.deployment or wish.group or wish.instance or wish.kind):
            raise NotPossible("a silence of everything is none", "name a deployment, group, instance or kind")
        if not 0 < seconds <= LONGEST_SECONDS:
            raise NotPossible(f"a silence lasts at most {duration_text(LONGEST_SECONDS)}")
        await self._forget_old()
        if len(self._journal.silences()) >= SILENCES_MAX:
            raise NotPossible(f"there are {SILENCES_MAX} silences already", "resurgam silence list")
        now = self._unix_time()
        silence = Silence(
            id=self._new_id()[:8],
            ends_at=now + seconds,
            created_at=now,
            created_by=str(person),
            because=because,
            deployment=wish.deployment,
            group=wish.group,
            instance=wish.instance,
            kind=wish.kind,
        )
        await self._journal.save_silence(silence, None)
        self._alerting.look_again()
        text = f"silence {silence.id}: {describe(silence)}, for {duration_text(round(seconds))}"
        await self._note("alert.silenced", describe(silence), text, person, because, {"silence": silence.id})
        return Answer(text, f"resurgam silence end {silence.id}", {"id": silence.id, "ends_at": silence.ends_at})

    async def end_silence(self, silence_id: str, person: Person, because: str) -> Answer:
        self._check_leading()
        silence = self._journal.silences().get(silence_id)
        if silence is None:
            raise NotFound(f"there is no silence {silence_id!r}")
        now = self._unix_time()
        if not is_on(silence, now):
            raise NotPossible(f"silence {silence_id} is over already")
        await self._journal.save_silence(replace(silence, ends_at=now, ended_by=str(person)), silence)
        self._alerting.look_again()
        text = f"silence {silence_id} ({describe(silence)}) is ended; what is still wrong is told now"
        await self._note("alert.silence_ended", describe(silence), text, person, because, {"silence": silence_id})
        return Answer(text, "resurgam incidents", {"id": silence_id})

    async def _forget_old(self) -> None:
        oldest = self._unix_time() - KEPT_SECONDS
        for silence in list(self._journal.silences().values()):
            if silence.ends_at < oldest:
                await self._journal.delete_silence(silence)

    async def _note(
        self, kind: str, subject: str, text: str, person: Person, because: str, fields: dict[str, Any]
    ) -> None:
        said = f"{text}; by {person}" + (f": {because}" if because else "")
        await self._journal.record(kind, subject, said, {"by": str(person), "because": because, **fields})

    def _incident(self, key: str) -> Incident:
        """By its key, or by its subject when there is one open incident of it."""
        incidents = self._journal.incidents()
        if key in incidents:
            return incidents[key]
        named = [each for each in incidents.values() if each.subject == key and each.resolved_at is None]
        if len(named) == 1:
            return named[0]
        if named:
            listed = ", ".join(sorted(each.key for each in named)[:10])
            raise NotFound(f"{key} has several open incidents: {listed}")
        raise NotFound(f"there is no incident {key[:200]!r}; `resurgam incidents --output json` lists their keys")

    def _check_leading(self) -> None:
        if not self._leader.is_leader():
            raise NotLeading(self._leader.leader_name(), self._leader.leader_address())


def _check_reason(because: str) -> None:
    if not because.strip():
        raise NotPossible("a reason is needed", "add --because")
