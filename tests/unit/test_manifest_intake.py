"""A manifest on its way in: it must not stop the monitor from hearing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from healthmonitor.core.located_yaml import ManifestErrors
from healthmonitor.manifest_intake import ManifestIntake
from healthmonitor.operator_actions import ManifestUpload

CONTAINERS = 150
TEXT = "name: shop\ncloud: local\nstemcell: debian\ninstance_groups:\n  - name: web\n    containers:\n" + "".join(
    f"      c{number}: {{image: 'a:{number}', environment: {{A: '1', B: '2'}}}}\n" for number in range(CONTAINERS)
)


async def test_the_loop_turns_while_a_manifest_is_parsed() -> None:
    """Others take their turns between the beginning and the end of the reading."""
    journal: Any = None  # reading asks it nothing
    intake = ManifestIntake(journal, lambda: ["local"], lambda: {"local": ["debian"]})
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(others())
    await asyncio.sleep(0)
    before = turns
    manifest = await intake.read(ManifestUpload(TEXT, "shop.yml"))
    assert turns - before > 1  # how many there are is the machine's business: had it waited, there would be one at most
    assert len(manifest.groups[0].containers) == CONTAINERS
    with pytest.raises(ManifestErrors, match="there is no cloud"):
        await intake.read(ManifestUpload(TEXT.replace("cloud: local", "cloud: moon"), "shop.yml"))
    ticking.cancel()
