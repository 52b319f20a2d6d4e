"""May another VM be rebuilt now, or were too many lost at once to go on without a person?

Law: meltdown protection works for 1, 3 and 500 VMs (MeltdownPolicy has the formula); it counts VMs that went missing
within the window including those already rebuilt in it, so that a fleet that keeps dying while it is rebuilt is
noticed; and it is sticky: it ends when few enough have been missing for the calm time, or when a person says so.
(BOSH's resurrector never melts down below 5 VMs, even when all are gone, and counts the recovered for ever:
bosh-wire-protocol.md 4.8.)

Does not know: whether resurrection is switched on, what rebuilding is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from healthmonitor.core.policy import MeltdownPolicy
from protocol.ids import AgentId, DeploymentName, InstanceId

FLEET = "fleet"


class Lost(NamedTuple):
    """One VM that went missing. The agent tells one VM of an instance from the next. A tuple, because a thousand of
    them are compared in every turn of a large loss."""

    instance: InstanceId
    agent: AgentId


def too_many(count: int, size: int, policy: MeltdownPolicy) -> bool:
    """Whether `count` missing of `size` VMs are a meltdown."""
    if count < policy.minimum_count:
        return False
    return count > policy.share * size or count > policy.maximum_count


class Meltdown:
    """The losses of the window, and the meltdowns that hold. Times are the loop's clock."""

    def __init__(self, policy: MeltdownPolicy) -> None:
        self.policy = policy
        self._lost_at: dict[Lost, float] = {}
        self._missing: set[Lost] = set()
        self._counted: dict[str, tuple[object, Counter[str]]] = {}  # what was counted, and how it came out
        self._active: dict[str, str] = {}  # scope → reason
        self._calm_since: dict[str, float] = {}

    def remember(self, lost: Lost, at: float) -> None:
        """A loss of before this monitor began to judge, from the journal."""
        self._lost_at.setdefault(lost, at)

    def decide(
        self,
        missing: Mapping[InstanceId, AgentId],
        sizes: Mapping[DeploymentName, int],
        overridden: bool,
        now: float,
        suspects: Collection[InstanceId] = (),
    ) -> Mapping[str, str]:
        """The meltdowns that hold now: "fleet" or a deployment → the reason. `sizes`: expected VMs by deployment.
        `suspects` are told of in the reason and count for nothing: whoever is called at the beginning of a large loss
        is to know how large it will be."""
        current = set(map(Lost._make, missing.items()))
        for lost in current - self._missing:
            self._lost_at.setdefault(lost, now)
        self._missing = current
        self._lost_at = {lost: at for lost, at in self._lost_at.items() if now - at <= self.policy.window_seconds}
        if not self.policy.enabled or overridden:
            self._active.clear()
            self._calm_since.clear()
            self._lost_at.clear()
            return {}
        if not self._lost_at and not self._active:
            return {}
        within_window = self._count("lost", frozenset(lost.instance for lost in self._lost_at))
        missing_now = self._count("missing", frozenset(missing))
        suspect_now = self._count("suspects", frozenset(suspects))
        scopes = {str(name): size for name, size in sizes.items()}
        scopes[FLEET] = sum(sizes.values())
        for scope, size in scopes.items():
            if too_many(within_window[scope], size, self.policy):
                self._active[scope] = (
                    f"{within_window[scope]} of {size} VMs went missing within {self.policy.window_seconds:.0f} s, "
                    f"{missing_now[scope]} are missing now, {suspect_now[scope]} more are silent and being asked"
                )
        for scope in list(self._active):
            if scope not in scopes or self._is_calm(scope, missing_now[scope], scopes[scope], now):
                self._end(scope, now)
        return dict(self._active)

    def brewing(
        self, suspects: Collection[InstanceId], sizes: Mapping[DeploymentName, int], overridden: bool
    ) -> frozenset[str]:
        """Scopes without a meltdown that would have one if all `suspects` turned out to be missing. Of the losses as
        `decide` saw them last."""
        if not suspects or not self._lost_at or not self.policy.enabled or overridden:
            return frozenset()
        lost = frozenset(lost.instance for lost in self._lost_at)
        expected = self._count("lost", lost) + self._count("suspects", frozenset(suspects))
        expected.subtract(_by_scope(lost.intersection(suspects)))
        scopes = {str(name): size for name, size in sizes.items()}
        scopes[FLEET] = sum(sizes.values())
        return frozenset(
            scope
            for scope, size in scopes.items()
            if scope not in self._active and too_many(expected[scope], size, self.policy)
        )

    def _count(self, what: str, instances: frozenset[InstanceId]) -> Counter[str]:
        """By scope. Comparing with those of the turn before is quick, counting is not."""
        of, counts = self._counted.get(what, (None, Counter()))
        if of is not instances and of != instances:
            counts = _by_scope(instances)
            self._counted[what] = (instances, counts)
        return counts

    def _is_calm(self, scope: str, missing_now: int, size: int, now: float) -> bool:
        if too_many(missing_now, size, self.policy):
            self._calm_since.pop(scope, None)
            return False
        return now - self._calm_since.setdefault(scope, now) >= self.policy.calm_seconds

    def _end(self, scope: str, now: float) -> None:
        """What led to it is forgotten, or it would begin again at once. But for those that are missing still: they are
        rebuilt only now, and count as if they were lost now."""
        del self._active[scope]
        self._calm_since.pop(scope, None)
        for lost in list(self._lost_at):
            if scope in (FLEET, _deployment_of(lost.instance)):
                if lost in self._missing:
                    self._lost_at[lost] = now
                else:
                    del self._lost_at[lost]


def _by_scope(instances: frozenset[InstanceId]) -> Counter[str]:
    counts = Counter(map(_deployment_of, instances))
    counts[FLEET] = len(instances)
    return counts


def _deployment_of(instance: InstanceId) -> str:
    return instance.partition("/")[0]
