"""An agent as it is put together, told over its bus whatever comes: its supervisor, commands and heartbeats, with a
simulated engine and simulated disks, on a virtual clock.

Laws: every request that names where to answer is answered once; none ends the agent, and after each it still makes a
heartbeat. A specification that was refused changes nothing. What was accepted can be kept on disk and read back.
"""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any, Generic, TypeVar

from agent.core.desired import Held, Place
from agent.core.heartbeat_content import compose
from agent.desired_state import Seen
from protocol import codec, envelope, heartbeat
from protocol.bus import Message
from protocol.envelope import BadRequest, Request
from protocol.ids import (
    AgentId,
    ContainerName,
    DeploymentName,
    DiskCid,
    DiskName,
    Generation,
    InstanceId,
    Revision,
    VmCid,
)
from protocol.settings import AgentSettings, BusSettings
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    DiskSpec,
    Healthcheck,
    InstanceSpec,
    Mount,
    MountKind,
    Port,
    Wanted,
)
from protocol.subjects import to_agent
from tests.simulation.bus import SimulatedBus, SimulatedServer
from tests.simulation.loop import SimulatedLoop
from tests.simulation.platters import Platters
from tests.simulation.story import Trace
from tests.simulation.vm import Machine, PowerState

T = TypeVar("T")

AGENT = AgentId("agent-1")
ANSWERS = "director.fuzz.agent-1.*"
ANEW_INPUTS = 200
"""After so many inputs another VM is taken: one that accepted a high revision refuses all that follow."""
ANSWERED_SECONDS = 70.0
"""Virtual. A question about a task may wait for 60 s."""
ACTED_SECONDS = 6.0
"""Virtual; for so long what was accepted is acted upon."""


