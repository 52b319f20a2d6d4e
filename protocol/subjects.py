"""Subjects on the bus. They are BOSH's (reference: BOSH agent wire protocol), so that its agents can be heard too.

Law: the agent's id comes from the subject, never from the payload: permissions are granted by subject.
"""

from __future__ import annotations

from enum import Enum

from protocol.ids import AgentId, MonitorId, is_token


class AgentMessage(Enum):
    HEARTBEAT = "heartbeat"
    ALERT = "alert"
    SHUTDOWN = "shutdown"


DIRECTOR_ALERT = "hm.director.alert"
IMAGE_STORE = "images"
"""The blobs from which agents load container images."""
IMAGE_STORE_READS = (f"$JS.API.DIRECT.GET.OBJ_{IMAGE_STORE}", f"$JS.API.DIRECT.GET.OBJ_{IMAGE_STORE}.>")
"""Where an agent must be allowed to publish to read from it: direct reads of that one stream, nothing else."""
MONITOR_CANARY_AGENT = "hm-canary"
"""Prefix of the agent id under which a monitor hears itself: `hm.agent.heartbeat.hm-canary-<monitor>`."""


CENTRE = "hm.centre"
"""Says to agents that the server which they are connected to is in touch with the centre: monitors that can write to
the bus's store send it, empty. A server that was cut off from the rest of its cluster keeps its clients, and is
silent."""
EVERY_MONITOR = "hm.monitor.*"
"""What monitors tell each other: `hm.monitor.<name>`. Agents may not publish there."""


def monitor(name: str) -> str:
    return f"hm.monitor.{name}"


def to_monitor(kind: AgentMessage, agent: AgentId) -> str:
    return f"hm.agent.{kind.value}.{agent}"


def every_agent(kind: AgentMessage) -> str:
    return f"hm.agent.{kind.value}.*"


def to_agent(agent: AgentId) -> str:
    return f"agent.{agent}"


def answer(monitor: MonitorId, agent: AgentId, request: str) -> str:
    """Where an agent answers. Its own id is in the subject, so that permissions can bind it to its own inbox."""
    return f"director.{monitor}.{agent}.{request}"


def every_answer(monitor: MonitorId) -> str:
    return f"director.{monitor}.>"


def agent_of(subject: str) -> AgentId | None:
    """The agent that a `hm.agent.<kind>.<id>` subject names, or None when it is not such a subject."""
    parts = subject.split(".", 3)
    if len(parts) != 4 or parts[0] != "hm" or parts[1] != "agent" or not is_token(parts[3]):
        return None
    return AgentId(parts[3])


def canary(monitor: MonitorId) -> AgentId:
    return AgentId(f"{MONITOR_CANARY_AGENT}-{monitor}")
