"""Sentences for people that count (how long, how many): whether one says something else than another.

Law: only numbers may differ between two that say the same.
"""

from __future__ import annotations

_NUMBERS = str.maketrans("", "", "0123456789.")


def without_numbers(reason: str) -> str:
    """Equal for two that differ in nothing but numbers: that is no news, and need not be written down each second."""
    return reason.translate(_NUMBERS)
