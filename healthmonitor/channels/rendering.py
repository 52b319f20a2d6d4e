"""A notification as people read it: plain text for a terminal, HTML for a phone, one line for everything else.

Law: what comes from outside (titles, log lines, names) can do nothing but be seen: each text passes `harmless.line`
here once more, whoever made the notification, and HTML is escaped. The size of what is rendered has a limit, whatever
the notification holds; what is cut carries a mark. The limits are above those of `harmless`, so that nothing is cut
twice.

Does not know: channels.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

from healthmonitor.channels.channel import Item, Notification, Transition
from healthmonitor.core.notifying import harmless
from healthmonitor.core.units import duration_text

LINE_MAX = harmless.TITLE_MAX + 100
SUBJECT_MAX = harmless.SUBJECT_MAX + 50
TEXT_MAX = harmless.TEXT_MAX + 100
LOG_LINES_MAX = harmless.LOG_LINES_MAX + 1
FACTS_MAX = 30
KEY_MAX = 300
TERMINAL_WIDTH = 78
LABEL_WIDTH = 9
TITLE_COLUMN_MAX = 48
ITEMS_IN_FULL = 5
ITEMS_IN_TABLE = 500
_COLOURS = {1: "#b00020", 2: "#b00020", 3: "#b85c00", 4: "#8a6d00"}
_OVER = "#1b6e3c"


def one_line(text: str, limit: int = LINE_MAX) -> str:
    return harmless.line(text, limit)


def block(text: str) -> str:
    return harmless.line(text, TEXT_MAX)


def log_lines(item: Item) -> list[str]:
    """The last ones, with their indentation."""
    kept = [_indented(line) for line in item.log_lines[-LOG_LINES_MAX:]]
    over = len(item.log_lines) - len(kept)
    return [f"({over} earlier lines left out)", *kept] if over > 0 else kept


def hashed(text: str) -> str:
    """For keys made of text from outside, which may hold what cannot be encoded."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def key_text(text: str, limit: int) -> str:
    """The text itself where a key can be that, otherwise its hash: different texts stay different."""
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= limit else hashed(text)


def subject_line(notification: Notification) -> str:
    """`CRITICAL shop/db/0 is missing`, for a mail's subject, a page, a chat."""
    words = one_line(notification.subject, SUBJECT_MAX)
    if notification.transition is Transition.RESOLVED:
        return words if words.lower().startswith("resolved") else f"RESOLVED {words}"
    return f"{notification.severity.name} {words}"


def plain_text(notification: Notification) -> str:
    lines = [subject_line(notification), f"{notification.transition.value} {clock(notification.at)}", ""]
    items = notification.items
    if len(items) > 1:
        lines += [*_table(items[:ITEMS_IN_TABLE]), ""]
    for item in items[:ITEMS_IN_FULL]:
        if len(items) > 1:
            lines += [one_line(item.incident.title), "-" * 40]
        for label, value in _rows(item, notification):
            lines += _wrapped(label, value)
        lines += ["", "last log lines:", *(f"  | {line}" for line in log_lines(item))] if item.log_lines else []
        lines.append("")
    lines += _left_out(notification)
    lines.append("-- ")
    lines.append(_footer(notification))
    if notification.link:
        lines.append(one_line(notification.link, 2000))
    return "\n".join(lines) + "\n"


