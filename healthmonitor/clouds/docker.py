"""The cloud `docker`: a container with systemd and its own Docker Engine as the VM, on the engine of this machine.

Law: the container is the VM. It is never started a second time; whoever wants the instance back makes a new one.
Proof of fencing is what this engine says of the container it ran (not running, no process), with the loop devices of
its disks let go; an engine that cannot be reached proves nothing.

For tests and small machines: it starts in a second. Its walls are a container's, see docker_options.py.

Does not know: instances; what runs inside.
"""

from __future__ import annotations

import asyncio
import functools
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
import structlog
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig

from healthmonitor.clouds import docker_options, guest_settings
from healthmonitor.clouds.bus_forward import BusForward
from healthmonitor.clouds.cloud import (
    CloudRefused,
    CloudUnavailable,
    DiskRequest,
    DiskSummary,
    FenceProof,
    Power,
    Unfenced,
    VmObservation,
    VmRequest,
    VmSummary,
)
from healthmonitor.clouds.docker_disks import DockerPlugs
from healthmonitor.clouds.docker_snapshots import DockerSnapshots
from healthmonitor.clouds.local_disks import LocalDisks
from healthmonitor.clouds.local_store import LocalStore, Stage, Tombstone, VmRecord
from healthmonitor.clouds.local_vms import CREATE_SECONDS, LOCK_SECONDS, LocalVms, deadline, require_fenced
from healthmonitor.clouds.stemcell import Stemcell, load
from healthmonitor.core.disk_changes import DiskAbilities, Growth
from protocol.ids import CloudName, DiskCid, VmCid

log = structlog.get_logger(__name__)

CALL_SECONDS = 20.0
OBSERVE_SECONDS = 3.0
IMPORT_SECONDS = 180.0
FENCE_SECONDS = 30.0
POLL_SECONDS = 0.05
LABEL_CLOUD = "org.resurgam.cloud"
LABEL_VM = "org.resurgam.vm"
LABEL_KEY = "org.resurgam.key"
DISK_ABILITIES = DiskAbilities({"ext4": Growth.UNMOUNTED, "xfs": Growth.MOUNTED}, snapshots=True)
"""A mounted ext4 grows only for who has SYS_RESOURCE, which is not given (docker_options.py)."""
T = TypeVar("T")

_POWER = {
    "created": Power.STARTING,
    "running": Power.RUNNING,
    "paused": Power.PAUSED,
    "restarting": Power.STARTING,
    "removing": Power.STOPPING,
    "exited": Power.OFF,
}
"""Docker's states. `dead` (could not be removed) says nothing of its processes, so it is unknown."""


@dataclass(frozen=True, slots=True)
class DockerOptions:
    directory: Path
    stemcells: Path
    docker_host: str = ""  # "": DOCKER_HOST or the usual socket
    network: str = "bridge"
    bus_host: str = "auto"  # auto: the network's gateway, with a forwarder to this machine's loopback


