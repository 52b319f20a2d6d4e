"""`python -m tests.simulation.mutant_table`: runs every mutant where it should be caught, and prints who caught it.

Exit status 0 when each was caught by the checker that `mutants.CAUGHT_BY` names. `--documented` prints the table of
`docs/simulation.md` without running anything.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.simulation.mutants import CAUGHT_BY, MUTANTS, broken

LONGEST_SECONDS = 1200


def documented() -> Iterator[str]:
    yield "| mutant | what it breaks | scenario, seed | found by |"
    yield "|---|---|---|---|"
    for name in MUTANTS:
        caught = CAUGHT_BY[name]
        yield f"| `{name}` | {broken(name)} | {caught.scenario}, {caught.seed} | `{caught.checker}` |"


def found_by(name: str) -> tuple[list[str], float]:
    """The checkers whose sentences did not hold, in a process of its own, and how long it took."""
    caught, began = CAUGHT_BY[name], time.perf_counter()
    arguments = ["--seeds", str(caught.seed), "--scenario", caught.scenario, "--mutant", name]
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments, "--first", caught.checker],
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr[-2000:])
    checkers = re.findall(r"CHECK +(\w+) +VIOLATED", done.stdout) + re.findall(r"VIOLATED at .* s: (\w+)", done.stdout)
    return list(dict.fromkeys(checkers)), time.perf_counter() - began


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutant_table", description=__doc__)
    parser.add_argument("mutants", nargs="*", help="only these")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--documented", action="store_true")
    options = parser.parse_args(arguments)
    if options.documented:
        print("\n".join(documented()))
        return 0
    names = options.mutants or list(MUTANTS)
    missed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, (checkers, seconds) in zip(names, pool.map(found_by, names), strict=True):
            caught = CAUGHT_BY[name]
            ok = caught.checker in checkers
            missed += [] if ok else [name]
            who = ", ".join(checkers) or "nobody"
            where = f"{caught.scenario}, {caught.seed}"
            print(f"{'caught' if ok else 'MISSED':<7} {name:<28} {where:<14} {who}  ({seconds:.0f} s)", flush=True)
    print(f"{len(names)} mutants, {len(missed)} missed{': ' if missed else ''}{', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
