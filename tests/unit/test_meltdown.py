"""When too many VMs were lost at once, by table."""

from __future__ import annotations

import pytest

from healthmonitor.core.meltdown import FLEET, Lost, Meltdown, too_many
from healthmonitor.core.policy import MeltdownPolicy
from protocol.ids import AgentId, DeploymentName, InstanceId

POLICY = MeltdownPolicy()
SHOP = DeploymentName("shop")


def lost(*indexes: int, deployment: str = "shop", vm: str = "1") -> dict[InstanceId, AgentId]:
    return {InstanceId(f"{deployment}/db/{n}"): AgentId(f"{deployment}-{n}-{vm}") for n in indexes}


@pytest.mark.parametrize(
    ("size", "least"),
    [(1, None), (2, 2), (3, 2), (5, 2), (6, 2), (7, 3), (10, 4), (30, 10), (36, 11), (100, 11), (500, 11)],
)
def test_the_least_number_of_losses_that_is_a_meltdown(size: int, least: int | None) -> None:
    """Protection works for 1, 3 and 500 VMs: by count and share."""
    found = next((count for count in range(size + 1) if too_many(count, size, POLICY)), None)
    assert found == least


def test_one_lost_vm_of_one_is_no_meltdown() -> None:
    """A deployment of one VM is rebuilt."""
    assert Meltdown(POLICY).decide(lost(0), {SHOP: 1}, False, 0.0) == {}


def test_it_holds_for_the_deployment_and_not_for_a_big_fleet() -> None:
    """Two of two VMs of one deployment are its meltdown, and say nothing about 500 others."""
    sizes = {SHOP: 2, DeploymentName("other"): 500}
    assert set(Meltdown(POLICY).decide(lost(0, 1), sizes, False, 0.0)) == {"shop"}


def test_losses_spread_over_deployments_melt_the_fleet_down() -> None:
    """Eleven deployments that lose one VM of ten each are the fleet's meltdown, not theirs."""
    sizes = {DeploymentName(f"d{n}"): 10 for n in range(11)}
    missing = {key: value for n in range(11) for key, value in lost(0, deployment=f"d{n}").items()}
    assert set(Meltdown(POLICY).decide(missing, sizes, False, 0.0)) == {FLEET}


def test_those_already_rebuilt_within_the_window_count() -> None:
    """A fleet that keeps dying while it is rebuilt melts down, although few are missing at any moment."""
    meltdown = Meltdown(POLICY)
    sizes = {SHOP: 10}
    for n in range(3):
        assert meltdown.decide(lost(n), sizes, False, n * 60.0) == {}
        assert meltdown.decide({}, sizes, False, n * 60.0 + 30) == {}
    assert "shop" in meltdown.decide(lost(3), sizes, False, 200.0)


def test_the_same_instance_lost_again_counts_once() -> None:
    """One instance whose every VM dies is a crash loop, not a meltdown."""
    meltdown = Meltdown(POLICY)
    for n in range(5):
        assert meltdown.decide(lost(0, vm=str(n)), {SHOP: 10}, False, n * 60.0) == {}


def test_losses_outside_the_window_do_not_count() -> None:
    """What was lost longer ago than the window is not "at once"."""
    meltdown = Meltdown(POLICY)
    meltdown.decide(lost(0), {SHOP: 3}, False, 0.0)
    meltdown.decide({}, {SHOP: 3}, False, 10.0)
    assert meltdown.decide(lost(1), {SHOP: 3}, False, POLICY.window_seconds + 1) == {}


def test_it_is_sticky_while_they_are_missing_and_ends_when_calm() -> None:
    """It does not end because the window passed, but when for the calm time few enough were missing."""
    meltdown = Meltdown(POLICY)
    sizes = {SHOP: 3}
    assert "shop" in meltdown.decide(lost(0, 1), sizes, False, 0.0)
    assert "shop" in meltdown.decide(lost(0, 1), sizes, False, 10 * POLICY.window_seconds)
    calm_from = 10 * POLICY.window_seconds + 1
    assert "shop" in meltdown.decide(lost(0), sizes, False, calm_from)
    assert "shop" in meltdown.decide(lost(0), sizes, False, calm_from + POLICY.calm_seconds - 1)
    assert meltdown.decide(lost(0), sizes, False, calm_from + POLICY.calm_seconds) == {}
    assert meltdown.decide(lost(0), sizes, False, calm_from + POLICY.calm_seconds + 1) == {}


