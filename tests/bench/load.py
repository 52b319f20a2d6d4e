"""Plays agents: their heartbeats, and their answers when they are asked, from one process over one connection.

    python -m tests.bench.load --url nats://127.0.0.1:4222 --agents 100000 --interval 10 --seconds 60

What it is: the real wire format, encoded once for each agent by the code that agents use; for each heartbeat its
sequence and time are put in, and it is written as NATS' protocol onto a plain socket. Agents beat evenly spread over
the interval, in an order that has nothing to do with their numbers. `agent.*` is subscribed; a ping is answered as an
agent does. A line with a number N on its input lets agents 0 to N-1 fall silent within DYING_SECONDS: they neither beat
nor answer, and nobody tells the bus.

What it is not: a connection for each agent. The server reports no disconnects, and the monitor gets what the server
forwards in larger pieces than it would from many connections.

A JSON object a line on its output: how many it had sent by when, when whom fell silent. Times are CLOCK_MONOTONIC, as
is `sent_at_seconds`, and as the loop's clock of every Python on this machine.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from collections.abc import Iterator

from protocol import envelope
from tests.bench.invented_fleet import agent, boot_id, template

SLICE_SECONDS = 0.005
REPORT_SECONDS = 1.0
READ_BYTES = 1 << 20
DYING_SECONDS = 2.0
NEVER = float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two heartbeats of an agent")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    host, port = arguments.url.removeprefix("nats://").split(":")
    fleet = InventedFleet(arguments.agents)  # takes long, and a server drops who does not answer its pings
    with socket.create_connection((host, int(port))) as server:
        server.recv(READ_BYTES)
        server.sendall(b'CONNECT {"verbose":false,"pedantic":false,"name":"load"}\r\nSUB agent.* 1\r\nPING\r\n')
        fleet.run(server, arguments.interval, arguments.seconds)


def tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class InventedFleet:
    def __init__(self, agents: int) -> None:
        self._server: socket.socket
        self._templates = [template(n) for n in range(agents)]
        self._order = list(range(agents))
        random.Random(7).shuffle(self._order)
        self._dies_after: dict[int, float] = {}  # number → seconds after the beginning
        self._number_of = {agent(n).encode(): n for n in range(agents)}
        self._all_dead_at = 0.0
        self._last_beat = [0.0] * agents
        self._began = 0.0
        self._sent = self._answered = 0
        self._unread = b""

    def _hear_sentence(self) -> None:
        if select.select((sys.stdin,), (), (), 0)[0] and (line := sys.stdin.readline()).strip():
            moments, now = random.Random(11), time.monotonic() - self._began
            self._dies_after = {n: now + moments.uniform(0.0, DYING_SECONDS) for n in range(int(line))}
            self._all_dead_at = max(self._dies_after.values())

    def run(self, server: socket.socket, interval: float, seconds: float) -> None:
        self._server = server
        self._began = began = time.monotonic()
        rate = len(self._order) / interval
        beats = self._beats()
        reported_at = began
        tell(began=began, agents=len(self._order), rate=rate, bytes=sum(map(len, self._templates[0])))
        turn = 0
        while (now := time.monotonic()) < began + seconds:
            due = int((now - began) * rate) + 1
            batch = bytearray()
            while turn < due:
                turn += 1
                batch += next(beats)
            self._write(batch)
            self._answer_questions()
            if not self._dies_after:
                self._hear_sentence()
            if now - reported_at >= REPORT_SECONDS:
                reported_at = now
                tell(at=now, turns=turn, sent=self._sent, answered=self._answered, behind=now - began - turn / rate)
            if self._all_dead_at and now - began > self._all_dead_at:
                tell(
                    died=len(self._dies_after),
                    first_died_at=began + min(self._dies_after.values()),
                    last_died_at=began + self._all_dead_at,
                    first_last_beat=min(self._last_beat[n] for n in self._dies_after),
                    last_beat=max(self._last_beat[n] for n in self._dies_after),
                )
                self._all_dead_at = 0.0
            ahead = SLICE_SECONDS - (time.monotonic() - now)
            if ahead > 0:
                time.sleep(ahead)
        tell(ended=time.monotonic(), sent=self._sent, answered=self._answered)

    def _beats(self) -> Iterator[bytes]:
        """For ever: each agent in its turn; nothing for one that fell silent."""
        sequence = 0
        while True:
            sequence += 1
            for n in self._order:
                now = time.monotonic()
                if self._dies_after and now - self._began >= self._dies_after.get(n, NEVER):
                    yield b""
                    continue
                self._last_beat[n] = now
                subject, head, tail = self._templates[n]
                body = head % (sequence, now) + tail
                self._sent += 1
                yield b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body)

    def _answer_questions(self) -> None:
        self._server.setblocking(False)
        try:
            read = self._server.recv(READ_BYTES)
        except BlockingIOError:
            return
        finally:
            self._server.setblocking(True)
        if not read:
            raise SystemExit("the server closed the connection")
        self._unread += read
        answers = bytearray()
        while (end := self._unread.find(b"\r\n")) >= 0:
            words = self._unread[:end].split()
            if not words or words[0] == b"PONG":
                self._unread = self._unread[end + 2 :]
            elif words[0] == b"PING":
                answers += b"PONG\r\n"
                self._unread = self._unread[end + 2 :]
            elif words[0] == b"MSG":
                size = int(words[-1])
                if len(self._unread) < end + 2 + size + 2:
                    break
                payload = self._unread[end + 2 : end + 2 + size]
                self._unread = self._unread[end + 2 + size + 2 :]
                answers += self._answer(words[1].removeprefix(b"agent."), payload)
            else:
                raise SystemExit(f"the server said {self._unread[:end]!r}")
        self._write(answers)

    def _answer(self, name: bytes, payload: bytes) -> bytes:
        n = self._number_of.get(name)
        now = time.monotonic()
        if n is None or now - self._began >= self._dies_after.get(n, NEVER):
            return b""
        request = envelope.decode_request(payload)
        asked = request.arguments[0] if request.arguments and isinstance(request.arguments[0], dict) else {}
        body = envelope.encode_value({**asked, "boot_id": boot_id(n), "uptime_seconds": now})
        self._answered += 1
        return b"PUB %s %d\r\n%s\r\n" % (request.reply_to.encode(), len(body), body)

    def _write(self, data: bytes | bytearray) -> None:
        if data:
            self._server.sendall(data)


if __name__ == "__main__":
    main()
