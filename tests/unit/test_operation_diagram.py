"""docs/operations.md shows the steps as they are in the code."""

from __future__ import annotations

from pathlib import Path

from tests.support.operation_diagram import diagram, rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
HINT = "python -m tests.support.operation_diagram prints what should stand there"


def test_the_diagram_is_current() -> None:
    """The page's diagram is the one that the table of steps makes."""
    shown = PAGE.read_text().split("```mermaid\n")[1].split("\n```")[0]
    assert shown.splitlines() == diagram(), HINT


def test_the_table_of_steps_is_current() -> None:
    """Each step with what it does, the kinds that take it and the holds that it may have."""
    shown = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert shown == rows(), HINT
