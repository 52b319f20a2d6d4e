"""BOSH's envelope: read as its agent reads it, answered as its director expects it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import envelope
from protocol.envelope import BadRequest, Request, RequestRefused, decode_reply, decode_request, encode_request
from protocol.ids import Generation

CAPTURED = sorted(Path("tests/data/bosh-agent").glob("*.json"))
REQUESTS = [path for path in CAPTURED if "request" in json.loads(path.read_text())]


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_real_directors_request_is_read(path: Path) -> None:
    """Method, arguments and where to answer; without a generation, as BOSH knows none."""
    real = json.loads(path.read_text())["request"]
    request = decode_request(json.dumps(real).encode())
    assert (request.method, list(request.arguments), request.reply_to) == (
        real["method"],
        real["arguments"],
        real["reply_to"],
    )
    assert request.protocol == 3
    assert request.generation is None


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.stem)
def test_a_real_agents_answer_is_read(path: Path) -> None:
    """Values as they are, exceptions as refusals with the agent's message."""
    real = json.loads(path.read_text())
    if "exception" in real["parsed"]:
        with pytest.raises(RequestRefused, match="unknown message no_such_method"):
            decode_reply(real["raw"].encode())
    else:
        assert decode_reply(real["raw"].encode()) == real["parsed"]["value"]


def test_our_simple_answers_are_byte_for_byte_a_real_agents() -> None:
    """ping's value, and the message by which callers detect what is not supported."""
    for name, ours in (
        ("ping", envelope.encode_value("pong")),
        ("unknown_method", envelope.encode_exception("unknown message no_such_method")),
    ):
        real = json.loads(Path(f"tests/data/bosh-agent/agent-real-1-{name}.json").read_text())
        assert ours == real["raw"].encode()


@pytest.mark.parametrize(
    ("payload", "message", "reply_to"),
    [
        (b"", "not JSON", ""),
        (b"{", "not JSON", ""),
        (b"\xff", "not JSON", ""),
        (b"[" * 200_000, "not JSON", ""),
        (b"[]", "not a JSON object", ""),
        (b"3", "not a JSON object", ""),
        (b"{}", "unknown message", ""),
        (b'{"reply_to":"a.b"}', "unknown message", "a.b"),
        (b'{"method":null,"reply_to":"a.b"}', "unknown message", "a.b"),
        (b'{"method":["ping"],"reply_to":"a.b"}', "unknown message", "a.b"),
        (b'{"method":"ping","arguments":{},"reply_to":"a.b"}', None, "a.b"),
        (b'{"method":"ping","arguments":{"a":1},"reply_to":"a.b"}', "must be an array", "a.b"),
        (b'{"method":"ping","arguments":"x","reply_to":"a.b"}', "must be an array", "a.b"),
        (b'{"method":"ping","generation":1.5,"reply_to":"a.b"}', "whole number", "a.b"),
        (b'{"method":"ping","generation":true,"reply_to":"a.b"}', "whole number", "a.b"),
        (b'{"method":"","reply_to":"a.*"}', "unknown message", ""),
        (b'{"method":"","reply_to":"a.>"}', "unknown message", ""),
        (b'{"method":"","reply_to":"a b"}', "unknown message", ""),
        (b'{"method":"","reply_to":"a..b"}', "unknown message", ""),
        (b'{"method":"","reply_to":"a.b."}', "unknown message", ""),
        (b'{"method":"ping","arguments":["\\ud800"],"reply_to":"a.b"}', "not JSON", ""),
        (b'{"method":"ping","arguments":["\xed\xa0\x80"],"reply_to":"a.b"}', "not JSON", ""),
        (b'{"method":"","reply_to":7}', "unknown message", ""),
        (b" " * (envelope.REQUEST_MAX_BYTES + 1), "larger than", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_request_says_why_and_where_to_say_so(payload: bytes, message: str | None, reply_to: str) -> None:
    """A subject to answer on is used only when it is one."""
    if message is None:
        assert decode_request(payload).arguments == ()
        return
    with pytest.raises(BadRequest, match=message) as caught:
        decode_request(payload)
    assert caught.value.reply_to == reply_to


def test_keys_match_in_any_case_and_unknown_ones_are_ignored() -> None:
    """As Go's decoder does."""
    request = decode_request(b'{"Method":"ping","ARGUMENTS":[1],"Reply_To":"a.b","later":true}')
    assert request == Request("ping", (1,), "a.b", protocol=0)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.builds(
        Request,
        method=st.text(min_size=1, max_size=20),
        arguments=st.lists(PLAIN, max_size=3).map(tuple),
        reply_to=st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,3}", fullmatch=True),
        protocol=st.integers(0, 5),
        generation=st.one_of(st.none(), st.integers(0, 1000).map(Generation)),
    )
)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    """Whatever its arguments hold."""
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(payload: bytes) -> None:
    """Either a request or BadRequest, never another error."""
    with contextlib.suppress(BadRequest):
        decode_request(payload)


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (b'{"value":"pong"}', "pong"),
        (b'{"value":0}', 0),
        (b'{"value":null}', None),
        (b'"pong"', "pong"),
        (b"[1]", [1]),
        (b'{"agent_task_id":"t","state":"running"}', {"agent_task_id": "t", "state": "running"}),
    ],
)
def test_every_shape_of_success_is_understood(payload: bytes, value: Any) -> None:
    """Those of the envelope and the legacy ones."""
    assert decode_reply(payload) == value


@pytest.mark.parametrize("exception", ['{"message":"no"}', '"no"', '{"message":"no","backtrace":["x"]}'])
def test_every_shape_of_failure_is_understood(exception: str) -> None:
    """An object with a message, or plain text."""
    with pytest.raises(RequestRefused, match=r"^no$"):
        decode_reply(f'{{"exception":{exception}}}'.encode())


def test_what_is_no_reply_is_an_error_of_its_own() -> None:
    """Not a refusal: the agent may have done what was asked."""
    with pytest.raises(ValueError, match="not JSON"):
        decode_reply(b"{")


def test_large_answers_stay_below_what_the_bus_takes() -> None:
    """A value becomes BOSH's exception; a message keeps its head and tail."""
    with pytest.raises(RequestRefused, match="exceeded maximum"):
        decode_reply(envelope.encode_value("x" * envelope.REPLY_MAX_BYTES))
    long = envelope.encode_exception("head" + "x" * 1_000_000 + "tail")
    assert len(long) < envelope.REPLY_MAX_BYTES
    with pytest.raises(RequestRefused, match=r"^headx+\n\.\.\.\[truncated\]\.\.\.\nx+tail$"):
        decode_reply(long)
