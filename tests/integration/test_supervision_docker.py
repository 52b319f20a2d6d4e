"""The supervisor on a real Docker Engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.core.backoff import BackoffPolicy
from agent.core.engine_watch import WatchPolicy
from agent.core.reconcile import SupervisionPolicy
from agent.mount_directories import prepare
from agent.oom import CgroupOomCounters
from agent.supervisor import Supervisor
from protocol.heartbeat import ContainerReport, ContainerState, EngineState, Reason
from protocol.ids import ContainerName, DeploymentName, DiskName, Generation, InstanceId, Revision
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    Healthcheck,
    InstanceSpec,
    Mount,
    MountKind,
    Port,
    Restart,
    Wanted,
)
from tests.support.dockerd import IMAGE, SECOND_IMAGE, OwnDocker, own_docker
from tests.support.waiting import until

pytestmark = pytest.mark.docker

SLEEP = ("sleep", "100000")
INSTANCE = InstanceId("shop/db/0")


class FileOfNotes:
    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        return self.notes

    def save(self, notes: dict[str, Any]) -> None:
        self.notes = notes


class Agent:
    """A supervisor that can be killed without clean-up and started again with the notes it left."""

    def __init__(self, docker: OwnDocker, policy: SupervisionPolicy | None = None) -> None:
        self.docker = docker
        self.notes = FileOfNotes()
        self.policy = policy or SupervisionPolicy(full_look_seconds=2.0)
        self.supervisor = self._new()
        self._task: asyncio.Task[None] | None = None

    def _new(self) -> Supervisor:
        return Supervisor(
            self.docker.engine(),
            self.docker.daemon,
            CgroupOomCounters(),
            self.notes,
            prepare,
            self.policy,
            WatchPolicy(probe_interval_seconds=0.5, probe_deadline_seconds=1.0, silent_limit=2),
        )

    def start(self) -> None:
        self._task = asyncio.create_task(self.supervisor.run())

    async def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def restart(self, spec: InstanceSpec) -> None:
        await self.kill()
        self.supervisor = self._new()
        self.supervisor.set_desired(spec)
        self.start()

    def container(self, name: str) -> ContainerReport | None:
        found = [report for report in self.supervisor.report().containers if report.name == name]
        return found[0] if found else None

    async def until_settled(self, seconds: float = 30.0) -> None:
        await until(lambda: self.supervisor.report().settled, seconds, "settled", 0.05)

    async def until_state(
        self, name: str, state: ContainerState, reason: Reason | None = None, seconds: float = 30.0
    ) -> ContainerReport:
        def found() -> ContainerReport | None:
            report = self.container(name)
            matches = report is not None and report.state is state and reason in (None, report.reason)
            return report if matches else None

        return await until(found, seconds, f"{name} {state} {reason}; is {self.container(name)}", 0.02)

    async def run_of(self, name: str) -> str:
        found = [item for item in await self.supervisor._engine.look() if item.name == name]
        return found[0].run if found and found[0].pid else ""

    async def runs(self) -> dict[str, str]:
        return {item.name: item.run for item in await self.supervisor._engine.look()}

    async def kill_process(self, name: str) -> None:
        found = [item for item in await self.supervisor._engine.look() if item.name == name]
        os.kill(found[0].pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def docker() -> Iterator[OwnDocker]:
    with own_docker() as docker:
        yield docker


@pytest.fixture
async def agent(docker: OwnDocker) -> AsyncIterator[Agent]:
    agent = Agent(docker)
    agent.start()
    yield agent
    await agent.kill()
    docker.remove_all()


def container(name: str, **options: Any) -> ContainerSpec:
    options.setdefault("command", SLEEP)
    options.setdefault("stop_signal", "SIGKILL")
    options.setdefault("network_mode", "none")
    needs = tuple(
        item if isinstance(item, Dependency) else Dependency(ContainerName(item))
        for item in options.pop("depends_on", ())
    )
    image = options.pop("image", IMAGE)
    return ContainerSpec(ContainerName(name), image, depends_on=needs, **options)


def instance(*containers: ContainerSpec, revision: int = 1, **options: Any) -> InstanceSpec:
    return InstanceSpec(
        INSTANCE, DeploymentName("shop"), "db", 0, Generation(1), Revision(revision), containers=containers, **options
    )


CHAIN = instance(
    container("redis"),
    container("cache", depends_on=["redis"]),
    container("web", depends_on=["cache"]),
    container("other"),
)


async def test_a_killed_container_and_its_dependents_restart_in_order(agent: Agent) -> None:
    """SIGKILL of the first of a chain: all three run anew, in order; an unrelated container keeps its run."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()

    await agent.kill_process("redis")

    async def all_new() -> bool:
        now = await agent.runs()
        return all(now.get(name) not in (before[name], "") for name in ("redis", "cache", "web"))

    await until(all_new, 30, "the chain runs anew")
    await agent.until_settled()
    after = await agent.runs()
    assert after["other"] == before["other"]
    started = [after[name].split("@")[1] for name in ("redis", "cache", "web")]
    assert started == sorted(started)
    report = agent.container("redis")
    assert report is not None
    assert (report.reason, report.exit_code, report.restarts) == (Reason.EXITED, 137, 1)


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_daemon_recovers_and_the_containers_survive(agent: Agent, fault: signal.Signals) -> None:
    """dockerd killed or frozen: it answers again unaided, the state was named, and no container restarted."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    pid = agent.docker.daemon.pid()
    assert pid is not None

    os.kill(pid, fault)

    named = EngineState.HUNG if fault is signal.SIGSTOP else EngineState.DOWN
    await until(lambda: agent.supervisor.report().engine is named, 15, f"engine {named}")
    await until(lambda: agent.supervisor.report().engine is EngineState.UP, 60, "engine up")
    await agent.until_settled(60)
    assert agent.docker.daemon.pid() != pid
    assert await agent.runs() == before


async def test_a_container_that_dies_while_the_daemon_is_down_is_started_afterwards(agent: Agent) -> None:
    """An event that nobody could send is made good by the look."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    victim = next(item.pid for item in await agent.supervisor._engine.look() if item.name == "other")
    pid = agent.docker.daemon.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: agent.supervisor.report().engine is not EngineState.UP, 15, "engine down")
    await agent.until_settled(60)
    after = await agent.runs()
    assert after["other"] != before["other"]
    assert {name: after[name] for name in ("redis", "cache", "web")} == {
        name: before[name] for name in ("redis", "cache", "web")
    }


