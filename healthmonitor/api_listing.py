"""Which instances a listing shows, and how many of each deployment are as they should be.

Laws:
- A listing holds the loop for a moment only, however many instances there are: heartbeats come through the same loop.
- What is not as it should be is listed before what is. What is left out is counted.

Does not know: how an instance looks as JSON (`api_views.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from healthmonitor.core.operator_view import Tone
from healthmonitor.core.records import InstanceRecord
from protocol.ids import DeploymentName

LISTED_MAX = 2_000
"""Instances in one answer."""
AT_ONCE = 500
"""Instances counted without letting others go on; of those that are listed, a tenth as many."""
_AS_IT_SHOULD_BE = (Tone.GOOD, Tone.OFF)


@dataclass(slots=True)
class Listing:
    instances: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    existing: dict[DeploymentName, int] = field(default_factory=dict)
    good: dict[DeploymentName, int] = field(default_factory=dict)


async def listing(
    records: Iterable[InstanceRecord],
    tone: Callable[[InstanceRecord], Tone],
    view: Callable[[InstanceRecord], dict[str, Any]],
    only: DeploymentName | None,
) -> Listing:
    """`only`: list the instances of this deployment; all are counted. `tone` is asked of all, `view` of the listed."""
    found = Listing()
    wrong: dict[DeploymentName, list[InstanceRecord]] = {}
    right: dict[DeploymentName, list[InstanceRecord]] = {}
    for number, record in enumerate(records, 1):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        as_it_should_be = tone(record) in _AS_IT_SHOULD_BE
        name = record.deployment
        found.existing[name] = found.existing.get(name, 0) + 1
        found.good[name] = found.good.get(name, 0) + (as_it_should_be and not record.deleting)
        if only is None or name == only:
            (right if as_it_should_be else wrong).setdefault(name, []).append(record)
            found.left_out += 1
    listed = list(islice(chain(_in_order(wrong), _in_order(right)), LISTED_MAX))
    found.left_out -= len(listed)
    listed.sort(key=_order)
    for number, record in enumerate(listed, 1):
        if number % (AT_ONCE // 10) == 0:
            await asyncio.sleep(0)
        found.instances.append(view(record))
    return found


def _in_order(records: Mapping[DeploymentName, list[InstanceRecord]]) -> Iterator[InstanceRecord]:
    """Deployment by deployment: sorting a hundred thousand at once would hold the loop."""
    for name in sorted(records):
        yield from sorted(records[name], key=_order)


def _order(record: InstanceRecord) -> tuple[str, str, int]:
    return record.deployment, record.group.name, record.index
