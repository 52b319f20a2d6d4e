"""The health monitor's configuration file → `Configuration`, or every error in it with file and line.

Law: parsed once to frozen values; secrets are named by file and read by the shell (`configuration_file.py`). A bus or
an HTTP address that others can reach is refused without credentials.

Does not know: what a provider or a channel does with its options; they are passed on with their lines.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from healthmonitor.core.addresses import is_loopback, read_listen, read_public_url, read_urls
from healthmonitor.core.configuration_keys import PRESETS, SECTIONS, Key, Kind
from healthmonitor.core.located_yaml import Report, read_yaml
from healthmonitor.core.maintenance import Window, read_windows
from healthmonitor.core.notifying.route_file import read_routes, read_zone
from healthmonitor.core.notifying.routing import Route
from healthmonitor.core.policy import AlertPolicy, Policy
from healthmonitor.core.units import MIB, duration_text
from healthmonitor.core.yaml_places import Place
from protocol.ids import CloudName, is_token

DEFAULT_LISTEN = ("127.0.0.1", 25923)
DEFAULT_BUS_URL = "nats://127.0.0.1:4222"
DEFAULT_STATE_DIRECTORY = "/var/lib/resurgam"
PROVIDERS = ("qemu", "docker")
"""Those of `healthmonitor/clouds/registry.py`; a test keeps the two equal."""
CHANNEL_TYPES = ("log", "email", "pagerduty", "webhook", "alertmanager", "apprise", "exec")
"""Those of `healthmonitor/channels/build.py`; a test keeps the two equal."""


@dataclass(frozen=True, slots=True)
class BusConfiguration:
    """Files are absolute paths, "" when not given."""

    urls: tuple[str, ...] = (DEFAULT_BUS_URL,)
    user: str = ""
    password_file: str = ""
    credentials_file: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    system_user: str = ""  # of the system account, which hears disconnects
    system_password_file: str = ""
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class AgentsConfiguration:
    """What agents are told. `bus_urls` as they see the bus from their VMs."""

    bus_urls: tuple[str, ...] = (DEFAULT_BUS_URL,)
    user: str = ""
    password_file: str = ""
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class RegistriesConfiguration:
    auth_file: str = ""
    mirrors: tuple[str, ...] = ()
    ca_files: Mapping[str, str] = field(default_factory=dict)  # HOST or HOST:PORT → path


@dataclass(frozen=True, slots=True)
class HttpConfiguration:
    host: str = DEFAULT_LISTEN[0]
    port: int = DEFAULT_LISTEN[1]
    token_file: str = ""
    reader_token_file: str = ""  # its holder may look, and change nothing
    public_url: str = ""  # where people's browsers reach it; notifications link there


@dataclass(frozen=True, slots=True)
class CloudConfiguration:
    """`lines`: option → (line, column), for errors that the provider finds."""

    name: CloudName
    provider: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class ChannelConfiguration:
    name: str
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)
    delivery: Mapping[str, Any] = field(default_factory=dict)  # fields of AlertPolicy that are this channel's own
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)
    place: tuple[int, int] = field(default=(1, 1), compare=False)  # line and column of its type


@dataclass(frozen=True, slots=True)
class Configuration:
    file: str = ""
    monitor: str = "hm"
    state_dir: str = DEFAULT_STATE_DIRECTORY
    log_level: str = "info"
    bus: BusConfiguration = field(default_factory=BusConfiguration)
    agents: AgentsConfiguration = field(default_factory=AgentsConfiguration)
    registries: RegistriesConfiguration = field(default_factory=RegistriesConfiguration)
    http: HttpConfiguration = field(default_factory=HttpConfiguration)
    policy: Policy = field(default_factory=Policy)
    clouds: Mapping[CloudName, CloudConfiguration] = field(default_factory=dict)
    channels: tuple[ChannelConfiguration, ...] = ()
    zone: str = "UTC"  # of hours in routes
    routes: tuple[Route, ...] = ()
    maintenance: tuple[Window, ...] = ()
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)
    """Where `bus.password_file` and the like stand, for errors that the shell finds."""


def parse_configuration(text: str | bytes, file: str, directory: str = "/etc/resurgam") -> Configuration:
    """Raises ManifestErrors, and nothing else. Relative paths in it are relative to `directory`, the file's own."""
    report = Report(file)
    root = Place(read_yaml(text, report), "", report)
    fields = root.fields(TOP_KEYS, TOP_REFUSED, "a mapping such as {preset: site}", extensions=True)
    paths = _Paths(directory)
    bus = _bus(fields["bus"], paths) if "bus" in fields else BusConfiguration()
    agents = _agents(fields["agents"], paths) if "agents" in fields else AgentsConfiguration(bus_urls=bus.urls)
    policy = _policy(fields)
    channels = _channels(fields["channels"], policy.alerts) if "channels" in fields else ()
    zone = read_zone(fields["zone"]) if "zone" in fields else "UTC"
    clouds = _clouds(fields["clouds"], paths) if "clouds" in fields else {}
    spares = _spares(fields["spares"], clouds) if "spares" in fields else {}
    configuration = Configuration(
        file=file,
        monitor=_monitor(fields["monitor"]) if "monitor" in fields else "hm",
        state_dir=paths.read(fields, "state_dir") or DEFAULT_STATE_DIRECTORY,
        log_level=fields["log_level"].one_of(("debug", "info", "warning", "error"), "info")
        if "log_level" in fields
        else "info",
        bus=bus,
        agents=agents if agents.bus_urls else replace(agents, bus_urls=bus.urls),
        registries=_registries(fields["registries"], paths) if "registries" in fields else RegistriesConfiguration(),
        http=_http(fields["http"], paths) if "http" in fields else HttpConfiguration(),
        policy=replace(policy, spares=replace(policy.spares, per_size=spares)),
        clouds=clouds,
        channels=channels,
        zone=zone,
        routes=read_routes(fields["routes"], [each.name for each in channels], zone) if "routes" in fields else (),
        maintenance=read_windows(fields["maintenance"]) if "maintenance" in fields else (),
        lines=paths.lines,
    )
    report.raise_if_any()
    return configuration