async def test_a_new_agent_restarts_nothing(agent: Agent) -> None:
    """The agent killed without clean-up, with its notes or without: not one container restarts."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    await agent.restart(CHAIN)
    await agent.until_settled()
    agent.notes.notes = {}
    await agent.restart(CHAIN)
    await agent.until_settled()
    assert await agent.runs() == before


async def test_an_agent_killed_in_mid_restart_finishes_it_and_no_more(agent: Agent) -> None:
    """Killed when the first of the chain runs anew but the last does not yet: the new agent restarts what is stale."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    await agent.kill_process("redis")

    async def first_is_new() -> bool:
        return (await agent.run_of("redis")) not in ("", before["redis"])

    await until(first_is_new, 20, "redis runs anew", 0.001)
    await agent.kill()
    await agent.restart(CHAIN)

    async def last_is_new() -> bool:
        return (await agent.run_of("web")) not in ("", before["web"])

    await until(last_is_new, 30, "web runs anew")
    await agent.until_settled()
    after = await agent.runs()
    assert after["other"] == before["other"]
    started = [after[name].split("@")[1] for name in ("redis", "cache", "web")]
    assert started == sorted(started)


async def test_a_changed_specification_restarts_only_what_it_must(agent: Agent) -> None:
    """A new image for the middle of the chain: it and its dependent are new, the rest keeps its runs."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    changed = tuple(replace(item, image=SECOND_IMAGE) if item.name == "cache" else item for item in CHAIN.containers)
    agent.supervisor.set_desired(replace(CHAIN, containers=changed, revision=Revision(2)))
    await agent.until_settled()
    after = await agent.runs()
    assert {name for name in after if after[name] != before[name]} == {"cache", "web"}
    assert after["cache"].split("@")[1] < after["web"].split("@")[1]


async def test_a_missing_image_leaves_the_old_container_running(agent: Agent) -> None:
    """An image that cannot be pulled is named, and what ran before runs on."""
    agent.supervisor.set_desired(instance(container("redis")))
    await agent.until_settled()
    before = await agent.runs()
    agent.supervisor.set_desired(instance(container("redis", image="localhost:1/none:1")))
    report = await agent.until_state("redis", ContainerState.BACKING_OFF, Reason.IMAGE_MISSING)
    assert "localhost:1/none:1" in report.detail
    assert await agent.runs() == before


async def test_oom_of_the_first_process_is_named(agent: Agent) -> None:
    """A container whose first process eats more than its limit: OOM_KILLED, and it is started again."""
    eater = container("eater", command=("tail", "/dev/zero"), mem_limit_bytes=16 << 20)
    agent.supervisor.set_desired(instance(eater))
    report = await until(
        lambda: (found := agent.container("eater")) and found.reason is Reason.OOM_KILLED and found, 30, "OOM named"
    )
    assert report.exit_code == 137
    await agent.until_state("eater", ContainerState.CRASH_LOOP, Reason.OOM_KILLED)


EATING_CHILD = ("sh", "-c", "until test -e /tmp/eat; do sleep 0.1; done; tail /dev/zero; rm /tmp/eat; sleep 100000")


@pytest.mark.parametrize("on_oom", ["alert", "restart", "ignore"])
async def test_oom_of_a_child_is_seen(agent: Agent, on_oom: str) -> None:
    """A child is killed at the limit while the first process lives on: said, acted upon, or ignored, as specified."""
    parent = container("parent", command=EATING_CHILD, mem_limit_bytes=16 << 20, on_oom=on_oom)
    witness = container("witness", command=EATING_CHILD, mem_limit_bytes=16 << 20)
    agent.supervisor.set_desired(instance(parent, witness))
    await agent.until_settled()
    before = await agent.runs()
    agent.docker.docker("exec", "parent", "touch", "/tmp/eat")
    match on_oom:
        case "alert":
            report = await agent.until_state("parent", ContainerState.RUNNING, Reason.OOM_CHILD)
            assert "16 MiB" in report.detail
            assert await agent.runs() == before
        case "restart":

            async def is_new() -> bool:
                return (await agent.run_of("parent")) not in ("", before["parent"])

            await until(is_new, 30, "restarted")
            await agent.until_state("parent", ContainerState.RUNNING, Reason.OOM_CHILD)
        case "ignore":
            # The witness's kill comes later, so once it is reported, the other was counted and not reported.
            agent.docker.docker("exec", "witness", "touch", "/tmp/eat")
            await agent.until_state("witness", ContainerState.RUNNING, Reason.OOM_CHILD)
            await agent.until_state("parent", ContainerState.RUNNING, Reason.NONE)
            assert await agent.runs() == before


async def test_a_crash_loop_is_named_and_retried(agent: Agent) -> None:
    """A container that ends at once: a crash loop by name, with its exit code, and still tried."""
    agent.supervisor.set_desired(instance(container("broken", command=("sh", "-c", "exit 3"))))
    first = await agent.until_state("broken", ContainerState.CRASH_LOOP, Reason.EXITED)
    assert first.exit_code == 3
    later = await until(
        lambda: (found := agent.container("broken")) and found.restarts > first.restarts and found, 30, "tried again"
    )
    assert later.state is ContainerState.CRASH_LOOP


async def test_a_taken_port_is_named_and_the_container_starts_when_it_is_free(agent: Agent) -> None:
    """A published port that another process holds: PORT_IN_USE, and running once it is free."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        number = holder.getsockname()[1]
        agent.supervisor.set_desired(instance(container("web", network_mode="", ports=(Port(80, number),))))
        report = await agent.until_state("web", ContainerState.BACKING_OFF, Reason.PORT_IN_USE)
        assert str(number) in report.detail
    await agent.until_state("web", ContainerState.RUNNING)


