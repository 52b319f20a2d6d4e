"""The bus of a bigger site: nats-server's configuration for one machine of a cluster of three.

Laws: what JetStream acknowledges is on the disks of a majority (`sync_interval: always` on each, three replicas).
Every client gives a password: a cluster is reached over a network. Its machines know each other by one more password.

Does not know: how the files come to the other machines. `embedded_nats.py` is the same for one machine alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from healthmonitor.embedded_nats import (
    JETSTREAM_FILE_BYTES,
    JETSTREAM_MEMORY_BYTES,
    MAX_PAYLOAD_BYTES,
    PID_NAME,
    PING_INTERVAL_SECONDS,
    PINGS_OUT_MAX,
    USERS,
    Passwords,
    accounts_text,
    kept_password,
    quoted,
    write_private,
)

CLIENT_PORT = 4222
ROUTE_USER = "routes"
ROUTE_PORT_DISTANCE = 2000
"""A machine's port for the others of the cluster is so much above its port for clients."""
SIZE = 3
REPLICAS = 3


class BadCluster(ValueError):
    """What was given makes no cluster; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Machine:
    host: str
    port: int = CLIENT_PORT

    @property
    def route_port(self) -> int:
        return self.port + ROUTE_PORT_DISTANCE

    def url(self, tls: bool) -> str:
        return f"{'tls' if tls else 'nats'}://{_bracketed(self.host)}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Cluster:
    """`this`: which of the machines the configuration is for."""

    machines: tuple[Machine, ...]
    this: int
    route_password: str
    tls: TlsFiles | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(machine.url(self.tls is not None) for machine in self.machines)


@dataclass(frozen=True, slots=True)
class ClusterNats:
    """One machine's part, as `embedded_nats.EmbeddedNats` is for one alone. Passwords that lie there are kept."""

    directory: Path
    configuration_path: Path
    machines: tuple[Machine, ...]
    this: int
    tls: TlsFiles | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(machine.url(self.tls is not None) for machine in self.machines)

    @property
    def ca(self) -> Path | None:
        return None if self.tls is None else self.tls.ca

    @property
    def monitor_name(self) -> str:
        return f"hm-{self.this + 1}"

    @property
    def replicas(self) -> int:
        return REPLICAS

    def password_path(self, user: str) -> Path:
        return self.directory / f"{user}.password"

    def prepare(self) -> Passwords:
        """Writes configuration and passwords (both 0600)."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        passwords = Passwords(**{user: kept_password(self.password_path(user)) for user in USERS})
        cluster = Cluster(self.machines, self.this, kept_password(self.password_path(ROUTE_USER)), self.tls)
        write_private(self.configuration_path, configuration_text(self.directory, cluster, passwords))
        return passwords


def parse_machines(text: str, this: str) -> tuple[tuple[Machine, ...], int]:
    """`HOST[:PORT],HOST[:PORT],HOST[:PORT]`, and which of them `this` is. Raises BadCluster."""
    words = [word.strip() for word in text.split(",")]
    if len(words) != SIZE or len(set(words)) != SIZE:
        raise BadCluster(f"{text!r}: expected {SIZE} different machines, as HOST[:PORT],HOST[:PORT],HOST[:PORT]")
    if this not in words:
        raise BadCluster(f"{this!r} is none of {', '.join(words)}")
    return tuple(_machine(word) for word in words), words.index(this)


def configuration_text(directory: Path, cluster: Cluster, passwords: Passwords) -> str:
    """nats-server's configuration for the machine `cluster.this`."""
    own = cluster.machines[cluster.this]
    routes = ", ".join(
        quoted(f"nats-route://{ROUTE_USER}:{cluster.route_password}@{_bracketed(each.host)}:{each.route_port}")
        for each in cluster.machines
    )
    tls = _tls_text(cluster.tls) if cluster.tls is not None else ""
    return f"""# Written by resurgam init: machine {cluster.this + 1} of {len(cluster.machines)}.
# The passwords are the same on all.
server_name: resurgam-{cluster.this + 1}
listen: {quoted(f"{_bracketed(own.host)}:{own.port}")}
pid_file: {quoted(directory / PID_NAME)}
max_payload: {MAX_PAYLOAD_BYTES}
ping_interval: "{PING_INTERVAL_SECONDS}s"
ping_max: {PINGS_OUT_MAX}
write_deadline: "10s"
{tls}jetstream {{
  store_dir: {quoted(directory / "jetstream")}
  # Acknowledged is on disk. Without it JetStream acknowledges first, and a power cut loses what was acknowledged.
  sync_interval: always
  max_memory_store: {JETSTREAM_MEMORY_BYTES}
  max_file_store: {JETSTREAM_FILE_BYTES}
}}
cluster {{
  name: resurgam
  listen: {quoted(f"{_bracketed(own.host)}:{own.route_port}")}
  authorization {{ user: {ROUTE_USER}, password: {quoted(cluster.route_password)}, timeout: 5 }}
  routes: [{routes}]
  # A peer that vanished without a word is noticed as fast as a client is.
  ping_interval: "{PING_INTERVAL_SECONDS}s"
{_indented(tls)}}}
{accounts_text(passwords)}"""


def _tls_text(files: TlsFiles) -> str:
    ca, certificate, key = (quoted(path) for path in (files.ca, files.certificate, files.key))
    return f"tls {{ ca_file: {ca}, cert_file: {certificate}, key_file: {key} }}\n"


def _indented(text: str) -> str:
    return f"  {text}" if text else ""


def _machine(word: str) -> Machine:
    host, separator, port = word.rpartition(":")
    if not separator or word.endswith("]"):
        host, port = word, str(CLIENT_PORT)
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535 - ROUTE_PORT_DISTANCE:
        raise BadCluster(f"{word!r}: expected HOST or HOST:PORT, the port at most {65535 - ROUTE_PORT_DISTANCE}")
    return Machine(host.strip("[]"), int(port))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
