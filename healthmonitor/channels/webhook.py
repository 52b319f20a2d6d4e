"""JSON to any HTTP address: docs/webhook.schema.json, or a body that the receiver dictates.

Laws: every try has the same Idempotency-Key (the notification's id) and the same body. The signature covers the time
and the body, so that a receiver can refuse what was changed and what is old:
`Resurgam-Signature: v1=HEX(HMAC-SHA256(secret, TIMESTAMP + "." + BODY))`, `Resurgam-Timestamp: TIMESTAMP`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from healthmonitor.channels import options as option
from healthmonitor.channels.body_template import check_template, fill_template
from healthmonitor.channels.channel import Notification, Receipt
from healthmonitor.channels.event import notification_values
from healthmonitor.channels.http import HttpPost
from healthmonitor.channels.options import ChannelType, Option, Sources
from healthmonitor.channels.rendering import key_text
from healthmonitor.channels.secret import Secret
from healthmonitor.core.addresses import is_loopback
from healthmonitor.secret_files import read_secret_file

TIMESTAMP_HEADER = "Resurgam-Timestamp"
SIGNATURE_HEADER = "Resurgam-Signature"
IDEMPOTENCY_HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """`body`: a template, None for the JSON of docs/webhook.schema.json. `url_shown`: how errors call it."""

    url: Secret
    url_shown: str
    url_option: str = "url"
    method: str = "POST"
    key: Secret | None = None
    headers: Mapping[str, str | Secret] = field(default_factory=dict)
    body: Any = None
    timeout_seconds: float = 15.0
    trust: ssl.SSLContext | None = None
    proxy: str | None = None


class WebhookChannel:
    def __init__(self, name: str, settings: WebhookSettings, unix_time: Callable[[], float]) -> None:
        self._name = name
        self._settings = settings
        self._unix_time = unix_time
        secrets = [each for each in settings.headers.values() if isinstance(each, Secret)]
        if settings.key is not None:
            secrets.append(settings.key)
        if settings.url.reveal() != settings.url_shown:
            secrets.append(settings.url)
        self._http = HttpPost(
            settings.url_shown,
            settings.timeout_seconds,
            unix_time,
            settings.trust,
            settings.proxy,
            tuple(secrets),
        )

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        settings = self._settings
        content, content_type = body_of(notification, settings.body)
        headers = {
            "Content-Type": content_type,
            IDEMPOTENCY_HEADER: key_text(notification.id, 255),
            **{name: each.reveal() if isinstance(each, Secret) else each for name, each in settings.headers.items()},
        }
        if settings.key is not None:
            timestamp = str(int(self._unix_time()))
            headers[TIMESTAMP_HEADER] = timestamp
            headers[SIGNATURE_HEADER] = signature(settings.key, timestamp, content)
        reply = await self._http.post(settings.url.reveal(), content, headers, settings.method)
        return Receipt(reply.said)

    async def reach(self) -> None:
        await self._http.reach(self._settings.url.reveal(), self._settings.url_option)

    async def close(self) -> None:
        await self._http.close()


def body_of(notification: Notification, template: Any) -> tuple[bytes, str]:
    """(body, content type)"""
    if isinstance(template, str):
        return str(fill_template(template, notification)).encode(), "text/plain; charset=utf-8"
    values = notification_values(notification) if template is None else fill_template(template, notification)
    return json.dumps(values, ensure_ascii=False).encode(), "application/json"


def signature(key: Secret, timestamp: str, content: bytes) -> str:
    digest = hmac.new(key.reveal().encode(), timestamp.encode() + b"." + content, hashlib.sha256)
    return "v1=" + digest.hexdigest()


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_OWN = {"content-length", "host", "transfer-encoding", "connection"}


def _read_headers(value: Any, sources: Sources) -> dict[str, str | Secret]:
    if not isinstance(value, dict):
        raise ValueError("expected a mapping such as {Authorization: {file: token}}")
    headers: dict[str, str | Secret] = {}
    for name, given in value.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN:
            raise ValueError(f"{name[:80]!r} is no header that can be set")
        try:
            headers[name] = _read_header(given, sources)
        except OSError as error:
            raise ValueError(f"{name}: {sources.directory / str(given['file'])}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return headers


def _read_header(given: Any, sources: Sources) -> str | Secret:
    found: str | Secret
    match given:
        case str():
            found = given
            shown = given
        case {"file": str(named), **rest} if not rest:
            found = Secret(read_secret_file(sources.directory / named))
            shown = found.reveal()
        case {"env": str(variable), **rest} if not rest:
            found = Secret(sources.environment.get(variable, "").strip())
            shown = found.reveal()
            if not shown:
                raise ValueError(f"the environment has no {variable[:80]}, or it is empty")
        case _:
            raise ValueError("expected text, {file: PATH} or {env: NAME}")
    if not (shown.isascii() and shown.isprintable()):
        raise ValueError("holds what no header may hold; expected printable ASCII on one line")
    return found


def _read_body(value: Any, sources: Sources) -> Any:
    if not isinstance(value, (dict, list, str)):
        raise ValueError("expected a mapping, a list or text with ${names}")
    check_template(value)
    return value


def _check(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    both = values["url"] is not None and values["secret_url"] is not None
    if both:
        yield "url", "cannot be combined with a secret one (secret_url_file, secret_url_env)"
    if values["url"] is None and values["secret_url"] is None:
        yield "", "an address is missing: url, or secret_url_file or secret_url_env where the address is the secret"
        return
    address = values["url"] or values["secret_url"].reveal()
    secret = values["secret_url"] or any(isinstance(each, Secret) for each in values["headers"].values())
    if secret and not address.startswith("https://") and not is_loopback(address):
        yield "headers", "a secret would go over the network in the clear; the address must begin with https://"


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> WebhookChannel:
    hidden: Secret | None = values["secret_url"]
    settings = WebhookSettings(
        url=hidden or Secret(values["url"]),
        url_shown="the secret address" if hidden else values["url"],
        url_option="secret_url_file" if hidden else "url",
        method=values["method"],
        key=values["signing_key"],
        headers=values["headers"],
        body=values["body"],
        timeout_seconds=values["timeout"],
        trust=values["ca_file"],
        proxy=values["proxy"],
    )
    return WebhookChannel(name, settings, sources.unix_time)


WEBHOOK = ChannelType(
    "JSON to any HTTP address, signed",
    (
        option.url("url", "where to send it"),
        *option.secret("secret_url", "instead of `url`, where the address is the secret", check=option.web_address),
        option.choice("method", ("POST", "PUT"), "how", "POST"),
        *option.secret("signing_key", "signs every request, see below"),
        Option("headers", "mapping of name to text, `{file: PATH}` or `{env: NAME}`", "sent with every request",
               _read_headers, {}),
        Option("body", "structure with ${names}, see below", "what the receiver wants instead of our JSON",
               _read_body, None, "docs/webhook.schema.json"),
        option.trust(),
        option.url("proxy", "the HTTP proxy to go through"),
        option.timeout(),
    ),
    _make,
    _check,
)  # fmt: skip
