"""The real engine: the Docker SDK's calls in threads, each with a deadline.

Laws: those of the port (agent/engine.py). The engine's own restart policy is always `no`. Looking is cheap: one list,
and an inspection only of containers whose line in it changed.

Does not know: when to do what (agent/core/reconcile.py); how a container's options look on the wire
(agent/docker_options.py).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote

import docker.auth
import docker.errors
import docker.utils
import requests.exceptions
import structlog
import urllib3.exceptions
from docker import APIClient

from agent.deadline_threads import DeadlineThreads, NotInTime, deliver
from agent.docker_options import container_options, instance_network, networks_of
from agent.engine import (
    LABEL_CONTAINER,
    LABEL_HASH,
    LABEL_IMAGE,
    LABEL_INSTANCE,
    ActualContainer,
    EngineError,
    EngineEvent,
    EngineRefused,
    EngineUnavailable,
    Health,
    ImageMissing,
    PortInUse,
    Probe,
    Status,
)
from protocol.ids import ContainerName
from protocol.images import repository_of
from protocol.spec import ContainerSpec, spec_hash

log = structlog.get_logger(__name__)

T = TypeVar("T")

LABEL_NETWORKS = "org.resurgam.networks"
EVENTS = ("create", "start", "die", "oom", "destroy", "health_status", "pause", "unpause", "rename")
"""Health checks make exec events all the time; those are not asked for."""
PROBE_PATH = "/containers/json?filters=" + quote(json.dumps({"label": [LABEL_INSTANCE]}))
NEVER_STARTED = "0001-01-01"
EVENTS_QUEUE_MAX = 1000
"""Hints beyond this are dropped: one hint is as good as a thousand."""
LOGS_MAX_BYTES = 512 * 1024
DIGESTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class EngineLimits:
    probe_seconds: float = 3.0
    look_seconds: float = 10.0
    inspect_seconds: float = 3.0
    """One container that hangs must not make the whole engine look hung."""
    action_seconds: float = 180.0
    """create, start, remove; stop: this and its grace. Long, because a slow VM's engine takes its time and asking again
    only adds to its work; whether the engine lives at all is the probe's question."""
    call_seconds: float = 60.0
    """The rest: is an image here, logs, opening the stream of events."""
    pull_silence_seconds: float = 120.0
    """Without any progress; a pull as a whole may take as long as it moves."""
    pull_longest_seconds: float = 6 * 3600.0
    look_threads_max: int = 4
    action_threads_max: int = 24
    probe_threads_max: int = 3


