"""Which very image an instance is pinned to, after what it reported and after a move to another revision."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from healthmonitor.core.image_pins import pins_after, pins_kept
from healthmonitor.core.records import InstanceRecord, instance_spec
from protocol.heartbeat import ContainerReport, ContainerState, Extension, Heartbeat
from protocol.ids import ContainerName, Revision, instance_id
from protocol.spec import ContainerSpec, ImagePin, spec_hash
from tests.support.hands_world import SHOP, group

OLD, NEW, DIGEST, OTHER = (f"sha256:{digit * 64}" for digit in "1234")
REDIS, WEB = ContainerName("redis"), ContainerName("web")


def record(*containers: ContainerSpec, **pins: ImagePin) -> InstanceRecord:
    given = containers or (ContainerSpec(REDIS, "redis:7"),)
    return InstanceRecord(
        instance=instance_id("shop", "db", 0),
        deployment=SHOP,
        index=0,
        group=group(containers=given),
        deployment_revision=Revision(1),
        revision=Revision(1),
        pinned_images={ContainerName(name): pin for name, pin in pins.items()},
    )


def said(of: InstanceRecord, **changes: object) -> Heartbeat:
    container = of.group.containers[0]
    running = ContainerReport(container.name, ContainerState.RUNNING, spec_hash=spec_hash(container), image_id=NEW)
    report = msgspec.structs.replace(running, **changes)
    return Heartbeat(resurgam=Extension(containers=(report,)))


KNOWN = ImagePin("redis:7", OLD, DIGEST)
CASES = [
    ("first", record(), {}, ImagePin("redis:7", NEW)),
    ("with its registry's name", record(), {"image_digest": f"redis@{DIGEST}"}, ImagePin("redis:7", NEW, DIGEST)),
    ("of another registry", record(), {"image_digest": f"r.example/redis@{DIGEST}"}, ImagePin("redis:7", NEW)),
    ("another than before", record(redis=KNOWN), {}, ImagePin("redis:7", NEW)),
    ("from the store this time", record(redis=replace(KNOWN, image_id=NEW)), {}, replace(KNOWN, image_id=NEW)),
    ("of another specification", record(redis=KNOWN), {"spec_hash": "0"}, KNOWN),
    ("not there", record(redis=KNOWN), {"state": ContainerState.PULLING}, KNOWN),
    ("of an old agent", record(redis=KNOWN), {"image_id": ""}, KNOWN),
    ("of a name that is not wanted any more", record(redis=replace(KNOWN, image="redis:6")), {"image_id": ""}, None),
]


@pytest.mark.parametrize(("what", "before", "report", "pin"), CASES, ids=[case[0] for case in CASES])
def test_a_pin_is_what_an_agent_says_of_a_container_that_is_as_it_should_be(
    what: str, before: InstanceRecord, report: dict[str, object], pin: ImagePin | None
) -> None:
    """Everything else leaves what was known."""
    assert pins_after(before, said(before, **report)).get(REDIS) == pin


def test_nothing_new_is_the_very_same_mapping() -> None:
    """So that nothing is written for it."""
    before = record(redis=ImagePin("redis:7", NEW))
    assert pins_after(before, said(before)) is before.pinned_images


def test_a_container_that_changes_is_resolved_anew() -> None:
    """One that stays as it is keeps its pin; what only its supervision changes does not count."""
    web = ContainerSpec(WEB, "web:1")
    before = record(ContainerSpec(REDIS, "redis:7"), web, redis=KNOWN, web=ImagePin("web:1", OLD))
    after = group(containers=(ContainerSpec(REDIS, "redis:7", stop_grace_period_seconds=5.0), replace(web, user="1")))
    assert pins_kept(before, after) == {REDIS: KNOWN}


def test_the_agent_is_told_only_pins_of_what_is_named() -> None:
    """And the hash, by which it tells whether a container has to be made anew, does not know of them."""
    before = record(redis=KNOWN)
    (told,) = instance_spec(before, 5.0, 15.0).containers
    assert told.pin == KNOWN
    assert spec_hash(told) == spec_hash(before.group.containers[0])
    (not_told,) = instance_spec(record(redis=replace(KNOWN, image="redis:6")), 5.0, 15.0).containers
    assert not_told.pinned is None