async def test_unhealthy_counts_as_failed(agent: Agent) -> None:
    """A container that turns unhealthy is stopped and started, and its dependent follows."""
    check = Healthcheck(("CMD", "test", "!", "-e", "/tmp/ill"), interval_seconds=0.3, timeout_seconds=5, retries=2)
    agent.supervisor.set_desired(
        instance(
            # The illness lies in a tmpfs, so a new run is healthy.
            container("redis", healthcheck=check, tmpfs=("/tmp",)),
            container("web", depends_on=[Dependency(ContainerName("redis"), Condition.HEALTHY)]),
        )
    )
    await agent.until_settled()
    before = await agent.runs()
    agent.docker.docker("exec", "redis", "touch", "/tmp/ill")

    async def both_new() -> bool:
        now = await agent.runs()
        return now["redis"] != before["redis"] and now["web"] not in ("", before["web"])

    await until(both_new, 40, "both run anew")
    await agent.until_settled()
    report = agent.container("redis")
    assert report is not None
    assert report.reason is Reason.UNHEALTHY


async def test_orphans_are_removed_and_strangers_are_not(agent: Agent) -> None:
    """What left the specification is stopped and removed; a container without our label stays, and its name is safe."""
    agent.docker.docker("run", "-d", "--net=none", "--name", "stranger", IMAGE, "sleep", "1000")
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    agent.supervisor.set_desired(instance(container("redis"), container("stranger"), revision=2))
    report = await agent.until_state("stranger", ContainerState.BACKING_OFF, Reason.CREATE_FAILED)
    assert "not ours" in report.detail

    async def only_redis() -> bool:
        return set(await agent.runs()) == {"redis"}

    await until(only_redis, 30, "orphans are gone")
    names = agent.docker.docker("ps", "--format", "{{.Names}}").stdout.decode().split()
    assert sorted(names) == ["redis", "stranger"]


