"""Silences: what nobody wants to be told for a while. Made by a person, with a reason and an end.

Law: a silence ends by itself. What is still wrong when it ends is told then. Incidents of the monitor itself (lost
bus, cannot tell, a failing channel) are silenced only by naming their kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from healthmonitor.core.notifying.routing import Subject
from healthmonitor.core.records import Incident, Silence

LONGEST_SECONDS = 90 * 86400.0
"""What should be silent for longer is not expected any more: change the manifest or the route."""
KEPT_SECONDS = 7 * 86400.0
"""How long one that is over is still listed."""


def matching(silences: Iterable[Silence], incident: Incident, subject: Subject, now_unix: float) -> Silence | None:
    """The silence that holds for this incident now."""
    return next((each for each in silences if is_on(each, now_unix) and _matches(each, incident, subject)), None)


def is_on(silence: Silence, now_unix: float) -> bool:
    return silence.created_at <= now_unix < silence.ends_at


def describe(silence: Silence) -> str:
    where = silence.instance or "/".join(part for part in (silence.deployment, silence.group) if part)
    return " ".join(part for part in (silence.kind or "everything", f"of {where}" if where else "") if part)


def _matches(silence: Silence, incident: Incident, subject: Subject) -> bool:
    if silence.kind and not fnmatchcase(incident.kind, silence.kind):
        return False
    for glob, text in (
        (silence.deployment, subject.deployment),
        (silence.group, subject.group),
        (silence.instance, subject.instance),
    ):
        if glob and (not text or not fnmatchcase(text, glob)):
            return False
    return bool(silence.kind or silence.deployment or silence.group or silence.instance)
