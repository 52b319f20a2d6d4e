"""One container in the Compose file format → `protocol.spec.ContainerSpec`.

Law: every key of a Compose service is read, or refused with what to write instead (`compose_refusals.py`); two ways to
write the same thing give equal specifications. Where Compose leaves a choice to silence (an undefined variable, a
variable taken from the shell, an anonymous volume), this is an error.

Differences in defaults, each on purpose: `restart` is `always` (this is a supervisor), a dependency's restart restarts
the dependent (`depends_on: {x: {restart: true}}`), logs are bounded.

Does not know: what other containers contain (`container_references.py` checks references between them).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from healthmonitor.core import compose_network as network
from healthmonitor.core import compose_storage as storage
from healthmonitor.core import compose_values as values
from healthmonitor.core.compose_refusals import REFUSED
from healthmonitor.core.env_file import read_env_file
from healthmonitor.core.yaml_places import Place, unknown
from protocol.ids import ContainerName
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    Mount,
    Port,
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container may refer to."""

    containers: Collection[str]
    disks: Collection[str]
    networks: Collection[str]
    variables: Mapping[str, str]
    read_file: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class ReadContainer:
    spec: ContainerSpec
    ports: tuple[tuple[Port, Place], ...]
    dependencies: Mapping[str, Place]
    """Where each dependency is written, for errors about it."""
    place: Place
    restart_given: bool


def read_container(name: str, place: Place, around: Surroundings) -> ReadContainer:
    fields = place.fields(KEYS, REFUSED, "a mapping such as {image: redis:7}", extensions=True)
    given: dict[str, Any] = {}
    for key, read in _SIMPLE.items():
        if key in fields and not fields[key].is_null:
            given[read[0]] = read[1](fields[key])
    given["environment"] = _environment(fields, around)
    ports = _ports(fields, given)
    _storage(fields, given, around, place)
    _network(fields, given, around)
    dependencies, where = _depends_on(name, fields, given, around)
    given["depends_on"] = dependencies
    if "restart" in fields:
        given["restart"], given["restart_limit"] = values.read_restart(fields["restart"])
    if "blkio_config" in fields:
        inner = fields["blkio_config"].fields(("weight",), dict.fromkeys(_BLKIO, "only weight is supported"))
        if "weight" in inner:
            given["blkio_weight"] = inner["weight"].integer(10, 1000)
    if "deploy" in fields:
        _deploy(fields["deploy"], given)
    image = fields.get("image")
    if image is None:
        place.key_error("image is missing; expected such as image: redis:7")
    spec = ContainerSpec(ContainerName(name), values.read_image(image) if image else "", **given)
    _check_limits(spec, fields)
    return ReadContainer(spec, tuple(ports), where, place, "restart" in fields)


def _environment(fields: Mapping[str, Place], around: Surroundings) -> dict[str, str]:
    """Files first, in their order; `environment` wins over them."""
    environment: dict[str, str] = {}
    if "env_file" in fields:
        listed = fields["env_file"]
        for item in listed.items() if listed.is_list else [listed]:
            environment.update(_env_file(item, around))
    if "environment" not in fields or fields["environment"].is_null:
        return environment
    place = fields["environment"]
    if place.is_mapping:
        entries = [(key, inner, None if inner.is_null else inner) for key, inner in place.members().items()]
        for key, where, inner in entries:
            if inner is None:
                where.key_error(_FROM_SHELL.format(key=key))
            else:
                environment[key] = "" if inner.node.value == "" else inner.text("text or a number")
    else:
        written: set[str] = set()
        for item in place.items("a mapping, or a list of NAME=VALUE"):
            key, equals, value = item.text("NAME=VALUE").partition("=")
            if key and not equals:
                item.error(_FROM_SHELL.format(key=key))
            elif key in written:
                item.error(f"{key} stands here a second time")
            written.add(key)
            environment[key] = value
    for key in environment:
        if not key or "=" in key or any(c.isspace() for c in key):
            place.error(f"{key!r} is no name of an environment variable")
    return environment


def _env_file(place: Place, around: Surroundings) -> dict[str, str]:
    required, raw, path_place = True, False, place
    if place.is_mapping:
        fields = place.fields(("path", "required", "format"))
        if "path" not in fields:
            place.error("path is missing; expected the file's path")
            return {}
        path_place = fields["path"]
        required = fields["required"].boolean(True) if "required" in fields else True
        raw = "format" in fields and fields["format"].one_of(("raw",), "raw") == "raw"
    path = path_place.text("a path")
    if not path:
        return {}
    try:
        text = around.read_file(path)
    except FileNotFoundError:
        if required:
            path_place.error(f"{path} does not exist (or write {{path: {path}, required: false}})")
        return {}
    except (OSError, ValueError) as error:
        path_place.error(f"{path} cannot be read: {error}")
        return {}
    return read_env_file(text, path, around.variables, place.report, raw)


