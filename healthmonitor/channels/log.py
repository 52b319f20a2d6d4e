"""The log as a channel: one structured line a transition. Cannot fail and needs no configuration."""

from __future__ import annotations

import structlog

from healthmonitor.channels.channel import Transition
from healthmonitor.core.records import Incident, Severity

log = structlog.get_logger("incident")


class LogChannel:
    name = "log"

    async def notify(self, incident: Incident, transition: Transition) -> None:
        write = log.info
        if transition is not Transition.RESOLVED:
            write = log.warning if incident.severity is Severity.WARNING else log.error
        write(
            f"incident.{transition.value}",
            key=incident.key,
            severity=incident.severity.name.lower(),
            title=incident.title,
            detail=incident.detail,
            next=incident.next_step,
            resolution=incident.resolution or None,
        )
