"""A deployment's YAML → `Manifest`, or every error in it with file, line and what was expected.

Law: nothing is half-read. Either the whole text is a valid Manifest, or ManifestErrors lists all that is wrong.
Files named by `env_file` come in through `read_file`, which raises FileNotFoundError or another OSError.

Does not know: which clouds and stemcells exist (`check_against` asks with the names known), nor the containers' keys
(`compose.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from healthmonitor.core import units
from healthmonitor.core.compose import ReadContainer, Surroundings, read_container
from healthmonitor.core.compose_network import check_host_ports
from healthmonitor.core.container_references import check_references
from healthmonitor.core.located_yaml import ManifestError, Report, read_yaml
from healthmonitor.core.manifest import (
    DiskGrowth,
    DiskRequirement,
    InstanceGroup,
    Manifest,
    SnapshotSchedule,
    UpdatePolicy,
    VmSize,
)
from healthmonitor.core.manifest_refusals import GROUP_REFUSED, TOP_REFUSED, VM_REFUSED
from healthmonitor.core.yaml_places import Place, nearest
from protocol.ids import CloudName, DeploymentName, DiskName, is_name
from protocol.spec import OnIsolation

INSTANCES_MAX = 1000
GROUPS_MAX = 200
CONTAINERS_MAX = 200
DISKS_MAX = 16
MEMORY_MIN_MIB, MEMORY_MAX_MIB = 128, 24 * 1024 * 1024
DISK_MIN_MIB, DISK_MAX_MIB = 16, 64 * 1024 * 1024
GROW_AT_LEAST = 0.5
SNAPSHOTS_APART_LEAST_SECONDS = 60.0
SNAPSHOTS_MAX = 100
CPUS_MAX = 1024
WATCH_MAX_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """`lines`: where a path (`instance_groups.db.stemcell`) stands, for errors that are found later."""

    manifest: Manifest
    file: str
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def no_files(path: str) -> str:
    """For callers that have only the text."""
    raise FileNotFoundError(path)


def parse_manifest(
    text: str | bytes,
    file: str,
    variables: Mapping[str, str] | None = None,
    read_file: Callable[[str], str] = no_files,
) -> ParsedManifest:
    """Raises ManifestErrors, and nothing else."""
    report = Report(file)
    names = dict(variables or {})
    root = Place(read_yaml(text, report, names), "", report)
    parsed = _Reader(report, names, read_file).manifest(root)
    report.raise_if_any()
    return parsed


def check_against(
    parsed: ParsedManifest,
    clouds: Collection[str],
    stemcells: Mapping[str, Collection[str]],
) -> tuple[ManifestError, ...]:
    """What the manifest names that the monitor does not have. `stemcells`: cloud → names; a cloud that is not in it
    could not be asked, and its stemcells are not checked."""
    errors: dict[tuple[int, str], ManifestError] = {}

    def add(group: InstanceGroup, key: str, message: str) -> None:
        path = f"instance_groups.{group.name}.{key}"
        line, column = parsed.lines.get(path) or parsed.lines.get(key) or (1, 1)
        shown = path if path in parsed.lines else key
        errors.setdefault((line, message), ManifestError(parsed.file, line, column, shown, message))

    for group in parsed.manifest.groups:
        if group.cloud not in clouds:
            add(group, "cloud", _not_known("cloud", group.cloud, clouds, "the monitor's configuration (clouds:)"))
        elif group.cloud in stemcells and group.stemcell not in stemcells[group.cloud]:
            known = stemcells[group.cloud]
            add(group, "stemcell", _not_known("stemcell", group.stemcell, known, "resurgam stemcell build"))
    return tuple(sorted(errors.values()))


def _not_known(what: str, name: str, known: Collection[str], source: str) -> str:
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return f"there is no {what} {name!r}; {hint} ({what}s come from {source})"


@dataclass(slots=True)
class _Defaults:
    """Top-level keys that hold for groups which do not say otherwise."""

    stemcell: str
    cloud: str
    vm: VmSize
    update: UpdatePolicy
    networks: tuple[str, ...]
    on_isolation: OnIsolation
    resurrection: bool


class _Reader:
    def __init__(self, report: Report, variables: Mapping[str, str], read_file: Callable[[str], str]) -> None:
        self._report = report
        self._variables = variables
        self._read_file = read_file
        self._lines: dict[str, tuple[int, int]] = {}

    def manifest(self, root: Place) -> ParsedManifest:
        fields = root.fields(TOP_KEYS, TOP_REFUSED, "a mapping that begins with name:", extensions=True)
        if root.is_mapping:
            for key in ("name", "instance_groups"):
                if key not in fields:
                    self._report.add(root.node.line, 1, key, f"is missing; expected {_EXPECTED[key]}")
        name = fields["name"].name("deployment's name") if "name" in fields else ""
        defaults = self._defaults(fields)
        groups = self._groups(fields["instance_groups"], defaults) if "instance_groups" in fields else []
        return ParsedManifest(Manifest(DeploymentName(name), tuple(groups)), self._report.file, self._lines)

    def _defaults(self, fields: Mapping[str, Place]) -> _Defaults:
        return _Defaults(
            stemcell=self._named(fields, "stemcell"),
            cloud=self._named(fields, "cloud"),
            vm=_vm(fields["vm"], VmSize()) if "vm" in fields else VmSize(),
            update=_update(fields["update"], UpdatePolicy()) if "update" in fields else UpdatePolicy(),
            networks=_networks(fields["networks"]) if "networks" in fields else (),
            on_isolation=_on_isolation(fields, OnIsolation.KEEP),
            resurrection=fields["resurrection"].boolean(True) if "resurrection" in fields else True,
        )

    def _named(self, fields: Mapping[str, Place], key: str) -> str:
        if key not in fields:
            return ""
        place = fields[key]
        self._lines[place.path] = (place.node.line, place.node.column)
        return place.text(f"a {key}'s name")

    def _groups(self, place: Place, defaults: _Defaults) -> list[InstanceGroup]:
        groups: list[InstanceGroup] = []
        seen: dict[str, int] = {}
        items = place.items("a list of groups: - name: …")
        if place.is_list and not items:
            place.error("no group; expected at least one")
        if len(items) > GROUPS_MAX:
            place.error(f"{len(items)} groups; at most {GROUPS_MAX}")
        for item in items:
            group = self._group(item, defaults)
            if group.name and group.name in seen:
                item.error(f"a second group {group.name!r} (the first is in line {seen[group.name]}); names are unique")
            seen.setdefault(group.name, item.node.line)
            groups.append(group)
        return groups

    def _group(self, place: Place, defaults: _Defaults) -> InstanceGroup:
        place = Place(place.node, _group_path(place), place.report)
        fields = place.fields(GROUP_KEYS, GROUP_REFUSED, "a mapping that begins with name:", extensions=True)
        for key in ("name", "containers"):
            if key not in fields and place.is_mapping:
                place.error(f"{key} is missing; expected {_EXPECTED[key]}")
        name = fields["name"].name("group's name") if "name" in fields else ""
        stemcell = self._named(fields, "stemcell") or defaults.stemcell
        cloud = self._named(fields, "cloud") or defaults.cloud
        for key, value in (("stemcell", stemcell), ("cloud", cloud)):
            if not value and key not in fields and place.is_mapping:
                place.error(f"{key} is missing; expected {_EXPECTED[key]}, here or at the top for all groups")
        disks = _disks(fields["persistent_disks"]) if "persistent_disks" in fields else []
        networks = _networks(fields["networks"]) if "networks" in fields else ()
        networks = tuple(dict.fromkeys((*defaults.networks, *networks)))
        containers: dict[str, ReadContainer] = {}
        if "containers" in fields:
            containers = self._containers(fields["containers"], [disk.name for disk in disks], networks)
        return InstanceGroup(
            name=name,
            instances=fields["instances"].integer(0, INSTANCES_MAX) if "instances" in fields else 1,
            vm=_vm(fields["vm"], defaults.vm) if "vm" in fields else defaults.vm,
            stemcell=stemcell,
            cloud=CloudName(cloud),
            disks=tuple(disks),
            containers=tuple(container.spec for container in containers.values()),
            update=_update(fields["update"], defaults.update) if "update" in fields else defaults.update,
            networks=networks,
            on_isolation=_on_isolation(fields, defaults.on_isolation),
            resurrection=fields["resurrection"].boolean(True) if "resurrection" in fields else defaults.resurrection,
        )

    def _containers(self, place: Place, disks: Collection[str], networks: tuple[str, ...]) -> dict[str, ReadContainer]:
        members = place.members("a mapping of container to {image: …}, as under services in Compose")
        if place.is_mapping and not members:
            place.error("no container; expected at least one")
        if len(members) > CONTAINERS_MAX:
            place.error(f"{len(members)} containers; at most {CONTAINERS_MAX} in a group")
        around = Surroundings([*members], disks, networks, self._variables, self._read_file)
        containers: dict[str, ReadContainer] = {}
        for name, inner in members.items():
            _check_name(inner, name, "container")
            if len(name) == 1:
                inner.key_error(f"{name!r} is no container's name: Docker wants at least 2 characters")
            containers[name] = read_container(name, inner, around)
        check_references(containers)
        check_host_ports((name, port, where) for name, one in containers.items() for port, where in one.ports)
        return containers


def _group_path(place: Place) -> str:
    """`instance_groups.db` when the name can be read, else `instance_groups[0]`."""
    members = place.node.value
    if isinstance(members, Mapping) and "name" in members and isinstance(members["name"].node.value, str):
        return f"instance_groups.{members['name'].node.text[:63]}"
    return place.path


def _check_name(place: Place, name: str, what: str) -> None:
    if not is_name(name):
        place.key_error(
            f"{name[:80]!r} is no {what}'s name; expected 1 to 63 of a-z, 0-9, - and _, "
            "with a letter or digit at each end"
        )


def _vm(place: Place, default: VmSize) -> VmSize:
    fields = place.fields(
        ("cpus", "memory", "cloud_properties"), VM_REFUSED, "a mapping such as {cpus: 1, memory: 1GiB}"
    )
    properties: Mapping[str, Any] = default.cloud_properties
    if "cloud_properties" in fields:
        properties = _properties(fields["cloud_properties"])
    return VmSize(
        cpus=fields["cpus"].integer(1, CPUS_MAX, "a whole number of CPUs") if "cpus" in fields else default.cpus,
        memory_mib=fields["memory"].size_mib(MEMORY_MIN_MIB, MEMORY_MAX_MIB)
        if "memory" in fields
        else default.memory_mib,
        cloud_properties=properties,
    )


def _disks(place: Place) -> list[DiskRequirement]:
    disks: list[DiskRequirement] = []
    if place.is_null:
        return disks
    members = place.members("a mapping of disk to size, such as {data: 10GiB}")
    if len(members) > DISKS_MAX:
        place.error(f"{len(members)} disks; at most {DISKS_MAX} in a VM")
    for name, inner in members.items():
        _check_name(inner, name, "disk")
        disks.append(_disk(DiskName(name), inner))
    return disks


def _disk(name: DiskName, place: Place) -> DiskRequirement:
    if not place.is_mapping:
        return DiskRequirement(name, place.size_mib(DISK_MIN_MIB, DISK_MAX_MIB))
    fields = place.fields(("size", "filesystem", "mount_options", "cloud_properties", "grow", "snapshots"))
    if "size" not in fields:
        place.error("size is missing; expected such as size: 10GiB")
    size_mib = fields["size"].size_mib(DISK_MIN_MIB, DISK_MAX_MIB) if "size" in fields else DISK_MIN_MIB
    return DiskRequirement(
        name,
        size_mib,
        fields["filesystem"].one_of(("ext4", "xfs"), "ext4") if "filesystem" in fields else "ext4",
        _mount_options(fields["mount_options"]) if "mount_options" in fields else (),
        _properties(fields["cloud_properties"]) if "cloud_properties" in fields else {},
        _growth(fields["grow"], size_mib) if "grow" in fields else None,
        _snapshots(fields["snapshots"]) if "snapshots" in fields else None,
    )


def _snapshots(place: Place) -> SnapshotSchedule | None:
    if place.is_null:
        return None
    fields = place.fields(("every", "keep"), {}, "a mapping such as {every: 24h, keep: 7}")
    for key, example in (("every", "24h"), ("keep", "7")):
        if key not in fields:
            place.error(f"{key} is missing; expected such as {key}: {example}")
    if not {"every", "keep"} <= set(fields):
        return None
    every = fields["every"].duration(SNAPSHOTS_APART_LEAST_SECONDS)
    return SnapshotSchedule(every, fields["keep"].integer(1, SNAPSHOTS_MAX))


def _growth(place: Place, size_mib: int) -> DiskGrowth | None:
    if place.is_null:
        return None
    fields = place.fields(("at", "by", "up_to"), {}, "a mapping such as {at: 85%, by: 25%, up_to: 100GiB}")
    for key, example in (("at", "85%"), ("by", "25%"), ("up_to", "100GiB")):
        if key not in fields:
            place.error(f"{key} is missing; expected such as {key}: {example}")
    if not {"at", "by", "up_to"} <= set(fields):
        return None
    grow = DiskGrowth(
        fields["at"].share(), fields["by"].share(), fields["up_to"].size_mib(DISK_MIN_MIB, DISK_MAX_MIB, DISK_MAX_MIB)
    )
    if grow.at_share < GROW_AT_LEAST:
        fields["at"].error(f"{grow.at_share:.0%}; at least {GROW_AT_LEAST:.0%}: a disk never shrinks again by itself")
    if grow.up_to_mib <= size_mib:
        fields["up_to"].error(f"expected more than the disk's size, {units.size_text(size_mib)}")
    return grow


def _mount_options(place: Place) -> tuple[str, ...]:
    options = place.texts("a list such as [noatime]") if place.is_list else tuple(place.text("a list").split(","))
    for option in options:
        if not option.replace("=", "").replace("_", "").replace("-", "").isalnum() or option in (
            "ro",
            "bind",
            "remount",
        ):
            place.error(f"mount option {option!r}; expected such as noatime (read-only is a container's choice: …:ro)")
    return options


def _properties(place: Place) -> Mapping[str, Any]:
    if place.is_null:
        return {}
    return {
        key: inner.plain() for key, inner in place.members("a mapping that the cloud's provider understands").items()
    }


def _update(place: Place, default: UpdatePolicy) -> UpdatePolicy:
    fields = place.fields(
        ("canaries", "max_in_flight", "canary_watch_time", "update_watch_time"),
        {
            "serial": "groups are always updated one after another, in the manifest's order",
            "initial_deploy_az_update_strategy": "there are no availability zones; write a group for each",
            "vm_strategy": "a VM is always replaced after the old one is fenced: disks have one writer",
        },
        extensions=True,
    )

    def watch(key: str, value: float) -> float:
        if key not in fields:
            return value
        inner = fields[key]
        if inner.is_text and "-" in inner.node.text and inner.node.text.replace("-", "").replace(" ", "").isdigit():
            inner.error(f"{inner.node.text!r} is BOSH's range of milliseconds; write the longest wait, such as 5m")
            return value
        return inner.duration(1.0, WATCH_MAX_SECONDS)

    return UpdatePolicy(
        canaries=fields["canaries"].integer(0, INSTANCES_MAX) if "canaries" in fields else default.canaries,
        max_in_flight=fields["max_in_flight"].integer(1, INSTANCES_MAX)
        if "max_in_flight" in fields
        else default.max_in_flight,
        canary_watch_seconds=watch("canary_watch_time", default.canary_watch_seconds),
        update_watch_seconds=watch("update_watch_time", default.update_watch_seconds),
    )


def _networks(place: Place) -> tuple[str, ...]:
    """Bridges to make on the VM: a list of names, or Compose's mapping with nothing that a bridge has not."""
    names: list[str] = []
    if place.is_mapping:
        for name, inner in place.members().items():
            if not inner.is_null:
                fields = inner.fields(
                    ("driver",),
                    {
                        key: f"{key} is not supported: a network here is a plain bridge of the VM"
                        for key in _NETWORK_KEYS
                    },
                )
                if "driver" in fields:
                    fields["driver"].one_of(("bridge",), "bridge")
            _check_name(inner, name, "network")
            names.append(name)
    elif not place.is_null:
        for item in place.items("a list of names, such as [backend]"):
            names.append(item.name("network's name"))
    for name in names:
        if name in ("host", "none", "bridge", "default"):
            place.error(f"{name!r} is a network that every VM has; choose another name")
    if len(set(names)) < len(names):
        place.error("a network stands here twice")
    return tuple(names)


def _on_isolation(fields: Mapping[str, Place], default: OnIsolation) -> OnIsolation:
    return fields["on_isolation"].choice(OnIsolation, default) if "on_isolation" in fields else default


TOP_KEYS = (
    "name",
    "stemcell",
    "cloud",
    "vm",
    "update",
    "networks",
    "on_isolation",
    "resurrection",
    "instance_groups",
)
GROUP_KEYS = (
    "name",
    "instances",
    "vm",
    "stemcell",
    "cloud",
    "persistent_disks",
    "on_isolation",
    "resurrection",
    "update",
    "networks",
    "containers",
)
_EXPECTED = {
    "name": "such as name: shop",
    "instance_groups": "a list of groups, each with a name and containers",
    "containers": "a mapping of container to {image: …}",
    "stemcell": "the name of a VM image such as debian-12",
    "cloud": "the name of a cloud in the monitor's configuration",
}
_NETWORK_KEYS = ("driver_opts", "external", "ipam", "internal", "attachable", "enable_ipv6", "labels", "name")
