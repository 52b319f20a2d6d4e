"""The agent's settings as a guest gets them: with the VM's own cid, and a bus address that is right from inside.

Law: only loopback addresses are rewritten. Any other address is the operator's, who knows what a guest can reach.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import secrets
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from protocol import codec
from protocol.ids import VmCid
from protocol.settings import AgentSettings

ENTROPY_BYTES = 64
NATS_PORT = 4222


def for_guest(settings: AgentSettings, vm: VmCid, bus_host: str) -> bytes:
    """JSON. `bus_host`: where the guest finds this machine's loopback; "" leaves addresses as they are.

    Entropy and time are added where the caller left them out: VMs from one snapshot would else start with the same
    random numbers, at the snapshot's time."""
    urls = tuple(_reachable(url, bus_host) if bus_host else url for url in settings.bus.urls)
    return codec.to_json(
        dataclasses.replace(
            settings,
            vm_cid=vm,
            bus=dataclasses.replace(settings.bus, urls=urls),
            entropy=settings.entropy or base64.b64encode(secrets.token_bytes(ENTROPY_BYTES)).decode(),
            unix_time=time.time(),
        )
    )


def loopback_ports(urls: Iterable[str], default: int = NATS_PORT) -> frozenset[int]:
    """Ports of those urls that mean this machine's loopback."""
    parts = [urlsplit(url if "//" in url else f"//{url}") for url in urls]
    return frozenset(part.port or default for part in parts if part.hostname and _is_loopback(part.hostname))


def _reachable(url: str, bus_host: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    if parts.hostname is None or not _is_loopback(parts.hostname):
        return url
    user, at, _ = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port is not None else ""
    return parts._replace(netloc=f"{user}{at}{bus_host}{port}").geturl().removeprefix("//")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
