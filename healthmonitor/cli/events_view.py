"""Events as a timeline: one line each, with the time since the one before it, and how long steps took. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.text import Text

from healthmonitor.cli.screen import duration

COLUMNS = ("time", "after", "what", "subject", "text")

_STYLES = {
    "opened": "bold red",
    "failed": "bold red",
    "missing": "bold red",
    "held": "yellow",
    "resolved": "green",
    "done": "green",
    "finished": "green",
}


def clock(unix_seconds: float) -> str:
    """Local time of day with tenths, which is how events are told apart."""
    moment = datetime.fromtimestamp(unix_seconds).astimezone()
    return f"{moment:%H:%M:%S}.{moment.microsecond // 100_000}"


def date_and_time(unix_seconds: float) -> str:
    return f"{datetime.fromtimestamp(unix_seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def event_row(event: Mapping[str, Any], before: float | None) -> tuple[Text, ...]:
    """The cells of COLUMNS; `before` is the time of the event in the line above."""
    kind = str(event["kind"])
    after = "" if before is None else f"+{duration(max(0.0, event['at'] - before))}"
    style = _STYLES.get(kind.rsplit(".", 1)[-1], "")
    return (
        Text(clock(event["at"]), style="dim"),
        Text(after, style="dim"),
        Text(kind, style=style),
        Text(str(event["subject"])),
        Text(event_text(event)),
    )


def event_text(event: Mapping[str, Any]) -> str:
    """Its sentence, with how long it took when that is known and not in it already."""
    text = str(event["text"])
    fields = event.get("fields") or {}
    if "seconds" in fields and " took " not in text:
        text += f" ({duration(float(fields['seconds']))})"
    return text


def event_line(event: Mapping[str, Any], before: float | None) -> Text:
    """The same for `--follow`, where widths are not known beforehand."""
    time, after, kind, subject, text = event_row(event, before)
    after.pad_left(max(0, 10 - len(after)))
    kind.pad_right(max(0, 22 - len(kind)))
    subject.pad_right(max(0, 14 - len(subject)))
    return Text("  ").join([time, after, kind, subject, text])
