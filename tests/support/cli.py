"""The command run in this process against a pretended API: what it printed, and its exit code."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from healthmonitor.cli import session as session_module
from healthmonitor.cli.application import run

Answer = Callable[[httpx.Request], httpx.Response]


@dataclass
class PretendedApi:
    """Answers by (method, path); remembers what it was asked."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        self.tokens.append(request.headers.get("authorization", ""))
        answer = self.answers.get((request.method, request.url.path))
        if answer is None:
            return httpx.Response(404, json={"error": f"nothing at {request.url.path}", "where": "", "next": ""})
        if isinstance(answer, Exception):
            raise answer
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        return httpx.Response(status, json=content)

    def said_to(self, method: str, path: str) -> list[Any]:
        return [body for asked, at, body in self.asked if (asked, at) == (method, path)]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """Runs command lines; `directory` stands for the working directory of whoever types them."""

    def __init__(self, directory: Path, api: PretendedApi) -> None:
        self._directory = directory
        self._api = api

    def __call__(self, *arguments: str) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = run(
                arguments,
                lambda screen, api, directory: session_module.Session(
                    screen,
                    api or "http://monitor.test",
                    directory,
                    environment={},
                    here=self._directory,
                    home=self._directory,
                    transport=httpx.MockTransport(self._api),
                ),
            )
        return Outcome(code, out.getvalue(), err.getvalue())


def at_api(url: str, directory: Path, *arguments: str, token: str = "token") -> Outcome:
    """One command line against a real API; of one thread at a time, because standard output is everybody's."""
    token_file = directory / "api-token"
    token_file.write_text(token)
    token_file.chmod(0o600)
    out, err = io.StringIO(), io.StringIO()
    with _standard_streams, redirect_stdout(out), redirect_stderr(err):
        code = run(
            arguments,
            lambda screen, api, place: session_module.Session(
                screen, url, place, environment={"RESURGAM_TOKEN_FILE": str(token_file)}, here=directory, home=directory
            ),
        )
    return Outcome(code, out.getvalue(), err.getvalue())


_standard_streams = threading.Lock()


def status(**changes: Any) -> dict[str, Any]:
    """/v1/status of a monitor with one deployment that is well."""
    whole: dict[str, Any] = {
        "monitor": {
            "id": "hm",
            "version": "1",
            "leader": True,
            "leader_id": "hm",
            "leader_address": "http://127.0.0.1:25923",
            "leader_since": 1000.0,
            "leader_why": "there was no lease",
            "bus_connected": True,
            "cannot_tell": "",
            "unhealthy": [],
        },
        "monitors": [monitor("hm", this=True, doing="leads")],
        "unreadable": [],
        "switches": {
            "resurrection": True,
            "configured": True,
            "paused_until": 0.0,
            "paused_by": "",
            "meltdown_overridden_until": 0.0,
            "overridden_by": "",
        },
        "meltdowns": {},
        "deployments": [deployment()],
        "instances": [instance("shop/db/0"), instance("shop/web/0")],
        "incidents": [],
        "strangers": [],
        "spares": [],
    }
    return {**whole, **changes}


def spare(**changes: Any) -> dict[str, Any]:
    whole = {
        "key": "spare-1",
        "state": "ready",
        "verdict": "alive",
        "cloud": "local",
        "stemcell": "demo",
        "stemcell_version": "v1",
        "cpus": 1,
        "memory_mib": 512,
        "vm_cid": "vm-spare",
        "agent_id": "a-spare",
        "made_at": 1000.0,
        "images": ["redis:7"],
        "taken_by": None,
        "error": "",
    }
    return {**whole, **changes}


def monitor(name: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "monitor": name,
        "this": False,
        "doing": "warm",
        "state": "",
        "version": "1",
        "records_format": 1,
        "address": "http://127.0.0.1:25923",
        "instances": 2,
        "vms_alive": 2,
        "started_at": 1000.0,
        "silent_seconds": 0.4,
    }
    return {**whole, **changes}


def deployment(**changes: Any) -> dict[str, Any]:
    whole = {
        "name": "shop",
        "revision": 3,
        "rollout": "done",
        "rollout_error": "",
        "deleting": False,
        "delete_disks": False,
        "deployed_by": "ada (admin)",
        "deployed_at": 1000.0,
        "instances": 2,
        "instances_good": 2,
    }
    return {**whole, **changes}


def instance(name: str, **changes: Any) -> dict[str, Any]:
    place, group, index = name.split("/")
    whole: dict[str, Any] = {
        "instance": name,
        "deployment": place,
        "group": group,
        "index": int(index),
        "state": "running",
        "tone": "good",
        "why": "",
        "next": "",
        "verdict": "alive",
        "wanted": "started",
        "ignore": False,
        "deleting": False,
        "generation": 1,
        "revision": 1,
        "deployment_revision": 3,
        "cloud": "local",
        "stemcell": "demo",
        "vm": {"vm_cid": f"vm-{group}", "agent_id": f"a-{group}", "key": f"{place}-{group}-{index}-g1"},
        "engine": "up",
        "wanted_containers": ["redis"],
        "containers": [container("redis")],
        "disks": [{"name": "data", "cid": "disk-1", "size_mib": 256, "state": "mounted", "percent": 4.0, "detail": ""}],
        "vitals": None,
        "operation": None,
    }
    return {**whole, **changes}


def container(name: str, **changes: Any) -> dict[str, Any]:
    whole = {
        "name": name,
        "state": "running",
        "fine": True,
        "reason": "",
        "restarts": 0,
        "exit_code": None,
        "since_seconds": 65.0,
        "detail": "",
        "container_id": "c1",
        "spec_hash": "h",
    }
    return {**whole, **changes}


def operation(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "id": "op-1",
        "instance": "shop/db/0",
        "kind": "resurrect",
        "step": "fence",
        "hold": "unfenced",
        "reason": "silent for 15 s",
        "error": "the host does not answer",
        "attempts": 3,
        "started_at": 1000.0,
        "step_started_at": 1001.0,
        "next_try_at": 0.0,
        "what_to_do": "resurgam fence confirm shop/db/0 --because …",
        "old_vm": "vm-db",
        "fence_proof": "",
        "proof_by": "",
        "vms_lost": 0,
        "timings": [{"step": "confirm", "started_at": 1000.0, "seconds": 1.0, "note": "asked in vain"}],
    }
    return {**whole, **changes}
