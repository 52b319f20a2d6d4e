"""`resurgam-healthmonitor`: reads the configuration and runs the monitor until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import structlog

from healthmonitor.api_server import AddressInUse
from healthmonitor.channels.build import build_channels
from healthmonitor.channels.reach import reach_all
from healthmonitor.configuration_file import LoadedConfiguration, load_configuration
from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.service import Service
from healthmonitor.version import VERSION
from protocol.systemd_notify import SystemdNotify

DEFAULT_CONFIGURATION = Path("/etc/resurgam/healthmonitor.yml")
EXIT_CONFIGURATION = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="resurgam-healthmonitor", description=__doc__)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIGURATION, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="only say whether the configuration is right")
    parser.add_argument("--version", action="version", version=VERSION)
    arguments = parser.parse_args()
    try:
        loaded = load_configuration(arguments.config)
    except ManifestErrors as errors:
        print(errors, file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    if arguments.check:
        sys.exit(asyncio.run(_check(loaded, arguments.config)))
    configure_logging(loaded.configuration.log_level)
    try:
        asyncio.run(_run(loaded, arguments.config))
    except ManifestErrors as errors:
        print(errors, file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    except AddressInUse as error:
        print(f"{error}; change http.listen in {arguments.config}, or end what listens there", file=sys.stderr)
        sys.exit(1)


async def _check(loaded: LoadedConfiguration, path: Path) -> int:
    """Also whether channels' servers are trusted; those that are not there are said and are no error."""
    configurations = loaded.configuration.channels
    channels = build_channels(configurations, str(path), time.time, os.environ)
    try:
        reached = await reach_all(channels, configurations, str(path))
    finally:
        for channel in channels:
            await channel.close()
    for name, why in reached.unreachable.items():
        print(f"warning: channel {name}: {why}", file=sys.stderr)
    if reached.errors:
        print(ManifestErrors(reached.errors), file=sys.stderr)
        return EXIT_CONFIGURATION
    print(f"{path} is right")
    return 0


async def _run(loaded: LoadedConfiguration, path: Path) -> None:
    service = Service(loaded, path, SystemdNotify(os.environ))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    await service.run()


def configure_logging(level: str) -> None:
    """One line per event, key=value, on standard error, in UTC; without colours unless a terminal reads it."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *_renderers(sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _renderers(for_people: bool) -> list[structlog.typing.Processor]:
    if for_people:
        return [structlog.dev.ConsoleRenderer(colors=True)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], drop_missing=True),
    ]


if __name__ == "__main__":
    main()
