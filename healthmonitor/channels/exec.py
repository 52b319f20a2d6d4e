"""A child process that reads one JSON object per line from its standard input.

The line has the keys of a BOSH health monitor's alert (kind, id, severity, category, title, summary, source,
deployment, created_at), so that plugins written for it run unchanged, and ours beside them.

Laws: a line is delivered when the operating system has taken all of it for the child; with `acknowledge`, when the
child has said `ok ID` for it on its standard output, and one that ends or is silent before that gets the lines it has
not acknowledged again. A child that has ended is started
again for the next notification, with growing gaps when it keeps ending; one that does not read in time has perhaps half
a line, so it is killed. The child gets no variable of the monitor's environment that is not named: secrets live there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from healthmonitor.channels import options as option
from healthmonitor.channels.channel import ChannelUnavailable, Item, Notification, Receipt
from healthmonitor.channels.event import VERSION, deployment_of, head_values, item_values
from healthmonitor.channels.options import ChannelType, Option, Sources
from healthmonitor.channels.partial import Taken
from healthmonitor.channels.rendering import ITEMS_IN_TABLE, block, one_line
from healthmonitor.core.records import Severity

log = structlog.get_logger("channel.exec")

ACKNOWLEDGED = "ok"
"""`ok ID` on the child's standard output."""
STOP_SECONDS = 5.0
RESTART_FIRST_SECONDS = 1.0
RESTART_LONGEST_SECONDS = 60.0
GOOD_RUN_SECONDS = 60.0
"""A child that ran for this long begins again at the first gap when it ends."""


@dataclass(frozen=True, slots=True)
class ExecSettings:
    command: tuple[str, ...]
    environment: Mapping[str, str]
    timeout_seconds: float = 10.0
    acknowledge: bool = False


class ExecChannel:
    def __init__(self, name: str, settings: ExecSettings) -> None:
        self._name = name
        self._settings = settings
        self._child: asyncio.subprocess.Process | None = None
        self._started_at = 0.0  # the loop's clock
        self._gap_seconds = 0.0
        self._closed = False
        self._acknowledged = Taken()
        self._one_at_a_time = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"ExecChannel({self._name})"

    async def deliver(self, notification: Notification) -> Receipt:
        has_it = self._acknowledged.by(notification.id)
        found = [each for each in lines(notification) if each["id"] not in has_it]
        payload = "".join(json.dumps(each) + "\n" for each in found).encode()
        waiting = {each["id"] for each in found} if self._settings.acknowledge else set()
        async with self._one_at_a_time:
            child = await self._running()
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    async with asyncio.TaskGroup() as both:  # a child may answer before it has read all
                        both.create_task(_write(child, payload))
                        both.create_task(self._heed(child, notification.id, waiting))
            except TimeoutError:
                await self._end(child, ask=False)
                what = f"acknowledge {len(waiting)} of {len(found)} lines" if waiting else "read"
                raise ChannelUnavailable(
                    f"{self._words} did not {what} within {self._settings.timeout_seconds:g} s and was stopped"
                ) from None
            except ExceptionGroup as errors:
                if errors.split(OSError)[1] is not None:
                    raise
                await self._end(child)
                what = "acknowledged" if self._settings.acknowledge else "read"
                raise ChannelUnavailable(f"{self._words} {_how(child)} before it had {what} all") from None
            except asyncio.CancelledError:
                await self._end(child, ask=False)  # perhaps half a line is written
                raise
        self._acknowledged.forget(notification.id)
        said = ", each acknowledged" if self._settings.acknowledge else ""
        return Receipt(f"{len(found)} lines to process {child.pid}{said}")

    async def reach(self) -> None:
        return None  # the child is started with the first notification

    async def _heed(self, child: asyncio.subprocess.Process, notification_id: str, waiting: set[str]) -> None:
        """Takes out of `waiting` what the child acknowledges; returns when nothing is left in it. Anything else that
        it says is passed over."""
        while waiting:
            if child.stdout is None:
                raise BrokenPipeError
            try:
                line = await child.stdout.readline()
            except ValueError:  # a line longer than the reader's limit: it is no acknowledgement
                continue
            if not line:
                raise BrokenPipeError
            word, _, line_id = line.decode("utf-8", "replace").strip().partition(" ")
            if word == ACKNOWLEDGED and line_id in waiting:
                waiting.discard(line_id)
                self._acknowledged.add(notification_id, {line_id})

    async def close(self) -> None:
        self._closed = True
        async with self._one_at_a_time:
            if self._child is not None:
                await self._end(self._child)

    @property
    def _words(self) -> str:
        return one_line(self._settings.command[0])

    async def _running(self) -> asyncio.subprocess.Process:
        if self._closed:
            raise ChannelUnavailable(f"{self._words} is not started: the channel was closed")
        now = asyncio.get_running_loop().time()
        if self._child is not None:
            if self._child.returncode is None:
                return self._child
            how, ran = _how(self._child), now - self._started_at
            await self._end(self._child)
            log.warning("exec.child_ended", channel=self._name, command=self._words, how=how)
            if ran >= GOOD_RUN_SECONDS:
                self._gap_seconds = 0.0
        wait = self._started_at + self._gap_seconds - now
        if self._gap_seconds and wait > 0:
            raise ChannelUnavailable(f"{self._words} keeps ending; started again in {wait:.1f} s", wait)
        self._gap_seconds = min(max(2 * self._gap_seconds, RESTART_FIRST_SECONDS), RESTART_LONGEST_SECONDS)
        self._started_at = now
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._settings.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if self._settings.acknowledge else asyncio.subprocess.DEVNULL,
                env=dict(self._settings.environment),
                start_new_session=True,  # so that what it starts ends with it
            )
        except OSError as error:
            raise ChannelUnavailable(f"{self._words} cannot be started: {error.strerror}", self._gap_seconds) from None
        return self._child

    async def _end(self, child: asyncio.subprocess.Process, ask: bool = True) -> None:
        """An end of file first: a child that keeps the contract ends by itself. Then TERM, then KILL, for its group."""
        self._child = None
        if child.stdin is not None:
            child.stdin.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL) if ask else (signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS if number is signal.SIGTERM else 1.0):
                    await child.wait()
                    break


