"""The image store from the command to an agent's right to read: real nats-server as `resurgam up` configures it, real
HTTP; operations are pretended."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from healthmonitor.alert_actions import AlertActions
from healthmonitor.api import Api, ApiParts, Role
from healthmonitor.api_server import ApiServer
from healthmonitor.disk_actions import DiskActions
from healthmonitor.embedded_nats import MONITOR_USER, EmbeddedNats
from healthmonitor.image_actions import ImageActions
from healthmonitor.image_store import ImageStore
from healthmonitor.journal import Journal
from healthmonitor.maintenance_actions import MaintenanceActions
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.monitors import Monitors
from healthmonitor.operator_actions import OperatorActions
from protocol.bus import BusUnavailable
from protocol.nats_bus import NatsBus
from protocol.settings import BusSettings
from protocol.subjects import IMAGE_STORE
from tests.contract.test_bus import read_whole
from tests.integration.test_api import MANIFEST, PretendedAgents, PretendedMonitor, PretendedOperations
from tests.support import images
from tests.support.cli import Outcome, at_api
from tests.support.debian_servers import listens, process
from tests.support.nats import free_port
from tests.support.waiting import until

LIMIT_BYTES = 8 * 1024 * 1024
BASE = images.layer({"bin/sh": bytes(range(256)) * 2048})  # half a MiB
ONE = images.image([BASE, images.layer({"one": b"1"})])
TWO = images.image([BASE, images.layer({"two": b"2"})])


@dataclass
class Site:
    url: str
    nats_url: str
    http: httpx.AsyncClient
    store: ImageStore
    journal: Journal
    monitor: PretendedMonitor
    directory: Path

    async def cli(self, *arguments: str) -> Outcome:
        return await asyncio.to_thread(at_api, self.url, self.directory, *arguments)

    async def listed(self) -> dict[str, Any]:
        return cast("dict[str, Any]", (await self.http.get("/v1/images")).json())

    async def events(self) -> list[tuple[str, str, str]]:
        found = await self.journal.last_events(100)
        return [(each.event.kind, each.event.subject, each.event.text) for each in found]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    nats = EmbeddedNats(tmp_path / "nats", free_port())
    passwords = nats.prepare()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(process(*nats.command(), environment={}))
        await until(lambda: listens(nats.port), what="nats-server")
        bus = await NatsBus.open(BusSettings((nats.url,), MONITOR_USER, passwords.monitor), "test-images")
        stack.push_async_callback(bus.close)
        await bus.wait_connected(10)
        journal = Journal(bus, lambda: 1000.0)
        await journal.open()
        monitor = PretendedMonitor()
        intake = ManifestIntake(journal, lambda: ["local"], lambda: {"local": ["demo"]})
        actions = OperatorActions(
            journal, PretendedOperations(journal), PretendedAgents(), monitor, intake, lambda: 1000.0
        )
        store = ImageStore(bus, tmp_path / "uploads", lambda: LIMIT_BYTES)
        parts = ApiParts(
            journal=journal,
            actions=actions,
            fleet=monitor,
            monitor=monitor,
            leader=monitor,
            manifests=intake,
            tokens=lambda: {"reads": Role.READER, "token": Role.ADMIN},
            signs_links=lambda: "token",
            alerts=cast("AlertActions", None),
            maintenance=cast("MaintenanceActions", None),
            monitors=cast("Monitors", None),
            images=ImageActions(store, journal, monitor, lambda: 1000.0),
            unix_time=lambda: 1000.0,
            disks=cast("DiskActions", None),
        )
        server = ApiServer(Api(parts).application(), "127.0.0.1", 0)
        serving = asyncio.create_task(server.run())
        url = f"http://127.0.0.1:{server.port}"
        http = httpx.AsyncClient(base_url=url, headers={"Authorization": "Bearer token"}, trust_env=False)
        stack.push_async_callback(http.aclose)
        yield Site(url, nats.url, http, store, journal, monitor, tmp_path)
        server.stop()
        await serving


async def test_a_pushed_image_is_what_an_agent_reads(site: Site) -> None:
    """Both formats; the agent, which comes in without a password, reads layers as they were, and may do nothing else
    with the store or with any other stream."""
    pushed = await site.cli("image", "push", str(images.docker_archive(site.directory / "one.tar", {"one:1": ONE})))
    assert pushed.code == 0, pushed.err
    oci = images.oci_archive(site.directory / "two.tar", "registry.example:5000/team/two:2", TWO)
    pushed = await site.cli("image", "push", str(oci))
    assert pushed.code == 0, pushed.err

    agent = await NatsBus.open(BusSettings((site.nats_url,)), "agent-1")
    try:
        await agent.wait_connected(10)
        reader = agent.blob_reader(IMAGE_STORE)
        named = json.loads(await read_whole(reader, "of/docker.io/library/one:1"))
        assert named["image_id"] == ONE.image_id
        image = json.loads(await read_whole(reader, f"image/{ONE.image_id}"))
        assert [await read_whole(reader, each["digest"]) for each in image["layers"]] == list(ONE.layers)
        assert await read_whole(reader, ONE.image_id) == ONE.config
        named = json.loads(await read_whole(reader, "of/registry.example:5000/team/two:2"))
        image = json.loads(await read_whole(reader, f"image/{named['image_id']}"))
        unpacked = [gzip.decompress(await read_whole(reader, each["digest"])) for each in image["layers"]]
        assert unpacked == list(TWO.layers)

        await asyncio.gather(
            refused(agent.request("$JS.API.STREAM.CREATE.OBJ_images", b"{}", 1.0)),
            refused(agent.request("$JS.API.STREAM.INFO.KV_instances", b"", 1.0)),
            refused(agent.request("$JS.API.STREAM.PURGE.OBJ_images", b"", 1.0)),
            refused(agent.request("$JS.API.STREAM.MSG.GET.OBJ_images", b'{"seq":1}', 1.0)),
            refused(agent.request("$JS.API.DIRECT.GET.KV_instances", b'{"seq":1}', 1.0)),
            refused(agent.request("$JS.API.CONSUMER.CREATE.OBJ_images", b"{}", 1.0)),
            refused(agent.request("$O.images.C.x", b"forged", 1.0)),
        )
        assert len((await site.listed())["images"]) == 2
    finally:
        await agent.close()


async def refused(asking: Any) -> None:
    """A server that does not let somebody publish says so beside the connection; the question has no answer."""
    with pytest.raises(BusUnavailable):
        await asking


async def test_layers_that_two_images_share_are_sent_and_kept_once(site: Site) -> None:
    """The second push sends what is new of it; pushed again, nothing."""
    await site.cli("image", "push", str(images.docker_archive(site.directory / "one.tar", {"one:1": ONE})))
    used = (await site.listed())["used_bytes"]
    second = await site.cli("image", "push", str(images.docker_archive(site.directory / "two.tar", {"two:2": TWO})))
    assert second.err.count("sending") == 2  # its own layer and its configuration
    assert (await site.listed())["used_bytes"] - used < len(BASE) // 4
    again = await site.cli("image", "push", str(site.directory / "two.tar"))
    assert (again.code, again.err.count("sending")) == (0, 0)


async def test_what_is_not_what_its_digest_says_is_not_stored(site: Site) -> None:
    """Wrong content, too little, too much, no length, no digest, an image whose blobs are not there: refused, and the
    store and the monitor's disk are as before."""
    wrong = images.digest(b"something else")
    replies = [
        await site.http.put(f"/v1/images/blobs/{wrong}", content=b"x" * 5000),
        await site.http.put("/v1/images/blobs/sha256:12", content=b"x"),
        await site.http.put(f"/v1/images/blobs/{wrong}", content=_pieces()),
        await site.http.post("/v1/images", json={"config": wrong, "layers": [wrong], "references": ["a:1"]}),
        await site.http.post("/v1/images", json={"config": wrong, "layers": [], "references": ["not a name"]}),
        await site.http.get("/v1/images", headers={"Authorization": "Bearer wrong"}),
        await site.http.put(f"/v1/images/blobs/{wrong}", content=b"x", headers={"Authorization": "Bearer reads"}),
    ]
    assert [reply.status_code for reply in replies] == [422, 422, 411, 422, 422, 401, 403]
    assert "the digest of what came is" in replies[0].json()["error"]
    assert "not in the store" in replies[3].json()["error"]
    cut_off = await _send_half(site, wrong)
    assert cut_off == b""
    assert (await site.listed())["images"] == []
    assert (await site.store.index()).blobs == {}
    assert list((site.directory / "uploads").iterdir()) == []


