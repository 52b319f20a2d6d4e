"""The log as a channel: one structured line for each incident of a notification. Cannot fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from healthmonitor.channels.channel import Notification, Receipt, Transition
from healthmonitor.channels.options import ChannelType, Sources
from healthmonitor.channels.rendering import ITEMS_IN_TABLE, one_line
from healthmonitor.core.records import Severity

log = structlog.get_logger("incident")


class LogChannel:
    def __init__(self, name: str = "log") -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        event = f"incident.{notification.transition.value}"
        for item in notification.items[:ITEMS_IN_TABLE]:
            incident = item.incident
            self._write(notification.transition, incident.severity)(
                event,
                id=one_line(notification.id),
                key=one_line(incident.key),
                severity=incident.severity.name.lower(),
                title=one_line(incident.title),
                detail=one_line(incident.detail),
                doing=one_line(item.doing) or None,
                next=one_line(incident.next_step),
                resolution=one_line(incident.resolution) or None,
            )
        over = notification.left_out + max(0, len(notification.items) - ITEMS_IN_TABLE)
        if over or not notification.items:
            self._write(notification.transition, notification.severity)(
                event, id=one_line(notification.id), subject=one_line(notification.subject), left_out=over
            )
        return Receipt(f"{max(1, len(notification.items))} lines written")

    async def reach(self) -> None:
        return None  # it is this process

    async def close(self) -> None:
        return None

    @staticmethod
    def _write(transition: Transition, severity: Severity) -> Any:
        if transition in (Transition.RESOLVED, Transition.TEST):
            return log.info
        return log.warning if severity is Severity.WARNING else log.error


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> LogChannel:
    return LogChannel(name)


LOG = ChannelType("lines in the monitor's own log", (), _make)
