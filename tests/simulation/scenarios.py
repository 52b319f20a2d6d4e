"""What runs are about: sizes, lengths and which faults strike.

Law: a scenario is a function of the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tests.simulation.nemesis import FaultKind
from tests.simulation.world import Scenario


def mixed(seed: int) -> Scenario:
    """Everything at once on a handful of VMs, for half an hour; some seeds have two monitors, some no meltdown."""
    return Scenario(
        databases=2 + seed % 2,
        fronts=2,
        monitors=2 if seed % 3 == 0 else 1,
        faults_per_minute=(0.5, 1.0, 2.0)[seed % 3],
        meltdown=seed % 2 == 0,
    )


def restarts(seed: int) -> Scenario:
    """Nothing happens to any VM: monitors and the bus restart, freeze and are cut off. Nothing may be rebuilt."""
    return Scenario(
        monitors=1 + seed % 2,
        storm_seconds=900.0,
        faults_per_minute=3.0,
        only=frozenset(
            {
                FaultKind.MONITOR_KILLED,
                FaultKind.MONITOR_FROZEN,
                FaultKind.MONITOR_CUT,
                FaultKind.MONITOR_CUT_ONE_WAY,
                FaultKind.SERVER_RESTARTED,
                FaultKind.ALL_CUT,
            }
        ),
        meltdown=False,
        harmless=True,
    )


def killing(seed: int) -> Scenario:
    """VMs die and freeze one after the other while monitors are killed in the middle of rebuilding them."""
    return Scenario(
        databases=3,
        fronts=1,
        storm_seconds=900.0,
        faults_per_minute=2.5,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_LOST_SILENTLY,
                FaultKind.VM_FROZEN,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.CLOUD_UNSURE,
                FaultKind.NEXT_VM_BOOTS_NEVER,
                FaultKind.HOST_DEAD,
                FaultKind.CLOUD_DELETE_LIES,
            }
        ),
        meltdown=False,
    )


def lateness(seed: int) -> Scenario:
    """Messages come late and in bursts: agents and monitors are cut off, frozen, and in bad weather."""
    return Scenario(
        storm_seconds=600.0,
        faults_per_minute=4.0,
        only=frozenset(
            {
                FaultKind.AGENT_CUT,
                FaultKind.AGENT_CUT_ONE_WAY,
                FaultKind.MONITOR_CUT,
                FaultKind.MONITOR_FROZEN,
                FaultKind.VM_FROZEN,
                FaultKind.BAD_WEATHER,
            }
        ),
        meltdown=False,
    )


def hundred(seed: int) -> Scenario:
    """A hundred VMs, a short storm."""
    return Scenario(
        databases=40,
        fronts=59,
        monitors=2,
        build_seconds=900.0,
        storm_seconds=180.0,
        faults_per_minute=4.0,
        meltdown=False,
    )


SCENARIOS: Mapping[str, Callable[[int], Scenario]] = MappingProxyType(
    {"mixed": mixed, "restarts": restarts, "killing": killing, "lateness": lateness, "hundred": hundred}
)