async def _pieces() -> AsyncIterator[bytes]:
    yield b"x"


async def _send_half(site: Site, digest: str) -> bytes:
    """An upload whose sender goes away in the middle."""
    port = httpx.URL(site.url).port
    assert port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"PUT /v1/images/blobs/{digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Length: 9999\r\n"
    )
    writer.write(f"{head}\r\n".encode() + b"x" * 5000)
    await writer.drain()
    writer.write_eof()
    said = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return said


def _head(digest: str, length: int) -> bytes:
    return (
        f"PUT /v1/images/blobs/{digest} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


async def test_a_full_store_says_so_and_what_to_do(site: Site) -> None:
    """Before a byte is sent; what is there stays, and prune makes room again."""
    await site.cli("image", "push", str(images.docker_archive(site.directory / "one.tar", {"one:1": ONE})))
    large = images.image([images.layer({"large": bytes(LIMIT_BYTES)})])
    full = await site.cli("image", "push", str(images.docker_archive(site.directory / "large.tar", {"large:1": large})))
    assert full.code == 1
    assert "the image store is full: it holds 0 MiB of 8 MiB, and 8 MiB more do not fit" in full.err
    assert "resurgam image prune" in full.err
    assert [image["names"] for image in (await site.listed())["images"]] == [["one:1"]]
    await site.cli("image", "prune", "--all", "--yes")
    assert (await site.store.index()).blobs == {}


async def test_what_a_deployment_names_is_not_deleted_and_not_pruned(site: Site) -> None:
    """Only by force and with a reason; everything is in the timeline."""
    both = images.docker_archive(site.directory / "both.tar", {"redis:7": ONE, "idle:1": TWO})
    assert (await site.cli("image", "push", str(both))).code == 0
    await site.http.put("/v1/deployments/shop", json={"manifest": MANIFEST})
    listed = await site.cli("image", "list")
    assert "redis:7" in listed.out
    assert "shop" in listed.out

    kept = await site.cli("image", "delete", "redis:7", "--yes")
    assert kept.code == 1
    assert "is used by shop" in kept.err
    assert (await site.cli("image", "delete", "redis:7", "--yes", "--force")).code == 1  # no reason
    pruned = await site.cli("image", "prune", "--all", "--yes")
    assert pruned.code == 0, pruned.err
    assert "1 image, 1 name, 2 blobs" in pruned.out
    assert [image["names"] for image in (await site.listed())["images"]] == [["redis:7"]]
    forced = await site.cli("image", "delete", "redis:7", "--yes", "--force", "--because", "moved to a registry")
    assert forced.code == 0, forced.err
    assert (await site.listed())["images"] == []
    assert (await site.cli("image", "delete", "redis:7", "--yes")).code == 2
    kinds = [(kind, text) for kind, _, text in await site.events() if kind.startswith("image.")]
    assert [kind for kind, _ in kinds] == ["image.pushed", "image.pushed", "image.pruned", "image.deleted"]
    assert kinds[-1][1].endswith(": moved to a registry")


async def test_a_name_that_moves_leaves_the_old_image_for_those_who_are_pinned_to_it(site: Site) -> None:
    """redis:7 is pushed anew: the name is of the new image, the old one stays until it is pruned."""
    await site.cli("image", "push", str(images.docker_archive(site.directory / "one.tar", {"redis:7": ONE})))
    await site.cli("image", "push", str(images.docker_archive(site.directory / "two.tar", {"redis:7": TWO})))
    index = await site.store.index()
    assert set(index.images) == {ONE.image_id, TWO.image_id}
    found = index.find("redis:7")
    assert found is not None
    assert found.image_id == TWO.image_id


async def test_one_who_does_not_lead_changes_nothing(site: Site) -> None:
    """It says who does; looking is possible everywhere."""
    site.monitor.leads = False
    reply = await site.http.put(f"/v1/images/blobs/{images.digest(b'x')}", content=b"x")
    assert (reply.status_code, reply.json()["kind"]) == (409, "not_leading")
    assert (await site.http.get("/v1/images")).status_code == 200


async def test_more_than_may_come_at_once_is_told_to_wait(site: Site) -> None:
    """Uploads that stand still take places; one more is refused at once instead of piling up."""
    port = httpx.URL(site.url).port
    assert port is not None
    writers = []
    for number in range(4):
        content = f"slow {number}".encode() * 100
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(_head(images.digest(content), len(content)) + content[:10])
        writers.append(writer)
    await until(lambda: site.store._places.locked(), what="all places taken")
    reply = await site.http.put(f"/v1/images/blobs/{images.digest(b'x')}", content=b"x")
    assert reply.status_code == 429
    for writer in writers:
        writer.close()

    async def accepted() -> bool:
        reply = await site.http.put(f"/v1/images/blobs/{images.digest(b'x')}", content=b"x")
        return reply.status_code == 201

    await until(accepted, what="a place is free again")
    assert await read_whole(await site.store._opened(), images.digest(b"x")) == io.BytesIO(b"x").read()
