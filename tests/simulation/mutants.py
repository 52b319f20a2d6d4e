"""Our own rules, broken one at a time, to show that the checkers would find it.

Law: a mutant is a patch of the real code for the length of one run, and is undone whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from healthmonitor.core import fleet as fleet_module
from healthmonitor.core import liveness
from healthmonitor.core.hearing import OwnHearing
from healthmonitor.core.liveness import Heard, Hearing
from healthmonitor.core.operation import Done, Outcome
from healthmonitor.core.records import Step
from healthmonitor.steps import taking
from healthmonitor.steps.context import StepContext


@contextlib.contextmanager
def mutated(name: str) -> Iterator[None]:
    """Runs what is inside with the mutant of that name; "" changes nothing."""
    with contextlib.ExitStack() as stack:
        if name:
            stack.enter_context(MUTANTS[name]())
        yield


@contextlib.contextmanager
def _fence_skipped() -> Iterator[None]:
    """FENCE says done without asking the cloud."""

    async def fence(context: StepContext) -> Outcome:
        return Done("mutant", proof="none" if context.operation.old_vm is not None else "")

    with _patched(taking, "TAKE", MappingProxyType({**taking.TAKE, Step.FENCE: fence})):
        yield


@contextlib.contextmanager
def _late_heartbeat_renews() -> Iterator[None]:
    """A heartbeat renews the lease as of when it was received, however long it was on its way."""
    real = liveness.hear

    def hear(life: Any, glance: Any, received_at: float, policy: Any) -> Heard:
        heard = real(life, glance, received_at, policy)
        life.alive_at = received_at
        return heard

    with _patched(fleet_module, "hear", hear):
        yield


@contextlib.contextmanager
def _cannot_tell_ignored() -> Iterator[None]:
    """The monitor trusts its ears from the first moment, and whatever they suffer."""

    def at(self: OwnHearing, now: float) -> Hearing:
        return Hearing(float("-inf"))

    with _patched(OwnHearing, "at", at):
        yield


MUTANTS: Mapping[str, Callable[[], contextlib.AbstractContextManager[None]]] = MappingProxyType(
    {
        "fence-skipped": _fence_skipped,
        "late-heartbeat-renews": _late_heartbeat_renews,
        "cannot-tell-ignored": _cannot_tell_ignored,
    }
)


@contextlib.contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