async def _write(child: asyncio.subprocess.Process, payload: bytes) -> None:
    if child.stdin is None:
        raise BrokenPipeError
    child.stdin.transport.set_write_buffer_limits(high=0)  # drain() then waits for the last byte
    child.stdin.write(payload)
    await child.stdin.drain()
    if child.returncode is not None or child.stdin.transport.is_closing():
        raise BrokenPipeError


def lines(notification: Notification) -> list[dict[str, Any]]:
    """One object for each incident; one for the notification itself when it has none, or leaves some out."""
    found = [_line(notification, item, f"/{index}" if index else "") for index, item in
             enumerate(notification.items[:ITEMS_IN_TABLE])]  # fmt: skip
    over = notification.left_out + max(0, len(notification.items) - ITEMS_IN_TABLE)
    if over or not found:
        found.append({**_line(notification, None, "/left-out" if found else ""), "left_out": over})
    return found


def _line(notification: Notification, item: Item | None, id_suffix: str) -> dict[str, Any]:
    head = head_values(notification)
    incident = item.incident if item else None
    title = one_line(incident.title or incident.kind if incident else notification.subject) or head["summary"]
    severity = incident.severity if incident else notification.severity
    return {
        "kind": "alert",
        "id": head["id"] + id_suffix,
        "severity": severity.value,
        "category": _category(incident.kind) if incident else "monitor",
        "title": title,
        "summary": (block(incident.resolution or incident.detail) if incident else "") or title,
        "source": one_line(item.where or item.incident.subject) if item else head["site"],
        "deployment": deployment_of(item) if item else "",
        "created_at": int(notification.at),
        "resurgam": {
            "version": VERSION,
            **head,
            "severity": {"number": severity.value, "name": Severity(severity).name.lower()},
            "incident": item_values(item) if item else None,
        },
    }


def _category(kind: str) -> str:
    """BOSH's word for what its own plugins look at."""
    return "vm_health" if kind.startswith(("vm_", "instance_", "heartbeats_")) else one_line(kind)


def _how(child: asyncio.subprocess.Process) -> str:
    code = child.returncode
    if code is None:
        return "closed its input"
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"


def _read_command(value: Any, sources: Sources) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        raise ValueError("expected a list such as [/usr/local/bin/pager, --quiet]; there is no shell")
    program = value[0]
    if "/" in program:
        program = str(sources.directory / program)
    found = shutil.which(program, path=sources.environment.get("PATH", os.defpath))
    if found is None:
        raise ValueError(f"{program}: no such program, or it may not be run")
    return (found, *value[1:])


def _read_acknowledge(value: Any, sources: Sources) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _read_environment(value: Any, sources: Sources) -> dict[str, str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("expected a list of names of variables")
    missing = [each for each in value if each not in sources.environment]
    if missing:
        raise ValueError(f"the environment has no {', '.join(missing)[:200]}")
    return {each: sources.environment[each] for each in value}


def _make(name: str, values: Mapping[str, Any], sources: Sources) -> ExecChannel:
    environment = {"PATH": sources.environment.get("PATH", os.defpath), "LANG": "C.UTF-8", **values["environment"]}
    return ExecChannel(name, ExecSettings(values["command"], environment, values["timeout"], values["acknowledge"]))


EXEC = ChannelType(
    "a program of yours that reads one JSON object per line",
    (
        Option("command", "list of texts", "the program and its arguments; there is no shell", _read_command, None,
               "none", required=True),
        Option("environment", "list of names", "variables of the monitor's environment that it gets; PATH it has",
               _read_environment, {}),
        Option("acknowledge", "true or false", "whether a line is delivered only when the program has said `ok ID`",
               _read_acknowledge, False, "`false`"),
        option.timeout(10.0),
    ),
    _make,
)  # fmt: skip
