"""The generated parts of docs/operations.md: what `core/operation.py` lets happen, found out by trying everything.

`python -m tests.support.operation_diagram` prints them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

from healthmonitor.core import operation as rules
from healthmonitor.core.operation import STEPS, AliveAgain, Held, IllegalTransition, Outcome, VmLost
from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Operation, OperationKind, Step, VmBinding
from healthmonitor.steps.taking import TAKE
from protocol.ids import AgentId, Generation, InstanceId, OperationId, VmCid

OLD = VmBinding(AgentId("a1"), Generation(1), "shop-db-0-g1", VmCid("vm-1"))
NEW = VmBinding(AgentId("a2"), Generation(2), "shop-db-0-g2", VmCid("vm-2"))
POLICY = ResurrectionPolicy()


def diagram() -> list[str]:
    """A Mermaid state diagram: the ways of all kinds in one picture, and the ways back."""
    edges: dict[tuple[str, str], list[str]] = {}
    for kind, steps in STEPS.items():
        for before, after in zip(
            ("[*]", *(step.value for step in steps)), (step.value for step in steps), strict=False
        ):
            edges.setdefault((before, after), []).append(kind.value)
    for kind, step in _places():
        plain, unfenced = _at(kind, step)
        for label, begun, outcome in (
            ("the new VM is lost", plain, VmLost(NEW, "lost")),
            ("alive again", plain, AliveAgain("alive")),
            ("alive again while unfenced", unfenced, AliveAgain("alive")),
        ):
            after_step = _after(begun, outcome)
            labels = [] if after_step is None else edges.setdefault((step.value, after_step.value), [])
            if label not in labels and "alive again" not in labels:
                labels.append(label)
    lines = ["stateDiagram-v2"]
    lines += [f"    {before} --> {after}: {', '.join(labels)}" for (before, after), labels in edges.items() if labels]
    return [*lines, f"    {Step.DONE.value} --> [*]"]


def rows() -> list[str]:
    """One row a step, in the order of `Step`."""
    found = []
    for step in Step:
        kinds = ", ".join(kind.value for kind in OperationKind if step in STEPS[kind])
        holds = ", ".join(hold.value for hold in Hold if _may_be_held(step, hold))
        found.append(f"| `{step.value}` | {_what(step)} | {kinds} | {holds} |")
    return found


def _places() -> Iterator[tuple[OperationKind, Step]]:
    return ((kind, step) for kind, steps in STEPS.items() for step in steps if step is not Step.DONE)


def _at(kind: OperationKind, step: Step) -> tuple[Operation, ...]:
    """An operation at this step, and the same one held there as unfenced."""
    old = None if kind in rules.IN_PLACE else OLD
    begun = rules.begin(OperationId("o"), InstanceId("shop/db/0"), kind, "", 0.0, old)
    there = replace(begun, step=step, fence_proof="off" if step in rules.NEEDS_PROOF and old is not None else "")
    return there, replace(there, hold=Hold.UNFENCED)


def _after(operation: Operation, outcome: Outcome) -> Step | None:
    try:
        return rules.advance(operation, outcome, 1.0, POLICY).step
    except IllegalTransition:
        return None


def _may_be_held(step: Step, hold: Hold) -> bool:
    if hold is Hold.NONE:
        return False
    return any(_after(_at(kind, step)[0], Held(hold, "")) is step for kind, there in _places() if there is step)


def _what(step: Step) -> str:
    if step is Step.DONE:
        return "The operation is over; what it did stands in the timeline."
    text = " ".join((inspect.getdoc(TAKE[step]) or "").split())
    assert text, f"{TAKE[step].__name__} has no docstring"
    return text.split(". ")[0].rstrip(".") + "."


if __name__ == "__main__":
    print("\n".join([*diagram(), "", *rows()]))
