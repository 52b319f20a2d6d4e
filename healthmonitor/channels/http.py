"""Posting over HTTP, and what each way of failing means.

Laws: one deadline over everything, from the name's look-up to the reply's last byte. A reply counts when it has come
whole: one that is no HTTP, or is cut off, leaves unknown whether the receiver took the request, so it is tried again.
408, 425, 429 and 5xx are tried again, not before Retry-After; every other refusal is definite. Redirects are not
followed: they would carry secrets to who knows where. No error shows a secret, nor an address that is one.

Does not know: what is posted.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable, NotTrusted
from healthmonitor.channels.reach import distrust, greet
from healthmonitor.channels.rendering import one_line
from healthmonitor.channels.secret import Secret, hide
from healthmonitor.version import VERSION

REPLY_MAX_BYTES = 64 * 1024
RETRY_AFTER_LONGEST_SECONDS = 3600.0
"""A receiver that says more is asked again after an hour: people wait for this."""
_AGAIN = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    text: str

    @property
    def said(self) -> str:
        """`202 Accepted: {"status":"success"}`"""
        phrase = httpx.codes.get_reason_phrase(self.status)
        return one_line(f"{self.status} {phrase}: {self.text}" if self.text.strip() else f"{self.status} {phrase}")


class HttpPost:
    """`shown_url`: what errors call the receiver; `secrets`: what must not be seen in them."""

    def __init__(
        self,
        shown_url: str,
        timeout_seconds: float,
        unix_time: Callable[[], float],
        trust: ssl.SSLContext | None = None,
        proxy: str | None = None,
        secrets: tuple[Secret, ...] = (),
    ) -> None:
        self._shown_url = shown_url
        self._timeout_seconds = timeout_seconds
        self._unix_time = unix_time
        self._secrets = secrets
        # trust_env=False: a proxy, or a .netrc with a password, is used when the configuration says so.
        self._trust = trust if trust is not None else ssl.create_default_context()
        self._proxy = proxy
        self._client = httpx.AsyncClient(
            verify=self._trust,
            proxy=proxy,
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            headers={"User-Agent": f"resurgam/{VERSION}"},
        )

    async def post(self, url: str, content: bytes, headers: Mapping[str, str], method: str = "POST") -> Reply:
        if self._client.is_closed:
            raise self._unavailable("is not asked: the channel was closed")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                reply, retry_after = await self._exchange(method, url, content, headers)
        except TimeoutError:
            raise self._unavailable(f"did not answer within {self._timeout_seconds:g} s") from None
        except httpx.ConnectError as error:
            raise self._unavailable(_connect_text(error)) from None
        except httpx.RemoteProtocolError as error:
            raise self._unavailable(f"did not answer with whole HTTP ({error}); perhaps it took it") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError, OSError) as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from None
        if 200 <= reply.status < 300:
            return reply
        if reply.status in _AGAIN or reply.status >= 500:
            raise self._unavailable(f"answered {reply.said}", retry_after)
        raise ChannelRefused(f"{self._shown_url} answered {reply.said}{_advice(reply.status)}")

    async def reach(self, url: str, option: str) -> None:
        """See `Channel.reach`. What lies behind a proxy is not asked: only the proxy could."""
        parts = urlsplit(url)
        if self._proxy is not None or not parts.hostname:
            return
        secure = parts.scheme == "https"
        try:
            await greet(parts.hostname, parts.port or (443 if secure else 80), self._trust if secure else None)
        except (OSError, ValueError) as error:
            wrong = distrust(error)
            if wrong is not None:
                why = wrong.verify_message.replace(parts.hostname, "the server")
                text = f"the certificate of {self._shown_url} is not trusted: {why}; name its authority with ca_file"
                raise NotTrusted(one_line(hide(text, self._secrets)), option) from None
            raise self._unavailable(f"cannot be reached: {_why_not(error)}") from None

    def unavailable(self, text: str) -> ChannelUnavailable:
        return self._unavailable(text)

    async def close(self) -> None:
        await self._client.aclose()

    async def _exchange(self, method: str, url: str, content: bytes, headers: Mapping[str, str]) -> tuple[Reply, float]:
        async with self._client.stream(method, url, content=content, headers=dict(headers)) as response:
            body = b""
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > REPLY_MAX_BYTES:
                    break
            text = hide(body[:REPLY_MAX_BYTES].decode("utf-8", "replace"), self._secrets)
            return Reply(response.status_code, text), self._retry_after(response.headers.get("Retry-After", ""))

    def _retry_after(self, header: str) -> float:
        """Seconds from now; both forms of RFC 9110 section 10.2.3; 0 when there is none that can be read."""
        if header.isascii() and header.isdigit():
            seconds = float(header[:10])
        else:
            try:
                seconds = email.utils.parsedate_to_datetime(header).timestamp() - self._unix_time()
            except (ValueError, TypeError, OverflowError):
                return 0.0
        return min(max(seconds, 0.0), RETRY_AFTER_LONGEST_SECONDS)

    def _unavailable(self, text: str, retry_after_seconds: float = 0.0) -> ChannelUnavailable:
        return ChannelUnavailable(one_line(hide(f"{self._shown_url} {text}", self._secrets)), retry_after_seconds)


def _why_not(error: OSError | ValueError) -> str:
    """Without asyncio's own texts: they hold the address, which may be a secret."""
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number is not None and number > 0 else type(error).__name__


def _connect_text(error: httpx.ConnectError) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"has a certificate that is not trusted ({error}); name its authority with ca_file"
    return f"cannot be reached: {error}"


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return "; redirects are not followed: write the address it leads to"
    match status:
        case 401 | 403:
            return "; look at the channel's secret"
        case 404 | 410:
            return "; look at the channel's address"
        case 413:
            return "; it takes no messages of this size"
    return ""
