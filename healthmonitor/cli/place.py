"""Where this command finds its monitor: the API's address and the file that holds the token.

Looked for in this order: `--api` or RESURGAM_API; `--dir` or RESURGAM_DIR; `.resurgam` and `.resurgam/demo` here;
`~/.local/state/resurgam`; `/etc/resurgam`. A directory counts when it holds `api.json`, which `resurgam up` and
`resurgam init` write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from healthmonitor.cli.failures import CliFailure, ExitCode

API_FILE = "api.json"
TOKEN_FILE = "api-token"
SYSTEM_DIRECTORY = Path("/etc/resurgam")


@dataclass(frozen=True, slots=True)
class Place:
    """`directory` is None when the address was given outright."""

    url: str
    token: str
    directory: Path | None


def candidates(directory: Path | None, environment: Mapping[str, str], here: Path, home: Path) -> Iterator[Path]:
    """The directories to look into; only the one that was named, when one was."""
    named = directory or (Path(environment["RESURGAM_DIR"]) if environment.get("RESURGAM_DIR") else None)
    if named is not None:
        yield named
        return
    yield here / ".resurgam"
    yield here / ".resurgam" / "demo"
    yield home / ".local" / "state" / "resurgam"
    yield SYSTEM_DIRECTORY


def find_place(
    api: str | None,
    directory: Path | None,
    environment: Mapping[str, str],
    here: Path,
    home: Path,
) -> Place:
    """The API to talk to; CliFailure(UNREACHABLE) when none is known."""
    url = api or environment.get("RESURGAM_API", "")
    token_path = environment.get("RESURGAM_TOKEN_FILE", "")
    looked = list(candidates(directory, environment, here, home))
    found = next((place for place in looked if _is_there(place / API_FILE)), None)
    if url:
        token_file = Path(token_path) if token_path else (found / TOKEN_FILE if found else None)
        return Place(url.rstrip("/"), read_token(token_file) if token_file else "", found)
    if found is None:
        raise CliFailure(
            "no health monitor is known here (looked for api.json in " + ", ".join(map(str, looked)) + ")",
            ExitCode.UNREACHABLE,
            "start one with `resurgam up`, or name it with --api URL or --dir DIRECTORY",
        )
    try:
        known = json.loads((found / API_FILE).read_text(encoding="utf-8"))
        url = str(known["url"])
        named_token = Path(str(known.get("token_file") or found / TOKEN_FILE))
    except PermissionError:
        raise CliFailure(f"{found / API_FILE} may not be read", ExitCode.NOT_ALLOWED, "run it with sudo") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CliFailure(
            f"{found / API_FILE} is not readable: {error}", ExitCode.UNREACHABLE, "run `resurgam up` again"
        ) from None
    return Place(url.rstrip("/"), read_token(Path(token_path) if token_path else named_token), found)


def _is_there(path: Path) -> bool:
    """Also when it may not be read: then the person is told so, instead of being sent elsewhere."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise CliFailure(
            f"the token file {path} is missing", ExitCode.NOT_ALLOWED, "name it with RESURGAM_TOKEN_FILE"
        ) from None
    except PermissionError:
        raise CliFailure(
            f"the token file {path} may not be read by this user",
            ExitCode.NOT_ALLOWED,
            "run it as the user who owns it, or with sudo",
        ) from None


def local_directory(directory: Path | None, environment: Mapping[str, str], here: Path) -> Path:
    """Where `up` and `down` keep what they make: the one named, else `.resurgam` here."""
    if directory is not None:
        return directory.absolute()
    if environment.get("RESURGAM_DIR"):
        return Path(os.path.abspath(environment["RESURGAM_DIR"]))
    return here.absolute() / ".resurgam"