def differences_needing_restart(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Keys whose change takes effect only with a restart; a reload applies everything else and names these."""
    return tuple(name for name in RESTART_KEYS if getattr(old, name) != getattr(new, name))


class _Paths:
    """Reads paths and remembers where they stand."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.lines: dict[str, tuple[int, int]] = {}

    def read(self, fields: Mapping[str, Place], key: str) -> str:
        if key not in fields:
            return ""
        place = fields[key]
        self.lines[place.path] = (place.node.line, place.node.column)
        text = place.text("a path")
        if text.startswith("~"):
            place.error(f"{text!r}: ~ is not expanded; write the whole path")
        return posixpath.normpath(posixpath.join(self._directory, text)) if text else ""


def _monitor(place: Place) -> str:
    text = place.text("a name for this monitor")
    if text and (not is_token(text) or len(text) > 40):
        place.error(f"{text!r}: expected 1 to 40 of A-Z, a-z, 0-9, - and _ (two monitors have two names)")
    return text


def _bus(place: Place, paths: _Paths) -> BusConfiguration:
    fields = place.fields(BUS_KEYS, BUS_REFUSED)
    bus = BusConfiguration(
        urls=read_urls(fields["urls"]) if "urls" in fields else (DEFAULT_BUS_URL,),
        user=fields["user"].text("a user") if "user" in fields else "",
        system_user=fields["system_user"].text("a user") if "system_user" in fields else "",
        replicas=fields["replicas"].integer(1, 5) if "replicas" in fields else 1,
        **{key: paths.read(fields, key) for key in BUS_KEYS if key.endswith("_file")},
    )
    _both_or_none(place, fields, "user", "password_file")
    _both_or_none(place, fields, "system_user", "system_password_file")
    _both_or_none(place, fields, "certificate_file", "key_file")
    if bus.replicas % 2 == 0:
        fields["replicas"].error(f"{bus.replicas} replicas survive no more than {bus.replicas - 1} do; write 1, 3 or 5")
    if bus.user and bus.credentials_file:
        fields["credentials_file"].key_error("cannot be combined with user; leave one of them out")
    secured = bus.password_file or bus.credentials_file or bus.certificate_file
    if not secured and not all(is_loopback(url) for url in bus.urls):
        fields.get("urls", place).error(
            "this address can be reached by others, so credentials are needed: user and password_file, "
            "credentials_file, or certificate_file and key_file (only a loopback address needs none)"
        )
    return bus


def _agents(place: Place, paths: _Paths) -> AgentsConfiguration:
    fields = place.fields(
        ("bus_urls", "user", "password_file", "ca_file"),
        {"password": "secrets come from files: write password_file", "urls": "write bus_urls"},
    )
    _both_or_none(place, fields, "user", "password_file")
    return AgentsConfiguration(
        bus_urls=read_urls(fields["bus_urls"]) if "bus_urls" in fields else (),
        user=fields["user"].text("a user") if "user" in fields else "",
        password_file=paths.read(fields, "password_file"),
        ca_file=paths.read(fields, "ca_file"),
    )


def _registries(place: Place, paths: _Paths) -> RegistriesConfiguration:
    fields = place.fields(
        REGISTRIES_KEYS,
        {
            "auths": "secrets come from files: write auth_file",
            "auth": "secrets come from files: write auth_file",
            "insecure": "there are none: give the authority of its certificate with ca_files",
        },
    )
    mirrors = []
    for item in fields["mirrors"].items("a list of URLs") if "mirrors" in fields else ():
        text = item.text("https://HOST")
        if text and not _MIRROR.fullmatch(text):
            item.error(f"{text[:200]!r}: expected https://HOST or https://HOST:PORT, without user and path")
        mirrors.append(text)
    members = fields["ca_files"].members("a mapping of HOST:PORT to a file") if "ca_files" in fields else {}
    for host, inner in members.items():
        if not _REGISTRY_HOST.fullmatch(host):
            inner.key_error(f"{host[:80]!r} is no registry; expected HOST or HOST:PORT, as images name it")
    return RegistriesConfiguration(
        auth_file=paths.read(fields, "auth_file"),
        mirrors=tuple(mirrors),
        ca_files={host: paths.read(members, host) for host in members},
    )


def _http(place: Place, paths: _Paths) -> HttpConfiguration:
    fields = place.fields(
        HTTP_KEYS,
        {
            "token": "secrets come from files: write token_file",
            "reader_token": "secrets come from files: write reader_token_file",
            "port": "write listen: 127.0.0.1:PORT",
        },
    )
    host, port = read_listen(fields["listen"], DEFAULT_LISTEN) if "listen" in fields else DEFAULT_LISTEN
    http = HttpConfiguration(
        host,
        port,
        paths.read(fields, "token_file"),
        paths.read(fields, "reader_token_file"),
        read_public_url(fields["public_url"]) if "public_url" in fields else "",
    )
    if http.public_url and not http.token_file and not is_loopback(http.public_url):
        fields["public_url"].key_error(
            "needs token_file beside it: it signs the links, and what comes through a proxy on this machine would "
            "otherwise count as people on this machine"
        )
    if http.reader_token_file and not http.token_file:
        fields["reader_token_file"].key_error("needs token_file beside it: with it alone nobody could change anything")
    if not http.token_file and "listen" in fields and not is_loopback(f"http://{_bracketed(host)}:{port}"):
        fields["listen"].error(
            "this address can be reached by others, so a token is needed: token_file "
            "(only a loopback address needs none)"
        )
    return http


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _both_or_none(place: Place, fields: Mapping[str, Place], one: str, other: str) -> None:
    for present, missing in ((one, other), (other, one)):
        if present in fields and missing not in fields:
            fields[present].key_error(f"needs {missing} beside it")


def _policy(fields: Mapping[str, Place]) -> Policy:
    preset = fields["preset"].one_of(PRESETS, "site") if "preset" in fields else "site"
    values: dict[str, dict[str, Any]] = {}  # field of Policy → its fields
    given: dict[str, Place] = {}
    for section in SECTIONS:
        into = values.setdefault(section.policy, {})
        preset_values = PRESETS[preset].get(section.name, {})
        into.update({key.field: preset_values[key.name] for key in section.keys if key.name in preset_values})
        if section.name not in fields:
            continue
        found = fields[section.name].fields([key.name for key in section.keys])
        for key in section.keys:
            if key.name in found:
                into[key.field] = _value(found[key.name], key)
                given[f"{section.name}.{key.name}"] = found[key.name]
    if "heartbeat.interval" in given and "heartbeat.lease" not in given:
        values["liveness"]["lease_seconds"] = 3 * values["liveness"]["heartbeat_interval_seconds"]
    base = Policy()
    liveness = replace(base.liveness, **values["liveness"])
    derived = {
        "late_seconds": liveness.heartbeat_interval_seconds / 2,
        "suspect_after_seconds": liveness.heartbeat_interval_seconds * 1.5,
        "start_grace_seconds": liveness.lease_seconds,
    }
    unset: dict[str, Any] = {name: value for name, value in derived.items() if name not in values["liveness"]}
    policy = replace(
        base,
        liveness=replace(liveness, **unset),
        meltdown=replace(base.meltdown, **values["meltdown"]),
        resurrection=replace(base.resurrection, **values["resurrection"]),
        incidents=replace(base.incidents, **values["incidents"]),
        leadership=replace(base.leadership, **values["leadership"]),
        alerts=replace(base.alerts, **values["alerts"]),
        images=replace(base.images, **values["images"]),
        disks=replace(base.disks, **values["disks"]),
    )
    _check(policy, given)
    return policy


def _value(place: Place, key: Key) -> Any:
    match key.kind:
        case Kind.DURATION:
            return place.duration(key.minimum, key.maximum)
        case Kind.BOOLEAN:
            return place.boolean()
        case Kind.COUNT:
            return place.integer(int(key.minimum), int(key.maximum))
        case Kind.SHARE:
            return place.share()
        case Kind.SIZE:
            return place.size_mib(int(key.minimum), int(key.maximum)) * MIB


def _check(policy: Policy, given: Mapping[str, Place]) -> None:
    """What several keys must be to one another; the error stands at one that was written."""
    live, leader = policy.liveness, policy.leadership
    interval, lease = live.heartbeat_interval_seconds, live.lease_seconds

    def add(message: str, *keys: str) -> None:
        place = next((given[key] for key in keys if key in given), None)
        if place is not None:
            place.error(message)

    if lease < 2 * interval:
        add(
            f"the lease ({duration_text(lease)}) must be at least 2 intervals ({duration_text(2 * interval)}): "
            "one lost heartbeat is no lost VM",
            "heartbeat.lease",
            "heartbeat.interval",
        )
    if live.suspect_after_seconds >= lease >= 2 * interval:
        add("must be less than the lease: the agent is asked before it", "liveness.suspect_after")
    if live.start_grace_seconds < lease:
        add(f"must be at least the lease ({duration_text(lease)})", "liveness.start_grace", "heartbeat.lease")
    if live.canary_lost_seconds < 2 * live.canary_interval_seconds:
        add("canary_lost must be at least 2 x canary_interval", "liveness.canary_lost", "liveness.canary_interval")
    if leader.ttl_seconds < 3 * leader.renew_seconds:
        add(
            f"ttl ({duration_text(leader.ttl_seconds)}) must be at least 3 x renew "
            f"({duration_text(3 * leader.renew_seconds)}): a leader stops at ttl - 2 x renew",
            "leadership.ttl",
            "leadership.renew",
        )
    if policy.meltdown.maximum_count < policy.meltdown.minimum_count:
        add("maximum_count must be at least minimum_count", "meltdown.maximum_count", "meltdown.minimum_count")
    alerts = policy.alerts
    if alerts.retry_longest_seconds < alerts.retry_first_seconds:
        add("retry_longest must be at least retry_first", "alerts.retry_longest", "alerts.retry_first")
    if alerts.group_longest_seconds < alerts.group_wait_seconds:
        add("group_longest must be at least group_wait", "alerts.group_longest", "alerts.group_wait")
    if policy.resurrection.retry_longest_seconds < policy.resurrection.retry_first_seconds:
        add("retry_longest must be at least retry_first", "resurrector.retry_longest", "resurrector.retry_first")


def _clouds(place: Place, paths: _Paths) -> dict[CloudName, CloudConfiguration]:
    clouds: dict[CloudName, CloudConfiguration] = {}
    for name, inner in place.members("a mapping of name to {provider: …}").items():
        if not is_token(name) or len(name) > 63:
            inner.key_error(f"{name[:80]!r} is no cloud's name; expected 1 to 63 of A-Z, a-z, 0-9, - and _")
        members = inner.members("a mapping such as {provider: qemu}")
        if "provider" not in members:
            if inner.is_mapping:
                inner.key_error(f"provider is missing; expected one of {', '.join(PROVIDERS)}")
            continue
        options = {key: option for key, option in members.items() if key != "provider"}
        lines = {key: (option.node.line, option.node.column) for key, option in options.items()}
        paths.lines.update({option.path: lines[key] for key, option in options.items()})
        clouds[CloudName(name)] = CloudConfiguration(
            CloudName(name),
            members["provider"].one_of(PROVIDERS, PROVIDERS[0]),
            {key: option.plain() for key, option in options.items()},
            lines,
        )
    return clouds


def _spares(place: Place, clouds: Mapping[CloudName, CloudConfiguration]) -> dict[CloudName, int]:
    """How many for each stemcell and size of VM, by cloud."""
    spares: dict[CloudName, int] = {}
    for name, count in place.members("a mapping of cloud to number, such as {local: 1}").items():
        if name not in clouds:
            known = ", ".join(clouds) or "none"
            count.key_error(f"{name[:80]!r} is no cloud of this configuration; there are: {known}")
        spares[CloudName(name)] = count.integer(0, SPARES_MAX)
    return spares


def _channels(place: Place, alerts: AlertPolicy) -> tuple[ChannelConfiguration, ...]:
    channels: list[ChannelConfiguration] = []
    for item in place.items("a list of channels: - {name: …, type: …}"):
        fields = item.fields(("name", "type", "options", "delivery"))
        for key in ("name", "type"):
            if key not in fields and item.is_mapping:
                item.error(f"{key} is missing")
        name = fields["name"].name("channel's name") if "name" in fields else ""
        if name and name in {channel.name for channel in channels}:
            fields["name"].error(f"a second channel {name!r}; names are unique")
        options = fields["options"].members() if "options" in fields else {}
        channels.append(
            ChannelConfiguration(
                name,
                fields["type"].one_of(CHANNEL_TYPES, "") if "type" in fields else "",
                {key: option.plain() for key, option in options.items()},
                _delivery(fields["delivery"], alerts) if "delivery" in fields else {},
                {key: (option.node.line, option.node.column) for key, option in options.items()},
                (fields["type"].node.line, fields["type"].node.column) if "type" in fields else (1, 1),
            )
        )
    return tuple(channels)


def _delivery(place: Place, alerts: AlertPolicy) -> Mapping[str, Any]:
    """What holds for this channel instead of the section `alerts`."""
    keys = {key.name: key for section in SECTIONS if section.name == "alerts" for key in section.keys}
    fields = place.fields(DELIVERY_KEYS, dict.fromkeys(keys, "stands in the section alerts only"))
    values = {keys[name].field: _value(given, keys[name]) for name, given in fields.items()}
    own = replace(alerts, **values)
    if own.retry_longest_seconds < own.retry_first_seconds:
        place.error("retry_longest must be at least retry_first")
    return values


DELIVERY_KEYS = (
    "per_minute",
    "try_timeout",
    "retry_first",
    "retry_longest",
    "circuit_after",
    "give_up",
    "backlog_max",
)
"""Of the section `alerts`: what each channel may have of its own."""
TOP_KEYS = (
    "preset",
    "monitor",
    "state_dir",
    "log_level",
    "bus",
    "agents",
    "http",
    "registries",
    *(section.name for section in SECTIONS),
    "clouds",
    "spares",
    "channels",
    "zone",
    "routes",
    "maintenance",
)
REGISTRIES_KEYS = ("auth_file", "mirrors", "ca_files")
_REGISTRY_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_MIRROR = re.compile(rf"https?://{_REGISTRY_HOST.pattern}/?")
SPARES_MAX = 100
"""For each stemcell and size of VM, in one cloud."""
HTTP_KEYS = ("listen", "token_file", "reader_token_file", "public_url")
BUS_KEYS = (
    "urls",
    "user",
    "password_file",
    "credentials_file",
    "ca_file",
    "certificate_file",
    "key_file",
    "system_user",
    "system_password_file",
    "replicas",
)
BUS_REFUSED = {
    "url": "write urls: [URL]",
    "password": "secrets come from files: write password_file",
    "system_password": "secrets come from files: write system_password_file",
    "token": "secrets come from files: write user and password_file, or credentials_file",
    "credentials": "secrets come from files: write credentials_file",
}
TOP_REFUSED = {
    "nats": "write bus",
    "mbus": "write bus",
    "resurrection": "write resurrector",
    "plugins": "write channels",
    "spare": "write spares: {CLOUD: NUMBER}",
    "pool": "write spares: {CLOUD: NUMBER}",
    "director": "there is none: the monitor holds the deployments",
    "intervals": "write heartbeat: {interval: …, lease: …}",
    "route": "write routes: [{channels: [NAME]}]",
    "receivers": "write channels",
    "quiet_hours": "write quiet in a route",
    "escalation": "write escalate in a route",
    "escalate": "write escalate in a route",
    "timezone": "write zone",
    "cloud": "write clouds: {NAME: {provider: …}}",
    "agents_bus_urls": "write agents: {bus_urls: […]}",
}
RESTART_KEYS = ("monitor", "state_dir", "bus", "http", "clouds")
