"""The monitors as people read them. Pure: JSON of /v1/monitors in, rows and sentences out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from healthmonitor.cli.events_view import date_and_time
from healthmonitor.cli.screen import duration, toned

COLUMNS = ("monitor", "doing", "version", "up for", "VMs heard", "last heard", "API", "note")
_TONES = {"leads": "good", "warm": "good", "warming up": "busy", "ending": "busy", "silent": "bad"}


def monitor_row(each: Mapping[str, Any], now: float) -> tuple[str | Text, ...]:
    heard = "this one" if each["this"] else f"{duration(each['silent_seconds'])} ago"
    return (
        Text(each["monitor"], style="bold"),
        toned(each["doing"], _TONES.get(each["doing"], "busy")),
        each["version"] or "-",
        duration(max(0.0, now - each["started_at"])) if each["started_at"] else "-",
        f"{each['vms_alive']} of {each['instances']}",
        heard,
        each["address"] or "-",
        each["state"] or "-",
    )


def leader_line(found: Mapping[str, Any]) -> Text:
    """Who leads, since when and why."""
    if not found["leader_id"]:
        return Text("No monitor leads: nothing is rebuilt, and nobody is told of anything.", style="bold red")
    since = f" since {date_and_time(found['leader_since'])}" if found["leader_since"] else ""
    why = f": {found['leader_why']}" if found["leader_why"] else ""
    return Text(f"{found['leader_id']} leads{since}{why}", style="dim")


def others_line(monitors: Sequence[Mapping[str, Any]]) -> Text | None:
    """Who else is there; None where there was never another."""
    others = [each for each in monitors if not each["this"]]
    if not others:
        return None
    parts = [
        f"{each['monitor']} {each['doing']}"
        + (f" for {duration(each['silent_seconds'])}" if each["doing"] == "silent" else "")
        + (f" ({each['state']})" if each["state"] else "")
        for each in others
    ]
    fine = all(each["doing"] in ("leads", "warm") for each in others)
    return Text(f"Beside this monitor: {', '.join(parts)}", style="dim" if fine else "yellow")
