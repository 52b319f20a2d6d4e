"""Settings of all tests: in CI hypothesis draws the same examples each time, so that what lands is judged by what was
run; on a contributor's machine it looks for new ones. What it finds stays as a case of its own."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("here", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