async def test_drain_stops_dependents_first(agent: Agent) -> None:
    """Stopped in reverse order, each having ended before the next is told to; nothing starts until undrained."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    await agent.supervisor.drain(30.0)
    ended = {}
    for name in ("redis", "cache", "web"):
        found = agent.docker.docker("inspect", "-f", "{{.State.Status}} {{.State.FinishedAt}}", name)
        status, ended[name] = found.stdout.decode().split()
        assert status == "exited"
    assert ended["web"] < ended["cache"] < ended["redis"]
    await agent.until_state("redis", ContainerState.STOPPED, Reason.OPERATOR)
    agent.supervisor.undrain()
    await agent.until_settled()
    assert all(report.state is ContainerState.RUNNING for report in agent.supervisor.report().containers)


async def test_stopped_by_a_person_and_started_again(agent: Agent) -> None:
    """`wanted: stopped` stops, `started` starts; a one-shot that was done before is not run again."""
    once = container("once", command=("true",), restart=Restart.NO)
    spec = instance(container("redis", depends_on=[Dependency(ContainerName("once"), Condition.COMPLETED)]), once)
    agent.supervisor.set_desired(spec)
    await agent.until_settled()
    before = await agent.runs()
    agent.supervisor.set_desired(replace(spec, wanted=Wanted.STOPPED))
    await agent.until_state("redis", ContainerState.STOPPED, Reason.OPERATOR)
    agent.supervisor.set_desired(spec)
    await agent.until_state("redis", ContainerState.RUNNING)
    after = await agent.runs()
    assert after["once"] == before["once"]
    assert after["redis"] != before["redis"]


async def test_a_disk_that_is_not_mounted_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    """Pending until the disk is there; then a directory of its own per mount, owned by the container's user."""
    mount = Mount(MountKind.DISK, "data", "/var/lib/my-data")
    agent.supervisor.set_desired(instance(container("redis", mounts=(mount,), user="1234")))
    await agent.until_state("redis", ContainerState.PENDING, Reason.DISK_NOT_MOUNTED)
    agent.supervisor.set_disks({DiskName("data"): str(tmp_path)})
    await agent.until_state("redis", ContainerState.RUNNING)
    agent.docker.docker("exec", "redis", "touch", "/var/lib/my-data/file")
    directory = tmp_path / "redis" / "var-lib-my\\x2ddata"
    assert (directory / "file").stat().st_uid == 1234
    assert directory.stat().st_mode & 0o777 == 0o755


