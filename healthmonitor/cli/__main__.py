"""`resurgam`, also as `python -m healthmonitor.cli`."""

from __future__ import annotations

import sys

from healthmonitor.cli.application import run


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
