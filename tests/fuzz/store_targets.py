"""What monitors keep on the bus and tell each other: records, the lease, presence, disconnects that a server reports.

Laws: a record that cannot be read is kept aside, and whatever can be read can be written again and read back as it was.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from healthmonitor.core.maintenance import WeeklyWindow
from healthmonitor.core.policy import LeadershipPolicy
from healthmonitor.core.presence import Presence, Roster
from healthmonitor.core.records import Maintenance, Silence
from healthmonitor.journal import Journal
from healthmonitor.leadership import Leadership, Lease
from healthmonitor.presence import Presences
from protocol import codec, subjects
from protocol.bus import Deleted, Entry, Extent, Message
from protocol.ids import MonitorId
from protocol.nats_bus import SystemEvents

RECORDS = Path(__file__).resolve().parents[1] / "data" / "records"
RECORD_KEY = "the.record"


class OneRecord:
    """A bucket that holds one record."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self._revision = 0

    def put(self, payload: bytes) -> None:
        self._revision += 1
        self.entry = Entry(RECORD_KEY, payload, self._revision)

    async def get(self, key: str) -> Entry | None:
        return self.entry

    async def read(self, after: int, take: Callable[[Entry | Deleted], None]) -> Extent:
        if self.entry is not None:
            take(self.entry)
        return Extent(self._revision, 1)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self.put(value)
        return self._revision


def records(*names: str) -> Callable[[], Callable[[bytes], None]]:
    """Each table of the journal with one of these names: reads the input, and writes what it read."""

    def make() -> Callable[[bytes], None]:
        journal = Journal(_NoBus(), lambda: 0.0)  # type: ignore[arg-type]  # its buckets are put in here
        tables = [table for table in journal._tables if table.name in names]
        assert len(tables) == len(names)

        buckets = []
        for table in tables:
            bucket = OneRecord()
            table.bucket = bucket  # type: ignore[assignment]  # as much of a bucket as is used
            buckets.append((table, bucket))

        def feed(payload: bytes) -> None:
            for table, bucket in buckets:
                bucket.put(payload)
                at_once(table.reload())
                value = table.values.get(RECORD_KEY)
                assert (value is None) == (RECORD_KEY in table.corrupt), "neither read nor said to be unreadable"
                if value is None:
                    continue
                at_once(table.save(RECORD_KEY, value, value))
                table._forget(RECORD_KEY)
                at_once(table.reload())
                again = table.values.get(RECORD_KEY)
                assert again is not None, table.corrupt
                # By what is written: a cloud's own properties may hold any number, NaN too, which is unlike itself.
                assert codec.to_json(again) == codec.to_json(value), "what was written is not what was read"

        return feed

    return make


def leases() -> Callable[[bytes], None]:
    """A lease that cannot be read is one that somebody holds."""
    loop = asyncio.new_event_loop()
    bucket = OneRecord()
    leadership = Leadership(_NoBus(), MonitorId("hm-1"), LeadershipPolicy(), incarnation="a")  # type: ignore[arg-type]
    leadership._bucket = bucket  # type: ignore[assignment]

    def feed(payload: bytes) -> None:
        bucket.put(payload)
        loop.run_until_complete(leadership._look())
        assert leadership.holder() is not None
        assert not loop.run_until_complete(_leads(leadership))

    return feed


async def _leads(leadership: Leadership) -> bool:
    leadership.refusal()
    return leadership.is_leader()


def presences() -> Callable[[bytes], None]:
    """Only what says whose it is, and where it came from, is taken in."""
    loop = asyncio.new_event_loop()
    roster = Roster("hm-2", "b", LeadershipPolicy())
    presences = Presences(_NoBus(), roster, _nobody, LeadershipPolicy(), lambda: None)  # type: ignore[arg-type]

    async def hear(payload: bytes) -> None:
        refused = presences.unreadable
        presences._heard(Message(subjects.monitor("hm-1"), payload))
        now = asyncio.get_running_loop().time()
        if presences.unreadable == refused:
            assert "hm-1" in {each.presence.monitor for each in roster.others(now)}

    return lambda payload: loop.run_until_complete(hear(payload))


def _nobody(leaving: bool) -> Presence:
    raise AssertionError("nothing is told here")


def disconnects() -> Callable[[bytes], None]:
    """What a nats-server says of a client that went: its name, or nothing."""
    heard: list[Callable[[Message], None]] = []

    class Bus:
        async def subscribe(self, subject: str, callback: Callable[[Message], None]) -> None:
            heard.append(callback)

    names: list[Any] = []
    at_once(SystemEvents(Bus()).on_disconnect(names.append))  # type: ignore[arg-type]

    def feed(payload: bytes) -> None:
        names.clear()
        heard[0](Message("$SYS.ACCOUNT.A.DISCONNECT", payload))
        assert all(isinstance(name, str) and name for name in names), names

    return feed


def recorded(*buckets: str) -> Sequence[bytes]:
    """Records as real monitors wrote them in simulated runs."""
    found = [path.read_bytes() for bucket in buckets for path in sorted(RECORDS.glob(f"{bucket}-*.json"))]
    assert found
    return found


SILENCE = codec.to_json(Silence("s-1", 1.7e9, 1.6e9, "anna", "a new kernel", "shop", "db", "shop/db/*", "vm_*"))
MAINTENANCE = codec.to_json(Maintenance("m-1", WeeklyWindow(6, 7200, 3600.0, "backups"), 1.6e9, "anna", 1.7e9, "ben"))
LEASE = codec.to_json(Lease("hm-2", "b", 7, "10.0.0.2:25923", 1.7e9, "hm-1 ended", "hm-1", 1, "0.1"))
PRESENCE = codec.to_json(Presence("hm-1", "a", version="0.1", address="10.0.0.1:25923", leads=True, warm=True))
DISCONNECT = json.dumps(
    {
        "type": "io.nats.server.advisory.v1.client_disconnect",
        "server": {"name": "resurgam-1", "id": "N", "seq": 42},
        "client": {"start": "2024-01-01T00:00:00Z", "host": "10.0.0.9", "id": 5, "acc": "A", "name": "agent-1"},
        "sent": {"msgs": 1, "bytes": 2},
        "reason": "Client Closed",
    }
).encode()


class _NoBus:
    """Nothing is asked of it."""


def at_once(work: Coroutine[Any, Any, Any]) -> None:
    """Runs what never waits."""
    with suppress(StopIteration):
        work.send(None)
        raise AssertionError("it waits")
