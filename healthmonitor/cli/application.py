"""The command as a whole: every sub-command, the global options, and how errors end it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from healthmonitor.cli.commands_act import act, fence, meltdown, resurrection
from healthmonitor.cli.commands_alert import alert, silence
from healthmonitor.cli.commands_deploy import deploying
from healthmonitor.cli.commands_disks import disks
from healthmonitor.cli.commands_image import image
from healthmonitor.cli.commands_look import look
from healthmonitor.cli.commands_maintenance import maintenance
from healthmonitor.cli.commands_monitor import monitor
from healthmonitor.cli.commands_site import site_commands
from healthmonitor.cli.commands_stemcell import stemcell
from healthmonitor.cli.failures import EXIT_CODES_HELP, CliFailure, ExitCode
from healthmonitor.cli.screen import Screen
from healthmonitor.cli.session import Session, globals_first

_UsageError: Any = typer.BadParameter.__mro__[1]
"""Base of what Typer raises for a wrong command line. Newer versions bring click along under a name of their own, so it
cannot be imported by name for all of them."""

OpenSession = Callable[[Screen, str | None, Path | None], Session]

app = typer.Typer(
    name="resurgam",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _resurgam(
    context: typer.Context,
    api: Annotated[str | None, typer.Option(help="Address of the monitor's API (also RESURGAM_API).")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Directory of a local site (also RESURGAM_DIR); default .resurgam.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="text for people, json for programs.")] = "text",
) -> None:
    """Keeps stateful Docker containers on VMs alive: deployments, their instances, and what happens to them.

    The options below may stand anywhere on the command line.
    """
    if output not in ("text", "json"):
        raise CliFailure(f"--output {output} is not possible", ExitCode.USAGE, "text or json")
    open_session: OpenSession = context.obj
    context.obj = open_session(Screen(output == "json"), api, directory)


for commands in (site_commands, deploying, look, act):
    app.registered_commands.extend(commands.registered_commands)
app.add_typer(stemcell, name="stemcell")
app.add_typer(image, name="image")
app.add_typer(alert, name="alert")
app.add_typer(silence, name="silence")
app.add_typer(maintenance, name="maintenance")
app.add_typer(fence, name="fence")
app.add_typer(resurrection, name="resurrection")
app.add_typer(meltdown, name="meltdown")
app.add_typer(monitor, name="monitor")
app.add_typer(disks, name="disks")


def run(arguments: Sequence[str], open_session: OpenSession = Session) -> int:
    """Runs one command line and returns its exit code; whatever goes wrong is said on standard error."""
    ordered = globals_first(arguments)
    screen = Screen(as_json=_asks_for_json(ordered))
    try:
        outcome = typer.main.get_command(app).main(
            args=ordered, prog_name="resurgam", standalone_mode=False, obj=open_session
        )
        return int(outcome) if isinstance(outcome, int) else 0
    except CliFailure as failure:
        screen.failure(failure)
        return int(failure.code)
    except (typer.Abort, KeyboardInterrupt):
        screen.note("interrupted")
        return 130
    except typer.Exit as ended:
        return int(ended.exit_code)
    except _UsageError as error:
        if "Usage:" in error.format_message():  # no sub-command was given: this is the help
            screen.err.print(error.format_message(), markup=False)
            return int(ExitCode.USAGE)
        hint = f"{error.ctx.command_path} --help" if error.ctx is not None else "resurgam --help"
        screen.failure(CliFailure(error.format_message(), ExitCode.USAGE, hint))
        return int(ExitCode.USAGE)
    except BrokenPipeError:
        sys.stderr.close()
        return 141  # whoever read our output went away


def _asks_for_json(arguments: Sequence[str]) -> bool:
    pairs = pairwise([*arguments, ""])
    return any((word in ("--output", "-o") and value == "json") or word == "--output=json" for word, value in pairs)
