"""Registries as the engine of this VM is to know them: authorities of certificates, and mirrors of Docker Hub.

Laws: only files of our own name are written and removed beside others' (`/etc/docker/certs.d/HOST/resurgam.crt`), and
only one key of the daemon's configuration is touched. Nothing restarts: the engine reads authorities at each pull, and
its configuration on SIGHUP. What is there already is not written again.

Does not know: logins, which go with each pull and are on no disk but the settings'.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import structlog

from protocol.settings import AgentSettings

log = structlog.get_logger(__name__)

DOCKER_DIRECTORY = Path("/etc/docker")
CERTIFICATE_NAME = "resurgam.crt"
MIRRORS_KEY = "registry-mirrors"
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")


def write(settings: AgentSettings, directory: Path = DOCKER_DIRECTORY) -> bool:
    """Whether the engine has to read its configuration again. OSError."""
    _write_certificates(settings, directory / "certs.d")
    return _write_mirrors(settings.registry_mirrors, directory / "daemon.json")


def _write_certificates(settings: AgentSettings, directory: Path) -> None:
    for host, certificates in settings.registry_certificates.items():
        if not _HOST.fullmatch(host):
            log.error("registries.no_host", host=host[:100], next="its authority is left out")
            continue
        (directory / host).mkdir(parents=True, exist_ok=True)
        _replace(directory / host / CERTIFICATE_NAME, certificates)
    for ours in directory.glob(f"*/{CERTIFICATE_NAME}"):
        if ours.parent.name not in settings.registry_certificates:
            ours.unlink()


def _write_mirrors(mirrors: tuple[str, ...], file: Path) -> bool:
    try:
        known = json.loads(file.read_text())
    except FileNotFoundError:
        known = {}
    except ValueError as error:
        log.error("registries.daemon_json_unreadable", file=str(file), error=str(error), next="mirrors are not set")
        return False
    if not isinstance(known, dict) or tuple(known.get(MIRRORS_KEY) or ()) == mirrors:
        return False
    # Empty where there were some: an engine that finds no key when it reads its configuration again keeps what it had.
    changed = {**known, MIRRORS_KEY: list(mirrors)}
    file.parent.mkdir(parents=True, exist_ok=True)
    return _replace(file, json.dumps(changed, indent=2) + "\n")


def _replace(file: Path, text: str) -> bool:
    """At once, and only when it differs."""
    if file.exists() and file.read_text() == text:
        return False
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text)
    os.replace(temporary, file)
    return True
