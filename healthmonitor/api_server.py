"""Serves an application on a socket inside the monitor's own loop.

Law: the socket is bound before anything else is begun, so that an address in use is an error at the start. Signals are
the monitor's own: uvicorn is told to leave them alone.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

SHUTDOWN_SECONDS = 2
KEEP_ALIVE_SECONDS = 30
CONNECTIONS_MAX = 512


class AddressInUse(Exception):
    """Somebody else listens there."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ApiServer:
    def __init__(self, application: ASGIApp, host: str, port: int) -> None:
        self._socket = bind(host, port)
        self._server = _Server(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                limit_concurrency=CONNECTIONS_MAX,
            )
        )

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    async def run(self) -> None:
        """Until `stop`, or until cancelled."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._socket.close()

    def stop(self) -> None:
        self._server.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; AddressInUse with what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(CONNECTIONS_MAX)
    except OSError as error:
        listening.close()
        raise AddressInUse(f"cannot listen on {host} port {port}: {error.strerror}") from None
    listening.setblocking(False)
    return listening
