"""The agent's commands over a real nats-server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol import codec, envelope
from protocol.bus import Message
from protocol.envelope import Request, RequestRefused
from protocol.heartbeat import ContainerState, DiskState
from protocol.ids import ContainerName, DiskCid, DiskName, Generation, InstanceId
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.spec import DiskSpec, InstanceSpec, Mount, MountKind, Wanted
from tests.support.agent import (
    AGENT,
    BOOT,
    GENERATION,
    Caller,
    RunningAgent,
    ScriptedSupervisor,
    make_settings,
    make_spec,
    running_agent,
)
from tests.support.nats import NatsServer, nats_server
from tests.support.waiting import until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as running:
        yield running


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    opened = await NatsBus.open(BusSettings(urls=(server.url,)), "test")
    await opened.wait_connected(10)
    yield opened
    await opened.close()


@pytest.fixture
async def agent(bus: NatsBus, tmp_path: Path) -> AsyncIterator[RunningAgent]:
    async with running_agent(bus, tmp_path / "state") as running:
        yield running


@pytest.fixture
async def caller(bus: NatsBus, agent: RunningAgent) -> Caller:
    opened = await Caller(bus).open()

    async def answers() -> bool:
        try:
            return bool(await opened.call("ping", seconds=0.2) == "pong")
        except TimeoutError:
            return False

    await until(answers, what="the agent answers a ping")
    return opened


def plain(spec: Any) -> Any:
    return codec.to_plain(spec)


async def test_ping_is_boshs_and_proves_more_when_asked(caller: Caller) -> None:
    """Without an argument the answer is BOSH's; with one it carries the nonce, the boot and the sender's clock."""
    assert await caller.call("ping") == "pong"
    answer = await caller.call("ping", {"echo": "n-1"}, generation=GENERATION)
    assert answer["pong"] is True
    assert answer["echo"] == "n-1"
    assert answer["boot_id"] == BOOT
    assert answer["uptime_seconds"] > 0
    assert isinstance(answer["sequence"], int)


async def test_info_names_the_version_of_the_interface(caller: Caller) -> None:
    """BOSH reads api_version; ours stands beside it."""
    answer = await caller.call("info")
    assert answer["api_version"] == 1
    assert answer["resurgam"]["version"] == "0.test"
    assert {"apply", "drain", "mount_disk"} <= set(answer["resurgam"]["methods"])


async def test_get_state_has_boshs_keys_and_ours(caller: Caller) -> None:
    """Every key that a real bosh-agent sends is there, and `full` adds vitals."""
    real = json.loads(Path("tests/data/bosh-agent/agent-real-2-get_state_full.json").read_text())["parsed"]["value"]
    await caller.call("apply", plain(make_spec()))
    state = await caller.call("get_state", "full")
    assert set(real) <= set(state)
    assert (state["agent_id"], state["vm"]["name"], state["job_state"]) == (AGENT, "vm-1", "running")
    assert state["resurgam"]["revision"] == 1
    assert "vitals" not in await caller.call("get_state")


async def test_apply_is_kept_and_handed_to_the_supervisor(caller: Caller, agent: RunningAgent, tmp_path: Path) -> None:
    """An applied specification is on disk before the answer, and is what the supervisor works on."""
    assert await caller.call("apply", plain(make_spec(4)), generation=GENERATION) == "applied"
    assert agent.supervisor.spec == make_spec(4)
    kept = json.loads((tmp_path / "state" / "held.json").read_text())
    assert kept["spec"]["revision"] == 4
    assert (tmp_path / "state" / "held.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (make_spec(4, instance=InstanceId("shop/db/1")), "this VM is shop/db/0"),
        (make_spec(4, generation=Generation(2)), "generation 3"),
        (make_spec(4, generation=Generation(4)), "generation 3"),
        (make_spec(2), "revision 2 is older than revision 3"),
        (make_spec(4, containers=make_spec().containers * 2), "specified twice"),
        (
            make_spec(4, disks=(DiskSpec(DiskName("../etc"), DiskCid("d-1")),)),
            "disk name '../etc'",
        ),
        (
            make_spec(4, disks=(DiskSpec(DiskName("data"), DiskCid("d-1"), device="/etc/passwd"),)),
            "expected a path below /dev",
        ),
    ],
)
async def test_apply_refuses_what_is_not_for_this_vm(
    caller: Caller, agent: RunningAgent, spec: Any, message: str
) -> None:
    """Another instance, another generation, an older revision, a name that leaves its directory: nothing changes."""
    await caller.call("apply", plain(make_spec(3)))
    with pytest.raises(RequestRefused, match=message):
        await caller.call("apply", plain(spec))
    assert agent.supervisor.spec == make_spec(3)


async def test_apply_refuses_a_host_path_that_does_not_exist(
    caller: Caller, agent: RunningAgent, tmp_path: Path
) -> None:
    """Before anything is stopped, with container, volume and path. What was held before is not asked for again, and a
    VM that holds nothing yet takes what it is given: the container says then what it lacks."""

    def spec(revision: int, *sources: Path) -> InstanceSpec:
        mounts = tuple(Mount(MountKind.BIND, str(source), f"/in/{source.name}") for source in sources)
        first, *others = make_spec().containers
        return make_spec(revision, containers=(replace(first, mounts=mounts), *others))

    there, missing, lost = tmp_path / "there", tmp_path / "missing", tmp_path / "lost"
    there.touch()
    await caller.call("apply", plain(spec(3, lost)))
    with pytest.raises(RequestRefused, match=f"container redis: volume {missing}:/in/missing: {missing} does not exi"):
        await caller.call("apply", plain(spec(4, lost, there, missing)))
    assert agent.supervisor.spec == spec(3, lost)
    for others, fragment in (
        (replace(spec(4, missing), instance=InstanceId("shop/web/0")), "shop/web/0"),
        (replace(spec(4, missing), generation=Generation(99)), "generation 99"),
        (spec(2, missing), "revision"),
    ):  # whose it is comes first
        with pytest.raises(RequestRefused, match=fragment):
            await caller.call("apply", plain(others))
    await caller.call("apply", plain(spec(4, lost, there)))
    assert agent.supervisor.spec == spec(4, lost, there)


async def test_an_equal_revision_is_applied_again_and_keeps_a_persons_word(caller: Caller, agent: RunningAgent) -> None:
    """Applying the same twice changes nothing; a newer revision ends what a person said under the old one."""
    await caller.call("apply", plain(make_spec(3)))
    await caller.call_to_end("stop", ["redis"])
    await caller.call("apply", plain(make_spec(3)))
    held = agent.desired.spec
    assert held is not None
    assert held.stopped_containers == ("redis",)
    await caller.call("apply", plain(make_spec(4)))
    assert agent.desired.spec is not None
    assert agent.desired.spec.stopped_containers == ()


async def test_a_drain_without_an_argument_is_a_shutdown(caller: Caller, agent: RunningAgent, bus: NatsBus) -> None:
    """The monitor drains a VM that it is about to take away."""
    goodbyes: list[Message] = []
    await bus.subscribe(f"hm.agent.shutdown.{AGENT}", goodbyes.append)
    await caller.call("apply", plain(make_spec()))
    assert await caller.call_to_end("drain") == 0
    await until(lambda: goodbyes, what="the shutdown message")


@pytest.mark.parametrize("wrong", [GENERATION - 1, GENERATION + 1, 0])
async def test_a_request_for_another_generation_is_refused(caller: Caller, agent: RunningAgent, wrong: int) -> None:
    """Whoever means another VM of the instance is told so, and nothing happens."""
    with pytest.raises(RequestRefused, match="generation 3"):
        await caller.call("apply", plain(make_spec()), generation=wrong)
    assert agent.supervisor.spec is None


async def test_stop_and_start_are_kept_and_end_when_done(caller: Caller, agent: RunningAgent) -> None:
    """stop answers when nothing runs any more; start brings back all or one."""
    await caller.call("apply", plain(make_spec()))
    assert await caller.call_to_end("stop") == "stopped"
    assert agent.desired.spec is not None
    assert agent.desired.spec.wanted is Wanted.STOPPED
    assert await caller.call("start", ["redis"]) == "started"
    assert agent.supervisor.states == {"redis": ContainerState.RUNNING, "exporter": ContainerState.STOPPED}
    assert await caller.call("start") == "started"
    assert set(agent.supervisor.states.values()) == {ContainerState.RUNNING}


async def test_stop_waits_until_containers_have_stopped(caller: Caller, agent: RunningAgent) -> None:
    """While one is still stopping, the task runs; BOSH's answer for a running task says so."""
    await caller.call("apply", plain(make_spec()))
    agent.supervisor.slow_to_stop = True
    task = await caller.call("stop")
    assert task["state"] == "running"
    assert await caller.call("get_task", task["agent_task_id"]) == task
    agent.supervisor.states = dict.fromkeys(agent.supervisor.states, ContainerState.STOPPED)
    assert await caller.call("get_task", task["agent_task_id"], {"wait_seconds": 10}, seconds=15) == "stopped"


