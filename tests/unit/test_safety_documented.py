"""docs/safety.md promises nothing without a checker that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/safety.md").read_text()
LINK = re.compile(r"\[`([^`]+)`\]\(([^)]+)\)")
PROMISES = TEXT.partition("## Figures")[0]
ROWS = [
    line for line in PROMISES.splitlines() if line.startswith("| ") and not line.startswith(("| sentence", "| fault"))
]


@pytest.mark.parametrize("row", ROWS, ids=[row[2:50] for row in ROWS])
def test_every_sentence_names_a_checker(row: str) -> None:
    """Each row of each table."""
    assert LINK.findall(row), row


@pytest.mark.parametrize(("name", "target"), sorted(set(LINK.findall(TEXT))))
def test_every_checker_is_there(name: str, target: str) -> None:
    """The file is there, and it defines what is named; a link to a file as a whole names the file."""
    path = ROOT / "docs" / target
    assert path.is_file(), target
    if not name.endswith(".py"):
        assert re.search(rf"^ *(async )?(def|class) {re.escape(name)}\b", path.read_text(), re.MULTILINE), name


def test_there_are_sentences() -> None:
    """The tables were found."""
    assert len(ROWS) >= 20
