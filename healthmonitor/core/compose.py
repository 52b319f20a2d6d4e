"""One container in the Compose file format → `protocol.spec.ContainerSpec`.

Law: every key of a Compose service is read, or refused with what to write instead (`compose_refusals.py`); two ways to
write the same thing give equal specifications. Where Compose leaves a choice to silence (an undefined variable, a
variable taken from the shell, an anonymous volume), this is an error.

Differences in defaults, each on purpose: `restart` is `always` (this is a supervisor), a dependency's restart restarts
the dependent (`depends_on: {x: {restart: true}}`), logs are bounded.

Does not know: what other containers contain (`container_references.py` checks references between them).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from healthmonitor.core import compose_network as network
from healthmonitor.core import compose_storage as storage
from healthmonitor.core import units
from healthmonitor.core.compose_refusals import REFUSED
from healthmonitor.core.env_file import read_env_file
from healthmonitor.core.yaml_places import Place, unknown
from protocol.ids import ContainerName
from protocol.spec import (
    Condition,
    ContainerSpec,
    Dependency,
    Healthcheck,
    Logging,
    Mount,
    Port,
    PullPolicy,
    Restart,
    Ulimit,
)

MEMORY_MIN_BYTES = 6 * 1024 * 1024
"""Docker's own minimum."""


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
        given["restart"], given["restart_limit"] = _restart(fields["restart"])
    if "blkio_config" in fields:
        inner = fields["blkio_config"].fields(("weight",), dict.fromkeys(_BLKIO, "only weight is supported"))
        if "weight" in inner:
            given["blkio_weight"] = inner["weight"].integer(10, 1000)
    if "deploy" in fields:
        _deploy(fields["deploy"], given)
    image = fields.get("image")
    if image is None:
        place.key_error("image is missing; expected such as image: redis:7")
    spec = ContainerSpec(ContainerName(name), _image(image) if image else "", **given)
    _check_limits(spec, fields)
    return ReadContainer(spec, tuple(ports), where, place, "restart" in fields)


def _image(place: Place) -> str:
    text = place.text("an image such as redis:7")
    if text and (not _IMAGE.fullmatch(text) or len(text) > 400):
        lower = "; names of images are lower-case" if _IMAGE.fullmatch(text.lower()) else ""
        place.error(f"{text!r} is no image; expected such as redis:7 or registry:5000/team/app@sha256:…{lower}")
    return text


def _command(place: Place) -> tuple[str, ...]:
    if place.is_list:
        return tuple("" if item.node.value == "" else item.text() for item in place.items())
    if place.node.value == "":
        return ()
    try:
        return tuple(shlex.split(place.text("a command, as text or as a list")))
    except ValueError as error:
        place.error(f"{str(error).lower()} in the command; a list of arguments needs no quoting")
        return ()


def _environment(fields: Mapping[str, Place], around: Surroundings) -> dict[str, str]:
    """Files first, in their order; `environment` wins over them."""
    values: dict[str, str] = {}
    if "env_file" in fields:
        listed = fields["env_file"]
        for item in listed.items() if listed.is_list else [listed]:
            values.update(_env_file(item, around))
    if "environment" not in fields or fields["environment"].is_null:
        return values
    place = fields["environment"]
    if place.is_mapping:
        entries = [(key, inner, None if inner.is_null else inner) for key, inner in place.members().items()]
        for key, where, inner in entries:
            if inner is None:
                where.key_error(_FROM_SHELL.format(key=key))
            else:
                values[key] = "" if inner.node.value == "" else inner.text("text or a number")
    else:
        written: set[str] = set()
        for item in place.items("a mapping, or a list of NAME=VALUE"):
            key, equals, value = item.text("NAME=VALUE").partition("=")
            if key and not equals:
                item.error(_FROM_SHELL.format(key=key))
            elif key in written:
                item.error(f"{key} stands here a second time")
            written.add(key)
            values[key] = value
    for key in values:
        if not key or "=" in key or any(c.isspace() for c in key):
            place.error(f"{key!r} is no name of an environment variable")
    return values


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


def _healthcheck(place: Place) -> Healthcheck | None:
    fields = place.fields(
        ("test", "interval", "timeout", "retries", "start_period", "disable"),
        {"start_interval": "needs a newer engine than those supported; use interval and start_period"},
        extensions=True,
    )
    if "disable" in fields and fields["disable"].boolean():
        return Healthcheck(("NONE",))
    test = _health_test(fields["test"]) if "test" in fields else ()
    if "test" not in fields:
        place.key_error(
            'test is missing; expected test: ["CMD", "redis-cli", "ping"], a shell command as text, or disable: true '
            "(write it also when the image has one of its own: the manifest says what healthy means)"
        )
    defaults = Healthcheck(test)
    longest = 86400.0
    return Healthcheck(
        test=test,
        interval_seconds=fields["interval"].duration(0.1, longest)
        if "interval" in fields
        else defaults.interval_seconds,
        timeout_seconds=fields["timeout"].duration(0.1, longest) if "timeout" in fields else defaults.timeout_seconds,
        retries=fields["retries"].integer(1, 1000) if "retries" in fields else defaults.retries,
        start_period_seconds=fields["start_period"].duration(0.0, longest) if "start_period" in fields else 0.0,
    )


