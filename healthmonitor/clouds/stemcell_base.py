"""The Debian system under a stemcell's agent: made by mmdebstrap, cached by what went into it.

Law: packages come from where this machine gets its own (its apt sources, proxy and certificates), and nothing of that
stays inside: a stemcell names no package server.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from healthmonitor.clouds.build_tools import BuildFailed, Progress, run

SUITE = "bookworm"
VERSION = 2
"""Grows when what is done here changes, so that caches are made anew."""
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "mount",
    "docker.io",
    "crun",
    "dbus",
    "iptables",
    "iproute2",
    "python3",
    "e2fsprogs",
    "rsync",
    "xfsprogs",
    "kmod",
    "ca-certificates",
    "netbase",
    "busybox-static",
    "linux-image-cloud-amd64",
)
BUILD_SECONDS = 1800.0
USUAL_LINES = 12
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
_HOST_OPTIONS = re.compile(r"(Acquire::(?:https?|Check-)\S*) \"(.*)\";")


def base_archive(cache: Path, packages: Sequence[str], progress: Progress) -> Path:
    """A tar of the root file system with `packages`, from the cache when it was made before."""
    return _archive(cache, "base", packages, "minbase", progress)


def plain_archive(cache: Path, packages: Sequence[str], progress: Progress) -> Path:
    """A tar of just these packages and what they depend on, unpacked and not configured: what container images are
    picked from. It still names this machine's package servers."""
    return _archive(cache, "plain", packages, "extract", progress)


def _archive(cache: Path, kind: str, packages: Sequence[str], variant: str, progress: Progress) -> Path:
    facts = "\n".join([str(VERSION), SUITE, variant, *sorted(packages)])
    archive = cache / f"{kind}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.tar"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    draft = archive.with_suffix(".tar.draft")
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        if line.startswith("I: "):
            seen += 1
            progress(line.removeprefix("I: "), min(0.95, seen / USUAL_LINES))

    command = ["mmdebstrap", f"--variant={variant}", "--format=tar", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    command += [f"--aptopt={option}" for option in _host_options()]
    command += [SUITE, str(draft), *(str(path) for path in _host_sources())]
    try:
        run(command, BUILD_SECONDS, on_line=on_line)
        draft.replace(archive)
    except BuildFailed as error:
        draft.unlink(missing_ok=True)
        raise BuildFailed(f"{error}\ncheck that apt on this machine reaches a Debian {SUITE} archive") from None
    return archive


def _host_sources() -> list[Path]:
    """Those of the host's source lists that offer this suite; none: mmdebstrap's own default."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return [
        path
        for path in places
        if path.suffix in (".list", ".sources") and path.is_file() and re.search(rf"\b{SUITE}\b", path.read_text())
    ]


def _host_options() -> list[str]:
    """Proxies, certificates and clock tolerance that apt on this machine was given."""
    lines = run(["apt-config", "dump"], 30.0).splitlines()
    return [f'{match[1]} "{match[2]}"' for line in lines if (match := _HOST_OPTIONS.fullmatch(line)) and match[2]]
