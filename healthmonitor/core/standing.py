"""What stands of the agents under inquiry, as each was judged last: who is missing, who suspect, how many silent.

Law: what is given out is the same object as before as long as nothing in it changed.

Does not know: how anybody is judged.
"""

from __future__ import annotations

from collections.abc import Mapping

from healthmonitor.core.judgement import Missing, Verdict
from healthmonitor.core.liveness import Because, Judged
from protocol.ids import AgentId, InstanceId


class Standing:
    def __init__(self) -> None:
        self.missing_agents: dict[AgentId, tuple[InstanceId, Missing]] = {}
        self._suspect_agents: dict[AgentId, InstanceId] = {}
        self._lagging: set[AgentId] = set()
        self._silent: set[AgentId] = set()
        self._missing: Mapping[InstanceId, Missing] | None = None
        self._suspects: frozenset[InstanceId] | None = None

    def judged(self, agent: AgentId, instance: InstanceId | None, judged: Judged, since: float) -> None:
        """`instance`: that it is expected to fill; of an agent of none nothing stands. `since`: when it was last known
        to live."""
        if judged.because is Because.LAGGED:
            self._lagging.add(agent)
        else:
            self._lagging.discard(agent)
        if judged.verdict is Verdict.MISSING and instance is not None:
            missing = (instance, Missing(agent, since, judged.evidence, judged.by_cloud))
            if self.missing_agents.get(agent) != missing:
                self.missing_agents[agent] = missing
                self._missing = None
        elif self.missing_agents.pop(agent, None) is not None:
            self._missing = None
        suspect = instance if judged.verdict is Verdict.SUSPECT else None
        if self._suspect_agents.get(agent) != suspect:
            self._suspects = None
            if suspect is None:
                del self._suspect_agents[agent]
            else:
                self._suspect_agents[agent] = suspect

    def silent(self, agent: AgentId, whether: bool) -> None:
        """Whether it counts toward a mass loss."""
        if whether:
            self._silent.add(agent)
        else:
            self._silent.discard(agent)

    def gone(self, agent: AgentId) -> None:
        """It is under inquiry no more."""
        self._lagging.discard(agent)
        self._silent.discard(agent)
        if self.missing_agents.pop(agent, None) is not None:
            self._missing = None
        if self._suspect_agents.pop(agent, None) is not None:
            self._suspects = None

    @property
    def silent_count(self) -> int:
        return len(self._silent)

    @property
    def lagged(self) -> bool:
        """Nothing can be told of somebody, because the monitor did not hear without a gap."""
        return bool(self._lagging)

    def missing(self) -> Mapping[InstanceId, Missing]:
        if self._missing is None:
            self._missing = dict(self.missing_agents.values())
        return self._missing

    def suspects(self) -> frozenset[InstanceId]:
        if self._suspects is None:
            self._suspects = frozenset(self._suspect_agents.values())
        return self._suspects
