"""Channels from the configuration: which types there are, all errors in what they are told, and the channels.

Law: nothing is contacted and nothing is made before everything is right; a wrong file leaves what runs as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from healthmonitor.channels.alertmanager import ALERTMANAGER
from healthmonitor.channels.apprise import APPRISE
from healthmonitor.channels.channel import Channel
from healthmonitor.channels.email import EMAIL
from healthmonitor.channels.exec import EXEC
from healthmonitor.channels.log import LOG
from healthmonitor.channels.options import ChannelType, Sources, read_options
from healthmonitor.channels.pagerduty import PAGERDUTY
from healthmonitor.channels.webhook import WEBHOOK
from healthmonitor.core.configuration import ChannelConfiguration
from healthmonitor.core.located_yaml import ManifestError, ManifestErrors
from healthmonitor.core.yaml_places import unknown

TYPES: Mapping[str, ChannelType] = {
    "log": LOG,
    "email": EMAIL,
    "pagerduty": PAGERDUTY,
    "webhook": WEBHOOK,
    "alertmanager": ALERTMANAGER,
    "apprise": APPRISE,
    "exec": EXEC,
}


def channel_errors(
    configurations: Sequence[ChannelConfiguration],
    file: str,
    unix_time: Callable[[], float],
    environment: Mapping[str, str],
) -> list[ManifestError]:
    """Everything that is wrong with the channels' types, options, and the files and variables that they name."""
    return [error for each in configurations for error in _read(each, file, _sources(file, unix_time, environment))[1]]


def build_channels(
    configurations: Sequence[ChannelConfiguration],
    file: str,
    unix_time: Callable[[], float],
    environment: Mapping[str, str],
) -> list[Channel]:
    """In the order of the file; ManifestErrors with everything that is wrong. Relative paths: see `Sources`."""
    sources = _sources(file, unix_time, environment)
    read = [(each, *_read(each, file, sources)) for each in configurations]
    errors = [error for _, _, found in read for error in found]
    if errors:
        raise ManifestErrors(errors)
    for library in ("httpx", "httpcore"):
        # They log whole addresses, and some addresses are secrets.
        logging.getLogger(library).setLevel(logging.WARNING)
    return [TYPES[each.type].make(each.name, values, sources) for each, values, _ in read]


def _sources(file: str, unix_time: Callable[[], float], environment: Mapping[str, str]) -> Sources:
    return Sources(Path(file).absolute().parent, environment, unix_time)


def _read(
    configuration: ChannelConfiguration, file: str, sources: Sources
) -> tuple[Mapping[str, object], list[ManifestError]]:
    kind = TYPES.get(configuration.type)
    if kind is None:
        message = unknown("type", configuration.type, TYPES)
        return {}, [ManifestError(file, *configuration.place, f"channels.{configuration.name}.type", message)]
    return read_options(configuration, kind, file, sources)