class DockerCloud:
    def __init__(self, name: CloudName, options: DockerOptions) -> None:
        self._name = name
        self._options = options
        self._store = LocalStore(options.directory)
        self._vms = LocalVms(name, self._store)
        self._plugs = DockerPlugs(self._store, self._pid)
        self._disks = LocalDisks(self._store, self._plugs)
        self._snapshots = DockerSnapshots(self._store, self._plugs, self._pid)
        self._forward = BusForward(options.directory)
        self._client: docker.APIClient | None = None

    @property
    def name(self) -> CloudName:
        return self._name

    @property
    def disk_abilities(self) -> DiskAbilities:
        return DISK_ABILITIES

    async def create_vm(self, request: VmRequest) -> VmCid:
        stemcell = load(self._options.stemcells, request.stemcell)
        if request.cloud_properties:
            raise CloudRefused(
                f"unknown cloud_properties {', '.join(sorted(request.cloud_properties))}; none are known here"
            )
        return await self._vms.create(request, stemcell, self._complete)

    async def find_vm(self, key: str) -> VmCid | None:
        return self._vms.find(key)

    async def observe(self, vm: VmCid) -> VmObservation:
        record = self._store.read_vm(vm)
        if record is None:
            return self._vms.unrecorded(vm)
        try:
            state = await self._state(vm, OBSERVE_SECONDS)
        except CloudUnavailable as error:
            return VmObservation(Power.UNKNOWN, str(error))
        if state is None:
            if record.stage is Stage.CREATING and self._store.read_proof(vm) is None:
                return VmObservation(Power.STARTING, "being created; it has no container yet")
            if self._store.read_proof(vm) is not None:
                return VmObservation(Power.OFF, "fenced before it had a container")
            return VmObservation(Power.GONE, "the engine has no such container")
        power = _POWER.get(str(state["Status"]), Power.UNKNOWN)
        if power in (Power.OFF, Power.STARTING) and state.get("Pid"):
            power = Power.UNKNOWN
        if power is Power.STARTING and self._store.read_proof(vm) is not None:
            power = Power.OFF  # a container that was made, never started, and never will be
        return VmObservation(power, f"the engine says {state['Status']}, pid {state.get('Pid', 0)}")

    async def fence(self, vm: VmCid) -> FenceProof | Unfenced:
        proof = self._store.read_proof(vm)
        if proof is not None:
            return FenceProof(vm, proof.evidence)
        record = self._store.read_vm(vm)
        if record is None:
            return self._vms.unknown(vm)
        try:
            async with deadline(f"fencing {vm}", FENCE_SECONDS):
                await self._kill(vm)
                async with self._store.locked(vm, FENCE_SECONDS):
                    state = await self._kill(vm)
                    if state is None and record.stage is Stage.CREATED:
                        raise CloudUnavailable(f"the engine has no container of {vm}, which it once ran")
                    await self._plugs.release_all(self._store.read_vm(vm) or record)
                    says = (
                        f"engine {await self._engine_id()} says {state['Status']}, no process"
                        if state
                        else "it never had a container"
                    )
                    evidence = f"{says}; loop devices of its disks are released"
                    await self._store.write_proof(vm, evidence)
                    log.info("vm.fenced", cloud=self._name, vm=vm, evidence=evidence)
                    return FenceProof(vm, evidence)
        except (CloudUnavailable, OSError) as error:
            return Unfenced(vm, f"{error}; see to its engine and fence again, or vouch for it")

    async def delete_vm(self, vm: VmCid) -> None:
        directory = self._store.vm_directory(vm)
        record = self._store.read_vm(vm)
        if record is None and not _exists(directory):
            return
        if record is not None:
            require_fenced(vm, await self.fence(vm))
        async with deadline(f"deleting {vm}", CREATE_SECONDS), self._store.locked(vm, LOCK_SECONDS):
            await self._call(functools.partial(_remove, vm), CALL_SECONDS)
            proof = self._store.read_proof(vm)
            if proof is not None and _exists(directory):
                await self._store.bury_vm(Tombstone(vm, proof.key, proof.evidence))
        if not self._store.vms():
            await self._forward.stop()

    async def list_vms(self) -> list[VmSummary]:
        if self._store.vms():
            try:
                await self._bus_host()  # the forwarder is seen to
            except CloudUnavailable as error:
                log.warning("bus_forward.not_seen_to", cloud=self._name, reason=str(error))
        return await self._vms.summaries(self.observe)

    async def create_disk(self, request: DiskRequest) -> DiskCid:
        return await self._disks.create(request)

    async def delete_disk(self, disk: DiskCid) -> None:
        await self._disks.delete(disk)

    async def list_disks(self) -> list[DiskSummary]:
        return await self._disks.list()

    async def attach_disk(self, vm: VmCid, disk: DiskCid) -> str:
        return await self._disks.attach(vm, disk)

    async def detach_disk(self, vm: VmCid, disk: DiskCid) -> None:
        await self._disks.detach(vm, disk)

    async def disk_holders(self, disk: DiskCid) -> frozenset[VmCid]:
        return await self._disks.holders(disk)

    async def resize_disk(self, disk: DiskCid, size_mib: int) -> None:
        await self._disks.resize(disk, size_mib)

    async def snapshot_disk(self, disk: DiskCid, request: DiskRequest) -> DiskCid:
        return await self._snapshots.take(disk, request)

    async def drop_snapshot(self, key: str) -> None:
        await self._snapshots.drop(key)

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
            self._client = None

    async def freeze_vm(self, vm: VmCid) -> None:
        """For drills and tests: nothing inside executes until it is thawed."""
        await self._call(lambda client: client.pause(vm), CALL_SECONDS)

    async def thaw_vm(self, vm: VmCid) -> None:
        await self._call(lambda client: client.unpause(vm), CALL_SECONDS)

    async def _complete(self, record: VmRecord, request: VmRequest) -> None:
        """From whatever an interrupted creation left, to a container that runs."""
        stemcell = load(self._options.stemcells, record.stemcell)
        state = await self._state(record.cid, CALL_SECONDS)
        if state is not None and state["Status"] != "created":
            return
        bus_host = await self._bus_host(request.settings.bus.urls)
        settings = guest_settings.for_guest(request.settings, record.cid, bus_host)
        image = await self._image(stemcell)
        if state is None:
            await self._call(lambda client: self._create(client, record, image), CALL_SECONDS)
        await self._call(lambda client: _put_settings(client, record.cid, settings), CALL_SECONDS)
        await self._call(lambda client: client.start(record.cid), CALL_SECONDS)

    def _create(self, client: docker.APIClient, record: VmRecord, image: str) -> None:
        labels = {LABEL_CLOUD: str(self._name), LABEL_VM: str(record.cid), LABEL_KEY: record.key}
        volume = f"{record.cid}-engine"
        client.create_volume(volume, labels=labels)
        host = client.create_host_config(
            cap_drop=["ALL"],
            cap_add=list(docker_options.CAPABILITIES),
            security_opt=list(docker_options.SECURITY_OPTIONS),
            device_cgroup_rules=[docker_options.LOOP_DEVICES],
            tmpfs=docker_options.TMPFS,
            binds=[f"{volume}:{docker_options.ENGINE_STATE}"],
            mem_limit=f"{record.memory_mib}m",
            nano_cpus=record.cpus * 1_000_000_000,
            network_mode=self._options.network,
            restart_policy={"Name": "no"},
            log_config=LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
        )
        host["CgroupnsMode"] = "private"
        # What `--security-opt systempaths=unconfined` means: systemd and the inner engine set up /proc and /sys.
        host["MaskedPaths"], host["ReadonlyPaths"] = [], []
        client.create_container(
            image,
            command=["-c", docker_options.START],
            entrypoint=["/bin/sh"],
            name=record.cid,
            hostname=record.cid,
            environment={"container": "docker"},
            labels=labels,
            stop_signal=docker_options.STOP_SIGNAL,
            tty=True,
            host_config=host,
        )

    async def _image(self, stemcell: Stemcell) -> str:
        """The stemcell as an image of the engine, imported unless it is there."""
        tag = stemcell.manifest.digest
        repository = f"resurgam-stemcell/{stemcell.manifest.name}"
        image = f"{repository}:{tag}"

        def present(client: docker.APIClient) -> bool:
            try:
                client.inspect_image(image)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return False
            return True

        def bring_in(client: docker.APIClient) -> None:
            client.import_image_from_file(str(stemcell.rootfs), repository=repository, tag=tag)

        async with self._store.locked(f"image-{tag}", IMPORT_SECONDS):
            if not await self._call(present, CALL_SECONDS):
                await self._call(bring_in, IMPORT_SECONDS)
                if not await self._call(present, CALL_SECONDS):
                    raise CloudUnavailable(f"{image} was given to the engine, which does not have it; try again")
        return image

    async def _bus_host(self, urls: tuple[str, ...] = ()) -> str:
        """The address at which containers reach this machine's loopback; forwarders for the ports in `urls`."""
        if self._options.bus_host != "auto":
            return self._options.bus_host
        gateway = await self._call(self._gateway, CALL_SECONDS)
        if gateway:
            await self._forward.ensure(gateway, guest_settings.loopback_ports(urls))
        return gateway

    def _gateway(self, client: docker.APIClient) -> str:
        network = client.inspect_network(self._options.network)
        for pool in network.get("IPAM", {}).get("Config") or ():
            if pool.get("Gateway"):
                return str(pool["Gateway"]).partition("/")[0]
        return ""

    async def _state(self, vm: VmCid, timeout_seconds: float) -> dict[str, Any] | None:
        def read(client: docker.APIClient) -> dict[str, Any] | None:
            try:
                return dict(client.inspect_container(vm)["State"])
            except NotFound:
                return None

        return await self._call(read, timeout_seconds)

    async def _pid(self, vm: VmCid) -> int:
        """Of the VM's first process as this machine sees it; 0 when there is none."""
        state = await self._state(vm, CALL_SECONDS)
        return int(state.get("Pid") or 0) if state is not None else 0

    async def _kill(self, vm: VmCid) -> dict[str, Any] | None:
        """Its state once it has no process; None when there is no container."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FENCE_SECONDS
        while True:
            state = await self._state(vm, CALL_SECONDS)
            if state is None or (not state["Running"] and not state.get("Pid")):
                return state
            if loop.time() > deadline:
                raise CloudUnavailable(f"{vm} still has process {state.get('Pid')} {FENCE_SECONDS:g} s after SIGKILL")
            await self._call(functools.partial(_kill, vm), CALL_SECONDS)
            await asyncio.sleep(POLL_SECONDS)

    async def _engine_id(self) -> str:
        return str(await self._call(lambda client: client.info()["ID"], CALL_SECONDS))

    async def _call(self, work: Callable[[docker.APIClient], T], timeout_seconds: float) -> T:
        """In a thread, with a deadline. What the engine refuses is CloudRefused, everything else CloudUnavailable."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.to_thread(self._work, work)
        except TimeoutError:
            raise CloudUnavailable(f"the Docker engine did not answer within {timeout_seconds:g} s") from None
        except APIError as error:
            if error.is_client_error() and error.status_code not in (409, 429):
                raise CloudRefused(f"the Docker engine refused: {error.explanation}") from None
            raise CloudUnavailable(f"the Docker engine: {error.explanation}") from None
        except (DockerException, requests.RequestException, OSError) as error:
            raise CloudUnavailable(f"the Docker engine cannot be reached: {error}") from None

    def _work(self, work: Callable[[docker.APIClient], T]) -> T:
        if self._client is None:
            kwargs: dict[str, Any] = {"timeout": IMPORT_SECONDS, "version": "auto"}
            if self._options.docker_host:
                kwargs["base_url"] = self._options.docker_host
            self._client = docker.APIClient(**kwargs)
        return work(self._client)


def _remove(vm: VmCid, client: docker.APIClient) -> None:
    try:
        client.remove_container(vm, force=True, v=True)
    except NotFound:
        log.debug("container.not_there", vm=vm)
    try:
        client.remove_volume(f"{vm}-engine")
    except NotFound:
        log.debug("volume.not_there", vm=vm)


def _kill(vm: VmCid, client: docker.APIClient) -> None:
    try:
        client.kill(vm, "SIGKILL")
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or not running: what the next look will say
            raise


def _put_settings(client: docker.APIClient, vm: VmCid, settings: bytes) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for parent in list(Path(docker_options.SETTINGS_PATH).parents)[-2::-1]:
            entry = tarfile.TarInfo(str(parent))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        entry = tarfile.TarInfo(docker_options.SETTINGS_PATH)
        entry.size, entry.mode = len(settings), 0o600
        archive.addfile(entry, io.BytesIO(settings))
    client.put_archive(vm, "/", content.getvalue())


def _exists(path: Path) -> bool:
    return path.exists()
