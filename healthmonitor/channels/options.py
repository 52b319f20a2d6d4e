"""What a channel may be told: tables of options, and how their values are read and checked.

Law: reading finds every error of a channel at once, each with its line and what was expected; no message shows a value
that may be a secret. docs/channels/ is generated from these tables, so a row says all there is to say.

Does not know: which channels there are.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from healthmonitor.channels.channel import Channel
from healthmonitor.channels.secret import Secret
from healthmonitor.core.configuration import ChannelConfiguration
from healthmonitor.core.located_yaml import ManifestError
from healthmonitor.core.units import duration_seconds, duration_text
from healthmonitor.core.yaml_places import unknown
from healthmonitor.secret_files import read_certificates_file, read_secret_file


@dataclass(frozen=True, slots=True)
class Sources:
    """Where values come from besides the configuration file. `directory`: relative paths are relative to it."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    unix_time: Callable[[], float]


Read = Callable[[Any, Sources], Any]
"""The value as the channel uses it; ValueError says what was expected."""


@dataclass(frozen=True, slots=True)
class Option:
    name: str
    kind: str  # for people
    meaning: str
    read: Read
    default: Any = None
    shown_default: str = "none"
    required: bool = False
    secret: str = ""  # the name under which the channel finds the secret that this option names


@dataclass(frozen=True, slots=True)
class ChannelType:
    """`check`: what several options must be to one another, as (option, message)."""

    summary: str
    options: tuple[Option, ...]
    make: Callable[[str, Mapping[str, Any], Sources], Channel]
    check: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]] = lambda values: ()


def read_options(
    configuration: ChannelConfiguration, kind: ChannelType, file: str, sources: Sources
) -> tuple[dict[str, Any], list[ManifestError]]:
    """(values of all options, errors). The values are whole only when there are no errors."""
    reading = _Reading(configuration, kind, file)
    for key, value in configuration.options.items():
        option = reading.options.get(key)
        if option is None:
            reading.unknown(key)
            continue
        try:
            reading.values[option.secret or key] = option.read(value, sources)
        except ValueError as error:
            reading.add(key, str(error))
        except OSError as error:
            reading.add(key, f"{sources.directory / str(value)}: {error.strerror or 'cannot be read'}")
    reading.fill()
    if not reading.errors:
        for key, message in kind.check(reading.values):
            reading.add(key, message)
    return reading.values, reading.errors


class _Reading:
    def __init__(self, configuration: ChannelConfiguration, kind: ChannelType, file: str) -> None:
        self.options = {option.name: option for option in kind.options}
        self.values: dict[str, Any] = {}
        self.errors: list[ManifestError] = []
        self._configuration = configuration
        self._file = file

    def add(self, key: str, message: str) -> None:
        line, column = self._configuration.lines.get(key, self._configuration.place)
        path = f"channels.{self._configuration.name}" + (f".{key}" if key else "")
        self.errors.append(ManifestError(self._file, line, column, path, message))

    def unknown(self, key: str) -> None:
        named = [option.name for option in self.options.values() if option.secret == key]
        if named:
            self.add(key, f"secrets never stand in this file: write {' or '.join(named)}")
        else:
            self.add(key, unknown(f"option of {self._configuration.type}", key, self.options))

    def fill(self) -> None:
        """Defaults, what is missing, and secrets that are named twice."""
        given = self._configuration.options
        for option in self.options.values():
            if not option.secret:
                if option.name not in given:
                    if option.required:
                        self.add("", f"{option.name} is missing: {option.meaning}")
                    self.values[option.name] = option.default
                continue
            both = [each for each in self.options.values() if each.secret == option.secret]
            named = [each.name for each in both if each.name in given]
            if option is both[0]:
                if len(named) > 1:
                    self.add(named[1], f"cannot be combined with {named[0]}; leave one of them out")
                if not named:
                    if option.required:
                        self.add("", f"{' or '.join(each.name for each in both)} is missing: {option.meaning}")
                    self.values.setdefault(option.secret, option.default)


# -- options that several channels have


def text(name: str, meaning: str, default: str | None = None, required: bool = False) -> Option:
    return Option(name, "text", meaning, _text, default, _shown(default), required)


def choice(name: str, words: tuple[str, ...], meaning: str, default: str) -> Option:
    def read(value: Any, sources: Sources) -> str:
        if value not in words:
            raise ValueError(f"{_seen(value)}: expected one of {', '.join(words)}")
        return str(value)

    return Option(name, " or ".join(words), meaning, read, default, f"`{default}`")


def whole(name: str, minimum: int, maximum: int, meaning: str, shown_default: str) -> Option:
    def read(value: Any, sources: Sources) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise ValueError(f"{_seen(value)}: expected {minimum} to {maximum}")
        return value

    return Option(name, f"{minimum} to {maximum}", meaning, read, None, shown_default)


