"""What runs are about: sizes, lengths and which faults strike.

Law: a scenario is a function of the seed alone. To add one: a function here, a line in `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from agent.core.engine_watch import WatchPolicy
from agent.core.reconcile import SupervisionPolicy
from healthmonitor.core.policy import LivenessPolicy
from tests.simulation.disks import LOOK_SECONDS
from tests.simulation.nemesis import FaultKind
from tests.simulation.soak import Soak
from tests.simulation.vm import Pace
from tests.simulation.world import Scenario


def mixed(seed: int) -> Scenario:
    """Everything at once on a handful of VMs, for half an hour; some seeds have two monitors, some no meltdown."""
    return Scenario(
        databases=2 + seed % 2,
        fronts=2,
        monitors=2 if seed % 3 == 0 else 1,
        storm_seconds=1200.0,
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
                FaultKind.MONITOR_STEPS_DOWN,
                FaultKind.MONITOR_CLOCK_JUMPS,
                FaultKind.MONITOR_TWICE,
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
        storm_seconds=600.0,
        faults_per_minute=3.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_LOST_SILENTLY,
                FaultKind.VM_FROZEN,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.CLOUD_UNSURE,
                FaultKind.NEXT_VM_BOOTS_NEVER,
                FaultKind.NEXT_VM_BOOTS_SLOWLY,
                FaultKind.HOST_DEAD,
                FaultKind.CLOUD_DELETE_LIES,
            }
        ),
        meltdown=False,
    )


def acting(seed: int) -> Scenario:
    """Two monitors lose the lease, freeze, are cut off and die, always while they act."""
    return Scenario(
        databases=2,
        fronts=1,
        monitors=2,
        storm_seconds=480.0,
        faults_per_minute=5.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.MONITOR_FROZEN,
                FaultKind.MONITOR_CUT,
                FaultKind.MONITOR_STEPS_DOWN,
                FaultKind.MONITOR_TWICE,
                FaultKind.MONITOR_CLOCK_JUMPS,
                FaultKind.SERVER_RESTARTED,
                FaultKind.CLOUD_SLOW,
            }
        ),
        meltdown=False,
    )


def disks(seed: int) -> Scenario:
    """VMs with disks die while the cloud and the disks lie."""
    return Scenario(
        databases=3,
        fronts=1,
        storm_seconds=480.0,
        faults_per_minute=4.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_REBOOTED,
                FaultKind.CLOUD_UNSURE,
                FaultKind.CLOUD_FAILING,
                FaultKind.CLOUD_QUOTA,
                FaultKind.DISK_STUCK,
                FaultKind.DISK_SLIPS,
                FaultKind.DISK_SWAPPED,
                FaultKind.DISK_UNREADABLE,
            }
        ),
        meltdown=False,
    )


def storms(seed: int) -> Scenario:
    """Several VMs are lost close together, while who leads changes."""
    return Scenario(
        databases=3,
        fronts=3,
        monitors=2,
        storm_seconds=480.0,
        faults_per_minute=5.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_LOST_SILENTLY,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.MONITOR_STEPS_DOWN,
                FaultKind.MONITOR_FROZEN,
            }
        ),
    )


def limits(seed: int) -> Scenario:
    """More VMs die than may be rebuilt in an hour, or at once."""
    return Scenario(
        databases=3,
        fronts=3,
        storm_seconds=400.0,
        faults_per_minute=5.0,
        only=frozenset({FaultKind.VM_KILLED, FaultKind.MONITOR_KILLED_ACTING, FaultKind.NEXT_VM_BOOTS_SLOWLY}),
        meltdown=False,
        hourly_budget=4,
        max_in_flight=1,
        settles=False,
    )


def words(seed: int) -> Scenario:
    """People change their minds while monitors die and old words are said again."""
    return Scenario(
        databases=2,
        fronts=2,
        monitors=1 + seed % 2,
        storm_seconds=600.0,
        faults_per_minute=5.0,
        only=frozenset(
            {
                FaultKind.DEPLOYED,
                FaultKind.SCALED,
                FaultKind.RESIZED,
                FaultKind.RECREATED,
                FaultKind.STOPPED,
                FaultKind.IGNORED,
                FaultKind.DELETED,
                FaultKind.PAUSED,
                FaultKind.OLD_COMMAND,
                FaultKind.VM_KILLED,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.SERVER_RESTARTED,
            }
        ),
        meltdown=False,
    )


def engines(seed: int) -> Scenario:
    """Containers crash while Docker Engines hang, lie, and lose events."""
    return Scenario(
        databases=2,
        fronts=1,
        storm_seconds=600.0,
        faults_per_minute=5.0,
        only=frozenset(
            {
                FaultKind.AGENT_KILLED,
                FaultKind.CONTAINER_CRASHED,
                FaultKind.CONTAINER_OOM,
                FaultKind.CONTAINER_UNHEALTHY,
                FaultKind.ENGINE_HUNG,
                FaultKind.ENGINE_DOWN,
                FaultKind.ENGINE_LOSES_EVENTS,
                FaultKind.ENGINE_EVENTS_LIE,
                FaultKind.ENGINE_ANSWERS_LATE,
            }
        ),
    )


def alerts(seed: int) -> Scenario:
    """Things go wrong while receivers of alerts are away, the bus restarts and who leads changes."""
    return Scenario(
        databases=2,
        fronts=2,
        monitors=1 + seed % 2,
        storm_seconds=600.0,
        faults_per_minute=4.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.CONTAINER_UNHEALTHY,
                FaultKind.ENGINE_HUNG,
                FaultKind.HOST_DEAD,
                FaultKind.RECEIVER_AWAY,
                FaultKind.RECEIVER_DOUBTFUL,
                FaultKind.MONITOR_KILLED,
                FaultKind.SERVER_RESTARTED,
            }
        ),
        meltdown=False,
    )


def lateness(seed: int) -> Scenario:
    """Messages come late and in bursts: agents and monitors are cut off, frozen, and in bad weather; clocks drift."""
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
                FaultKind.VM_CLOCK_DRIFTS,
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
        check_seconds=2.0,
    )


def thousand(seed: int) -> Scenario:
    """Ten minutes of a thousand VMs."""
    return _thousand(600.0, 1.0)


def thousand_day(seed: int) -> Scenario:
    """A day and a night of a thousand VMs. What agents do by themselves they do twelve times more seldom than by
    default: a heartbeat a minute."""
    return _thousand(24 * 3600.0, 12.0)


def _thousand(storm_seconds: float, slower: float) -> Scenario:
    usual, looks, probes = LivenessPolicy(), SupervisionPolicy(), WatchPolicy()
    return Scenario(
        databases=400,
        fronts=599,
        monitors=2,
        build_seconds=900.0,
        storm_seconds=storm_seconds,
        faults_per_minute=1.0,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_LOST_SILENTLY,
                FaultKind.VM_FROZEN,
                FaultKind.VM_REBOOTED,
                FaultKind.AGENT_KILLED,
                FaultKind.AGENT_CUT,
                FaultKind.CONTAINER_CRASHED,
                FaultKind.ENGINE_HUNG,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.MONITOR_STEPS_DOWN,
                FaultKind.RECREATED,
            }
        ),
        liveness=replace(
            usual,
            heartbeat_interval_seconds=slower * usual.heartbeat_interval_seconds,
            lease_seconds=slower * usual.lease_seconds,
            suspect_after_seconds=slower * usual.suspect_after_seconds,
            start_grace_seconds=slower * usual.start_grace_seconds,
        ),
        pace=Pace(
            replace(looks, full_look_seconds=slower * looks.full_look_seconds),
            replace(probes, probe_interval_seconds=slower * probes.probe_interval_seconds),
            slower * LOOK_SECONDS,
        ),
        check_seconds=10.0,
        real_seconds=36_000.0,
        steps_max=1_000_000_000,
    )


def soak_short(seed: int) -> Scenario:
    """Three hours of a small fleet in which something goes wrong every few minutes and nothing may grow."""
    return _soak(3 * 3600.0)


def soak_day(seed: int) -> Scenario:
    """The same for a day and a night."""
    return _soak(24 * 3600.0)


def _soak(storm_seconds: float) -> Scenario:
    return Scenario(
        databases=2,
        fronts=1,
        storm_seconds=storm_seconds,
        faults_per_minute=0.2,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_REBOOTED,
                FaultKind.AGENT_CUT,
                FaultKind.CONTAINER_CRASHED,
                FaultKind.CONTAINER_UNHEALTHY,
                FaultKind.ENGINE_HUNG,
                FaultKind.RECEIVER_AWAY,
                FaultKind.SERVER_RESTARTED,
                FaultKind.DEPLOYED,
            }
        ),
        meltdown=False,
        check_seconds=5.0,
        real_seconds=7200.0,
        looks_at=Soak,
    )


def spares(seed: int) -> Scenario:
    """A spare for each size of VM: it is taken, lost, refilled, while monitors are killed in the middle of that."""
    return Scenario(
        databases=2,
        fronts=1 + seed % 2,
        monitors=1 + seed % 2,
        storm_seconds=900.0,
        faults_per_minute=2.5,
        only=frozenset(
            {
                FaultKind.VM_KILLED,
                FaultKind.VM_LOST_SILENTLY,
                FaultKind.VM_FROZEN,
                FaultKind.VM_REBOOTED,
                FaultKind.AGENT_KILLED,
                FaultKind.AGENT_CUT,
                FaultKind.MONITOR_KILLED_ACTING,
                FaultKind.CLOUD_UNSURE,
                FaultKind.CLOUD_FAILING,
                FaultKind.NEXT_VM_BOOTS_NEVER,
                FaultKind.HOST_DEAD,
                FaultKind.RECREATED,
                FaultKind.DEPLOYED,
            }
        ),
        meltdown=False,
        spares=1 + seed % 3 // 2,
    )


def together(seed: int) -> Scenario:
    """Everything dies at once, and the cloud tells of some much later than of others: not one VM may be rebuilt before
    a person says so."""
    return Scenario(
        databases=2 + seed % 3,
        fronts=1 + seed % 2,
        monitors=1 + seed % 2,
        storm_seconds=120.0,
        faults_per_minute=1.0,
        only=frozenset({FaultKind.FLEET_KILLED}),
        cloud_seconds=(0.01, 0.8),
        held=True,
    )


SCENARIOS: Mapping[str, Callable[[int], Scenario]] = MappingProxyType(
    {
        "mixed": mixed,
        "restarts": restarts,
        "killing": killing,
        "acting": acting,
        "disks": disks,
        "storms": storms,
        "limits": limits,
        "words": words,
        "engines": engines,
        "alerts": alerts,
        "lateness": lateness,
        "hundred": hundred,
        "spares": spares,
        "together": together,
        "thousand": thousand,
        "thousand-day": thousand_day,
        "soak-short": soak_short,
        "soak-day": soak_day,
    }
)
