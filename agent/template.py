"""A VM that is only booted to be snapshotted, and wakes up as another.

Laws: before the snapshot nothing is connected and nothing is known that two clones must not share; everything that
takes time is done (engine up, images loaded, code imported, codecs built). After the resume nothing is left to do but
to be somebody: read the settings, take on the identity, connect.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from agent import settings_sources
from agent.settings_sources import Found, SettingsError, Source
from protocol.heartbeat import EngineState

log = structlog.get_logger(__name__)

READY_LINE = "RESURGAM TEMPLATE READY"
CONSOLES = (Path("/dev/ttyS0"), Path("/dev/console"))
POLL_SECONDS = 0.1
"""Between two looks at the settings: half of it is the mean delay of a resume."""


async def engine_up(state: Callable[[], EngineState], every_seconds: float = 0.2) -> None:
    while state() is not EngineState.UP:  # noqa: ASYNC110 a deadline is not ours: the supervisor restarts the engine
        await asyncio.sleep(every_seconds)


async def wait_to_be_somebody(found: Found, sources: tuple[Source, ...], consoles: tuple[Path, ...]) -> Found:
    """Says on the console that the snapshot may be taken, and returns the settings that are no template's."""
    settle()
    announce(consoles)
    raw = found.raw
    complaint = ""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            current = await _read(sources, found.source)
            if current is None or current == raw:
                continue
            raw = current
            settings = settings_sources.parse(current, found.source)
        except SettingsError as error:
            if str(error) != complaint:  # half-written or wrong: once in the log, and looked at again
                log.warning("template.settings_unreadable", error=str(error))
            complaint = str(error)
            continue
        if not settings.template:
            log.info("template.resumed", agent=settings.agent_id, instance=settings.instance)
            return Found(settings, found.source, current)


def announce(consoles: tuple[Path, ...]) -> None:
    """On the first console there is; the one who takes the snapshot reads it."""
    for console in consoles:
        try:
            descriptor = os.open(console, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            log.info("template.no_console", console=str(console), error=error.strerror)
            continue
        try:
            os.write(descriptor, f"{READY_LINE}\r\n".encode())
        except OSError as error:
            log.warning("template.console_failed", console=str(console), error=error.strerror)
            continue
        finally:
            os.close(descriptor)
        log.info("template.ready", console=str(console))
        return
    log.error("template.not_announced", consoles=[str(console) for console in consoles])


def settle() -> None:
    """Keeps what is loaded out of the garbage collector's way."""
    gc.collect()
    gc.freeze()


async def _read(sources: tuple[Source, ...], name: str) -> bytes | None:
    """From the source that said to be a template: looking for config drives ten times a second helps nobody."""
    for source in sources:
        if source.name == name:
            return await source.read()
    return None
