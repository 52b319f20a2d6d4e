"""Debian's own Postfix and Alertmanager, each with a configuration, a state directory and a loopback port apart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.certificates import Authority
from tests.support.waiting import until

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
maillog_file = {root}/log
maillog_file_prefixes = {root}
myhostname = postfix.test
mydestination =
inet_protocols = ipv4
inet_interfaces = 127.0.0.1
mynetworks = 127.0.0.0/8
relayhost = [127.0.0.1]:{relay_port}
relay_transport = smtp
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {tls.certificate_file}
smtpd_tls_key_file = {tls.key_file}
smtpd_recipient_restrictions = check_recipient_access inline:{{
  {{gone@example.org=550 5.1.1 no such user}}, {{later@example.org=450 4.7.1 greylisted}}}}, permit_mynetworks, reject
smtp_tls_security_level = none
message_size_limit = 300000
alias_maps =
"""


@dataclass(frozen=True, slots=True)
class Postfix:
    port: int
    log: Path


@contextlib.asynccontextmanager
async def postfix(relay_port: int, tls: Authority) -> AsyncIterator[Postfix]:
    """Takes mail on a loopback port, with STARTTLS only, and hands it to `relay_port`. Needs root."""
    # Not pytest's directory: Postfix's own users must be able to pass through it.
    root = Path(tempfile.mkdtemp(prefix="resurgam-postfix-"))
    root.chmod(0o755)
    port = free_port()
    try:
        for name in ("etc", "queue", "data"):
            (root / name).mkdir(mode=0o755)
        shutil.chown(root / "data", "postfix")
        (root / "etc" / "main.cf").write_text(MAIN.format(root=root, relay_port=relay_port, tls=tls))
        (root / "etc" / "master.cf").write_text(MASTER.format(port=port))
        environment = {**os.environ, "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}"}
        command = ("postfix", "-c", str(root / "etc"), "start-fg")
        async with process(*command, environment=environment) as script:
            try:
                await until(lambda: listens(port), what=f"Postfix on {port}")
                yield Postfix(port, root / "log")
            finally:
                await _end_master(root / "queue" / "pid" / "master.pid", script)
    finally:
        shutil.rmtree(root)


async def _end_master(pid_file: Path, script: asyncio.subprocess.Process) -> None:
    """Postfix's first process has a session of its own, so it is ended by its own id; the script waits for it."""
    if not pid_file.exists():
        return
    master = int(pid_file.read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(master, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await script.wait()
                return


@dataclass(frozen=True, slots=True)
class Alertmanager:
    url: str

    async def alerts(self) -> list[dict[str, object]]:
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.get(f"{self.url}/api/v2/alerts")
            found: list[dict[str, object]] = reply.raise_for_status().json()
            return found


@contextlib.asynccontextmanager
async def alertmanager(directory: Path, receiver_url: str) -> AsyncIterator[Alertmanager]:
    """Tells `receiver_url` at once of whatever begins and ends."""
    port = free_port()
    configuration = directory / "alertmanager.yml"
    configuration.write_text(
        "route: {receiver: hook, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
        f"receivers: [{{name: hook, webhook_configs: [{{url: '{receiver_url}', send_resolved: true}}]}}]\n"
    )
    command = (
        "prometheus-alertmanager",
        f"--config.file={configuration}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    async with process(*command, environment=dict(os.environ)):
        await until(lambda: listens(port), what=f"Alertmanager on {port}")
        yield Alertmanager(f"http://127.0.0.1:{port}")


@contextlib.asynccontextmanager
async def process(*command: str, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ended at the end, if it has not ended; then what it said is shown."""
    with tempfile.TemporaryFile() as log:
        child = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=environment)
        try:
            yield child
        finally:
            await _end(child)
            log.seek(0)
            print(log.read().decode("utf-8", "replace")[-4000:])


async def _end(child: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await child.wait()
                return


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True
