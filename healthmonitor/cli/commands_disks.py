"""Commands about disks: all of them, and what becomes of those that no instance uses."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from healthmonitor.cli.commands_act import print_answer
from healthmonitor.cli.screen import duration, parse_duration
from healthmonitor.cli.session import session_of
from healthmonitor.core.operator_changes import FOREVER_SECONDS
from healthmonitor.core.units import size_text

disks = typer.Typer(help="Every disk, and what becomes of those that no instance uses.", no_args_is_help=True)

Cid = Annotated[str, typer.Argument(metavar="DISK", help="The disk's id in its cloud, from `resurgam disks list`.")]
Because = Annotated[str, typer.Option("--because", help="Why; kept with the event.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")]
COLUMNS = ("disk", "of", "role", "size", "used", "holder", "age", "kept for", "note")


@disks.command("list")
def list_(
    context: typer.Context,
    orphans: Annotated[bool, typer.Option("--orphans", help="Only those that no instance uses.")] = False,
) -> None:
    """Every disk: whose it is, who holds it, how full it is; orphans with how long they are still kept."""
    session = session_of(context)
    reply = session.api.get("/v1/disks")
    found = [disk for disk in reply["disks"] if not orphans or disk["role"] in ("orphan", "snapshot", "unknown")]
    if session.screen.as_json:
        session.screen.json({"disks": found})
    elif found:
        session.screen.table(COLUMNS, [disk_row(disk, time.time()) for disk in found])
    else:
        session.screen.say("there are no disks" if not orphans else "every disk is used by an instance", "dim")


@disks.command("keep")
def keep(
    context: typer.Context,
    disk: Cid,
    lasting: Annotated[str, typer.Option("--for", help="90m, 12h, 30d; left out: until you say otherwise.")] = "",
    because: Because = "",
) -> None:
    """Keep an orphan longer than the configuration says."""
    session = session_of(context)
    seconds = parse_duration(lasting) if lasting else None
    body = {"seconds": seconds, "because": because}
    print_answer(session, session.api.post(f"/v1/disks/{quote(disk, safe='')}/keep", body))


@disks.command("delete")
def delete(context: typer.Context, disk: Cid, yes: Yes = False, because: Because = "") -> None:
    """Delete an orphan, with all that is on it."""
    session = session_of(context)
    session.screen.confirm(f"Delete {disk} with all that is on it?", yes)
    print_answer(session, session.api.post(f"/v1/disks/{quote(disk, safe='')}/delete", {"because": because}))


@disks.command("attach")
def attach(
    context: typer.Context,
    disk: Cid,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which of its disks' place it takes.")],
    yes: Yes = False,
    because: Because = "",
) -> None:
    """Give an orphan to an instance, in the place of one of its disks, which is kept as an orphan."""
    session = session_of(context)
    full = session.instance(instance)
    session.screen.confirm(f"Stop the containers of {full}, and put {disk} in the place of its disk {name}?", yes)
    body = {"instance": full, "disk": name, "because": because}
    print_answer(session, session.api.post(f"/v1/disks/{quote(disk, safe='')}/attach", body))


@disks.command("snapshot")
def snapshot(
    context: typer.Context,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which of its disks.")],
    lasting: Annotated[str, typer.Option("--for", help="90m, 12h, 30d; left out: as long as any orphan.")] = "",
    because: Because = "",
) -> None:
    """Take a snapshot of a disk while its containers run; a disk of its own, kept among the orphans."""
    session = session_of(context)
    seconds = parse_duration(lasting) if lasting else None
    body = {"instance": session.instance(instance), "disk": name, "seconds": seconds, "because": because}
    print_answer(session, session.api.post("/v1/disks/snapshots", body))


@disks.command("restore")
def restore(context: typer.Context, disk: Cid, yes: Yes = False, because: Because = "") -> None:
    """Put a snapshot in the place of the disk that it was taken of, which is kept as an orphan."""
    session = session_of(context)
    found = next((each for each in session.api.get("/v1/disks")["disks"] if each["cid"] == disk), None)
    if found is None or found["role"] != "snapshot":
        raise typer.BadParameter(f"{disk} is no snapshot; `resurgam disks list --orphans` shows them")
    instance, name = found["instance"], found["disk"]
    born = duration(time.time() - found["made_at"])
    question = f"Stop the containers of {instance}, and put disk {name} back to what it was {born} ago?"
    session.screen.confirm(question, yes)
    body = {"instance": instance, "disk": name, "because": because}
    print_answer(session, session.api.post(f"/v1/disks/{quote(disk, safe='')}/attach", body))


def disk_row(disk: Any, now: float) -> tuple[str, ...]:
    percent, inodes = disk["percent"], disk["inode_percent"]
    used = "-" if percent is None else f"{percent:.0f} %" + (f", inodes {inodes:.0f} %" if inodes >= 80 else "")
    holders = disk["holders"]
    born = disk["made_at"] or disk["orphaned_at"]
    left = None if disk["kept_until"] is None else disk["kept_until"] - now
    if left is None:
        kept = "-"
    elif left > FOREVER_SECONDS / 2:
        kept = "ever"
    else:
        kept = duration(max(0.0, left))
    return (
        disk["cid"] or "-",
        f"{disk['instance'] or '?'}/{disk['disk'] or '?'}",
        disk["role"],
        size_text(disk["size_mib"]),
        used,
        "?" if holders is None else ", ".join(holders) or "nobody",
        duration(now - born) if born else "-",
        kept,
        disk["why"] or "-",
    )
