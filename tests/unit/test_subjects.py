"""Subjects: BOSH's, and ids that cannot be anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol import subjects
from protocol.ids import AgentId, MonitorId
from protocol.subjects import AgentMessage

CAPTURED = sorted(Path("tests/data/bosh-agent").glob("*.json"))


@pytest.mark.parametrize("path", CAPTURED, ids=lambda path: path.stem)
def test_real_subjects_are_the_ones_we_build(path: Path) -> None:
    """Whatever a real agent published to is what our functions give for its id."""
    subject = json.loads(path.read_text())["subject"]
    if subject.startswith("director."):
        _, process, agent, request = subject.split(".")
        assert subjects.answer(MonitorId(process), AgentId(agent), request) == subject
    else:
        agent_id = subjects.agent_of(subject)
        assert agent_id is not None
        assert subject in {subjects.to_monitor(kind, agent_id) for kind in AgentMessage}


@pytest.mark.parametrize(
    ("subject", "agent"),
    [
        ("hm.agent.heartbeat.a-1", "a-1"),
        ("hm.agent.shutdown.0b8a7d3e-6f0e-4a53-9f6c-2f6c1a7f3b11", "0b8a7d3e-6f0e-4a53-9f6c-2f6c1a7f3b11"),
        ("hm.agent.heartbeat.a.b", None),
        ("hm.agent.heartbeat.", None),
        ("hm.agent.heartbeat", None),
        ("hm.director.alert", None),
        ("xx.agent.heartbeat.a", None),
        ("hm.xx.heartbeat.a", None),
        ("hm.agent.heartbeat.a b", None),
        ("hm.agent.heartbeat.*", None),
        ("hm.agent.heartbeat." + "a" * 129, None),
        ("", None),
    ],
)
def test_the_agent_comes_from_the_subject(subject: str, agent: str | None) -> None:
    """A subject that is not of an agent names none."""
    assert subjects.agent_of(subject) == agent


def test_a_canary_can_be_told_from_agents() -> None:
    """Its id is a token like an agent's, so that it goes the same way."""
    canary = subjects.canary(MonitorId("m1"))
    assert subjects.agent_of(subjects.to_monitor(AgentMessage.HEARTBEAT, canary)) == canary
    assert canary.startswith(subjects.MONITOR_CANARY_AGENT)