def _health_test(place: Place) -> tuple[str, ...]:
    if not place.is_list:
        text = place.text("a shell command, or a list that begins with CMD or CMD-SHELL")
        return ("CMD-SHELL", text) if text else ()
    test = place.texts()
    if test == ("NONE",):
        return test
    if len(test) < 2 or test[0] not in ("CMD", "CMD-SHELL") or (test[0] == "CMD-SHELL" and len(test) != 2):
        place.error('expected ["CMD", "program", "argument"…], ["CMD-SHELL", "command"] or ["NONE"]')
    return test


def _restart(place: Place) -> tuple[Restart, int]:
    # A bare no is a boolean in YAML 1.1; both ways of writing it are meant alike.
    text = "no" if place.node.value is False else place.text("a restart policy")
    policy, colon, limit = text.partition(":")
    if policy not in {member.value for member in Restart} or (colon and policy != Restart.ON_FAILURE.value):
        place.wrong('one of "no", always, on-failure, on-failure:3, unless-stopped')
        return Restart.ALWAYS, 0
    if colon and not (limit.isascii() and limit.isdigit() and 1 <= len(limit) <= 6 and int(limit) > 0):
        place.error(f"{limit!r} restarts; expected such as on-failure:3")
        return Restart.ON_FAILURE, 0
    return Restart(policy), int(limit) if colon else 0


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
        (limits, "cpus", "cpus", _cpus),
        (limits, "memory", "mem_limit_bytes", _memory),
        (limits, "pids", "pids_limit", _pids),
        (reserved, "memory", "mem_reservation_bytes", _memory),
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


def _bytes(place: Place) -> int:
    """Compose takes a bare number as bytes."""
    if isinstance(place.node.value, int) and not isinstance(place.node.value, bool):
        return place.integer(0, 2**62)
    text = place.text("a size such as 512m")
    return _parsed_bytes(place, text) if text else 0


def _parsed_bytes(place: Place, text: str) -> int:
    try:
        return units.size_bytes(text)
    except ValueError as error:
        place.error(str(error))
        return 0


def _memory(place: Place) -> int:
    count = _bytes(place)
    if 0 < count < MEMORY_MIN_BYTES:
        place.error(
            f"{count} bytes is less than the engine's minimum of 6m; a bare number is bytes: {count}m was meant?"
        )
    return count


def _swap(place: Place) -> int:
    return -1 if place.node.value == -1 else _memory(place)


def _cpus(place: Place) -> float:
    return place.decimal(0.01, 1024)


def _pids(place: Place) -> int:
    return max(0, place.integer(-1, 4_194_304))


def _microseconds(place: Place) -> int:
    if place.is_text:
        return round(place.duration(0.001, 1.0) * 1_000_000)
    return place.integer(1000, 100_000_000)


def _ulimits(place: Place) -> tuple[Ulimit, ...]:
    limits = []
    for name, inner in place.members("a mapping such as {nofile: 8192}").items():
        if not _ULIMIT.fullmatch(name):
            inner.key_error(unknown("ulimit", name, _ULIMITS))
        if inner.is_mapping:
            fields = inner.fields(("soft", "hard"))
            if len(fields) < 2:
                inner.error("expected both soft and hard")
                continue
            soft, hard = (fields[key].integer(-1, 2**62) for key in ("soft", "hard"))
        else:
            soft = hard = inner.integer(-1, 2**62)
        if hard != -1 and (soft > hard or soft == -1):
            inner.error(f"soft {soft} is above hard {hard}")
        limits.append(Ulimit(name, soft, hard))
    return tuple(sorted(limits, key=lambda limit: limit.name))


def _logging(place: Place) -> Logging:
    fields = place.fields(("driver", "options"))
    bounded = Logging()
    driver = fields["driver"].text("a log driver") if "driver" in fields else bounded.driver
    options = {}
    if "options" in fields and not fields["options"].is_null:
        options = {key: inner.text() for key, inner in fields["options"].members().items()}
    # A json-file without max-size grows until the VM's disk is full; max-size: "-1" asks for that.
    return Logging(driver, {**bounded.options, **options} if driver == bounded.driver else options)


