"""A webhook's body where the receiver dictates it: a structure with ${names} in its texts.

Law: names are replaced in the structure's texts and JSON is made of the result afterwards, so nothing that stands in a
notification can add a field, close a quote or call anything. (A text template with loops and calls, such as Jinja's,
would need a sandbox and an escape at every place, forgotten once; receivers want one object, which this makes.)
A text that is one name alone becomes the value with its own type: `count: "${items_count}"` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from healthmonitor.channels.channel import Notification, Transition
from healthmonitor.channels.event import notification_values
from healthmonitor.channels.rendering import html_text, plain_text
from healthmonitor.core.yaml_places import unknown

NAMES: Mapping[str, str] = {
    "id": "of the notification, the same on every try",
    "thread": "the same from opening to resolution",
    "transition": "opened, changed, repeated, escalated, acknowledged, resolved, noted, digest, test",
    "resolved": "true or false",
    "severity": "alert, critical, error, warning",
    "severity_number": "1 to 4",
    "subject": "one line",
    "summary": "one line with the severity",
    "text": "everything, as plain text",
    "html": "everything, as HTML",
    "at": "time, RFC 3339",
    "site": "the monitor's name",
    "link": "where to look, or nothing",
    "items": "the list of incidents",
    "items_count": "how many incidents, with those left out",
}
_NAME = re.compile(r"\$(?:\$|\{([^}]*)\})")


def check_template(template: Any) -> None:
    """ValueError when a name is unknown or `$` stands alone."""
    match template:
        case dict():
            for key, value in template.items():
                check_template(key)
                check_template(value)
        case list():
            for value in template:
                check_template(value)
        case str():
            for found in _NAME.finditer(template):
                if found[1] is not None and found[1] not in NAMES:
                    raise ValueError(unknown("name", found[1], NAMES))
            if "$" in _NAME.sub("", template):
                raise ValueError("a $ that begins no ${name}; write $$ for the sign itself")


def fill_template(template: Any, notification: Notification) -> Any:
    return _fill(template, _values(notification))


def _fill(template: Any, values: Mapping[str, Any]) -> Any:
    match template:
        case dict():
            return {_text(str(key), values): _fill(value, values) for key, value in template.items()}
        case list():
            return [_fill(value, values) for value in template]
        case str():
            whole = _NAME.fullmatch(template)
            return values[whole[1]] if whole and whole[1] is not None else _text(template, values)
        case _:
            return template


def _text(template: str, values: Mapping[str, Any]) -> str:
    return _NAME.sub(lambda found: "$" if found[1] is None else _shown(values[found[1]]), template)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(str(item.get("title", "")) for item in value)
    return str(value)


def _values(notification: Notification) -> dict[str, Any]:
    event = notification_values(notification)
    names = ("id", "thread", "transition", "subject", "summary", "at", "site", "link", "items")
    return {
        **{name: event[name] for name in names},
        "resolved": notification.transition is Transition.RESOLVED,
        "severity": event["severity"]["name"],
        "severity_number": event["severity"]["number"],
        "text": plain_text(notification),
        "html": html_text(notification),
        "items_count": len(event["items"]) + event["left_out"],
    }