async def test_restart_names_what_may_be_restarted(caller: Caller, agent: RunningAgent) -> None:
    """All by default, without those that a person stopped; one that is stopped is refused by name."""
    await caller.call("apply", plain(make_spec()))
    await caller.call("restart", ["redis"])
    await caller.call_to_end("stop", "redis")
    await caller.call("restart")
    with pytest.raises(RequestRefused, match="redis is stopped"):
        await caller.call("restart", ["redis"])
    assert agent.supervisor.restarted == [("redis",), ("exporter",)]


async def test_drain_says_goodbye_first_and_holds_until_started(
    caller: Caller, agent: RunningAgent, bus: NatsBus
) -> None:
    """drain shutdown publishes BOSH's `null`, is a task whose value is 0, and the heartbeat says draining."""
    goodbyes: list[Message] = []
    await bus.subscribe(f"hm.agent.shutdown.{AGENT}", goodbyes.append)
    await caller.call("apply", plain(make_spec()))
    assert await caller.call_to_end("drain", "shutdown", {}) == 0
    await until(lambda: goodbyes, what="the shutdown message")
    assert goodbyes[0].payload == b"null"
    assert agent.shell.facts().draining
    assert set(agent.supervisor.states.values()) == {ContainerState.STOPPED}
    await caller.call("start")
    assert not agent.shell.facts().draining
    assert not agent.supervisor.draining


