"""`resurgam init --cluster`: three machines' configurations that fit together, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from healthmonitor.cli.configuration_text import real_machine
from healthmonitor.core.configuration import parse_configuration
from healthmonitor.nats_cluster import BadCluster, ClusterNats, Machine, TlsFiles, parse_machines
from tests.support.nats import nats_server_binary

HOSTS = "10.0.0.1,10.0.0.2:5222,[fd00::3]"


@pytest.mark.parametrize(
    ("text", "this", "fragment"),
    [
        ("a,b", "a", "expected 3 different machines"),
        ("a,b,b", "a", "expected 3 different machines"),
        ("a,b,c,d", "a", "expected 3 different machines"),
        ("a,b,c", "d", "'d' is none of a, b, c"),
        ("a,b,c:x", "a", "'c:x': expected HOST or HOST:PORT"),
        ("a,b,c:65000", "a", "the port at most 63535"),
    ],
)
def test_what_makes_no_cluster_is_refused(text: str, this: str, fragment: str) -> None:
    """With what was expected instead."""
    with pytest.raises(BadCluster, match=re.escape(fragment)):
        parse_machines(text, this)


def test_machines_are_read_with_their_ports() -> None:
    """A name, an address with a port, an IPv6 address."""
    machines, this = parse_machines(HOSTS, "10.0.0.2:5222")
    assert machines == (Machine("10.0.0.1"), Machine("10.0.0.2", 5222), Machine("fd00::3"))
    assert this == 1
    assert [machine.url(tls=True) for machine in machines][2] == "tls://[fd00::3]:4222"


def test_the_three_machines_fit_together(tmp_path: Path) -> None:
    """With the first one's passwords on all: nats-server takes each configuration, no client comes in without a
    password, acknowledged is on disk, and the monitor's configuration names all three with three copies."""
    machines, _ = parse_machines(HOSTS, "10.0.0.1")
    made = []
    for number in range(3):
        directory = tmp_path / str(number)
        directory.mkdir()
        nats = ClusterNats(directory, directory / "nats.conf", machines, number)
        for password in (tmp_path / "0").glob("*.password") if number else ():
            shutil.copy(password, directory)
        made.append((nats, nats.prepare()))
        text = nats.configuration_path.read_text()
        assert "sync_interval: always" in text
        assert "no_auth_user" not in text
        subprocess.run(
            [nats_server_binary(), "-t", "-c", str(nats.configuration_path)], check=True, capture_output=True
        )
        (directory / "api-token").write_text("x\n")
        configuration = parse_configuration(real_machine(nats, directory, directory), "hm.yml", str(directory))
        assert (configuration.monitor, configuration.bus.replicas) == (f"hm-{number + 1}", 3)
        assert configuration.bus.urls == nats.urls
        assert len(set(nats.urls)) == 3
    assert made[0][1] == made[1][1] == made[2][1]
    routes = {
        re.search(r"^  routes: .*$", nats.configuration_path.read_text(), re.MULTILINE)[0]  # type: ignore[index]
        for nats, _ in made
    }
    assert len(routes) == 1


def test_tls_holds_for_clients_and_for_routes(tmp_path: Path) -> None:
    """Two blocks, and addresses that say so."""
    machines, this = parse_machines("a,b,c", "b")
    files = TlsFiles(*(tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem")))
    nats = ClusterNats(tmp_path, tmp_path / "nats.conf", machines, this, files)
    nats.prepare()
    assert nats.configuration_path.read_text().count("tls {") == 2
    configuration = parse_configuration(real_machine(nats, tmp_path, tmp_path), "hm.yml", str(tmp_path))
    assert configuration.bus.urls == ("tls://a:4222", "tls://b:4222", "tls://c:4222")
    assert configuration.bus.ca_file == str(tmp_path / "ca.pem")
