"""The data of the demonstration: written into Redis, read back, compared by checksum."""

from __future__ import annotations

import hashlib
import secrets

from healthmonitor.cli.redis_wire import Redis, RedisRefused

KEYS = 500
VALUE_BYTES = 512
TIMEOUT_SECONDS = 10.0
PREFIX = "demo:"


class DemoFailed(Exception):
    """Something that had to hold did not; the text says what."""


class DemoData:
    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._written: dict[str, bytes] = {}
        self._later: dict[str, bytes] = {}

    @property
    def count(self) -> int:
        return len(self._written)

    def write(self) -> str:
        """Random values, each acknowledged by Redis before the next; the checksum over all of them."""
        made = {f"{PREFIX}{number:04d}": secrets.token_hex(VALUE_BYTES // 2).encode() for number in range(KEYS)}
        with self._open() as redis:
            for key, value in made.items():
                if redis.call("SET", key, value) != b"OK":
                    raise DemoFailed(f"Redis did not take {key}")
        self._written = made
        return checksum(made)

    def write_more(self, text: str) -> None:
        """One more value, that must survive from here on."""
        with self._open() as redis:
            redis.call("SET", f"later:{len(self._later)}", text)
        self._later[f"later:{len(self._later)}"] = text.encode()

    def check(self, when: str) -> str:
        """Reads everything back; the checksum of what was read. DemoFailed when anything differs."""
        with self._open() as redis:
            found = {key: redis.call("GET", key) for key in (*self._written, *self._later)}
        wrong = [key for key, value in {**self._written, **self._later}.items() if found[key] != value]
        if wrong:
            raise DemoFailed(f"{when}: {len(wrong)} of {len(found)} keys are lost or differ, the first is {wrong[0]}")
        return checksum(
            {key: value for key, value in found.items() if isinstance(value, bytes) and key in self._written}
        )

    def end_redis(self) -> str:
        """Makes the server's process exit at once, without saving and without waiting for anybody; how. A real crash
        (DEBUG SEGFAULT) is not to be had: Redis allows it to nobody from outside, and rightly."""
        with self._open() as redis:
            try:
                redis.call("SHUTDOWN", "NOSAVE", "NOW", "FORCE")
            except OSError:
                return "SHUTDOWN NOSAVE NOW FORCE"
        raise DemoFailed("Redis survived SHUTDOWN")

    def answers(self) -> bool:
        try:
            with self._open() as redis:
                return redis.call("PING") == b"PONG"
        except (OSError, RedisRefused):
            return False

    def _open(self) -> Redis:
        return Redis(*self._address, TIMEOUT_SECONDS)


def checksum(values: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for key in sorted(values):
        digest.update(key.encode() + b"\0" + values[key] + b"\0")
    return digest.hexdigest()
