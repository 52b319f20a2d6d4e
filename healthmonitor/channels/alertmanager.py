"""Alertmanager, API v2 (POST /api/v2/alerts): its own routes, silences and receivers do the rest.

Laws: an alert's labels are its identity there, so they are the same from opening to resolution. The severity is among
them, since people route by it: when it may have changed, the alerts with the other three are ended in the same request
(Alertmanager tells nobody of an end whose beginning it has not told). Firing alerts have an end far ahead (`keep`), as
Alertmanager otherwise ends after five minutes what is not repeated. With several addresses, all are given each alert,
as Alertmanager's own documentation asks; one that took it is enough.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from healthmonitor.channels import options as option
from healthmonitor.channels.channel import (
    ChannelRefused,
    ChannelUnavailable,
    Item,
    Notification,
    NotTrusted,
    Receipt,
    Transition,
)
from healthmonitor.channels.event import deployment_of
from healthmonitor.channels.http import HttpPost
from healthmonitor.channels.options import ChannelType, Option, Sources
from healthmonitor.channels.rendering import (
    FACTS_MAX,
    ITEMS_IN_TABLE,
    KEY_MAX,
    block,
    key_text,
    log_lines,
    one_line,
    rfc3339,
)
from healthmonitor.channels.secret import Secret
from healthmonitor.core.addresses import is_loopback
from healthmonitor.core.records import Severity

PATH = "/api/v2/alerts"
NOTED_SECONDS = 3600.0
TEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class AlertmanagerSettings:
    urls: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    keep_seconds: float = 7 * 86400.0
    user: str = ""
    password: Secret | None = None
    token: Secret | None = None
    timeout_seconds: float = 15.0
    trust: ssl.SSLContext | None = None
    proxy: str | None = None


class AlertmanagerChannel:
    def __init__(self, name: str, settings: AlertmanagerSettings, unix_time: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        secrets = tuple(each for each in (settings.password, settings.token, _basic(settings)) if each is not None)
        self._posts = [
            (
                url.rstrip("/") + PATH,
                HttpPost(url, settings.timeout_seconds, unix_time, settings.trust, settings.proxy, secrets),
            )
            for url in settings.urls
        ]

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        content = json.dumps(alerts(notification, self._settings)).encode()
        answers = await asyncio.gather(*(self._post(url, http, content) for url, http in self._posts))
        said = [each for each in answers if isinstance(each, str)]
        unavailable = [each for each in answers if isinstance(each, ChannelUnavailable)]
        refused = [each for each in answers if isinstance(each, ChannelRefused)]
        failed = "; ".join(str(each) for each in (*unavailable, *refused))
        if said:
            return Receipt("; ".join(said) + (f" (but {failed})" if failed else ""))
        if unavailable:
            raise ChannelUnavailable(failed, min(each.retry_after_seconds for each in unavailable))
        raise ChannelRefused(failed)

    async def reach(self) -> None:
        """One that is not trusted is told first; one of several that is there is enough."""
        found = await asyncio.gather(*(http.reach(url, "urls") for url, http in self._posts), return_exceptions=True)
        failed = sorted((each for each in found if each is not None), key=lambda each: not isinstance(each, NotTrusted))
        if failed and (isinstance(failed[0], NotTrusted) or len(failed) == len(found)):
            raise failed[0]

    async def close(self) -> None:
        for _, http in self._posts:
            await http.close()

    async def _post(self, url: str, http: HttpPost, content: bytes) -> str | ChannelUnavailable | ChannelRefused:
        headers = {"Content-Type": "application/json", **_authorization(self._settings)}
        try:
            reply = await http.post(url, content, headers)
        except (ChannelUnavailable, ChannelRefused) as error:
            return error
        if reply.text.strip() and not _is_json(reply.text):
            return http.unavailable(f"answered what Alertmanager does not answer: {reply.said}")
        return reply.said


def alerts(notification: Notification, settings: AlertmanagerSettings) -> list[dict[str, Any]]:
    """Postable alerts of Alertmanager's API v2."""
    if not notification.items:
        labels = _labels(f"resurgam_{notification.transition.value}", notification.severity, "", notification, settings)
        end = notification.at + (TEST_SECONDS if notification.transition is Transition.TEST else NOTED_SECONDS)
        annotations = {"summary": one_line(notification.subject), "left_out": str(notification.left_out)}
        return [_alert(labels, annotations, notification.at, end, notification)]
    found: list[dict[str, Any]] = []
    for item in notification.items[:ITEMS_IN_TABLE]:
        found += _of_item(item, notification, settings)
    return found


