"""Real servers on loopback that take notifications, and can be told to behave badly."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from enum import Enum
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


class Mode(Enum):
    TAKE = "takes what it is given"
    SLOW = "takes the connection and does not answer"
    LATER = "asks to come again"
    FAILING = "fails inside"
    NEVER = "refuses for good"
    GARBAGE = "answers what is not its protocol"
    CUT = "closes in the middle of its answer"
    DOWN = "is not there"


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HttpReceiver:
    """`taken`: the answer when it takes a request, `answer`: instead of the one of the mode."""

    taken: tuple[int, str] = (200, "")
    mode: Mode = Mode.TAKE
    answer: bytes = b""
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tls: ssl.SSLContext | None = None
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._free.set()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def behave(self, mode: Mode) -> None:
        self.mode = mode
        if mode is Mode.DOWN:
            await self.stop()
        elif self._server is None:
            self._free.clear()
            await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _read_request(reader)
            self.requests.append(request)
            if self.mode is Mode.SLOW:
                await self._free.wait()
            else:
                writer.write(self._answer())
                await writer.drain()
        writer.close()

    def _answer(self) -> bytes:
        if self.answer:
            return self.answer
        match self.mode:
            case Mode.LATER:
                return _http(429, "slow down", {"Retry-After": "17"})
            case Mode.FAILING:
                return _http(500, "oops")
            case Mode.NEVER:
                return _http(400, '{"status":"invalid event","message":"no","errors":["bad"]}')
            case Mode.GARBAGE:
                return b"\x00\x01 220 what is this\r\n\r\n"
            case Mode.CUT:
                return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"
            case _:
                return _http(*self.taken)


@contextlib.asynccontextmanager
async def http_receiver(
    taken: tuple[int, str] = (200, ""), tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpReceiver]:
    receiver = HttpReceiver(taken, _tls=tls)
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


def _http(status: int, text: str, headers: dict[str, str] | None = None) -> bytes:
    body = text.encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


USER, PASSWORD = "resurgam", "correct horse battery"


@dataclass
class MailServer:
    """aiosmtpd, with STARTTLS and login unless `tls` is None; the modes that break the protocol are played by hand."""

    tls: ssl.SSLContext | None
    implicit: bool = False
    mode: Mode = Mode.TAKE
    port: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # recipient → reply
    content_reply: str = "250 2.0.0 queued as 4711"
    mails: list[tuple[Envelope, EmailMessage]] = field(default_factory=list)
    logins: list[bool] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        tls = self.tls if self.implicit else None
        if self.mode in (Mode.SLOW, Mode.GARBAGE, Mode.CUT):
            self._server = await asyncio.start_server(self._misbehave, "127.0.0.1", self.port)
        else:
            self._server = await loop.create_server(self._protocol, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._free.set()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def behave(self, mode: Mode) -> None:
        await self.stop()
        self.mode = mode
        self._free.clear()
        if mode is not Mode.DOWN:
            await self.start()

    def _protocol(self) -> SMTP:
        wanted = self.tls is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it does not know that it speaks TLS from the first byte
            return self._make(wanted)

    def _make(self, wanted: bool) -> SMTP:
        return SMTP(
            self,
            hostname="mail.test",
            tls_context=None if self.implicit else self.tls,
            require_starttls=wanted and not self.implicit,
            auth_required=wanted,
            auth_require_tls=wanted and not self.implicit,
            authenticator=self._authenticate,
        )

    def _authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, credentials: LoginPassword
    ) -> AuthResult:
        right = credentials.login == USER.encode() and credentials.password == PASSWORD.encode()
        self.logins.append(right)
        return AuthResult(success=right, handled=False)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.mode is Mode.LATER:
            return "451 4.7.1 greylisted, come again"
        if self.mode is Mode.NEVER:
            return "550 5.1.1 no such user"
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.mode is Mode.FAILING:
            return "452 4.3.1 no space left"
        if not self.content_reply.startswith("250"):
            return self.content_reply
        content = envelope.content if isinstance(envelope.content, bytes) else b""
        self.mails.append((envelope, message_from_bytes(content, policy=policy.default)))
        return self.content_reply

    async def _misbehave(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            match self.mode:
                case Mode.SLOW:
                    await self._free.wait()
                case Mode.GARBAGE:
                    writer.write(b"HTTP/1.1 200 OK\r\n\r\nHello\r\n")
                    await writer.drain()
                case _:
                    writer.write(b"220 mail.test ESMTP\r\n")
                    await reader.readline()
                    writer.write(b"250-mail.test\r\n250-STAR")
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def mail_server(tls: ssl.SSLContext | None, implicit: bool = False) -> AsyncIterator[MailServer]:
    server = MailServer(tls, implicit)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
