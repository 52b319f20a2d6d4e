"""An incident's page and the links to it: what is signed, and that what is shown is harmless."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthmonitor.core.notifying import harmless
from healthmonitor.core.notifying.links import VALID_SECONDS, is_signed, link
from healthmonitor.core.notifying.notification import Item
from healthmonitor.core.notifying.thread import Acknowledgement, Member, Thread
from healthmonitor.core.records import Event, Severity
from healthmonitor.incident_page import PageFacts, page, refused
from tests.support.alerts import incident, over

NOW = 5000.0
VM = incident("shop/db/0", at=1000.0)


class Tags(HTMLParser):
    """All tags and attributes of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def facts(text: str = "because") -> PageFacts:
    """Everything that comes from outside says `text`."""
    told = replace(VM, title=text, detail=text, next_step=text, inhibited_by=text)
    item = Item(told, text, text, {text or "fact": text}, (text, text))
    word = Acknowledgement(text, text, 2000.0)
    members = (Member(text, 1000.0, Severity.ERROR), Member("b", 1000.0, Severity.ERROR, over_at=1500.0))
    thread = Thread("t", 1, "r", "vm_missing", (text, "mail"), members, 1000.0, 1000.0, acknowledged=word)
    return PageFacts(harmless.item(item), (text,), thread, (Event(1100.0, text, text, text),), text, NOW)


def test_what_a_person_needs_is_on_it() -> None:
    """What, where, since when, what is being done, what to type next, the log, the timeline."""
    told = Item(
        VM, "shop/db/0, VM vm-7, cloud rack", "resurrecting: booting", {"lasted": "3 min"}, ("panic: no space",)
    )
    events = (Event(1100.0, "operation.step", "shop/db/0", "fence took 0.3 s"),)
    text = " ".join(Tags(page(PageFacts(told, ("route shop matches",), None, events, "hm", NOW))).texts)
    for shown in (
        VM.title,
        "critical, open for 66 min",
        "VM vm-7",
        "1970-01-01 00:16:40 UTC",
        "resurrecting: booting",
        VM.next_step,
        "panic: no space",
        "fence took 0.3 s",
        "route shop matches",
        f"resurgam alert explain {VM.key}",
    ):
        assert shown in text, shown


def test_one_that_is_over_says_so() -> None:
    """With how long it lasted and what mended it."""
    ended = replace(over(VM, 2000.0), resolution="mended by its resurrection")
    text = " ".join(Tags(page(PageFacts(Item(ended, "", "gone"), (), None, (), "hm", NOW))).texts)
    assert "over after 16 min" in text
    assert "mended by its resurrection" in text
    assert "gone" not in text


@given(st.text(max_size=300))
def test_nothing_that_is_shown_becomes_markup(text: str) -> None:
    """Whatever it says: the same tags and attributes as of a page that says nothing in particular."""
    shown, plain = Tags(page(facts(text))), Tags(page(facts()))
    assert shown.tags <= plain.tags
    assert shown.attributes <= plain.attributes
    assert not {"script", "a", "img", "link", "form", "iframe", "object"} & plain.tags
    refused(text, text).encode()


def test_a_megabyte_is_cut() -> None:
    """A page stays a page."""
    assert len(page(facts("<" * 1_000_000))) < 300_000


@pytest.mark.parametrize(
    ("key", "until", "now", "opens"),
    [
        (VM.key, "", NOW + 1, True),
        (VM.key, "", NOW + VALID_SECONDS + 1, False),
        ("vm_missing:shop/db/1", "", NOW + 1, False),
        (VM.key, "9999999999", NOW + 1, False),
        (VM.key, "-1", NOW + 1, False),
        (VM.key, "\u0661\u0662", NOW + 1, False),
    ],
)
def test_a_link_opens_one_incident_for_a_while(key: str, until: str, now: float, opens: bool) -> None:
    """Neither another, nor later, nor for longer than it says."""
    query = dict(part.split("=") for part in link("https://m", "token", VM.key, NOW).partition("?")[2].split("&"))
    assert is_signed("token", key, until or query["until"], query["sign"], now) is opens
    assert not is_signed("another token", key, until or query["until"], query["sign"], now)
    assert not is_signed("", key, until or query["until"], query["sign"], now)


def test_a_link_tells_nothing_of_the_token_and_may_be_none() -> None:
    """Without a public address there is none; without a token it needs no signature."""
    assert link("", "token", VM.key, NOW) == ""
    assert "token" not in link("https://m", "token", VM.key, NOW)
    assert link("http://127.0.0.1:1", "", VM.key, NOW) == "http://127.0.0.1:1/incident?key=vm_missing%3Ashop%2Fdb%2F0"
