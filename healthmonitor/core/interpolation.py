"""Variables in YAML values, in Compose's syntax: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`,
`${NAME:?why}`, `${NAME?why}`, `${NAME:+other}`, `${NAME+other}`; `$$` is a dollar sign.

Law: values come from the mapping given and from nowhere else. The environment of whoever runs the command never
changes what is deployed; a variable without value and default is an error, not an empty string (Compose's silence
there is a common accident).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_START = re.compile(r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*))?")
_OPERATOR = re.compile(r":-|-|:\?|\?|:\+|\+")
_NESTING_MAX = 8


class BadVariable(ValueError):
    """The text says what is wrong and what to write."""


def interpolate(text: str, variables: Mapping[str, str], nesting: int = 0) -> str:
    if "$" not in text:
        return text
    if nesting > _NESTING_MAX:
        raise BadVariable(f"variables nested deeper than {_NESTING_MAX}")
    parts: list[str] = []
    position = 0
    while (dollar := text.find("$", position)) >= 0:
        parts.append(text[position:dollar])
        match = _START.match(text, dollar)
        assert match is not None  # the pattern begins with the dollar sign found and its rest is optional
        if match["dollar"]:
            parts.append("$")
            position = match.end()
        elif match["plain"]:
            parts.append(_value(match["plain"], variables))
            position = match.end()
        elif match["braced"]:
            closing = _closing(text, match.end())
            parts.append(_braced(match["braced"], text[match.end() : closing], variables, nesting))
            position = closing + 1
        else:
            raise BadVariable("a $ that begins no variable; write $$ for a dollar sign, ${NAME} for a variable")
    parts.append(text[position:])
    return "".join(parts)


def _closing(text: str, position: int) -> int:
    depth = 1
    for index in range(position, len(text)):
        if text.startswith("${", index):
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    raise BadVariable("${ without its closing }; write $$ for a dollar sign")


def _braced(name: str, rest: str, variables: Mapping[str, str], nesting: int) -> str:
    if not rest:
        return _value(name, variables)
    operator = _OPERATOR.match(rest)
    if operator is None:
        raise BadVariable(f"${{{name}{rest[:20]}}}: expected }}, :-default, :?message or :+replacement after the name")
    argument = rest[operator.end() :]
    value = variables.get(name)
    present = bool(value) if operator[0].startswith(":") else value is not None
    match operator[0][-1]:
        case "+":
            return interpolate(argument, variables, nesting + 1) if present else ""
        case "?" if not present:
            message = interpolate(argument, variables, nesting + 1)
            raise BadVariable(f"variable {name} is required{': ' + message if message else ''}")
        case "-" if not present:
            return interpolate(argument, variables, nesting + 1)
    return value or ""


def _value(name: str, variables: Mapping[str, str]) -> str:
    value = variables.get(name)
    if value is None:
        raise BadVariable(
            f"variable {name} has no value; give --var {name}=…, write a default as ${{{name}:-…}}, "
            f"or $${name} for the text itself"
        )
    return value
