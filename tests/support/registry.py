"""Debian's own registry, on an address that the engine does not take for loopback, with TLS and a login."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.debian_servers import free_port, process
from tests.support.waiting import until

ADDRESS = "10.211.79.1"
"""Of a link that the test makes; the engine asks no certificate of 127.0.0.0/8."""
LINK = "rsgregistry0"
USER, PASSWORD = "puller", "very-secret-password"


@dataclass(frozen=True, slots=True)
class Registry:
    host: str

    @property
    def auth(self) -> dict[str, object]:
        return login(self.host, PASSWORD)


def login(host: str, password: str) -> dict[str, object]:
    return {"auths": {host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}}


@contextlib.contextmanager
def own_address() -> Iterator[None]:
    for command in (
        ("ip", "link", "add", LINK, "type", "bridge"),
        ("ip", "address", "add", f"{ADDRESS}/32", "dev", LINK),
        ("ip", "link", "set", LINK, "up"),
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(("ip", "link", "delete", LINK), check=True, capture_output=True, timeout=10)


@contextlib.asynccontextmanager
async def registry(
    directory: Path, tls: Authority, port: int = 0, asks_for_login: bool = True
) -> AsyncIterator[Registry]:
    """Ended at the end; its images stay in `directory`, for the next one."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    hashed = subprocess.run(
        ("htpasswd", "-nbB", USER, PASSWORD), check=True, capture_output=True, text=True, timeout=30
    ).stdout
    (directory / "htpasswd").write_text(hashed)
    auth = f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}" if asks_for_login else ""
    configuration = directory / "registry.yml"
    configuration.write_text(f"""\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {directory / "images"}}}}}
http: {{addr: "{ADDRESS}:{port}", tls: {{certificate: {tls.certificate_file}, key: {tls.key_file}}}}}
{auth}
""")
    async with process("docker-registry", "serve", str(configuration), environment=dict(os.environ)):
        await until(lambda: _listens(port), what=f"the registry on {port}")
        yield Registry(f"{ADDRESS}:{port}")


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(ADDRESS, port)
    except OSError:
        return False
    writer.close()
    return True