async def test_drain_update_says_no_goodbye_and_a_new_revision_ends_it(
    caller: Caller, agent: RunningAgent, bus: NatsBus
) -> None:
    """An update is no departure."""
    goodbyes: list[Message] = []
    await bus.subscribe(f"hm.agent.shutdown.{AGENT}", goodbyes.append)
    await caller.call("apply", plain(make_spec(1)))
    assert await caller.call_to_end("drain", "update") == 0
    await caller.call("apply", plain(make_spec(2)))
    assert not agent.supervisor.draining
    assert goodbyes == []


async def test_a_drain_can_be_cancelled(caller: Caller, agent: RunningAgent) -> None:
    """As in BOSH; asking for the outcome then says so."""
    agent.supervisor.hold_drain = asyncio.Event()
    task = (await caller.call("drain", "update"))["agent_task_id"]
    assert await caller.call("cancel_task", task) == "canceled"
    with pytest.raises(RequestRefused, match="cancelled"):
        await caller.call("get_task", task, {"wait_seconds": 5})


async def test_a_drained_agent_stays_drained_over_its_restart(bus: NatsBus, tmp_path: Path) -> None:
    """The centre is about to detach the disks: an agent that starts anew must not start the writers."""
    async with running_agent(bus, tmp_path / "state") as first:
        await first.desired.apply(make_spec())
        await first.desired.set_drained(True)
    supervisor = ScriptedSupervisor()
    async with running_agent(bus, tmp_path / "state", supervisor):
        await until(lambda: supervisor.spec, what="the supervisor has the specification")
        assert set(supervisor.states.values()) == {ContainerState.STOPPED}


