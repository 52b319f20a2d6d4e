"""Commands about the monitors themselves: who is there, who leads, and handing over."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from healthmonitor.cli.commands_act import Because, Yes, print_answer
from healthmonitor.cli.monitors_view import COLUMNS, leader_line, monitor_row
from healthmonitor.cli.screen import parse_duration
from healthmonitor.cli.session import session_of

monitor = typer.Typer(help="The health monitors: who is there, and who leads.", no_args_is_help=True)


@monitor.command("list")
def list_(context: typer.Context) -> None:
    """Each monitor: whether it leads or could at once, its version, when it was last heard."""
    session = session_of(context)
    reply = session.api.get("/v1/monitors")
    if session.screen.as_json:
        session.screen.json(reply)
        return
    now = time.time()
    session.screen.table(COLUMNS, [monitor_row(each, now) for each in reply["monitors"]])
    session.screen.say(leader_line(reply).plain)


@monitor.command("step-down")
def step_down(
    context: typer.Context,
    length: Annotated[str, typer.Option("--for", help="For how long it leaves leading to others: 30s, 1m, 2h.")] = "1m",
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Have the monitor that leads hand over to another one at once, before its machine is worked on."""
    session = session_of(context)
    seconds = parse_duration(length)
    leader = session.api.get("/v1/monitors")["leader_id"] or "the monitor that leads"
    session.screen.confirm(f"Have {leader} step down for {length}?", yes)
    print_answer(session, session.api.post("/v1/monitors/step-down", {"seconds": seconds, "because": because}))
