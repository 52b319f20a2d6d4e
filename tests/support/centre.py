"""A whole site for a system test: nats-server, the monitor as a process, a real cloud; spoken to over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.support.nats import NatsServer, free_port
from tests.support.waiting import until

REPOSITORY = Path(__file__).resolve().parents[2]
MONITOR_READY_SECONDS = 30.0


class Centre:
    """`cloud_yaml`: the options of the cloud named `local`, as YAML on one line."""

    def __init__(self, directory: Path, cloud_yaml: str, more_configuration: str = "") -> None:
        self.directory = directory
        self.nats = NatsServer(directory / "nats")
        self.port = free_port()
        self.log = directory / "monitor.log"
        self.points = directory / "points"
        self.configuration = directory / "healthmonitor.yml"
        self._process: asyncio.subprocess.Process | None = None
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60.0)
        token = directory / "token"
        token.write_text("test-token-of-some-length\n")
        token.chmod(0o600)
        self.http.headers["authorization"] = f"Bearer {token.read_text().strip()}"
        system = directory / "system.password"
        system.write_text(self.nats.system_password)
        system.chmod(0o600)
        self._more = more_configuration
        self._cloud = cloud_yaml
        self._system, self._token = system, token
        self.configure("resurrector: {enabled: true, retry_first: 0.2s, retry_longest: 2s}")

    def configure(self, resurrector: str) -> None:
        self.configuration.write_text(
            f"""
preset: test
state_dir: {self.directory / "state"}
bus: {{urls: ["{self.nats.url}"], system_user: {self.nats.system_user}, system_password_file: {self._system}}}
http: {{listen: "127.0.0.1:{self.port}", token_file: {self._token}}}
clouds:
  local: {self._cloud}
{resurrector}
{self._more}
"""
        )

    async def start_monitor(self, *arguments: str, wait: bool = True) -> None:
        """`arguments`: of tests.support.monitor_process."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.support.monitor_process",
                "--config",
                str(self.configuration),
                *arguments,
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
        if wait:
            await until(self._healthy, MONITOR_READY_SECONDS, f"the monitor is healthy and leads; see {self.log}")

    async def _healthy(self) -> bool:
        if self._process is not None and self._process.returncode is not None:
            raise AssertionError(f"the monitor ended: {self.log.read_text()[-3000:]}")
        try:
            response = await self.http.get("/healthz")
            return response.status_code == 200 and bool(response.json()["leader"])
        except httpx.TransportError:
            return False

    async def kill_monitor(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop_monitor(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                await self.kill_monitor()
                raise AssertionError("the monitor did not end on SIGTERM") from None

    async def monitor_ended(self, seconds: float) -> int:
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), seconds)

    # Speaking with it.

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.http.get(path, params=parameters)
        assert response.status_code == 200, f"GET {path}: {response.status_code} {response.text}"
        return response.json()

    async def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        response = await self.http.post(path, json=body or {})
        assert response.status_code in (200, 202), f"POST {path}: {response.status_code} {response.text}"
        return response.json()

    async def deploy(self, manifest: str, name: str = "shop") -> Any:
        response = await self.http.put(f"/v1/deployments/{name}", json={"manifest": manifest})
        assert response.status_code == 202, f"deploy: {response.status_code} {response.text}"
        return response.json()

    async def instance(self, instance: str) -> dict[str, Any]:
        """Its view; {} when it is not there or the monitor does not answer just now."""
        try:
            response = await self.http.get(f"/v1/instances/{instance}")
        except httpx.TransportError:
            return {}
        return dict(response.json()) if response.status_code == 200 else {}

    async def running(self, instance: str, seconds: float = 120.0, generation: int = 0) -> dict[str, Any]:
        """Its view once everything of it is as it should be (and its VM is at least of that generation)."""
        last: dict[str, Any] = {}

        async def good() -> dict[str, Any] | None:
            nonlocal last
            last = await self.instance(instance)
            fine = last.get("tone") == "good" and last.get("generation", 0) >= generation
            return last if fine else None

        try:
            found: dict[str, Any] = await until(good, seconds, f"{instance} runs", every_seconds=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast: {last}\n{await self.story()}") from None
        return found

    async def waits_for(self, instance: str, holds: Callable[[dict[str, Any]], bool], what: str, seconds: float) -> Any:
        last: dict[str, Any] = {}

        async def good() -> dict[str, Any] | None:
            nonlocal last
            last = await self.instance(instance)
            return last if last and holds(last) else None

        try:
            return await until(good, seconds, what, every_seconds=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlast: {last}\n{await self.story()}") from None

    async def events(self, kind: str = "", subject: str = "", last: int = 2000) -> list[dict[str, Any]]:
        found = (await self.get("/v1/events", last=last))["events"]
        return [event for event in found if event["kind"].startswith(kind) and event["subject"].startswith(subject)]

    async def story(self, last: int = 60) -> str:
        """The end of the timeline and of the log, for a failure's text."""
        try:
            events = (await self.get("/v1/events", last=last))["events"]
        except (httpx.TransportError, AssertionError) as error:
            events = []
            print(f"no events: {error!r}")
        lines = [f"{event['at']:.3f} {event['kind']} {event['subject']} {event['text']}" for event in events]
        return "\n".join([*lines, "--- log", self.log.read_text()[-4000:]])


@contextlib.asynccontextmanager
async def centre(directory: Path, cloud_yaml: str, more_configuration: str = "") -> AsyncIterator[Centre]:
    """With nats-server and monitor started; both ended afterwards. VMs are the cloud's, and its owner's to end."""
    directory.mkdir(parents=True, exist_ok=True)
    site = Centre(directory, cloud_yaml, more_configuration)
    await site.nats.start()
    try:
        await site.start_monitor()
        yield site
    finally:
        with contextlib.suppress(AssertionError):
            await site.stop_monitor()
        await site.http.aclose()
        await site.nats.stop()


def unix_now() -> float:
    return time.time()
