"""YAML text to nodes that know their line and column, and the errors that name them.

Law: text in, a Node or ManifestErrors out, whatever the text; nothing else is raised. Size, depth and the number of
nodes (aliases counted as often as they are used) have limits, so no text takes more than a moment or a few megabytes.

Scalars follow YAML 1.2 as Compose reads it: only `true` and `false` are booleans, and `22:22` is text, not the
number 1342 that YAML 1.1 makes of it (the best known accident with `ports`).

Does not know: manifests, configurations. The readers of typed values are in `yaml_places.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import yaml

from healthmonitor.core.interpolation import BadVariable, interpolate

TEXT_MAX_BYTES = 1024 * 1024
DEPTH_MAX = 40
NODES_MAX = 100_000
KEY_MAX_CHARACTERS = 200
MESSAGE_MAX_CHARACTERS = 500
ERRORS_MAX = 300
"""Reading ends there: finding the nearest known word for each of a hundred thousand keys would take minutes."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, order=True)
class ManifestError:
    """One thing that is wrong. `path` is where in the structure (`instance_groups.db.vm.memory`)."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return f"{where}{self.path}: {self.message}" if self.path else where + self.message


class ManifestErrors(Exception):
    """Everything that is wrong with a text; its author's fault. `str` is one line per error, sorted by line."""

    def __init__(self, errors: Iterable[ManifestError]) -> None:
        self.errors = tuple(
            sorted(set(errors), key=lambda error: (error.file, error.line, error.column, error.message))
        )
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


@dataclass(frozen=True, slots=True)
class Node:
    """`value`: a scalar, a tuple of nodes, or a mapping of key to Member. `text`: how a scalar was written."""

    line: int
    column: int
    value: Scalar | tuple[Node, ...] | Mapping[str, Member]
    text: str = ""
    plain: bool = True  # not in quotes
    size: int = 1  # nodes in this subtree, aliases counted in full


@dataclass(frozen=True, slots=True)
class Member:
    line: int  # of the key
    column: int
    node: Node


@dataclass(slots=True)
class Report:
    """Errors of one text, collected while it is read."""

    file: str
    errors: list[ManifestError] = field(default_factory=list)

    def add(self, line: int, column: int, path: str, message: str, file: str = "") -> None:
        """Raises ManifestErrors when there are so many that it is not worth reading on."""
        if len(message) > MESSAGE_MAX_CHARACTERS:
            half = MESSAGE_MAX_CHARACTERS // 2
            message = f"{message[:half]} … {message[-half:]}"
        self.errors.append(ManifestError(file or self.file, line, column, path, message))
        if len(self.errors) >= ERRORS_MAX:
            last = ManifestError(self.file, line, column, "", f"reading ended here, after {ERRORS_MAX} errors")
            raise ManifestErrors([*self.errors, last])

    def raise_if_any(self) -> None:
        if self.errors:
            raise ManifestErrors(self.errors)


def read_yaml(text: str | bytes, report: Report, variables: Mapping[str, str] | None = None) -> Node:
    """The one document in `text`. Adds to the report what does not stop reading (duplicate keys, undefined
    variables); raises ManifestErrors with everything so far for what does. `variables` None: `$` has no meaning."""
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        size = len(decoded.encode())
    except UnicodeError as error:
        report.add(1, 1, "", f"not UTF-8 text ({error.reason if isinstance(error, UnicodeDecodeError) else error})")
        raise ManifestErrors(report.errors) from None
    if size > TEXT_MAX_BYTES:
        report.add(1, 1, "", f"{size} bytes; at most {TEXT_MAX_BYTES} are read: is this the right file?")
        raise ManifestErrors(report.errors)
    try:
        return _Composer(decoded, report, variables).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        report.add(line, column, "", f"not YAML: {_syntax_message(error, decoded, line)}")
    except yaml.YAMLError as error:
        report.add(_line_of_unreadable(error, decoded), 1, "", "not YAML: " + " ".join(str(error).split())[:200])
    except _Refused as error:
        report.add(error.line, error.column, "", str(error))
    raise ManifestErrors(report.errors)


class _Refused(Exception):
    def __init__(self, event: yaml.Event, message: str) -> None:
        super().__init__(message)
        self.line, self.column = _at(event)


