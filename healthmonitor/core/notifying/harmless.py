"""Text that came from outside, made harmless in one place: before it is stored, routed or sent.

Laws:
- A line has no newline, no control character, no invisible or reordering character (those that make a terminal, a mail
  header or a reader take it for something else); each is replaced by U+FFFD, spaces of all kinds by one space.
- What is too long is cut, and says by how much.
- Markup is left as it is: it is data, and each channel escapes for its own format.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from healthmonitor.core.notifying.notification import Item
from healthmonitor.core.records import Incident

SUBJECT_MAX = 180
TITLE_MAX = 300
TEXT_MAX = 2000
LOG_LINE_MAX = 300
LOG_LINES_MAX = 20
FACTS_MAX = 20

_SPACES = re.compile(r"\s+")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[@-Z\\-_])")
_REPLACEMENT = "\ufffd"
_LOOKED_AT = 8
"""Of what will be cut anyway no more than this many times the maximum is looked at."""


def line(text: str, most: int = TITLE_MAX) -> str:
    """The text as one harmless line of at most `most` characters and the mark."""
    looked_at = text[: most * _LOOKED_AT]
    cleaned = _SPACES.sub(" ", _ANSI.sub("", looked_at)).strip()
    cleaned = "".join(character if _is_harmless(character) else _REPLACEMENT for character in cleaned)
    return cut(cleaned, most, len(text) - len(looked_at))


def cut(text: str, most: int, already_cut: int = 0) -> str:
    """At most `most` characters, and a mark that says how many more there were."""
    if len(text) <= most and not already_cut:
        return text
    return f"{text[:most]} … ({max(0, len(text) - most) + already_cut} more characters)"


def lines(texts: Iterable[str], most: int = LOG_LINES_MAX) -> tuple[str, ...]:
    """The last `most` lines, each harmless; spaces at the beginning are kept, tabs become spaces."""
    kept = list(texts)[-most:]
    return tuple(_indented(text) for text in kept)


def incident(told: Incident) -> Incident:
    return replace(
        told,
        key=line(told.key, TITLE_MAX),
        subject=line(told.subject, TITLE_MAX),
        title=line(told.title, TITLE_MAX),
        detail=line(told.detail, TEXT_MAX),
        resolution=line(told.resolution, TEXT_MAX),
        next_step=line(told.next_step, TITLE_MAX),
    )


def item(told: Item) -> Item:
    return Item(
        incident=incident(told.incident),
        where=line(told.where, TITLE_MAX),
        doing=line(told.doing, TEXT_MAX),
        facts={line(key, 60): line(value, TITLE_MAX) for key, value in list(told.facts.items())[:FACTS_MAX]},
        log_lines=lines(told.log_lines),
    )


def _indented(text: str) -> str:
    head = text[: LOG_LINE_MAX * _LOOKED_AT].expandtabs(4)
    indent = len(head) - len(head.lstrip(" "))
    return " " * min(indent, 20) + line(text, LOG_LINE_MAX)


def _is_harmless(character: str) -> bool:
    """Cc controls, Cf invisible or reordering, Cs lone surrogates, Co private, Cn unassigned, Zl and Zp separators."""
    return unicodedata.category(character) not in _HARMFUL


_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
