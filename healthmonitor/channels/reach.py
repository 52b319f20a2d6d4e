"""Whether channels' servers are there and trusted, asked before the configuration is taken.

Laws:
- A server that answers with a certificate that is not trusted is an error of the configuration, with its line and
  cause. One that cannot be reached is none: the monitor starts all the same, and says so.
- Only a connection is made: nothing is sent, nobody is told, no secret is used.

Does not know: what is done with the answer (`healthmonitor/service.py`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from healthmonitor.channels.channel import Channel, ChannelUnavailable, NotTrusted
from healthmonitor.core.configuration import ChannelConfiguration
from healthmonitor.core.located_yaml import ManifestError

REACH_SECONDS = 3.0
"""All are asked at the same time, so a start takes no longer for it."""
CLOSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Reached:
    """`unreachable`: channel → why. `errors`: of those that are not trusted."""

    unreachable: Mapping[str, str]
    errors: tuple[ManifestError, ...]


async def reach_all(channels: Sequence[Channel], configurations: Sequence[ChannelConfiguration], file: str) -> Reached:
    found = await asyncio.gather(*(_reach(channel) for channel in channels))
    by_name = {each.name: each for each in configurations}
    errors: list[ManifestError] = []
    unreachable: dict[str, str] = {}
    for channel, problem in zip(channels, found, strict=True):
        match problem:
            case NotTrusted():
                configuration = by_name[channel.name]
                line, column = configuration.lines.get(problem.option, configuration.place)
                path = f"channels.{channel.name}.{problem.option}"
                errors.append(ManifestError(file, line, column, path, str(problem)))
            case str():
                unreachable[channel.name] = problem
            case None:
                pass
    return Reached(unreachable, tuple(errors))


async def _reach(channel: Channel) -> NotTrusted | str | None:
    try:
        async with asyncio.timeout(REACH_SECONDS):
            await channel.reach()
    except NotTrusted as error:
        return error
    except ChannelUnavailable as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {REACH_SECONDS:g} s"
    return None


async def greet(host: str, port: int, trust: ssl.SSLContext | None) -> None:
    """A connection, with TLS when `trust` is given, and its end. Raises OSError; not trusted is
    ssl.SSLCertVerificationError, which is one."""
    _, writer = await asyncio.open_connection(host, port, ssl=trust, server_hostname=host if trust else None)
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass  # it was there, and is trusted: how it takes leave is nobody's business


def distrust(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """The certificate's failure behind an error, if that is what it was."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