class _Composer:
    """Builds nodes from PyYAML's events: its parser keeps a stack of its own, so depth costs no recursion before
    the limit is seen, and aliases are resolved here, where they are counted."""

    def __init__(self, text: str, report: Report, variables: Mapping[str, str] | None) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._report = report
        self._variables = variables
        self._anchors: dict[str, Node] = {}
        self._nodes = 0

    def document(self) -> Node:
        next(self._events)  # stream start
        first = next(self._events)
        if isinstance(first, yaml.StreamEndEvent):
            self._report.add(1, 1, "", "the file is empty")
            raise ManifestErrors(self._report.errors)
        root = self._node(next(self._events), 0)
        next(self._events)  # document end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _Refused(after, "a second document begins here; expected one document in a file")
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise _Refused(event, f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor or "")
            if known is None:
                raise _Refused(event, f"alias *{event.anchor} names no anchor that is complete before it")
            self._count(known.size, event)
            return known
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            node = Node(*_at(event), tuple(items), size=1 + sum(item.size for item in items))
        else:
            node = self._mapping(event, depth)
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _count(self, nodes: int, event: yaml.Event) -> None:
        self._nodes += nodes
        if self._nodes > NODES_MAX:
            raise _Refused(event, f"more than {NODES_MAX} values once aliases are written out")

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        line, column = _at(event)
        text, plain = event.value, event.style is None or event.style == ""
        if event.tag not in (None, "!", _STR, _INT, _FLOAT, _BOOL, _NULL):
            self._report.add(line, column, "", f"tag {event.tag} is not supported; write the value itself")
        if event.tag in ("!", _STR):
            plain = False
        if self._variables is not None and "$" in text:
            try:
                text = interpolate(text, self._variables)
            except BadVariable as error:
                self._report.add(line, column, "", str(error))
            else:
                # As in Compose, the type is decided by what the variable held: "${COUNT}" may be a number.
                return Node(
                    line, column, text if not plain else resolve(text), text, plain=plain or text != event.value
                )
        return Node(line, column, resolve(text) if plain else text, text, plain)

    def _mapping(self, event: yaml.Event, depth: int) -> Node:
        members: dict[str, Member] = {}
        merged: list[tuple[Node, yaml.Event]] = []
        size = 1
        while not isinstance(key_event := next(self._events), yaml.MappingEndEvent):
            key = self._key(key_event, depth)
            value = self._node(next(self._events), depth + 1)
            size += value.size + 1
            if key is None:
                continue
            line, column = _at(key_event)
            if key == "<<" and getattr(key_event, "style", None) in (None, ""):
                merged.append((value, key_event))
            elif key in members:
                first = members[key].line
                self._report.add(line, column, "", f"{key!r} stands here a second time (first in line {first})")
            else:
                members[key] = Member(line, column, value)
        for value, merge_key in merged:
            self._merge(members, value, merge_key)
        return Node(*_at(event), members, size=size)

    def _key(self, event: yaml.Event, depth: int) -> str | None:
        node = self._node(event, depth + 1)
        if isinstance(node.value, (tuple, Mapping)):
            self._report.add(*_at(event), "", "a list or mapping as a key; expected a name")
            return None
        if node.value is None:
            self._report.add(*_at(event), "", "an empty key; expected a name")
            return None
        if len(node.text) > KEY_MAX_CHARACTERS:
            self._report.add(*_at(event), "", f"a key of {len(node.text)} characters; at most {KEY_MAX_CHARACTERS}")
            return None
        return node.text

    def _merge(self, members: dict[str, Member], value: Node, merge_key: yaml.Event) -> None:
        """`<<`: what is written here wins over what is merged, the first of a list over the later ones."""
        sources = value.value if isinstance(value.value, tuple) else (value,)
        for source in sources:
            if isinstance(source.value, Mapping):
                for key, member in source.value.items():
                    members.setdefault(key, member)
            else:
                self._report.add(*_at(merge_key), "", "<< takes a mapping (*alias) or a list of them")


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STR, _INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}")
_DECIMAL = re.compile(r"[-+]?(\d{1,18}\.\d{0,18}|\.\d{1,18}|\d{1,18})([eE][-+]?\d{1,2})?")


def resolve(text: str) -> Scalar:
    """The value of a scalar without quotes, after YAML 1.2's core schema (without NaN and infinity: no use here)."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    if _DECIMAL.fullmatch(text) and not text.lstrip("+-").startswith("00") and any(c in text for c in ".eE"):
        return float(text)
    return text


def _at(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.splitlines()
    if 0 < line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
        return "a tab in the indentation; YAML is indented with spaces only"
    problem = error.problem or "unreadable"
    context = f" {error.context}" if error.context else ""
    return f"{problem}{context}; check indentation, colons and quotes here and in the line before"


def _line_of_unreadable(error: yaml.YAMLError, text: str) -> int:
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
