"""Child processes and threads behind channels: restarted, bounded, ended."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from healthmonitor.channels.apprise import HANGING_MAX, AppriseChannel, Service, services_of
from healthmonitor.channels.channel import ChannelUnavailable
from healthmonitor.channels.exec import ExecChannel, ExecSettings, lines
from healthmonitor.channels.secret import Secret
from tests.support.notifications import OPENED, many, notification, resolved
from tests.support.receivers import http_receiver
from tests.support.waiting import until

CHILD = """
import json, os, sys
keep = open(sys.argv[1], "a")
print(json.dumps({"pid": os.getpid(), "environment": sorted(os.environ)}), file=keep, flush=True)
for number, line in enumerate(sys.stdin, 1):
    print(line, end="", file=keep, flush=True)
    if number == int(sys.argv[2]):
        sys.exit(7)
print("end of input", file=keep, flush=True)
"""


SAYING_OK = """
import json, sys
keep = open(sys.argv[1], "a")
for number, line in enumerate(sys.stdin, 1):
    if number == int(sys.argv[2]):
        sys.exit(7)
    event = json.loads(line)
    print(event["id"], file=keep, flush=True)
    print("busy with", event["id"], "x" * 100_000, flush=True)
    print("ok", "somebody else's", flush=True)
    print("ok", event["id"], flush=True)
