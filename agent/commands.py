"""Commands over the bus: read, refuse or carry out, answer.

Laws: every request that names where to answer gets exactly one answer, whatever it holds. Nothing a request contains
ends the agent or keeps it from answering the next. Work at one time is bounded; a question that is answered from
memory never waits behind one that is not. A request for another generation of this VM's instance is refused.

Does not know: what commands do (agent/methods.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from agent import libmount, subprocesses
from agent.arguments import BadArguments
from agent.core.desired import Refused
from agent.disk_keeper import UnknownDisk
from agent.disk_probe import NotADevice
from agent.disk_tools import DiskBusy, DiskMissing, DiskRefused
from agent.engine import EngineError
from agent.methods import Method
from agent.tasks import TaskFault
from protocol import envelope
from protocol.bus import Bus, BusError, Message
from protocol.envelope import BadRequest, Request
from protocol.ids import AgentId, Generation
from protocol.subjects import to_agent

log = structlog.get_logger(__name__)

AT_ONCE_MAX = 64
"""Requests being carried out; get_task with `wait_seconds` counts."""
QUICK_MAX = 1024
"""Requests that are answered from memory and wait for the bus to take the answer."""

_EXPECTED = (
    BadArguments,
    BusError,
    DiskBusy,
    DiskMissing,
    DiskRefused,
    EngineError,
    NotADevice,
    Refused,
    TaskFault,
    UnknownDisk,
    libmount.MountFailed,
    subprocesses.CommandFailed,
)
"""Their text is made for the caller."""


def explain(error: Exception) -> str:
    """What the caller is told of a failure."""
    if isinstance(error, _EXPECTED):
        return str(error)
    if isinstance(error, TimeoutError):
        return str(error) or "it did not end in time; whether it was done is not known"
    if isinstance(error, OSError):
        return str(error)
    return f"the agent failed: {error!r}; see its log"


class Commands:
    def __init__(
        self, bus: Bus, agent: AgentId, generation: Callable[[], Generation], table: Mapping[str, Method]
    ) -> None:
        self._bus = bus
        self._subject = to_agent(agent)
        self._generation = generation
        self._table = table
        self._busy = 0
        self._quick = 0

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Until cancelled. `ready` is called once requests are heard."""
        async with asyncio.TaskGroup() as group:

            def heard(message: Message) -> None:
                self._hear(group, message)

            subscription = await self._bus.subscribe(self._subject, heard)
            try:
                ready()
                await asyncio.get_running_loop().create_future()
            finally:
                await self._leave(subscription.unsubscribe)

    def _hear(self, group: asyncio.TaskGroup, message: Message) -> None:
        """In the bus's own callback: only sorts out, and begins."""
        try:
            request = envelope.decode_request(message.payload)
        except BadRequest as error:
            log.warning("request.unreadable", error=str(error), answered=bool(error.reply_to or message.reply_to))
            self._answer(group, error.reply_to or message.reply_to, envelope.encode_exception(str(error)))
            return
        reply_to = request.reply_to or message.reply_to
        method = self._table.get(request.method)
        refusal = self._refusal(request, method)
        if method is None or refusal is not None:
            self._answer(group, reply_to, envelope.encode_exception(refusal or f"unknown message {request.method}"))
            return
        if method.quick:
            self._quick += 1
        else:
            self._busy += 1
        group.create_task(self._carry_out(method, request, reply_to), name=f"request-{request.method}")

    def _refusal(self, request: Request, method: Method | None) -> str | None:
        if method is None:
            return f"unknown message {request.method[:200]}"
        ours = self._generation()
        if request.generation not in (None, ours) and not method.any_generation:
            return _failed(request.method, f"this VM is of generation {ours}, the request of {request.generation}")
        count, limit = (self._quick, QUICK_MAX) if method.quick else (self._busy, AT_ONCE_MAX)
        if count >= limit:
            return _failed(request.method, f"{limit} requests are being carried out already; ask again later")
        return None

    async def _carry_out(self, method: Method, request: Request, reply_to: str) -> None:
        try:
            payload = envelope.encode_value(await method.run(request))
        except Exception as error:
            # the edge of this request's task: its failure is the caller's answer, and must not end the agent
            if not isinstance(error, _EXPECTED):
                log.exception("request.failed", method=request.method)
            else:
                log.info("request.refused", method=request.method, reason=str(error))
            payload = envelope.encode_exception(_failed(request.method, explain(error)))
        finally:
            if method.quick:
                self._quick -= 1
            else:
                self._busy -= 1
        await self._publish(reply_to, payload)

    def _answer(self, group: asyncio.TaskGroup, reply_to: str, payload: bytes) -> None:
        if self._quick >= QUICK_MAX:
            log.warning("request.dropped", reason="too many answers wait for the bus")
            return
        self._quick += 1
        group.create_task(self._answer_quickly(reply_to, payload), name="answer")

    async def _answer_quickly(self, reply_to: str, payload: bytes) -> None:
        try:
            await self._publish(reply_to, payload)
        finally:
            self._quick -= 1

    async def _publish(self, reply_to: str, payload: bytes) -> None:
        if not reply_to:
            return
        try:
            await self._bus.publish(reply_to, payload)
        except BusError as error:
            log.warning("answer.lost", error=str(error), next="the caller asks again")

    async def _leave(self, unsubscribe: Callable[[], Any]) -> None:
        try:
            await unsubscribe()
        except BusError as error:
            log.debug("commands.unsubscribe", error=str(error))


def _failed(name: str, message: str) -> str:
    """BOSH's wording."""
    return f"Action Failed {name}: {message}"
