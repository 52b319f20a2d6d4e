"""Trust in channels' servers, decided before a configuration is taken: real TLS servers, and the whole monitor."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from healthmonitor.channels.build import build_channels
from healthmonitor.channels.reach import Reached, reach_all
from healthmonitor.core.configuration import parse_configuration
from tests.integration.test_alerts_service import MonitorProcess, Receiver
from tests.support.certificates import Authority, make_authority
from tests.support.nats import NatsServer, free_port, nats_server
from tests.support.receivers import http_receiver, mail_server
from tests.support.waiting import until

SECRET_PATH = "s3cr3t-path"


async def reached(directory: Path, kind: str, line: str) -> Reached:
    """What the channel's server is to a configuration whose third line is `line`."""
    file = directory / "healthmonitor.yml"
    file.write_text(f"channels:\n  - {{name: it, type: {kind}, options: {{\n{line}}}}}\n")
    configurations = parse_configuration(file.read_bytes(), str(file), str(directory)).channels
    channels = build_channels(configurations, str(file), time.time, {})
    try:
        return await reach_all(channels, configurations, str(file))
    finally:
        for channel in channels:
            await channel.close()


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Authority, Authority]:
    """That which signed the server's certificate, and another."""
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    (tmp_path / "key").chmod(0o600)
    return make_authority(tmp_path / "ours"), make_authority(tmp_path / "theirs")


HTTP_OPTIONS = {
    "webhook": "url: 'https://localhost:{port}/hook'",
    "pagerduty": "routing_key_file: key, url: 'https://localhost:{port}/v2/enqueue'",
    "alertmanager": "urls: ['https://localhost:{port}']",
}


