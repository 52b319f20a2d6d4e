"""docs/alerts.md is as the code is."""

from __future__ import annotations

import re
from pathlib import Path

from healthmonitor.core.configuration import parse_configuration
from healthmonitor.core.deviations import KINDS
from healthmonitor.core.notifying.route_file import ROUTE_KEYS
from tests.support.alert_table import HEAD, rows

TEXT = (Path(__file__).parents[2] / "docs/alerts.md").read_text()


def test_every_alert_is_in_the_table() -> None:
    """Each kind with its severity, patience, meaning and next step, and nothing that is not there any more."""
    table = TEXT[TEXT.index(HEAD[0]) :].strip().splitlines()
    assert table == [*HEAD, *rows()], "python -m tests.support.alert_table prints what should stand there"
    assert len(rows()) == len(KINDS)


def test_the_examples_can_be_copied() -> None:
    """They are read without an error, and every key of a route is described."""
    block, *others = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for other in others:
        parse_configuration(other, "c.yml")
    assert [route.name for route in parse_configuration(block, "c.yml").routes] == [
        "nights",
        "shop",
        "playground",
        "rest",
    ]
    described = {
        key for row in re.findall(r"^\| (`[a-z`, ]+) \|", TEXT, re.MULTILINE) for key in re.findall(r"`([a-z]+)`", row)
    }
    assert set(ROUTE_KEYS) <= described
