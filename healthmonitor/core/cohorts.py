"""Those who speak, in cohorts that are looked at together: who of them has given no sign of life for too long.

Laws:
- A cohort is looked at when the oldest last sign of life in it comes of age, so nobody is found late; who is found
  leaves it.
- Looking at one who spoke costs a fraction of a timer of its own, which would run out once for each heartbeat. How the
  members came together does not matter: at the worst a cohort is looked at as often as it takes the time between being
  found silent and the next heartbeat to pass.

Does not know: what silence means.
"""

from __future__ import annotations

from operator import attrgetter

from healthmonitor.core.due_times import DueTimes
from healthmonitor.core.liveness import Life
from protocol.ids import AgentId

COHORT_MAX = 250
LOOKED_AT_MAX = 10_000
"""Of those who spoke, in one look."""

_alive_at = attrgetter("alive_at")


class _Cohort:
    __slots__ = ("agents", "lives", "look_at")

    def __init__(self, look_at: float) -> None:
        self.agents: list[AgentId] = []
        self.lives: list[Life] = []
        self.look_at = look_at


class Cohorts:
    """All times are the loop's clock."""

    def __init__(self) -> None:
        self._due: DueTimes[_Cohort] = DueTimes()
        self._open: _Cohort | None = None  # who joins next joins this

    def join(self, agent: AgentId, life: Life, silent_at: float) -> None:
        """`silent_at`: when it is to be found unless it gives another sign of life. Whoever is in a cohort must not
        join another."""
        cohort = self._open
        if cohort is None or silent_at < cohort.look_at or len(cohort.agents) >= COHORT_MAX:
            cohort = self._open = _Cohort(silent_at)
            self._due.add(cohort, silent_at)
        cohort.agents.append(agent)
        cohort.lives.append(life)

    def take_silent(self, now: float, after_seconds: float, most: int) -> list[AgentId]:
        """Those whose last sign of life is that old; they are in no cohort any more. About as many as that at most, the
        others at the next call."""
        silent: list[AgentId] = []
        looked = 0
        for cohort in self._due.take(now):
            looked += len(cohort.lives)
            eldest = min(map(_alive_at, cohort.lives))
            if eldest + after_seconds <= now:
                silent += _part_with(cohort, now, after_seconds)
                eldest = min(map(_alive_at, cohort.lives), default=now)
            if not cohort.lives:
                self._open = None if cohort is self._open else self._open
            elif len(cohort.lives) > COHORT_MAX // 2 or cohort is self._open:
                cohort.look_at = eldest + after_seconds
                self._due.add(cohort, cohort.look_at)
            else:  # too few to be looked at by themselves
                for agent, life in zip(cohort.agents, cohort.lives, strict=True):
                    self.join(agent, life, life.alive_at + after_seconds)
            if looked >= LOOKED_AT_MAX or len(silent) >= most:
                break
        return silent

    def next_at(self) -> float | None:
        return self._due.next_at()

    def all_at(self, now: float) -> None:
        """Everybody is looked at again: what counts as silent is another."""
        self._due.all_at(now)


def _part_with(cohort: _Cohort, now: float, after_seconds: float) -> list[AgentId]:
    """Takes those out that are silent."""
    members = list(zip(cohort.agents, cohort.lives, strict=True))
    stay = [(agent, life) for agent, life in members if life.alive_at + after_seconds > now]
    cohort.agents = [agent for agent, _ in stay]
    cohort.lives = [life for _, life in stay]
    return [agent for agent, life in members if life.alive_at + after_seconds <= now]
