"""What happened, in order: the trace of one run, its digest, and how a person reads it.

Law: an entry is made once, of virtual time and text alone, so that two runs of one seed have the same digest.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

STORY_ENTRIES = 120
ENTRIES_MAX = 400_000


class Voice(Enum):
    """Who speaks."""

    FAULT = "FAULT"
    PERSON = "PERSON"
    CLOUD = "CLOUD"
    VM = "VM"
    MONITOR = "MONITOR"
    RECORD = "RECORD"
    CHECK = "CHECK"
    TOLD = "TOLD"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Entry:
    at_seconds: float
    voice: Voice
    subject: str
    text: str

    def line(self) -> str:
        return f"{self.at_seconds:10.3f}  {self.voice.value:<8} {self.subject:<22} {self.text}"


class Trace:
    def __init__(self, now: Callable[[], float]) -> None:
        self.entries: list[Entry] = []
        self.digest = 0
        self._now = now
        self._began = now()

    def tell(self, voice: Voice, subject: str, text: str) -> None:
        entry = Entry(self._now() - self._began, voice, subject, text)
        self.digest = zlib.crc32(entry.line().encode(), self.digest)
        if len(self.entries) < ENTRIES_MAX:
            self.entries.append(entry)

    def close(self) -> None:
        """Lets go of the clock, and so of the world."""
        self._now = lambda: self._began

    def lines(self, logs: bool) -> list[str]:
        return [entry.line() for entry in self.entries if logs or entry.voice is not Voice.LOG]


@dataclass(frozen=True, slots=True)
class Violation:
    """A sentence that did not hold. `subjects`: what the story should follow."""

    at_seconds: float
    checker: str
    sentence: str
    text: str
    subjects: tuple[str, ...] = ()


def story(trace: Trace, violation: Violation, repeat_with: str) -> str:
    """The violation, what led to it, and the command that repeats it."""
    relevant = [
        entry
        for entry in trace.entries
        if entry.at_seconds <= violation.at_seconds + 1.0
        and (
            entry.voice in (Voice.FAULT, Voice.PERSON)
            or not violation.subjects
            or any(word in entry.subject or word in entry.text for word in violation.subjects)
        )
        and entry.voice is not Voice.LOG
    ]
    left_out = max(0, len(relevant) - STORY_ENTRIES)
    lines = [
        f"VIOLATED at {violation.at_seconds:.3f} s: {violation.checker}",
        f"  {violation.sentence}",
        f"  {violation.text}",
        f"The story{f' (without its first {left_out} entries)' if left_out else ''}:",
        *(entry.line() for entry in relevant[left_out:]),
        f"To repeat it: {repeat_with}",
    ]
    return "\n".join(lines)
