"""How long to wait before the next start, and when failing counts as a crash loop.

Law: the first restart after a good run is immediate; after that the gap doubles up to the longest, and never ends:
nothing is given up. A good run forgets everything before it.

Does not know: why something failed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Gap before restart n in a row: 0 for n = 1, else first x 2^(n-2), at most the longest."""

    first_seconds: float = 0.5
    longest_seconds: float = 60.0
    good_run_seconds: float = 60.0
    """A run this long makes the next failure the first again."""
    crash_loop_failures: int = 5
    """This many failures in a row are a crash loop. With the gaps above: within about 4 s of fast crashes."""
    unknown_seconds: float = 1.0
    """After an action whose outcome is unknown. It is no failure, and grows nothing: within this time looks tell what
    came of it, and what they show decides."""
    orphan_seconds: float = 10.0
    """After a stranger with our label could not be stopped or removed."""


@dataclass(frozen=True, slots=True)
class Backoff:
    failures: int = 0  # in a row
    not_before: float = 0.0  # loop seconds; no start before


def after_end(backoff: Backoff, now: float, ran_seconds: float, policy: BackoffPolicy) -> Backoff:
    """A run of `ran_seconds` ended by its own fault."""
    failures = 1 if ran_seconds >= policy.good_run_seconds else backoff.failures + 1
    return Backoff(failures, now + gap_seconds(failures, policy))


def after_refusal(backoff: Backoff, now: float, policy: BackoffPolicy) -> Backoff:
    """The engine said no. It would say so again at once, so there is a gap even before the first retry."""
    failures = backoff.failures + 1
    return Backoff(failures, now + gap_seconds(failures + 1, policy))


def after_good_run(backoff: Backoff, ran_seconds: float, policy: BackoffPolicy) -> Backoff:
    """Forgets the past once the present run is a good one."""
    return Backoff() if ran_seconds >= policy.good_run_seconds else backoff


def is_crash_loop(backoff: Backoff, policy: BackoffPolicy) -> bool:
    return backoff.failures >= policy.crash_loop_failures


def gap_seconds(failures: int, policy: BackoffPolicy) -> float:
    if failures <= 1:
        return 0.0
    doublings = min(failures - 2, 32)  # 2^32 x any first is beyond any longest, and stays a float
    return min(policy.first_seconds * float(2**doublings), policy.longest_seconds)
