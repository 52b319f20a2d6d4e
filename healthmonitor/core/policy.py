"""Every limit of the monitor, named, with unit and formula. The configuration file sets these; the rest of the code
has no number of its own.

Law: frozen; a reload makes a new Policy and swaps it between two turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.ids import CloudName
from protocol.spec import IMAGE_RATE_BYTES


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
    bosh_lease_seconds: float = 60.0
    bosh_suspect_after_seconds: float = 45.0
    """The same for a real bosh-agent, where these are longer. Nobody can tell it how often to beat: it does every 30 s,
    and BOSH's own monitor counts it as timed out after 60 s. It is asked after 1.5 of its intervals."""
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
    asks_per_second: float = 1000.0
    """Questions begun in a second, over all agents: a bus that says at once that nobody listens would otherwise be
    asked as fast as one core can, and the monitor would hear nobody."""
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
    settle_seconds: float = 0.2
    """Nothing is rebuilt sooner than this after its loss was known: what died with it becomes suspect in that time (a
    bus sees the connections of one host end within milliseconds), and is waited for (Policy.brewing_seconds)."""


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
    copy_seconds: float = 7 * 86400.0
    """For copying a disk and comparing the copy; shown while it goes on, and ended when its VM is lost."""
    progress_seconds: float = 5.0
    """How often what takes long says in the timeline how far it is, at most."""
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
class ImagePolicy:
    store_max_bytes: int = 8 * 1024**3
    """Of the image store on the bus, over all replicas' one copy."""
    rate_bytes: int = IMAGE_RATE_BYTES
    """A second, that one VM may load from the image store."""


@dataclass(frozen=True, slots=True)
class DiskPolicy:
    keep_orphans_seconds: float = 5 * 86400.0
    """How long a disk that no instance uses is kept, unless a person says otherwise; then it is deleted."""
    look_seconds: float = 60.0
    """How often the leader looks for orphans whose time is over."""
    filling_share: float = 0.85
    full_share: float = 0.95
    inodes_share: float = 0.9
    """Of a disk's space, and of its inodes, in use: from here on it is said."""
    full_within_seconds: float = 86400.0
    """A disk that will be full within this at its present growth is said to be filling, however full it is now."""
    sample_seconds: float = 300.0
    """How far apart what growth is worked out from; see SAMPLES_MAX in core/disk_use.py."""
    snapshot_tries_seconds: float = 3600.0
    snapshot_mib_per_second: float = 32.0
    """A snapshot that is not there after `snapshot_tries_seconds`, and the time that its size takes at this pace, is
    given up."""
    grow_apart_seconds: float = 600.0
    """A disk that grows by itself (core/disk_growth.py) does so at most so often."""

    def snapshot_seconds(self, size_mib: int) -> float:
        return self.snapshot_tries_seconds + size_mib / self.snapshot_mib_per_second


@dataclass(frozen=True, slots=True)
class LeadershipPolicy:
    ttl_seconds: float = 3.0
    renew_seconds: float = 0.5
    """A leader that could not renew for ttl - 2 x renew stops acting; another may begin after ttl. It sees a renewal at
    most `renew` after it was written, so a killed leader is followed after at most ttl + renew, and a write."""
    presence_seconds: float = 1.0
    """How often a monitor tells the others that it is there."""
    present_seconds: float = 3.5
    """A monitor that was not heard for so long is not counted on: three of the above, and some."""
    forgotten_seconds: float = 86400.0
    """A monitor that was not heard for so long is not missed any more."""
    move_after_seconds: float = 9.0
    """A monitor that could not reach the lease for so long tries another of the bus's servers: longer than JetStream
    needs to elect another leader of a bucket (4 to 9 s)."""
    monitors_max: int = 16
    aside_longest_seconds: float = 86400.0
    """For how long one may step down, at most."""


@dataclass(frozen=True, slots=True)
class SparePolicy:
    """VMs that are booted before anybody needs them."""

    per_size: Mapping[CloudName, int] = field(default_factory=dict)
    """In each cloud: how many for each stemcell and size of VM that deployments ask for there."""
    pools_max: int = 50
    """Stemcells and sizes, over all clouds, that have spares; those of the most instances first."""
    making_max: int = 2
    """Made at once, so that filling up is no storm of its own."""
    look_seconds: float = 1.0
    images_seconds: float = 900.0
    """How long a spare may take to get the images that it is told to have."""
    images_max: int = 200
    """So many of them, at most; as many as an agent takes (agent/image_tasks.py)."""


@dataclass(frozen=True, slots=True)
class Policy:
    liveness: LivenessPolicy = field(default_factory=LivenessPolicy)
    meltdown: MeltdownPolicy = field(default_factory=MeltdownPolicy)
    resurrection: ResurrectionPolicy = field(default_factory=ResurrectionPolicy)
    incidents: IncidentPolicy = field(default_factory=IncidentPolicy)
    leadership: LeadershipPolicy = field(default_factory=LeadershipPolicy)
    alerts: AlertPolicy = field(default_factory=AlertPolicy)
    images: ImagePolicy = field(default_factory=ImagePolicy)
    disks: DiskPolicy = field(default_factory=DiskPolicy)
    spares: SparePolicy = field(default_factory=SparePolicy)
    turn_seconds: float = 0.25
    """The monitor's loop turns at least this often, and at once when something was heard that matters."""

    @property
    def brewing_seconds(self) -> float:
        """How long a loss waits for the verdict on others that are suspect, when with them it would be a meltdown: the
        longer of what an observation takes and of how far apart leases end (one interval), and one question."""
        liveness = self.liveness
        return max(liveness.heartbeat_interval_seconds, liveness.observe_timeout_seconds) + liveness.ask_timeout_seconds
