"""Channels against Debian's own Postfix and Alertmanager."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from pathlib import Path

import pytest

from healthmonitor.channels.alertmanager import AlertmanagerChannel, AlertmanagerSettings
from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable, Notification, Transition
from healthmonitor.channels.email import EmailChannel, EmailSettings
from healthmonitor.core.records import Severity
from tests.support.certificates import make_authority
from tests.support.debian_servers import alertmanager, listens, postfix
from tests.support.notifications import OPENED, many, nasty, notification, resolved
from tests.support.receivers import Request, http_receiver, mail_server
from tests.support.waiting import until

pytestmark = pytest.mark.servers


async def test_postfix_takes_queues_and_refuses(tmp_path: Path) -> None:
    """Mail goes through a real Postfix with STARTTLS to the server behind it, whole; its 450 is tried again, its 550
    is definite, and what it takes for some is not sent to them again."""
    authority = make_authority(tmp_path / "tls")
    async with mail_server(None) as behind, postfix(behind.port, authority) as server:
        settings = EmailSettings(
            "localhost",
            server.port,
            "starttls",
            "hm@example.org",
            ("oncall@example.org",),
            trust=ssl.create_default_context(cafile=str(authority.ca_file)),
        )
        channel = EmailChannel("mail", settings)
        receipt = await channel.deliver(OPENED)
        assert "queued as" in receipt.said
        await channel.deliver(nasty())
        await until(lambda: len(behind.mails) == 2, 30, server.log.read_text)
        mails = {found["Message-ID"]: found for _, found in behind.mails}
        assert len(mails) == 2
        for _, found in behind.mails:
            assert "postfix.test" in found["Received"]
            assert found["Bcc"] is None
            assert [part.get_content_type() for part in found.iter_parts()] == ["text/plain", "text/html"]
        gone = EmailChannel("mail", replace(settings, recipients=("gone@example.org",)))
        with pytest.raises(ChannelRefused, match=r"gone@example\.org \(550 .*no such user"):
            await gone.deliver(OPENED)
        some = EmailChannel("mail", replace(settings, recipients=("later@example.org", "a@example.org")))
        for _ in range(2):
            with pytest.raises(ChannelUnavailable, match=r"later@example\.org \(450 .*greylisted.*1 have it"):
                await some.deliver(notification(id="n-3"))
        await until(lambda: len(behind.mails) == 3, 30, server.log.read_text)
        wary = EmailChannel("mail", replace(settings, trust=None))
        with pytest.raises(ChannelUnavailable, match="ca_file"):
            await wary.deliver(OPENED)
    assert len(behind.mails) == 3
    assert not await listens(server.port)  # nothing of it is left


def now(told: Notification, opened_ago_seconds: float = 60.0) -> Notification:
    """The same, of this minute: Alertmanager ends what is over by its own clock."""
    at = time.time()
    items = tuple(
        replace(
            item,
            incident=replace(
                item.incident,
                opened_at=at - opened_ago_seconds,
                resolved_at=None if item.incident.resolved_at is None else at,
            ),
        )
        for item in told.items
    )
    return replace(told, at=at, items=items)


async def test_alertmanager_fires_and_resolves(tmp_path: Path) -> None:
    """A real Alertmanager takes what is opened, changed in severity and resolved, and tells its own receiver of one
    beginning and one end for each; what never fired is not told of."""
    async with http_receiver() as hook, alertmanager(tmp_path, f"http://127.0.0.1:{hook.port}/") as server:
        channel = AlertmanagerChannel("am", AlertmanagerSettings((server.url,), {"team": "storage"}), time.time)
        await channel.deliver(now(OPENED))
        await until(lambda: _told(hook.requests, "firing") == ["critical"])
        [alert] = await server.alerts()
        assert alert["labels"] == {
            "alertname": "vm_missing", "deployment": "shop", "incident": "vm_missing:shop/db/0",
            "instance": "shop/db/0", "severity": "critical", "site": "hm-a", "team": "storage",
        }  # fmt: skip
        changed = now(notification(id="n-5", transition=Transition.CHANGED))
        worse = replace(changed.items[0], incident=replace(changed.items[0].incident, severity=Severity.ALERT))
        await channel.deliver(replace(changed, severity=Severity.ALERT, items=(worse,)))
        await until(lambda: _told(hook.requests, "firing") == ["alert", "critical"])
        await until(lambda: _told(hook.requests, "resolved") == ["critical"])
        over = now(resolved())
        mended = replace(over.items[0], incident=replace(over.items[0].incident, severity=Severity.ALERT))
        await channel.deliver(replace(over, items=(mended,)))
        await until(lambda: _told(hook.requests, "resolved") == ["alert", "critical"])
        assert _told(hook.requests, "firing") == ["alert", "critical"]
        assert await server.alerts() == []
        await channel.close()


async def test_alertmanager_takes_whatever_comes(tmp_path: Path) -> None:
    """Text from outside, 500 incidents at once, a test and a digest are all taken."""
    async with http_receiver() as hook, alertmanager(tmp_path, f"http://127.0.0.1:{hook.port}/") as server:
        channel = AlertmanagerChannel("am", AlertmanagerSettings((server.url, server.url + "/"), {}), time.time)
        for told in (
            nasty(),
            many(500),
            notification(items=(), transition=Transition.TEST),
            notification(items=(), transition=Transition.DIGEST, left_out=77),
            notification(transition=Transition.NOTED),
            notification(transition=Transition.ACKNOWLEDGED),
        ):
            assert "200 OK" in (await channel.deliver(now(told))).said
        found = await server.alerts()
        assert len(found) == 500 + 3  # the last two are shop/db/0 of `many`
        await channel.close()
        down = AlertmanagerChannel("am", AlertmanagerSettings(("http://127.0.0.1:1", server.url)), time.time)
        assert "cannot be reached" in (await down.deliver(now(OPENED))).said
        await down.close()


def _told(requests: list[Request], status: str) -> list[str]:
    """Severities of the alerts with this status that the receiver was told of, each once."""
    found = {
        alert["labels"]["severity"]
        for request in requests
        for alert in request.json()["alerts"]
        if alert["status"] == status
    }
    return sorted(found)