def _ports(fields: Mapping[str, Place], given: dict[str, Any]) -> list[tuple[Port, Place]]:
    ports = network.read_ports(fields["ports"]) if "ports" in fields else []
    exposed = network.read_exposed(fields["expose"]) if "expose" in fields else []
    published = {(port.container_port, port.protocol) for port, _ in ports}
    more = [port for port in exposed if (port.container_port, port.protocol) not in published]
    given["ports"] = tuple(dict.fromkeys([port for port, _ in ports] + more))
    return ports


def _storage(fields: Mapping[str, Place], given: dict[str, Any], around: Surroundings, place: Place) -> None:
    mounts: list[Mount] = []
    tmpfs: list[str] = []
    if "volumes" in fields:
        mounts, tmpfs = storage.read_volumes(fields["volumes"], around.disks, around.containers)
    if "tmpfs" in fields:
        tmpfs = tmpfs + storage.read_tmpfs(fields["tmpfs"])
    storage.check_targets(mounts, tmpfs, fields.get("volumes") or fields.get("tmpfs") or place)
    given["mounts"], given["tmpfs"] = tuple(mounts), tuple(tmpfs)


def _network(fields: Mapping[str, Place], given: dict[str, Any], around: Surroundings) -> None:
    if "networks" in fields and not fields["networks"].is_null:
        given["networks"] = network.read_networks(fields["networks"], around.networks)
    if "network_mode" not in fields:
        return
    mode, _ = network.read_network_mode(fields["network_mode"], around.containers)
    given["network_mode"] = mode
    for key in ("networks", "ports"):
        if given.get(key) and not (mode == "bridge" and key == "ports"):
            fields[key].key_error(
                f"{key} cannot be combined with network_mode: {mode}; "
                + ("the container has the VM's own ports" if mode == "host" else "leave one of them out")
            )


def _depends_on(
    name: str, fields: Mapping[str, Place], given: dict[str, Any], around: Surroundings
) -> tuple[tuple[Dependency, ...], dict[str, Place]]:
    """Written dependencies, and those that `network_mode: service:x` and `volumes_from` imply."""
    found: dict[str, Dependency] = {}
    where: dict[str, Place] = {}
    place = fields.get("depends_on")
    if place is not None and place.is_mapping:
        for other, inner in place.members().items():
            found[other], where[other] = _dependency(other, inner), inner
    elif place is not None:
        for item in place.items("a list of containers, or a mapping of container to {condition: …}"):
            other = item.text("a container's name")
            if other in found:
                item.error(f"{other} stands here a second time")
            if other:
                found[other], where[other] = Dependency(ContainerName(other)), item
    for other, inner in where.items():
        if other not in around.containers:
            inner.key_error(unknown("container", other, [one for one in around.containers if one != name]))
    implied: dict[str, Place] = {}
    if given.get("network_mode", "").startswith("container:"):
        implied[given["network_mode"].removeprefix("container:")] = fields["network_mode"]
    for entry in given.get("volumes_from", ()):
        implied[entry.partition(":")[0]] = fields["volumes_from"]
        if entry.partition(":")[0] not in around.containers:
            fields["volumes_from"].error(unknown("container", entry.partition(":")[0], around.containers))
    for other, inner in implied.items():
        if other in around.containers and other not in found:
            found[other], where[other] = Dependency(ContainerName(other)), inner
    return tuple(found[other] for other in sorted(found)), where


def _dependency(other: str, place: Place) -> Dependency:
    if place.is_null:
        return Dependency(ContainerName(other))
    fields = place.fields(("condition", "restart", "required"), expected="{condition: service_healthy} or the like")
    condition = fields["condition"].choice(Condition, Condition.STARTED) if "condition" in fields else Condition.STARTED
    if "required" in fields and not fields["required"].boolean(True):
        fields["required"].error("required: false is not supported: every container named must be declared")
    return Dependency(ContainerName(other), condition, fields["restart"].boolean(True) if "restart" in fields else True)


def _deploy(place: Place, given: dict[str, Any]) -> None:
    """Only the limits have a meaning without Swarm; they are the same as the container's own keys."""
    refused = dict.fromkeys(_SWARM, "has a meaning only in Swarm; a group's update and instances say it here")
    resources = place.fields(("resources",), refused, extensions=True).get("resources")
    if resources is None:
        return
    parts = resources.fields(("limits", "reservations"))
    limits = parts["limits"].fields(("cpus", "memory", "pids")) if "limits" in parts else {}
    reserved = (
        parts["reservations"].fields(
            ("memory",),
            dict.fromkeys(("cpus", "devices", "generic_resources"), "cannot be reserved; use cpu_shares or devices"),
        )
        if "reservations" in parts
        else {}
    )
    for source, key, name, read in (
        (limits, "cpus", "cpus", values.read_cpus),
        (limits, "memory", "mem_limit_bytes", values.read_memory),
        (limits, "pids", "pids_limit", values.read_pids),
        (reserved, "memory", "mem_reservation_bytes", values.read_memory),
    ):
        if key in source:
            value = read(source[key])
            if given.get(name, value) != value:
                source[key].error(f"says {value}, and the container's own key says {given[name]}; leave one out")
            given[name] = value


