"""A node with its path and the report it complains to: typed readers for everything the YAML files hold.

Law: a reader never raises (but to end reading when the report is full). It returns the value, or reports where and
what was expected and returns a harmless stand-in, so that one pass finds every error. Whoever builds values calls
`report.raise_if_any()` before using them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from healthmonitor.core import units
from healthmonitor.core.located_yaml import Member, Node, Report, resolve
from protocol.ids import is_name

E = TypeVar("E", bound=Enum)
V = TypeVar("V", int, float)


@dataclass(frozen=True, slots=True)
class Place:
    node: Node
    path: str
    report: Report
    key_line: int = 0  # of the key that leads here; 0 for items of lists
    key_column: int = 0

    def error(self, message: str) -> None:
        self.report.add(self.node.line, self.node.column, self.path, message)

    def key_error(self, message: str) -> None:
        """As `error`, but at the key rather than at its value."""
        self.report.add(self.key_line or self.node.line, self.key_column or self.node.column, self.path, message)

    def wrong(self, expected: str) -> None:
        self.error(f"expected {expected}, found {self.found()}")

    def found(self) -> str:
        value = self.node.value
        if isinstance(value, tuple):
            return "a list"
        if isinstance(value, Mapping):
            return "a mapping"
        if value is None:
            return "nothing"
        text = self.node.text if len(self.node.text) <= 60 else self.node.text[:57] + "..."
        if isinstance(value, str):
            return repr(text)
        return f"{'the boolean' if isinstance(value, bool) else 'the number'} {text}"

    @property
    def is_null(self) -> bool:
        return self.node.value is None

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node.value, Mapping)

    @property
    def is_list(self) -> bool:
        return isinstance(self.node.value, tuple)

    @property
    def is_text(self) -> bool:
        return isinstance(self.node.value, str)

    # -- structure

    def items(self, expected: str = "a list") -> list[Place]:
        if not isinstance(self.node.value, tuple):
            self.wrong(expected)
            return []
        return [Place(item, f"{self.path}[{index}]", self.report) for index, item in enumerate(self.node.value)]

    def members(self, expected: str = "a mapping") -> dict[str, Place]:
        if not isinstance(self.node.value, Mapping):
            self.wrong(expected)
            return {}
        return {key: self._inner(key, member) for key, member in self.node.value.items()}

    def fields(
        self,
        known: Iterable[str],
        refused: Mapping[str, str] | None = None,
        expected: str = "a mapping",
        extensions: bool = False,
    ) -> dict[str, Place]:
        """The members whose keys are known. An unknown key is an error that names the nearest known one, a refused
        one an error with its reason; with `extensions`, keys that begin with `x-` are passed over as in Compose."""
        names = list(known)
        found: dict[str, Place] = {}
        for key, place in self.members(expected).items():
            if key in names:
                found[key] = place
            elif extensions and key.startswith("x-"):
                continue
            elif refused is not None and key in refused:
                place.key_error(f"not a key here; {refused[key]}")
            else:
                place.key_error(unknown("key", key, names))
        return found

    def _inner(self, key: str, member: Member) -> Place:
        path = f"{self.path}.{key}" if self.path else key
        return Place(member.node, path, self.report, member.line, member.column)

    # -- scalars

    def text(self, expected: str = "text", default: str = "") -> str:
        """Text that is not empty; a number is text too, as it was written (`user: 1000`)."""
        value = self.node.value
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and self.node.text:
            if "\x00" in self.node.text:
                self.error("text with a NUL character, which no process can be given")
                return default
            return self.node.text
        self.wrong(expected + (" (in quotes if the word itself is meant)" if isinstance(value, bool) else ""))
        return default

    def name(self, what: str) -> str:
        text = self.text(what)
        if text and not is_name(text):
            self.error(
                f"{text!r} is no {what}; expected 1 to 63 of a-z, 0-9, - and _, with a letter or digit at each end"
            )
        return text

    def boolean(self, default: bool = False) -> bool:
        value = self.node.value
        if isinstance(value, bool):
            return value
        if self.node.plain and self.node.text.lower() in ("yes", "on", "true"):
            return True
        if self.node.plain and self.node.text.lower() in ("no", "off", "false"):
            return False
        self.wrong("true or false")
        return default

    def integer(self, minimum: int, maximum: int, expected: str = "", default: int | None = None) -> int:
        value = self._number()
        fallback = minimum if default is None else default
        if not isinstance(value, int):
            self.wrong(expected or f"a whole number, {minimum} to {maximum}")
            return fallback
        return self._between(value, minimum, maximum, fallback)

    def decimal(self, minimum: float, maximum: float, expected: str = "", default: float | None = None) -> float:
        value = self._number(also_quoted=True)
        fallback = minimum if default is None else default
        if value is None:
            self.wrong(expected or f"a number, {minimum:g} to {maximum:g}")
            return fallback
        return self._between(float(value), minimum, maximum, fallback)

    def duration(self, minimum: float = 0.0, maximum: float = 366 * 86400.0, default: float | None = None) -> float:
        return self._in_unit(
            units.duration_seconds, units.duration_text, "a duration such as 5s", minimum, maximum, default
        )

    def size_mib(self, minimum: int, maximum: int, default: int | None = None) -> int:
        return self._in_unit(units.size_mib, units.size_text, "a size such as 512MiB", minimum, maximum, default)

    def share(self, default: float = 1.0) -> float:
        return self._in_unit(units.share, lambda value: f"{value:.0%}", "a share such as 30%", 0.0, 1.0, default)

    def choice(self, kind: type[E], default: E) -> E:
        return kind(self.one_of([member.value for member in kind], default.value))

    def one_of(self, words: Iterable[str], default: str) -> str:
        known = list(words)
        text = self.node.text if not isinstance(self.node.value, (tuple, Mapping)) else ""
        if text in known:
            return text
        near = nearest(text, known)
        self.wrong(f"one of {', '.join(known)}" + (f" (did you mean {near}?)" if near else ""))
        return default

    # -- lists and mappings of scalars

    def texts(self, expected: str = "a list of texts") -> tuple[str, ...]:
        return tuple(text for item in self.items(expected) if (text := item.text()))

    def text_or_texts(self, expected: str = "text or a list of texts") -> tuple[str, ...]:
        if self.is_list:
            return self.texts()
        text = self.text(expected)
        return (text,) if text else ()

    def pairs(self, separator: str, expected: str, bare: bool = False) -> dict[str, str]:
        """`{a: 1}` or `["a=1"]`, the two ways that Compose has for labels and the like. `bare`: a key alone has the
        value ""."""
        pairs: dict[str, str] = {}
        if self.is_mapping:
            for key, place in self.members().items():
                pairs[key] = "" if place.is_null and bare else (self._empty_or_text(place))
            return pairs
        for item in self.items(f"a mapping, or {expected}"):
            text = item.text(f'text such as "name{separator}value"')
            key, found, value = text.partition(separator)
            if not text:
                continue
            if not key or (not found and not bare):
                item.wrong(f'"name{separator}value"')
            elif key in pairs:
                item.error(f"{key} stands here a second time")
            else:
                pairs[key] = value
        return pairs

    @staticmethod
    def _empty_or_text(place: Place) -> str:
        return "" if place.node.value == "" and place.is_text else place.text()

    def plain(self) -> Any:
        """The whole subtree as dict, list and scalars, for what is passed through to somebody else."""
        value = self.node.value
        if isinstance(value, tuple):
            return [item.plain() for item in self.items()]
        if isinstance(value, Mapping):
            return {key: place.plain() for key, place in self.members().items()}
        return value

    # -- below

    def _number(self, also_quoted: bool = False) -> int | float | None:
        value = self.node.value
        if isinstance(value, str) and (self.node.plain or also_quoted):
            value = resolve(value)  # a variable's value
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def _between(self, value: V, minimum: V, maximum: V, default: V) -> V:
        if minimum <= value <= maximum:
            return value
        self.error(f"{value:g} is out of range; expected {minimum:g} to {maximum:g}")
        return default

    def _in_unit(
        self,
        parse: Callable[[str], V],
        show: Callable[[V], str],
        expected: str,
        minimum: V,
        maximum: V,
        default: V | None,
    ) -> V:
        fallback = minimum if default is None else default
        if not isinstance(self.node.value, (str, int, float)) or isinstance(self.node.value, bool):
            self.wrong(expected)
            return fallback
        try:
            value = parse(self.node.text)
        except ValueError as error:
            self.error(str(error))
            return fallback
        if not minimum <= value <= maximum:
            self.error(f"{self.node.text} is out of range; expected {show(minimum)} to {show(maximum)}")
            return fallback
        return value


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that `word` may have been meant for, or ""."""
    names = list(known)
    lowered = {name.lower().replace("-", "_"): name for name in names}
    exact = lowered.get(word.lower().replace("-", "_"))
    if exact is not None:
        return exact
    close = difflib.get_close_matches(word[:80], names, n=1, cutoff=0.6)
    return close[0] if close else ""


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """`unknown key 'imge'; did you mean image?`, or the known ones when none is near."""
    names = list(known)
    near = nearest(word, names)
    if near:
        return f"unknown {what} {word[:60]!r}; did you mean {near}?"
    listed = ", ".join(names) if names else "none"
    return f"unknown {what} {word[:60]!r}; known here: {listed}"


def each_duplicate(places: Iterable[tuple[str, Place]]) -> Iterator[tuple[str, Place, Place]]:
    """(key, first place, later place) for every key that comes again."""
    seen: dict[str, Place] = {}
    for key, place in places:
        if key in seen:
            yield key, seen[key], place
        else:
            seen[key] = place
