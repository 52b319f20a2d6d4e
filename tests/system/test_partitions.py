"""Real monitors, agents and nats-servers in network namespaces, cut off from each other, stopped, killed.

Real: the monitors and nats-servers as processes of their own, each in its namespace; the agents' shell, supervisor and
bus in one process a VM, each in its namespace; the network, cut by dropping packets, one way too; signals. Pretended:
the cloud (VMs are processes, `tests/support/process_cloud.py`, which passes the providers' contract), and inside a VM
the Docker Engine and the disks (a mounted disk is a file to which the VM appends without pause, so that a second
writer is seen in it).
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from protocol.ids import VmCid
from tests.support.monitors import MonitorProgram, Site, light_stemcell
from tests.support.namespaces import Network, network
from tests.support.nats_cluster import NatsCluster
from tests.support.process_cloud import NAMESPACES
from tests.support.waiting import until

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(4800)]

BUSES = ("n1", "n2", "n3")
MONITORS = ("m1", "m2")
VMS = tuple(f"v{number}" for number in range(6))
INSTANCES = 3
STORM_SECONDS = float(os.environ.get("RESURGAM_STORM_SECONDS", "25"))
"""How long the loop of faults runs."""
STORM_SEED = int(os.environ.get("RESURGAM_STORM_SEED", "1"))
REPORTED_FAULTS = 20
"""After so many faults the disks are looked at, and the figures so far are printed."""


class Town:
    """The site and its network."""

    def __init__(self, site: Site, net: Network) -> None:
        self.site = site
        self.net = net

    def place_of(self, view: dict[str, Any]) -> str:
        """The name of the place of an instance's VM."""
        namespace = self.site.cloud.namespace_of(VmCid(view["vm"]["vm_cid"]))
        return next(name for name, place in self.net.places.items() if place.namespace == namespace)

    def monitor_name(self, monitor: MonitorProgram) -> str:
        return MONITORS[self.site.monitors.index(monitor)]

    async def calm(self) -> dict[str, dict[str, Any]]:
        """Nothing is cut; everything runs as it should, and both monitors are warm."""
        self.net.heal()
        found = await self.site.settled(INSTANCES)
        await self.site.warm()
        return found


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network((*BUSES, *MONITORS, *VMS)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory, net: Network) -> AsyncIterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    light_stemcell(directory)
    hosts = [(net.places[name].address, net.places[name].namespace) for name in BUSES]
    cluster = NatsCluster(directory / "bus", hosts)
    (directory / "cloud").mkdir()
    names = [net.places[name].namespace for name in VMS]
    (directory / "cloud" / NAMESPACES).write_text(json.dumps({"names": names}))
    programs = [
        MonitorProgram(
            directory,
            name,
            cluster,
            directory / "cloud",
            f"{net.places[name].address}:25923",
            net.places[name].namespace,
        )
        for name in MONITORS
    ]
    site = Site(directory, cluster, programs)
    try:
        await cluster.start()
        for program in programs:
            await program.start()
        await site.warm()
        await site.deploy(INSTANCES)
        made = Town(site, net)
        await made.calm()
        yield made
    finally:
        net.heal()
        await site.close()
        await cluster.stop()


@pytest.mark.parametrize("way", ["both", "from the bus"])
async def test_a_vm_cut_off_from_the_bus_is_rebuilt_once_and_never_writes_beside_its_successor(
    town: Town, way: str
) -> None:
    """Cut off from all three nats-servers, or one way only: it goes on writing until it is fenced, and only then
    another VM has its disk."""
    before = (await town.calm())["shop/db/0"]
    place = town.place_of(before)
    for bus in BUSES:
        if way != "from the bus":
            town.net.cut(place, bus)
        if way != "to the bus":
            town.net.cut(bus, place)

    async def rebuilt() -> bool:
        found = {each["instance"]: each for each in (await town.site.status()).get("instances", [])}
        view = found.get("shop/db/0", {})
        return bool(view.get("generation") == before["generation"] + 1 and view.get("tone") == "good")

    await until(rebuilt, 300, lambda: f"rebuilt; {town.site.logs()}", every_seconds=0.2)
    after = await town.calm()
    assert after["shop/db/0"]["generation"] == before["generation"] + 1
    await town.site.no_disk_had_two_writers()


