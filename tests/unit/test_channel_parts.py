"""The pure parts of the channels: rendering, mails, events, templates."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthmonitor.channels.alertmanager import AlertmanagerSettings, alerts
from healthmonitor.channels.body_template import NAMES, check_template, fill_template
from healthmonitor.channels.channel import Notification, Transition
from healthmonitor.channels.email import EmailSettings, mail
from healthmonitor.channels.event import notification_values
from healthmonitor.channels.exec import lines
from healthmonitor.channels.pagerduty import ACTIONS, BODY_MAX_BYTES, pagerduty_event
from healthmonitor.channels.partial import NOTIFICATIONS_MAX, Taken
from healthmonitor.channels.rendering import html_text, key_text, plain_text, subject_line
from healthmonitor.channels.secret import HIDDEN, Secret, hide
from healthmonitor.channels.webhook import body_of, signature
from healthmonitor.core.records import Severity
from tests.support.notifications import AT, EVIL, INCIDENT, ITEM, OPENED, many, nasty, notification, resolved

DATA = Path(__file__).parents[1] / "data"
DOCS = Path(__file__).parents[2] / "docs"
MAIL = EmailSettings("localhost", 25, "none", "hm@example.org", ("a@example.org", "b@example.org"))
SAMPLES = {
    **{each.value: notification(transition=each) for each in Transition},
    **{each.name: notification(severity=each) for each in Severity},
    "resolved fully": resolved(),
    "nasty": nasty(),
    "many": many(700),
    "empty": notification(items=(), transition=Transition.TEST, link="", site=""),
    "left out": notification(items=(), transition=Transition.DIGEST, left_out=9000),
}


def each_sample() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("told", SAMPLES.values(), ids=SAMPLES.keys())


def test_plain_text_says_what_a_person_needs() -> None:
    """What, where, since when, what is being done, the facts, log lines, what to type."""
    text = plain_text(OPENED)
    for words in (
        "CRITICAL shop/db/0 is missing",
        "what:    not heard for 15 s",
        "where:   shop/db/0, VM vm-7, cloud id i-0042",
        "since:   2026-11-22 15:59:00 UTC (1m)",
        "doing:   resurrection: create_vm, step 7 of 13",
        "exit code: 137",
        "  |   at line 2",
        "type:    resurgam status shop/db/0",
        "https://hm.example.org/incidents/1",
    ):
        assert words in text


def test_a_resolution_says_how_long_and_what_mended_it() -> None:
    """How long it lasted, what ended it, and nothing to type any more."""
    text = plain_text(resolved())
    assert "lasted:  2m30s, since 2026-11-22 15:59:00 UTC" in text
    assert "mended:  rebuilt as VM vm-8 in 43 s" in text
    assert "type:" not in text
    assert subject_line(notification(transition=Transition.RESOLVED, subject="x")) == "RESOLVED x"


def test_many_incidents_are_a_table_with_what_is_left_out() -> None:
    """One line each up to the limit, then a count that includes what was left out before."""
    text = plain_text(replace(many(700), left_out=50))
    assert len(re.findall(r"is missing *\| shop/db/0, VM", text)) == 500
    assert "250 more are only counted here" in text
    assert len(text) < 200_000
    assert "250 more" in html_text(replace(many(700), left_out=50))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@each_sample()
def test_html_holds_only_our_own_elements(told: Notification) -> None:
    """Nothing from outside becomes an element or an attribute, nothing is fetched."""
    parser = _Tags()
    parser.feed(html_text(told))
    assert parser.tags <= {"html", "head", "meta", "body", "div", "h1", "h2", "p", "table", "tr", "td", "th", "pre",
                           "code", "a", "br"}  # fmt: skip
    assert parser.attributes <= {"charset", "name", "content", "style", "href"}


def parsed(told: Notification) -> EmailMessage:
    return message_from_bytes(mail(told, MAIL).as_bytes(), policy=policy.default)


@each_sample()
def test_a_mail_has_our_headers_and_no_others(told: Notification) -> None:
    """No text from outside becomes a header; a text and an HTML part; no line longer than SMTP takes."""
    found = parsed(told)
    assert set(found.keys()) - {"Importance"} == {
        "From", "To", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted",
        "X-Auto-Response-Suppress", "X-Resurgam-Severity", "X-Resurgam-Transition", "MIME-Version", "Content-Type",
    }  # fmt: skip
    assert found["To"] == "a@example.org, b@example.org"
    assert [part.get_content_type() for part in found.iter_parts()] == ["text/plain", "text/html"]
    raw = mail(told, MAIL).as_bytes()
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert raw.isascii()
    assert not found.defects


OUTSIDE = st.text(max_size=400)


@settings(deadline=None, max_examples=60)
@given(OUTSIDE, OUTSIDE, OUTSIDE, st.lists(OUTSIDE, max_size=5))
def test_any_text_from_outside_is_only_text(subject: str, title: str, detail: str, log: list[str]) -> None:
    """Whatever it is: no header, no element, no field comes of it, and every part can be sent and read back."""
    incident = replace(INCIDENT, key=title, subject=subject, title=title, detail=detail, next_step=subject)
    told = notification(
        id=detail or "n",
        thread=title or "t",
        subject=subject,
        site=title,
        items=(replace(ITEM, incident=incident, where=detail, doing=title, log_lines=tuple(log)),),
    )
    test_a_mail_has_our_headers_and_no_others(told)
    test_html_holds_only_our_own_elements(told)
    test_pagerduty_requests_keep_the_published_schema(told)
    test_webhook_bodies_keep_our_published_schema(told)
    test_alerts_are_what_alertmanager_takes(told)
    test_exec_lines_are_bosh_alerts(told)


def test_the_mails_of_an_incident_are_one_thread() -> None:
    """The resolution refers to the same root as the opening and is a reply; another incident has another root."""
    opened, over = parsed(OPENED), parsed(resolved())
    other = parsed(notification(thread="another"))
    assert opened["References"] == over["References"] == over["In-Reply-To"] != other["References"]
    assert opened["Message-ID"] != over["Message-ID"]
    assert over["Subject"].startswith("Re: [hm-a] ")
    assert not opened["Subject"].startswith("Re:")
    assert opened["Message-ID"].endswith("@example.org>")


def test_each_try_is_the_same_mail() -> None:
    """Byte for byte, so a receiver can drop the duplicate."""
    assert mail(OPENED, MAIL).as_bytes() == mail(OPENED, MAIL).as_bytes()


@each_sample()
def test_pagerduty_requests_keep_the_published_schema(told: Notification) -> None:
    """Every transition and severity makes a request that PagerDuty's own schema takes, within its size."""
    event = {"routing_key": "k" * 32, **pagerduty_event(told)}
    jsonschema.validate(event, json.loads((DATA / "pagerduty-events-v2.schema.json").read_text()))
    assert len(json.dumps(event)) <= BODY_MAX_BYTES + 100
    json.dumps(event, ensure_ascii=False).encode()


