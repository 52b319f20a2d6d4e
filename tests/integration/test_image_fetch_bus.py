"""Several VMs load an image at once over a real nats-server, and their heartbeats get through."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from random import Random

from agent.store_images import StoreImages
from protocol.bus import Message
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from tests.support import images
from tests.support.nats import nats_server
from tests.support.waiting import until
from tests.unit.test_agent_images import LoadingEngine, put

VMS = 4
HEARTBEATS = 25
LARGE = images.image([images.layer({"large": Random(2).randbytes(12 * 1024 * 1024)})])


async def test_heartbeats_get_through_while_several_vms_fetch(tmp_path: Path) -> None:
    """Each VM's heartbeats, over the very connection that it fetches through, are heard one after the other while no
    fetch has ended; let go, all of them end with the image."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(nats_server(tmp_path))

        async def client(name: str) -> NatsBus:
            bus = await NatsBus.open(BusSettings((server.url,)), name)
            stack.push_async_callback(bus.close)
            await bus.wait_connected(15)
            return bus

        centre = await client("centre")
        await put(await centre.blobs("images", 1 << 30), "large:1", LARGE)
        heard: dict[str, int] = {}

        def hear(message: Message) -> None:
            heard[message.subject] = heard.get(message.subject, 0) + 1

        await centre.subscribe("hm.agent.heartbeat.*", hear)
        await centre.flush(5)
        buses = [await client(f"vm-{number}") for number in range(VMS)]
        engines = [LoadingEngine() for _ in buses]
        rate = 1024 * 1024
        stores = [
            StoreImages(bus.blob_reader("images"), engine, tmp_path / f"{number}", lambda: rate)
            for number, (bus, engine) in enumerate(zip(buses, engines, strict=True))
        ]
        fetching = [asyncio.create_task(store.fetch("large:1")) for store in stores]
        await until(lambda: all(store.fetched_bytes > 0 for store in stores), what="all fetch")
        for count in range(1, HEARTBEATS + 1):
            for number, bus in enumerate(buses):
                await bus.publish(f"hm.agent.heartbeat.vm-{number}", b"{}")

            def all_heard(count: int = count) -> bool:
                return list(heard.values()) == [count] * VMS

            await until(all_heard, what=f"heartbeat {count} of all")
        assert not any(task.done() for task in fetching)
        rate = 1 << 30
        assert await asyncio.gather(*fetching) == [LARGE.image_id] * VMS
