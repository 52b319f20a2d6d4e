"""Clocks that are wrong: they jump, and they run too fast or too slow.

Law: a clock shows true time plus what befell it; setting it right takes away the jumps, slowing it down does not.

Does not know: whose clock it is.
"""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    def __init__(self, true: Callable[[], float]) -> None:
        self._true = true
        self._ahead = 0.0
        self._rate = 0.0
        self._since = true()

    def show(self) -> float:
        true = self._true()
        return true + self._ahead + (true - self._since) * self._rate

    def jump(self, seconds: float) -> None:
        """Somebody sets it, or a time server does."""
        self._ahead += seconds

    def drift(self, rate: float) -> None:
        """From now on it gains so many seconds per second; what it has gained stays."""
        true = self._true()
        self._ahead, self._since, self._rate = self.show() - true, true, rate

    def set_right(self) -> None:
        self._ahead, self._rate, self._since = 0.0, 0.0, self._true()