def _labels(place: Place) -> dict[str, str]:
    labels = place.pairs("=", 'a list of "name=value"', bare=True)
    for key in labels:
        if key.startswith("org.resurgam."):
            place.error(f"{key}: labels that begin with org.resurgam. are the agent's own")
    return labels


def _stop_signal(place: Place) -> str:
    text = place.text("a signal").upper()
    if text and not _SIGNAL.fullmatch(text):
        place.error(f"{text!r} is no signal; expected such as SIGTERM or SIGINT")
    return text if text.isdigit() or text.startswith("SIG") else f"SIG{text}"


def _capabilities(place: Place) -> tuple[str, ...]:
    names = []
    for item in place.items("a list such as [NET_ADMIN]"):
        name = item.text("a capability").upper().removeprefix("CAP_")
        if name and not _CAPABILITY.fullmatch(name):
            item.error(f"{name!r} is no capability; expected such as NET_ADMIN or ALL")
        names.append(name)
    return tuple(sorted(set(names)))


def _pull_policy(place: Place) -> PullPolicy:
    if place.node.text == "if_not_present":
        return PullPolicy.MISSING
    if place.node.text in ("build", "daily", "weekly") or place.node.text.startswith("every_"):
        place.error(f"{place.node.text} is not supported; expected missing, always or never")
        return PullPolicy.MISSING
    return place.choice(PullPolicy, PullPolicy.MISSING)


def _path(place: Place) -> str:
    text = place.text("an absolute path")
    if text and not text.startswith("/"):
        place.error(f"{text!r} is relative; expected an absolute path in the container")
    return text


def _word(expected: str) -> Callable[[Place], str]:
    return lambda place: place.text(expected)


def _only(*words: str) -> Callable[[Place], str]:
    return lambda place: place.one_of(words, words[0])


def _number(minimum: int, maximum: int) -> Callable[[Place], int]:
    return lambda place: place.integer(minimum, maximum)


_SIMPLE: Mapping[str, tuple[str, Callable[[Place], Any]]] = {
    "command": ("command", _command),
    "entrypoint": ("entrypoint", _command),
    "healthcheck": ("healthcheck", _healthcheck),
    "stop_signal": ("stop_signal", _stop_signal),
    "stop_grace_period": ("stop_grace_period_seconds", lambda place: place.duration(0.0, 86400.0)),
    "user": ("user", _word("a user such as 1000:1000")),
    "group_add": ("group_add", Place.texts),
    "working_dir": ("working_dir", _path),
    "hostname": ("hostname", network.read_hostname),
    "domainname": ("domainname", network.read_hostname),
    "extra_hosts": ("extra_hosts", network.read_extra_hosts),
    "dns": ("dns", network.read_addresses),
    "dns_search": ("dns_search", Place.text_or_texts),
    "dns_opt": ("dns_opt", Place.texts),
    "mac_address": ("mac_address", network.read_mac_address),
    "cap_add": ("cap_add", _capabilities),
    "cap_drop": ("cap_drop", _capabilities),
    "privileged": ("privileged", Place.boolean),
    "read_only": ("read_only", Place.boolean),
    "security_opt": ("security_opt", Place.texts),
    "devices": ("devices", storage.read_devices),
    "ulimits": ("ulimits", _ulimits),
    "sysctls": ("sysctls", lambda place: place.pairs("=", 'a list of "name=value"')),
    "shm_size": ("shm_size_bytes", _bytes),
    "init": ("init", Place.boolean),
    "labels": ("labels", _labels),
    "logging": ("logging", _logging),
    "cpus": ("cpus", _cpus),
    "cpu_shares": ("cpu_shares", _number(2, 262_144)),
    "cpu_period": ("cpu_period_microseconds", _microseconds),
    "cpu_quota": ("cpu_quota_microseconds", _microseconds),
    "blkio_weight": ("blkio_weight", _number(10, 1000)),
    "mem_limit": ("mem_limit_bytes", _memory),
    "mem_reservation": ("mem_reservation_bytes", _memory),
    "memswap_limit": ("memswap_limit_bytes", _swap),
    "mem_swappiness": ("mem_swappiness", _number(0, 100)),
    "oom_kill_disable": ("oom_kill_disable", Place.boolean),
    "pids_limit": ("pids_limit", _pids),
    "pull_policy": ("pull_policy", _pull_policy),
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
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-fA-F]{32,128})?"
)
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
_ULIMIT = re.compile("|".join(_ULIMITS))
_SIGNAL = re.compile(r"(SIG)?[A-Z]{2,}[A-Z0-9]*([+-]\d{1,2})?|[1-9][0-9]?")
_CAPABILITY = re.compile(r"[A-Z][A-Z_]{2,40}")
