"""Every limit of the monitor, named, with unit and formula. The configuration file sets these; the rest of the code
has no number of its own.

Law: frozen; a reload makes a new Policy and swaps it between two turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class LivenessPolicy:
    heartbeat_interval_seconds: float = 5.0
    lease_seconds: float = 15.0
    """A VM that was not heard for this long, and does not answer when asked, is missing. At least 2 intervals."""
    late_seconds: float = 2.5
    """A heartbeat this much later than the quickest one of its agent renews the lease only as of when it was sent;
    the agent is then asked. Half an interval."""
    ask_timeout_seconds: float = 1.0
    observe_timeout_seconds: float = 2.0
    """How long the cloud may take to say whether a suspect VM runs."""
    suspect_after_seconds: float = 7.5
    """Silence after which the agent is asked, before its lease is over: 1.5 intervals."""
    start_grace_seconds: float = 15.0
    """After the monitor's start, and after the bus came back, nothing is missing for this long: one lease."""
    loop_lag_seconds: float = 1.0
    """When the monitor's own loop was late by this much, silence before it proves nothing."""
    canary_interval_seconds: float = 1.0
    canary_lost_seconds: float = 4.0
    """The monitor's own heartbeat through the bus did not come back for this long: cannot tell."""
    mass_share: float = 0.5
    mass_count: int = 10
    """At least this many and this share of the fleet vanishing within one lease: cannot tell, until asked of the
    cloud. The cloud's word (off, gone from a reachable host) overrides it; silence does not."""
    stranger_after_seconds: float = 60.0
    """An agent of no deployment that keeps sending for this long is reported."""
    agents_max: int = 250_000
    offset_window_seconds: float = 600.0
    """The quickest way through the bus is the least `received - sent` of this window and the one before; older ones
    are forgotten, because clocks drift apart."""
    asks_max_in_flight: int = 256
    observes_max_in_flight: int = 8
    """Per cloud."""


@dataclass(frozen=True, slots=True)
class MeltdownPolicy:
    """Meltdown: at least `minimum_count` VMs missing within the window, and more than `share` of the scope or more
    than `maximum_count`. Applied per deployment and to the fleet. So with 1 VM there is none; with 2 or 3 it takes
    2 at once; with 500, 11."""

    enabled: bool = True
    window_seconds: float = 600.0
    minimum_count: int = 2
    share: float = 0.3
    maximum_count: int = 10
    calm_seconds: float = 120.0
    """A meltdown ends by itself when for this long fewer are missing than would begin one."""


@dataclass(frozen=True, slots=True)
class ResurrectionPolicy:
    enabled: bool = False
    max_in_flight: int = 3
    hourly_budget: int = 20
    """VMs rebuilt within any hour. Beyond it operations wait, visibly."""
    agent_boot_seconds: float = 300.0
    """A new VM whose agent is not heard by then is fenced, deleted and made anew."""
    fence_seconds: float = 60.0
    cloud_call_seconds: float = 300.0
    agent_call_seconds: float = 30.0
    healthy_seconds: float = 300.0
    """After this long the operation is shown as `unhealthy`; it is still watched, and ends when it is healthy."""
    drain_seconds: float = 300.0
    boot_look_seconds: float = 5.0
    """How often the cloud is asked about a VM whose agent was not heard yet, so that one that died booting is
    replaced without waiting for `agent_boot_seconds`."""
    cloud_calls_max: int = 16
    """Calls in flight at once, per cloud."""
    journal_refresh_seconds: float = 5.0
    """How often a monitor that does not lead reads the journal again."""
    timings_max: int = 60
    """Steps remembered in an operation's record; the events keep them all."""
    retry_first_seconds: float = 1.0
    retry_longest_seconds: float = 120.0
    """Delay before try n of a step: first x 2^(n-1), at most the longest."""
    stray_sweep_seconds: float = 60.0
    """How often the leader looks in the clouds for VMs that no record names, and for how long one must have been left
    over before it is fenced and deleted."""
    stray_sweep_apart_seconds: float = 10.0
    """It also looks after an operation has ended: at the earliest so long after it last did."""
    stray_retry_longest_seconds: float = 3600.0
    """Delay before try n to remove a left-over VM: stray_sweep x 2^(n-1), at most this."""
    operations_max: int = 10_000
    events_max: int = 100_000
    events_max_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class IncidentPolicy:
    after_seconds: float = 0.0
    """How long a deviation must last before it is an incident, by default."""
    container_after_seconds: float = 30.0
    """A container that is restarted and runs again within this time is an event, not an incident."""
    flap_count: int = 5
    flap_window_seconds: float = 600.0
    incidents_max: int = 10_000


@dataclass(frozen=True, slots=True)
class AlertPolicy:
    group_wait_seconds: float = 0.2
    """A notification is sent when for this long nothing more joined its group, so that what happens at once is one
    message and what happens alone is sent at once."""
    group_longest_seconds: float = 5.0
    """… and at the latest after this, however much goes on joining."""
    group_max: int = 1000
    """Incidents in one notification; a group that is full is sent, and the next begins."""
    rows_max: int = 500
    """Incidents listed in a notification; the others are counted."""
    repeat_seconds: float = 3600.0
    """What nobody acknowledged is said again after this; each gap is twice the one before. 0: never."""
    repeat_longest_seconds: float = 86400.0
    per_minute: int = 60
    """Notifications that one channel is given per minute, at most."""
    try_seconds: float = 60.0
    """How long a channel may take for one notification."""
    retry_first_seconds: float = 1.0
    retry_longest_seconds: float = 300.0
    """Delay before try n: first x 2^(n-1), at most the longest, never less than the receiver asks for."""
    circuit_after: int = 3
    """Failures in a row after which a channel counts as failing: an incident on the other channels."""
    give_up_seconds: float = 3 * 86400.0
    """What could not be delivered for this long is counted in a digest instead."""
    backlog_max: int = 500
    """Notifications that wait for one channel; beyond it all that wait are counted in one digest."""
    log_lines: int = 10
    """Of a container's log, in its alert. 0: none."""
    log_lines_seconds: float = 1.0
    """How long an alert waits for them."""
    outbox_max_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LeadershipPolicy:
    ttl_seconds: float = 5.0
    renew_seconds: float = 1.0
    """A leader that could not renew for ttl - 2 x renew stops acting; another may begin after ttl."""


@dataclass(frozen=True, slots=True)
class Policy:
    liveness: LivenessPolicy = field(default_factory=LivenessPolicy)
    meltdown: MeltdownPolicy = field(default_factory=MeltdownPolicy)
    resurrection: ResurrectionPolicy = field(default_factory=ResurrectionPolicy)
    incidents: IncidentPolicy = field(default_factory=IncidentPolicy)
    leadership: LeadershipPolicy = field(default_factory=LeadershipPolicy)
    alerts: AlertPolicy = field(default_factory=AlertPolicy)
    turn_seconds: float = 0.25
    """The monitor's loop turns at least this often, and at once when something was heard that matters."""
