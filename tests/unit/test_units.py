"""The systemd units: what systemd itself says of them, and the laws that a wrong line would break."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted(Path("systemd").glob("*.service"))
MAKES_A_MOUNT_NAMESPACE = re.compile(
    r"^(ProtectSystem|ProtectHome|PrivateTmp|PrivateDevices|PrivateMounts|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths"
    r"|BindPaths|TemporaryFileSystem|ProtectKernel\w+|ProtectControlGroups|ProtectProc|MountAPIVFS|RootDirectory)=",
    re.MULTILINE,
)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_no_fault(unit: Path, tmp_path: Path) -> None:
    """Every key known, every value understood; programs that are not installed here are stood in for."""
    names = r"(resurgam-agent|resurgam-healthmonitor|nats-server)"
    for path in UNITS:
        text = re.sub(rf"^(Exec\w+=-?){names}", r"\1/bin/true", path.read_text(), flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text)
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit.name)]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stderr
    assert [line for line in said.splitlines() if "resurgam" in line] == []


def test_the_agents_mounts_are_seen_by_the_engine() -> None:
    """A mount namespace of the agent's own would hide every disk from dockerd."""
    assert MAKES_A_MOUNT_NAMESPACE.findall(Path("systemd/resurgam-agent.service").read_text()) == []


@pytest.mark.parametrize("name", ["resurgam-agent", "resurgam-healthmonitor"])
def test_what_they_started_outlives_them(name: str) -> None:
    """VMs are children of the monitor, mkfs and a directly started dockerd of the agent."""
    text = Path(f"systemd/{name}.service").read_text()
    assert "\nKillMode=process\n" in text
    assert "\nType=notify\n" in text
    assert "\nRestart=always\n" in text
    assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)


def test_nothing_but_the_shutdown_stops_containers() -> None:
    """The shutdown unit comes before the engine when stopping, and no restart of another unit touches it."""
    text = Path("systemd/resurgam-agent-shutdown.service").read_text()
    assert re.search(r"^After=.*\bdocker\.service\b", text, re.MULTILINE)
    assert not re.search(r"^(PartOf|BindsTo|Requires|Requisite)=", text, re.MULTILINE)
    stops = re.findall(r"^ExecStop=(.*)$", text, re.MULTILINE)
    assert stops == ["-systemctl stop resurgam-agent.service", "resurgam-agent stop-containers --deadline 300"]
    agent = Path("systemd/resurgam-agent.service").read_text()
    assert "resurgam-agent-shutdown.service" in agent
    assert not re.search(r"^(Requires|BindsTo|After)=.*(docker|shutdown)", agent, re.MULTILINE), (
        "heartbeats do not wait for the engine"
    )