def test_a_relapse_starts_the_calm_time_anew() -> None:
    """Calm means calm without a break."""
    meltdown = Meltdown(POLICY)
    sizes = {SHOP: 3}
    meltdown.decide(lost(0, 1), sizes, False, 0.0)
    meltdown.decide(lost(0), sizes, False, 10.0)
    meltdown.decide(lost(0, 2), sizes, False, 100.0)
    meltdown.decide(lost(0), sizes, False, 110.0)
    assert meltdown.decide(lost(0), sizes, False, 10.0 + POLICY.calm_seconds) != {}


def test_a_persons_word_ends_it_and_the_same_losses_do_not_begin_it_again() -> None:
    """After an override lapsed, those still missing are not new losses."""
    meltdown = Meltdown(POLICY)
    sizes = {SHOP: 3}
    meltdown.decide(lost(0, 1), sizes, False, 0.0)
    assert meltdown.decide(lost(0, 1), sizes, True, 1.0) == {}
    assert meltdown.decide(lost(0, 1), sizes, False, 2.0) == {}


def test_losses_of_before_a_restart_are_remembered() -> None:
    """A monitor that takes over counts what the journal says was lost within the window."""
    meltdown = Meltdown(POLICY)
    meltdown.remember(Lost(InstanceId("shop/db/0"), AgentId("old")), -100.0)
    assert "shop" in meltdown.decide(lost(1), {SHOP: 3}, False, 0.0)


def test_switched_off_it_holds_nothing_back() -> None:
    """The policy can switch the protection off."""
    assert Meltdown(MeltdownPolicy(enabled=False)).decide(lost(0, 1, 2), {SHOP: 3}, False, 0.0) == {}


def test_it_brews_while_suspects_would_make_it_one() -> None:
    """One of three is lost and the two others are suspect: with them it would be a meltdown; it no longer brews once
    it is one, once they live, or when a person has overridden it."""
    meltdown, sizes = Meltdown(POLICY), {SHOP: 3}
    assert not meltdown.brewing(list(lost(0, 1, 2)), sizes, False), "nothing is known to be lost yet"
    assert meltdown.decide(lost(0), sizes, False, 0.0) == {}
    assert meltdown.brewing(list(lost(1, 2)), sizes, False) == {"shop", FLEET}
    assert meltdown.brewing(list(lost(0)), sizes, False) == frozenset(), "the same one twice is one"
    assert not meltdown.brewing([], sizes, False)
    assert not meltdown.brewing(list(lost(1, 2)), sizes, True)
    assert set(meltdown.decide(lost(0, 1), sizes, False, 1.0)) == {"shop", FLEET}
    assert not meltdown.brewing(list(lost(2)), sizes, False)


def test_what_it_held_back_counts_when_it_ends() -> None:
    """What is missing still is rebuilt only then: one more loss soon after is one of two within a short time."""
    meltdown, sizes = Meltdown(POLICY), {SHOP: 4}
    assert "shop" in meltdown.decide(lost(0, 1), sizes, False, 0.0)
    meltdown.decide(lost(0), sizes, False, 10.0)
    ended = 10.0 + POLICY.calm_seconds
    assert meltdown.decide(lost(0), sizes, False, ended) == {}
    assert meltdown.decide({}, sizes, False, ended + 20) == {}, "it was rebuilt"
    assert "shop" in meltdown.decide(lost(2), sizes, False, ended + 90)


def test_its_reason_tells_how_many_more_there_may_be() -> None:
    """Whoever is called when the first are lost learns how many do not answer; they count for nothing else."""
    meltdown, sizes = Meltdown(POLICY), {SHOP: 500, DeploymentName("blog"): 500}
    assert meltdown.decide(lost(*range(10)), sizes, False, 0.0, list(lost(*range(10, 300)))) == {}
    reasons = meltdown.decide(lost(*range(11)), sizes, False, 0.0, list(lost(*range(11, 300))))
    assert set(reasons) == {"shop", FLEET}
    assert reasons[FLEET].startswith("11 of 1000 VMs went missing")
    assert "289 more are silent" in reasons[FLEET]


def test_a_suspect_of_a_big_fleet_brews_nothing() -> None:
    """One more of 500 is no storm: nobody waits for it."""
    meltdown, sizes = Meltdown(POLICY), {SHOP: 500}
    assert meltdown.decide(lost(0), sizes, False, 0.0) == {}
    assert not meltdown.brewing(list(lost(1)), sizes, False)
