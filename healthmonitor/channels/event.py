"""A notification as JSON values: what webhooks send and child processes read (docs/webhook.schema.json).

Law: the shape is a promise: fields are added, never changed or removed, without a new `version`. Text is cut with a
mark, so that the whole stays within a size that receivers take.
"""

from __future__ import annotations

from typing import Any

from healthmonitor.channels.channel import Item, Notification
from healthmonitor.channels.rendering import (
    FACTS_MAX,
    ITEMS_IN_TABLE,
    KEY_MAX,
    block,
    key_text,
    log_lines,
    one_line,
    rfc3339,
    subject_line,
)

VERSION = 1


def notification_values(notification: Notification) -> dict[str, Any]:
    items = notification.items[:ITEMS_IN_TABLE]
    return {
        "version": VERSION,
        **head_values(notification),
        "items": [item_values(item) for item in items],
        "left_out": notification.left_out + len(notification.items) - len(items),
    }


def head_values(notification: Notification) -> dict[str, Any]:
    return {
        "id": key_text(notification.id, KEY_MAX),
        "thread": key_text(notification.thread, KEY_MAX),
        "transition": notification.transition.value,
        "severity": {"number": notification.severity.value, "name": notification.severity.name.lower()},
        "at": rfc3339(notification.at),
        "subject": one_line(notification.subject),
        "summary": subject_line(notification),
        "site": one_line(notification.site),
        "link": one_line(notification.link, 2000),
    }


def item_values(item: Item) -> dict[str, Any]:
    incident = item.incident
    return {
        "key": key_text(incident.key, KEY_MAX),
        "kind": one_line(incident.kind),
        "subject": one_line(incident.subject),
        "severity": {"number": incident.severity.value, "name": incident.severity.name.lower()},
        "title": one_line(incident.title),
        "detail": block(incident.detail),
        "next_step": one_line(incident.next_step),
        "opened_at": rfc3339(incident.opened_at),
        "resolved_at": None if incident.resolved_at is None else rfc3339(incident.resolved_at),
        "resolution": block(incident.resolution),
        "where": one_line(item.where),
        "doing": block(item.doing),
        "facts": {one_line(name, 40): one_line(value) for name, value in list(item.facts.items())[:FACTS_MAX]},
        "log_lines": log_lines(item),
    }


def deployment_of(item: Item) -> str:
    """ "" for what belongs to none: the fleet, the monitor, an agent that nobody expects."""
    first, slash, _ = item.incident.subject.partition("/")
    return one_line(first) if slash else ""
