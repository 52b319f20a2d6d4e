"""Compose's notations of one container and the specification that each gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from healthmonitor.core.manifest_file import parse_manifest
from protocol.ids import ContainerName
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    Device,
    Healthcheck,
    Logging,
    Mount,
    MountKind,
    Port,
    PullPolicy,
    Restart,
    Ulimit,
    spec_hash,
)

OTHER, ONCE = ContainerName("other"), ContainerName("once")

FILES = {
    "a.env": "# comment\nA=1\nexport B=two words # and why\nC='$raw #'\nD=\"x\\ny ${A}\"\nE=\n",
    "b.env": "A=later\n",
}


def read_file(path: str) -> str:
    try:
        return FILES[path]
    except KeyError:
        raise FileNotFoundError(path) from None


def read(body: str) -> ContainerSpec:
    lines = "".join(f"        {line}\n" for line in f"image: app:1\n{body}".splitlines())
    text = (
        "name: shop\nstemcell: s\ncloud: local\nnetworks: [back]\ninstance_groups:\n  - name: db\n"
        "    persistent_disks: {data: 1GiB}\n    containers:\n      cc:\n"
        + lines
        + "      other: {image: o, healthcheck: {test: ok}}\n      once: {image: o, restart: 'no'}\n"
    )
    return parse_manifest(text, "m.yml", read_file=read_file).manifest.groups[0].containers[0]


def disk(target: str, subdirectory: str = "", read_only: bool = False) -> Mount:
    return Mount(MountKind.DISK, "data", target, subdirectory, read_only)


FIELDS: list[tuple[str, str, Any]] = [
    ("command: redis-server --port 1 'a b'", "command", ("redis-server", "--port", "1", "a b")),
    ("command: [sh, -c, '']", "command", ("sh", "-c", "")),
    ("command: [echo, 1]", "command", ("echo", "1")),
    ("command: []", "command", ()),
    ("command:", "command", None),
    ("entrypoint: /run me", "entrypoint", ("/run", "me")),
    ("environment: {A: 1, B: 'true', C: '', D: 1.50}", "environment", {"A": "1", "B": "true", "C": "", "D": "1.50"}),
    ("environment: [A=1, B=a=b, 'C=x,y']", "environment", {"A": "1", "B": "a=b", "C": "x,y"}),
    ("env_file: b.env", "environment", {"A": "later"}),
    ("env_file: a.env", "environment", {"A": "1", "B": "two words", "C": "$raw #", "D": "x\ny 1", "E": ""}),
    ("env_file: [b.env]\nenvironment: {A: mine}", "environment", {"A": "mine"}),
    ("env_file: [{path: b.env}, {path: none.env, required: false}]", "environment", {"A": "later"}),
    ("ports: ['80']", "ports", (Port(80, published=True),)),
    ("ports: [80]", "ports", (Port(80, published=True),)),
    ("ports: ['8080:80']", "ports", (Port(80, 8080),)),
    ("ports: [22:22]", "ports", (Port(22, 22),)),
    ("ports: ['127.0.0.1:8080:80/udp']", "ports", (Port(80, 8080, "127.0.0.1", "udp"),)),
    ("ports: ['[::1]:8080:80']", "ports", (Port(80, 8080, "::1"),)),
    ("ports: ['127.0.0.1::80']", "ports", (Port(80, 0, "127.0.0.1", published=True),)),
    ("ports: ['8000-8001:80-81']", "ports", (Port(80, 8000), Port(81, 8001))),
    ("ports: [{target: 80, published: '8080', host_ip: 10.0.0.1, protocol: tcp, mode: host}]", "ports",
     (Port(80, 8080, "10.0.0.1"),)),
    ("ports: [{target: 80}]", "ports", (Port(80, published=True),)),
    ("ports: ['8080:80']\nexpose: [80, '90-91']", "ports", (Port(80, 8080), Port(90), Port(91))),
    ("volumes: ['data:/data']", "mounts", (disk("/data"),)),
    ("volumes: ['data:/data/:ro']", "mounts", (disk("/data", read_only=True),)),
    ("volumes: ['data/shared/x:/data:rw']", "mounts", (disk("/data", "shared/x"),)),
    ("volumes: ['/etc/ssl//certs/:/certs:ro']", "mounts",
     (Mount(MountKind.BIND, "/etc/ssl/certs", "/certs", "", True),)),
    ("volumes: [{type: volume, source: data, target: /d, read_only: true, volume: {subpath: s}}]", "mounts",
     (disk("/d", "s", True),)),
    ("volumes: [{type: bind, source: /a, target: /b, bind: {create_host_path: true}}]", "mounts",
     (Mount(MountKind.BIND, "/a", "/b"),)),
    ("volumes: [{type: tmpfs, target: /t, tmpfs: {size: 64m, mode: 1777}}]", "tmpfs", ("/t:size=64m,mode=1777",)),
    ("tmpfs: /run", "tmpfs", ("/run",)),
    ("tmpfs: [/run, '/tmp:size=64m']", "tmpfs", ("/run", "/tmp:size=64m")),
    ("depends_on: [other]", "depends_on", (Dependency(OTHER),)),
    ("depends_on: {other: {condition: service_healthy, restart: false}}", "depends_on",
     (Dependency(OTHER, Condition.HEALTHY, False),)),
    ("depends_on: {once: {condition: service_completed_successfully}}", "depends_on",
     (Dependency(ONCE, Condition.COMPLETED),)),
    ("network_mode: service:other", "depends_on", (Dependency(OTHER),)),
    ("network_mode: service:other", "network_mode", "container:other"),
    ("network_mode: host", "network_mode", "host"),
    ("volumes_from: ['other:ro']", "depends_on", (Dependency(OTHER),)),
    ("networks: [back]", "networks", ("back",)),
    ("networks: {back: }", "networks", ("back",)),
    ("networks: [default]", "networks", ()),
    ("healthcheck: {test: curl -f x}", "healthcheck", Healthcheck(("CMD-SHELL", "curl -f x"))),
    ("healthcheck: {test: [CMD, redis-cli, ping], interval: 5s, timeout: 1m30s, retries: 2, start_period: 0}",
     "healthcheck", Healthcheck(("CMD", "redis-cli", "ping"), 5.0, 90.0, 2, 0.0)),
    ("healthcheck: {disable: true}", "healthcheck", Healthcheck(("NONE",))),
    ("healthcheck: {test: [NONE]}", "healthcheck", Healthcheck(("NONE",))),
    ("restart: no", "restart", Restart.NO),
    ("restart: false", "restart", Restart.NO),
    ("restart: unless-stopped", "restart", Restart.UNLESS_STOPPED),
    ("restart: on-failure:3", "restart", Restart.ON_FAILURE),
    ("restart: on-failure:3", "restart_limit", 3),
    ("stop_signal: int", "stop_signal", "SIGINT"),
    ("stop_signal: SIGRTMIN+3", "stop_signal", "SIGRTMIN+3"),
    ("stop_grace_period: 1m30s", "stop_grace_period_seconds", 90.0),
    ("user: 1000", "user", "1000"),
    ("group_add: [999, audio]", "group_add", ("999", "audio")),
    ("working_dir: /srv", "working_dir", "/srv"),
    ("hostname: db-1.local", "hostname", "db-1.local"),
    ("extra_hosts: ['a:10.0.0.1', 'b=::1', 'host.docker.internal:host-gateway']", "extra_hosts",
     ("a:10.0.0.1", "b:::1", "host.docker.internal:host-gateway")),
    ("domainname: example.org", "domainname", "example.org"),
    ("volume_driver: local", "volume_driver", "local"),
    ("extra_hosts: {a: 10.0.0.1}", "extra_hosts", ("a:10.0.0.1",)),
    ("dns: 1.1.1.1", "dns", ("1.1.1.1",)),
    ("dns: [1.1.1.1, 9.9.9.9]", "dns", ("1.1.1.1", "9.9.9.9")),
    ("dns_search: example.org", "dns_search", ("example.org",)),
    ("dns_opt: [use-vc]", "dns_opt", ("use-vc",)),
    ("mac_address: 02:42:AC:11:00:02", "mac_address", "02:42:ac:11:00:02"),
    ("cap_add: [CAP_NET_ADMIN, sys_time]", "cap_add", ("NET_ADMIN", "SYS_TIME")),
    ("cap_drop: [ALL]", "cap_drop", ("ALL",)),
    ("privileged: yes", "privileged", True),
    ("read_only: true", "read_only", True),
    ("security_opt: ['no-new-privileges:true']", "security_opt", ("no-new-privileges:true",)),
    ("devices: ['/dev/a', '/dev/b:/dev/c:r']", "devices",
     (Device("/dev/a", "/dev/a"), Device("/dev/b", "/dev/c", "r"))),
    ("devices: [{source: /dev/a, target: /dev/b, permissions: rw}]", "devices", (Device("/dev/a", "/dev/b", "rw"),)),
    ("ulimits: {nofile: {soft: 1, hard: 2}, core: 0, memlock: -1}", "ulimits",
     (Ulimit("core", 0, 0), Ulimit("memlock", -1, -1), Ulimit("nofile", 1, 2))),
    ("sysctls: {net.core.somaxconn: 1024}", "sysctls", {"net.core.somaxconn": "1024"}),
    ("sysctls: [net.core.somaxconn=1024]", "sysctls", {"net.core.somaxconn": "1024"}),
    ("shm_size: 64m", "shm_size_bytes", 64 * 1024 * 1024),
    ("shm_size: 67108864", "shm_size_bytes", 64 * 1024 * 1024),
    ("init: true", "init", True),
    ("labels: {a: b, c: }", "labels", {"a": "b", "c": ""}),
    ("labels: [a=b, c]", "labels", {"a": "b", "c": ""}),
    ("logging: {options: {max-size: 1m}}", "logging", Logging("json-file", {"max-size": "1m", "max-file": "5"})),
    ("logging: {driver: journald}", "logging", Logging("journald", {})),
    ("cpus: '1.5'", "cpus", 1.5),
    ("cpus: 2", "cpus", 2.0),
    ("cpu_shares: 512", "cpu_shares", 512),
    ("cpu_period: 50ms", "cpu_period_microseconds", 50_000),
    ("cpu_quota: 25000", "cpu_quota_microseconds", 25_000),
    ("blkio_weight: 300", "blkio_weight", 300),
    ("blkio_config: {weight: 300}", "blkio_weight", 300),
    ("mem_limit: 512m", "mem_limit_bytes", 512 * 1024 * 1024),
    ("mem_limit: 1GiB\nmemswap_limit: -1", "memswap_limit_bytes", -1),
    ("mem_reservation: 256mb", "mem_reservation_bytes", 256 * 1024 * 1024),
    ("mem_swappiness: 0", "mem_swappiness", 0),
    ("oom_kill_disable: true", "oom_kill_disable", True),
    ("pids_limit: 100", "pids_limit", 100),
    ("pids_limit: -1", "pids_limit", 0),
    ("deploy: {resources: {limits: {cpus: '0.5', memory: 64m, pids: 9}}}", "mem_limit_bytes", 64 * 1024 * 1024),
    ("deploy: {resources: {limits: {cpus: '0.5', memory: 64m, pids: 9}}}", "cpus", 0.5),
    ("deploy: {resources: {limits: {pids: 9}, reservations: {memory: 32m}}}", "pids_limit", 9),
    ("pull_policy: if_not_present", "pull_policy", PullPolicy.MISSING),
    ("pull_policy: always", "pull_policy", PullPolicy.ALWAYS),
    ("pull_policy: store", "pull_policy", PullPolicy.STORE),
    ("pid: host", "pid", "host"),
    ("ipc: shareable", "ipc", "shareable"),
    ("userns_mode: host", "userns_mode", "host"),
    ("tty: true\nstdin_open: on", "stdin_open", True),
    ("on_oom: restart", "on_oom", "restart"),
    ("x-note: {anything: [goes]}", "labels", {}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field", "value"), FIELDS, ids=[body.splitlines()[0][:60] for body, _, _ in FIELDS])
def test_each_notation_gives_its_value(body: str, field: str, value: Any) -> None:
    """One line of YAML, one field of the specification."""
    assert getattr(read(body), field) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("command: a b", "command: [a, b]"),
        ("environment: {A: 1, B: 2}", "environment: [B=2, A=1]"),
        ("ports: ['8080:80']", "ports: [{target: 80, published: 8080}]"),
        ("volumes: ['data:/x']", "volumes: [{type: volume, source: data, target: /x}]"),
        ("depends_on: [other, once]", "depends_on: {once: {condition: service_started}, other: }"),
        ("healthcheck: {test: ok}", "healthcheck: {test: [CMD-SHELL, ok], interval: 30s}"),
        ("mem_limit: 1g", "deploy: {resources: {limits: {memory: 1024MiB}}}"),
        ("labels: [a=b]", "labels: {a: b}"),
        ("cap_add: [CAP_A_B, C_D]", "cap_add: [c_d, a_b]"),
        ("logging: {driver: json-file}", ""),
        ("stop_grace_period: 1m", "stop_grace_period: 60s"),
    ],
)
def test_two_ways_to_write_the_same_are_the_same(one: str, other: str) -> None:
    """Equal specifications and equal hashes: rewriting a manifest restarts nothing."""
    assert read(one) == read(other)
    assert spec_hash(read(one)) == spec_hash(read(other))


def test_what_is_not_written_is_the_specifications_default() -> None:
    """An image alone gives a specification with every default."""
    assert read("") == ContainerSpec(name=read("").name, image="app:1")


def test_every_field_of_the_specification_can_be_written() -> None:
    """The table above sets each field that a manifest can set to something else than its default at least once."""
    default = ContainerSpec(name=read("").name, image="app:1")
    specs = [read(body) for body, _, _ in FIELDS]
    never = {
        field.name
        for field in dataclasses.fields(ContainerSpec)
        if all(getattr(spec, field.name) == getattr(default, field.name) for spec in specs)
    }
    assert never == {"name", "image", "pinned"}  # the last is the centre's own
