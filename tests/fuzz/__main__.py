"""`python -m tests.fuzz [--target NAME] [--inputs N] [--seed S]`: feeds targets, prints figures, keeps what crashed."""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.running import GROWTH_MAX_KIB, Crash, keep, run
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all of them, one after the other")
    parser.add_argument("--inputs", type=int, default=10_000, help="for each target; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # Coroutines of agents that were switched off are thrown away unfinished; what their clean-up says means nothing.
    sys.unraisablehook = lambda unraisable: None
    failed = False
    for name in arguments.target or TARGETS:
        try:
            outcome = run(name, TARGETS[name], arguments.inputs, arguments.seed)
        except Crash as crash:
            failed = True
            print(f"{crash}\nkept as {keep(name, crash.payload)}", flush=True)
            continue
        failed = failed or outcome.grown_kib >= GROWTH_MAX_KIB
        print(
            f"{name}: {outcome.inputs} inputs in {outcome.seconds:.0f} s,"
            f" slowest {outcome.slowest_seconds * 1000:.0f} ms, memory grown by {outcome.grown_kib} KiB",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
