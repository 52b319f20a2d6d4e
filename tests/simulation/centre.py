"""One health monitor in the simulation: the real shells, put together as `healthmonitor/__main__.py` does.

Law: a monitor process that ended by itself is started again after a second, as systemd would; why it ended is told.

Does not know: faults, checkers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from healthmonitor.agent_client import AgentClient
from healthmonitor.bus_alarm import NoteInMemory
from healthmonitor.channels.channel import Channel
from healthmonitor.clouds.cloud import Cloud
from healthmonitor.core.fleet import Fleet
from healthmonitor.core.policy import Policy
from healthmonitor.core.records import InstanceRecord
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.monitor import Monitor
from healthmonitor.operator_actions import OperatorActions
from healthmonitor.resurrector import Resurrector
from protocol.bus import BusUnavailable
from protocol.heartbeat import DiskReport
from protocol.ids import AgentId, CloudName, MonitorId
from protocol.settings import BusSettings
from tests.simulation.bus import SimulatedBus, SimulatedServer, SimulatedSystemEvents
from tests.simulation.clocks import Clock
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.story import Trace, Voice

RESTART_SECONDS = 1.0
OPEN_RETRY_SECONDS = 1.0
UNIX_EPOCH_SECONDS = 1_790_000_000.0
"""What a wall clock shows when the loop's clock shows 0."""


@dataclass(slots=True)
class Running:
    """The parts of a monitor that has opened its journal."""

    journal: Journal
    leadership: Leadership
    fleet: Fleet
    monitor: Monitor
    resurrector: Resurrector
    actions: OperatorActions


