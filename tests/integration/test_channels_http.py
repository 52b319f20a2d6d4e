"""What HTTP receivers answer, and what it means; signatures and keys as they arrive."""

from __future__ import annotations

import hashlib
import hmac
import json
import ssl
from email.utils import formatdate
from pathlib import Path

import pytest

from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable
from healthmonitor.channels.http import RETRY_AFTER_LONGEST_SECONDS
from healthmonitor.channels.pagerduty import PagerDutyChannel, PagerDutySettings
from healthmonitor.channels.secret import Secret
from healthmonitor.channels.webhook import WebhookChannel, WebhookSettings
from tests.support.certificates import make_authority
from tests.support.notifications import OPENED, notification, resolved
from tests.support.receivers import HttpReceiver, Mode, http_receiver

NOW = 1_795_363_230.0
KEY = Secret("signing-key")


def hook(receiver: HttpReceiver, **more: object) -> WebhookChannel:
    url = f"http://127.0.0.1:{receiver.port}/hook"
    return WebhookChannel("hook", WebhookSettings(Secret(url), url, key=KEY, **more), lambda: NOW)  # type: ignore[arg-type]


async def test_a_webhook_arrives_signed_and_with_its_key() -> None:
    """The receiver can check the signature as documented; a second try has the same key and body."""
    async with http_receiver() as receiver:
        channel = hook(receiver, headers={"X-Token": Secret("tok"), "X-Team": "storage"})
        await channel.deliver(OPENED)
        await channel.deliver(OPENED)
        first, second = receiver.requests
        stamp = first.headers["resurgam-timestamp"]
        mac = hmac.new(b"signing-key", stamp.encode() + b"." + first.body, hashlib.sha256).hexdigest()
        assert first.headers["resurgam-signature"] == f"v1={mac}"
        assert stamp == str(int(NOW))
        assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == OPENED.id
        assert first.body == second.body
        assert (first.headers["x-token"], first.headers["x-team"]) == ("tok", "storage")
        assert first.headers["user-agent"].startswith("resurgam/")
        await channel.close()