async def test_a_host_path_that_is_not_there_is_an_error(agent: Agent, tmp_path: Path) -> None:
    """CREATE_FAILED with the path, and no directory made in its place; it runs once somebody makes it."""
    path = tmp_path / "absent"
    mount = Mount(MountKind.BIND, str(path), "/x")
    agent.supervisor.set_desired(instance(container("redis", mounts=(mount,))))
    report = await agent.until_state("redis", ContainerState.BACKING_OFF, Reason.CREATE_FAILED)
    assert str(path) in report.detail
    assert not path.exists()
    path.mkdir()
    await agent.until_state("redis", ContainerState.RUNNING)


async def test_a_container_that_was_only_created_joins_all_its_networks(docker: OwnDocker) -> None:
    """Whoever made it did not live to see it: whoever starts it, also without a look before, sees to its networks."""
    networks = ("front-net", "back-net")
    await docker.engine().ensure_networks(networks)
    spec = container("both", network_mode="", networks=networks, command=SLEEP)
    container_id = await docker.engine().create("shop/db/0", spec, {})
    docker.docker("network", "disconnect", "back-net", "both", check=False)  # however far its maker had come
    await docker.engine().start(container_id)
    shown = docker.docker("inspect", "-f", "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}", "both")
    assert sorted(shown.stdout.decode().split()) == ["back-net", "front-net"]
    assert docker.docker("exec", "both", "cat", "/proc/net/dev").stdout.count(b"eth") == 2
    await docker.engine().stop(container_id, 1)
    await docker.engine().start(container_id)
    docker.remove_all()


async def test_containers_find_each_other_by_name(agent: Agent) -> None:
    """On the instance's own network a container reaches another by its name."""
    server = container("server", network_mode="", command=("sh", "-c", "while true; do echo hello | nc -l -p 80; done"))
    client = container("client", network_mode="", command=SLEEP)
    agent.supervisor.set_desired(instance(server, client))
    await agent.until_settled()
    # The server listens a moment after it counts as running.
    await until(
        lambda: (
            agent.docker.docker("exec", "client", "nc", "-w", "2", "server", "80", check=False).stdout == b"hello\n"
        ),
        10,
        "an answer from `server`",
    )


async def test_a_restart_by_a_persons_word_takes_dependents_along(agent: Agent) -> None:
    """`restart redis`: the chain restarts in order, the unrelated container does not."""
    agent.supervisor.set_desired(CHAIN)
    await agent.until_settled()
    before = await agent.runs()
    agent.supervisor.request_restart((ContainerName("redis"),))
    await agent.until_settled()
    after = await agent.runs()
    assert {name for name in after if after[name] != before[name]} == {"redis", "cache", "web"}
    report = agent.container("redis")
    assert report is not None
    assert report.reason is Reason.OPERATOR


async def test_logs_are_read(agent: Agent) -> None:
    """The last lines of a container's output."""
    agent.supervisor.set_desired(instance(container("talker", command=("sh", "-c", "echo one; echo two; sleep 9999"))))
    await agent.until_settled()

    async def said() -> bool:
        text = await agent.supervisor.logs(ContainerName("talker"), 1)
        return text.rstrip().endswith("two") and "one" not in text

    await until(said, 10, "its last line")


async def test_first_restart_is_quick_even_with_a_slow_policy(docker: OwnDocker) -> None:
    """After a good run there is no back-off at all, whatever the gaps are."""
    agent = Agent(docker, SupervisionPolicy(backoff=BackoffPolicy(first_seconds=60.0)))
    agent.start()
    try:
        agent.supervisor.set_desired(instance(container("redis")))
        await agent.until_settled()
        before = await agent.run_of("redis")
        await agent.kill_process("redis")

        async def is_new() -> bool:
            return (await agent.run_of("redis")) not in ("", before)

        await until(is_new, 10, "running again")
    finally:
        await agent.kill()
        docker.remove_all()
