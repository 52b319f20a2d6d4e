"""The configuration's `routes` and `zone` → routes, or every error in them with its line.

Does not know: which types of channels there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from zoneinfo import ZoneInfo

from healthmonitor.core.deviations import KINDS
from healthmonitor.core.notifying.hours import DAY_NAMES, Hours
from healthmonitor.core.notifying.routing import EscalationStep, Route
from healthmonitor.core.records import Severity
from healthmonitor.core.yaml_places import Place, unknown

ROUTES_MAX = 200
STEPS_MAX = 20
GLOB = "*?["
ROUTE_KEYS = (
    "name",
    "severity",
    "deployments",
    "groups",
    "kinds",
    "labels",
    "during",
    "quiet",
    "channels",
    "escalate",
    "repeat",
    "continue",
)
_REFUSED = {
    "match": "write the criteria themselves: severity, deployments, groups, kinds, labels, during",
    "receiver": "write channels: [NAME]",
    "channel": "write channels: [NAME]",
    "to": "write channels: [NAME]",
    "severities": "write severity",
    "deployment": "write deployments",
    "group": "write groups",
    "kind": "write kinds",
    "when": "write during",
    "quiet_hours": "write quiet",
    "escalation": "write escalate",
}
_TIME = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")
_SHORT_DAYS = {name[:3]: index for index, name in enumerate(DAY_NAMES)}


def read_zone(place: Place) -> str:
    text = place.text("a time zone such as Europe/Berlin")
    try:
        ZoneInfo(text)
    except (ValueError, OSError, LookupError):
        # what ZoneInfo raises for names that are none, that are paths, that are directories
        place.error(f"{text[:60]!r} is no time zone known here; expected such as UTC or Europe/Berlin")
        return "UTC"
    return text


def read_routes(place: Place, channels: Iterable[str], zone: str) -> tuple[Route, ...]:
    """`channels`: the names of those that are configured."""
    known = tuple(channels)
    routes: list[Route] = []
    items = place.items("a list of routes: - {channels: [NAME]}")
    if len(items) > ROUTES_MAX:
        place.error(f"{len(items)} routes; at most {ROUTES_MAX}")
    for number, item in enumerate(items[:ROUTES_MAX]):
        route = _route(item, number, known, zone)
        if route.name in {each.name for each in routes}:
            item.error(f"a second route {route.name!r}; names are unique")
        if routes and _catches_all(routes[-1]) and not routes[-1].goes_on:
            before = routes[-1].name
            item.error(f"never reached: route {before} before it matches everything (write `continue: true` there)")
        routes.append(route)
    return tuple(routes)


def _route(item: Place, number: int, known: tuple[str, ...], zone: str) -> Route:
    fields = item.fields(ROUTE_KEYS, _REFUSED)
    if "channels" not in fields and item.is_mapping:
        item.error("channels is missing; [] is a route to nobody")
    return Route(
        name=fields["name"].name("route's name") if "name" in fields else f"route-{number + 1}",
        channels=_channels(fields["channels"], known) if "channels" in fields else (),
        severities=frozenset(_severities(fields["severity"])) if "severity" in fields else frozenset(),
        deployments=_globs(fields, "deployments"),
        groups=_globs(fields, "groups"),
        kinds=_kinds(fields["kinds"]) if "kinds" in fields else (),
        labels=fields["labels"].pairs("=", '["team=db"]') if "labels" in fields else {},
        during=_hours(fields["during"], zone) if "during" in fields else (),
        quiet=_hours(fields["quiet"], zone) if "quiet" in fields else (),
        escalate=_steps(fields["escalate"], known) if "escalate" in fields else (),
        repeat_seconds=fields["repeat"].duration(0.0, 30 * 86400.0) if "repeat" in fields else None,
        goes_on=fields["continue"].boolean() if "continue" in fields else False,
    )


def _catches_all(route: Route) -> bool:
    return not (route.severities or route.deployments or route.groups or route.kinds or route.labels or route.during)


def _channels(place: Place, known: tuple[str, ...]) -> tuple[str, ...]:
    names: list[str] = []
    for item in place.items("a list of channels' names"):
        name = item.text("a channel's name")
        if name and name not in known:
            item.error(unknown("channel", name, known))
        elif name in names:
            item.error(f"{name} stands here a second time")
        names.append(name)
    return tuple(names)


def _severities(place: Place) -> Iterable[Severity]:
    """`critical`, `[critical, alert]`, or BOSH's numbers 1 to 4."""
    words = {severity.name.lower(): severity for severity in Severity}
    words |= {str(severity.value): severity for severity in Severity}
    for item in place.items() if place.is_list else [place]:
        text = item.text("a severity").lower()
        if text in words:
            yield words[text]
        elif text:
            item.error(unknown("severity", text, [severity.name.lower() for severity in Severity]))


