"""A bounded rate: tokens come at a steady rate up to a burst, and whoever takes more than there are waits.

Law: over any time t no more than burst + rate x t is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST_SECONDS = 0.25
"""What may be taken at once, as time at the full rate."""


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """`level` tokens at `at` seconds; less than none: they are owed."""

    level: float = 0.0
    at: float = 0.0


def take(bucket: TokenBucket, count: int, now: float, rate_per_second: float) -> tuple[TokenBucket, float]:
    """The bucket after `count` were taken, and how many seconds to wait before the next are."""
    burst = rate_per_second * BURST_SECONDS
    level = min(burst, bucket.level + max(0.0, now - bucket.at) * rate_per_second) - count
    return TokenBucket(level, now), max(0.0, -level / rate_per_second)
