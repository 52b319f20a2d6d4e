"""What a manifest needs from this machine: its own text and the env files it names.

The monitor may run elsewhere, so the contents travel with the request. Finding them is tolerant of every other error
in the manifest: the monitor's parser reports those, all at once and with their lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from healthmonitor.cli.failures import CliFailure, ExitCode

REQUEST_MAX_BYTES = 1024 * 1024


def upload(manifest: Path, variables: list[str]) -> dict[str, Any]:
    """The body of a request to plan or deploy. `variables`: `NAME=value` each."""
    text = _read(manifest, "the manifest")
    env_files = {name: _read(manifest.parent / name, f"env_file of {manifest}") for name in env_file_names(text)}
    total = len(text) + sum(len(content) for content in env_files.values())
    if total > REQUEST_MAX_BYTES - 65536:
        raise CliFailure(f"{manifest} with its env files is {total} bytes, more than 1 MiB", ExitCode.USAGE)
    return {
        "manifest": text,
        "file": str(manifest),
        "variables": dict(_variable(item) for item in variables),
        "env_files": env_files,
    }


def env_file_names(text: str) -> list[str]:
    """The files named under `env_file` of any container, in order, each once."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []  # the monitor says what is wrong with it, with the line
    return list(dict.fromkeys(_names(document)))


def _names(document: Any) -> Iterator[str]:
    groups = document.get("instance_groups") if isinstance(document, dict) else None
    for group in groups if isinstance(groups, list) else []:
        containers = group.get("containers") if isinstance(group, dict) else None
        for container in containers.values() if isinstance(containers, dict) else []:
            named = container.get("env_file") if isinstance(container, dict) else None
            for item in named if isinstance(named, list) else [named]:
                name = item.get("path") if isinstance(item, dict) else item
                if isinstance(name, str) and "$" not in name:
                    yield name


def _variable(item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not name:
        raise CliFailure(f"{item!r} is not a variable", ExitCode.USAGE, "write --var NAME=value")
    return name, value


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CliFailure(f"{path} does not exist ({what})", ExitCode.USAGE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliFailure(f"{path} cannot be read: {error} ({what})", ExitCode.USAGE) from None
