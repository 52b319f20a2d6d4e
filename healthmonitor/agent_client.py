"""Requests to agents and their answers.

Agents answer only on the body's `reply_to`. The request is sent as a NATS request all the same: so the server says at
once when nobody listens on the agent's subject, which is the fastest sign that a VM is gone.

Laws: every call has a deadline; `BusUnavailable` means that the outcome is unknown; at most `REQUESTS_MAX` are out at
once, others wait their turn within their own deadline. `check`, where there is one, is called in the moment of sending,
with nothing awaited in between: what it raises, instead of the request, is the outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from protocol import envelope, subjects
from protocol.bus import Bus, BusUnavailable, Message, NoResponders, Subscription
from protocol.envelope import Request, RequestRefused
from protocol.ids import AgentId, Generation, MonitorId

REQUESTS_MAX = 512
TASK_WAIT_SECONDS = 5.0
"""How long an agent may keep a `get_task` open, so that the end of a task is known when it happens."""
_TASK_ANSWER_MARGIN_SECONDS = 2.0
_TASK_PAUSE_SECONDS = 0.2

__all__ = ["AgentClient", "BusUnavailable", "NoResponders", "PingAnswer", "RequestRefused"]


def _nothing() -> None:
    """Nothing is looked at."""


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """`boot_id` and what follows are of our agents only; BOSH's says just "pong"."""

    boot_id: str = ""
    uptime_seconds: float | None = None
    sequence: int | None = None
    echoed: bool = False  # the answer names our question, so it is younger than it


class AgentClient:
    def __init__(self, bus: Bus, monitor_id: MonitorId, new_id: Callable[[], str]) -> None:
        self._bus = bus
        self._monitor_id = monitor_id
        self._new_id = new_id
        self._subscription: Subscription | None = None
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._turns = asyncio.Semaphore(REQUESTS_MAX)

    async def open(self) -> None:
        self._subscription = await self._bus.subscribe(subjects.every_answer(self._monitor_id), self._answered)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None

    async def call(
        self,
        agent: AgentId,
        generation: Generation | None,
        method: str,
        *arguments: Any,
        timeout_seconds: float,
        check: Callable[[], None] = _nothing,
    ) -> Any:
        """The agent's value. RequestRefused with its message; NoResponders when nobody listens there; BusUnavailable
        after the time, or when the answer makes no sense."""
        try:
            async with asyncio.timeout(timeout_seconds), self._turns:
                payload = await self._exchange(agent, generation, method, arguments, timeout_seconds, check)
        except TimeoutError:
            raise BusUnavailable(f"{method}: no answer from agent {agent} within {timeout_seconds:g} s") from None
        try:
            return envelope.decode_reply(payload)
        except ValueError as error:
            raise BusUnavailable(f"{method}: agent {agent} answered what is no answer: {error}") from None

    async def call_task(
        self,
        agent: AgentId,
        generation: Generation | None,
        method: str,
        *arguments: Any,
        timeout_seconds: float,
        answer_seconds: float,
        on_turn: Callable[[Any], Awaitable[None]] | None = None,
        check: Callable[[], None] = _nothing,
    ) -> Any:
        """As `call`, for what may take long: agents answer such requests with a task, which is followed to its end.
        `answer_seconds`: for the first answer; `timeout_seconds`: for all of it. `on_turn` is given each answer that
        says how far the task is, None when there was no answer; what it raises ends the following, not the task.
        `check` is of the request itself; asking what became of it needs none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_seconds
        value = await self.call(agent, generation, method, *arguments, timeout_seconds=answer_seconds, check=check)
        task_id = _running_task(value)
        while task_id is not None:
            left = until - loop.time()
            if left <= 0:
                raise BusUnavailable(f"{method}: agent {agent} is still at it after {timeout_seconds:g} s")
            wait = min(TASK_WAIT_SECONDS, left)
            asked_at = loop.time()
            try:
                value = await self.call(
                    agent,
                    generation,
                    "get_task",
                    task_id,
                    {"wait_seconds": wait},
                    timeout_seconds=wait + _TASK_ANSWER_MARGIN_SECONDS,
                )
            except (BusUnavailable, NoResponders):
                if loop.time() >= until:
                    raise
                if on_turn is not None:
                    await on_turn(None)
                await asyncio.sleep(_TASK_PAUSE_SECONDS)
                continue
            running = _running_task(value)
            if running is None:
                return value
            if on_turn is not None:
                await on_turn(value.get("progress"))
            # An agent that does not keep the question open (BOSH's) is not asked in a spin.
            await asyncio.sleep(max(0.0, _TASK_PAUSE_SECONDS - (loop.time() - asked_at)))
        return value

    async def ping(self, agent: AgentId, generation: Generation | None, timeout_seconds: float) -> PingAnswer:
        """Its answer; the errors of `call`. A refusal (another generation) is an error too: it is not *this* VM."""
        nonce = self._new_id()
        value = await self.call(agent, generation, "ping", {"echo": nonce}, timeout_seconds=timeout_seconds)
        if not isinstance(value, dict):
            return PingAnswer()
        uptime = value.get("uptime_seconds")
        sequence = value.get("sequence")
        return PingAnswer(
            boot_id=str(value.get("boot_id", "")),
            uptime_seconds=float(uptime) if isinstance(uptime, (int, float)) else None,
            sequence=sequence if isinstance(sequence, int) else None,
            echoed=value.get("echo") == nonce,
        )

    async def _exchange(
        self,
        agent: AgentId,
        generation: Generation | None,
        method: str,
        arguments: tuple[Any, ...],
        timeout_seconds: float,
        check: Callable[[], None],
    ) -> bytes:
        reply_to = subjects.answer(self._monitor_id, agent, self._new_id())
        request = envelope.encode_request(Request(method, arguments, reply_to, generation=generation))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[reply_to] = answer
        sent = asyncio.ensure_future(self._send(agent, request, timeout_seconds, check))
        sent.add_done_callback(_looked_at)
        try:
            await asyncio.wait({answer, sent}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            return sent.result()
        finally:
            del self._waiting[reply_to]
            answer.cancel()
            if not sent.done():
                sent.cancel()
            await asyncio.wait({sent})

    async def _send(self, agent: AgentId, request: bytes, timeout_seconds: float, check: Callable[[], None]) -> bytes:
        check()
        return await self._bus.request(subjects.to_agent(agent), request, timeout_seconds)

    def _answered(self, message: Message) -> None:
        answer = self._waiting.get(message.subject)
        if answer is not None and not answer.done():
            answer.set_result(message.payload)


def _looked_at(sent: asyncio.Future[bytes]) -> None:
    """Its outcome is either asked for, or of no interest: the answer is here, or whoever asked was cancelled, be it for
    the second time while the request still ended."""
    if not sent.cancelled():
        sent.exception()


def _running_task(value: Any) -> str | None:
    """The id of the task that a value speaks of, while it runs."""
    if isinstance(value, dict) and value.get("state") == "running" and "agent_task_id" in value:
        return str(value["agent_task_id"])
    return None
