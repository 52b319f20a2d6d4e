"""Commands about alerts: channels, silences, why something was told or not."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from healthmonitor.cli.commands_act import print_answer
from healthmonitor.cli.events_view import date_and_time
from healthmonitor.cli.screen import duration, parse_duration
from healthmonitor.cli.session import session_of

alert = typer.Typer(help="Who is told of what, and why.", no_args_is_help=True)
silence = typer.Typer(help="What nobody wants to be told for a while.", no_args_is_help=True)

Incident = Annotated[
    str, typer.Argument(metavar="INCIDENT", help="Its key (vm_missing:shop/db/0), or its subject where that is enough.")
]
Reason = Annotated[str, typer.Option("--because", help="Why; kept in the timeline. Required.")]


@alert.command("channels")
def channels(context: typer.Context) -> None:
    """The channels: whether they deliver, what waits for them, what the receiver said last."""
    session = session_of(context)
    reply = session.api.get("/v1/alerts/channels")
    if session.screen.as_json:
        session.screen.json(reply)
        return
    now = time.time()
    rows = [
        (
            each["name"],
            each["state"],
            str(each["waiting"]),
            str(each["delivered"]),
            duration(now - each["last_delivered_at"]) + " ago" if each["last_delivered_at"] else "never",
            each["error"] or each["last_said"],
        )
        for each in reply["channels"]
    ]
    session.screen.table(("channel", "state", "waiting", "delivered", "last", "said"), rows)


@alert.command("test")
def test(context: typer.Context, channel: Annotated[str, typer.Argument(metavar="CHANNEL")]) -> None:
    """Send a real notification through a channel, and show what the server said."""
    session = session_of(context)
    print_answer(session, session.api.post(f"/v1/alerts/channels/{quote(channel, safe='')}/test"))


@alert.command("explain")
def explain(context: typer.Context, incident: Incident) -> None:
    """Why an incident went where it went, or why not."""
    session = session_of(context)
    reply = session.api.get("/v1/alerts/explain", incident=incident)
    if session.screen.as_json:
        session.screen.json(reply)
        return
    found = reply["incident"]
    session.screen.say(f"{found['key']}: {found['title']}")
    for number, reason in enumerate(reply["reasons"], 1):
        session.screen.say(f"  {number}. {reason}")


@alert.command("ack")
def acknowledge(context: typer.Context, incident: Incident, because: Reason) -> None:
    """Say that you are at it: it is neither repeated nor escalated, and its end is told."""
    session = session_of(context)
    body = {"incident": incident, "because": because}
    print_answer(session, session.api.post("/v1/alerts/acknowledge", body))


@silence.command("add")
def add(
    context: typer.Context,
    length: Annotated[str, typer.Option("--for", help="For how long: 30m, 2h, 3d. Required.")],
    because: Reason,
    deployment: Annotated[str, typer.Option(help="Of this deployment; * and ? are wild cards, here and below.")] = "",
    group: Annotated[str, typer.Option(help="Of instance groups of this name.")] = "",
    instance: Annotated[str, typer.Option(help="Of this instance: shop/db/0.")] = "",
    kind: Annotated[str, typer.Option(help="Of this kind: vm_missing, disk_*.")] = "",
) -> None:
    """Tell nobody of some incidents for a while. What is still wrong at the end is told then."""
    session = session_of(context)
    body: dict[str, Any] = {"seconds": parse_duration(length), "because": because}
    body |= {"deployment": deployment, "group": group, "instance": instance, "kind": kind}
    print_answer(session, session.api.post("/v1/silences", body))


@silence.command("list")
def list_(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Also those over for less than a week.")] = False,
) -> None:
    """The silences that hold: of what, until when, by whom, why."""
    session = session_of(context)
    reply = session.api.get("/v1/silences")
    shown = [each for each in reply["silences"] if each["active"] or every]
    if session.screen.as_json:
        session.screen.json({"silences": shown})
        return
    if not shown:
        session.screen.say("no silences", "dim")
        return
    now = time.time()
    rows = [
        (
            each["id"],
            each["kind"] or "everything",
            each["instance"] or "/".join(part for part in (each["deployment"] or "*", each["group"]) if part),
            f"{date_and_time(each['ends_at'])} (in {duration(each['ends_at'] - now)})" if each["active"] else "over",
            each["created_by"],
            each["because"],
        )
        for each in shown
    ]
    session.screen.table(("id", "kind", "of", "until", "by", "because"), rows)


@silence.command("end")
def end(
    context: typer.Context,
    silence_id: Annotated[str, typer.Argument(metavar="ID")],
    because: Annotated[str, typer.Option("--because", help="Why; kept in the timeline.")] = "",
) -> None:
    """End a silence before its time."""
    session = session_of(context)
    print_answer(session, session.api.post(f"/v1/silences/{quote(silence_id, safe='')}/end", {"because": because}))