@pytest.mark.parametrize("way", ["both", "to the bus", "from the bus"])
async def test_a_leader_cut_off_from_the_bus_stops_and_another_goes_on(town: Town, way: str) -> None:
    """It says that it does not lead while it is cut off; what is lost meanwhile is rebuilt once, by the other one; back
    again it is warm."""
    before = await town.calm()
    old = await town.site.leader()
    cut_at = time.monotonic()
    for bus in BUSES:
        if way != "from the bus":
            town.net.cut(town.monitor_name(old), bus)
        if way != "to the bus":
            town.net.cut(bus, town.monitor_name(old))

    async def stopped() -> bool:
        return not await old.leads()

    await until(stopped, 120, f"{old.name} leads no more", every_seconds=0.05)
    stopped_at = time.monotonic()
    new = await town.site.leader(but=old)
    print(f"cut {way}: stopped after {stopped_at - cut_at:.2f} s, followed after {time.monotonic() - cut_at:.2f} s")
    town.site.cloud.signal(VmCid(before["shop/db/1"]["vm"]["vm_cid"]), signal.SIGKILL)
    rest = Site(town.site.directory, town.site.cluster, [new])
    after = await rest.settled(INSTANCES, rebuilt={"shop/db/1": before["shop/db/1"]["generation"] + 1})
    assert after["shop/db/1"]["generation"] == before["shop/db/1"]["generation"] + 1
    assert not await old.leads()
    after = await town.calm()
    assert after["shop/db/1"]["generation"] == before["shop/db/1"]["generation"] + 1
    await town.site.no_disk_had_two_writers()


@pytest.mark.parametrize("way", ["both", "one way"])
async def test_a_nats_server_cut_off_from_the_others_costs_no_vm(town: Town, way: str) -> None:
    """The one that leads the operations' stream, with clients on it that it keeps: agents and monitors on it move to
    the others in time, so that nobody is rebuilt, and somebody leads."""
    before = await town.calm()
    node = await town.site.cluster.stream_leader("KV_operations")
    name = BUSES[town.site.cluster.nodes.index(node)]
    for other in BUSES:
        if other != name:
            town.net.cut(other, name)
            if way == "both":
                town.net.cut(name, other)
    others = {place for place in BUSES if place != name}

    async def all_elsewhere() -> bool:
        """No agent and no monitor is left on the node that was cut off, by its own word. What a monitor listens to
        disconnects with may stay: without it they are only known later."""
        found = await node.clients()
        return found is not None and found <= {"resurgam-system-events"}

    if way == "both":
        await until(all_elsewhere, 180, f"everybody has left {name} for {others}", every_seconds=0.2)
    acknowledged = f"while {name} was away, {way}"
    body = {"seconds": 3600, "because": acknowledged, "instance": "shop/none/1", "kind": "vm_suspect"}
    await town.site.call(lambda monitor: monitor.http.post("/v1/silences", json=body))
    after = await town.calm()
    for instance, view in before.items():
        assert after[instance]["generation"] == view["generation"], instance

    async def kept() -> bool:
        """Who leads since a moment may still be reading what another wrote."""
        leader = await town.site.leader()
        return acknowledged in {each["because"] for each in (await leader.get("/v1/silences"))["silences"]}

    await until(kept, 15, f"the silence that was acknowledged {acknowledged} is kept", every_seconds=0.2)


async def test_a_storm_of_faults(town: Town) -> None:
    """Cuts, SIGSTOP and SIGKILL of everything, drawn from a seed, people writing meanwhile; then calm. Every disk had
    one writer at a time, everything acknowledged is there, every instance runs, and nothing is left over."""
    before = await town.calm()
    storm = Storm(town, Random(STORM_SEED))
    try:
        await storm.blow(STORM_SECONDS)
    finally:
        await storm.end()
    after = await town.calm()
    rebuilt = sum(view["generation"] - before[instance]["generation"] for instance, view in after.items())
    print(f"seed {STORM_SEED}, {STORM_SECONDS:.0f} s: {storm.figures()}, {rebuilt} VMs rebuilt")
    leader = await town.site.leader()
    kept = {each["because"] for each in (await leader.get("/v1/silences"))["silences"]}
    assert storm.acknowledged <= kept
    await town.site.no_disk_had_two_writers()

    async def nothing_left_over() -> bool:
        found = {each["vm"]["vm_cid"] for each in (await town.site.status()).get("instances", [])}
        return {str(summary.vm_cid) for summary in await town.site.cloud.list_vms()} == found

    await until(nothing_left_over, 300, "no VM is left over", every_seconds=0.5)


