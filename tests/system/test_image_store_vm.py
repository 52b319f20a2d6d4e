"""No registry answers: a VM and the one that replaces it get their images from the store on the bus."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from tests.support import images, vms
from tests.support.centre import Centre
from tests.support.cli import at_api
from tests.support.clouds import OwnEngine
from tests.support.dockerd import root_file_system
from tests.support.images import MadeImage
from tests.system.test_container_vm_life import BRIDGE, container_site, own_bridge

pytestmark = [pytest.mark.vm, pytest.mark.timeout(420)]

INSTANCE = "kept/db/0"
IMAGE = "127.0.0.1:1/app:1"
"""On a VM nobody listens there: its registry is gone."""
MANIFEST = """
name: kept
stemcell: demo
cloud: local
instance_groups:
  - name: db
    instances: 1
    vm: {cpus: 1, memory: 512MiB}
    persistent_disks: {data: 64MiB}
    containers:
      app:
        image: "127.0.0.1:1/app:1"
        command: ["sh", "-c", "cat /etc/marker >> /data/starts; echo >> /data/starts; sleep 100000"]
        volumes: ["data:/data"]
        healthcheck: {test: ["CMD", "test", "-s", "/data/starts"], interval: 1s}
        stop_grace_period: 1s
"""


async def test_registry_gone_a_killed_vm_is_rebuilt_from_the_store_and_runs_the_very_image(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The name has moved in the store before the VM is killed: the rebuilt one runs the old image all the same, with
    its data; a deploy that changes the container then takes the new one."""
    await asyncio.to_thread(vms.build_stemcell)
    tmp_path = tmp_path_factory.mktemp("store")  # short: sockets are in it
    old, new = (images.image([root_file_system(name)], ("sh",)) for name in ("old", "new"))
    with own_bridge():
        engine = OwnEngine(tmp_path / "engine", bridge=BRIDGE)
        try:
            async with container_site(tmp_path, engine) as site:
                await push(site, tmp_path, old)
                await site.deploy(MANIFEST, "kept")
                first = await site.running(INSTANCE, 180)
                assert await image_of(site, engine) == old.image_id
                await push(site, tmp_path, new)

                client = engine.client()
                client.kill(first["vm"]["vm_cid"], "SIGKILL")
                client.close()
                await site.running(INSTANCE, 180, generation=first["generation"] + 1)
                assert await image_of(site, engine) == old.image_id
                assert (await inside(site, engine, "exec", "app", "cat", "/data/starts")).split() == ["old", "old"]

                refused = await site.http.post("/v1/images/delete", json={"image": old.image_id})
                assert (refused.status_code, refused.json()["kind"]) == (409, "not_possible")

                await site.deploy(MANIFEST.replace("image:", "labels: {round: second}\n        image:"), "kept")
                await site.waits_for(INSTANCE, lambda view: view["deployment_revision"] == 2, "moved", 60)
                await site.running(INSTANCE, 120)
                assert await image_of(site, engine) == new.image_id
        finally:
            engine.close()


async def push(site: Centre, directory: Path, made: MadeImage) -> None:
    archive = images.docker_archive(directory / "image.tar", {IMAGE: made})
    token = str(site.http.headers["authorization"]).removeprefix("Bearer ")
    done = await asyncio.to_thread(
        at_api, str(site.http.base_url), directory, "image", "push", str(archive), token=token
    )
    assert done.code == 0, done.err


async def image_of(site: Centre, engine: OwnEngine) -> str:
    """By the word of the engine in the VM."""
    (found,) = json.loads(await inside(site, engine, "inspect", "app"))
    return str(found["Image"])


async def inside(site: Centre, engine: OwnEngine, *command: str) -> str:
    vm = (await site.instance(INSTANCE))["vm"]["vm_cid"]
    done = await asyncio.to_thread(
        subprocess.run,
        ("docker", "-H", engine.host, "exec", vm, "docker", *command),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()
