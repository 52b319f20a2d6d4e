"""What every channel keeps, each with a real receiver on loopback that takes, fails and misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from healthmonitor.channels.build import build_channels
from healthmonitor.channels.channel import Channel, ChannelRefused, ChannelUnavailable
from healthmonitor.core.configuration import parse_configuration
from tests.support.certificates import make_authority
from tests.support.notifications import OPENED, many, nasty, notification, resolved
from tests.support.receivers import PASSWORD, USER, Mode, http_receiver, mail_server
from tests.support.waiting import until

SECRET = "s3cr3t-t0ken-0f-the-test"
READER = """
import sys
with open(sys.argv[1], "a") as out:
    for line in sys.stdin:
        out.write(line)
        out.flush()
"""
TIMEOUT_SECONDS = 10.0
IMPATIENT_SECONDS = 0.7  # where the receiver is slow on purpose
UNAVAILABLE, REFUSED = ChannelUnavailable, ChannelRefused
HTTP: Mapping[Mode, type[Exception]] = {
    Mode.SLOW: UNAVAILABLE,
    Mode.LATER: UNAVAILABLE,
    Mode.FAILING: UNAVAILABLE,
    Mode.NEVER: REFUSED,
    Mode.GARBAGE: UNAVAILABLE,
    Mode.CUT: UNAVAILABLE,
    Mode.DOWN: UNAVAILABLE,
}
FAILS: Mapping[str, Mapping[Mode, type[Exception]]] = {
    "webhook": HTTP,
    "pagerduty": HTTP,
    "alertmanager": HTTP,
    "email": HTTP,
    "apprise": {
        mode: UNAVAILABLE for mode in HTTP if mode is not Mode.CUT
    },  # Apprise does not say why; and a cut reply is, to its JSON plugin, one
    "exec": {Mode.SLOW: UNAVAILABLE, Mode.DOWN: UNAVAILABLE},
    "log": {},
}


@dataclass
class House:
    """A channel and its receiver. `received`: what it was given, as text, one for each notification."""

    channel: Channel
    behave: Callable[[Mode], object]
    received: Callable[[], list[str]]

    async def change(self, mode: Mode) -> None:
        await self.behave(mode)  # type: ignore[misc]


def build(directory: Path, timeout: float, kind: str, **options: Any) -> Channel:
    file = str(directory / "healthmonitor.yml")
    if kind != "log":
        options["timeout"] = f"{timeout}s"
    text = json.dumps({"channels": [{"name": "it", "type": kind, "options": options}]})
    configuration = parse_configuration(text, file, str(directory))
    [channel] = build_channels(configuration.channels, file, time.time, {"PATH": "/usr/bin:/bin"})
    return channel


@contextlib.asynccontextmanager
async def house(kind: str, directory: Path, timeout: float = TIMEOUT_SECONDS) -> AsyncIterator[House]:
    secret = directory / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    if kind == "log":
        with structlog.testing.capture_logs() as entries:
            channel = build(directory, timeout, "log")
            yield House(channel, _stays, lambda: [json.dumps(each) for each in entries])
        return
    if kind == "exec":
        async with exec_house(directory, timeout) as found:
            yield found
        return
    if kind == "email":
        authority = make_authority(directory / "tls")
        secret.write_text(PASSWORD)
        async with mail_server(authority.server()) as server:
            channel = build(
                directory,
                timeout,
                "email",
                host="localhost",
                port=server.port,
                user=USER,
                password_file="secret",
                **{"ca_file": "tls/ca.pem", "from": "hm@example.org", "to": ["a@example.org"]},
            )
            yield House(channel, server.behave, lambda: [each.as_string() for _, each in server.mails])
            await channel.close()
        return
    taken = (202, '{"status":"success","message":"Event processed","dedup_key":"x"}')
    async with http_receiver(taken if kind == "pagerduty" else (200, "")) as receiver:
        url = f"http://127.0.0.1:{receiver.port}"
        (directory / "urls").write_text(f"# one\njson://{USER}:{SECRET}@127.0.0.1:{receiver.port}/path\n")
        (directory / "urls").chmod(0o600)
        options: dict[str, dict[str, Any]] = {
            "webhook": {
                "url": f"{url}/hook",
                "signing_key_file": "secret",
                "headers": {"X-Token": {"file": "secret"}},
            },
            "pagerduty": {"url": f"{url}/v2/enqueue", "routing_key_file": "secret"},
            "alertmanager": {"urls": url, "token_file": "secret"},
            "apprise": {"urls_file": "urls"},
        }
        channel = build(directory, timeout, kind, **options[kind])
        yield House(channel, receiver.behave, lambda: [each.body.decode() for each in receiver.requests])
        await channel.close()


@contextlib.asynccontextmanager
async def exec_house(directory: Path, timeout: float) -> AsyncIterator[House]:
    reader, received = directory / "reader.py", directory / "received"
    program = directory / "program"

    async def behave(mode: Mode) -> None:
        running = {Mode.SLOW: "import signal; signal.pause()", Mode.DOWN: "raise SystemExit(3)"}.get(mode, READER)
        reader.write_text(running)

    program.write_text(f"#!/bin/sh\nexec {sys.executable} {reader} {received}\n")
    program.chmod(0o755)
    received.touch()
    await behave(Mode.TAKE)
    channel = build(directory, timeout, "exec", command=["./program"])
    yield House(channel, behave, lambda: received.read_text().splitlines())
    await channel.close()


async def _stays(mode: Mode) -> None:
    return None


KINDS = tuple(FAILS)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_delivered_was_taken(kind: str, tmp_path: Path) -> None:
    """After `deliver` returns the receiver has the notification, of every transition, and the receipt says so."""
    async with house(kind, tmp_path) as it:
        for each in (OPENED, resolved()):
            receipt = await it.channel.deliver(each)
            assert receipt.said
        await until(lambda: len(it.received()) == 2)
        assert all("shop/db/0" in text or "vm_missing" in text for text in it.received())


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in FAILS.items() for mode in modes])
async def test_a_failure_is_named_in_time_and_the_next_try_delivers(kind: str, mode: Mode, tmp_path: Path) -> None:
    """A receiver that fails makes the promised exception, with a cause, within the deadline, without a secret in it;
    once it is well again, the same channel delivers the same notification."""
    timeout = IMPATIENT_SECONDS if mode is Mode.SLOW else TIMEOUT_SECONDS
    async with house(kind, tmp_path, timeout) as it:
        told = many(500) if kind == "exec" else OPENED  # more than a pipe holds
        await it.change(mode)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with contextlib.suppress(ChannelUnavailable):
            if kind == "exec":  # a pipe may take what nobody will read; the end is seen by the next one
                await it.channel.deliver(told)
        with pytest.raises(FAILS[kind][mode]) as caught:
            await it.channel.deliver(told)
        assert loop.time() - began < timeout + 5
        said = str(caught.value) + repr(caught.value)
        assert len(str(caught.value)) > 15
        assert SECRET not in said
        assert PASSWORD not in said
        assert caught.value.__cause__ is None
        if mode is Mode.LATER and kind in ("webhook", "pagerduty", "alertmanager"):
            assert isinstance(caught.value, ChannelUnavailable)
            assert caught.value.retry_after_seconds == 17
        await it.change(Mode.TAKE)
        before = len(it.received())

        async def delivered() -> bool:
            try:
                await it.channel.deliver(OPENED)
            except ChannelUnavailable:  # a child that kept ending is started again after its gap
                return False
            return True

        await until(delivered)
        await until(lambda: len(it.received()) > before)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_comes_from_outside_is_harmless_and_bounded(kind: str, tmp_path: Path) -> None:
    """Newlines, HTML, terminal commands, broken Unicode and 1 MB of text are delivered, cut and with no effect."""
    async with house(kind, tmp_path) as it:
        await it.channel.deliver(nasty())
        await until(it.received)
        [text] = it.received()
        assert len(text) < 100_000
        for bad in ("\x1b", "\x00", "\x08", "\u202e", "\u2028", "\nBcc:"):
            assert bad not in text


@pytest.mark.parametrize("kind", KINDS)
async def test_many_items_are_one_message(kind: str, tmp_path: Path) -> None:
    """500 VMs lost at once are taken in one go, and the size stays within what receivers take."""
    async with house(kind, tmp_path) as it:
        await it.channel.deliver(many(500))
        await until(it.received)
        if kind not in ("exec", "log"):
            assert len(it.received()) == 1
        assert sum(map(len, it.received())) < 1_500_000


@pytest.mark.parametrize("kind", KINDS)
async def test_secrets_are_not_shown(kind: str, tmp_path: Path) -> None:
    """Neither the channel's repr nor its receipt holds a secret."""
    async with house(kind, tmp_path) as it:
        receipt = await it.channel.deliver(notification(id="n-9"))
        shown = repr(it.channel) + str(vars(it.channel)) + repr(receipt)
        assert SECRET not in shown
        assert PASSWORD not in shown


@pytest.mark.parametrize("kind", KINDS)
async def test_it_can_be_closed_twice(kind: str, tmp_path: Path) -> None:
    """Closing is harmless however often; what comes after it is delivered or for another channel to try, never lost."""
    async with house(kind, tmp_path) as it:
        await it.channel.deliver(OPENED)
        await it.channel.close()
        await it.channel.close()
        before = len(it.received())
        try:
            await it.channel.deliver(OPENED)
        except ChannelUnavailable:
            return
        await until(lambda: len(it.received()) > before)
