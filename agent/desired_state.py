"""What this VM should be running, kept on disk: written first, then acted upon.

Law: a change that could not be written did not happen. What was kept for another instance or generation is left
aside, as if it were not there. What a spare was told to be holds as if its settings had said so.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from agent.core import desired
from agent.core.desired import Held, Place
from agent.store import KeptDocument, Write
from protocol.ids import ContainerName, Generation, InstanceId, Revision
from protocol.spec import InstanceSpec

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The highest revision ever accepted, kept apart so that it outlives a broken specification."""

    generation: Generation = Generation(0)
    revision: Revision = Revision(0)


class DesiredState:
    def __init__(
        self,
        held: KeptDocument[Held],
        seen: KeptDocument[Seen],
        instance: InstanceId | None,
        generation: Generation,
        boot_id: str,
        write: Write = asyncio.to_thread,
        place: KeptDocument[Place] | None = None,
    ) -> None:
        """`place`: where it is kept what a spare was told to be; without it this VM is none."""
        self._settled = instance
        self._place_document = place
        self._place = place.load() if place is not None and instance is None else None
        if self._place is not None:
            instance, generation = self._place.instance, self._place.generation
        self.generation = generation
        self._instance = instance
        self._boot_id = boot_id
        self._held_document = held
        self._seen_document = seen
        self._write = write
        self._lock = asyncio.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._held = held.load() or Held()
        self._seen = seen.load() or Seen()
        if not desired.belongs(self._held, instance, generation):
            log.warning("desired.not_ours", kept=self._held.spec and self._held.spec.instance, instance=instance)
            self._held = Held()
        if self._seen.generation != generation:
            self._seen = Seen(generation)
        self._effective = desired.effective(self._held)

    @property
    def spec(self) -> InstanceSpec | None:
        """With a person's word in it."""
        return self._effective

    @property
    def instance(self) -> InstanceId | None:
        return self._held.spec.instance if self._held.spec is not None else self._instance

    @property
    def hostname(self) -> str:
        """ "" unless a spare was told one."""
        return self._place.hostname if self._place is not None else ""

    @property
    def drained(self) -> bool:
        return self._held.drained_boot == self._boot_id

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    async def become(self, wanted: Place) -> None:
        """Of a spare: which instance it is from now on. Refused, OSError."""
        async with self._lock:
            document = self._place_document
            if document is None:
                raise desired.Refused("this VM is no spare")
            place = desired.become(self._settled, self._place, wanted)
            if place != self._place:
                await self._write(lambda: document.save(place))
                self._place, self._instance, self.generation = place, place.instance, place.generation
                self._seen = Seen(place.generation)
            for callback in self._callbacks:
                callback()

    def check(self, spec: InstanceSpec) -> None:
        """Refused, where `apply` would refuse it now."""
        desired.accept(self._held, self._seen.revision, spec, self._instance, self.generation)

    async def apply(self, spec: InstanceSpec) -> None:
        """Refused, OSError."""
        async with self._lock:
            held = desired.accept(self._held, self._seen.revision, spec, self._instance, self.generation)
            seen = Seen(self.generation, spec.revision)
            if seen != self._seen:
                await self._write(lambda: self._seen_document.save(seen))
                self._seen = seen
            await self._keep(held)

    async def start(self, names: tuple[ContainerName, ...]) -> None:
        async with self._lock:
            await self._keep(desired.start(self._held, names))

    async def stop(self, names: tuple[ContainerName, ...]) -> None:
        async with self._lock:
            await self._keep(desired.stop(self._held, names))

    def restartable(self, names: tuple[ContainerName, ...]) -> tuple[ContainerName, ...]:
        return desired.restartable(self._held, names)

    async def set_drained(self, drained: bool) -> None:
        async with self._lock:
            await self._keep(dataclasses.replace(self._held, drained_boot=self._boot_id if drained else ""))

    async def _keep(self, held: Held) -> None:
        if held != self._held:
            await self._write(lambda: self._held_document.save(held))
            self._held = held
            self._effective = desired.effective(held)
        for callback in self._callbacks:
            callback()
