"""A site of one machine: the directory it lives in, its bus and its monitor, started and ended.

Laws:
- Starting what runs and ending what does not are fine; what is already there is kept.
- Whatever was started is either running and answers, or the error says where its log is and shows the end of it.
- Ending leaves no process: monitor first (nobody rebuilds what is being ended), then the VMs, then the bus.

Layout: healthmonitor.yml · api.json, api-token · nats/ · clouds/ · logs/ · run/.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from healthmonitor.cli.client import ApiClient
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.place import API_FILE, TOKEN_FILE, read_token
from healthmonitor.cli.processes import Background, wait_until
from healthmonitor.configuration_file import load_configuration
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.embedded_nats import EmbeddedNats, NatsServerMissing, write_private

CONFIGURATION = "healthmonitor.yml"
PORTS = "ports.json"
POWERED_OFF = "powered-off.json"
"""Left by `down`: names of the VMs that were switched off on purpose, so that `up` can say that their loss is none."""

NATS_PORT = 4222
API_PORT = 25923
NATS_UP_SECONDS = 15.0
MONITOR_UP_SECONDS = 30.0
MONITOR_END_SECONDS = 20.0
NATS_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    nats: int
    api: int


@dataclass(frozen=True, slots=True)
class Started:
    """What `up` found or did: one line each."""

    lines: tuple[str, ...]
    url: str


class LocalSite:
    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    @property
    def exists(self) -> bool:
        return (self.directory / CONFIGURATION).is_file() or (self.directory / PORTS).is_file()

    @property
    def configuration_path(self) -> Path:
        return self.directory / CONFIGURATION

    @property
    def nats_process(self) -> Background:
        return Background("nats-server", self.directory / "run" / "nats.json", self.directory / "logs" / "nats.log")

    @property
    def monitor_process(self) -> Background:
        run, logs = self.directory / "run", self.directory / "logs"
        return Background("health monitor", run / "healthmonitor.json", logs / "healthmonitor.log")

    def ports(self) -> Ports:
        """Chosen once, and kept: VMs are told the bus's port when they are made."""
        path = self.directory / PORTS
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            return Ports(int(stored["nats"]), int(stored["api"]))
        except FileNotFoundError:
            chosen = Ports(free_port(NATS_PORT), free_port(API_PORT))
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(path, json.dumps({"nats": chosen.nats, "api": chosen.api}) + "\n")
            return chosen

    def up(self, write_configuration: Callable[[LocalSite, Ports], str], say: Callable[[str], None]) -> Started:
        """Starts what does not run, and returns when the monitor answers that it is well."""
        with self._locked():
            ports = self.ports()
            lines = [self._prepare(ports, write_configuration)] if not self.configuration_path.is_file() else []
            nats = self._prepared_nats(ports)
            self._check_configuration()
            lines.append(self._start_nats(nats, ports, say))
            lines.append(self._start_monitor(ports, say))
            return Started(tuple(lines), f"http://127.0.0.1:{ports.api}")

    def down(self, end_vms: Callable[[], None]) -> list[str]:
        """Ends monitor, then VMs, then bus; says what it did."""
        with self._locked():
            lines = [self._end(self.monitor_process, MONITOR_END_SECONDS)]
            end_vms()
            lines.append(self._end(self.nats_process, NATS_END_SECONDS))
            return lines

    def purge(self) -> None:
        shutil.rmtree(self.directory)

    def _prepare(self, ports: Ports, write_configuration: Callable[[LocalSite, Ports], str]) -> str:
        for name in ("run", "logs", "clouds", "nats"):
            (self.directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        write_token(self.directory / TOKEN_FILE)
        write_private(self.configuration_path, write_configuration(self, ports))
        return f"wrote {self.configuration_path}"

    def _prepared_nats(self, ports: Ports) -> EmbeddedNats:
        """With the passwords that the configuration names."""
        nats = EmbeddedNats(self.directory / "nats", ports.nats)
        if self.nats_process.pid() is None:
            try:
                nats.prepare()
            except ValueError as error:
                raise CliFailure(str(error)) from None
        return nats

    def _check_configuration(self) -> None:
        """Before anything is started with it. A monitor that runs already has read it, or was reloaded."""
        if self.monitor_process.pid() is not None:
            return
        try:
            load_configuration(self.configuration_path)
        except ManifestErrors as errors:
            lines = tuple(str(errors).splitlines())
            message = f"{self.configuration_path} is not right; nothing was started"
            raise CliFailure(message, ExitCode.USAGE, "correct it there", lines) from None

    def _start_nats(self, nats: EmbeddedNats, ports: Ports, say: Callable[[str], None]) -> str:
        process = self.nats_process
        pid = process.pid()
        if pid is not None:
            return f"nats-server runs already (pid {pid}, port {ports.nats})"
        try:
            command = nats.command()
        except NatsServerMissing as error:
            raise CliFailure(str(error)) from None
        if answers(ports.nats):
            raise CliFailure(
                f"port {ports.nats} on 127.0.0.1 is taken by something else",
                ExitCode.FAILED,
                f"end it, or remove {self.directory / PORTS} when no VM was made here yet, and try again",
            )
        say("starting nats-server …")
        pid = process.start(command)
        self._wait(process, lambda: answers(ports.nats), NATS_UP_SECONDS)
        return f"started nats-server (pid {pid}, port {ports.nats}, JetStream in {self.directory / 'nats'})"

    def _start_monitor(self, ports: Ports, say: Callable[[str], None]) -> str:
        process = self.monitor_process
        url = f"http://127.0.0.1:{ports.api}"
        pid = process.pid()
        told = {"url": url, "token_file": str(self.directory / TOKEN_FILE)}
        write_private(self.directory / API_FILE, json.dumps(told) + "\n")
        verb = "runs already"
        if pid is None:
            say("starting the health monitor …")
            command = [sys.executable, "-m", "healthmonitor", "--config", str(self.configuration_path)]
            pid = process.start(command)
            verb = "started"
        client = ApiClient(url, read_token(self.directory / TOKEN_FILE))
        reasons: list[str] = []

        def well() -> bool:
            nonlocal reasons
            try:
                good, reasons = client.healthy()
            except CliFailure as failure:
                reasons = [str(failure)]
                return False
            return good

        try:
            self._wait(process, well, MONITOR_UP_SECONDS, lambda: reasons)
        finally:
            client.close()
        return f"health monitor {verb} (pid {pid}, API {url})"

    def _wait(
        self,
        process: Background,
        condition: Callable[[], bool],
        seconds: float,
        reasons: Callable[[], list[str]] = list,
    ) -> None:
        wait_until(lambda: process.pid() is None or condition(), seconds)
        if process.pid() is None:
            what = f"{process.name} ended right after its start"
        elif condition():
            return
        else:
            why = "; ".join(reasons())
            what = f"{process.name} is not ready after {seconds:g} s{f': {why}' if why else ''}"
        raise CliFailure(what, ExitCode.FAILED, f"read {process.log_file}", process.last_lines())

    def _end(self, process: Background, seconds: float) -> str:
        pid = process.pid()
        if not process.end(seconds):
            raise CliFailure(f"{process.name} (pid {pid}) does not end, not even killed", ExitCode.FAILED)
        return f"ended {process.name} (pid {pid})" if pid is not None else f"{process.name} was not running"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time."""
        lock = self.directory / ".lock"
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                os.lockf(descriptor, os.F_TLOCK, 0)
            except OSError:
                raise CliFailure(
                    f"another `resurgam up` or `down` is at work in {self.directory}", ExitCode.FAILED, "wait for it"
                ) from None
            yield
        finally:
            os.close(descriptor)


def write_token(path: Path) -> None:
    """A new token of 256 bits, unless there is one."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32) + "\n")


def free_port(wanted: int) -> int:
    """`wanted` when nobody listens there on loopback, else one that the kernel chooses."""
    for port in (wanted, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CliFailure("no free TCP port on 127.0.0.1")


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False
