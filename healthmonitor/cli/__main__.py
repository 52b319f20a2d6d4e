"""`resurgam`, also as `python -m healthmonitor.cli`."""

from __future__ import annotations

import sys

from healthmonitor.cli.application import run
from healthmonitor.cli.screen import logs_to_standard_error


def main() -> None:
    logs_to_standard_error()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
