"""What a manifest needs from this machine: its own text and the env files it names.

The monitor may run elsewhere, so the contents travel with the request. Which files are named is asked of the monitor's
own parser, so that variables in their paths, anchors and `required: false` mean the same here and there; what else is
wrong with the manifest, a file that is not there included, the monitor says, all at once and with its lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.core.manifest_file import parse_manifest

REQUEST_MAX_BYTES = 1024 * 1024


def upload(manifest: Path, variables: list[str]) -> dict[str, Any]:
    """The body of a request to plan or deploy. `variables`: `NAME=value` each."""
    text = _read_manifest(manifest)
    given = dict(_variable(item) for item in variables)
    env_files = read_env_files(text, manifest, given)
    total = len(text) + sum(len(content) for content in env_files.values())
    if total > REQUEST_MAX_BYTES - 65536:
        raise CliFailure(f"{manifest} with its env files is {total} bytes, more than 1 MiB", ExitCode.USAGE)
    return {"manifest": text, "file": str(manifest), "variables": given, "env_files": env_files}


def read_env_files(text: str, manifest: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Contents by the path that the manifest writes, of those that are there; paths are relative to the manifest's."""
    found: dict[str, str] = {}

    def read(path: str) -> str:
        try:
            found[path] = (manifest.parent / path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise CliFailure(
                f"{manifest.parent / path} cannot be read: {error} (env_file of {manifest})", ExitCode.USAGE
            ) from None
        return found[path]

    with contextlib.suppress(ManifestErrors):  # the monitor's to say
        parse_manifest(text, str(manifest), variables, read)
    return found


def _variable(item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not name:
        raise CliFailure(f"{item!r} is not a variable", ExitCode.USAGE, "write --var NAME=value")
    return name, value


def _read_manifest(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CliFailure(f"{path} does not exist (the manifest)", ExitCode.USAGE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliFailure(f"{path} cannot be read: {error} (the manifest)", ExitCode.USAGE) from None
