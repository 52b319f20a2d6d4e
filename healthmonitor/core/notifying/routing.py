"""Which channels an incident goes to, and why.

Laws:
- Routes are tried in order; the first that matches decides, unless it says `continue`: then the next that match add.
- What no route matches goes to every channel: nothing is dropped unless somebody wrote a route without channels.
- A channel that cannot deliver is told of on the others.

Does not know: silences, groups, whether anything was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeVar

from healthmonitor.core.notifying.hours import Hours, within
from healthmonitor.core.records import Incident, Severity

CHANNEL_FAILING = "channel_failing"
DEFAULT_ROUTE = "default"


@dataclass(frozen=True, slots=True)
class Subject:
    """What routes and silences ask about: where an incident is. "" and {} where it is nowhere in particular."""

    deployment: str = ""
    group: str = ""
    instance: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EscalationStep:
    """`after_seconds` from opening, unless somebody acknowledged."""

    after_seconds: float
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """An empty criterion matches everything; deployments, groups, kinds and label values are globs."""

    name: str
    channels: tuple[str, ...]
    severities: frozenset[Severity] = frozenset()
    deployments: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    during: tuple[Hours, ...] = ()
    quiet: tuple[Hours, ...] = ()  # what comes then waits for their end
    escalate: tuple[EscalationStep, ...] = ()
    repeat_seconds: float | None = None  # None: as the policy says
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Routed:
    """`reasons`: a sentence for each route that was looked at."""

    route: str
    channels: tuple[str, ...]
    escalate: tuple[EscalationStep, ...] = ()
    repeat_seconds: float | None = None
    quiet: Hours | None = None  # hours that hold it back now
    reasons: tuple[str, ...] = ()


def routed(
    incident: Incident, subject: Subject, routes: Iterable[Route], channels: tuple[str, ...], now_unix: float
) -> Routed:
    """`channels`: all there are."""
    reasons: list[str] = []
    matched: list[Route] = []
    for route in routes:
        why_not = _mismatch(route, incident, subject, now_unix)
        if why_not:
            reasons.append(f"route {route.name} does not match: {why_not}")
            continue
        matched.append(route)
        reasons.append(f"route {route.name} matches")
        if not route.goes_on:
            break
    if not matched:
        reasons.append("no route matches, so it goes to every channel")
        matched = [Route(DEFAULT_ROUTE, channels)]
    names = _unique(name for route in matched for name in route.channels)
    if incident.kind == CHANNEL_FAILING:
        others = tuple(name for name in names if name != incident.subject)
        if not others:
            others = tuple(name for name in channels if name != incident.subject)
            reasons.append("it is about the only channel of its route, so it goes to the others")
        names = others
    quiet = [within(route.quiet, now_unix) for route in matched]
    repeats = [route.repeat_seconds for route in matched if route.repeat_seconds is not None]
    return Routed(
        route="+".join(route.name for route in matched),
        channels=names,
        escalate=tuple(sorted((s for route in matched for s in route.escalate), key=lambda step: step.after_seconds)),
        repeat_seconds=min(repeats, default=None),
        quiet=next((hours for hours in quiet if hours is not None), None) if all(quiet) else None,
        reasons=tuple(reasons),
    )


def matches_any(globs: tuple[str, ...], text: str) -> bool:
    return not globs or any(fnmatchcase(text, glob) for glob in globs)


def _mismatch(route: Route, incident: Incident, subject: Subject, now_unix: float) -> str:
    if route.severities and incident.severity not in route.severities:
        wanted = ", ".join(severity.name.lower() for severity in sorted(route.severities, key=lambda s: s.value))
        return f"its severity is {incident.severity.name.lower()}, not {wanted}"
    if not matches_any(route.kinds, incident.kind):
        return f"its kind is {incident.kind}, not {' or '.join(route.kinds)}"
    if not matches_any(route.deployments, subject.deployment):
        return f"its deployment is {subject.deployment or 'none'}, not {' or '.join(route.deployments)}"
    if not matches_any(route.groups, subject.group):
        return f"its group is {subject.group or 'none'}, not {' or '.join(route.groups)}"
    for key, glob in route.labels.items():
        if not fnmatchcase(subject.labels.get(key, ""), glob) or key not in subject.labels:
            return f"its label {key} is {subject.labels.get(key, 'not set')}, not {glob}"
    if route.during and within(route.during, now_unix) is None:
        return f"it is not {' or '.join(map(str, route.during))}"
    return ""


T = TypeVar("T")


def _unique(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))