def _check_limits(spec: ContainerSpec, fields: Mapping[str, Place]) -> None:
    if spec.cpus and (spec.cpu_period_microseconds or spec.cpu_quota_microseconds):
        (fields.get("cpu_quota") or fields["cpu_period"]).key_error("cannot be combined with cpus; leave one out")
    if 0 < spec.memswap_limit_bytes < spec.mem_limit_bytes:
        fields["memswap_limit"].error("is memory plus swap, so it must be at least mem_limit")
    if spec.memswap_limit_bytes and not spec.mem_limit_bytes:
        fields["memswap_limit"].key_error("needs mem_limit beside it")
    if 0 < spec.mem_limit_bytes < spec.mem_reservation_bytes and "mem_reservation" in fields:
        fields["mem_reservation"].error("must be at most mem_limit")


def _word(expected: str) -> Callable[[Place], str]:
    return lambda place: place.text(expected)


def _only(*words: str) -> Callable[[Place], str]:
    return lambda place: place.one_of(words, words[0])


def _number(minimum: int, maximum: int) -> Callable[[Place], int]:
    return lambda place: place.integer(minimum, maximum)


_SIMPLE: Mapping[str, tuple[str, Callable[[Place], Any]]] = {
    "command": ("command", values.read_command),
    "entrypoint": ("entrypoint", values.read_command),
    "healthcheck": ("healthcheck", values.read_healthcheck),
    "stop_signal": ("stop_signal", values.read_stop_signal),
    "stop_grace_period": ("stop_grace_period_seconds", lambda place: place.duration(0.0, 86400.0)),
    "user": ("user", _word("a user such as 1000:1000")),
    "group_add": ("group_add", Place.texts),
    "working_dir": ("working_dir", values.read_path),
    "hostname": ("hostname", network.read_hostname),
    "domainname": ("domainname", network.read_hostname),
    "extra_hosts": ("extra_hosts", network.read_extra_hosts),
    "dns": ("dns", network.read_addresses),
    "dns_search": ("dns_search", Place.text_or_texts),
    "dns_opt": ("dns_opt", Place.texts),
    "mac_address": ("mac_address", network.read_mac_address),
    "cap_add": ("cap_add", values.read_capabilities),
    "cap_drop": ("cap_drop", values.read_capabilities),
    "privileged": ("privileged", Place.boolean),
    "read_only": ("read_only", Place.boolean),
    "security_opt": ("security_opt", Place.texts),
    "devices": ("devices", storage.read_devices),
    "ulimits": ("ulimits", values.read_ulimits),
    "sysctls": ("sysctls", lambda place: place.pairs("=", 'a list of "name=value"')),
    "shm_size": ("shm_size_bytes", values.read_bytes),
    "init": ("init", Place.boolean),
    "labels": ("labels", values.read_labels),
    "logging": ("logging", values.read_logging),
    "cpus": ("cpus", values.read_cpus),
    "cpu_shares": ("cpu_shares", _number(2, 262_144)),
    "cpu_period": ("cpu_period_microseconds", values.read_microseconds),
    "cpu_quota": ("cpu_quota_microseconds", values.read_microseconds),
    "blkio_weight": ("blkio_weight", _number(10, 1000)),
    "mem_limit": ("mem_limit_bytes", values.read_memory),
    "mem_reservation": ("mem_reservation_bytes", values.read_memory),
    "memswap_limit": ("memswap_limit_bytes", values.read_swap),
    "mem_swappiness": ("mem_swappiness", _number(0, 100)),
    "oom_kill_disable": ("oom_kill_disable", Place.boolean),
    "pids_limit": ("pids_limit", values.read_pids),
    "pull_policy": ("pull_policy", values.read_pull_policy),
    "volume_driver": ("volume_driver", _word("a volume driver")),
    "volumes_from": ("volumes_from", Place.texts),
    "pid": ("pid", _only("host")),
    "ipc": ("ipc", _only("private", "host", "shareable", "none")),
    "userns_mode": ("userns_mode", _only("host")),
    "tty": ("tty", Place.boolean),
    "stdin_open": ("stdin_open", Place.boolean),
    "on_oom": ("on_oom", _only("alert", "restart", "ignore")),
}
"""Key in the file → field of the specification, and its reader. What needs more than its own value stands below."""

_COMPOUND = (
    "image",
    "environment",
    "env_file",
    "ports",
    "expose",
    "volumes",
    "tmpfs",
    "depends_on",
    "restart",
    "network_mode",
    "networks",
    "blkio_config",
    "deploy",
)
KEYS: tuple[str, ...] = (*_COMPOUND, *_SIMPLE)

_BLKIO = ("device_read_bps", "device_read_iops", "device_write_bps", "device_write_iops", "weight_device")
_SWARM = (
    "mode",
    "replicas",
    "placement",
    "update_config",
    "rollback_config",
    "restart_policy",
    "endpoint_mode",
    "labels",
)
_FROM_SHELL = (
    "{key} has no value, and the environment of your shell is not passed on; "
    "write {key}: value, or {key}: ${{{key}}} with --var"
)