class MonitorProcess:
    """`crash_point(process, name)` is called after each journal write, cloud call and agent call."""

    def __init__(
        self,
        loop: SimulatedLoop,
        server: SimulatedServer,
        clouds: Mapping[CloudName, Cloud],
        policy: Policy,
        name: str,
        random: Random,
        trace: Trace,
        crash_point: Callable[[MonitorProcess, str], None],
        channels: Callable[[], tuple[Channel, ...]] = tuple,
        twin: str = "",
    ) -> None:
        """`twin`: names this process where another runs under the same name."""
        self.name = name
        self.is_twin = bool(twin)
        self.retired = False  # never started again
        self.clock = Clock(lambda: UNIX_EPOCH_SECONDS + loop.time())
        self.process: Process | None = None
        self.bus: SimulatedBus | None = None
        self.running: Running | None = None
        self.started_at = 0.0
        self.stays_down_seconds = RESTART_SECONDS
        self.newest_evidence: dict[AgentId, float] = {}
        self.heard_freshly: set[tuple[AgentId, int]] = set()  # and of its which boot
        self._loop = loop
        self._server = server
        self._clouds = clouds
        self._policy = policy
        self._random = random
        self._trace = trace
        self._crash_point = crash_point
        self._channels = channels
        self._ids_of = f"{name}{twin}"
        self._cut = (False, False)
        self.alarm_note = NoteInMemory()  # stands for a file of its machine
        self._ids = 0
        self._starts = 0

    @property
    def leads(self) -> bool:
        return self.running is not None and self.running.leadership.is_leader()

    def start(self) -> None:
        if self.process is not None or self.retired:
            return
        self._starts += 1
        self.started_at = self._loop.time()
        self.newest_evidence.clear()
        self.heard_freshly.clear()
        self._trace.tell(Voice.MONITOR, self.name, f"starts ({self._starts})")
        self.process = Process(self._loop, self.name)
        self.process.start(self._main(), self._ended)

    def killed(self, why: str) -> None:
        """Its process is gone, or is to be: nothing of it is left but what it wrote."""
        if self.process is None:
            return
        self._trace.tell(Voice.MONITOR, self.name, f"killed: {why}")
        self.process.kill()
        self.process = None
        self.running = None
        if self.bus is not None:
            self._server.client_killed(self.bus, announced=True)
            self.bus = None

    def freeze(self) -> None:
        if self.process is not None:
            self.process.freeze()
            if self.bus is not None:
                self._server.reconsider(self.bus)

    def thaw(self) -> None:
        if self.process is not None:
            self.process.thaw()
            if self.bus is not None:
                self._server.reconsider(self.bus)

    def set_cut(self, to_server: bool, from_server: bool) -> None:
        """Its network, whatever process runs in it."""
        self._cut = (to_server, from_server)
        if self.bus is not None:
            self._server.cut(self.bus, to_server, from_server)

    def ask(self, request: Callable[[OperatorActions], Awaitable[object]], seconds: float) -> asyncio.Future[str]:
        """Carries a person's request out in this process. The future: "" when acknowledged, else what went wrong."""
        answer: asyncio.Future[str] = self._loop.create_future()
        running, process = self.running, self.process
        if running is None or process is None:
            answer.set_result("not running")
            return answer

        async def carry_out() -> None:
            try:
                async with asyncio.timeout(seconds):
                    await request(running.actions)
            except Exception as error:  # the edge of a person's request: whatever it was, they are told
                text = f"{type(error).__name__}: {error}"
            else:
                text = ""
            if not answer.done():
                answer.set_result(text)

        process.call(self._loop.create_task, carry_out())
        return answer

    def unix_time(self) -> float:
        """What its wall clock shows."""
        return self.clock.show()

    def step_down(self) -> None:
        """A person's word; nobody waits for it."""
        if self.running is not None and self.process is not None and self.leads:
            self.process.call(self._loop.create_task, self.running.leadership.step_down())

    def _ended(self, text: str) -> None:
        self._loop.failures.append(f"{self._loop.time():.3f} {self.name} ended by itself: {text or 'returned'}")
        self.killed(f"ended by itself: {text or 'returned'}")
        self._loop.call_later(RESTART_SECONDS, self.start)

    def _new_id(self) -> str:
        self._ids += 1
        return f"{self._ids_of}-{self._starts}-{self._ids}"

    async def _main(self) -> None:
        bus = self.bus = self._server.client(self.name)
        self._server.cut(bus, *self._cut)
        await bus.open()
        monitor_id = MonitorId(self.name)
        policy = self._policy
        process = self.process
        assert process is not None
        journal = Journal(bus, self.unix_time, policy.resurrection)
        agents = AgentClient(bus, monitor_id, self._new_id)
        await agents.open()
        await self._open(journal)
        fleet = Fleet(policy.liveness, self._loop.time())
        leadership = Leadership(bus, monitor_id, policy.leadership, incarnation=self._new_id())
        resurrector = Resurrector(
            journal=journal,
            clouds=self._clouds,
            agents=agents,
            fleet=fleet,
            leadership=leadership,
            policy=policy,
            unix_time=self.unix_time,
            new_id=self._new_id,
            agent_bus_settings=_bus_settings,
            random_bytes=self._random.randbytes,
            crash_point=lambda name: self._crash_point(self, name),
        )
        monitor = Monitor(
            bus=bus,
            fleet=fleet,
            journal=journal,
            agents=agents,
            clouds=self._clouds,
            channels=self._channels(),
            resurrector=resurrector,
            leadership=leadership,
            policy=policy,
            monitor_id=monitor_id,
            unix_time=self.unix_time,
            new_id=self._new_id,
            system_events=SimulatedSystemEvents(bus),
            alarm_note=self.alarm_note,
        )
        leader = _Leader(self.name, leadership)
        manifests = ManifestIntake(
            journal,
            lambda: tuple(self._clouds),
            dict,
            lambda: {name: cloud.disk_abilities for name, cloud in self._clouds.items()},
            lambda record: _disk_reports(fleet, record),
        )
        actions = OperatorActions(journal, resurrector, agents, leader, manifests, self.unix_time)
        leadership.on_change(
            lambda leads: self._trace.tell(Voice.MONITOR, self.name, "leads" if leads else "leads no more")
        )
        self.running = Running(journal, leadership, fleet, monitor, resurrector, actions)
        async with asyncio.TaskGroup() as group:
            group.create_task(leadership.run(), name="leadership")
            group.create_task(monitor.run(), name="monitor")
            group.create_task(resurrector.run(), name="resurrector")

    async def _open(self, journal: Journal) -> None:
        while True:
            try:
                await journal.open()
                return
            except BusUnavailable:
                await asyncio.sleep(OPEN_RETRY_SECONDS)


class _Leader:
    """As `healthmonitor/site_state.py` tells people's actions who leads."""

    def __init__(self, name: str, leadership: Leadership) -> None:
        self._name = name
        self._leadership = leadership

    def is_leader(self) -> bool:
        return self._leadership.is_leader()

    def leader_name(self) -> str:
        lease = self._leadership.holder()
        return lease.holder if lease is not None else ""

    def leader_address(self) -> str:
        return ""


def _bus_settings(agent: AgentId) -> BusSettings:
    return BusSettings(urls=("simulated",))


def _disk_reports(fleet: Fleet, record: InstanceRecord) -> Sequence[DiskReport]:
    """As healthmonitor/service.py gives them."""
    heartbeat = fleet.last_heartbeat(record.vm.agent_id) if record.vm is not None else None
    return heartbeat.resurgam.disks if heartbeat is not None and heartbeat.resurgam is not None else ()
