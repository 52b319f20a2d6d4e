"""What every command has at hand: the global options, the screen, and the API once somebody asks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import typer

from healthmonitor.cli.addressing import find_deployment, find_instance
from healthmonitor.cli.client import ApiClient
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.place import Place, find_place
from healthmonitor.cli.screen import Screen

GLOBAL_OPTIONS = ("--api", "--dir", "--output", "-o")


@dataclass(slots=True)
class Session:
    screen: Screen
    api_option: str | None = None
    directory_option: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    here: Path = field(default_factory=Path.cwd)
    home: Path = field(default_factory=Path.home)
    transport: httpx.BaseTransport | None = None
    _client: ApiClient | None = None

    @property
    def place(self) -> Place:
        return find_place(self.api_option, self.directory_option, self.environment, self.here, self.home)

    @property
    def api(self) -> ApiClient:
        if self._client is None:
            place = self.place
            self._client = ApiClient(place.url, place.token, self.transport)
        return self._client

    def status(self, name: str = "") -> Any:
        """`name`: of a deployment, or of an instance in full: then its instances are all listed, however many others
        there are."""
        return self.api.get("/v1/status", name=name) if name else self.api.get("/v1/status")

    def instance(self, text: str) -> str:
        return find_instance(text, [item["instance"] for item in self.status(text)["instances"]])

    def deployment(self, text: str) -> str:
        return find_deployment(text, [item["name"] for item in self.status()["deployments"]])


def session_of(context: typer.Context) -> Session:
    found = context.find_object(Session)
    if found is None:
        raise CliFailure("the command was called without its session", ExitCode.FAILED)
    return found


def globals_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the global options moved to the front, so that they may stand anywhere."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word in GLOBAL_OPTIONS:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.split("=", 1)[0] in GLOBAL_OPTIONS and "=" in word:
            front.append(word)
        else:
            rest.append(word)
    return front + rest
