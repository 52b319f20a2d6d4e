"""What the reconciler asks of the engine, as values, and how it ended.

Law: an action may be repeated. At most one is under way per key, and while it is, nothing else is decided about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from agent.engine import EngineError
from protocol.heartbeat import Reason
from protocol.ids import ContainerName
from protocol.spec import ContainerSpec, ImagePin, PullPolicy

ActionKey: TypeAlias = str
"""A container's name; for one that is not in the specification its engine id (it may bear a name that is)."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Makes sure of the image, in the way the policy says."""

    key: ActionKey
    image: str
    policy: PullPolicy
    pin: ImagePin | None = None


@dataclass(frozen=True, slots=True)
class Create:
    key: ActionKey
    container: ContainerSpec


@dataclass(frozen=True, slots=True)
class Start:
    key: ActionKey
    container_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    key: ActionKey
    container_id: str
    run: str
    grace_seconds: float
    why: Reason


@dataclass(frozen=True, slots=True)
class Remove:
    key: ActionKey
    container_id: str
    why: Reason


Action: TypeAlias = Pull | Create | Start | Stop | Remove


@dataclass(frozen=True, slots=True)
class Outcome:
    """`error` None: the engine says it is done."""

    name: ContainerName
    action: Action
    error: EngineError | None = None
