"""The commands about alerts against a pretended API: what is asked, what is shown."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cli import Command, PretendedApi

CHANNEL = {
    "name": "mail",
    "state": "failing",
    "waiting": 3,
    "delivered": 7,
    "failures": 5,
    "error": "535 wrong password",
    "failing_since": 1.0,
    "next_try_at": 2.0,
    "refused": 0,
    "digested": 0,
    "last_said": "250 ok",
    "last_delivered_at": None,
}
SILENCE = {
    "id": "3f2a9c01",
    "active": True,
    "ends_at": time.time() + 7200,
    "created_at": 1.0,
    "created_by": "ann (admin)",
    "because": "moving",
    "deployment": "shop",
    "group": "db",
    "instance": "",
    "kind": "",
    "ended_by": "",
}
WINDOW = {
    "id": "7c1d0e22",
    "text": "sunday 02:00 for 2h (UTC)",
    "kind": "weekly",
    "from": "a person",
    "open": True,
    "over": False,
    "ends_at": time.time() + 600,
    "because": "backups",
    "created_at": 1.0,
    "created_by": "ann (admin)",
    "ended_at": None,
    "ended_by": "",
}


@pytest.fixture
def api() -> PretendedApi:
    answer = {"text": "done so", "next": "resurgam incidents"}
    explained = {"incident": {"key": "k:s", "title": "s is missing"}, "reasons": ["route a matches"], "thread": None}
    return PretendedApi(
        {
            ("GET", "/v1/alerts/channels"): {"channels": [CHANNEL]},
            ("POST", "/v1/alerts/channels/mail/test"): {"text": "channel mail took it: 250 ok", "next": ""},
            ("GET", "/v1/alerts/explain"): explained,
            ("POST", "/v1/alerts/acknowledge"): answer,
            ("GET", "/v1/silences"): {"silences": [SILENCE, {**SILENCE, "id": "over0001", "active": False}]},
            ("POST", "/v1/silences"): answer,
            ("POST", "/v1/silences/3f2a9c01/end"): answer,
            ("GET", "/v1/maintenance"): {"windows": [WINDOW, {**WINDOW, "id": "over0002", "over": True}]},
            ("POST", "/v1/maintenance"): answer,
            ("POST", "/v1/maintenance/7c1d0e22/end"): answer,
        }
    )


@pytest.fixture
def command(tmp_path: Path, api: PretendedApi) -> Command:
    return Command(tmp_path, api)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("alert channels", "535 wrong password"),
        ("alert test mail", "channel mail took it: 250 ok"),
        ("alert explain vm_missing:shop/db/0", "1. route a matches"),
        ("alert ack shop/db/0 --because looking", "done so"),
        ("silence list", "shop/db"),
        ("silence list --all", "over0001"),
        ("silence add --for 2h --because moving --deployment shop", "done so"),
        ("silence end 3f2a9c01", "done so"),
        ("maintenance list", "sunday 02:00 for 2h (UTC)"),
        ("maintenance list --all", "over0002"),
        ("maintenance add --for 2h --because moving", "done so"),
        ("maintenance add --day sunday --at 02:00 --for 2h --because backups", "done so"),
        ("maintenance end 7c1d0e22 --because moved", "done so"),
    ],
)
def test_what_is_shown(command: Command, words: str, shown: str) -> None:
    """Each command says what the monitor said."""
    outcome = command(*words.split())
    assert outcome.code == 0, outcome.err
    assert shown in outcome.out


def test_what_a_window_asks_for(command: Command, api: PretendedApi) -> None:
    """Moments with an offset as they are; lengths and ends as seconds."""
    words = "maintenance add --from 2036-12-01T22:00:00+01:00 --until 2036-12-01T23:30:00Z --because switches"
    assert command(*words.split()).code == 0
    every_day = "maintenance add --day daily --at 02:00 --for 90m --because backups"
    assert command(*every_day.split()).code == 0
    assert api.said_to("POST", "/v1/maintenance") == [
        {"because": "switches", "seconds": 9000.0, "start": 2111778000.0},
        {"because": "backups", "day": "daily", "at": "02:00", "seconds": 5400.0},
    ]


@pytest.mark.parametrize(
    "words",
    [
        "--because x",
        "--for 1h",
        "--for 1h --until 2036-12-01T22:00:00Z --because x",
        "--until yesterday --because x",
        "--until 2000-01-01T00:00:00Z --because x",
        "--day sunday --for 1h --because x",
        "--day sunday --at 02:00 --because x",
        "--day sunday --at 02:00 --for 1h --from 2036-12-01T22:00:00Z --because x",
    ],
)
def test_a_window_without_an_end_or_a_reason_is_a_wrong_command_line(command: Command, words: str) -> None:
    """Nothing is asked of the monitor."""
    assert command("maintenance", "add", *words.split()).code == 2


@pytest.mark.parametrize("words", ["alert ack shop/db/0", "silence add --deployment shop --for 2h", "alert test"])
def test_without_a_reason_or_a_name_nothing_is_asked(command: Command, words: str) -> None:
    """It is a wrong command line."""
    assert command(*words.split()).code == 2


def test_silences_that_are_over_are_not_listed_unasked(command: Command) -> None:
    """Only those that hold."""
    assert "over0001" not in command("silence", "list").out
