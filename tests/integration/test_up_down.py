"""`resurgam up` and `down` on real processes: nats-server and the health monitor, in a directory of their own."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from healthmonitor.cli.processes import Background, start_ticks, wait_until
from tests.support.nats import free_port

PROJECT = Path(__file__).parents[2]
COMMAND_SECONDS = 60
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(PROJECT)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A directory for a site with ports of its own; whatever a test leaves running there is ended."""
    directory = tmp_path / "site"
    directory.mkdir()
    (directory / "ports.json").write_text(json.dumps({"nats": free_port(), "api": free_port()}))
    yield directory
    ended = resurgam(directory, "down", "--yes")
    assert ended.returncode == 0, ended.stderr


def resurgam(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "healthmonitor.cli", "--dir", str(directory), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        env=ENVIRONMENT,
        check=False,
    )


def pids(directory: Path) -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["pid"] for path in (directory / "run").glob("*.json")}


def runs(pid: int) -> bool:
    return start_ticks(pid) is not None


def test_up_starts_what_down_ends(site: Path) -> None:
    """After `up` the monitor answers; a second `up` starts nothing; after `down` none of the processes is left."""
    first = resurgam(site, "up")
    assert first.returncode == 0, first.stderr
    started = pids(site)
    assert sorted(started) == ["healthmonitor", "nats"]
    assert resurgam(site, "status").returncode == 0
    assert resurgam(site, "up").stdout.count("runs already") == 2
    assert pids(site) == started
    ended = resurgam(site, "down")
    assert ended.returncode == 0, ended.stderr
    assert not any(runs(pid) for pid in started.values())
    assert resurgam(site, "status").returncode == 3
    assert "was not running" in resurgam(site, "down").stdout


def test_what_people_did_outlives_the_processes(site: Path) -> None:
    """The journal is on disk: a pause is still there, with its event, after both processes were killed with -9."""
    assert resurgam(site, "up").returncode == 0
    assert resurgam(site, "pause", "--for", "1h", "--because", "a test").returncode == 0
    before = pids(site)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(runs(pid) for pid in before.values()), 10)
    assert resurgam(site, "up").returncode == 0
    assert set(pids(site).values()).isdisjoint(before.values())
    status = json.loads(resurgam(site, "status", "--output", "json").stdout)
    assert status["switches"]["paused_until"] > 0
    events = [json.loads(line) for line in resurgam(site, "events", "-o", "json").stdout.splitlines()]
    paused = next(event for event in events if event["kind"] == "operator.paused")
    assert paused["fields"]["because"] == "a test"


def test_secrets_are_readable_by_their_owner_only(site: Path) -> None:
    """Token, passwords and the files that hold them are 0600, and none of them is in a log."""
    assert resurgam(site, "up").returncode == 0
    secret_files = [site / "api-token", *(site / "nats").glob("*.password"), site / "nats" / "nats-server.conf"]
    assert len(secret_files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret_files} == {0o600}
    secrets = [path.read_text().strip() for path in secret_files if path.suffix != ".conf"]
    logs = "".join(path.read_text() for path in (site / "logs").iterdir())
    assert not any(secret in logs for secret in secrets)


def test_a_wrong_configuration_is_told_with_its_line(site: Path, tmp_path: Path) -> None:
    """`up` with a configuration that is wrong exits 2, names the line, and starts neither the bus nor a monitor."""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("preset: small\nresurector: {enabled: true}\n")
    outcome = resurgam(site, "up", "--config", str(wrong))
    assert outcome.returncode == 2
    assert "healthmonitor.yml:2" in outcome.stderr
    assert "resurrector" in outcome.stderr
    assert pids(site) == {}
    (site / "healthmonitor.yml").unlink()  # so that the directory can be ended as usual


def test_a_reader_may_look_and_change_nothing(site: Path) -> None:
    """The token of `http.reader_token_file` is let in to look, and is refused what changes something."""
    assert resurgam(site, "up").returncode == 0
    assert resurgam(site, "down").returncode == 0
    (site / "reader-token").write_text("only-looks\n")
    (site / "reader-token").chmod(0o600)
    configuration = site / "healthmonitor.yml"
    written = configuration.read_text()
    configuration.write_text(written.replace("\nhttp:\n", "\nhttp:\n  reader_token_file: reader-token\n"))
    assert resurgam(site, "up").returncode == 0
    port = json.loads((site / "ports.json").read_text())["api"]
    reader = {"authorization": "Bearer only-looks"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=reader) as client:
        assert client.get("/v1/status").status_code == 200
        assert client.post("/v1/switches/pause", json={"seconds": 60, "because": "a test"}).status_code == 403


def test_a_wrong_option_of_a_cloud_is_found_by_a_check(tmp_path: Path) -> None:
    """`resurgam-healthmonitor --check` judges what each provider is told, and names the line."""
    configuration = tmp_path / "hm.yml"
    configuration.write_text("clouds:\n  local:\n    provider: qemu\n    acel: tcg\n")
    checked = subprocess.run(
        [sys.executable, "-m", "healthmonitor", "--check", "--config", str(configuration)],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        env=ENVIRONMENT,
        check=False,
    )
    assert checked.returncode == 2
    assert f"{configuration}:4:" in checked.stderr
    assert "did you mean accel?" in checked.stderr
    assert "Traceback" not in checked.stderr


def test_purge_leaves_nothing(site: Path) -> None:
    """`down --purge` asks first, and then removes the directory as well."""
    assert resurgam(site, "up").returncode == 0
    refused = resurgam(site, "down", "--purge")
    assert refused.returncode == 2
    assert "add --yes" in refused.stderr
    assert resurgam(site, "down", "--purge", "--yes").returncode == 0
    assert not site.exists()


def test_a_pid_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A pid file that names a process which started at another time names nobody: it is never signalled."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        background = Background("test", tmp_path / "test.json", tmp_path / "test.log")
        own = Background("test", tmp_path / "own.json", tmp_path / "own.log")
        own.start(["sleep", "60"])
        noted = json.loads(own.pid_file.read_text())
        background.pid_file.write_text(json.dumps({**noted, "pid": other.pid, "start_ticks": noted["start_ticks"] + 1}))
        assert background.pid() is None
        assert background.end(term_seconds=0.1)
        assert other.poll() is None
        assert own.pid() is not None
        assert own.end(term_seconds=5)
        assert own.pid() is None
    finally:
        other.kill()
        other.wait()


def test_init_prepares_a_machine(tmp_path: Path) -> None:
    """`init` writes a configuration that is right as it stands, keeps one that is there, and names the units."""
    directory = tmp_path / "etc"
    first = resurgam(directory, "init")
    assert first.returncode == 0, first.stderr
    assert "resurgam-healthmonitor.service" in first.stdout
    configuration = directory / "healthmonitor.yml"
    checked = subprocess.run(
        [sys.executable, "-m", "healthmonitor", "--check", "--config", str(configuration)],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        env=ENVIRONMENT,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    configuration.write_text(configuration.read_text() + "# mine\n")
    assert "kept" in resurgam(directory, "init").stdout
    assert configuration.read_text().endswith("# mine\n")