"""


class Child:
    def __init__(
        self, directory: Path, lines_to_read: int = -1, program: str = CHILD, acknowledge: bool = False
    ) -> None:
        self._kept = directory / "kept"
        self._kept.touch()
        settings = ExecSettings(
            (sys.executable, "-c", program, str(self._kept), str(lines_to_read)),
            {"PATH": "/usr/bin:/bin"},
            10.0 if acknowledge else 1.0,
            acknowledge,
        )
        self.channel = ExecChannel("own", settings)

    def kept(self) -> list[str]:
        return self._kept.read_text().splitlines()

    def pids(self) -> list[int]:
        return [json.loads(line)["pid"] for line in self.kept() if line.startswith('{"pid"')]


@pytest.fixture
async def make_child(tmp_path: Path) -> AsyncIterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(*arguments: object) -> Child:
        made.append(Child(tmp_path, *arguments))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        await each.channel.close()


async def test_one_process_reads_everything_until_its_input_ends(make_child: Callable[..., Child]) -> None:
    """It is started once, gets a line for each, no variable that was not named, and an end of file at the close."""
    child = make_child()
    assert "1 lines to process" in (await child.channel.deliver(OPENED)).said
    await child.channel.deliver(resolved())
    await child.channel.deliver(many(3))
    await child.channel.close()
    began, *lines, end = child.kept()
    assert json.loads(began)["environment"] in (["PATH"], ["LC_CTYPE", "PATH"])
    assert [json.loads(line)["resurgam"]["transition"] for line in lines] == ["opened", "resolved", *["opened"] * 3]
    assert end == "end of input"


async def test_a_process_that_ends_is_started_again_with_growing_gaps(make_child: Callable[..., Child]) -> None:
    """After its end the next notification says how long to wait, then a new process gets it."""
    child = make_child(1)
    await child.channel.deliver(OPENED)
    waits: list[float] = []

    async def again() -> bool:
        try:
            await child.channel.deliver(notification(id=f"n-{len(waits)}"))
        except ChannelUnavailable as error:
            if error.retry_after_seconds:
                waits.append(error.retry_after_seconds)
            return False
        return True

    await until(lambda: not _alive(child.pids()[0]) if child.pids() else False)
    await until(again, every_seconds=0.1)
    assert waits
    assert 0 < max(waits) <= 1.0
    await until(lambda: any("n-" in line and "opened" in line for line in child.kept()[2:]))
    assert len(set(child.pids())) == 2


async def test_a_killed_process_is_noticed(make_child: Callable[..., Child]) -> None:
    """kill -9: the next notification goes to a new process or is refused for now, never into nothing."""
    child = make_child()
    await child.channel.deliver(OPENED)
    await until(child.pids)
    os.kill(child.pids()[0], signal.SIGKILL)

    async def delivered() -> bool:
        try:
            await child.channel.deliver(notification(id="n-after"))
        except ChannelUnavailable:
            return False
        return True

    await until(lambda: not _alive(child.pids()[0]))
    await until(delivered, every_seconds=0.1)
    await until(lambda: any("n-after" in line for line in child.kept()))


async def test_one_that_does_not_read_is_ended_with_what_it_started(
    make_child: Callable[..., Child], tmp_path: Path
) -> None:
    """Half a line must never be continued, so the process and its own children are gone after the deadline."""
    program = (
        "import subprocess, sys, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen(['sleep', '60'])\n"
        "keep = open(sys.argv[1], 'a'); print('{\"pid\": %d}' % other.pid, file=keep, flush=True)\n"
        "signal.pause()\n"
    )
    child = make_child(-1, program)
    await child.channel.deliver(OPENED)  # the pipe holds it
    await until(child.pids)
    with pytest.raises(ChannelUnavailable, match="did not read within 1 s and was stopped"):
        await child.channel.deliver(many(500))
    await until(lambda: not _alive(child.pids()[0]))


async def test_a_program_that_is_gone_is_named(tmp_path: Path) -> None:
    """It was there when the configuration was read; its absence now is a reason to try again."""
    channel = ExecChannel("own", ExecSettings((str(tmp_path / "gone"),), {}, 1.0))
    with pytest.raises(ChannelUnavailable, match="gone cannot be started: No such file"):
        await channel.deliver(OPENED)
    await channel.close()


async def test_apprise_does_not_tell_a_service_twice() -> None:
    """One of three fails: the next try is for that one alone, and its error shows no token."""
    told: list[str] = []
    working = False

    def service(number: int) -> Service:
        def notify(title: str, body: str, kind: str) -> bool:
            if number == 2 and not working:
                raise RuntimeError("POST https://h/tOkEn-1234 failed")
            told.append(f"{number} {kind} {title}")
            return True

        return Service(f"service {number}", notify)

    channel = AppriseChannel("chats", (service(1), service(2), service(3)), 5.0, (Secret("tOkEn-1234"),))
    with pytest.raises(ChannelUnavailable, match="service 2: RuntimeError") as caught:
        await channel.deliver(OPENED)
    assert "tOkEn" not in str(caught.value)
    working = True
    await channel.deliver(OPENED)
    assert sorted(told) == [f"{n} failure CRITICAL shop/db/0 is missing" for n in (1, 2, 3)]


async def test_apprise_calls_that_hang_are_bounded() -> None:
    """Calls beyond their deadline are left to themselves, up to a limit; when they end, the channel works again."""
    free, calls = threading.Event(), 0

    def notify(title: str, body: str, kind: str) -> bool:
        nonlocal calls
        calls += 1
        return free.wait(20)

    channel = AppriseChannel("chats", (Service("slow", notify),), 0.05, ())
    for _ in range(HANGING_MAX + 3):
        with pytest.raises(ChannelUnavailable):
            await channel.deliver(OPENED)
    assert calls == HANGING_MAX
    with pytest.raises(ChannelUnavailable, match="earlier calls still hang"):
        await channel.deliver(OPENED)
    free.set()

    async def delivered() -> bool:
        try:
            await channel.deliver(OPENED)
        except ChannelUnavailable:
            return False
        return True

    await until(delivered)


async def test_apprise_wakes_nobody_by_a_log_line(tmp_path: Path) -> None:
    """Mentions in text from outside mention nobody, and markup is escaped for a service that shows HTML."""
    async with http_receiver() as receiver:
        [service] = services_of(Secret(f"json://127.0.0.1:{receiver.port}/?format=html"))
        channel = AppriseChannel("chats", (service,), 5.0, ())
        await channel.deliver(notification(subject="@everyone <!channel> <b>", id="n-7"))
        sent = receiver.requests[0].json()
        assert "@everyone" not in sent["title"] + sent["message"]
        assert "<" not in sent["title"]
        assert "<b>" not in sent["message"]
        assert "shop/db/0" in sent["message"]


async def test_more_services_than_may_hang() -> None:
    """The limit is for calls that hang, not for services."""
    services = tuple(Service(f"s{n}", lambda title, body, kind: True) for n in range(HANGING_MAX * 3))
    receipt = await AppriseChannel("chats", services, 5.0, ()).deliver(OPENED)
    assert receipt.said.count("s") >= len(services)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_what_a_process_acknowledged_is_delivered_and_what_it_did_not_comes_again(
    make_child: Callable[..., Child],
) -> None:
    """It ends in the middle of a notification: whoever is started next gets the lines that were not acknowledged, with
    the same ids, and none of the others."""
    child = make_child(3, SAYING_OK, True)
    told = many(4)
    ids = [each["id"] for each in lines(told)]
    with pytest.raises(ChannelUnavailable, match="ended with 7 before it had acknowledged all"):
        await child.channel.deliver(told)
    assert child.kept() == ids[:2]

    async def again() -> bool:
        try:
            await child.channel.deliver(told)
        except ChannelUnavailable:
            return False
        return True

    await until(again, every_seconds=0.1)
    assert child.kept() == ids


async def test_a_process_that_reads_and_does_not_acknowledge_has_not_taken_it(tmp_path: Path) -> None:
    """It is stopped after the time; without `acknowledge` the same program has taken it."""
    command = (sys.executable, "-c", "import sys\nfor line in sys.stdin: print('ok', flush=True)")
    strict = ExecChannel("own", ExecSettings(command, {}, 0.5, acknowledge=True))
    with pytest.raises(ChannelUnavailable, match=r"did not acknowledge 1 of 1 lines within 0.5 s and was stopped"):
        await strict.deliver(OPENED)
    await strict.close()
    plain = ExecChannel("own", ExecSettings(command, {}, 10.0))
    assert "1 lines to process" in (await plain.deliver(OPENED)).said
    await plain.close()
