"""How a command ends: the exit codes, and the one exception that carries one of them.

Law: whatever goes wrong says what is wrong, and what to do next where there is something to do.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # tried, and it did not work
    USAGE = 2  # the command line, a manifest or a configuration is wrong; nothing was done
    UNREACHABLE = 3  # the monitor cannot be reached
    NOT_ALLOWED = 4  # no token, a wrong one, or a role that may not do this
    HELD_BACK = 5  # accepted or partly done, and something holds the rest back


EXIT_CODES_HELP = (
    "Exit codes: 0 done · 1 failed · 2 wrong command line, manifest or configuration · 3 monitor not reachable · "
    "4 not allowed · 5 held back or only partly done."
)


class CliFailure(Exception):
    """Ends the command. `next_step`: what the person may do; `details`: one line each."""

    def __init__(
        self,
        message: str,
        code: ExitCode = ExitCode.FAILED,
        next_step: str = "",
        details: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.next_step = next_step
        self.details = details
