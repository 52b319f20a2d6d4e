"""Feeds one target: nothing crashes, hangs or grows."""

from __future__ import annotations

import gc
import resource
import signal
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

import structlog

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Feed, Target

CASES = Path(__file__).parent / "cases"
GROWTH_MAX_KIB = 64 * 1024
WARM_UP = 0.2
"""Share of the inputs after which memory is taken as the measure for the rest."""


class Hung(Exception):
    """One input took too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    inputs: int
    seconds: float
    grown_kib: int
    slowest_seconds: float


class Crash(Exception):
    def __init__(self, target: str, payload: bytes, why: BaseException) -> None:
        super().__init__(
            f"{target}: {type(why).__name__}: {str(why)[:300]}; input ({len(payload)} bytes): {payload[:200]!r}"
        )
        self.payload = payload


def run(name: str, target: Target, inputs: int, seed: int) -> Outcome:
    """Crash with the input that did it."""
    random = Random(f"{name} {seed}")
    began, warm, slowest = time.monotonic(), 0, 0.0
    with structlog.testing.capture_logs() as logged, target.feeding() as feed:
        for number in range(inputs):
            if number == int(inputs * WARM_UP):
                gc.collect()
                warm = _peak_kib()
            slowest = max(slowest, one(name, target, feed, mutated(target.seeds, random)))
            logged.clear()
    return Outcome(inputs, time.monotonic() - began, _peak_kib() - warm, slowest)


def one(name: str, target: Target, feed: Feed, payload: bytes) -> float:
    """Its processor time. The limit is in processor time too: a busy machine makes nothing hang."""
    signal.signal(signal.SIGVTALRM, _hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, target.seconds)
    began = time.process_time()
    try:
        feed(payload)
    except Exception as error:  # whatever it is that the target does not refuse with: that is what is looked for
        raise Crash(name, payload, error) from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    return time.process_time() - began


def cases(name: str) -> Iterable[Path]:
    return sorted((CASES / name).glob("*"))


def keep(name: str, payload: bytes) -> Path:
    """So that it is a case from now on."""
    (CASES / name).mkdir(parents=True, exist_ok=True)
    path = CASES / name / f"{zlib.crc32(payload):010}"
    path.write_bytes(payload)
    return path


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung("too long")


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
