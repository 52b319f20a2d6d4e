"""A short run of every target, and every input that once crashed one. Longer runs: `python -m tests.fuzz`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.running import GROWTH_MAX_KIB, cases, one, run
from tests.fuzz.targets import TARGETS

INPUTS = {"manifest": 400, "configuration": 800}
"""Those that take milliseconds each; 2,000 of the others."""


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_crashes_hangs_or_grows(name: str) -> None:
    """The same inputs each time."""
    outcome = run(name, TARGETS[name], INPUTS.get(name, 2000), seed=0)
    assert outcome.grown_kib < GROWTH_MAX_KIB, outcome


@pytest.mark.parametrize(
    ("name", "case"), [pytest.param(name, case, id=f"{name}-{case.name}") for name in TARGETS for case in cases(name)]
)
def test_what_crashed_once_crashes_no_more(name: str, case: Path) -> None:
    """Each was found by a run, and mended with it."""
    with TARGETS[name].feeding() as feed:
        one(name, TARGETS[name], feed, case.read_bytes())