def _of_item(item: Item, notification: Notification, settings: AlertmanagerSettings) -> list[dict[str, Any]]:
    incident, transition = item.incident, notification.transition
    over = incident.resolved_at if transition is Transition.RESOLVED else None
    if transition is Transition.RESOLVED:
        end = over if over is not None else notification.at
    else:
        end = notification.at + (NOTED_SECONDS if transition is Transition.NOTED else settings.keep_seconds)

    def labels(severity: Severity) -> dict[str, str]:
        found = _labels(incident.kind, severity, incident.key, notification, settings)
        more = {"instance": one_line(incident.subject), "deployment": deployment_of(item)}
        return {**found, **{name: value for name, value in more.items() if value}}

    alert = _alert(labels(incident.severity), _annotations(item, notification), incident.opened_at, end, notification)
    if transition not in (Transition.CHANGED, Transition.RESOLVED):
        return [alert]
    others = [each for each in Severity if each is not incident.severity]
    annotations = {"summary": one_line(incident.title)}
    at = notification.at if over is None else over
    return [alert, *(_alert(labels(each), annotations, incident.opened_at, at, notification) for each in others)]


def _labels(
    alertname: str, severity: Severity, key: str, notification: Notification, settings: AlertmanagerSettings
) -> dict[str, str]:
    labels = {
        **settings.labels,
        "alertname": one_line(alertname),
        "severity": severity.name.lower(),
        "incident": key_text(key, KEY_MAX) if key else "",
        "site": one_line(notification.site),
    }
    return {name: value for name, value in labels.items() if value}


def _annotations(item: Item, notification: Notification) -> dict[str, str]:
    incident = item.incident
    annotations = {
        "summary": one_line(incident.title),
        "description": block(incident.detail),
        "where": one_line(item.where),
        "doing": block(item.doing),
        "next_step": one_line(incident.next_step),
        "resolution": block(incident.resolution),
        "acknowledged": "true" if notification.transition is Transition.ACKNOWLEDGED else "",
        "log": "\n".join(log_lines(item)),
        "facts": "\n".join(
            f"{one_line(name, 40)}: {one_line(value)}" for name, value in list(item.facts.items())[:FACTS_MAX]
        ),
    }
    return {name: value for name, value in annotations.items() if value}


def _alert(
    labels: Mapping[str, str], annotations: Mapping[str, str], start: float, end: float, notification: Notification
) -> dict[str, Any]:
    alert: dict[str, Any] = {
        "labels": dict(labels),
        "annotations": dict(annotations),
        "startsAt": rfc3339(min(start, end)),
        "endsAt": rfc3339(end),
    }
    if notification.link.startswith(("https://", "http://")):
        alert["generatorURL"] = one_line(notification.link, 2000)
    return alert


def _authorization(settings: AlertmanagerSettings) -> dict[str, str]:
    if settings.token is not None:
        return {"Authorization": f"Bearer {settings.token.reveal()}"}
    basic = _basic(settings)
    return {} if basic is None else {"Authorization": f"Basic {basic.reveal()}"}


def _basic(settings: AlertmanagerSettings) -> Secret | None:
    if settings.password is None:
        return None
    both = f"{settings.user}:{settings.password.reveal()}".encode()
    return Secret(base64.b64encode(both).decode())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OWN = ("alertname", "severity", "incident", "site", "instance", "deployment")


def _read_urls(value: Any, sources: Sources) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, str) for item in items):
        raise ValueError("expected an address such as http://alertmanager:9093, or a list of them")
    return tuple(option.web_address(item) for item in items)


def _check(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for name in values["labels"]:
        if not _LABEL.fullmatch(name):
            yield "labels", f"{name[:80]!r} is no label's name; expected letters, digits and _"
        elif name in _OWN:
            yield "labels", f"{name} is a label that Resurgam sets itself"
    if values["user"] and values["password"] is None:
        yield "user", "needs password_file or password_env beside it"
    if values["password"] is not None and not values["user"]:
        yield "password_file", "needs user beside it"
    if values["password"] is not None and values["token"] is not None:
        yield "token_file", "cannot be combined with a password; leave one of them out"
    secret = values["password"] is not None or values["token"] is not None
    if secret and not all(each.startswith("https://") or is_loopback(each) for each in values["urls"]):
        yield "urls", "a secret would go over the network in the clear; write https://"


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> AlertmanagerChannel:
    settings = AlertmanagerSettings(
        urls=values["urls"],
        labels={key: one_line(each) for key, each in values["labels"].items()},
        keep_seconds=values["keep"],
        user=values["user"] or "",
        password=values["password"],
        token=values["token"],
        timeout_seconds=values["timeout"],
        trust=values["ca_file"],
        proxy=values["proxy"],
    )
    return AlertmanagerChannel(name, settings, sources.unix_time)


ALERTMANAGER = ChannelType(
    "Prometheus Alertmanager, API v2",
    (
        Option("urls", "http:// or https:// address, or list of them", "every Alertmanager of a cluster",
               _read_urls, None, "none", required=True),
        option.mapping("labels", "more labels for every alert"),
        option.duration("keep", 600.0, 86400.0 * 365, "an alert that is neither repeated nor resolved ends after this; "
                        "longer than incidents are repeated", 7 * 86400.0),
        option.text("user", "for basic authentication"),
        *option.secret("password", "its password"),
        *option.secret("token", "a bearer token"),
        option.trust(),
        option.url("proxy", "the HTTP proxy to go through"),
        option.timeout(),
    ),
    _make,
    _check,
)  # fmt: skip