async def test_a_restarted_agent_goes_on_with_what_it_kept(bus: NatsBus, tmp_path: Path) -> None:
    """Without a word from the centre, the specification and a person's stop are carried out again."""
    async with running_agent(bus, tmp_path / "state") as first:
        await first.desired.apply(make_spec(5))
        await first.desired.stop((ContainerName("exporter"),))
    supervisor = ScriptedSupervisor()
    async with running_agent(bus, tmp_path / "state", supervisor):
        await until(lambda: supervisor.spec, what="the supervisor has the specification")
        assert supervisor.states == {"redis": ContainerState.RUNNING, "exporter": ContainerState.STOPPED}


async def test_a_new_vm_ignores_what_another_generation_kept(bus: NatsBus, tmp_path: Path) -> None:
    """A state directory that came with an image starts nothing here."""
    async with running_agent(bus, tmp_path / "state") as first:
        await first.desired.apply(make_spec(5))
    settings = make_settings(generation=Generation(4))
    async with running_agent(bus, tmp_path / "state", settings=settings) as second:
        assert second.desired.spec is None
        await second.desired.apply(make_spec(1, generation=Generation(4)))


async def test_disks_are_mounted_listed_and_unmounted_by_command(caller: Caller, agent: RunningAgent) -> None:
    """mount_disk hands the supervisor a directory; unmount_disk takes it away, and it stays away."""
    await caller.call("apply", plain(make_spec()))
    hint = {"name": "data", "device": "/dev/disk/by-id/virtio-d-1", "filesystem": "ext4", "mount_options": []}
    assert await caller.call_to_end("mount_disk", "d-1", hint) == {"directory": "/disks/data"}
    assert await caller.call("list_disk") == ["d-1"]
    assert agent.supervisor.disks == {"data": "/disks/data"}
    assert (await caller.call_to_end("unmount_disk", "d-1"))["message"] == "Unmounted partition of d-1"
    assert agent.supervisor.disks == {}
    assert await caller.call("list_disk") == []
    assert (await caller.call_to_end("unmount_disk", "d-1"))["message"] == "Partition of d-1 is not mounted"
    assert await caller.call("remove_persistent_disk", "d-1") == {}
    assert (await caller.call_to_end("unmount_disk", "d-1"))["message"] == "Partition of d-1 is not mounted"


async def test_a_disk_that_was_let_go_is_not_missed_later(caller: Caller, agent: RunningAgent) -> None:
    """Unmounted and no longer specified: the cloud takes it away, and no later revision asks for it or reports it.
    One that a newer specification names is mounted again."""
    disk = DiskSpec(DiskName("data"), DiskCid("d-1"), device="/dev/vdb")
    await caller.call_to_end("mount_disk", "d-1", {"name": "data", "device": "/dev/vdb"})
    await caller.call("apply", plain(make_spec(1, disks=(disk,))))
    await caller.call("apply", plain(make_spec(2)))
    await caller.call_to_end("unmount_disk", "d-1")
    attempts = len(agent.tools.attempts)
    await caller.call("apply", plain(make_spec(3)))
    other = DiskSpec(DiskName("logs"), DiskCid("d-2"), device="/dev/vdc")
    await caller.call("apply", plain(make_spec(4, disks=(other,))))
    await until(lambda: agent.supervisor.disks == {"logs": "/disks/logs"})
    assert agent.tools.attempts[attempts:] == ["d-2"]
    assert [report.cid for report in agent.disks.reports()] == ["d-2"]
    await caller.call("apply", plain(make_spec(5, disks=(other, disk))))
    await until(lambda: agent.supervisor.disks == {"logs": "/disks/logs", "data": "/disks/data"})


async def test_boshs_form_of_mounting_uses_the_hint_that_was_added(caller: Caller, agent: RunningAgent) -> None:
    """add_persistent_disk with a path or an object, then mount_disk with the cid alone."""
    await caller.call("apply", plain(make_spec()))
    await caller.call("add_persistent_disk", "vol-1", {"path": "/dev/sdc"})
    assert agent.tools.attempts == [], "a disk that was only announced is not mounted"
    assert await caller.call_to_end("mount_disk", "vol-1") == {"directory": "/disks/vol-1"}
    known = agent.disks.known(DiskCid("vol-1"))
    assert known is not None
    assert known.device == "/dev/sdc"


