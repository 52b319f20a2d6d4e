"""Every field of a container's specification reaches the engine, or is the agent's own business."""

from __future__ import annotations

import dataclasses
from typing import Any

import docker
import pytest

from agent.docker_options import container_options, networks_of
from protocol.ids import ContainerName
from protocol.spec import (
    SUPERVISED_FIELDS,
    ContainerSpec,
    Device,
    Healthcheck,
    Logging,
    Port,
    Ulimit,
)

NAMED_BY_THE_CALLER = {"name", "mounts"}
"""`name` is the container's name, `mounts` come resolved to directories."""

CHANGES: dict[str, Any] = {
    "image": "b:1",
    "command": ("x",),
    "entrypoint": ("y",),
    "environment": {"A": "b"},
    "ports": (Port(80, 8080),),
    "tmpfs": ("/run:size=1m",),
    "healthcheck": Healthcheck(("CMD", "true")),
    "stop_signal": "SIGINT",
    "user": "1:2",
    "group_add": ("7",),
    "working_dir": "/w",
    "hostname": "h",
    "domainname": "d",
    "extra_hosts": ("a:127.0.0.1",),
    "dns": ("127.0.0.1",),
    "dns_search": ("example",),
    "dns_opt": ("ndots:1",),
    "network_mode": "host",
    "networks": ("back",),
    "mac_address": "02:42:ac:11:00:02",
    "cap_add": ("NET_ADMIN",),
    "cap_drop": ("ALL",),
    "privileged": True,
    "read_only": True,
    "security_opt": ("no-new-privileges",),
    "devices": (Device("/dev/null", "/dev/x"),),
    "ulimits": (Ulimit("nofile", 1, 2),),
    "sysctls": {"net.core.somaxconn": "1"},
    "shm_size_bytes": 1 << 20,
    "init": True,
    "labels": {"l": "1"},
    "logging": Logging("none", {}),
    "cpus": 0.5,
    "cpu_shares": 100,
    "cpu_period_microseconds": 50_000,
    "cpu_quota_microseconds": 25_000,
    "blkio_weight": 100,
    "mem_limit_bytes": 1 << 26,
    "mem_reservation_bytes": 1 << 25,
    "memswap_limit_bytes": 1 << 27,
    "mem_swappiness": 10,
    "oom_kill_disable": True,
    "pids_limit": 10,
    "volume_driver": "local",
    "volumes_from": ("other",),
    "pid": "host",
    "ipc": "host",
    "userns_mode": "host",
    "tty": True,
    "stdin_open": True,
}


def options(**changes: Any) -> dict[str, Any]:
    spec = dataclasses.replace(ContainerSpec(ContainerName("one"), "a:1"), **changes)
    client = docker.APIClient(base_url="unix:///nonexistent.sock", version="1.41")
    try:
        return container_options(client, spec, networks_of("shop/db/0", spec), {}, {})
    finally:
        client.close()


def test_the_table_names_every_field() -> None:
    """A new field cannot be forgotten here."""
    fields = {item.name for item in dataclasses.fields(ContainerSpec)}
    assert fields - SUPERVISED_FIELDS - NAMED_BY_THE_CALLER == set(CHANGES)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changing_a_field_changes_what_the_engine_is_asked_for(name: str) -> None:
    """What an operator writes must not be dropped in silence."""
    assert options(**{name: CHANGES[name]}) != options()


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (Port(80), {}),
        (Port(80, 8080, "127.0.0.1"), {"80/tcp": [{"HostPort": "8080", "HostIp": "127.0.0.1"}]}),
        (Port(53, 53, protocol="udp"), {"53/udp": [{"HostPort": "53", "HostIp": ""}]}),
        (Port(80, published=True), {"80/tcp": [{"HostPort": "", "HostIp": ""}]}),
    ],
)
def test_ports_are_exposed_published_and_published_on_a_free_port(port: Port, expected: dict[str, Any]) -> None:
    """`expose`, `8080:80` and `80` are three different things."""
    made = options(ports=(port,))
    bindings = made["host_config"].get("PortBindings", {})
    assert bindings == expected
    assert made["ports"] == [(port.container_port, port.protocol)]
