"""Every figure, one after another, as a table a bench: `python -m tests.bench`, or `make bench`.

No figure is a test: each is printed beside a floor or a peer of the same run. They want a machine with nothing else
to do; on a busy one only the ratios mean something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

BENCHES = (
    ("a killed container runs again, against the bare start", "bench_restart", ("--rounds", "20")),
    ("the agent with 20 containers and nothing to do", "bench_agent_footprint", ("--seconds", "30")),
    ("a verdict is a page in the receiver's hands", "bench_alerts", ("--rounds", "20")),
    ("heartbeats for a core, against a bare subscriber", "bench_heartbeats", ()),
    ("a big fleet: a core, memory, turns, a thousand deaths, take-over, status", "bench_scale", ()),
    ("a monitor that led is gone, another leads", "bench_takeover", ("--rounds", "10")),
    ("a disk copied to another, against cp -a", "bench_disk_copy", ("--rounds", "3")),
    ("a killed VM is back with its data", "bench_vm", ("--rounds", "5")),
    ("a killed VM is back with its data, where a spare is ready", "bench_spare", ("--rounds", "5")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help=f"of {', '.join(name for _, name, _ in BENCHES)}")
    only = parser.parse_args().only
    failed = 0
    for title, name, arguments in BENCHES:
        if only and name not in only:
            continue
        print(f"\n== {title} ({name})", flush=True)
        started = time.monotonic()
        code = subprocess.run((sys.executable, "-m", f"tests.bench.{name}", *arguments), check=False).returncode
        print(f"-- {time.monotonic() - started:.0f} s" + (f", ended with {code}" if code else ""), flush=True)
        failed += code != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
