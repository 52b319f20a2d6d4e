"""Files for `env_file`: KEY=VALUE lines as Compose reads them.

Law: every error names the file and line, never the value: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from healthmonitor.core.interpolation import BadVariable, interpolate
from healthmonitor.core.located_yaml import Report

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}


def read_env_file(
    text: str, file: str, variables: Mapping[str, str], report: Report, raw: bool = False
) -> dict[str, str]:
    """`'single'` quotes keep a value as it is, `"double"` quotes have \\n and \\", and, like no quotes, variables:
    those given and those of earlier lines. `raw` (Compose's `format: raw`) takes everything after `=` as it stands."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.removeprefix("export ").partition("=")
        key = key.strip()
        if not _KEY.fullmatch(key) or not equals:
            report.add(number, 1, "env_file", "expected NAME=VALUE (a value over several lines is not supported)", file)
            continue
        if "\x00" in value:
            report.add(number, 1, "env_file", f"{key}: a NUL character, which no process can be given", file)
        elif raw:
            values[key] = line.partition("=")[2]
        else:
            try:
                values[key] = _value(value.strip(), {**values, **variables})
            except BadVariable as error:
                hint = "; in single quotes, or with format: raw, a value is taken as it stands"
                report.add(number, 1, f"env_file {key}", str(error) + hint, file)
            except ValueError as error:
                report.add(number, 1, f"env_file {key}", str(error), file)
    return values


def _value(text: str, variables: Mapping[str, str]) -> str:
    quote = text[:1]
    if quote == "'":
        inside, _ = _quoted(text, "'", escapes=False)
        return inside
    if quote == '"':
        inside, _ = _quoted(text, '"', escapes=True)
        return interpolate(inside, variables)
    comment = re.search(r"(^|\s)#", text)
    return interpolate(text[: comment.start()].rstrip() if comment else text, variables)


def _quoted(text: str, quote: str, escapes: bool) -> tuple[str, int]:
    parts: list[str] = []
    position = 1
    while position < len(text):
        character = text[position]
        if character == quote:
            rest = text[position + 1 :].strip()
            if rest and not rest.startswith("#"):
                raise ValueError("text after the closing quote; expected the end of the line or a comment")
            return "".join(parts), position
        if escapes and character == "\\" and position + 1 < len(text):
            follower = text[position + 1]
            parts.append(_ESCAPES.get(follower, character + follower))
            position += 2
            continue
        parts.append(character)
        position += 1
    raise ValueError("a quote that is not closed in its line")