async def test_a_disk_in_use_is_not_unmounted(caller: Caller, agent: RunningAgent) -> None:
    """The refusal names the containers; once they are stopped it goes."""
    spec = make_spec()
    user = replace(spec.containers[0], mounts=(Mount(MountKind.DISK, "data", "/data"),))
    disk = DiskSpec(DiskName("data"), DiskCid("d-1"), device="/dev/vdb")
    await caller.call("apply", plain(replace(spec, containers=(user,), disks=(disk,))))
    await until(lambda: agent.supervisor.disks, what="the disk of the specification is mounted")
    with pytest.raises(RequestRefused, match="in use by redis"):
        await caller.call("unmount_disk", "d-1")
    await caller.call_to_end("stop")
    await caller.call_to_end("unmount_disk", "d-1")
    assert agent.supervisor.disks == {}


async def test_a_disk_that_is_not_there_is_tried_again_and_reported(caller: Caller, agent: RunningAgent) -> None:
    """The task's failure says what is missing, the report too, and the agent goes on trying by itself."""
    await caller.call("apply", plain(make_spec()))
    with pytest.raises(RequestRefused, match="is it attached"):
        await caller.call_to_end("mount_disk", "missing-1", {"name": "data", "device": "/dev/vdz"})
    assert agent.disks.reports()[0].state is DiskState.MISSING
    await until(lambda: len(agent.tools.attempts) >= 2, what="another try")


async def test_logs_are_bounded_and_of_known_containers(caller: Caller) -> None:
    """The last lines of one container; another name is refused with the names there are."""
    await caller.call("apply", plain(make_spec()))
    assert (await caller.call("logs", "redis", 3)).count("\n") == 3
    with pytest.raises(RequestRefused, match="redis, exporter"):
        await caller.call("logs", "postgres")


RAW = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"null", "not a JSON object"),
    (b"[1,2]", "not a JSON object"),
    (b'"ping"', "not a JSON object"),
]


@pytest.mark.parametrize(("payload", "message"), RAW, ids=lambda value: repr(value)[:30])
async def test_what_is_no_request_hurts_nothing(bus: NatsBus, caller: Caller, payload: bytes, message: str) -> None:
    """The answer goes where NATS says when the body cannot; the next request is answered as ever."""
    answer = await bus.request(f"agent.{AGENT}", payload, 5)
    with pytest.raises(RequestRefused, match=message):
        envelope.decode_reply(answer)
    assert await caller.call("ping") == "pong"


