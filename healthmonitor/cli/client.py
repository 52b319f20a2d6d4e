"""The HTTP API as the commands call it. Every failure becomes a CliFailure with the API's own words.

Law: a reply that is not ours (a proxy's page, half a line) is said to be so, never taken for an empty result.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from typing import Any

import httpx

from healthmonitor.cli.failures import CliFailure, ExitCode

CONNECT_SECONDS = 3.0
REPLY_SECONDS = 60.0
"""The slowest replies are those that ask an agent (logs), which has 30 s."""

UPLOAD_SECONDS = 600.0
"""After its last byte a blob is checked and written to the bus before the reply."""

_CODES = {400: ExitCode.USAGE, 401: ExitCode.NOT_ALLOWED, 403: ExitCode.NOT_ALLOWED, 404: ExitCode.USAGE}
_CODES |= {413: ExitCode.USAGE, 422: ExitCode.USAGE, 503: ExitCode.UNREACHABLE}


class ApiClient:
    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"X-Resurgam-User": _user()}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._url = url
        self._http = httpx.Client(
            base_url=url,
            headers=headers,
            transport=transport,
            timeout=httpx.Timeout(REPLY_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | float | bool) -> Any:
        return self._call("GET", path, query=query)

    def post(self, path: str, body: Any = None) -> Any:
        return self._call("POST", path, body=body if body is not None else {})

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body=body)

    def upload(self, path: str, content: Iterator[bytes], size_bytes: int) -> Any:
        """A body that is not held in memory. Waits for the server's disk as long as it takes, in steps."""
        timeout = httpx.Timeout(UPLOAD_SECONDS, connect=CONNECT_SECONDS)
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        try:
            reply = self._http.put(path, content=content, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if reply.status_code >= 400:
            raise _failure(reply)
        return reply.json()

    def delete(self, path: str, **query: str | int | float | bool) -> Any:
        return self._call("DELETE", path, query=query)

    def lines(self, path: str, **query: str | int | float | bool) -> Iterator[Any]:
        """A reply of JSON lines that does not end by itself."""
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        try:
            with self._http.stream("GET", path, params=query, timeout=timeout) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise _failure(reply)
                for line in reply.iter_lines():
                    if line.strip():
                        yield json.loads(line)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def healthy(self) -> tuple[bool, list[str]]:
        """Whether /healthz says so, and its reasons when not. CliFailure(UNREACHABLE) when nobody answers."""
        try:
            reply = self._http.get("/healthz", timeout=CONNECT_SECONDS)
            body = reply.json()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        except ValueError:
            return False, [f"HTTP {reply.status_code}, and not from a health monitor"]
        return reply.status_code == 200, [str(reason) for reason in body.get("reasons", [])]

    def _call(self, method: str, path: str, query: Any = None, body: Any = None) -> Any:
        try:
            reply = self._http.request(method, path, params=query, json=body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if reply.status_code >= 400:
            raise _failure(reply)
        try:
            return reply.json()
        except ValueError:
            raise CliFailure(f"{self._url}{path} answered with something that is not JSON") from None

    def _unreachable(self, error: httpx.TransportError) -> CliFailure:
        what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "is not running"
        return CliFailure(
            f"the health monitor at {self._url} {what} ({error or type(error).__name__})",
            ExitCode.UNREACHABLE,
            "start it with `resurgam up` (or `systemctl start resurgam-healthmonitor`), or name another with --api",
        )


def _failure(reply: httpx.Response) -> CliFailure:
    code = _CODES.get(reply.status_code, ExitCode.FAILED)
    try:
        body = reply.json()
        message = str(body["error"])
    except (ValueError, KeyError, TypeError):
        return CliFailure(f"HTTP {reply.status_code}: {reply.text[:200]}", code)
    where = str(body.get("where") or "")
    details = tuple(str(line) for line in body.get("details") or ())
    if body.get("kind") == "held_back":
        code = ExitCode.HELD_BACK
    return CliFailure(
        f"{where}: {message}" if where and where not in message else message,
        code,
        str(body.get("next") or ""),
        details,
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
