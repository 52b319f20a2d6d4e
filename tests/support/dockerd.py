"""A Docker Engine of a test's own: daemon, data, socket and pid file in a temporary directory, and tiny images.

Law: whatever it started is gone after `close`, also what the daemon left behind (shims, containerd, mounts).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.docker import DockerEngine, EngineLimits
from agent.dockerd import DirectDaemon

BUSYBOX = Path("/bin/busybox")
IMAGE = "tiny:1"
SECOND_IMAGE = "tiny:2"
START_SECONDS = 30.0


class OwnDocker:
    """`daemon` starts and kills it as the agent does; `engine()` speaks to it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.pid_file = directory / "docker.pid"
        self.log_file = directory / "dockerd.log"
        self._held_ports: list[socket.socket] = []
        self.daemon = DirectDaemon(
            self.pid_file, self.log_file, self._command(), directory / "exec" / "containerd" / "containerd.pid"
        )

    def _command(self) -> tuple[str, ...]:
        return (
            "dockerd",
            "--live-restore",
            f"--host=unix://{self.socket}",
            f"--data-root={self.directory / 'data'}",
            f"--exec-root={self.directory / 'exec'}",
            f"--pidfile={self.pid_file}",
            "--bridge=none",
            "--iptables=false",
            "--ip-forward=false",
            "--storage-driver=overlay2",
            f"--config-file={self.directory / 'daemon.json'}",
        )

    async def start(self) -> None:
        (self.directory / "daemon.json").write_text("{}")
        await self.daemon.start()
        self.wait_until_up()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.docker("version", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise AssertionError(f"dockerd does not answer:\n{self.log_file.read_text()[-3000:]}")
            time.sleep(0.05)

    def docker(self, *arguments: str, check: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ("docker", "-H", f"unix://{self.socket}", *arguments),
            input=stdin,
            capture_output=True,
            check=check,
            timeout=60,
        )

    def engine(self, limits: EngineLimits | None = None) -> DockerEngine:
        return DockerEngine(str(self.socket), limits=limits)

    def make_images(self) -> None:
        """Two images with busybox in them and nothing else; they differ in one file."""
        for image in (IMAGE, SECOND_IMAGE):
            self.docker("import", "-c", "ENV PATH=/bin", "-", image, stdin=root_file_system(image))

    def kill_daemon(self) -> None:
        """SIGKILL, and gone when this returns."""
        pid = self.daemon.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            _wait_gone(self.daemon, 10.0)

    def hold_port(self, number: int) -> None:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", number))
        holder.listen()
        self._held_ports.append(holder)

    def release_ports(self) -> None:
        for holder in self._held_ports:
            holder.close()
        self._held_ports.clear()

    def remove_all(self) -> None:
        """Every container and every network that a test made."""
        found = self.docker("ps", "-aq").stdout.decode().split()
        if found:
            self.docker("rm", "-f", *found, check=False)
        networks = self.docker("network", "ls", "-q", "--filter", "type=custom").stdout.decode().split()
        if networks:
            self.docker("network", "rm", *networks, check=False)

    def close(self) -> None:
        """Ends the daemon and everything that belongs to it, told apart by its directory in the command line."""
        with contextlib.suppress(Exception):
            self.remove_all()
        pid = self.daemon.pid()
        if pid is not None:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
            _wait_gone(self.daemon, 10.0)
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            mount_point = line.split()[1]
            if mount_point.startswith(str(self.directory)):
                subprocess.run(("umount", "-l", mount_point), capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _pids(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if str(self.directory).encode() in (entry / "cmdline").read_bytes():
                        found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]


@contextlib.contextmanager
def own_docker() -> Iterator[OwnDocker]:
    """Started, with the images; skips the test where there is no dockerd or not the right to run one."""
    if shutil.which("dockerd") is None or os.geteuid() != 0 or not BUSYBOX.exists():
        pytest.skip("needs dockerd, busybox and root")
    docker = OwnDocker(Path(tempfile.mkdtemp(prefix="rsg-", dir="/tmp")))
    try:
        # In a thread, because a fixture may be set up while a loop runs.
        starter = threading.Thread(target=lambda: asyncio.run(docker.start()))
        starter.start()
        starter.join()
        docker.wait_until_up()
        docker.make_images()
        yield docker
    finally:
        docker.close()


def root_file_system(marker: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(BUSYBOX, arcname="bin/busybox")
        for name in ("sh", "sleep", "cat", "touch", "test", "dd", "tail", "nc", "rm", "echo", "kill", "true", "httpd"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        for directory in ("tmp", "dev", "proc", "sys", "etc", "data"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o777
            archive.addfile(entry)
        content = marker.encode()
        entry = tarfile.TarInfo("etc/marker")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _wait_gone(daemon: DirectDaemon, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while daemon.pid() is not None and time.monotonic() < deadline:
        time.sleep(0.05)