def duration(name: str, minimum: float, maximum: float, meaning: str, default: float) -> Option:
    limits = f"{duration_text(minimum)} to {duration_text(maximum)}"

    def read(value: Any, sources: Sources) -> float:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError(f"{_seen(value)}: expected a duration such as {duration_text(default)}")
        seconds = duration_seconds(str(value))
        if not minimum <= seconds <= maximum:
            raise ValueError(f"{value} is out of range; expected {limits}")
        return seconds

    return Option(name, f"duration, {limits}", meaning, read, default, f"`{duration_text(default)}`")


def timeout(default: float = 15.0) -> Option:
    return duration("timeout", 0.1, 300.0, "one delivery takes no longer; beyond it, it is tried again", default)


def texts(name: str, meaning: str, required: bool = False) -> Option:
    def read(value: Any, sources: Sources) -> tuple[str, ...]:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise ValueError("an empty list")
        return tuple(_text(item, sources) for item in items)

    return Option(name, "text or list of texts", meaning, read, (), "none", required)


def mapping(name: str, meaning: str) -> Option:
    def read(value: Any, sources: Sources) -> dict[str, str]:
        if not isinstance(value, dict):
            raise ValueError(f"{_seen(value)}: expected a mapping of name to text")
        return {key: _text(item, sources) for key, item in value.items()}

    return Option(name, "mapping of name to text", meaning, read, {}, "none")


def addresses(name: str, meaning: str, several: bool) -> Option:
    def read(value: Any, sources: Sources) -> Any:
        items = value if isinstance(value, list) else [value]
        if not items or (len(items) > 1 and not several):
            raise ValueError("expected " + ("at least one address" if several else "one address"))
        found = tuple(mail_address(_text(item, sources)) for item in items)
        return found if several else found[0]

    kind = "mail address or list of them" if several else "mail address"
    return Option(name, kind, meaning, read, None, "none", required=True)


def url(name: str, meaning: str, default: str | None = None, required: bool = False) -> Option:
    def read(value: Any, sources: Sources) -> str:
        return web_address(_text(value, sources))

    return Option(name, "http:// or https:// address", meaning, read, default, _shown(default), required)


def secret(
    name: str, meaning: str, required: bool = False, lines: bool = False, check: Callable[[str], Any] = str
) -> tuple[Option, ...]:
    """Two options, NAME_file and NAME_env; the channel finds the `Secret` as NAME. `lines`: it may have several."""

    def from_file(value: Any, sources: Sources) -> Secret:
        path = sources.directory / _text(value, sources)
        try:
            found = read_secret_file(path, whole=lines)
            check(found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return Secret(found)

    def from_environment(value: Any, sources: Sources) -> Secret:
        variable = _text(value, sources)
        found = sources.environment.get(variable, "")
        if not found.strip():
            raise ValueError(f"the environment has no {variable[:80]}, or it is empty")
        try:
            check(found if lines else found.strip())
        except ValueError as error:
            raise ValueError(f"{variable[:80]}: {error}") from None
        return Secret(found if lines else found.strip())

    return (
        Option(f"{name}_file", "path", f"{meaning}; a file that not everybody may read", from_file, None, "none",
               required, name),
        Option(f"{name}_env", "name of a variable", "the same from the environment", from_environment, None, "none",
               required, name),
    )  # fmt: skip


def trust() -> Option:
    def read(value: Any, sources: Sources) -> ssl.SSLContext:
        path = sources.directory / _text(value, sources)
        try:
            return _trusting(read_certificates_file(path), sources.unix_time())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    meaning = "PEM; the authority that signed the server's certificate"
    return Option("ca_file", "path", meaning, read, None, "the system's")


def _trusting(pem: str, now: float) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError):
        raise ValueError("holds no certificate that can be read; expected PEM (-----BEGIN CERTIFICATE-----)") from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError("holds no certificate; expected PEM (-----BEGIN CERTIFICATE-----)")
    ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
    if ends and max(ends) < now:
        raise ValueError("every certificate in it has expired; nothing would be trusted")
    return context


# -- values

_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")


def mail_address(value: str) -> str:
    if not _ADDRESS.fullmatch(value) or ".." in value or value.startswith(".") or ".@" in value:
        raise ValueError(f"{value[:80]!r} is no mail address; expected such as oncall@example.org, ASCII only")
    return value


def web_address(value: str) -> str:
    """As it is, or ValueError; the message does not repeat it, since it may hold a token."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
        parts = urlsplit("")
    if not usable or any(character <= " " or character == "\x7f" for character in value):
        raise ValueError("is no address of a web service; expected such as https://example.org/hook")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user or password; secrets never stand in an address")
    return value


def _text(value: Any, sources: Sources) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_seen(value)}: expected text")
    if len(value) > 4096:
        raise ValueError(f"{len(value)} characters; at most 4096")
    return value


def _seen(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return repr(str(value)[:60])


def _shown(default: str | None) -> str:
    return "none" if default is None else f"`{default}`"
