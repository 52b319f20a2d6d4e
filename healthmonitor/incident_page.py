"""One incident as a page for a browser: what, where, since when, what is being done, what to type next, what happened.

Laws:
- Everything that is shown is escaped; the page has no script, loads nothing and links nowhere.
- Read-only: there is nothing on it to press.

Does not know: who may see it (`api_incident_page.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.notification import Item
from healthmonitor.core.notifying.thread import Thread
from healthmonitor.core.notifying.wording import duration
from healthmonitor.core.records import Event, Incident, Severity

EVENTS_MAX = 100
MEMBERS_MAX = 500
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
    "Cache-Control": "no-store",
}
"""The address is a secret for a while: it goes nowhere from here, and is kept nowhere."""


@dataclass(frozen=True, slots=True)
class PageFacts:
    """`item` is harmless already. `events`: of this incident and its place, oldest first."""

    item: Item
    reasons: tuple[str, ...]
    thread: Thread | None
    events: Sequence[Event]
    site: str
    now: float


def page(facts: PageFacts) -> str:
    item, incident = facts.item, facts.item.incident
    parts = [
        _head(incident, facts.now),
        _rows(_summary(facts)),
        _section("What to type next", [f"<pre>{_text(incident.next_step)}</pre>"] if incident.next_step else []),
        _section("Facts", [_rows(item.facts.items())] if item.facts else []),
        _section("Last log lines", [f"<pre>{_text(line)}</pre>" for line in ["\n".join(item.log_lines)] if line]),
        _section("Told together", [_members(facts.thread)] if facts.thread and len(facts.thread.members) > 1 else []),
        _section("Why it was told, or not", [_list(facts.reasons)] if facts.reasons else []),
        _section("What happened", [_events(facts.events)] if facts.events else []),
        _section(
            "More",
            [f"<pre>resurgam alert explain {_text(incident.key)}\nresurgam status {_text(_place(incident))}</pre>"],
        ),
        f"<footer>monitor {_text(facts.site)}, {_clock(facts.now)}; this page only shows, load it again to see what"
        " changed</footer>",
    ]
    return _document(f"{incident.title}", "".join(parts))


def refused(title: str, text: str) -> str:
    """The same for who may not see it, or when there is nothing to see."""
    return _document(title, f"<h1>{_text(title)}</h1><p>{_text(text)}</p>")


def _head(incident: Incident, now: float) -> str:
    if incident.resolved_at is None:
        state = f"open for {duration(max(0.0, now - incident.opened_at))}"
        colour = _COLOURS[incident.severity]
    else:
        state, colour = f"over after {duration(incident.took_seconds(incident.resolved_at) or 0.0)}", "#2e7d32"
    word = f"{incident.severity.name.lower()}, {state}"
    return f'<h1 style="border-color:{colour}">{_text(incident.title)}<small>{_text(word)}</small></h1>'


def _summary(facts: PageFacts) -> list[tuple[str, str]]:
    item, incident = facts.item, facts.item.incident
    rows = [
        ("What", incident.detail),
        ("Where", item.where),
        ("Since", _clock(incident.opened_at)),
        ("Over", "" if incident.resolved_at is None else f"{_clock(incident.resolved_at)}: {incident.resolution}"),
        ("Being done", item.doing if incident.resolved_at is None else ""),
        ("Explained by", incident.inhibited_by),
        ("Key", incident.key),
    ]
    if facts.thread is not None:
        word = facts.thread.acknowledged
        nobody = "by nobody yet" if incident.resolved_at is None else ""
        said = nobody if word is None else f"by {word.by}, {_clock(word.at)}: {word.because}"
        rows += [("Told to", ", ".join(facts.thread.channels)), ("Acknowledged", said)]
    return [(name, value) for name, value in rows if value]


def _members(thread: Thread) -> str:
    shown = thread.members[:MEMBERS_MAX]
    rows = [(each.key, "open" if each.over_at is None else f"over since {_clock(each.over_at)}") for each in shown]
    if len(thread.members) > MEMBERS_MAX:
        rows.append((f"and {len(thread.members) - MEMBERS_MAX} more", ""))
    return _rows(rows)


def _events(events: Sequence[Event]) -> str:
    return _rows((_clock(each.at), f"{each.kind}: {each.text}") for each in events[-EVENTS_MAX:])


def _place(incident: Incident) -> str:
    return "/".join(incident.subject.split("/")[:3]) if incident.subject.count("/") >= 2 else ""


def _section(title: str, blocks: list[str]) -> str:
    return f"<h2>{title}</h2>{''.join(blocks)}" if blocks else ""


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{lines}</table>"


def _list(texts: Iterable[str]) -> str:
    return f"<ol>{''.join(f'<li>{_text(each)}</li>' for each in texts)}</ol>"


def _text(text: str) -> str:
    """Lines of a log keep their newlines; every line is harmless."""
    lines = text.split("\n")[: harmless.LOG_LINES_MAX]
    return escape("\n".join(harmless.line(each, harmless.TEXT_MAX) for each in lines), quote=True)


def _clock(unix_time: float) -> str:
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _document(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>{body}</main></body></html>"
    )


_COLOURS = {
    Severity.ALERT: "#b71c1c",
    Severity.CRITICAL: "#b71c1c",
    Severity.ERROR: "#e65100",
    Severity.WARNING: "#b8860b",
}
_STYLE = (
    "body{margin:0;padding:12px;font:16px/1.45 sans-serif;color:#222;background:#fff}"
    "main{max-width:900px;margin:0 auto}"
    "h1{font-size:21px;border-left:8px solid #666;padding-left:10px}h1 small{display:block;font-size:15px;color:#555}"
    "h2{font-size:17px;margin:20px 0 6px}table{border-collapse:collapse;width:100%}"
    "th{text-align:left;font-weight:600;color:#555;white-space:nowrap}"
    "th,td{padding:4px 10px 4px 0;border-bottom:1px solid #e3e3e3;vertical-align:top}td{word-break:break-word}"
    "pre{background:#f4f4f4;padding:8px;white-space:pre-wrap;word-break:break-word;font:14px/1.4 monospace}"
    "footer{margin-top:24px;color:#777;font-size:13px}"
)
