"""Images on a real Docker Engine: from the store on a real nats-server, and from a real registry with login and TLS."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent import registries
from agent.docker import DockerEngine
from agent.engine import ImageMissing
from agent.images import Images
from agent.store_images import StoreImages
from protocol import codec
from protocol.bus import Blobs
from protocol.ids import AgentId, ContainerName
from protocol.images import StoredImage, StoredLayer, StoredReference, digest_of, image_name, normalised, reference_name
from protocol.nats_bus import NatsBus
from protocol.settings import AgentSettings, BusSettings, RegistrySettings
from protocol.spec import ContainerSpec, ImagePin, PullPolicy
from tests.support import images
from tests.support.certificates import make_authority
from tests.support.dockerd import IMAGE, SECOND_IMAGE, OwnDocker, own_docker, root_file_system
from tests.support.images import MadeImage
from tests.support.nats import nats_server
from tests.support.registry import ADDRESS, PASSWORD, Registry, login, own_address, registry
from tests.support.waiting import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

BASE = root_file_system("base")
ONE = images.image([BASE, images.layer({"one": b"1"})], ("sleep", "1000"))
TWO = images.image([BASE, images.layer({"two": b"2"})], ("sleep", "1000"))


@pytest.fixture(scope="module")
def docker() -> Iterator[OwnDocker]:
    with own_docker() as docker:
        yield docker


class Site:
    def __init__(self, engine: DockerEngine, blobs: Blobs, store: StoreImages) -> None:
        self.engine = engine
        self.blobs = blobs
        self.store = store
        self.images = Images(engine, lambda: store)


@pytest.fixture
async def site(docker: OwnDocker, tmp_path: Path) -> AsyncIterator[Site]:
    async with nats_server(tmp_path) as server:
        bus = await NatsBus.open(BusSettings((server.url,)), "images")
        await bus.wait_connected(15)
        engine = docker.engine()
        blobs = await bus.blobs("images", 1 << 30)
        yield Site(engine, blobs, StoreImages(bus.blob_reader("images"), engine, tmp_path / "images", lambda: 1 << 30))
        await bus.close()
        docker.remove_all()
        for made in (ONE, TWO):
            docker.docker("rmi", "-f", made.image_id, check=False)


async def put(blobs: Blobs, name: str, made: MadeImage) -> None:
    """As a push leaves it."""
    for layer in made.layers:
        await blobs.put(images.digest(layer), io.BytesIO(layer))
    await blobs.put(made.image_id, io.BytesIO(made.config))
    layers = tuple(StoredLayer(images.digest(each), len(each), images.digest(each)) for each in made.layers)
    record = StoredImage(made.image_id, len(made.config), layers)
    await blobs.put(image_name(made.image_id), io.BytesIO(codec.to_json(record)))
    named = StoredReference(normalised(name), made.image_id)
    await blobs.put(reference_name(name), io.BytesIO(codec.to_json(named)))


async def test_an_engine_that_lost_its_images_gets_them_from_the_store(site: Site, docker: OwnDocker) -> None:
    """Whole, with its id and name; of the second image only what is new; and containers run of both."""
    await put(site.blobs, "one:1", ONE)
    await put(site.blobs, "two:2", TWO)
    assert not await site.engine.image_present("one:1")
    assert await site.store.fetch("one:1") == ONE.image_id
    first = site.store.fetched_bytes
    assert await site.store.fetch("two:2") == TWO.image_id
    assert site.store.fetched_bytes - first < len(BASE) // 10
    for name, image in (("aa", "one:1"), ("bb", "two:2")):
        container = ContainerSpec(ContainerName(name), image, network_mode="none")
        await site.engine.start(await site.engine.create("shop/db/0", container, {}))
    seen = {each.name: each.image_id for each in await site.engine.look()}
    assert seen == {"aa": ONE.image_id, "bb": TWO.image_id}


async def test_a_pinned_container_runs_the_image_that_its_name_no_longer_means(site: Site, docker: OwnDocker) -> None:
    """The name has moved to another image, here and in the store; the pin is honoured all the same."""
    await put(site.blobs, "one:1", ONE)
    await put(site.blobs, "one:1", TWO)
    await site.store.fetch("one:1")
    pin = ImagePin("one:1", ONE.image_id)
    said = await site.images.provide("one:1", PullPolicy.MISSING, pin)
    assert said == "one:1 from the image store"
    spec = ContainerSpec(ContainerName("aa"), "one:1", network_mode="none", pinned=pin)
    await site.engine.start(await site.engine.create("shop/db/0", await site.images.settled(spec), {}))
    (seen,) = await site.engine.look()
    assert (seen.image_id, seen.image_digest) == (ONE.image_id, "")


async def test_a_registry_that_is_not_there_gives_way_to_the_store(site: Site) -> None:
    """Its port refuses; the image is had all the same, and without the store the error names both places."""
    await put(site.blobs, "127.0.0.1:1/one:1", ONE)
    said = await site.images.provide("127.0.0.1:1/one:1", PullPolicy.MISSING)
    assert said == "127.0.0.1:1/one:1 from the image store"
    with pytest.raises(ImageMissing, match=r"its registry: .*refused.*; the image store: does not have"):
        await site.images.provide("127.0.0.1:1/other:1", PullPolicy.ALWAYS)


async def test_images_of_the_engine_are_known_by_their_layers(docker: OwnDocker) -> None:
    """What the two images of the tests have in common with one that shares no layer: nothing."""
    layers = await docker.engine().image_layers()
    assert len(layers) >= 2
    assert all(each and each[0].startswith("sha256:") for each in layers)
    assert await docker.engine().image_present(IMAGE)
    assert await docker.engine().image_present(SECOND_IMAGE)
    assert not await docker.engine().image_present("nothing:1")


async def test_a_registry_with_login_and_authority_a_name_that_moves_and_the_store_when_it_is_gone(
    site: Site, docker: OwnDocker, tmp_path: Path
) -> None:
    """Without its authority, without a login and with a wrong one a pull says why; with both it gives the image and its
    digest. Pushed anew under the same name, the pin gives the old one. Ended, the store gives what it has."""
    tls = make_authority(tmp_path / "tls", address=ADDRESS)
    certificates = Path("/etc/docker/certs.d")
    with own_address():
        async with registry(tmp_path / "registry", tls) as server:
            name = f"{server.host}/team/one:1"
            with pytest.raises(ImageMissing, match="certificate signed by unknown authority"):
                await site.engine.pull(name)
            try:
                told = AgentSettings(AgentId("a"), BusSettings(())).with_registries(
                    RegistrySettings(server.auth, (), {server.host: tls.ca_file.read_text()})
                )
                registries.write(told)
                for auth in ({}, login(server.host, "wrong")):
                    site.engine.login(auth)
                    with pytest.raises(ImageMissing) as refused:
                        await site.engine.pull(name)
                    assert "no basic auth credentials" in str(refused.value) or "unauthorized" in str(refused.value)
                    assert "wrong" not in str(refused.value)
                site.engine.login(told.registry_auth)
                push(docker, tmp_path, server, name, ONE)
                assert await site.images.provide(name, PullPolicy.MISSING) == f"{name} from its registry"
                container = ContainerSpec(ContainerName("aa"), name, network_mode="none")
                await site.engine.start(await site.engine.create("shop/db/0", container, {}))
                (seen,) = await site.engine.look()
                assert seen.image_id == ONE.image_id
                assert seen.image_digest.startswith(f"{server.host}/team/one@sha256:")
                assert PASSWORD not in docker.docker("inspect", "aa").stdout.decode()

                docker.remove_all()
                docker.docker("rmi", "-f", ONE.image_id)
                push(docker, tmp_path, server, name, TWO)
                pin = ImagePin(name, ONE.image_id, digest_of(seen.image_digest))
                assert await site.images.provide(name, PullPolicy.MISSING, pin) == f"{name} from its registry"
                assert await site.engine.image_present(ONE.image_id)
            finally:
                registries.write(AgentSettings(AgentId("a"), BusSettings(())))
                with contextlib.suppress(OSError):
                    (certificates / server.host).rmdir()
        docker.docker("rmi", "-f", ONE.image_id)
        await put(site.blobs, name, ONE)
        assert await site.images.provide(name, PullPolicy.MISSING, pin) == f"{name} from the image store"
        assert await site.engine.image_present(ONE.image_id)


async def test_an_image_of_docker_hub_comes_from_the_mirror(site: Site, docker: OwnDocker, tmp_path: Path) -> None:
    """Told to the engine while it runs, in its configuration: the name stays the one of Docker Hub, which cannot be
    reached; taken away again, nobody gives the image any more."""
    tls = make_authority(tmp_path / "tls", address=ADDRESS)
    certificates = Path("/etc/docker/certs.d")
    with own_address():
        async with registry(tmp_path / "registry", tls, asks_for_login=False) as server:
            authorities = {server.host: tls.ca_file.read_text()}
            told = AgentSettings(AgentId("a"), BusSettings(())).with_registries(
                RegistrySettings({}, (f"https://{server.host}",), authorities)
            )
            try:
                registries.write(told)  # the authority, where each engine of this machine looks for it
                push(docker, tmp_path, server, f"{server.host}/library/mirrored:1", ONE)
                await told_to(docker, told)
                assert await site.images.provide("mirrored:1", PullPolicy.MISSING) == "mirrored:1 from its registry"
                container = ContainerSpec(ContainerName("aa"), "mirrored:1", network_mode="none")
                await site.engine.start(await site.engine.create("shop/db/0", container, {}))
                (seen,) = await site.engine.look()
                assert seen.image_id == ONE.image_id
                docker.remove_all()
                docker.docker("rmi", "-f", ONE.image_id)
            finally:
                registries.write(AgentSettings(AgentId("a"), BusSettings(())))
                with contextlib.suppress(OSError):
                    (certificates / server.host).rmdir()
            await told_to(docker, AgentSettings(AgentId("a"), BusSettings(())))
            with pytest.raises(ImageMissing):
                await site.images.provide("mirrored:1", PullPolicy.ALWAYS)


async def told_to(docker: OwnDocker, settings: AgentSettings) -> None:
    """As the agent does it: written down, and the engine asked to read it again."""
    assert registries.write(settings, docker.directory)
    await docker.daemon.reload()
    wanted = [f"{each}/" for each in settings.registry_mirrors]

    def known() -> bool:
        said = docker.docker("info", "--format", "{{json .RegistryConfig.Mirrors}}").stdout
        return (json.loads(said) or []) == wanted

    await until(known, 15, f"the engine's mirrors are {wanted}")


def push(docker: OwnDocker, directory: Path, server: Registry, name: str, made: MadeImage) -> None:
    """With the engine's own client, whose login stays in the test's directory, and without leaving the image here."""
    archive = images.docker_archive(directory / "push.tar", {name: made})
    client = directory / "client"
    client.mkdir(exist_ok=True)
    (client / "config.json").write_text(json.dumps(server.auth))
    docker.docker("load", "-i", str(archive))
    docker.docker("--config", str(client), "push", name)
    docker.docker("rmi", "-f", made.image_id)
