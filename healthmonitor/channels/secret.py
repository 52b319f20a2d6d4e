"""A secret in memory. Law: only `reveal` shows it; neither repr nor format nor a log line does."""

from __future__ import annotations

from collections.abc import Iterable

HIDDEN = "[secret]"
SHORTEST_HIDDEN = 4
"""Hiding every "a" of a text would hide nothing and spoil the text."""


class Secret:
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__


def hide(text: str, secrets: Iterable[Secret]) -> str:
    """`text`, such as a server's reply that repeats what it was sent, without the secrets."""
    for revealed in sorted({each.reveal() for each in secrets}, key=len, reverse=True):
        if len(revealed) >= SHORTEST_HIDDEN:
            text = text.replace(revealed, HIDDEN)
    return text
