"""The wheel as somebody installs it: built, put into an environment of its own, and used far from any source tree."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SECONDS = 120

LOOK = """
import json, sys
from pathlib import Path
from healthmonitor import shipped
from healthmonitor.clouds import stemcell_agent

cache, wheel = Path(sys.argv[1]), Path(sys.argv[2])
requirements = stemcell_agent.pinned_requirements()
stemcell_agent.libraries_directory(cache, requirements).mkdir(parents=True)  # so that nothing is fetched
own, given = stemcell_agent.payload(cache), stemcell_agent.payload(cache, wheel)
print(json.dumps({
    "package": str(shipped.PACKAGE),
    "units": sorted(path.name for path in shipped.systemd_units().iterdir()),
    "constraints": shipped.constraints().read_text(),
    "pinned": [line.split("==")[0] for line in requirements.splitlines() if "==" in line],
    "carried": sorted(own.sources),
    "own": own.digest,
    "given": given.digest,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(directory), str(PROJECT))
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel; its dependencies are those of the present one."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=SECONDS)
    python = directory / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = (directory / "lib").glob("python*/site-packages")
    (packages / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr


def test_an_installed_wheel_has_all_that_a_stemcell_needs(wheel: Path, installed: Path, tmp_path: Path) -> None:
    """Units, pinned versions and the agent itself are found there, and make the very agent that the wheel holds."""
    command: list[str | Path] = [installed, "-I", "-c", LOOK, tmp_path / "cache", wheel]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found["package"]).is_relative_to(installed.parents[1])
    assert found["units"] == sorted(path.name for path in (PROJECT / "systemd").iterdir())
    assert found["constraints"] == (PROJECT / "constraints.txt").read_text()
    assert {"docker", "nats-py", "psutil"} <= set(found["pinned"])
    assert {"agent/__main__.py", "protocol/bus.py"} <= set(found["carried"])
    assert not [name for name in found["carried"] if name.endswith(".pyc") or name.startswith("healthmonitor")]
    assert found["own"] == found["given"]


def test_init_of_an_installed_wheel_names_units_that_are_there(installed: Path, tmp_path: Path) -> None:
    """The directory that it says to copy them from exists."""
    command: list[str | Path] = [installed, "-I", "-m", "healthmonitor.cli", "--dir", tmp_path / "etc", "init"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "resurgam-healthmonitor.service from" in line)
    units = Path(line.split(" from ")[1].split(" to ")[0])
    assert (units / "resurgam-healthmonitor.service").is_file()
