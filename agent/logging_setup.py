"""How the agent's log looks: JSON lines for the journal, colours for a person at a terminal.

Law: one line an event, `key=value` in JSON, time in UTC.
"""

from __future__ import annotations

import logging
from typing import TextIO

import structlog


def set_up_logging(output: TextIO) -> None:
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if output.isatty() else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