MALFORMED = [
    ({"method": 5}, "unknown message"),
    ({"method": ""}, "unknown message"),
    ({}, "unknown message"),
    ({"method": "no_such_method"}, "unknown message no_such_method"),
    ({"method": "x" * 10_000}, "unknown message x"),
    ({"method": "ping", "arguments": "echo"}, "arguments must be an array"),
    ({"method": "ping", "arguments": ["echo"]}, "expected an object"),
    ({"method": "ping", "generation": "3"}, "generation must be a whole number"),
    ({"method": "ping", "generation": True}, "generation must be a whole number"),
    ({"method": "apply"}, "Not enough arguments, expected 1, got 0"),
    ({"method": "apply", "arguments": [None]}, "argument 1"),
    ({"method": "apply", "arguments": [{"instance": "shop/db/0"}]}, "deployment: Field required"),
    ({"method": "start", "arguments": [[1]]}, "container names"),
    ({"method": "start", "arguments": [["nope"]]}, "no specification yet"),
    ({"method": "drain", "arguments": ["status"]}, 'expected "shutdown" or "update"'),
    ({"method": "drain", "arguments": ["update", {"deadline_seconds": -1}]}, "deadline_seconds"),
    ({"method": "drain", "arguments": ["update", {"deadline_seconds": "soon"}]}, "deadline_seconds"),
    ({"method": "mount_disk"}, "Not enough arguments"),
    ({"method": "mount_disk", "arguments": ["d-1", {"name": "../../etc"}]}, "disk name"),
    ({"method": "mount_disk", "arguments": ["d-1", {"name": "data", "device": "/dev/../etc/x"}]}, "below /dev"),
    ({"method": "mount_disk", "arguments": ["d-1", {"name": "data", "filesystem": "ntfs"}]}, "ext4, xfs"),
    ({"method": "mount_disk", "arguments": ["d-1", {"name": "data", "mount_options": ["a,b;c"]}]}, "mount option"),
    ({"method": "mount_disk", "arguments": ["d 1", {"name": "data"}]}, "cid"),
    ({"method": "mount_disk", "arguments": ["d-1", 7]}, "argument 2"),
    ({"method": "unmount_disk"}, "Not enough arguments"),
    ({"method": "logs", "arguments": ["redis", 0]}, "whole number from 1"),
    ({"method": "logs", "arguments": ["redis", True]}, "whole number from 1"),
    ({"method": "get_task"}, "Not enough arguments"),
    ({"method": "get_task", "arguments": ["nope"]}, "could not be found"),
    ({"method": "get_task", "arguments": ["nope", {"wait_seconds": 1e9}]}, "wait_seconds"),
    ({"method": "cancel_task", "arguments": [["x"]]}, "a task id"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED, ids=lambda value: str(value)[:60])
async def test_a_malformed_request_gets_one_error_and_hurts_nothing(
    caller: Caller, agent: RunningAgent, body: dict[str, Any], message: str
) -> None:
    """Each says what was expected; nothing was changed, and the next request is answered."""
    subject = caller.new_subject()
    answer = await caller.send(json.dumps({"protocol": 3, "reply_to": subject, **body}).encode(), subject)
    with pytest.raises(RequestRefused, match=message):
        envelope.decode_reply(answer)
    assert await caller.call("ping") == "pong"
    assert caller.answers_left(subject) == 0
    assert agent.supervisor.spec is None
    assert not agent.desired.drained


async def test_too_much_at_once_is_refused_and_ping_still_answers(caller: Caller, agent: RunningAgent) -> None:
    """Long waits fill their bound and no more: the rest is refused at once, and what needs no work is answered."""
    agent.supervisor.hold_drain = asyncio.Event()
    task = (await caller.call("drain", "update"))["agent_task_id"]
    waiting = [asyncio.create_task(caller.call("get_task", task, {"wait_seconds": 30}, seconds=40)) for _ in range(64)]
    await asyncio.sleep(0)  # every one of them is on its way before what follows
    assert await caller.call("ping") == "pong"
    with pytest.raises(RequestRefused, match="64 requests"):
        await caller.call("logs", "redis")
    assert await caller.call("ping") == "pong"
    agent.supervisor.hold_drain.set()
    assert await asyncio.gather(*waiting) == [0] * 64


async def test_tasks_are_bounded(caller: Caller, agent: RunningAgent) -> None:
    """The seventeenth long request is refused while sixteen run."""
    agent.supervisor.hold_drain = asyncio.Event()
    for _ in range(16):
        await caller.call("drain", "update")
    with pytest.raises(RequestRefused, match="16 tasks"):
        await caller.call("drain", "update")
    agent.supervisor.hold_drain.set()


async def test_a_value_too_large_for_the_bus_becomes_boshs_error(caller: Caller, agent: RunningAgent) -> None:
    """A specification that fits is applied; a state that would not fit is answered with BOSH's words."""
    base = make_spec().containers[0]
    big = {f"KEY_{number}": "x" * 1000 for number in range(900)}
    await caller.call("apply", plain(make_spec(containers=(replace(base, environment=big),))))
    assert (await caller.call("get_state"))["resurgam"]["revision"] == 1


async def test_a_bosh_director_is_answered_on_its_own_subject(caller: Caller) -> None:
    """Real requests of BOSH's director, as captured, get answers of the same shape."""
    for name in ("ping", "info", "get_state", "drain_shutdown_accept", "unknown_method"):
        real = json.loads(Path(f"tests/data/bosh-agent/agent-real-1-{name}.json").read_text())
        subject = caller.new_subject()
        body = {**real["request"], "reply_to": subject} if "request" in real else None
        assert body is not None
        answer = json.loads(await caller.send(json.dumps(body).encode(), subject))
        assert set(answer) == set(real["parsed"])
        if isinstance(real["parsed"].get("value"), dict):
            assert set(real["parsed"]["value"]) - {"processes"} <= set(answer["value"])


async def test_requests_are_heard_again_after_the_bus_was_away(server: NatsServer, caller: Caller) -> None:
    """The subscription outlives the server's restart."""
    await server.stop()
    await server.start()

    async def answers() -> bool:
        try:
            return bool(await caller.call("ping", seconds=0.5) == "pong")
        except Exception:
            return False

    await until(answers, seconds=20, what="a ping is answered after the restart")


def test_the_request_of_the_monitor_reads_back() -> None:
    """What the monitor encodes is what the agent decodes, generation included."""
    request = Request("apply", ({"a": 1},), "director.m.agent-1.r", generation=GENERATION)
    assert envelope.decode_request(envelope.encode_request(request)) == request


async def test_a_spare_becomes_an_instance_and_stays_it(bus: NatsBus, tmp_path: Path) -> None:
    """Told by the centre: from then on it takes that instance's disks and specification of that generation, and no
    other's; another process on the same VM knows it too."""
    settings = replace(make_settings(), instance=None, generation=Generation(0))
    spec = make_spec(1, generation=Generation(4))
    caller = await Caller(bus).open()
    async with running_agent(bus, tmp_path / "state", settings=settings) as spare:
        await until(lambda: answers(caller), what="it answers")
        with pytest.raises(RequestRefused, match="generation 0, the request of 4"):
            await caller.call("apply", codec.to_plain(spec), generation=4)
        place = {"instance": spec.instance, "generation": 4, "hostname": "shop-db-0"}
        assert await caller.call("become", place, generation=4) == "became"
        assert await caller.call("become", place, generation=4) == "became"
        assert spare.hostnames[:1] == ["shop-db-0"]
        with pytest.raises(RequestRefused, match="already"):
            await caller.call("become", {**place, "instance": "shop/db/1"}, generation=1)
        with pytest.raises(RequestRefused, match="generation 4, the request of 0"):
            await caller.call("list_disk", generation=0)
        await caller.call("apply", codec.to_plain(spec), generation=4)
    async with running_agent(bus, tmp_path / "state", settings=settings) as again:
        await until(lambda: answers(caller), what="it answers")
        state = await caller.call("get_state", generation=4)
        assert (state["resurgam"]["instance"], state["resurgam"]["generation"]) == (spec.instance, 4)
        assert again.desired.spec == spec
        assert again.desired.hostname == "shop-db-0"


async def test_a_vm_that_was_made_for_an_instance_is_no_spare(agent: RunningAgent, caller: Caller) -> None:
    """Whoever says so."""
    with pytest.raises(RequestRefused, match="no spare"):
        await caller.call("become", {"instance": "shop/db/1", "generation": 1})


async def test_images_are_fetched_before_anybody_needs_them(agent: RunningAgent, caller: Caller) -> None:
    """As a task; those that cannot be had are named, and the others are there."""
    agent.engine.registry.add("redis:7")
    wanted = [{"image": name, "policy": "missing", "pinned": None} for name in ("gone:1", "redis:7")]
    answer = await caller.call_to_end("fetch_images", wanted, 1024)
    assert answer["had"] == {"redis:7": "redis:7 from its registry"}
    assert list(answer["failed"]) == ["gone:1"]
    assert agent.engine.images == {"redis:7"}


async def test_what_is_to_be_fetched_is_read_with_care(caller: Caller) -> None:
    """Images with their policies and pins, and a rate; nothing else."""
    for wrong in ([7], [{"image": "redis:7", "policy": "sometimes"}], [{"image": "a:1"}] * 201):
        with pytest.raises(RequestRefused, match="argument 1"):
            await caller.call("fetch_images", wrong, 1024)


async def answers(caller: Caller) -> bool:
    try:
        return bool(await caller.call("ping", seconds=0.2) == "pong")
    except TimeoutError:
        return False
