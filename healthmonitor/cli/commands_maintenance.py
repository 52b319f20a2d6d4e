"""Commands about maintenance windows: when nothing is rebuilt, and nobody is told of VMs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer

from healthmonitor.cli.commands_act import print_answer
from healthmonitor.cli.events_view import date_and_time
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.screen import duration, parse_duration
from healthmonitor.cli.session import session_of

maintenance = typer.Typer(help="When nothing is rebuilt, and nobody is told of VMs.", no_args_is_help=True)

_MOMENT_HINT = "such as 2026-12-01T22:00 (local time) or 2026-12-01T22:00:00Z"


@maintenance.command("add")
def add(
    context: typer.Context,
    because: Annotated[str, typer.Option("--because", help="Why; it is shown wherever the window holds. Required.")],
    length: Annotated[str, typer.Option("--for", help="For how long: 30m, 2h, 3d.")] = "",
    start: Annotated[str, typer.Option("--from", help=f"Once, from then on, {_MOMENT_HINT}; now unless given.")] = "",
    end: Annotated[str, typer.Option("--until", help="Once, until then, instead of --for.")] = "",
    day: Annotated[str, typer.Option(help="Every week: monday to sunday; daily: every day.")] = "",
    at: Annotated[str, typer.Option(help="Every week, from this time of day on (UTC): 02:00.")] = "",
) -> None:
    """Add a window: once (--for or --until), or every week (--day, --at and --for) until it is ended."""
    session = session_of(context)
    body: dict[str, Any] = {"because": because}
    if day or at:
        if not (day and at and length) or start or end:
            raise CliFailure("every week: --day, --at and --for, and nothing else", ExitCode.USAGE, _example())
        body |= {"day": day.lower(), "at": at, "seconds": parse_duration(length)}
    else:
        if bool(length) == bool(end):
            raise CliFailure("a window has an end: --for or --until, one of them", ExitCode.USAGE, _example())
        begins = _moment("--from", start) if start else None
        since = time.time() if begins is None else begins
        body["seconds"] = parse_duration(length) if length else _moment("--until", end) - since
        if body["seconds"] <= 0:
            raise CliFailure(f"--until {end} is not after its beginning", ExitCode.USAGE, _example())
        if begins is not None:
            body["start"] = begins
    print_answer(session, session.api.post("/v1/maintenance", body))


@maintenance.command("list")
def list_(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """The windows: when, since when open, by whom, why. Those without an id stand in the configuration file."""
    session = session_of(context)
    reply = session.api.get("/v1/maintenance")
    shown = [each for each in reply["windows"] if every or not each["over"]]
    if session.screen.as_json:
        session.screen.json({"windows": shown})
        return
    if not shown:
        session.screen.say("no maintenance windows", "dim")
        return
    now = time.time()
    rows = [
        (
            each["id"] or "-",
            each["text"],
            _state(each, now),
            each["created_by"] or each["from"],
            each["because"],
        )
        for each in shown
    ]
    session.screen.table(("id", "when", "now", "by", "because"), rows)


@maintenance.command("end")
def end_(
    context: typer.Context,
    maintenance_id: Annotated[str, typer.Argument(metavar="ID")],
    because: Annotated[str, typer.Option("--because", help="Why; kept in the timeline.")] = "",
) -> None:
    """End a window before its time, or a weekly one for good."""
    session = session_of(context)
    path = f"/v1/maintenance/{quote(maintenance_id, safe='')}/end"
    print_answer(session, session.api.post(path, {"because": because}))


def _state(window: dict[str, Any], now: float) -> str:
    if window["over"]:
        return f"ended by {window['ended_by']}" if window["ended_by"] else "over"
    if window["open"]:
        return f"open until {date_and_time(window['ends_at'])} ({duration(window['ends_at'] - now)})"
    return "not open"


def _moment(option: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CliFailure(f"{option} {text!r} is no moment", ExitCode.USAGE, f"write it {_MOMENT_HINT}") from None
    return moment.astimezone().timestamp()


def _example() -> str:
    return "resurgam maintenance add --day sunday --at 02:00 --for 2h --because backups"
