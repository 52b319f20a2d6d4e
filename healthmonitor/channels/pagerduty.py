"""PagerDuty, Events API v2 (https://developer.pagerduty.com/docs/events-api-v2/overview/).

Laws: the dedup key is the notification's thread, so an incident is one alert there from trigger to resolve, and a
second try changes nothing. Only a reply that says `success` counts: 2xx from something between here and there does not.
What is longer than PagerDuty takes (summary 1024 characters, dedup key 255, 512 KiB in all) is cut with a mark.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from healthmonitor.channels import options as option
from healthmonitor.channels.channel import Notification, Receipt, Transition
from healthmonitor.channels.event import deployment_of, item_values
from healthmonitor.channels.http import HttpPost
from healthmonitor.channels.options import ChannelType, Sources
from healthmonitor.channels.rendering import ITEMS_IN_FULL, key_text, one_line, rfc3339, subject_line
from healthmonitor.channels.secret import Secret
from healthmonitor.core.addresses import is_loopback
from healthmonitor.core.records import Severity

URLS = {"us": "https://events.pagerduty.com/v2/enqueue", "eu": "https://events.eu.pagerduty.com/v2/enqueue"}
SUMMARY_MAX = 1000
DEDUP_KEY_MAX = 255
BODY_MAX_BYTES = 500_000
OTHERS_MAX = 200

ACTIONS: Mapping[Transition, str] = {
    Transition.OPENED: "trigger",
    Transition.CHANGED: "trigger",
    Transition.REPEATED: "trigger",
    Transition.ESCALATED: "trigger",
    Transition.ACKNOWLEDGED: "acknowledge",
    Transition.RESOLVED: "resolve",
    Transition.NOTED: "trigger",
    Transition.DIGEST: "trigger",
    Transition.TEST: "trigger",
}
SEVERITIES: Mapping[Severity, str] = {
    Severity.ALERT: "critical",
    Severity.CRITICAL: "critical",
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
}


@dataclass(frozen=True, slots=True)
class PagerDutySettings:
    routing_key: Secret
    url: str = URLS["us"]
    timeout_seconds: float = 15.0
    trust: ssl.SSLContext | None = None
    proxy: str | None = None


class PagerDutyChannel:
    def __init__(self, name: str, settings: PagerDutySettings, unix_time: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._http = HttpPost(
            settings.url,
            settings.timeout_seconds,
            unix_time,
            settings.trust,
            settings.proxy,
            (settings.routing_key,),
        )

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        event = pagerduty_event(notification)
        content = json.dumps({"routing_key": self._settings.routing_key.reveal(), **event}).encode()
        reply = await self._http.post(self._settings.url, content, {"Content-Type": "application/json"})
        if _status(reply.text) != "success":
            raise self._http.unavailable(f"answered what PagerDuty does not answer: {reply.said}")
        return Receipt(reply.said)

    async def reach(self) -> None:
        await self._http.reach(self._settings.url, "url")

    async def close(self) -> None:
        await self._http.close()


def pagerduty_event(notification: Notification) -> dict[str, Any]:
    """The request's body but for the routing key."""
    event: dict[str, Any] = {
        "event_action": ACTIONS[notification.transition],
        "dedup_key": key_text(notification.thread, DEDUP_KEY_MAX),
    }
    if event["event_action"] != "trigger":
        return event
    event["client"] = one_line(f"Resurgam {notification.site}".strip())
    if notification.link.startswith(("https://", "http://")):
        event["client_url"] = one_line(notification.link, 2000)
        event["links"] = [{"href": one_line(notification.link, 2000), "text": "Resurgam"}]
    first = notification.items[0] if notification.items else None
    payload: dict[str, Any] = {
        "summary": one_line(subject_line(notification), SUMMARY_MAX),
        "severity": SEVERITIES[notification.severity],
        "source": (one_line(first.where or first.incident.subject) if first else "") or notification.site or "resurgam",
        "timestamp": rfc3339(first.incident.opened_at if first else notification.at),
    }
    if first is not None:
        payload["component"] = one_line(first.incident.subject)
        payload["class"] = one_line(first.incident.kind)
        if deployment_of(first):
            payload["group"] = deployment_of(first)
    details = _details(notification)
    event["payload"] = {**payload, "custom_details": details}
    while len(json.dumps(event)) > BODY_MAX_BYTES and details.get("incidents"):
        details["incidents"].pop()
        details["left_out"] += 1
    return event


def _details(notification: Notification) -> dict[str, Any]:
    return {
        "transition": notification.transition.value,
        "incidents": [item_values(item) for item in notification.items[:ITEMS_IN_FULL]],
        "others": [
            f"{one_line(item.incident.title)} | {one_line(item.where)}"
            for item in notification.items[ITEMS_IN_FULL : ITEMS_IN_FULL + OTHERS_MAX]
        ],
        "left_out": notification.left_out + max(0, len(notification.items) - ITEMS_IN_FULL - OTHERS_MAX),
        "notification": one_line(notification.id),
    }


def _status(text: str) -> str:
    try:
        answer = json.loads(text)
    except ValueError:
        return ""
    return str(answer.get("status", "")) if isinstance(answer, dict) else ""


def _check(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if values["url"] and not values["url"].startswith("https://") and not is_loopback(values["url"]):
        yield "url", "the routing key would go over the network in the clear; write https://"


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> PagerDutyChannel:
    settings = PagerDutySettings(
        routing_key=values["routing_key"],
        url=values["url"] or URLS[values["region"]],
        timeout_seconds=values["timeout"],
        trust=values["ca_file"],
        proxy=values["proxy"],
    )
    return PagerDutyChannel(name, settings, sources.unix_time)


PAGERDUTY = ChannelType(
    "PagerDuty, Events API v2",
    (
        *option.secret("routing_key", "the integration key of an Events API v2 integration", required=True),
        option.choice("region", tuple(URLS), "where the account is", "us"),
        option.url("url", "another address that speaks Events API v2, instead of the region's"),
        option.trust(),
        option.url("proxy", "the HTTP proxy to go through"),
        option.timeout(),
    ),
    _make,
    _check,
)