def html_text(notification: Notification) -> str:
    """One column, no image, no script, nothing fetched: the same on a phone and in a webmail."""
    colour = _OVER if notification.transition is Transition.RESOLVED else _COLOURS[notification.severity.value]
    parts = [
        '<!doctype html><html><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head>'
        '<body style="margin:0;padding:12px;font:16px/1.4 sans-serif;color:#222;background:#fff">'
        '<div style="max-width:640px;margin:0 auto">'
        f'<h1 style="font-size:19px;margin:0;padding:8px 12px;color:#fff;background:{colour}">'
        f"{escape(subject_line(notification))}</h1>"
        f'<p style="margin:8px 0;color:#666">{notification.transition.value} {clock(notification.at)}</p>'
    ]
    items = notification.items
    if len(items) > 1:
        rows = "".join(
            f"<tr><td {_CELL}>{escape(one_line(item.incident.title))}</td>"
            f"<td {_CELL}>{escape(one_line(item.where))}</td></tr>"
            for item in items[:ITEMS_IN_TABLE]
        )
        parts.append(f'<table style="border-collapse:collapse;width:100%">{rows}</table>')
    for item in items[:ITEMS_IN_FULL]:
        if len(items) > 1:
            parts.append(f'<h2 style="font-size:17px">{escape(one_line(item.incident.title))}</h2>')
        rows = "".join(
            f"<tr><th {_HEAD}>{escape(label)}</th><td {_CELL}>{_html_value(label, value)}</td></tr>"
            for label, value in _rows(item, notification)
        )
        parts.append(f'<table style="border-collapse:collapse;width:100%">{rows}</table>')
        if item.log_lines:
            log = escape("\n".join(log_lines(item)))
            parts.append(f'<pre style="white-space:pre-wrap;word-break:break-word;{_MONO}">{log}</pre>')
    parts += [f"<p>{escape(line)}</p>" for line in _left_out(notification) if line]
    parts.append(f'<p style="color:#666;font-size:13px">{escape(_footer(notification))}')
    if notification.link.startswith(("https://", "http://")):
        link = escape(one_line(notification.link, 2000), quote=True)
        parts.append(f'<br><a href="{link}">{link}</a>')
    parts.append("</p></div></body></html>")
    return "\n".join(parts)


def clock(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def rfc3339(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_MONO = "font:13px/1.4 monospace;background:#f4f4f4;padding:8px"
_CELL = 'style="padding:4px 8px;border-bottom:1px solid #ddd;vertical-align:top;word-break:break-word"'
_HEAD = 'style="padding:4px 8px;border-bottom:1px solid #ddd;vertical-align:top;text-align:left;color:#666;width:5em"'


def _rows(item: Item, notification: Notification) -> Iterator[tuple[str, str]]:
    incident = item.incident
    yield "what", block(incident.detail or incident.title)
    yield "where", one_line(item.where or incident.subject)
    since = clock(incident.opened_at)
    if incident.resolved_at is not None:
        took = incident.took_seconds(incident.resolved_at)
        yield "lasted", f"{'not known' if took is None else duration_text(round(took))}, since {since}"
        yield "mended", block(incident.resolution or "it is over")
    else:
        yield "since", f"{since} ({duration_text(max(0, round(notification.at - incident.opened_at)))})"
    if item.doing:
        yield "doing", block(item.doing)
    for name, value in list(item.facts.items())[:FACTS_MAX]:
        yield one_line(name, 40), one_line(value)
    if incident.next_step and incident.resolved_at is None:
        yield "type", one_line(incident.next_step)


def _table(items: tuple[Item, ...]) -> list[str]:
    rows = [(one_line(item.incident.title), one_line(item.where)) for item in items]
    width = min(max(len(title) for title, _ in rows), TITLE_COLUMN_MAX)
    return [f"{title:<{width}} | {where}" for title, where in rows]


def _wrapped(label: str, value: str) -> list[str]:
    """As wide as terminals are; a command, an id or an address is left in one piece, to be copied."""
    first = f"{label}: ".ljust(LABEL_WIDTH)
    if label == "type":
        return [first + value]
    rest = " " * LABEL_WIDTH
    return textwrap.wrap(
        value,
        TERMINAL_WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def _html_value(label: str, value: str) -> str:
    shown = escape(value)
    return f'<code style="font-size:14px">{shown}</code>' if label == "type" else shown


def _indented(text: str) -> str:
    head = text[:80].expandtabs(4)
    return " " * min(len(head) - len(head.lstrip(" ")), 20) + one_line(text)


def _left_out(notification: Notification) -> list[str]:
    over = max(0, len(notification.items) - ITEMS_IN_TABLE) + notification.left_out
    return [f"{over} more are only counted here: resurgam incidents", ""] if over else []


def _footer(notification: Notification) -> str:
    site = f"site {one_line(notification.site, 80)}, " if notification.site else ""
    return f"{site}thread {one_line(notification.thread, 120)}, notification {one_line(notification.id, 80)}"
