"""Commands that only look: status, events, incidents, logs, version."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from healthmonitor.cli.addressing import instances_matching
from healthmonitor.cli.events_view import COLUMNS, date_and_time, event_line, event_row
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.screen import duration, parse_duration
from healthmonitor.cli.session import Session, session_of
from healthmonitor.cli.status_view import SPARE_COLUMNS, all_good, instance_view, only, spare_row, status_view
from healthmonitor.version import VERSION

WATCH_SECONDS = 1.0
EVENTS_SHOWN = 50

look = typer.Typer()


@look.command()
def status(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[DEPLOYMENT|INSTANCE]", help="Only this one, in full.")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Draw it again every second until Ctrl-C.")] = False,
    strangers: Annotated[bool, typer.Option("--strangers", help="Agents that are heard and of no deployment.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 5 unless all is as it should be.")] = False,
) -> None:
    """What there is, how it is, and what wants a person."""
    session = session_of(context)
    if watch and session.screen.is_terminal and not session.screen.as_json:
        _watch(session, name)
        return
    found = _narrowed(session.status(name), name)
    if session.screen.as_json:
        session.screen.json(found)
    elif strangers:
        _show_strangers(session, found["strangers"])
    else:
        session.screen.console.print(_drawn(found, name, session))
    if check and not all_good(found):
        raise CliFailure("not everything is as it should be", ExitCode.HELD_BACK, "resurgam incidents")


@look.command()
def spares(context: typer.Context) -> None:
    """VMs that are booted before anybody needs them."""
    session = session_of(context)
    found = session.status()["spares"]
    if session.screen.as_json:
        session.screen.json(found)
    elif not found:
        session.screen.say("there are no spare VMs; `spares: {CLOUD: 1}` in the monitor's configuration asks for them")
    else:
        now = time.time()
        session.screen.table(SPARE_COLUMNS, [spare_row(item, now) for item in found])


@look.command()
def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    since: Annotated[str, typer.Option(help="Only those of the last 90s, 30m, 2h, 1d.")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many at most.")] = EVENTS_SHOWN,
) -> None:
    """The timeline: what happened, when, and how long each step took. JSON is one event a line."""
    session = session_of(context)
    reply = session.api.get("/v1/events", last=lines)
    oldest = time.time() - parse_duration(since) if since else 0.0
    listed = [event for event in reply["events"] if event["at"] >= oldest]
    if session.screen.as_json:
        for event in listed:
            session.screen.json_line(event)
    else:
        befores = [None, *[event["at"] for event in listed]]
        if follow:
            for event, before in zip(listed, befores, strict=False):
                session.screen.console.print(event_line(event, before))
        elif listed:
            rows = [event_row(event, before) for event, before in zip(listed, befores, strict=False)]
            session.screen.table(COLUMNS, rows)
        else:
            session.screen.say("nothing has happened yet", "dim")
    if follow:
        last = reply["events"][-1]["sequence"] if reply["events"] else 0
        _follow(session, last, listed[-1]["at"] if listed else None)


@look.command()
def incidents(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """What is not as it should be, since when, and what to do."""
    session = session_of(context)
    reply = session.api.get("/v1/incidents", resolved=every)
    if session.screen.as_json:
        session.screen.json(reply)
        return
    now = time.time()
    if not reply["incidents"]:
        session.screen.say("no open incidents", "green")
        return
    rows = [_incident_row(incident, now) for incident in reply["incidents"]]
    session.screen.table(("since", "lasts", "severity", "subject", "what", "state", "next"), rows)


@look.command()
def logs(
    context: typer.Context,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")],
    container: Annotated[str, typer.Argument(metavar="CONTAINER")] = "",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000)] = 100,
) -> None:
    """The last lines that a container wrote."""
    session = session_of(context)
    full = session.instance(instance)
    if not container:
        known = session.api.get(f"/v1/instances/{full}")["wanted_containers"]
        if len(known) != 1:
            raise CliFailure(
                f"{full} has several containers: {', '.join(known)}", ExitCode.USAGE, f"resurgam logs {instance} NAME"
            )
        container = known[0]
    reply = session.api.get(f"/v1/instances/{full}/logs", container=container, lines=lines)
    if session.screen.as_json:
        session.screen.json(reply)
    else:
        session.screen.console.print(Text(reply["text"].rstrip("\n")))


@look.command()
def version(context: typer.Context) -> None:
    """The version of this command, and of the monitor when one is reached."""
    session = session_of(context)
    monitor: str | None = None
    try:
        monitor = session.status()["monitor"]["version"]
    except CliFailure as failure:
        if failure.code is not ExitCode.UNREACHABLE:
            raise
    if session.screen.as_json:
        session.screen.json({"command": VERSION, "monitor": monitor, "installed_in": str(Path(__file__).parents[2])})
    else:
        session.screen.say(f"resurgam {VERSION}, monitor {monitor or 'not reached'}")


def _narrowed(found: Any, name: str) -> Any:
    if not name:
        return found
    deployments = [item["name"] for item in found["deployments"]]
    if name in deployments:
        return only(found, name)
    matches = instances_matching(name, [item["instance"] for item in found["instances"]])
    if len(matches) == 1:
        return only(found, matches[0])
    if matches:
        return {**found, "instances": [item for item in found["instances"] if item["instance"] in matches]}
    raise CliFailure(
        f"there is no deployment and no instance {name!r}", ExitCode.USAGE, "`resurgam status` lists what there is"
    )


def _drawn(found: Any, name: str, session: Session) -> Any:
    now = time.time()
    if name and len(found["instances"]) == 1 and found["instances"][0]["deployment"] != name:
        return instance_view(found["instances"][0], now, session.screen.is_terminal)
    return status_view(found, now, session.screen.is_terminal)


def _show_strangers(session: Session, found: list[Any]) -> None:
    if not found:
        session.screen.say("every agent that is heard belongs to a deployment", "green")
        return
    rows = [
        (
            item["agent_id"],
            item["verdict"].replace("_", " "),
            duration(item["known_seconds"]),
            "never heard" if item["silent_seconds"] is None else duration(item["silent_seconds"]),
        )
        for item in found
    ]
    session.screen.table(("agent", "verdict", "known for", "silent for"), rows)


def _watch(session: Session, name: str) -> None:
    with Live(console=session.screen.console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                drawn = _drawn(_narrowed(session.status(name), name), name, session)
            except CliFailure as failure:
                if failure.code is not ExitCode.UNREACHABLE:
                    raise
                drawn = Text(f"{failure}\n{failure.next_step}", style="bold red")
            live.update(drawn, refresh=True)
            time.sleep(WATCH_SECONDS)


def _follow(session: Session, after: int, before: float | None) -> None:
    for event in session.api.lines("/v1/events", after=after, follow=True):
        if "sequence" not in event:
            continue  # a keep-alive
        if session.screen.as_json:
            session.screen.json_line(event)
        else:
            session.screen.console.print(event_line(event, before))
        before = event["at"]


def _lasted_seconds(incident: Any, now: float) -> float:
    """Clocks are set: what is open cannot be open for less than nothing."""
    told = incident.get("lasted_seconds")
    seconds: float = (incident["resolved_at"] or now) - incident["opened_at"] if told is None else told
    return max(0.0, seconds)


def _incident_row(incident: Any, now: float) -> tuple[str | Text, ...]:
    ended = incident["resolved_at"]
    state = f"resolved: {incident['resolution']}" if ended else "open"
    if incident["inhibited_by"] and not ended:
        state = f"explained by {incident['inhibited_by']}"
    return (
        date_and_time(incident["opened_at"]),
        duration(_lasted_seconds(incident, now)),
        Text(incident["severity"], style="" if ended else "bold red"),
        incident["subject"],
        f"{incident['title']}: {incident['detail']}" if incident["detail"] else incident["title"],
        state,
        incident["next_step"] or "-",
    )
