"""Ports, networks and names of a container, from Compose's notation.

Law: what two containers of a VM cannot both have (a host port) is found here, before the engine refuses it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable

from healthmonitor.core.yaml_places import Place, unknown
from protocol.spec import Port

RANGE_MAX = 1000
PORTS_MAX = 1000
_PORT = re.compile(r"(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?")
_PROTOCOLS = ("tcp", "udp", "sctp")
_SHORT = re.compile(
    r"(?:(?:(?P<ip>\[[^\]]+\]|[^:\[\]]*):)?(?P<host>[\d-]*):)?(?P<container>[\d-]+)(?:/(?P<protocol>\w+))?"
)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_MAC = re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")


def read_ports(place: Place) -> list[tuple[Port, Place]]:
    ports: list[tuple[Port, Place]] = []
    for item in place.items('a list such as ["8080:80"]'):
        if len(ports) > PORTS_MAX:
            item.error(f"more than {PORTS_MAX} ports in one container; network_mode: host has them all")
            break
        ports.extend((port, item) for port in (_long_port(item) if item.is_mapping else _short_port(item)))
    return ports


def read_exposed(place: Place) -> list[Port]:
    ports: list[Port] = []
    for item in place.items('a list such as ["6379"]'):
        if len(ports) > PORTS_MAX:
            item.error(f"more than {PORTS_MAX} ports in one container")
            break
        number, _, protocol = item.text("a port").partition("/")
        first, last = _range(item, number)
        if first:
            ports.extend(Port(one, protocol=_protocol(item, protocol or "tcp")) for one in range(first, last + 1))
    return ports


def check_host_ports(ports: Iterable[tuple[str, Port, Place]]) -> None:
    """`ports`: (container, port, where) of one group: all run on the same VM."""
    taken: dict[tuple[str, int], list[tuple[str, Port, Place]]] = {}
    for container, port, place in ports:
        if not port.host_port:
            continue
        others = taken.setdefault((port.protocol, port.host_port), [])
        for other, other_port, other_place in others:
            if _overlap(port.host_ip, other_port.host_ip):
                place.error(
                    f"host port {port.host_port}/{port.protocol} is taken by {other} (line {other_place.node.line}); "
                    "all containers of a group share their VM, so choose another"
                )
                break
        others.append((container, port, place))


def read_network_mode(place: Place, containers: Collection[str]) -> tuple[str, str]:
    """(network_mode of the specification, the container it borrows from or "")."""
    mode = place.text("host, none, bridge or service:NAME")
    kind, colon, name = mode.partition(":")
    if colon and kind in ("service", "container"):
        if name not in containers:
            place.error(unknown("container", name, containers))
        return f"container:{name}", name
    if mode not in ("host", "none", "bridge"):
        place.wrong("host, none, bridge or service:NAME")
    return mode, ""


def read_networks(place: Place, declared: Collection[str]) -> tuple[str, ...]:
    named: list[tuple[str, Place]] = []
    if place.is_mapping:
        for name, inner in place.members().items():
            if not inner.is_null:
                inner.fields((), dict.fromkeys(_NETWORK_OPTIONS, _NO_OPTIONS))
            named.append((name, inner))
    else:
        named = [(item.text("a network's name"), item) for item in place.items("a list or mapping of networks")]
    names: list[str] = []
    for name, where in named:
        if name == "default":
            if len(named) > 1:
                where.key_error("default cannot be combined with others: leave networks out, or declare one for all")
        elif name and name not in declared:
            where.key_error(unknown("network", name, declared) + " (networks of a VM are declared on its group)")
        elif name in names:
            where.key_error(f"network {name} stands here a second time")
        else:
            names.append(name)
    return tuple(names)


def read_extra_hosts(place: Place) -> tuple[str, ...]:
    if place.is_mapping:
        entries = [(name, inner, value) for name, inner in place.members().items() for value in inner.text_or_texts()]
    else:
        entries = []
        for item in place.items('a mapping, or a list of "name:address"'):
            text = item.text('"name:address"')
            separator = "=" if "=" in text else ":"
            name, _, value = text.partition(separator)
            entries.append((name, item, value))
    hosts: list[str] = []
    for name, where, value in entries:
        address = value.strip().strip("[]")
        if not _HOST.fullmatch(name) or (address != "host-gateway" and not _is_address(address)):
            where.error(f'expected "name:address" with an IP address or host-gateway, found {f"{name}:{value}"!r}')
        else:
            hosts.append(f"{name}:{address}")
    return tuple(hosts)


def read_addresses(place: Place) -> tuple[str, ...]:
    texts = place.text_or_texts("an IP address or a list of them")
    for text in texts:
        if not _is_address(text):
            place.error(f"{text!r} is not an IP address")
    return texts


def read_hostname(place: Place) -> str:
    text = place.text("a host name")
    if text and not _HOST.fullmatch(text):
        place.error(f"{text!r} is no host name; expected letters, digits, - and .")
    return text


def read_mac_address(place: Place) -> str:
    text = place.text("a MAC address")
    if text and not _MAC.fullmatch(text):
        place.error(f"{text!r} is no MAC address; expected such as 02:42:ac:11:00:02")
    return text.lower()


_NETWORK_OPTIONS = (
    "aliases",
    "ipv4_address",
    "ipv6_address",
    "link_local_ips",
    "mac_address",
    "driver_opts",
    "gw_priority",
    "priority",
    "interface_name",
)
_NO_OPTIONS = "networks take no options here: containers find one another by their names; write a list of networks"


def _short_port(place: Place) -> list[Port]:
    text = place.text('a port such as "8080:80"')
    if not text:
        return []
    match = _SHORT.fullmatch(text)
    if match is None:
        place.error(
            f'{text!r} is no port; expected "HOST:CONTAINER", "ADDRESS:HOST:CONTAINER" or "CONTAINER", with /udp'
        )
        return []
    return _ports(place, match["container"], match["host"] or "", match["ip"] or "", match["protocol"] or "tcp")


def _long_port(place: Place) -> list[Port]:
    fields = place.fields(
        ("target", "published", "host_ip", "protocol", "mode", "name", "app_protocol"), extensions=True
    )
    if "target" not in fields:
        place.error("target is missing; expected the port in the container")
        return []
    if "mode" in fields:
        fields["mode"].one_of(("host", "ingress"), "host")
    return _ports(
        place,
        str(fields["target"].integer(1, 65535)),
        fields["published"].text("a port") if "published" in fields else "",
        fields["host_ip"].text("an IP address") if "host_ip" in fields else "",
        fields["protocol"].one_of(_PROTOCOLS, "tcp") if "protocol" in fields else "tcp",
    )


def _ports(place: Place, container: str, host: str, host_ip: str, protocol: str) -> list[Port]:
    first, last = _range(place, container)
    host_first, host_last = _range(place, host) if host else (0, 0)
    address = host_ip.strip("[]")
    if address and not _is_address(address):
        place.error(f"{host_ip!r} is not an IP address of the VM")
    protocol = _protocol(place, protocol)
    if not first or (host and not host_first):
        return []
    if host and host_last - host_first != last - first:
        place.error(
            f"{host_last - host_first + 1} host ports for {last - first + 1} container ports; "
            "expected as many on both sides (a free one of a range is not chosen: people must find it again)"
        )
        return []
    return [
        Port(
            container_port=first + offset,
            host_port=host_first + offset if host else 0,
            host_ip=address,
            protocol=protocol,
            published=not host,
        )
        for offset in range(last - first + 1)
    ]


def _range(place: Place, text: str) -> tuple[int, int]:
    match = _PORT.fullmatch(text)
    first = int(match["first"]) if match else 0
    last = int(match["last"] or first) if match else 0
    if match is None or not 1 <= first <= last <= 65535:
        place.error(f"{text!r} is no port; expected 1 to 65535, or a range such as 8000-8010")
        return 0, 0
    if last - first >= RANGE_MAX:
        place.error(f"{last - first + 1} ports; at most {RANGE_MAX} in a range (network_mode: host has them all)")
        return 0, 0
    return first, last


def _protocol(place: Place, text: str) -> str:
    if text.lower() in _PROTOCOLS:
        return text.lower()
    place.error(f"protocol {text!r}; expected {', '.join(_PROTOCOLS)}")
    return "tcp"


def _overlap(one: str, other: str) -> bool:
    everywhere = ("", "0.0.0.0", "::")
    return one == other or one in everywhere or other in everywhere


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
