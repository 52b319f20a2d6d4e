"""Messages cut by us beside the same bytes through nats-py's own parser, however the network cuts them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from protocol.bus import Message
from protocol.nats_client import GATHER_LONGER_SECONDS, GATHER_SECONDS, ServerOrder, ShortWayClient
from tests.simulation.loop import SimulatedLoop

SHORT, LONG = b"1", b"2"
Happening = tuple[object, ...]


class Listener(ShortWayClient):
    """A client without a connection that writes down what comes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.happened: list[Happening] = []
        self._subs[int(SHORT)] = Subscription(self, int(SHORT), "short", cb=self.never_called)
        self._subs[int(LONG)] = Subscription(self, int(LONG), "long", cb=self.another)
        self.open_short_way(self.never_called, self.heard)

    async def never_called(self, _message: object) -> None:
        raise AssertionError("messages with a short way do not take the long one")

    async def another(self, _message: object) -> None: ...

    def heard(self, message: Message) -> None:
        self.happened.append(
            ("message", int(SHORT), message.subject.encode(), message.reply_to.encode(), message.payload, None)
        )

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        self.happened.append(("message", sid, subject, reply, data, headers))

    async def _process_ping(self) -> None:
        self.happened.append(("ping",))

    async def _process_pong(self) -> None:
        self.happened.append(("pong",))

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.happened.append(("info", str(info)))

    async def _process_err(self, err_msg: str) -> None:
        self.happened.append(("error", err_msg))


def message(sid: bytes, subject: bytes, reply: bytes, payload: bytes) -> bytes:
    words = (b"MSG", subject, sid, *((reply,) if reply else ()), b"%d" % len(payload))
    return b" ".join(words) + b"\r\n" + payload + b"\r\n"


def with_headers(sid: bytes, subject: bytes, headers: bytes, payload: bytes) -> bytes:
    line = b"HMSG %s %s %d %d\r\n" % (subject, sid, len(headers), len(headers) + len(payload))
    return line + headers + payload + b"\r\n"


SUBJECTS = st.sampled_from([b"hm.agent.heartbeat.a-1", b"x", "hm.agent.heartbeat.ö".encode()])
PAYLOADS = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"PING\r\n", b"MSG x 1 3\r\n", b"y" * 9000])
)
ITEMS = st.one_of(
    st.builds(message, st.sampled_from([SHORT, LONG, b"77"]), SUBJECTS, st.sampled_from([b"", b"_INBOX.1"]), PAYLOADS),
    st.builds(with_headers, st.sampled_from([SHORT, LONG]), SUBJECTS, st.sampled_from([b"NATS/1.0\r\n\r\n"]), PAYLOADS),
    st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"port":4222}\r\n', b"-ERR 'slow consumer'\r\n"]),
)


async def in_pieces(parse: Callable[[bytes], Any], stream: bytes, cuts: list[int]) -> None:
    ends = sorted({cut % (len(stream) + 1) for cut in cuts} | {len(stream)})
    for start, end in zip([0, *ends], ends, strict=False):
        await parse(stream[start:end])


@settings(deadline=None)
@given(st.lists(ITEMS, max_size=12), st.lists(st.integers(0, 100_000), max_size=12))
def test_what_is_heard_is_what_nats_py_hears(items: list[bytes], cuts: list[int]) -> None:
    """The same messages and words of the server in the same order, wherever the bytes are cut."""

    async def compare() -> None:
        ours, theirs = Listener(), Listener()
        stream = b"".join(items)
        await in_pieces(ours._ps.parse, stream, cuts)
        await in_pieces(Parser(theirs).parse, stream, cuts)
        assert ours.happened == theirs.happened
        assert ours._ps.buf == b""

    asyncio.run(compare())


@pytest.mark.parametrize(
    "line", [b"MSG x 1\r\n", b"MSG x one 5\r\n", b"MSG x 1 -5\r\n", b"HMSG x 1 r 3 9 9\r\n", b"NONSENSE\r\n", b"\r\n"]
)
def test_what_is_not_the_protocol_is_said_as_nats_py_says_it(line: bytes) -> None:
    """ProtocolError: nats-py then connects anew."""
    with pytest.raises(ProtocolError):
        asyncio.run(Listener()._ps.parse(line))


