"""Makes clouds from the configuration: which providers there are, and what each may be told.

Law: every wrong option is named, with its line and what was expected, before anything is made.

Does not know: what the options do (docs/clouds.md says it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from healthmonitor.clouds.cloud import Cloud
from healthmonitor.clouds.docker import DockerCloud, DockerOptions
from healthmonitor.clouds.qemu import QemuCloud, QemuOptions
from healthmonitor.core.configuration import CloudConfiguration
from healthmonitor.core.located_yaml import ManifestError, ManifestErrors

Check = Callable[[Any], str]
"""What was expected instead of the value; "" when it is right."""


@dataclass(frozen=True, slots=True)
class Provider:
    options: Mapping[str, Check]
    make: Callable[[CloudConfiguration, Mapping[str, Any], Path], Cloud]


def build_cloud(configuration: CloudConfiguration, state_dir: Path) -> Cloud:
    """The cloud; ManifestErrors when an option is wrong. Nothing is contacted.

    `state_dir`: the monitor's, where VMs, disks and stemcells are unless the options say otherwise."""
    errors = option_errors(configuration)
    if errors:
        raise ManifestErrors(errors)
    return PROVIDERS[configuration.provider].make(configuration, configuration.options, state_dir)


def option_errors(configuration: CloudConfiguration, file: str = "") -> list[ManifestError]:
    """Everything that is wrong with a cloud's options."""
    where = f"clouds.{configuration.name}"
    provider = PROVIDERS.get(configuration.provider)
    if provider is None:
        known = ", ".join(PROVIDERS)
        message = f"provider {configuration.provider!r} is not there yet; there are {known}"
        return [ManifestError(file, 0, 0, where, message)]
    found = []
    for key, value in configuration.options.items():
        line, column = configuration.lines.get(key, (0, 0))
        check = provider.options.get(key)
        if check is None:
            near = get_close_matches(key, provider.options, 1)
            advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(provider.options)}"
            message = f"{configuration.provider} has no such option; {advice}"
            found.append(ManifestError(file, line, column, f"{where}.{key}", message))
        elif expected := check(value):
            found.append(ManifestError(file, line, column, f"{where}.{key}", f"{value!r}: expected {expected}"))
    return found


def stemcell_directory(configuration: CloudConfiguration, state_dir: Path) -> Path:
    """Where a cloud on the monitor's own machine (LOCAL_PROVIDERS) has its stemcells."""
    return Path(str(configuration.options.get("stemcells") or state_dir / "stemcells"))


def _absolute(value: Any) -> str:
    return "" if isinstance(value, str) and value.startswith("/") else "an absolute path"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "text"


def _one_of(*words: str) -> Check:
    return lambda value: "" if _word(value) in words else f"one of {', '.join(words)}"


def _word(value: Any) -> str:
    """YAML reads `true` and `false` as what they are."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _qemu(configuration: CloudConfiguration, options: Mapping[str, Any], state_dir: Path) -> Cloud:
    plain = QemuOptions(*_places(configuration, options, state_dir))
    return QemuCloud(configuration.name, dataclasses.replace(plain, **_words(options)))


def _docker(configuration: CloudConfiguration, options: Mapping[str, Any], state_dir: Path) -> Cloud:
    plain = DockerOptions(*_places(configuration, options, state_dir))
    return DockerCloud(configuration.name, dataclasses.replace(plain, **_words(options)))


def _words(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _word(value) for key, value in options.items() if key not in ("directory", "stemcells")}


def _places(configuration: CloudConfiguration, options: Mapping[str, Any], state_dir: Path) -> tuple[Path, Path]:
    """(directory of VMs and disks, directory of stemcells)"""
    directory = Path(options.get("directory") or state_dir / "clouds" / configuration.name)
    return directory, stemcell_directory(configuration, state_dir)


PROVIDERS: Mapping[str, Provider] = {
    "qemu": Provider(
        {
            "directory": _absolute,
            "stemcells": _absolute,
            "accel": _one_of("auto", "kvm", "tcg"),
            "warm": _one_of("auto", "true", "false"),
            "bus_host": _text,
            "qemu": _text,
            "qemu_img": _text,
        },
        _qemu,
    ),
    "docker": Provider(
        {
            "directory": _absolute,
            "stemcells": _absolute,
            "docker_host": _text,
            "network": _text,
            "bus_host": _text,
        },
        _docker,
    ),
}
LOCAL_PROVIDERS = frozenset({"qemu", "docker"})
"""Those whose VMs and stemcells lie on the monitor's own machine."""
