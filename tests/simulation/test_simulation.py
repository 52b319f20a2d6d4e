"""The real monitors and agents in a world that goes wrong: fixed seeds, and mutants that show what checkers can find.

Each test runs `python -m tests.simulation` in a process of its own, because the order of sets of strings belongs to a
process; that is also the command that repeats a failure.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutant_table import documented
from tests.simulation.mutants import CAUGHT_BY, MUTANTS
from tests.simulation.new_seeds import COUNTED, code_hash, new_seeds
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.shrink import shrink

CORES = os.cpu_count() or 1
LONGEST_SECONDS = 600
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "simulation.md"


def simulate(seeds: str, scenario: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seeds", seeds, "--scenario", scenario, *flags],
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )


def digests(output: str) -> list[str]:
    return re.findall(r"digest (\S+)", output)


@pytest.mark.timeout(LONGEST_SECONDS)
@pytest.mark.parametrize(
    ("scenario", "seeds"),
    [
        ("mixed", "0-4"),
        ("killing", "0,5,313,315,357212158"),
        ("restarts", "0,2,7"),
        ("lateness", "0-1,11825158,848117370"),
        ("together", "3-5,8"),
        ("spares", "0-2,733697743"),
        ("acting", "0-1,302"),
        ("disks", "0-1,401065659,733697731,733697737"),
        ("words", "0-1,308,879382256"),
        ("storms", "0"),
        ("limits", "0"),
        ("engines", "0"),
        ("alerts", "0-1"),
    ],
)
def test_every_sentence_holds(scenario: str, seeds: str) -> None:
    """In every fixed seed: one writer, proof before replacement, nothing rebuilt for restarts, convergence."""
    run = simulate(seeds, scenario, "--jobs", str(CORES))
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
    assert "0 with violations" in run.stdout


NEW = (
    ("mixed", 3),
    ("killing", 3),
    ("restarts", 3),
    ("acting", 3),
    ("disks", 3),
    ("spares", 2),
    ("words", 3),
    ("storms", 3),
    ("lateness", 3),
)
"""Of each scenario so many seeds that the code draws: a minute on two cores."""


@pytest.mark.timeout(LONGEST_SECONDS)
@pytest.mark.parametrize(("scenario", "count"), NEW)
def test_every_sentence_holds_where_nobody_looked_before(scenario: str, count: int) -> None:
    """In seeds that this very version of the code draws. One that fails is a defect, be it an old one: its story names
    the command that repeats it; mend it, and keep the seed above."""
    run = simulate(",".join(map(str, new_seeds(code_hash(), count))), scenario, "--jobs", str(CORES))
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-5_000:]
    assert "0 with violations" in run.stdout


@pytest.mark.timeout(LONGEST_SECONDS)
def test_the_same_seed_gives_the_same_trace() -> None:
    """Two processes that run one seed have one digest; another seed has another."""
    first, second = simulate("2", "engines"), simulate("2,4", "engines")
    assert first.returncode == second.returncode == 0, first.stdout + second.stdout
    assert digests(first.stdout) == digests(second.stdout)[:1]
    assert len(set(digests(second.stdout))) == 2


@pytest.mark.timeout(LONGEST_SECONDS)
@pytest.mark.parametrize(
    "mutant",
    [
        "fence-skipped",
        "late-heartbeat-renews",
        "cannot-tell-ignored",
        "suspects-not-awaited",
        "lease-kept-too-long",
        "written-after",
        "meltdown-off",
    ],
)
def test_a_broken_rule_is_found(mutant: str) -> None:
    """With one of our own rules broken, the checker of its sentence tells a story that says how to repeat it. The other
    mutants are run by `make simulate-mutants`."""
    caught = CAUGHT_BY[mutant]
    run = simulate(str(caught.seed), caught.scenario, "--mutant", mutant, "--first", caught.checker)
    assert run.returncode == 1, run.stdout + run.stderr
    assert f": {caught.checker}" in run.stdout or f"{caught.checker} " in run.stdout
    assert f"python -m tests.simulation --seeds {caught.seed} --scenario {caught.scenario} --mutant {mutant} -v" in (
        run.stdout
    )


def test_every_mutant_is_in_the_document() -> None:
    """`docs/simulation.md` has the table that `--documented` prints, and each mutant names a scenario that there is."""
    assert set(CAUGHT_BY) == set(MUTANTS)
    assert {caught.scenario for caught in CAUGHT_BY.values()} <= set(SCENARIOS)
    assert "\n".join(documented()) in DOCUMENT.read_text(), (
        "run `python -m tests.simulation.mutant_table --documented` and put its table into docs/simulation.md"
    )


def test_the_same_code_always_draws_the_same_seeds(tmp_path: Path) -> None:
    """By path and content of what can change a run; whatever else is changed draws no others."""
    for part in COUNTED:
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "agent" / "one.py").write_text("x = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "agent" / "README.md").write_text("other words\n")
    assert new_seeds(code_hash(tmp_path), 3) == new_seeds(before, 3)
    (tmp_path / "agent" / "one.py").write_text("x = 2\n")
    assert not set(new_seeds(code_hash(tmp_path), 3)) & set(new_seeds(before, 3))


@pytest.mark.parametrize(
    ("needed", "tries_max"),
    [({3}, 12), ({0, 19}, 40), ({5, 6, 7}, 45), (set(range(20)), 60)],
)
def test_a_failing_plan_is_shrunk_to_what_it_needs(needed: set[int], tries_max: int) -> None:
    """Whatever faults a failure needs are kept, and no others; and it does not try for ever."""
    tried = 0

    def fails(kept: tuple[int, ...]) -> bool:
        nonlocal tried
        tried += 1
        return needed <= set(kept)

    assert set(shrink(range(20), fails, lambda: False)) == needed
    assert tried <= tries_max


def test_shrinking_ends_when_its_time_is_over() -> None:
    """With what it had found by then."""
    assert shrink(range(8), lambda kept: True, lambda: True) == tuple(range(8))
