"""Inputs from seeds: real messages and files, damaged a little or a lot. The same random gives the same inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

INPUT_MAX_BYTES = 20_000
TOKENS: Sequence[bytes] = (
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800",
    b"\xe2\x80\xae", b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"18446744073709551616",
    b"9" * 400, b"1.5e-400", b"[" * 2000, b'{"a":' * 500, b"A" * 5000, b"\r\n", b"\n  - ", b": ", b"&a ", b"*a",
    b"<<: *a", b"!!python/object:os", b"? ", b"|\n", b"---\n", b"%YAML 9.9\n", b"${X}", b"${X:-", b"../../etc/passwd",
    b"\xc2\x85", b"\t", b"#", b"'",
)  # fmt: skip
VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1.5, -0.0, 1e308, "", " ", "\u0000", "\u202e",
    "x" * 3000, "\ud800", "a/b/c", "shop/db/0", "-", ".", "*", ">", [], {}, [[]], [None], {"": None}, [{}] * 50,
    "1e999", "10s", "1GiB",
)  # fmt: skip


def mutated(seeds: Sequence[bytes], random: Random) -> bytes:
    """One input, mostly made of a seed."""
    base = random.choice(seeds)
    if random.random() < 0.4:
        base = _as_json(base, random)
    for _ in range(random.choice((0, 1, 1, 1, 2, 4, 8))):
        base = _damaged(base, seeds, random)
    return base[:INPUT_MAX_BYTES]


def _damaged(text: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    at, to = sorted(random.randrange(len(text) + 1) for _ in range(2))
    to = min(to, at + random.choice((1, 1, 4, 40, 400)))
    match random.randrange(8):
        case 0:
            return text[:at] + text[to:]
        case 1:
            return text[:to] + text[at:to] * random.choice((1, 2, 50)) + text[to:]
        case 2:
            return text[:at] + random.choice(TOKENS) + text[at:]
        case 3:
            return text[:at] + random.choice(TOKENS) + text[to:]
        case 4:
            return text[:at] + bytes(random.randrange(256) for _ in range(to - at)) + text[to:]
        case 5:
            other = random.choice(seeds)
            return text[:at] + other[random.randrange(len(other) + 1) :]
        case 6:
            lines = text.split(b"\n")
            line = lines.pop(random.randrange(len(lines)))
            lines.insert(random.randrange(len(lines) + 1), random.choice((b"", b"  ", b" - ")) + line)
            return b"\n".join(lines)
        case _:
            flip = bytearray(text)
            if flip:
                flip[at % len(flip)] ^= 1 << random.randrange(8)
            return bytes(flip)


def _as_json(text: bytes, random: Random) -> bytes:
    """With other values, fewer or other keys; what is no JSON stays as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    for _ in range(random.randint(1, 3)):
        value = _other(value, random, 0)
    return json.dumps(value).encode()


def _other(value: Any, random: Random, depth: int) -> Any:
    if not isinstance(value, (dict, list)) or not value or depth > 6 or random.random() < 0.1:
        return random.choice(VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        kept = [*value]
        kept[place] = _other(kept[place], random, depth + 1)
        return kept * random.choice((1, 1, 1, 3))
    key = random.choice([*value])
    changed = dict(value)
    match random.randrange(4):
        case 0:
            del changed[key]
        case 1:
            changed[random.choice((key.upper(), key + "x", "", "\u0000", key * 100))] = changed.pop(key)
        case _:
            changed[key] = _other(value[key], random, depth + 1)
    return changed
