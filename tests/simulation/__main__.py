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

from tests.simulation import nemesis
from tests.simulation.mutants import MUTANTS, mutated
from tests.simulation.new_seeds import code_hash, new_seeds
from tests.simulation.scenarios import SCENARIOS
from tests.simulation.shrink import shrink
from tests.simulation.story import Violation, story
from tests.simulation.world import Result, World, no_logs, planned

HASH_SEED = "0"
SHRINK_SECONDS = 300.0


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *arguments],
            {**os.environ, "PYTHONHASHSEED": HASH_SEED},
        )
    if options.new:
        code = code_hash()
        options.seeds = new_seeds(code, options.new)
        print(f"seeds that code {code[:12]} draws: {options.seeds[0]}-{options.seeds[-1]}", flush=True)
    if options.jobs > 1 and len(options.seeds) > 1:
        return _in_parallel(options)
    # Coroutines of killed processes are thrown away unfinished; what their clean-up says then means nothing.
    sys.unraisablehook = lambda unraisable: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    until = time.monotonic() + options.seconds if options.seconds else float("inf")
    done = failed = 0
    for seed in options.seeds:
        if time.monotonic() > until:
            print(f"out of time: {len(options.seeds) - done} seeds from {seed} on were not run")
            break
        done += 1
        failed += _one(seed, options)
    print(f"{done} seeds, {failed} with violations")
    return 1 if failed else 0


def _one(seed: int, options: argparse.Namespace) -> bool:
    numbers = tuple(options.faults) if options.faults is not None else None
    began = time.perf_counter()
    result = run(seed, options.scenario, options.mutant, numbers, options.first)
    _print(result, time.perf_counter() - began, options)
    if options.verbose:
        print("\n".join(result.trace.lines(logs=options.logs)))
    told = result.violations[: 10 if options.verbose else 1]
    if told and options.shrink:
        numbers, result = _shrunk(seed, options, numbers, told[0])
        told = [each for each in result.violations if each.checker == told[0].checker][:1]
    for violation in told:
        print(story(result.trace, violation, repeat_command(seed, options.scenario, options.mutant, numbers)))
    if options.verbose:
        print("counts:", ", ".join(f"{what} {count}" for what, count in result.counts.items()))
    return bool(result.violations)


def _shrunk(
    seed: int, options: argparse.Namespace, numbers: tuple[int, ...] | None, violation: Violation
) -> tuple[tuple[int, ...], Result]:
    """The numbers of the faults that are enough for the same checker, and the run with them."""
    every = numbers if numbers is not None else tuple(range(len(planned(seed, SCENARIOS[options.scenario](seed)))))
    deadline = time.monotonic() + SHRINK_SECONDS

    def attempt(kept: tuple[int, ...]) -> Result:
        return run(seed, options.scenario, options.mutant, kept, violation.checker)

    def fails(kept: tuple[int, ...]) -> bool:
        return any(each.checker == violation.checker for each in attempt(kept).violations)

    kept = shrink(every, fails, lambda: time.monotonic() > deadline)
    print(f"shrunk from {len(every)} faults to {len(kept)}")
    return kept, attempt(kept)


def run(
    seed: int, scenario_name: str, mutant: str = "", numbers: tuple[int, ...] | None = None, first: str = ""
) -> Result:
    """`numbers`: of the faults of the plan, only these. `first`: the checker whose violation ends the run ("any")."""
    scenario = SCENARIOS[scenario_name](seed)
    faults = None if numbers is None else nemesis.chosen(planned(seed, scenario), numbers)
    with mutated(mutant):
        result = World(seed, scenario, faults, lambda each: first in ("any", each.checker)).run()
    with no_logs():
        gc.collect()  # what killed processes left behind goes now, and not in the middle of the next run
    return result


def _in_parallel(options: argparse.Namespace) -> int:
    """Each job a process with every n-th seed; their output one after the other."""
    chunks = [options.seeds[number :: options.jobs] for number in range(min(options.jobs, len(options.seeds)))]
    flags = ["--scenario", options.scenario, *(["--mutant", options.mutant] if options.mutant else [])]
    flags += ["-v"] if options.verbose else []
    flags += ["--shrink"] if options.shrink else []
    flags += ["--seconds", str(options.seconds)] if options.seconds else []
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


def repeat_command(seed: int, scenario: str, mutant: str = "", numbers: tuple[int, ...] | None = None) -> str:
    parts = [
        f"python -m tests.simulation --seeds {seed} --scenario {scenario}",
        f"--mutant {mutant}" if mutant else "",
        f"--faults {','.join(map(str, numbers))}" if numbers is not None else "",
        "-v",
    ]
    return " ".join(part for part in parts if part)


def _print(result: Result, seconds: float, options: argparse.Namespace) -> None:
    counts = result.counts
    print(
        f"seed {result.seed:<5} {'VIOLATED' if result.violations else 'held':<9} digest {result.digest}"
        f"  {result.virtual_seconds / 60:5.1f} virtual minutes in {seconds:5.1f} s, {result.steps} steps,"
        f" {result.faults} faults, {counts.get('vms made', 0)} VMs made,"
        f" {counts.get('resurrections admitted', 0)} resurrections,"
        f" settled {counts.get('settled after seconds', -1)} s after the last fault",
        flush=True,
    )
    if result.figures:
        print(result.figures)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_numbers, default=_numbers("0-19"), help="7, 0-19 or 1,5,9")
    parser.add_argument("--new", type=int, default=0, help="so many seeds that this very code draws, instead")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="mixed")
    parser.add_argument("--mutant", choices=["", *sorted(MUTANTS)], default="", help="break one of our own rules")
    parser.add_argument("--faults", type=_numbers, default=None, help="of the plan only these, from 0")
    parser.add_argument("--first", default="", help="end the run with the first violation of this checker, or of any")
    parser.add_argument("--shrink", action="store_true", help="look for fewer faults that fail in the same way")
    parser.add_argument("--seconds", type=float, default=0.0, help="begin no seed after so much real time")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell everything that happened")
    parser.add_argument("--logs", action="store_true", help="and what the parts logged")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # Without the interpreter's farewell, which would once more throw away what killed processes left behind.
    os._exit(status)
