"""What each agent last said: the part that judging needs, and the whole of it for who asks.

Laws:
- What judging needs is always of the last heartbeat that counted. Agents that say the same share one value: a hundred
  thousand of a few thousand groups cost a few thousand.
- The whole is of the last heartbeat too, as long as there are at most WHOLE_MAX agents. With more it is kept packed,
  and is of the last heartbeat that said something new, or of one that is at most two minutes older than the last:
  figures (use of CPU, memory and disks, how long a container has run) may be that old, states may not.

Does not know: when something was said, and what follows from it.
"""

from __future__ import annotations

import zlib

import msgspec

from protocol import heartbeat as wire
from protocol.heartbeat import Glance, Heartbeat, Malformed
from protocol.ids import InstanceId

WHOLE_MAX = 10_000
REPACK_SECONDS = 120
SHARED_MAX, SHARED_MAX_BYTES = 10_000, 4096
"""Different things said that are remembered to be shared, and the longest heartbeat among them. Beyond it all are
forgotten, which costs memory and nothing else."""
PATTERNS_MAX = 10_000
"""Deployments for which a heartbeat is kept as the pattern that others of it are packed by."""
_LEVEL, _WINDOW_BITS, _MEMORY_LEVEL = 1, -12, 5


class Words(msgspec.Struct, gc=False, eq=False):
    """Of one agent. `claims`: the instance that it says it is; the very object that is known where that is the same."""

    glance: Glance | None = None  # without what differs from one heartbeat to the next, and without `claims`
    claims: str = ""
    whole: bytes = b""
    pattern: bytes | None = None  # what `whole` is packed by; None: it is not packed
    pack_at: float = 0.0  # when the whole will be too old
    beat: int = 0  # seconds by which that differs from others', so that not all are packed at once


class Archive:
    """Keeps what all agents say. One for a fleet."""

    def __init__(self) -> None:
        self._said: dict[Glance, Glance] = {}
        self._patterns: dict[str | None, bytes] = {}

    def keep(self, words: Words, glance: Glance, payload: bytes, instance: InstanceId | None, at: float,
             agents: int) -> bool:  # fmt: skip
        """Takes a heartbeat down; True when it says something that the one before did not. `agents`: how many there
        are, `instance`: the one that it is known as."""
        news = words.glance is None or _differs(words, glance)
        if news:
            self._note(words, glance, instance, len(payload))
        if agents <= WHOLE_MAX:
            words.whole = payload
            words.pattern = None
            return news
        if news or at >= words.pack_at:
            words.pack_at = at - (at + words.beat) % REPACK_SECONDS + REPACK_SECONDS
            self._pack(words, glance.deployment, payload)
        return news

    def _note(self, words: Words, glance: Glance, instance: InstanceId | None, size: int) -> None:
        extension = glance.resurgam
        if extension is not None:
            words.claims = instance if instance is not None and instance == extension.instance else extension.instance
            extension = msgspec.structs.replace(extension, sequence=0, boot_id="", sent_at_seconds=0.0, instance="")
            glance = msgspec.structs.replace(glance, resurgam=extension)
        else:
            words.claims = ""
        words.glance = self._said.get(glance)
        if words.glance is None:
            words.glance = glance
            if size <= SHARED_MAX_BYTES:
                if len(self._said) >= SHARED_MAX:
                    self._said.clear()
                self._said[glance] = glance

    def _pack(self, words: Words, deployment: str | None, payload: bytes) -> None:
        pattern = self._patterns.get(deployment)
        if pattern is None:
            if len(self._patterns) >= PATTERNS_MAX:
                self._patterns.clear()
            pattern = self._patterns[deployment] = payload
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, pattern)
        words.whole = packer.compress(payload) + packer.flush()
        words.pattern = pattern


def whole(words: Words) -> Heartbeat | None:
    """Unpacked and decoded when asked for: few ask, and the bytes are a fraction of the objects. None also when what
    nobody looked at when it came cannot be read: one agent's nonsense must not hide the others."""
    if not words.whole:
        return None
    try:
        if words.pattern is None:
            return wire.decode(words.whole)
        return wire.decode(zlib.decompressobj(_WINDOW_BITS, words.pattern).decompress(words.whole))
    except Malformed:
        return None


def _differs(words: Words, now: Glance) -> bool:
    """Whether a heartbeat says something that the one before did not; sequence and time always differ."""
    before = words.glance
    assert before is not None
    a, b = before.resurgam, now.resurgam
    if a is None or b is None:
        return a is not b or before.job_state != now.job_state or before.deployment != now.deployment
    return (
        before.job_state != now.job_state
        or a.revision != b.revision
        or a.engine is not b.engine
        or a.containers != b.containers
        or a.disks != b.disks
        or a.isolated != b.isolated
        or a.draining != b.draining
        or a.wanted != b.wanted
        or words.claims != b.instance
        or a.generation != b.generation
    )
