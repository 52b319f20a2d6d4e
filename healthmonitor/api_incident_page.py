"""The HTTP API's one page for people with a browser: an incident, as the links in notifications point to it.

Law: it is shown to whoever brings a signed link that has not expired, or a token of any role; without any token
configured, to people on this machine. A signed link gives nothing but this page.

Does not know: how the page looks (`incident_page.py`), how links are signed (`core/notifying/links.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.links import is_signed
from healthmonitor.core.notifying.notification import Item
from healthmonitor.core.notifying.thread import Thread
from healthmonitor.core.records import Event, Incident
from healthmonitor.incident_page import EVENTS_MAX, HEADERS, PageFacts, page, refused
from healthmonitor.journal import EventEntry
from healthmonitor.operator_actions import NotFound
from protocol.bus import BusError

EVENTS_READ = 2000
BEFORE_SECONDS = 300.0
"""What happened shortly before an incident belongs to its story."""
KEY_MAX_CHARACTERS = 1000


class Known(Protocol):
    """`alert_actions.py`."""

    def look(self, key: str) -> tuple[Item, tuple[str, ...], Thread | None]:
        """NotFound when there is no such incident (any more)."""
        ...

    async def events(self, limit: int) -> list[EventEntry]: ...


class IncidentPage:
    """`may_look(request)`: whether its token, or its place, allows it. `token()`: that which signs links."""

    def __init__(
        self,
        known: Known,
        may_look: Callable[[Request], bool],
        token: Callable[[], str],
        site: str,
        unix_time: Callable[[], float],
    ) -> None:
        self._known = known
        self._may_look = may_look
        self._token = token
        self._site = site
        self._unix_time = unix_time

    async def show(self, request: Request) -> Response:
        now = self._unix_time()
        query = request.query_params
        key = query.get("key", "")[:KEY_MAX_CHARACTERS]
        signed = is_signed(self._token(), key, query.get("until", ""), query.get("sign", ""), now)
        if not signed and not self._may_look(request):
            text = "This link is not valid, or not any more: open the one of a newer notification, or ask the command:"
            return _reply(401, refused("Not to be seen", f"{text} resurgam alert explain INCIDENT"))
        try:
            item, reasons, thread = self._known.look(key)
        except NotFound:
            text = "There is no such incident, or it was over for so long that it was forgotten. Ask the command:"
            return _reply(404, refused("Nothing here", f"{text} resurgam events"))
        facts = PageFacts(harmless.item(item), reasons, thread, await self._events(item.incident), self._site, now)
        return _reply(200, page(facts))

    async def _events(self, incident: Incident) -> list[Event]:
        """Those of it and of its place, as far as the timeline can be read now."""
        try:
            entries = await self._known.events(EVENTS_READ)
        except BusError:
            return []
        since = incident.opened_at - BEFORE_SECONDS
        until = float("inf") if incident.resolved_at is None else incident.resolved_at + BEFORE_SECONDS
        place = "/".join(incident.subject.split("/")[:3])
        found = [
            entry.event
            for entry in entries
            if since <= entry.event.at <= until
            and (entry.event.subject in (incident.subject, place) or entry.event.fields.get("key") == incident.key)
        ]
        return found[-EVENTS_MAX:]


def _reply(status: int, html: str) -> Response:
    return HTMLResponse(html, status_code=status, headers=HEADERS)