class EncodedDocument(Generic[T]):
    """As `agent/store.py` keeps it, without a file."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        self._bytes: bytes | None = None

    def load(self) -> T | None:
        return None if self._bytes is None else codec.from_json(self._kind, self._bytes)

    def save(self, value: T) -> None:
        kept = codec.to_json(value)
        assert codec.from_json(self._kind, kept) == value, "what was kept is not what is read back"
        self._bytes = kept


class FuzzedAgent:
    def __init__(self, number: int) -> None:
        self.loop = SimulatedLoop(max_steps=10**9, max_real_seconds=float("inf"))
        self.answers: list[Message] = []
        asyncio.set_event_loop(self.loop)
        self.loop.run(self._start(number))

    async def _start(self, number: int) -> None:
        self._server = SimulatedServer(Random(number))
        trace = Trace(self.loop.time)
        settings = AgentSettings(
            AGENT, BusSettings(("simulated",)), Generation(3), InstanceId("shop/db/0") if number % 4 else None
        )
        machine = self.machine = Machine(
            self.loop, self._server, trace, Random(number), VmCid("vm-1"), "shop-db-0-g3", settings, Platters()
        )
        machine._system_disk.held = EncodedDocument(Held)  # type: ignore[assignment]
        machine._system_disk.seen = EncodedDocument(Seen)  # type: ignore[assignment]
        machine._system_disk.place = EncodedDocument(Place)  # type: ignore[assignment]
        machine.power_on()
        for disk in ("disk-1", "disk-2"):
            machine.attach(DiskCid(disk))
        self._centre: SimulatedBus = await self._server.client("centre").open()
        await self._centre.wait_connected(10.0)
        await self._centre.subscribe(ANSWERS, self.answers.append)
        await asyncio.sleep(20.0)
        assert machine.power is PowerState.RUNNING
        assert machine.shell is not None
        self.shell = machine.shell

    def tell(self, payload: bytes) -> None:
        self.answers.clear()
        self.loop.run(self._tell(payload))
        assert not self.loop.failures, self.loop.failures

    async def _tell(self, payload: bytes) -> None:
        desired = self.shell._desired
        before = (desired.spec, desired.instance, desired.generation)
        expected = _answered(payload)
        await self._centre.publish(to_agent(AGENT), payload)
        until = self.loop.time() + (ANSWERED_SECONDS if expected else 0.1)
        while not self.answers and self.loop.time() < until:
            await asyncio.sleep(0.05)
        assert len(self.answers) == expected, f"{len(self.answers)} answers"
        answer = json.loads(self.answers[0].payload) if self.answers else {}
        if "exception" in answer:
            said = str(answer["exception"])
            assert "the agent failed" not in said, said
            if _method(payload) in ("apply", "become"):
                assert (desired.spec, desired.instance, desired.generation) == before, "refused, and half done"
        elif (desired.spec, desired.instance, desired.generation) != before:
            await asyncio.sleep(ACTED_SECONDS)
            assert self.machine.shell is self.shell, "the agent ended"
        heartbeat.decode(heartbeat.encode(compose(self.shell.facts(), 1, 1.0)))

    def end(self) -> None:
        self.loop.run(self._end())
        del self.machine, self.shell, self._server, self._centre  # or they are thrown away later, and loudly
        self.loop.forget()

    async def _end(self) -> None:
        self.machine.power_off(announced=False, why="enough")


class FuzzedAgents:
    """One after the other."""

    def __init__(self) -> None:
        self._fed = 0
        self._agent: FuzzedAgent | None = None

    def __call__(self, payload: bytes) -> None:
        if self._agent is None or self._fed % ANEW_INPUTS == 0:
            self.close()
            self._agent = FuzzedAgent(self._fed // ANEW_INPUTS)
        self._fed += 1
        self._agent.tell(payload)

    def close(self) -> None:
        if self._agent is not None:
            self._agent.end()
        self._agent = None


def _answered(payload: bytes) -> int:
    try:
        reply_to = envelope.decode_request(payload).reply_to
    except BadRequest as error:
        reply_to = error.reply_to
    parts = reply_to.split(".")
    return 1 if parts[:3] == ["director", "fuzz", AGENT] and len(parts) == 4 and parts[3] else 0


def _method(payload: bytes) -> str:
    try:
        return envelope.decode_request(payload).method
    except BadRequest:
        return ""


def _spec(revision: int, **changes: Any) -> dict[str, Any]:
    containers = (
        ContainerSpec(
            ContainerName("redis"),
            "redis:7",
            mounts=(Mount(MountKind.DISK, "data", "/data"),),
            ports=(Port(6379, 6379),),
            healthcheck=Healthcheck(("CMD", "redis-cli", "ping"), 5.0),
            environment={"A": "1"},
        ),
        ContainerSpec(
            ContainerName("exporter"), "exporter:1", depends_on=(Dependency(ContainerName("redis"), Condition.HEALTHY),)
        ),
    )
    spec = InstanceSpec(
        instance=InstanceId("shop/db/0"),
        deployment=DeploymentName("shop"),
        group="db",
        index=0,
        generation=Generation(3),
        revision=Revision(revision),
        containers=containers,
        disks=(DiskSpec(DiskName("data"), DiskCid("disk-1"), "/dev/vdb"),),
        **changes,
    )
    plain = codec.to_plain(spec)
    assert isinstance(plain, dict)
    return plain


def _request(method: str, *arguments: Any, generation: int | None = 3) -> bytes:
    told = None if generation is None else Generation(generation)
    return envelope.encode_request(Request(method, arguments, "director.fuzz.agent-1.7", generation=told))


PLACE = codec.to_plain(Place(InstanceId("shop/db/0"), Generation(3), "shop-db-0"))
DISK = codec.to_plain(DiskSpec(DiskName("copy"), DiskCid("disk-2"), "/dev/vdc"))
AGENT_SEEDS = (
    *(_request("apply", _spec(revision)) for revision in (1, 2, 3, 50)),
    _request("apply", _spec(4, wanted=Wanted.STOPPED)),
    _request("apply", _spec(5, stopped_containers=(ContainerName("redis"),))),
    _request("become", PLACE, generation=None),
    _request("ping"),
    _request("ping", {"echo": "x"}),
    _request("info"),
    _request("get_state", "full"),
    _request("get_task", "vm-1-1", {"wait_seconds": 1.0}),
    _request("cancel_task", "vm-1-1"),
    _request("start"),
    _request("stop", ["redis"]),
    _request("restart", "exporter"),
    _request("drain", "update", {"deadline_seconds": 10}),
    _request("list_disk"),
    _request("add_persistent_disk", "disk-2", {"name": "copy", "device": "/dev/vdc"}),
    _request("remove_persistent_disk", "disk-2"),
    _request("mount_disk", "disk-1"),
    _request("unmount_disk", "disk-1"),
    _request("disk_use", "disk-1"),
    _request("copy_disk", codec.to_plain(DiskSpec(DiskName("data"), DiskCid("disk-1"), "/dev/vdb")), DISK),
    _request("release_copy", "disk-1", "disk-2"),
    _request("logs", "redis", 10),
    _request("fetch_images", [{"image": "redis:7", "policy": "missing", "pinned": None}], 1024),
)