def test_pagerduty_actions_and_keys() -> None:
    """One dedup key from trigger to resolve; a key that is too long is hashed, not cut."""
    assert set(ACTIONS) == set(Transition)
    steps = (OPENED, notification(transition=Transition.ACKNOWLEDGED), resolved())
    assert [pagerduty_event(each)["event_action"] for each in steps] == ["trigger", "acknowledge", "resolve"]
    assert {pagerduty_event(each)["dedup_key"] for each in steps} == {OPENED.thread}
    assert (
        pagerduty_event(notification(thread="x" * 300))["dedup_key"]
        != pagerduty_event(notification(thread="x" * 301))["dedup_key"]
    )


@each_sample()
def test_webhook_bodies_keep_our_published_schema(told: Notification) -> None:
    """docs/webhook.schema.json describes what is sent, for every notification there can be."""
    schema = json.loads((DOCS / "webhook.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content, content_type = body_of(told, None)
    assert content_type == "application/json"
    jsonschema.validate(json.loads(content), schema)
    assert len(content) < 2_000_000


def test_the_schema_names_every_field() -> None:
    """A field that is sent and not described would be a promise that nobody knows."""
    schema = json.loads((DOCS / "webhook.schema.json").read_text())
    values = notification_values(OPENED)
    assert set(values) == set(schema["properties"]) == set(schema["required"])
    assert set(values["items"][0]) == set(schema["$defs"]["item"]["properties"])


def test_the_signature_covers_time_and_body() -> None:
    """The documented HMAC, checked against a value computed with openssl."""
    # printf '%s' '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
    expected = "v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
    assert signature(Secret("key"), "1700000000", b'{"a":1}') == expected
    assert signature(Secret("key"), "1700000001", b'{"a":1}') != expected


TEMPLATES: list[tuple[Any, Any]] = [
    ({"text": "${summary}!"}, {"text": "CRITICAL shop/db/0 is missing!"}),
    ({"n": "${severity_number}", "over": "${resolved}"}, {"n": 2, "over": False}),
    ({"n": "no. ${severity_number}"}, {"n": "no. 2"}),
    (["$$5", {"${severity}": 1, "nil": None}], ["$5", {"critical": 1, "nil": None}]),
    ("${thread} ${items}", "vm_missing:shop/db/0@1795363140 shop/db/0 is missing"),
]


@pytest.mark.parametrize(("template", "body"), TEMPLATES)
def test_templates(template: Any, body: Any) -> None:
    """Names in texts and keys are replaced; one that stands alone keeps its type; everything else stays."""
    check_template(template)
    assert fill_template(template, OPENED) == body


def test_a_template_cannot_be_broken_out_of() -> None:
    """What stands in a notification stays in its text, and is not itself a template."""
    told = notification(subject='","admin":true,"x":"${link}')
    content, _ = body_of(told, {"text": "${subject}"})
    assert json.loads(content) == {"text": told.subject}
    assert set(json.loads(body_of(nasty(), {"a": "${text}", "b": "${items}"})[0])) == {"a", "b"}


def test_every_documented_name_can_be_used() -> None:
    """The table of names is what a template understands."""
    filled = fill_template({name: f"${{{name}}}" for name in NAMES}, OPENED)
    assert None not in filled.values()


@pytest.mark.parametrize(
    ("template", "message"),
    [("${sumary}", "did you mean summary?"), ({"a": ["$x"]}, "write $$"), ({"${": 1}, "write $$"), ("${}", "unknown")],
)
def test_wrong_templates_are_refused(template: Any, message: str) -> None:
    """An unknown name and a lone $ are found when the configuration is read."""
    with pytest.raises(ValueError, match="^" if message == "" else message.replace("$", r"\$").replace("?", r"\?")):
        check_template(template)


def test_a_resolved_alert_ends_under_every_severity_it_may_have_had() -> None:
    """Alertmanager knows an alert by its labels, the severity among them: resolving ends all four."""
    settings = AlertmanagerSettings(("http://x",), {"team": "storage"})
    [firing] = alerts(OPENED, settings)
    over = alerts(resolved(), settings)
    assert firing["labels"] in [each["labels"] for each in over]
    assert {each["labels"]["severity"] for each in over} == {"alert", "critical", "error", "warning"}
    assert {each["endsAt"] for each in over} == {"2026-11-22T16:01:30.000Z"}
    assert firing["endsAt"] == "2026-11-29T16:00:00.000Z"
    assert firing["labels"]["deployment"] == "shop"
    assert firing["labels"]["team"] == "storage"


@each_sample()
def test_alerts_are_what_alertmanager_takes(told: Notification) -> None:
    """Labels are never empty, an end is never before its start, and there is always an alert."""
    found = alerts(told, AlertmanagerSettings(("http://x",)))
    assert found
    for each in found:
        assert all(each["labels"].values())
        assert each["labels"]["alertname"]
        assert each["startsAt"] <= each["endsAt"]


@each_sample()
def test_exec_lines_are_bosh_alerts(told: Notification) -> None:
    """The keys and types of a BOSH alert event, one object a line, ids all different."""
    found = lines(told)
    for each in found:
        assert "\n" not in json.dumps(each)
        assert each["kind"] == "alert"
        assert each["severity"] in (1, 2, 3, 4)
        assert isinstance(each["created_at"], int)
        assert all(isinstance(each[key], str) for key in ("id", "category", "title", "summary", "source", "deployment"))
        assert each["title"]
    assert len({each["id"] for each in found}) == len(found)
    assert len(found) == max(1, min(500, len(told.items)) + bool(told.left_out or len(told.items) > 500))


def test_exec_line_of_a_missing_vm() -> None:
    """As BOSH's plugins expect it."""
    [line] = lines(OPENED)
    assert {key: line[key] for key in ("id", "severity", "category", "deployment", "created_at")} == {
        "id": "n-0001", "severity": 2, "category": "vm_health", "deployment": "shop", "created_at": int(AT),
    }  # fmt: skip


def test_secrets_hide_themselves_and_each_other() -> None:
    """Neither repr nor str nor format shows one, and a longer one is hidden before a part of it."""
    secret, longer = Secret("token-12"), Secret("token-1234")
    assert {repr(secret), str(secret), f"{secret}"} == {HIDDEN}
    assert hide("got token-1234 and token-12", [secret, longer]) == f"got {HIDDEN} and {HIDDEN}"
    assert hide("a b", [Secret("a")]) == "a b"


def test_what_was_taken_is_remembered_within_a_limit() -> None:
    """The oldest is forgotten first."""
    taken = Taken()
    for number in range(NOTIFICATIONS_MAX + 5):
        taken.add(str(number), {"a"})
    assert taken.by("4") == frozenset()
    assert taken.by(str(NOTIFICATIONS_MAX + 4)) == {"a"}


def test_keys_of_different_texts_differ() -> None:
    """What does not fit is hashed, whatever it holds."""
    assert key_text("abc", 10) == "abc"
    assert len({key_text(each, 10) for each in (EVIL, EVIL + "x", "", "x" * 11, "x" * 12)}) == 5
    assert INCIDENT.key in ITEM.incident.key
