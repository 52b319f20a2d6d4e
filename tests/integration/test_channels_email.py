"""Mail against a real SMTP server (aiosmtpd) with STARTTLS, implicit TLS and login."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from healthmonitor.channels.channel import ChannelRefused, ChannelUnavailable
from healthmonitor.channels.email import EmailChannel, EmailSettings
from healthmonitor.channels.secret import Secret
from tests.support.certificates import Authority, make_authority
from tests.support.notifications import OPENED, resolved
from tests.support.receivers import PASSWORD, USER, MailServer, mail_server

RECIPIENTS = ("a@example.org", "b@example.org", "c@example.org")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path / "tls")


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[MailServer]:
    async with mail_server(authority.server()) as found:
        yield found


def settings(server: MailServer, authority: Authority) -> EmailSettings:
    trust = ssl.create_default_context(cafile=str(authority.ca_file))
    tls = "implicit" if server.implicit else "starttls"
    return EmailSettings(
        "127.0.0.1", server.port, tls, "hm@example.org", RECIPIENTS, USER, Secret(PASSWORD), trust, "hm.test", 5.0
    )


async def test_starttls_login_and_several_recipients(server: MailServer, authority: Authority) -> None:
    """One mail reaches all recipients after STARTTLS and login, and its resolution is a reply in the same thread."""
    channel = EmailChannel("mail", settings(server, authority))
    receipt = await channel.deliver(OPENED)
    await channel.deliver(resolved())
    assert "queued as 4711" in receipt.said
    assert server.logins == [True, True]
    (opened_to, opened), (_, over) = server.mails
    assert opened_to.rcpt_tos == list(RECIPIENTS)
    assert over["In-Reply-To"] == opened["References"]
    assert "shop/db/0 is missing" in opened["Subject"]
    body = opened.get_body(("plain",))
    assert body is not None
    assert "resurgam status shop/db/0" in body.get_content()


async def test_implicit_tls(authority: Authority) -> None:
    """TLS from the first byte."""
    async with mail_server(authority.server(), implicit=True) as server:
        await EmailChannel("mail", settings(server, authority)).deliver(OPENED)
        assert len(server.mails) == 1


async def test_a_certificate_that_is_not_trusted_gets_nothing(
    server: MailServer, authority: Authority, tmp_path: Path
) -> None:
    """No login is tried, and the error says what to write."""
    other = make_authority(tmp_path / "other")
    channel = EmailChannel("mail", settings(server, other))
    with pytest.raises(ChannelUnavailable, match="name its authority with ca_file"):
        await channel.deliver(OPENED)
    assert server.logins == []


async def test_a_server_without_starttls_gets_nothing(authority: Authority) -> None:
    """A stripped STARTTLS (by an attacker, or a wrong server) never leads to a password in the clear."""
    async with mail_server(None) as server:
        with pytest.raises(ChannelUnavailable, match="STARTTLS"):
            await EmailChannel("mail", settings(server, authority)).deliver(OPENED)
        assert server.mails == []
        assert server.logins == []


async def test_a_wrong_password_is_definite(server: MailServer, authority: Authority) -> None:
    """535 is refused, names what to look at, and does not show the password."""
    wrong = replace(settings(server, authority), password=Secret("wrong-password-1"))
    with pytest.raises(ChannelRefused, match=r"535.*look at user and password") as caught:
        await EmailChannel("mail", wrong).deliver(OPENED)
    assert "wrong-password-1" not in str(caught.value)


async def test_one_recipient_refused_for_good_is_reported(server: MailServer, authority: Authority) -> None:
    """The others get the mail; the receipt and the log name who did not, and why."""
    server.refused = {"b@example.org": "550 5.1.1 no such user"}
    with capture_logs() as entries:
        receipt = await EmailChannel("mail", settings(server, authority)).deliver(OPENED)
    assert "refused for b@example.org (550 5.1.1 no such user)" in receipt.said
    assert server.mails[0][0].rcpt_tos == ["a@example.org", "c@example.org"]
    assert [each["event"] for each in entries] == ["email.recipient_refused"]


async def test_one_recipient_refused_for_now_is_tried_again_alone(server: MailServer, authority: Authority) -> None:
    """Who has the mail does not get it again."""
    server.refused = {"b@example.org": "451 4.7.1 greylisted"}
    channel = EmailChannel("mail", settings(server, authority))
    with pytest.raises(ChannelUnavailable, match=r"b@example\.org \(451 4\.7\.1 greylisted\); 2 have it"):
        await channel.deliver(OPENED)
    server.refused = {}
    await channel.deliver(OPENED)
    assert [each.rcpt_tos for each, _ in server.mails] == [["a@example.org", "c@example.org"], ["b@example.org"]]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("452 4.3.1 disk full", ChannelUnavailable), ("554 5.6.0 looks like spam", ChannelRefused)],
)
async def test_the_mail_itself_refused(
    reply: str, kind: type[Exception], server: MailServer, authority: Authority
) -> None:
    """4xx after the content is for now, 5xx for good."""
    server.content_reply = reply
    with pytest.raises(kind, match=reply):
        await EmailChannel("mail", settings(server, authority)).deliver(OPENED)


async def test_no_header_can_be_slipped_in(server: MailServer, authority: Authority) -> None:
    """A subject with newlines stays a subject, for this very server."""
    told = replace(OPENED, subject="x\r\nBcc: victim@example.org\r\n\r\nbody", site="y\nX-Evil: 1")
    await EmailChannel("mail", settings(server, authority)).deliver(told)
    [(envelope, found)] = server.mails
    assert found["Bcc"] is None
    assert found["X-Evil"] is None
    assert envelope.rcpt_tos == list(RECIPIENTS)
    assert "x Bcc: victim@example.org body" in found["Subject"]