class Storm:
    """One fault after the other, each of a few seconds; at most one nats-server is away at a time, which is what a
    cluster of three is for."""

    def __init__(self, town: Town, random: Random) -> None:
        self._town = town
        self._random = random
        self.acknowledged: set[str] = set()
        self.counts: dict[str, int] = {}
        self.reigns: set[tuple[str, float]] = set()
        """Who was seen to lead, and since when (Unix seconds)."""

    async def blow(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = self._random.choice(
                [
                    "kill vm",
                    "stop vm",
                    "cut vm",
                    "kill monitor",
                    "stop monitor",
                    "cut monitor",
                    "kill bus",
                    "stop bus",
                    "cut bus",
                ]
            )
            self.counts[kind] = self.counts.get(kind, 0) + 1
            await self._fault(kind)
            await self._write(kind)
            if sum(self.counts.values()) % REPORTED_FAULTS == 0:
                await self._town.site.no_disk_had_two_writers()
                print(f"{end - time.monotonic():.0f} s to go: {self.figures()}", flush=True)

    async def end(self) -> None:
        """Whatever is stopped goes on, whatever is dead is started."""
        self._town.net.heal()
        for node in self._town.site.cluster.nodes:
            node.signal(signal.SIGCONT)
            if not node.runs:
                await node.start()
        for monitor in self._town.site.monitors:
            monitor.signal(signal.SIGCONT)
            if not monitor.runs:
                await monitor.start()
        for summary in await self._town.site.cloud.list_vms():
            self._town.site.cloud.signal(summary.vm_cid, signal.SIGCONT)

    def figures(self) -> str:
        faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.counts.items()))
        return (
            f"{sum(self.counts.values())} faults ({faults}), {len(self.acknowledged)} changes acknowledged,"
            f" {len(self.reigns)} times another leader"
        )

    async def _fault(self, kind: str) -> None:
        site, random = self._town.site, self._random
        what, _, whom = kind.partition(" ")
        lasts = random.uniform(1.0, 8.0)
        if whom == "vm":
            vms = sorted(summary.vm_cid for summary in await site.cloud.list_vms())
            if not vms:
                return
            vm = random.choice(vms)
            if what == "cut":
                namespace = site.cloud.namespace_of(vm)
                name = next(name for name, place in self._town.net.places.items() if place.namespace == namespace)
                await self._cut(name, BUSES, lasts)
            else:
                site.cloud.signal(vm, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
                if what == "stop":
                    await self._for(lasts)
                    site.cloud.signal(vm, signal.SIGCONT)
            return
        if whom == "monitor":
            monitor = random.choice(site.monitors)
            if what == "cut":
                await self._cut(self._town.monitor_name(monitor), BUSES, lasts)
            elif what == "kill":
                await monitor.kill()
                await self._for(lasts / 4)
                await monitor.start()
            else:
                monitor.signal(signal.SIGSTOP)
                await self._for(lasts)
                monitor.signal(signal.SIGCONT)
            return
        node = random.choice(site.cluster.nodes)
        if what == "cut":
            await self._cut(BUSES[site.cluster.nodes.index(node)], BUSES, lasts)
        elif what == "kill":
            await node.kill()
            await self._for(lasts / 2)
            await node.start()
        else:
            node.signal(signal.SIGSTOP)
            await self._for(lasts)
            node.signal(signal.SIGCONT)
        await self._whole()

    async def _cut(self, name: str, from_: tuple[str, ...], lasts: float) -> None:
        way = self._random.randrange(3)
        for other in from_:
            if other != name:
                if way != 1:
                    self._town.net.cut(name, other)
                if way != 2:
                    self._town.net.cut(other, name)
        await self._for(lasts)
        self._town.net.heal()

    async def _for(self, seconds: float) -> None:
        """The fault lasts: time passes, with people asking what there is."""
        end = time.monotonic() + seconds

        async def over() -> bool:
            centre = (await self._town.site.status()).get("monitor", {})
            if centre:
                self.reigns.add((centre["leader_id"], centre["leader_since"]))
            return time.monotonic() >= end

        await until(over, seconds + 60, "the fault lasts", every_seconds=0.2)

    async def _whole(self) -> None:
        """Every copy is current again before the next nats-server may be hit."""

        async def whole() -> bool:
            return all([await node.is_current() for node in self._town.site.cluster.nodes])

        await until(whole, 300, "every nats-server has caught up", every_seconds=0.3)

    async def _write(self, word: str) -> None:
        """A person's change; only what was acknowledged counts."""
        because = f"{sum(self.counts.values())}: after {word}"
        body = {"seconds": 86400, "because": because, "instance": "shop/none/0", "kind": "vm_suspect"}
        for monitor in self._town.site.monitors:
            if await monitor.leads():
                try:
                    response = await monitor.http.post("/v1/silences", json=body, timeout=5.0)
                except Exception as error:  # whatever it was: it was not acknowledged
                    print(f"not acknowledged: {error!r}")
                    continue
                if response.status_code == 201:
                    self.acknowledged.add(because)