def _globs(fields: Mapping[str, Place], key: str) -> tuple[str, ...]:
    return fields[key].text_or_texts("a name such as shop, or with wild cards: shop-*") if key in fields else ()


def _kinds(place: Place) -> tuple[str, ...]:
    kinds = place.text_or_texts("a kind of incident such as vm_missing, or with wild cards: disk_*")
    for kind in kinds:
        if kind not in KINDS and not any(character in kind for character in GLOB):
            place.error(unknown("kind", kind, KINDS))
    return kinds


def _steps(place: Place, known: tuple[str, ...]) -> tuple[EscalationStep, ...]:
    steps: list[EscalationStep] = []
    for item in place.items("a list of {after: 15m, channels: [NAME]}")[:STEPS_MAX]:
        fields = item.fields(("after", "channels"), {"to": "write channels: [NAME]"})
        for key in ("after", "channels"):
            if key not in fields and item.is_mapping:
                item.error(f"{key} is missing")
        after = fields["after"].duration(1.0, 30 * 86400.0) if "after" in fields else 1.0
        if steps and after <= steps[-1].after_seconds:
            fields.get("after", item).error("must be later than the step before")
        channels = _channels(fields["channels"], known) if "channels" in fields else ()
        if not channels and "channels" in fields and fields["channels"].is_list:
            fields["channels"].error("a step to nobody; name a channel")
        steps.append(EscalationStep(after, channels))
    return tuple(steps)


def _hours(place: Place, zone: str) -> tuple[Hours, ...]:
    found: list[Hours] = []
    for item in place.items("a list of {days, from, to}") if place.is_list else [place]:
        fields = item.fields(("days", "from", "to", "zone"), {"at": "write from", "until": "write to"})
        if ("from" in fields) != ("to" in fields):
            item.error("from and to belong together")
        if item.is_mapping and not fields:
            item.error("expected days, or from and to, or both")
        start = _clock(fields["from"]) if "from" in fields else 0
        end = _clock(fields["to"]) if "to" in fields else 0
        if "from" in fields and "to" in fields and start == end % 86400:
            fields["to"].error("is the same as from; leave both out for the whole day")
        found.append(
            Hours(
                days=_days(fields["days"]) if "days" in fields else frozenset(range(7)),
                start_seconds=start,
                end_seconds=end,
                zone=read_zone(fields["zone"]) if "zone" in fields else zone,
            )
        )
    return tuple(found)


def _days(place: Place) -> frozenset[int]:
    """`monday`, `mon-fri`, `[saturday, sunday]`."""
    days: set[int] = set()
    for item in place.items() if place.is_list else [place]:
        text = item.text("a day such as monday, or mon-fri").lower()
        first, dash, last = text.partition("-")
        numbers = [_day(part) for part in ((first, last) if dash else (first,))]
        if None in numbers:
            item.error(f"{text[:40]!r} is no day; expected such as monday, mon-fri, or [saturday, sunday]")
            continue
        begin, end = numbers[0] or 0, numbers[-1] or 0
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days) or frozenset(range(7))


def _day(text: str) -> int | None:
    text = text.strip()
    day = _SHORT_DAYS.get(text[:3])
    return day if day is not None and DAY_NAMES[day].startswith(text) else None


def _clock(place: Place) -> int:
    text = place.text('a time such as "08:00"')
    match = _TIME.fullmatch(text)
    if match is None or (match[1] == "24" and match[2] != "00"):
        place.error(f'{text[:20]!r} is no time of day; expected such as "08:00"')
        return 0
    return int(match[1]) * 3600 + int(match[2]) * 60
