"""Mail through an SMTP server.

Laws: a mail is delivered when the server has taken it for every recipient that it does not refuse for good. 4xx and a
lost connection are tried again, for those recipients only who have not got it; 5xx is definite. Every try of a
notification has the same Message-ID, and all mails of an incident refer to the same root, so that mail programs show
one thread and servers that drop duplicates can. A password goes over TLS or to this machine, nowhere else; a server
that does not offer STARTTLS where it is wanted gets nothing. No text from outside becomes a header.

Does not know: queues and delivery after the first server (that is the server's business).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Any

import aiosmtplib
import structlog

from healthmonitor.channels import options as option
from healthmonitor.channels.channel import (
    ChannelRefused,
    ChannelUnavailable,
    Notification,
    NotTrusted,
    Receipt,
    Transition,
)
from healthmonitor.channels.options import ChannelType, Sources
from healthmonitor.channels.partial import Taken
from healthmonitor.channels.reach import distrust
from healthmonitor.channels.rendering import hashed, html_text, one_line, plain_text, subject_line
from healthmonitor.channels.secret import Secret, hide
from healthmonitor.core.addresses import is_loopback
from healthmonitor.core.records import Severity

log = structlog.get_logger("channel.email")

PORTS = {"starttls": 587, "implicit": 465, "none": 25}


@dataclass(frozen=True, slots=True)
class EmailSettings:
    host: str
    port: int
    tls: str  # starttls, implicit, none
    sender: str
    recipients: tuple[str, ...]
    user: str = ""
    password: Secret | None = None
    trust: ssl.SSLContext | None = None
    hello: str | None = None
    timeout_seconds: float = 30.0


class EmailChannel:
    def __init__(self, name: str, settings: EmailSettings) -> None:
        self._name = name
        self._settings = settings
        self._secrets = (settings.password,) if settings.password else ()
        self._trust = settings.trust if settings.trust is not None else ssl.create_default_context()
        self._taken = Taken()

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, notification: Notification) -> Receipt:
        content = mail(notification, self._settings).as_bytes()
        has_it = self._taken.by(notification.id)
        recipients = [each for each in self._settings.recipients if each not in has_it]
        refused, said = await self._send(content, recipients)
        self._taken.add(notification.id, {each for each in recipients if each not in refused})
        for_now = {each: response for each, response in refused.items() if response.code < 500}
        if for_now:
            got_it = len(self._settings.recipients) - len(refused)
            raise ChannelUnavailable(f"{self._where} does not take it yet for {self._list(for_now)}; {got_it} have it")
        self._taken.forget(notification.id)
        if not refused:
            return Receipt(f"{self._where}: {said}")
        if len(refused) == len(recipients) and not has_it:
            raise ChannelRefused(f"{self._where} refuses every recipient: {self._list(refused)}; look at `to`")
        log.error("email.recipient_refused", channel=self._name, refused=self._list(refused), next="look at `to`")
        return Receipt(f"{self._where}: {said}; refused for {self._list(refused)}")

    async def reach(self) -> None:
        """As far as TLS: neither login nor mail."""
        client = self._client(self._trust)
        try:
            await client.connect()
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            wrong = distrust(error)
            if wrong is None:
                raise ChannelUnavailable(f"{self._where}: {self._clean(str(error)) or type(error).__name__}") from None
            advice = "; name its authority with ca_file"
            text = f"the certificate of {self._where} is not trusted: {wrong.verify_message}{advice}"
            raise NotTrusted(self._clean(text), "host") from None
        finally:
            client.close()

    async def close(self) -> None:
        return None  # every mail has a connection of its own

    @property
    def _where(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    async def _send(self, content: bytes, recipients: list[str]) -> tuple[Mapping[str, aiosmtplib.SMTPResponse], str]:
        """(who was refused and how, what the server said when it took the mail)"""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._converse(content, recipients)
        except aiosmtplib.SMTPRecipientsRefused as error:
            responses = {each.recipient: aiosmtplib.SMTPResponse(each.code, each.message) for each in error.recipients}
            return responses, ""
        except aiosmtplib.SMTPAuthenticationError as error:
            raise self._answered(error, "; look at user and password") from None
        except aiosmtplib.SMTPSenderRefused as error:
            raise self._answered(error, f"; look at from: {self._settings.sender}") from None
        except aiosmtplib.SMTPResponseException as error:
            raise self._answered(error, "") from None
        except (TimeoutError, aiosmtplib.SMTPTimeoutError):
            seconds = self._settings.timeout_seconds
            raise ChannelUnavailable(f"{self._where} did not take the mail within {seconds:g} s") from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            # ValueError: a reply that is no SMTP.
            text = self._clean(str(error))
            if not text or text.endswith(":"):
                text += type(error.__cause__ or error).__name__
            advice = "; name its authority with ca_file" if "CERTIFICATE_VERIFY_FAILED" in text else ""
            raise ChannelUnavailable(f"{self._where}: {text}{advice}") from None

    async def _converse(
        self, content: bytes, recipients: list[str]
    ) -> tuple[Mapping[str, aiosmtplib.SMTPResponse], str]:
        settings = self._settings
        client = self._client(self._trust)
        try:
            await client.connect()
            if settings.password is not None:
                await client.login(settings.user, settings.password.reveal())
            refused, said = await client.sendmail(settings.sender, recipients, content)
            return refused, self._clean(said)
        finally:
            client.close()  # without QUIT: the server has said all that counts

    def _client(self, trust: ssl.SSLContext) -> aiosmtplib.SMTP:
        settings = self._settings
        return aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            local_hostname=settings.hello,
            timeout=settings.timeout_seconds,
            use_tls=settings.tls == "implicit",
            start_tls=settings.tls == "starttls",
            tls_context=trust,
        )

    def _answered(self, error: aiosmtplib.SMTPResponseException, advice: str) -> Exception:
        text = f"{self._where} answered {error.code} {self._clean(error.message)}"
        if 500 <= error.code < 600:
            return ChannelRefused(text + advice)
        return ChannelUnavailable(text)

    def _list(self, refused: Mapping[str, aiosmtplib.SMTPResponse]) -> str:
        return ", ".join(f"{who} ({each.code} {self._clean(each.message)})" for who, each in refused.items())

    def _clean(self, text: str) -> str:
        return one_line(hide(text, self._secrets))


def mail(notification: Notification, settings: EmailSettings) -> EmailMessage:
    message = EmailMessage(policy=SMTP_POLICY.clone(cte_type="7bit"))
    reply = notification.transition not in (Transition.OPENED, Transition.NOTED, Transition.TEST, Transition.DIGEST)
    site = f"[{one_line(notification.site, 40)}] " if notification.site else ""
    message["From"] = Address("Resurgam", addr_spec=settings.sender)
    message["To"] = ", ".join(settings.recipients)
    message["Subject"] = ("Re: " if reply else "") + site + subject_line(notification)
    message["Date"] = format_datetime(datetime.fromtimestamp(notification.at, UTC))
    message["Message-ID"] = _message_id(f"notification {notification.id}", settings)
    # The root is the thread itself, not its first mail: that one may have been lost, or sent by another channel.
    root = _message_id(f"thread {notification.thread}", settings)
    message["In-Reply-To"] = root
    message["References"] = root
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office reply comes back
    message["X-Auto-Response-Suppress"] = "All"
    message["X-Resurgam-Severity"] = notification.severity.name.lower()
    message["X-Resurgam-Transition"] = notification.transition.value
    urgent = notification.transition in (Transition.OPENED, Transition.ESCALATED)
    if urgent and notification.severity in (Severity.ALERT, Severity.CRITICAL):
        message["Importance"] = "high"
    message.set_content(plain_text(notification), cte="quoted-printable")
    message.add_alternative(html_text(notification), subtype="html", cte="quoted-printable")
    # Otherwise drawn at random: every try is the same mail, byte for byte.
    message.set_boundary("=_" + hashed(notification.id)[:40])
    return message


def _message_id(words: str, settings: EmailSettings) -> str:
    domain = settings.sender.rpartition("@")[2]
    return f"<{hashed(words)[:32]}@{domain}>"


def _check(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if values["user"] and values["password"] is None:
        yield "user", "needs password_file or password_env beside it"
    if values["password"] is not None and not values["user"]:
        yield "password_file", "needs user beside it"
    if values["password"] is not None and values["tls"] == "none" and not is_loopback(f"smtp://{values['host']}"):
        yield "tls", "the password would go over the network in the clear; write starttls or implicit"


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> EmailChannel:
    settings = EmailSettings(
        host=values["host"],
        port=values["port"] or PORTS[values["tls"]],
        tls=values["tls"],
        sender=values["from"],
        recipients=values["to"],
        user=values["user"] or "",
        password=values["password"],
        trust=values["ca_file"],
        hello=values["hello"],
        timeout_seconds=values["timeout"],
    )
    return EmailChannel(name, settings)


EMAIL = ChannelType(
    "mail through an SMTP server",
    (
        option.text("host", "the SMTP server", required=True),
        option.whole("port", 1, 65535, "its port", "587; 465 with `tls: implicit`; 25 with `tls: none`"),
        option.choice("tls", tuple(PORTS), "STARTTLS, TLS from the first byte, or none", "starttls"),
        option.trust(),
        option.text("user", "the name to log in with"),
        *option.secret("password", "the password to log in with"),
        option.addresses("from", "the sender", several=False),
        option.addresses("to", "the recipients", several=True),
        option.text("hello", "the name this machine gives itself in EHLO", None),
        option.timeout(30.0),
    ),
    _make,
    _check,
)