ANSWERS = [
    (b"HTTP/1.1 204 No Content\r\n\r\n", None, ""),
    (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", ChannelRefused, "redirects"),
    (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", ChannelRefused, "look at the channel's secret"),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ChannelRefused, "look at the channel's address"),
    (b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n", ChannelRefused, "no messages of this size"),
    (b"HTTP/1.1 408 X\r\nContent-Length: 0\r\n\r\n", ChannelUnavailable, "408"),
    (b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nlate", ChannelUnavailable, "503 Service Unavailable: late"),
    (b"HTTP/1.1 400 X\r\nContent-Length: 5\r\n\r\n\x1b[2Jx", ChannelRefused, "400 Bad Request: x"),
    (b"HTTP/1.1 400 X\r\nContent-Length: 15\r\n\r\nbad signing-key", ChannelRefused, r"bad \[secret\]"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ChannelUnavailable, "whole HTTP"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 100_000, None, ""),
    (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", ChannelUnavailable, "DecodingError"),
    (b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", ChannelUnavailable, "999"),
    (b"", ChannelUnavailable, "perhaps it took it"),
]


@pytest.mark.parametrize(("answer", "kind", "words"), ANSWERS)
async def test_what_an_answer_means(answer: bytes, kind: type[Exception] | None, words: str) -> None:
    """2xx is taken (its text is cut, not awaited), some are tried again, the rest is refused with advice."""
    async with http_receiver() as receiver:
        receiver.answer = answer or b" "
        channel = hook(receiver, timeout_seconds=5.0)
        if kind is None:
            assert (await channel.deliver(OPENED)).said
        else:
            with pytest.raises(kind, match=words):
                await channel.deliver(OPENED)
        await channel.close()


WAITS = [
    ("17", 17.0),
    (formatdate(NOW + 90, usegmt=True), 90.0),
    (formatdate(NOW - 90, usegmt=True), 0.0),
    ("99999999999999999999", RETRY_AFTER_LONGEST_SECONDS),
    ("-5", 0.0),
    ("soon", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("header", "seconds"), WAITS)
async def test_retry_after(header: str, seconds: float) -> None:
    """Seconds and dates are understood, nonsense is none, and nobody makes us wait for more than an hour."""
    async with http_receiver() as receiver:
        receiver.answer = f"HTTP/1.1 429 X\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n".encode()
        channel = hook(receiver)
        with pytest.raises(ChannelUnavailable) as caught:
            await channel.deliver(OPENED)
        assert caught.value.retry_after_seconds == seconds
        await channel.close()


async def test_https_with_an_own_authority_and_with_none(tmp_path: Path) -> None:
    """Trusted by ca_file it is taken; without, nothing is sent and the error says what to write."""
    authority = make_authority(tmp_path / "tls")
    async with http_receiver(tls=authority.server()) as receiver:
        url = f"https://localhost:{receiver.port}/hook"
        trust = ssl.create_default_context(cafile=str(authority.ca_file))
        trusting = WebhookChannel("a", WebhookSettings(Secret(url), url, trust=trust), lambda: NOW)
        await trusting.deliver(OPENED)
        wary = WebhookChannel("b", WebhookSettings(Secret(url), url), lambda: NOW)
        with pytest.raises(ChannelUnavailable, match=r"not trusted.*ca_file"):
            await wary.deliver(OPENED)
        assert len(receiver.requests) == 1
        await trusting.close()
        await wary.close()


async def test_a_secret_address_is_not_shown() -> None:
    """Where the address is the secret, no error names it, whatever goes wrong."""
    async with http_receiver() as receiver:
        url = Secret(f"http://127.0.0.1:{receiver.port}/services/T0/B0/tOkEn")
        channel = WebhookChannel("chat", WebhookSettings(url, "the secret address", timeout_seconds=0.3), lambda: NOW)
        for mode in (Mode.NEVER, Mode.GARBAGE, Mode.CUT, Mode.SLOW, Mode.DOWN):
            await receiver.behave(mode)
            with pytest.raises((ChannelUnavailable, ChannelRefused), match="the secret address") as caught:
                await channel.deliver(OPENED)
            assert "tOkEn" not in str(caught.value)
            assert "tOkEn" not in repr(channel) + str(vars(channel))
        await channel.close()


async def test_a_body_that_the_receiver_dictates() -> None:
    """The template's structure arrives as JSON; a template that is one text arrives as text."""
    async with http_receiver() as receiver:
        structure, plain = (
            hook(receiver, body={"text": "${summary}", "n": "${items_count}"}),
            hook(receiver, body="${id}"),
        )
        await structure.deliver(OPENED)
        await plain.deliver(OPENED)
        assert receiver.requests[0].json() == {"text": "CRITICAL shop/db/0 is missing", "n": 1}
        assert receiver.requests[1].body == b"n-0001"
        assert receiver.requests[1].headers["content-type"].startswith("text/plain")
        await structure.close()
        await plain.close()


@pytest.mark.parametrize("answer", ["", "<html>please log in</html>", '{"status":"invalid"}', "[]"])
async def test_pagerduty_counts_only_its_own_success(answer: str) -> None:
    """A 2xx from a proxy between here and there is no delivery."""
    async with http_receiver((202, answer)) as receiver:
        url = f"http://127.0.0.1:{receiver.port}/v2/enqueue"
        channel = PagerDutyChannel("pd", PagerDutySettings(Secret("k" * 32), url), lambda: NOW)
        with pytest.raises(ChannelUnavailable, match="PagerDuty does not answer"):
            await channel.deliver(OPENED)
        receiver.taken = (202, '{"status":"success","message":"Event processed"}')
        for told in (OPENED, notification(id="n-3"), resolved()):
            assert "Event processed" in (await channel.deliver(told)).said
        sent = [json.loads(each.body) for each in receiver.requests]
        assert {each["routing_key"] for each in sent} == {"k" * 32}
        assert len({each["dedup_key"] for each in sent}) == 1
        await channel.close()
