"""Which instances a listing shows when there are too many for one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from healthmonitor import api_listing
from healthmonitor.api_listing import listing
from healthmonitor.core.operator_view import Tone
from healthmonitor.core.records import InstanceRecord
from protocol.ids import DeploymentName
from tests.bench.invented_fleet import record

BAD = {3, 17, 18}


def tone(each: InstanceRecord) -> Tone:
    return Tone.BAD if each.index in BAD else Tone.GOOD


def view(each: InstanceRecord) -> dict[str, Any]:
    bad = each.index in BAD
    return {
        "instance": each.instance,
        "deployment": each.deployment,
        "group": each.group.name,
        "index": each.index,
        "tone": "bad" if bad else "good",
        "deleting": False,
    }


async def test_all_are_listed_when_there_is_room() -> None:
    """In the order of their names, and counted by deployment."""
    found = await listing([record(n) for n in reversed(range(120))], tone, view, None)
    assert [item["instance"] for item in found.instances] == [record(n).instance for n in range(120)]
    assert found.left_out == 0
    assert found.existing == {"shop-0": 100, "shop-1": 20}
    assert found.good == {"shop-0": 97, "shop-1": 17}


@pytest.mark.parametrize(("room", "bad"), [(10, 6), (4, 4)])
async def test_what_is_wrong_is_listed_first(monkeypatch: pytest.MonkeyPatch, room: int, bad: int) -> None:
    """Of 120 with 6 that are not as they should be; the others are counted."""
    monkeypatch.setattr(api_listing, "LISTED_MAX", room)
    found = await listing([record(n) for n in range(120)], tone, view, None)
    assert len(found.instances) == room
    assert found.left_out == 120 - room
    assert sum(item["tone"] == "bad" for item in found.instances) == bad
    assert found.good == {"shop-0": 97, "shop-1": 17}


async def test_one_deployment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its instances are listed, all are counted."""
    monkeypatch.setattr(api_listing, "LISTED_MAX", 30)
    found = await listing([record(n) for n in range(120)], tone, view, DeploymentName("shop-1"))
    assert [item["deployment"] for item in found.instances] == ["shop-1"] * 20
    assert found.left_out == 0
    assert found.existing == {"shop-0": 100, "shop-1": 20}


async def test_others_go_on_meanwhile() -> None:
    """A long listing lets the loop turn."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await listing([record(n) for n in range(1000)], tone, view, None)
    turning.cancel()
    assert turns >= 1000 // api_listing.AT_ONCE


async def test_only_what_is_listed_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one costs ten times what counting it does."""
    monkeypatch.setattr(api_listing, "LISTED_MAX", 30)
    drawn: list[InstanceRecord] = []

    def drawing(each: InstanceRecord) -> dict[str, Any]:
        drawn.append(each)
        return view(each)

    found = await listing([record(n) for n in range(1000)], tone, drawing, None)
    assert len(drawn) == len(found.instances) == 30
    assert sum(item["tone"] == "bad" for item in found.instances) == 30
    assert found.left_out == 970