class DockerEngine:
    def __init__(
        self,
        socket_path: str = "/var/run/docker.sock",
        registry_auth: Mapping[str, Any] | None = None,
        limits: EngineLimits | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._limits = limits or EngineLimits()
        self._auth = docker.auth.load_config(config_dict=dict(registry_auth or {}))
        self._client: APIClient | None = None
        self._client_lock = threading.Lock()
        self._network_lock = threading.Lock()
        self._inspected: dict[str, tuple[str, ActualContainer]] = {}
        self._digests: dict[str, tuple[str, ...]] = {}  # image id → its names by digest
        self._look_threads = DeadlineThreads("docker look", self._limits.look_threads_max)
        self._action_threads = DeadlineThreads("docker action", self._limits.action_threads_max)
        self._probe_threads = DeadlineThreads("docker probe", self._limits.probe_threads_max)

    def login(self, registry_auth: Mapping[str, Any]) -> None:
        """From now on, of pulls. Docker's config format."""
        self._auth = docker.auth.load_config(config_dict=dict(registry_auth))

    async def probe(self) -> Probe:
        seconds = self._limits.probe_seconds
        try:
            return await self._probe_threads.call(seconds, lambda: _probe(self._socket_path, seconds))
        except NotInTime:
            return Probe.SILENT

    async def look(self) -> tuple[ActualContainer, ...]:
        try:
            found = await self._call(self._look_threads, self._limits.look_seconds, self._look)
        except EngineError:
            self._inspected = {}  # whatever happens before the next look is not to be hidden by equal words
            raise
        self._inspected = {container.container_id: (line, container) for line, container in found}
        return tuple(container for _, container in found)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """Begins with an empty event once the stream is open: what was before is to be looked at."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue(EVENTS_QUEUE_MAX)
        stream = await self._call(self._action_threads, self._limits.call_seconds, self._open_events)
        thread = threading.Thread(target=_pump, args=(stream, loop, queue), name="docker events", daemon=True)
        thread.start()
        try:
            yield EngineEvent("", "connected")
            while (event := await queue.get()) is not None:
                self._inspected.pop(event.container, None)
                yield event
        finally:
            stream.close()

    async def image_present(self, image: str) -> bool:
        def present(client: APIClient) -> bool:
            try:
                client.inspect_image(image)  # type: ignore[no-untyped-call]
            except docker.errors.ImageNotFound:
                return False
            return True

        return await self._call(self._action_threads, self._limits.call_seconds, present)

    async def pull(self, image: str) -> None:
        await self._call(
            self._action_threads, self._limits.pull_longest_seconds, lambda client: self._pull(client, image)
        )

    async def create(self, instance: str, container: ContainerSpec, mounts: dict[str, str]) -> str:
        networks = networks_of(instance, container)
        if networks == (instance_network(instance),):
            await self.ensure_networks(networks)
        return await self._call(
            self._action_threads,
            self._limits.action_seconds,
            lambda client: _create(client, instance, container, networks, mounts),
        )

    async def start(self, container_id: str) -> None:
        known = self._inspected.get(container_id)
        has_run = known is not None and bool(known[1].run)

        def start(client: APIClient) -> None:
            if not has_run:
                _join_networks(client, container_id)
            client.start(container_id)

        await self._call(self._action_threads, self._limits.action_seconds, start)

    async def stop(self, container_id: str, grace_seconds: float) -> None:
        grace = max(1, math.ceil(grace_seconds))

        def stop(client: APIClient) -> None:
            try:
                client.stop(container_id, timeout=grace)
            except docker.errors.NotFound:
                return

        await self._call(self._action_threads, grace + self._limits.action_seconds, stop)

    async def remove(self, container_id: str) -> None:
        await self._call(
            self._action_threads, self._limits.action_seconds, lambda client: _remove(client, container_id)
        )

    async def logs(self, container_id: str, lines: int) -> str:
        def read(client: APIClient) -> str:
            payload: bytes = client.logs(container_id, tail=lines, timestamps=True)
            return payload[-LOGS_MAX_BYTES:].decode(errors="replace")

        return await self._call(self._action_threads, self._limits.call_seconds, read)

    async def ensure_networks(self, names: tuple[str, ...]) -> None:
        def ensure(client: APIClient) -> None:
            with self._network_lock:
                for name in names:
                    _ensure_network(client, name)

        if names:
            await self._call(self._action_threads, self._limits.action_seconds, ensure)

    async def remove_network(self, name: str) -> None:
        """Fine when it is not there. EngineRefused when a container uses it."""

        def remove(client: APIClient) -> None:
            try:
                client.remove_network(name)
            except docker.errors.NotFound:
                return

        await self._call(self._action_threads, self._limits.action_seconds, remove)

    async def load_image(self, path: str) -> tuple[str, ...]:
        def load(client: APIClient) -> tuple[str, ...]:
            with open(path, "rb") as archive:
                lines = client.load_image(archive)  # type: ignore[no-untyped-call]
                said = [line.get("stream", "") for line in lines]
            return tuple(
                line.split(": ", 1)[1].strip()
                for line in said
                if line.startswith(("Loaded image: ", "Loaded image ID: "))
            )

        return await self._call(self._action_threads, self._limits.pull_longest_seconds, load)

    async def image_layers(self) -> tuple[tuple[str, ...], ...]:
        """Of each image that is here, its layers' diff ids, the lowest first."""

        def layers(client: APIClient) -> tuple[tuple[str, ...], ...]:
            found = []
            for image in client.images(quiet=True):
                try:
                    inspected = client.inspect_image(image)  # type: ignore[no-untyped-call]
                except docker.errors.ImageNotFound:
                    continue
                found.append(tuple(inspected.get("RootFS", {}).get("Layers") or ()))
            return tuple(found)

        return await self._call(self._action_threads, self._limits.call_seconds, layers)

    async def tag_image(self, image_id: str, reference: str) -> None:
        repository, tag = docker.utils.parse_repository_tag(reference)

        def tagged(client: APIClient) -> None:
            client.tag(image_id, repository, tag or "latest")

        await self._call(self._action_threads, self._limits.call_seconds, tagged)

    async def _call(self, threads: DeadlineThreads, seconds: float, function: Callable[[APIClient], T]) -> T:
        def work() -> T:
            with _errors():
                return function(self._connected())

        try:
            return await threads.call(seconds, work)
        except NotInTime as error:
            raise EngineUnavailable(str(error)) from None

    def _connected(self) -> APIClient:
        with self._client_lock:
            if self._client is None:
                # Of the socket, so that no thread waits for ever; the deadline of each call is its caller's.
                longest = math.ceil(max(self._limits.action_seconds, self._limits.call_seconds))
                self._client = APIClient(base_url=f"unix://{self._socket_path}", version="auto", timeout=longest)
            return self._client

    def _look(self, client: APIClient) -> list[tuple[str, ActualContainer]]:
        found = []
        for listed in client.containers(all=True, filters={"label": [LABEL_INSTANCE]}):
            container_id, line = listed["Id"], _line(listed)
            known = self._inspected.get(container_id)
            if known is not None and known[0] == line and "second" not in line:
                found.append(known)
                continue
            container = self._inspect(client, listed, known[1] if known else None)
            if container is not None:
                found.append((line, container))
        return found

    def _inspect(
        self, client: APIClient, listed: Mapping[str, Any], known: ActualContainer | None
    ) -> ActualContainer | None:
        """None: it went away meanwhile."""
        try:
            raw: Any = client  # the SDK's own inspection has no time-out of its own
            response = raw._get(raw._url("/containers/{0}/json", listed["Id"]), timeout=self._limits.inspect_seconds)
            actual = _actual(raw._result(response, True))
            return replace(actual, image_digest=self._image_digest(raw, actual.image_id, listed["Labels"] or {}))
        except docker.errors.NotFound:
            return None
        except requests.exceptions.Timeout:
            log.warning("docker.inspect_hangs", container=listed["Names"], container_id=listed["Id"])
            return known if known is not None else _actual_from_list(listed)

    def _image_digest(self, raw: Any, image_id: str, labels: Mapping[str, str]) -> str:
        """Under which the registry of the image that the specification names knows it; "" when it came from none."""
        if image_id not in self._digests:
            response = raw._get(raw._url("/images/{0}/json", image_id), timeout=self._limits.inspect_seconds)
            if response.status_code == 404:
                return ""  # removed from under its container
            while len(self._digests) >= DIGESTS_MAX:
                del self._digests[next(iter(self._digests))]
            self._digests[image_id] = tuple(raw._result(response, True).get("RepoDigests") or ())
        repository = repository_of(labels.get(LABEL_IMAGE) or "none")
        return next((each for each in self._digests[image_id] if repository_of(each) == repository), "")

    def _open_events(self, client: APIClient) -> Any:
        filters = {"type": ["container"], "label": [LABEL_INSTANCE], "event": list(EVENTS)}
        return client.events(decode=True, filters=filters)

    def _pull(self, client: APIClient, image: str) -> None:
        repository, tag = docker.utils.parse_repository_tag(image)
        registry, _ = docker.auth.resolve_repository_name(repository)
        headers = {}
        auth = docker.auth.resolve_authconfig(self._auth, registry)
        if auth:
            headers["X-Registry-Auth"] = docker.auth.encode_header(auth).decode()
        raw: Any = client  # the SDK's own pull() has no time-out at all
        response = raw._post(
            raw._url("/images/create"),
            params={"fromImage": repository, "tag": tag or "latest"},
            headers=headers,
            stream=True,
            timeout=self._limits.pull_silence_seconds,
        )
        try:
            raw._raise_for_status(response)
        except docker.errors.APIError as error:
            raise ImageMissing(f"{image}: {_text(error)}") from None
        for progress in raw._stream_helper(response, decode=True):
            if "error" in progress:
                raise ImageMissing(f"{image}: {progress['error']}")


def _create(
    client: APIClient,
    instance: str,
    container: ContainerSpec,
    networks: tuple[str, ...],
    mounts: Mapping[str, str],
) -> str:
    labels = {
        LABEL_INSTANCE: instance,
        LABEL_CONTAINER: container.name,
        LABEL_HASH: spec_hash(container),
        LABEL_IMAGE: container.image,
        LABEL_NETWORKS: ",".join(networks),
    }
    options = container_options(client, container, networks, mounts, labels)
    try:
        container_id: str = client.create_container(name=container.name, **options)["Id"]
    except docker.errors.APIError as error:
        if error.response is None or error.response.status_code != 409:
            raise
        return _existing(client, container.name, labels)
    return container_id


def _join_networks(client: APIClient, container_id: str) -> None:
    """Before its first start. The engine's creation takes one network only; the others are joined here and not there,
    because whoever creates may not live to do it, and what starts must not lack a network."""
    found = client.inspect_container(container_id)
    labels = found["Config"].get("Labels") or {}
    joined = (found.get("NetworkSettings") or {}).get("Networks") or {}
    for network in filter(None, labels.get(LABEL_NETWORKS, "").split(",")):
        if network not in joined:
            client.connect_container_to_network(container_id, network, aliases=[labels[LABEL_CONTAINER]])


def _existing(client: APIClient, name: str, labels: Mapping[str, str]) -> str:
    """The id of the container that has the name already, when it is the one that was asked for: an earlier request
    whose answer was lost."""
    found = client.inspect_container(name)
    theirs = found["Config"].get("Labels") or {}
    if LABEL_INSTANCE not in theirs:
        raise EngineRefused(
            f"the name {name} is taken by container {found['Id'][:12]}, which is not ours; rename or remove it"
        )
    if any(theirs.get(key) != value for key, value in labels.items()):
        raise EngineRefused(f"the name {name} is taken by container {found['Id'][:12]} of another specification")
    container_id: str = found["Id"]
    return container_id


def _remove(client: APIClient, container_id: str) -> None:
    try:
        labels = client.inspect_container(container_id)["Config"].get("Labels") or {}
        if LABEL_INSTANCE not in labels:
            raise EngineRefused(f"container {container_id[:12]} does not carry our label; it stays")
        client.remove_container(container_id, v=True)  # v: anonymous volumes only
    except docker.errors.NotFound:
        return
    except docker.errors.APIError as error:
        if "is already in progress" not in _text(error):
            raise


def _ensure_network(client: APIClient, name: str) -> None:
    """The engine does not keep names of networks unique: of two requests at once it makes two networks, and then
    refuses both as ambiguous. So the caller holds a lock, and doubles that nobody uses are removed."""
    found = [network["Id"] for network in client.networks(names=[name]) if network["Name"] == name]
    if not found:
        client.create_network(name, driver="bridge", check_duplicate=True, labels={LABEL_INSTANCE: ""})
        return
    for network_id in found[1:]:
        try:
            client.remove_network(network_id)
        except docker.errors.APIError as error:
            log.warning("docker.network_double", network=name, network_id=network_id, reason=_text(error))


def _probe(socket_path: str, seconds: float) -> Probe:
    connection = http.client.HTTPConnection("docker", timeout=seconds)
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.settimeout(seconds)
    try:
        unix.connect(socket_path)
        connection.sock = unix
        connection.request("GET", PROBE_PATH)
        answer = connection.getresponse()
        answer.read()
        return Probe.ANSWERED if answer.status < 500 else Probe.SILENT
    except TimeoutError:
        return Probe.SILENT
    except (ConnectionRefusedError, FileNotFoundError):
        return Probe.REFUSED
    except (OSError, http.client.HTTPException):
        # Reset in mid-answer: it was there, and is ending or broken.
        return Probe.SILENT
    finally:
        unix.close()


def _pump(stream: Any, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[EngineEvent | None]) -> None:
    try:
        for event in stream:
            action = str(event.get("Action", event.get("status", "")))
            deliver(loop, _offer, queue, EngineEvent(str(event.get("id", "")), action))
    except Exception as error:
        # The edge of a thread: however the stream broke, it ended, and the reader opens another.
        log.info("docker.events_ended", reason=str(error)[:200])
    finally:
        deliver(loop, _end, queue)


def _offer(queue: asyncio.Queue[EngineEvent | None], event: EngineEvent) -> None:
    if not queue.full():
        queue.put_nowait(event)


def _end(queue: asyncio.Queue[EngineEvent | None]) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(None)


def _line(listed: Mapping[str, Any]) -> str:
    """Changes with every start, exit, and change of health: the listing's words, and the network endpoints, which are
    new with each start."""
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    endpoints = sorted(str(network.get("EndpointID", "")) for network in networks.values() if network)
    return f"{listed['State']} {listed['Status']} {' '.join(endpoints)}"


def _actual(found: Mapping[str, Any]) -> ActualContainer:
    state, labels = found["State"], found["Config"].get("Labels") or {}
    started_at = state.get("StartedAt") or NEVER_STARTED
    return ActualContainer(
        container_id=found["Id"],
        name=ContainerName(labels.get(LABEL_CONTAINER, found["Name"].lstrip("/"))),
        instance=labels.get(LABEL_INSTANCE, ""),
        spec_hash=labels.get(LABEL_HASH, ""),
        status=Status(state["Status"]),
        health=Health((state.get("Health") or {}).get("Status") or "none"),
        run="" if started_at.startswith(NEVER_STARTED) else f"{found['Id'][:12]}@{started_at}",
        pid=state.get("Pid", 0),
        exit_code=state.get("ExitCode", 0),
        oom_killed=state.get("OOMKilled", False),
        image_id=found.get("Image", ""),
        error=state.get("Error", ""),
    )


def _actual_from_list(listed: Mapping[str, Any]) -> ActualContainer:
    """Without what only an inspection says; `run` stays empty, so nothing is concluded from it."""
    labels = listed.get("Labels") or {}
    return ActualContainer(
        container_id=listed["Id"],
        name=ContainerName(labels.get(LABEL_CONTAINER, "")),
        instance=labels.get(LABEL_INSTANCE, ""),
        spec_hash=labels.get(LABEL_HASH, ""),
        status=Status(listed["State"]),
        image_id=listed.get("ImageID", ""),
    )


@contextmanager
def _errors() -> Iterator[None]:
    """What the SDK raises, as the port's errors."""
    try:
        yield
    except EngineError:
        raise
    except docker.errors.APIError as error:
        raise _translated(error) from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise EngineUnavailable(_one_line(str(error))) from None
    except docker.errors.DockerException as error:
        # The SDK could not even ask for the version, or knows that this engine lacks the option.
        if "Error while fetching server API version" in str(error):
            raise EngineUnavailable(_one_line(str(error))) from None
        raise EngineRefused(_one_line(str(error))) from None
    except (TypeError, ValueError) as error:
        raise EngineRefused(_one_line(f"option refused by the client: {error}")) from None


def _translated(error: docker.errors.APIError) -> EngineError:
    text = _text(error)
    lowered = text.lower()
    if isinstance(error, docker.errors.ImageNotFound) or "no such image" in lowered:
        return ImageMissing(text)
    if any(
        words in lowered for words in ("port is already allocated", "address already in use", "ports are not avail")
    ):
        return PortInUse(text)
    if any(
        words in lowered for words in ("context deadline exceeded", "transport is closing", "connection error: desc")
    ):
        return EngineUnavailable(text)
    return EngineRefused(text)


def _text(error: docker.errors.APIError) -> str:
    return _one_line(str(error.explanation or error))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