@pytest.mark.parametrize("kind", HTTP_OPTIONS)
async def test_an_untrusted_web_server_is_an_error_with_its_line(
    kind: str, authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    """Signed by nobody that is known, or by another: refused, with the cause. By ours: nothing is said. Nothing is sent
    to it either way."""
    ours, _ = authorities
    async with http_receiver(tls=ours.server()) as server:
        options = HTTP_OPTIONS[kind].format(port=server.port)
        for wrong in (options, f"{options}, ca_file: theirs/ca.pem"):
            found = await reached(tmp_path, kind, wrong)
            [error] = found.errors
            assert (error.line, found.unreachable) == (3, {})
            assert "is not trusted: " in error.message
            assert "self-signed" in error.message or "unable to get local issuer" in error.message
            assert error.message.endswith("name its authority with ca_file")
        assert await reached(tmp_path, kind, f"{options}, ca_file: ours/ca.pem") == Reached({}, ())
        assert server.requests == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_an_untrusted_mail_server_is_an_error_with_its_line(
    tls: str, authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    """As far as TLS, in both ways: neither login nor mail."""
    ours, _ = authorities
    async with mail_server(ours.server(), implicit=tls == "implicit") as server:
        options = f"host: localhost, port: {server.port}, tls: {tls}, from: a@b.org, to: c@d.org"
        for wrong in (options, f"{options}, ca_file: theirs/ca.pem"):
            found = await reached(tmp_path, "email", wrong)
            [error] = found.errors
            assert error.line == 3
            assert f"the certificate of localhost:{server.port} is not trusted: " in error.message
        assert await reached(tmp_path, "email", f"{options}, ca_file: ours/ca.pem") == Reached({}, ())
        assert (server.mails, server.logins) == ([], [])


async def test_a_name_that_is_not_the_certificates_is_not_trusted(
    authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    """The right authority is not enough."""
    ours, _ = authorities
    async with http_receiver(tls=ours.server()) as server:
        options = f"url: 'https://127.0.0.2:{server.port}/hook', ca_file: ours/ca.pem"
        server_on_all = await asyncio.start_server(server._serve, "127.0.0.2", server.port, ssl=ours.server())
        found = await reached(tmp_path, "webhook", options)
        server_on_all.close()
        [error] = found.errors
        assert "IP address mismatch" in error.message


async def test_an_expired_certificate_is_not_trusted(tmp_path: Path) -> None:
    """Said as such. An authority that has expired is found when its file is read."""
    authority = make_authority(tmp_path / "old", days=-1)
    fresh = make_authority(tmp_path / "fresh")
    async with http_receiver(tls=authority.server()) as server:
        options = f"url: 'https://localhost:{server.port}/', ca_file: fresh/ca.pem"
        [error] = (await reached(tmp_path, "webhook", options)).errors
        assert "not trusted" in error.message
    assert fresh.ca_file.exists()


async def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    """A refused connection, a name that nobody knows, a server that speaks no TLS: said, each with its cause."""
    port = free_port()
    for kind, line in (
        ("webhook", f"url: 'https://127.0.0.1:{port}/x'"),
        ("webhook", "url: 'https://nobody.invalid/x'"),
        ("email", f"host: 127.0.0.1, port: {port}, from: a@b.org, to: c@d.org"),
    ):
        found = await reached(tmp_path, kind, line)
        assert found.errors == ()
        assert found.unreachable["it"], line
    async with http_receiver() as server:
        found = await reached(tmp_path, "webhook", f"url: 'https://127.0.0.1:{server.port}/x'")
        assert (found.errors, list(found.unreachable)) == ((), ["it"])


async def test_a_secret_address_is_not_shown(authorities: tuple[Authority, Authority], tmp_path: Path) -> None:
    """Neither when it is not trusted nor when it is not there."""
    ours, _ = authorities
    async with http_receiver(tls=ours.server()) as server:
        address = tmp_path / "address"
        address.write_text(f"https://localhost:{server.port}/{SECRET_PATH}")
        address.chmod(0o600)
        untrusted = await reached(tmp_path, "webhook", "secret_url_file: address")
    gone = await reached(tmp_path, "webhook", "secret_url_file: address")
    [error] = untrusted.errors
    assert error.line == 3
    for text in (str(error), gone.unreachable["it"]):
        assert SECRET_PATH not in text
        assert "localhost" not in text
        assert str(server.port) not in text


# The whole monitor.


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, Receiver, MonitorProcess]]:
    async with nats_server(tmp_path) as server:
        receiver = Receiver()
        await receiver.start()
        monitor = MonitorProcess(tmp_path, server, receiver)
        try:
            yield server, receiver, monitor
        finally:
            await monitor.kill()
            await receiver.stop()


def two_channels(monitor: MonitorProcess, second: str) -> str:
    return (
        f"{monitor.channel('page')}  - {{name: second, type: webhook, options: {{\n    url: {json.dumps(second)}}}}}\n"
    )


async def test_a_monitor_refuses_what_it_does_not_trust(
    site: tuple[NatsServer, Receiver, MonitorProcess], authorities: tuple[Authority, Authority]
) -> None:
    """At the start it ends with line and cause, and so does --check. At a reload the running configuration is kept."""
    _, _, monitor = site
    async with http_receiver(tls=authorities[0].server()) as server:
        wrong = two_channels(monitor, f"https://localhost:{server.port}/")
        monitor.configure(wrong)
        line = monitor.path.read_text().splitlines().index(wrong.splitlines()[-1]) + 1
        for flags in ((), ("--check",)):
            refused = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "healthmonitor", "--config", str(monitor.path), *flags),
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await refused.communicate()
            assert refused.returncode == 2, said.decode()
            where = f"{monitor.path}:{line}: channels.second.url: the certificate of https://localhost:{server.port}/"
            assert f"{where} is not trusted: " in said.decode()

        monitor.configure(monitor.channel("page"))
        await monitor.start()
        await monitor.leads()
        monitor.configure(wrong)
        monitor.reload()
        await until(lambda: "configuration not reloaded, the former one holds" in monitor.log(), 20)
        assert "is not trusted" in monitor.log()
        kept = (await monitor.get("/v1/alerts/channels"))["channels"]
        assert [each["name"] for each in kept] == ["page"]
        assert server.requests == []


async def test_a_server_that_is_not_there_does_not_keep_the_monitor_from_starting(
    site: tuple[NatsServer, Receiver, MonitorProcess],
) -> None:
    """It is a warning, an incident on the other channel, and in /healthz."""
    _, receiver, monitor = site
    port = free_port()
    monitor.configure(two_channels(monitor, f"http://127.0.0.1:{port}/"))
    await monitor.start()
    await until(lambda: "channel_failing:second" in receiver.text(), 30)
    assert "channel.unreachable" in monitor.log()
    health = await monitor.get("/healthz")
    assert health["healthy"]
    assert [text.startswith("channel second: cannot deliver: ") for text in health["warnings"]] == [True]
