"""Reads the configuration file and the secrets it names, and has each cloud's provider judge its options.

Law: either everything is right and could be read, or ManifestErrors says all that is not, with the lines that name it.
A file with a secret that everybody may read is refused. Secrets are held in `Secrets` only, whose text never shows
them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from healthmonitor.channels.build import channel_errors
from healthmonitor.clouds.registry import option_errors
from healthmonitor.core.configuration import Configuration, parse_configuration
from healthmonitor.core.located_yaml import ManifestError, ManifestErrors
from healthmonitor.secret_files import read_certificates_file, read_secret_file
from protocol.settings import BusSettings, RegistrySettings


@dataclass(frozen=True, slots=True)
class Secrets:
    """ "" where none is configured."""

    bus_password: str = field(default="", repr=False)
    bus_credentials: str = field(default="", repr=False)
    bus_ca: str = field(default="", repr=False)
    bus_certificate: str = field(default="", repr=False)
    bus_key: str = field(default="", repr=False)
    system_password: str = field(default="", repr=False)
    agents_password: str = field(default="", repr=False)
    agents_ca: str = field(default="", repr=False)
    http_token: str = field(default="", repr=False)
    http_reader_token: str = field(default="", repr=False)
    registry_auth: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registry_certificates: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    configuration: Configuration
    secrets: Secrets

    @property
    def monitor_bus(self) -> BusSettings:
        bus, secrets = self.configuration.bus, self.secrets
        return BusSettings(
            urls=bus.urls,
            user=bus.user,
            password=secrets.bus_password,
            credentials=secrets.bus_credentials,
            ca=secrets.bus_ca,
            certificate=secrets.bus_certificate,
            private_key=secrets.bus_key,
        )

    @property
    def system_bus(self) -> BusSettings | None:
        """As a user of the system account, which hears disconnects; None when none is configured."""
        bus = self.configuration.bus
        if not bus.system_user:
            return None
        password = self.secrets.system_password
        return BusSettings(urls=bus.urls, user=bus.system_user, password=password, ca=self.secrets.bus_ca)

    @property
    def agent_bus(self) -> BusSettings:
        """What a new VM's agent is told."""
        agents = self.configuration.agents
        ca = self.secrets.agents_ca or self.secrets.bus_ca
        return BusSettings(urls=agents.bus_urls, user=agents.user, password=self.secrets.agents_password, ca=ca)

    @property
    def registries(self) -> RegistrySettings:
        """What a new VM's agent is told of registries."""
        secrets = self.secrets
        mirrors = self.configuration.registries.mirrors
        return RegistrySettings(dict(secrets.registry_auth), mirrors, dict(secrets.registry_certificates))


def load_configuration(path: Path) -> LoadedConfiguration:
    """Raises ManifestErrors, also when the file cannot be read."""
    file = str(path)
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise ManifestErrors([ManifestError(file, 1, 1, "", f"cannot be read: {error.strerror}")]) from None
    configuration = parse_configuration(payload, file, str(path.absolute().parent))
    errors = [error for cloud in configuration.clouds.values() for error in option_errors(cloud, file)]
    secrets = _secrets(configuration, errors)
    errors += channel_errors(configuration.channels, file, time.time, os.environ)
    if errors:
        raise ManifestErrors(errors)
    return LoadedConfiguration(configuration, secrets)


def _secrets(configuration: Configuration, errors: list[ManifestError]) -> Secrets:
    """What cannot be read is added to `errors`."""
    bus, agents, http = configuration.bus, configuration.agents, configuration.http
    registries = configuration.registries

    def read(named: str, key: str, secret: bool = True, whole: bool = False) -> str:
        if not named:
            return ""
        try:
            return read_secret_file(Path(named), whole) if secret else read_certificates_file(Path(named))
        except (OSError, ValueError) as error:
            line, column = configuration.lines.get(key, (1, 1))
            reason = error.strerror if isinstance(error, OSError) else str(error)
            errors.append(ManifestError(configuration.file, line, column, key, f"{named}: {reason}"))
            return ""

    secrets = Secrets(
        bus_password=read(bus.password_file, "bus.password_file"),
        bus_credentials=read(bus.credentials_file, "bus.credentials_file", whole=True),
        bus_ca=read(bus.ca_file, "bus.ca_file", secret=False, whole=True),
        bus_certificate=read(bus.certificate_file, "bus.certificate_file", secret=False, whole=True),
        bus_key=read(bus.key_file, "bus.key_file", whole=True),
        system_password=read(bus.system_password_file, "bus.system_password_file"),
        agents_password=read(agents.password_file, "agents.password_file"),
        agents_ca=read(agents.ca_file, "agents.ca_file", secret=False, whole=True),
        http_token=read(http.token_file, "http.token_file"),
        http_reader_token=read(http.reader_token_file, "http.reader_token_file"),
        registry_auth=_registry_auth(
            read(registries.auth_file, "registries.auth_file", whole=True), configuration, errors
        ),
        registry_certificates={
            host: read(file, f"registries.ca_files.{host}", secret=False) for host, file in registries.ca_files.items()
        },
    )
    if secrets.http_reader_token and secrets.http_reader_token == secrets.http_token:
        line, column = configuration.lines["http.reader_token_file"]
        message = "holds the same token as token_file; a reader who knows it could change everything"
        errors.append(ManifestError(configuration.file, line, column, "http.reader_token_file", message))
    return secrets


def _registry_auth(text: str, configuration: Configuration, errors: list[ManifestError]) -> Mapping[str, Any]:
    """Of Docker's config format only the logins: `{"auths": {HOST: {"auth": …}}}`."""
    if not text:
        return {}
    try:
        auths = json.loads(text)["auths"]
        if not all(isinstance(login, dict) for login in auths.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        line, column = configuration.lines["registries.auth_file"]
        message = 'is not as docker login writes it; expected {"auths": {"HOST": {"auth": "…"}}}'
        errors.append(ManifestError(configuration.file, line, column, "registries.auth_file", message))
        return {}
    return {"auths": auths}