def test_an_error_in_one_message_does_not_end_the_reading() -> None:
    """The callback raises; what follows is heard. A subject that is no text is dropped, on either way."""

    async def listen() -> list[Happening]:
        listener = Listener()
        hear, calls = listener.heard, []

        def raises_first(message: Message) -> None:
            calls.append(message)
            if len(calls) == 1:
                raise ValueError("a defect")
            hear(message)

        listener.open_short_way(listener.never_called, raises_first)
        await listener._ps.parse(
            message(SHORT, b"a", b"", b"1")
            + message(SHORT, b"\xff", b"", b"2")
            + message(LONG, b"\xff", b"", b"3")
            + message(SHORT, b"c", b"", b"4")
        )
        return listener.happened

    assert asyncio.run(listen()) == [("message", 1, b"c", b"", b"4", None)]


def test_a_closed_short_way_is_taken_no_more() -> None:
    """Also when messages went that way before."""

    async def listen() -> list[Happening]:
        listener = Listener()
        await listener._ps.parse(message(SHORT, b"a", b"", b"1"))
        listener.close_short_way(listener.never_called)
        await listener._ps.parse(message(SHORT, b"b", b"", b"2"))
        return listener.happened

    assert [each[2] for each in asyncio.run(listen())] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("per_second", "gathers_seconds"), [(500, None), (4_000, GATHER_SECONDS), (10_000, GATHER_LONGER_SECONDS)]
)
def test_while_much_is_heard_the_socket_is_read_now_and_then(per_second: int, gathers_seconds: float | None) -> None:
    """Thousands of messages a second are read some at a time; a few at once, so that nothing waits for nothing."""

    class Gathering(Listener):
        def __init__(self) -> None:
            super().__init__()
            self.gathered: list[float] = []

        async def gather(self, seconds: float) -> None:
            self.gathered.append(seconds)
            await asyncio.sleep(seconds)

    async def listen() -> Gathering:
        listener, loop = Gathering(), asyncio.get_running_loop()
        began, heard = loop.time(), 0
        while loop.time() < began + 1.0:
            due = int((loop.time() - began) * per_second) - heard
            heard += due
            await listener._ps.parse(message(SHORT, b"a", b"", b"1") * due)
            await asyncio.sleep(0.0005)
        return listener

    gathered = SimulatedLoop().run(listen()).gathered
    assert set(gathered) == ({gathers_seconds} if gathers_seconds is not None else set())
    assert len(gathered) > 30 or gathers_seconds is None


def test_what_was_read_already_waits_for_nothing() -> None:
    """A read that was full means that there is more in memory."""

    class Gathering(Listener):
        async def gather(self, seconds: float) -> None:
            raise AssertionError("it does not wait")

    async def listen() -> int:
        listener = Gathering()
        for _ in range(100):
            await listener._ps.parse(message(SHORT, b"a", b"", b"1" * 1000) * 33)
            await asyncio.sleep(0.001)
        return len(listener.happened)

    assert SimulatedLoop().run(listen()) == 3300


def test_what_the_former_connection_said_halfway_is_forgotten() -> None:
    """After a reset the next bytes are the beginning of something."""

    async def listen() -> list[Happening]:
        listener = Listener()
        await listener._ps.parse(b"MSG a 1 10\r\n12345")
        listener._ps.reset()
        await listener._ps.parse(message(SHORT, b"b", b"", b"2"))
        return listener.happened

    assert [each[2] for each in asyncio.run(listen())] == [b"b"]


@pytest.mark.parametrize(
    ("left", "now", "expected"),
    [
        ([], 9.0, ("a", 0.0)),
        ([("a", 9.0)], 9.0, ("b", 0.0)),
        ([("a", 1.0), ("b", 9.0)], 9.0, ("c", 0.0)),
        ([("a", 7.0), ("b", 9.0), ("c", 8.0)], 9.0, ("a", 0.0)),
        ([("c", 8.8), ("a", 8.9), ("b", 9.0)], 9.0, ("c", 0.3)),
    ],
)
def test_the_server_that_was_left_longest_ago_is_tried_next(
    left: list[tuple[str, float]], now: float, expected: tuple[str, float]
) -> None:
    """Never the one that was just left while there is another, and none twice in a row without a pause."""
    order = ServerOrder(wait_seconds=0.5)
    for server, at in left:
        order.left(server, at)
    chosen, wait_seconds = order.next(["a", "b", "c"], now)
    assert chosen == expected[0]
    assert wait_seconds == pytest.approx(expected[1])


def test_a_single_server_is_tried_again_after_a_pause() -> None:
    order = ServerOrder(wait_seconds=0.5)
    order.left("a", 10.0)
    assert order.next(["a"], 10.0) == ("a", 0.5)
    assert order.next(["a"], 11.0) == ("a", 0.0)
