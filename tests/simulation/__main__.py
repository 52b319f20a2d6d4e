"""`python -m tests.simulation --seeds 0-19`: runs seeds, tells the story of those in which a sentence did not hold.

Exit status 0 when every sentence held in every seed. The process starts itself anew with PYTHONHASHSEED=0, because
sets of strings would otherwise have another order each time.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence

from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.story import story
from tests.simulation.world import Result, World, no_logs

HASH_SEED = "0"


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *arguments],
            {**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
    if options.jobs > 1 and len(options.seeds) > 1:
        return _in_parallel(options)
    # Coroutines of killed processes are thrown away unfinished; what their clean-up says then means nothing.
    sys.unraisablehook = lambda unraisable: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    failed = 0
    for seed in options.seeds:
        with mutated(options.mutant):
            result, seconds = _run(seed, options.scenario)
        failed += bool(result.violations)
        _print(result, seconds, options)
    print(f"{len(options.seeds)} seeds, {failed} with violations")
    return 1 if failed else 0


def _in_parallel(options: argparse.Namespace) -> int:
    """Each job a process with every n-th seed; their output one after the other."""
    chunks = [options.seeds[number :: options.jobs] for number in range(min(options.jobs, len(options.seeds)))]
    flags = ["--scenario", options.scenario, *(["--mutant", options.mutant] if options.mutant else [])]
    flags += ["-v"] if options.verbose else []
    processes: list[subprocess.Popen[str]] = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation", "--seeds", ",".join(map(str, chunk)), *flags],
            stdout=subprocess.PIPE,
            text=True,
        )
        for chunk in chunks
    ]
    for process in processes:
        print(process.communicate()[0], end="", flush=True)
    return max((abs(process.returncode) for process in processes), default=0)


def repeat_command(seed: int, scenario: str, mutant: str = "") -> str:
    parts = [
        f"python -m tests.simulation --seeds {seed} --scenario {scenario}",
        f"--mutant {mutant}" if mutant else "",
        "-v",
    ]
    return " ".join(part for part in parts if part)


def _run(seed: int, scenario: str) -> tuple[Result, float]:
    began = time.perf_counter()
    result = World(seed, SCENARIOS[scenario](seed)).run()
    with no_logs():
        gc.collect()  # what killed processes left behind goes now, and not in the middle of the next run
    return result, time.perf_counter() - began


def _print(result: Result, seconds: float, options: argparse.Namespace) -> None:
    counts = result.counts
    print(
        f"seed {result.seed:<5} {'VIOLATED' if result.violations else 'held':<9} digest {result.digest}"
        f"  {result.virtual_seconds / 60:5.1f} virtual minutes in {seconds:5.1f} s, {result.steps} steps,"
        f" {counts.get('vms made', 0)} VMs made, {counts.get('resurrections admitted', 0)} resurrections,"
        f" settled {counts.get('settled after seconds', -1)} s after the last fault",
        flush=True,
    )
    if options.verbose:
        print("\n".join(result.trace.lines(logs=options.logs)))
    for violation in result.violations[: 10 if options.verbose else 1]:
        print(story(result.trace, violation, repeat_command(result.seed, options.scenario, options.mutant)))
    if options.verbose:
        print("counts:", ", ".join(f"{what} {count}" for what, count in counts.items()))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0-19"), help="7, 0-19 or 1,5,9")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="mixed")
    parser.add_argument("--mutant", choices=["", *sorted(MUTANTS)], default="", help="break one of our own rules")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell everything that happened")
    parser.add_argument("--logs", action="store_true", help="and what the parts logged")
    return parser.parse_args(arguments)


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Without the interpreter's farewell, which would once more throw away what killed processes left behind.
    os._exit(status)
