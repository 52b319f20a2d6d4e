"""The agent as it is put into a stemcell: this project's wheel, and its dependencies pinned with their hashes.

Law: only what an agent runs goes in (`agent`, `protocol`), so that a change of the monitor makes no new stemcell.
Dependencies are wheels for the guest's Python, checked against the hashes of constraints.txt.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from healthmonitor.clouds.build_tools import BuildFailed, run
from healthmonitor.shipped import PACKAGE, NotShipped, constraints, source_tree, systemd_units

GUEST_PYTHON = "3.11"
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "linux_x86_64")
INSTALL_SECONDS = 600.0
CARRIED = ("agent/", "protocol/")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class AgentPayload:
    digest: str
    libraries: Path  # the dependencies, unpacked
    sources: dict[str, bytes]  # path below the library directory -> content
    units: dict[str, bytes]  # systemd units by name
    version: str


def payload(cache: Path, wheel: Path | None = None) -> AgentPayload:
    """From `wheel`, or from what this code runs from, a source tree or an installation. BuildFailed."""
    try:
        units_directory, requirements = systemd_units(), pinned_requirements()
    except NotShipped as error:
        raise BuildFailed(str(error)) from None
    sources = _wheel_contents(wheel) if wheel is not None else _own_contents()
    libraries = _libraries(cache, requirements)
    units = {path.name: path.read_bytes() for path in sorted(units_directory.glob("resurgam-agent*"))}
    if "resurgam-agent.service" not in units:
        raise BuildFailed(f"no resurgam-agent.service in {units_directory}")
    version = metadata.version("resurgam")
    hashed = hashlib.sha256(f"{version}\n{requirements}".encode())
    for name, content in [*sorted(sources.items()), *sorted(units.items())]:
        hashed.update(f"{name}\0{len(content)}\0".encode())
        hashed.update(content)
    return AgentPayload(hashed.hexdigest()[:16], libraries, sources, units, version)


def _own_contents() -> dict[str, bytes]:
    tree = source_tree()
    if tree is None:
        return _installed_contents()
    with tempfile.TemporaryDirectory(prefix="resurgam-wheel-") as directory:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        run([*command, "--wheel-dir", directory, str(tree)], INSTALL_SECONDS)
        (wheel,) = Path(directory).glob("*.whl")
        return _wheel_contents(wheel)


def _installed_contents() -> dict[str, bytes]:
    """What the wheel held, without what Python compiled since."""
    installed = PACKAGE.parent
    return {
        str(path.relative_to(installed)): path.read_bytes()
        for carried in CARRIED
        for path in sorted((installed / carried).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _wheel_contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist() if name.startswith(CARRIED)}
    if "agent/__init__.py" not in contents:
        raise BuildFailed(f"{wheel} holds no agent")
    return contents


def pinned_requirements() -> str:
    """The blocks of constraints.txt (version and hashes) for what the agent depends on, directly or not."""
    blocks: dict[str, list[str]] = {}
    name = ""
    pinned = constraints()
    for line in pinned.read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            name = _normalised(line)
        if name and line and not line.lstrip().startswith("#"):
            blocks.setdefault(name, []).append(line)
    wanted = _closure("resurgam")
    missing = wanted - set(blocks)
    if missing:
        raise BuildFailed(f"{pinned} does not pin {', '.join(sorted(missing))}")
    return "\n".join(line for wheel in sorted(wanted) for line in blocks[wheel]) + "\n"


def _closure(distribution: str) -> set[str]:
    """What is installed here of the distribution's dependencies (without extras), at any depth."""
    found: set[str] = set()
    to_do = [distribution]
    while to_do:
        for requirement in metadata.requires(to_do.pop()) or ():
            name, _, marker = requirement.partition(";")
            plain = _normalised(name)
            if "extra" in marker or plain in found:
                continue
            try:
                metadata.distribution(plain)
            except metadata.PackageNotFoundError:
                continue  # its marker excludes this platform, or it would be here
            found.add(plain)
            to_do.append(plain)
    return found


def libraries_directory(cache: Path, requirements: str) -> Path:
    """Where they are unpacked once and for all."""
    return cache / f"lib-{hashlib.sha256(requirements.encode()).hexdigest()[:16]}"


def _libraries(cache: Path, requirements: str) -> Path:
    directory = libraries_directory(cache, requirements)
    if directory.exists():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="lib-draft-", dir=cache))
    try:
        listed = draft / "requirements.txt"
        listed.write_text(requirements)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"]
        command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={GUEST_PYTHON}"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        run([*command, "--target", str(draft / "lib"), "-r", str(listed)], INSTALL_SECONDS)
        shutil.rmtree(draft / "lib" / "bin", ignore_errors=True)  # commands with this machine's paths in them
        (draft / "lib").rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


def _normalised(requirement: str) -> str:
    match = _NAME.match(requirement.strip())
    return re.sub(r"[-_.]+", "-", match[0] if match else "").lower()
