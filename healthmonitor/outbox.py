"""The outbox: notifications written down before they are sent, until every channel's receiver has taken them.

Laws:
- A letter is one entry for all its channels, and carries its thread as it is with it: one write makes both durable.
- It is removed when its last channel is done; for the others a mark is written, removed after it.
- What cannot be read is named, kept, and in nobody's way.

Two queues of the bus: `outbox` (letters and marks) and `threads` (the newest version of each thread; a former one is
removed when the next is written).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import structlog

from healthmonitor.core.notifying.notification import Notification
from healthmonitor.core.notifying.thread import Thread
from protocol import codec
from protocol.bus import Bus, BusUnavailable, Queue

log = structlog.get_logger("outbox")

OUTBOX = "outbox"
THREADS = "threads"
LETTER_MAX_BYTES = 900_000
"""NATS takes messages of 1 MB."""
THREADS_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Paper:
    """An entry of the queue: a letter (`notification` is given), or the mark that one of its channels is done."""

    notification: Notification | None = None
    channels: tuple[str, ...] = ()
    thread: Thread | None = None
    done_id: str = ""
    done_channel: str = ""


@dataclass(slots=True)
class Letter:
    """A notification on its way. `sequence` 0: only in memory, because the bus is gone."""

    notification: Notification
    channels: tuple[str, ...]
    sequence: int = 0
    thread: Thread | None = None
    done: set[str] = field(default_factory=set)
    marks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contents:
    letters: list[Letter]
    threads: dict[str, Thread]


class Outbox:
    def __init__(self, bus: Bus, max_bytes: int) -> None:
        self._bus = bus
        self._max_bytes = max_bytes
        self._letters: Queue | None = None
        self._threads: Queue | None = None
        self._versions: dict[str, tuple[int, int]] = {}  # thread → its number and sequence in the queue
        self.unreadable: dict[int, str] = {}

    async def load(self) -> Contents:
        """Everything that is there, read anew; called when leadership is gained."""
        self._letters = await self._bus.queue(OUTBOX, self._max_bytes)
        self._threads = await self._bus.queue(THREADS, THREADS_MAX_BYTES)
        self._versions.clear()
        threads: dict[str, Thread] = {}
        for entry in await self._threads.entries():
            try:
                thread = codec.from_json(Thread, entry.payload)
            except codec.Invalid as error:
                self._note_unreadable(THREADS, entry.sequence, str(error))
                continue
            former = self._versions.get(thread.id)
            if former is not None:
                await self._threads.remove(former[1])
            threads[thread.id] = thread
            self._versions[thread.id] = (thread.number, entry.sequence)
        letters: dict[str, Letter] = {}
        orphans: list[int] = []
        for entry in await self._letters.entries():
            try:
                paper = codec.from_json(Paper, entry.payload)
            except codec.Invalid as error:
                self._note_unreadable(OUTBOX, entry.sequence, str(error))
                continue
            if paper.notification is not None and paper.notification.id in letters:
                orphans.append(entry.sequence)  # put twice: its first answer was lost for long
            elif paper.notification is not None:
                letters[paper.notification.id] = Letter(
                    paper.notification, paper.channels, entry.sequence, paper.thread
                )
            elif paper.done_id in letters:
                letters[paper.done_id].done.add(paper.done_channel)
                letters[paper.done_id].marks.append(entry.sequence)
            else:
                orphans.append(entry.sequence)  # its letter is gone already
        for sequence in orphans:
            await self._letters.remove(sequence)
        for letter in [each for each in letters.values() if _is_done(each)]:
            await self._remove(letter)  # its last channel was done, and the monitor ended before this
            if letter.thread is not None and _is_newer(letter.thread, threads.get(letter.thread.id)):
                threads[letter.thread.id] = letter.thread
            del letters[letter.notification.id]
        for letter in letters.values():
            if letter.thread is not None and _is_newer(letter.thread, threads.get(letter.thread.id)):
                threads[letter.thread.id] = letter.thread
        return Contents(list(letters.values()), threads)

    async def put(self, notification: Notification, channels: Iterable[str], thread: Thread | None) -> Letter:
        """Durable when it returns. May be repeated after BusUnavailable: it is stored once."""
        paper = _fitting(Paper(notification, tuple(channels), thread))
        assert paper.notification is not None
        sequence = await _opened(self._letters).put(codec.to_json(paper), notification.id)
        return Letter(paper.notification, paper.channels, sequence, thread)

    async def done(self, letter: Letter, channel: str) -> None:
        """The channel's receiver has it, or never will. May be repeated after BusUnavailable."""
        if not letter.sequence:
            return
        letter.done.add(channel)  # at once: channels that are done in the same moment must see each other
        if _is_done(letter):
            await self._remove(letter)
            return
        queue = _opened(self._letters)
        mark = Paper(done_id=letter.notification.id, done_channel=channel)
        letter.marks.append(await queue.put(codec.to_json(mark), f"{letter.notification.id}/{channel}"))
        if _is_done(letter):  # the last one was, while the mark was on its way
            await self._remove(letter)

    async def _remove(self, letter: Letter) -> None:
        queue = _opened(self._letters)
        if letter.thread is not None:
            await self.save(letter.thread)
        await queue.remove(letter.sequence)
        for sequence in list(letter.marks):
            await queue.remove(sequence)

    async def save(self, thread: Thread) -> None:
        """The thread's newest version; an older one than is there is passed over."""
        former = self._versions.get(thread.id)
        if former is not None and former[0] >= thread.number:
            return
        queue = _opened(self._threads)
        sequence = await queue.put(codec.to_json(thread), f"{thread.id}/{thread.number}")
        self._versions[thread.id] = (thread.number, sequence)
        if former is not None:
            await queue.remove(former[1])

    async def forget(self, thread_id: str) -> None:
        former = self._versions.get(thread_id)
        if former is not None:
            await _opened(self._threads).remove(former[1])
            self._versions.pop(thread_id, None)

    def _note_unreadable(self, queue: str, sequence: int, problem: str) -> None:
        self.unreadable[sequence] = problem
        log.error("outbox.unreadable", queue=queue, sequence=sequence, problem=problem, next="it is kept as it is")


def _is_done(letter: Letter) -> bool:
    return letter.done >= set(letter.channels)


def _is_newer(thread: Thread, than: Thread | None) -> bool:
    return than is None or thread.number > than.number


def _fitting(paper: Paper) -> Paper:
    """With fewer items when it would be too large for one message; those left out are counted."""
    while True:
        notification = paper.notification
        if notification is None or len(notification.items) <= 1 or len(codec.to_json(paper)) <= LETTER_MAX_BYTES:
            return paper
        kept = len(notification.items) // 2
        left_out = notification.left_out + len(notification.items) - kept
        paper = replace(paper, notification=replace(notification, items=notification.items[:kept], left_out=left_out))


def _opened(queue: Queue | None) -> Queue:
    if queue is None:
        raise BusUnavailable("the outbox is not open yet")
    return queue
