"""Requests to an agent and its replies: BOSH's envelope (protocol 3), plus our key `generation`.

Law: a reply is either `{"value": …}` or `{"exception": {"message": …}}`. What cannot be read as a request but
names a `reply_to` still gets an error reply; nothing here raises into the caller but `BadRequest`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from protocol.ids import Generation

PROTOCOL = 3
REQUEST_MAX_BYTES = 1024 * 1024
REPLY_MAX_BYTES = 1024 * 1024 - 4096
"""nats-server's default max_payload is 1 MiB; the rest is left for the protocol line and headers."""
EXCEPTION_MAX_CHARACTERS = 16 * 1024
NO_DEVICE = "no device for"
"""In an agent's refusal to mount: its VM does not see the disk."""


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    arguments: tuple[Any, ...]
    reply_to: str
    protocol: int = PROTOCOL
    generation: Generation | None = None
    """Of the VM that the sender means; an agent of another generation refuses. None: a BOSH director."""


class BadRequest(Exception):
    """The sender's fault. `reply_to` is where to say so, "" when not even that could be read."""

    def __init__(self, message: str, reply_to: str = "") -> None:
        super().__init__(message)
        self.reply_to = reply_to


class RequestRefused(Exception):
    """The agent answered with an exception; the text is its message. Retrying the same request will not help."""


def encode_request(request: Request) -> bytes:
    body: dict[str, Any] = {
        "protocol": request.protocol,
        "method": request.method,
        "arguments": list(request.arguments),
        "reply_to": request.reply_to,
    }
    if request.generation is not None:
        body["generation"] = request.generation
    return json.dumps(body, separators=(",", ":")).encode()


def decode_request(payload: bytes) -> Request:
    """The request in `payload`. Keys match case-insensitively, as in BOSH's agent; unknown keys are ignored."""
    if len(payload) > REQUEST_MAX_BYTES:
        raise BadRequest(f"request of {len(payload)} bytes is larger than {REQUEST_MAX_BYTES}")
    try:
        body = _read(payload)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("request is not a JSON object")
    lowered = {str(key).lower(): value for key, value in body.items()}
    reply_to = lowered.get("reply_to")
    reply_to = reply_to if isinstance(reply_to, str) and _is_subject(reply_to) else ""
    method = lowered.get("method")
    if not isinstance(method, str) or not method:
        raise BadRequest(f"unknown message {method if isinstance(method, str) else ''}", reply_to)
    arguments = lowered.get("arguments") or []
    if not isinstance(arguments, list):
        raise BadRequest(f"{method[:80]}: arguments must be an array", reply_to)
    generation = lowered.get("generation")
    if generation is not None and (not isinstance(generation, int) or isinstance(generation, bool)):
        raise BadRequest(f"{method[:80]}: generation must be a whole number", reply_to)
    protocol = lowered.get("protocol")
    return Request(
        method=method,
        arguments=tuple(arguments),
        reply_to=reply_to,
        protocol=protocol if isinstance(protocol, int) else 0,
        generation=None if generation is None else Generation(generation),
    )


def encode_value(value: Any) -> bytes:
    """A success; when it is larger than a message may be, the exception that BOSH's agent gives instead."""
    payload = json.dumps({"value": value}, separators=(",", ":")).encode()
    if len(payload) > REPLY_MAX_BYTES:
        return encode_exception("Response exceeded maximum allowed length")
    return payload


def encode_exception(message: str) -> bytes:
    if len(message) > EXCEPTION_MAX_CHARACTERS:
        half = EXCEPTION_MAX_CHARACTERS // 2
        message = message[:half] + "\n...[truncated]...\n" + message[-half:]
    return json.dumps({"exception": {"message": message}}, separators=(",", ":")).encode()


def decode_reply(payload: bytes) -> Any:
    """The value in a reply; raises RequestRefused with the agent's message, ValueError when it is no reply.

    Accepts every shape that BOSH's director accepts: an exception as plain text, a bare value without envelope.
    """
    try:
        body = _read(payload)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"reply is not JSON: {error}") from None
    if not isinstance(body, dict):
        return body
    exception = body.get("exception")
    if exception is not None:
        message = exception.get("message", "") if isinstance(exception, dict) else exception
        raise RequestRefused(str(message))
    return body.get("value", body)


def _read(payload: bytes) -> Any:
    """JSON in UTF-8; ValueError, RecursionError. Half a surrogate pair, which Python takes, is an error: it could
    not be written to disk, nor sent on."""
    text = payload.decode()
    value = json.loads(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _is_subject(text: str) -> bool:
    return 0 < len(text) <= 512 and not any(c in text for c in " \t\r\n*>") and all(text.split("."))
