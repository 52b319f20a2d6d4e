"""What commands print: tables and sentences for people, JSON for programs.

Law: what is asked for goes to standard output; questions, progress and errors go to standard error. Without a
terminal nothing is coloured, boxed, cut or asked.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import structlog
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from healthmonitor.cli.failures import CliFailure, ExitCode

TONES = {"good": "green", "busy": "cyan", "bad": "bold red", "unknown": "yellow", "off": "dim"}


class Screen:
    """`as_json`: print only JSON on standard output."""

    def __init__(self, as_json: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out_file = out or sys.stdout
        self._out = Console(file=self._out_file, highlight=False, soft_wrap=True)
        self.err = Console(file=err or sys.stderr, highlight=False, soft_wrap=True)

    @property
    def is_terminal(self) -> bool:
        return self._out.is_terminal

    @property
    def console(self) -> Console:
        return self._out

    def json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, ensure_ascii=False), file=self._out_file)

    def json_line(self, value: Any) -> None:
        print(json.dumps(value, ensure_ascii=False), file=self._out_file, flush=True)

    def say(self, text: str = "", style: str = "") -> None:
        """A line of the answer; nothing when JSON was asked for."""
        if not self.as_json:
            self._out.print(Text(text, style=style))

    def note(self, text: str, style: str = "dim") -> None:
        """A line beside the answer."""
        self.err.print(Text(text, style=style))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        """Drawn on a terminal, aligned columns of plain text elsewhere."""
        if self.as_json:
            return
        listed = [tuple(row) for row in rows]
        if self._out.is_terminal:
            self._out.print(make_table(columns, listed), soft_wrap=False)
        else:
            print(plain_table(columns, listed), file=self._out_file)

    def failure(self, failure: CliFailure) -> None:
        if self.as_json:
            body: dict[str, Any] = {"error": str(failure), "details": list(failure.details)}
            body |= {"next": failure.next_step, "exit_code": int(failure.code)}
            print(json.dumps(body, ensure_ascii=False), file=self.err.file)
            return
        self.err.print(Text.assemble(("error: ", "bold red"), str(failure)))
        for line in failure.details:
            self.err.print(Text(f"  {line}"))
        if failure.next_step:
            self.err.print(Text.assemble(("next:  ", "bold"), failure.next_step))

    def confirm(self, question: str, yes: bool, hint: str = "add --yes to do it without being asked") -> None:
        """Returns when it may be done. CliFailure when a person says no, or when there is nobody to ask."""
        if yes:
            return
        if self.as_json or not (sys.stdin.isatty() and self.err.is_terminal):
            raise CliFailure("not confirmed: there is no terminal to ask at", ExitCode.USAGE, hint)
        answer = self.err.input(f"[bold]{escape(question)}[/bold] [y/N] ").strip().lower()
        if answer not in ("y", "yes"):
            raise CliFailure("not confirmed: nothing was changed", ExitCode.FAILED)


def logs_to_standard_error() -> None:
    """What adapters log while a command uses them: warnings and worse, beside the answer and never in it."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold dim")
    for number, column in enumerate(columns):
        table.add_column(column.upper(), overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row)
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> str:
    lines = [[column.upper() for column in columns], *[[str(cell).replace("\n", " ") for cell in row] for row in rows]]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def toned(text: str, tone: str) -> Text:
    return Text(text, style=TONES.get(tone, ""))


def duration(seconds: float) -> str:
    """`0.8 s`, `12.3 s`, `4 min 05 s`, `3 h 02 min`, `5 d 1 h`"""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def parse_duration(text: str) -> float:
    """Seconds in `90`, `90s`, `30m`, `2h`, `1d`; CliFailure(USAGE) otherwise."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], text[-1]) if text and text[-1] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 366 * 86400:
        raise CliFailure(f"{text!r} is not a length of time", ExitCode.USAGE, "write it like 90s, 30m, 2h or 1d")
    return seconds
