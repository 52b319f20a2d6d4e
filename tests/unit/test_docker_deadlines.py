"""The deadlines of the engine's calls, on an engine that answers when the test says so."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.docker import DockerEngine, EngineLimits
from agent.engine import EngineUnavailable, Probe
from tests.support.waiting import until

SHORT = 0.2
LONG = 20.0


class SlowEngine:
    """Says its version at once, and answers anything else only after `release`. One request a connection, so that none
    is left open."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self.open = 0
        self.asked: list[str] = []
        self.release = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        method, path, _ = (await reader.readline()).decode().split()
        while (await reader.readline()).strip():
            pass
        answer, payload = b"204 No Content", b""
        if path.endswith("/version"):
            answer, payload = b"200 OK", json.dumps({"ApiVersion": "1.41", "MinAPIVersion": "1.12"}).encode()
        else:
            self.asked.append(f"{method} {path}")
            await self.release.wait()
            if path.endswith("/json"):  # an inspection
                answer, payload = b"200 OK", b'{"Config": {}}'
        head = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (answer, len(payload))
        writer.write(head + payload)
        writer.close()
        self.open -= 1


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[SlowEngine]:
    engine = SlowEngine(tmp_path / "docker.sock")
    async with await asyncio.start_unix_server(engine.serve, engine.socket_path):
        yield engine
        engine.release.set()
        await until(lambda: engine.open == 0 and not docker_threads(), 10, "the end of all calls")


def docker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("docker ")]


async def test_a_slow_start_is_waited_for_while_probe_and_questions_are_quick(slow: SlowEngine) -> None:
    """The probe and the question for an image are over in their own time, the start is not given up with them."""
    limits = EngineLimits(probe_seconds=SHORT, call_seconds=SHORT, action_seconds=LONG)
    engine = DockerEngine(str(slow.socket_path), limits=limits)
    starting = asyncio.create_task(engine.start("c1"))
    assert await engine.probe() is Probe.SILENT
    with pytest.raises(EngineUnavailable):
        await engine.image_present("a:1")
    assert not starting.done()
    slow.release.set()
    await starting
    assert slow.asked.count("POST /v1.41/containers/c1/start") == 1


async def test_no_answer_in_time_is_an_unknown_outcome(slow: SlowEngine) -> None:
    """Of every action: EngineUnavailable, which says nothing about the container."""
    engine = DockerEngine(str(slow.socket_path), limits=EngineLimits(action_seconds=SHORT))
    for action in (engine.start("c1"), engine.remove("c1")):
        with pytest.raises(EngineUnavailable):
            await action


def test_actions_have_minutes_and_the_probe_has_seconds() -> None:
    """An emulated VM took more than a minute for one start."""
    limits = EngineLimits()
    assert limits.action_seconds >= 180.0
    assert limits.probe_seconds <= 5.0
