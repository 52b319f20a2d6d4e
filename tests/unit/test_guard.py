"""What holds a resurrection back, by table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from healthmonitor.core.guard import GuardInputs, decide
from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Switches
from protocol.ids import DeploymentName, InstanceId

NOW = 10_000.0
FREE = GuardInputs(
    instance=InstanceId("shop/db/0"),
    deployment=DeploymentName("shop"),
    policy=ResurrectionPolicy(enabled=True, max_in_flight=2, hourly_budget=3),
    switches=Switches(),
    now_unix=NOW,
)
HELD = [
    ("configuration", replace(FREE, policy=ResurrectionPolicy(enabled=False)), Hold.DISABLED, "configuration file"),
    ("switch", replace(FREE, switches=Switches(resurrection=False)), Hold.DISABLED, "resurgam resurrection on"),
    ("manifest", replace(FREE, group_allows=False), Hold.DISABLED, "resurgam recreate shop/db/0"),
    ("ignored", replace(FREE, ignored=True), Hold.DISABLED, "left alone"),
    (
        "pause",
        replace(FREE, switches=Switches(paused_until=NOW + 60, paused_by="anna")),
        Hold.PAUSED,
        "by anna until 1970-01-01 02:47:40 UTC",
    ),
    ("window", replace(FREE, maintenance="sunday"), Hold.MAINTENANCE, "sunday"),
    ("doubt", replace(FREE, cannot_tell="the bus was lost 2 s ago"), Hold.CANNOT_TELL, "the bus was lost"),
    ("fleet", replace(FREE, meltdowns={"fleet": "11 of 20"}), Hold.MELTDOWN, "meltdown of fleet: too many"),
    ("deployment", replace(FREE, meltdowns={"shop": "2 of 3"}), Hold.MELTDOWN, "meltdown of shop: too many"),
    (
        "budget",
        replace(FREE, rebuilt_at=(NOW - 3000, NOW - 20, NOW - 10)),
        Hold.BUDGET,
        "begin at 1970-01-01 02:56:40 UTC",
    ),
    ("no budget", replace(FREE, policy=replace(FREE.policy, hourly_budget=0)), Hold.BUDGET, "none may begin"),
    ("concurrency", replace(FREE, in_flight=2), Hold.CONCURRENCY, "under way"),
]


@pytest.mark.parametrize(("inputs", "hold", "says"), [case[1:] for case in HELD], ids=[case[0] for case in HELD])
def test_what_holds_back_says_why(inputs: GuardInputs, hold: Hold, says: str) -> None:
    """Each circumstance holds by its own name, with a sentence that tells what to do or when it ends."""
    decision = decide(inputs)
    assert decision.hold is hold
    assert says in decision.text


GOES_ON = [
    ("nothing", FREE),
    ("pause over", replace(FREE, switches=Switches(paused_until=NOW - 1))),
    ("cloud's word against doubt", replace(FREE, cannot_tell="half the fleet is silent", seen_off_by_cloud=True)),
    ("meltdown elsewhere", replace(FREE, meltdowns={"blog": "2 of 3"})),
    (
        "a person's word",
        replace(FREE, meltdowns={"fleet": "all"}, switches=Switches(meltdown_overridden_until=NOW + 1)),
    ),
    ("old rebuilds", replace(FREE, rebuilt_at=(NOW - 3601, NOW - 3700, NOW - 9000, NOW - 10, NOW - 5))),
    ("room for one", replace(FREE, in_flight=1)),
]


@pytest.mark.parametrize("inputs", [case[1] for case in GOES_ON], ids=[case[0] for case in GOES_ON])
def test_what_does_not_hold(inputs: GuardInputs) -> None:
    """What is over, elsewhere or overridden holds nothing back."""
    assert decide(inputs).hold is Hold.NONE


def test_a_storm_is_not_hidden_by_its_override_of_the_limits() -> None:
    """A person's word ends the meltdown, not the limits: budget and concurrency stay."""
    overridden = replace(FREE, meltdowns={"fleet": "all"}, switches=Switches(meltdown_overridden_until=NOW + 1))
    assert decide(replace(overridden, in_flight=2)).hold is Hold.CONCURRENCY
    assert decide(replace(overridden, rebuilt_at=(NOW, NOW, NOW))).hold is Hold.BUDGET
