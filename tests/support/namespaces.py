"""Network namespaces for a test: one for each machine, on a bridge of their own; cuts between any two, one way too.
The bridge is in a namespace too, so that no rule of the host's (Docker's, say) is in the way. Needs root.

Law: everything is named with a prefix of this process and is removed in the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TAG = "rg"


@dataclass(frozen=True)
class Place:
    """A machine of the test: its namespace and its address in it."""

    namespace: str
    address: str


class Network:
    """`places`: by the names given. Cuts are packets dropped where they arrive, so each direction has its own."""

    def __init__(self, places: dict[str, Place]) -> None:
        self.places = places
        self._cuts: set[tuple[str, str]] = set()

    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends does not reach `receiver`; the other way stays open."""
        if (sender, receiver) not in self._cuts:
            self._cuts.add((sender, receiver))
            self._rule("-A", sender, receiver)

    def cut_both(self, one: str, other: str) -> None:
        self.cut(one, other)
        self.cut(other, one)

    def isolate(self, name: str, from_: Sequence[str]) -> None:
        for other in from_:
            if other != name:
                self.cut_both(name, other)

    def heal(self) -> None:
        """Everything."""
        for sender, receiver in sorted(self._cuts):
            self._rule("-D", sender, receiver)
        self._cuts.clear()

    def _rule(self, what: str, sender: str, receiver: str) -> None:
        place = self.places[receiver]
        source = self.places[sender].address
        _run("ip", "netns", "exec", place.namespace, "iptables", "-w", "5", what, "INPUT", "-s", source, "-j", "DROP")


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[Network]:
    """A namespace for each name; the host reaches all of them from its address .254."""
    _remove_what_was_left()
    tag = f"{TAG}{os.getpid()}"
    subnet = f"10.213.{os.getpid() % 254 + 1}"
    middle, host = f"{tag}-bridge", f"{tag}host"
    places = {name: Place(f"{tag}-{name}", f"{subnet}.{number + 1}") for number, name in enumerate(names)}
    try:
        _run("ip", "netns", "add", middle)
        _run("ip", "-n", middle, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", middle, "link", "set", "bridge", "up")
        _run("ip", "link", "add", host, "type", "veth", "peer", "name", "host", "netns", middle)
        _run("ip", "address", "add", f"{subnet}.254/24", "dev", host)
        _run("ip", "link", "set", host, "up")
        _run("ip", "-n", middle, "link", "set", "host", "master", "bridge", "up")
        for number, place in enumerate(places.values()):
            port = f"port{number}"
            _run("ip", "netns", "add", place.namespace)
            _run(
                *("ip", "-n", middle, "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", place.namespace),
            )
            _run("ip", "-n", middle, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", place.namespace, "address", "add", f"{place.address}/24", "dev", "eth0")
            _run("ip", "-n", place.namespace, "link", "set", "eth0", "up")
            _run("ip", "-n", place.namespace, "link", "set", "lo", "up")
        yield Network(places)
    finally:
        _remove(host, (middle, *(place.namespace for place in places.values())))


def _remove_what_was_left() -> None:
    """By runs whose process is gone: killed, they could not do it themselves."""
    listed = subprocess.run(("ip", "netns", "list"), check=True, capture_output=True, text=True, timeout=20).stdout
    names = [line.split()[0] for line in listed.splitlines() if re.match(rf"{TAG}\d+-", line)]
    for pid in sorted({int(name.split("-")[0].removeprefix(TAG)) for name in names}):
        if not Path(f"/proc/{pid}").exists():
            _remove(f"{TAG}{pid}host", [name for name in names if name.startswith(f"{TAG}{pid}-")])


def _remove(host: str, namespaces: Sequence[str]) -> None:
    for command in (("ip", "link", "delete", host), *(("ip", "netns", "delete", name) for name in namespaces)):
        subprocess.run(command, check=False, capture_output=True, timeout=20)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
