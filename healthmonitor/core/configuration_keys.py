"""The configuration's keys that set a field of `Policy`: one row each, read by `configuration.py` and printed as the
tables of docs/configuration.md.

Law: a row names the field it sets; its default is that field's (or the preset's), never a number of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    DURATION = "duration"
    BOOLEAN = "true or false"
    COUNT = "whole number"
    SHARE = "share"
    SIZE = "size"


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    field: str  # of the section's policy
    kind: Kind
    meaning: str
    minimum: float = 0.0
    maximum: float = 86400.0


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    policy: str  # the field of Policy that these keys set
    keys: tuple[Key, ...]


_D, _B, _C, _S, _Z = Kind.DURATION, Kind.BOOLEAN, Kind.COUNT, Kind.SHARE, Kind.SIZE

SECTIONS: tuple[Section, ...] = (
    Section(
        "heartbeat",
        "liveness",
        (
            Key("interval", "heartbeat_interval_seconds", _D, "how often an agent reports; agents are told", 0.1, 600),
            Key("lease", "lease_seconds", _D, "silence after which a VM that does not answer is missing; "
                "3 intervals unless set, at least 2", 0.2, 3600),
        ),
    ),
    Section(
        "liveness",
        "liveness",
        (
            Key("late", "late_seconds", _D, "lateness beyond which a heartbeat renews only as of when it was sent; "
                "half an interval unless set", 0.01, 600),
            Key("suspect_after", "suspect_after_seconds", _D, "silence after which the agent is asked; "
                "1.5 intervals unless set, less than the lease", 0.1, 3600),
            Key("start_grace", "start_grace_seconds", _D, "after the monitor's start, and after the bus came back, "
                "nothing is missing for this long; one lease unless set, and no less", 0.1, 7200),
            Key("ask_timeout", "ask_timeout_seconds", _D, "how long a suspect agent may take to answer", 0.05, 60),
            Key("observe_timeout", "observe_timeout_seconds", _D, "how long the cloud may take to say whether "
                "a VM runs", 0.05, 300),
            Key("loop_lag", "loop_lag_seconds", _D, "when the monitor itself was late by this much, silence before it "
                "proves nothing", 0.05, 60),
            Key("canary_interval", "canary_interval_seconds", _D, "how often the monitor hears itself through the bus",
                0.05, 60),
            Key("canary_lost", "canary_lost_seconds", _D, "its own heartbeat missing for this long: cannot tell",
                0.1, 600),
            Key("mass_share", "mass_share", _S, "share of the fleet that, vanishing within one lease, is not believed"),
            Key("mass_count", "mass_count", _C, "… if it is also at least this many", 1, 100_000),
            Key("stranger_after", "stranger_after_seconds", _D, "an agent of no deployment is reported after "
                "this long"),
            Key("agents_max", "agents_max", _C, "agents remembered; more are refused and reported", 10, 1_000_000),
        ),
    ),
    Section(
        "resurrector",
        "resurrection",
        (
            Key("enabled", "enabled", _B, "whether lost VMs are rebuilt"),
            Key("max_in_flight", "max_in_flight", _C, "VMs rebuilt at the same time", 1, 1000),
            Key("hourly_budget", "hourly_budget", _C, "VMs rebuilt within any hour; beyond it operations wait, visibly",
                1, 100_000),
            Key("agent_boot", "agent_boot_seconds", _D, "a new VM whose agent is not heard by then is made anew", 1),
            Key("fence", "fence_seconds", _D, "how long a proof may take before the instance is shown as unfenced", 1),
            Key("cloud_call", "cloud_call_seconds", _D, "deadline of one call to a cloud", 1),
            Key("agent_call", "agent_call_seconds", _D, "deadline of one request to an agent", 1),
            Key("healthy", "healthy_seconds", _D, "after this long a rebuilt instance is shown as unhealthy", 1),
            Key("drain", "drain_seconds", _D, "how long containers may take to stop before a planned change", 1),
            Key("retry_first", "retry_first_seconds", _D, "delay before the second try of a step; doubles each time",
                0.05, 3600),
            Key("retry_longest", "retry_longest_seconds", _D, "the longest such delay", 0.05, 86400),
            Key("stray_sweep", "stray_sweep_seconds", _D, "how often clouds are searched for VMs that no record names; "
                "one that is left over for so long is fenced and deleted", 5, 86400),
            Key("operations_max", "operations_max", _C, "operations kept at once", 1, 1_000_000),
        ),
    ),
    Section(
        "disks",
        "disks",
        (
            Key("keep_orphans", "keep_orphans_seconds", _D, "how long a disk that no instance uses is kept before it "
                "is deleted, unless `resurgam disks keep` says otherwise", 60, 10 * 365 * 86400),
            Key("filling", "filling_share", _S, "a disk this full is reported as filling"),
            Key("full", "full_share", _S, "a disk this full is reported as full"),
            Key("inodes", "inodes_share", _S, "the same for its inodes"),
            Key("full_within", "full_within_seconds", _D, "a disk that will be full within this, if it goes on growing "
                "as it does, is reported as filling", 60, 365 * 86400),
        ),
    ),
    Section(
        "meltdown",
        "meltdown",
        (
            Key("enabled", "enabled", _B, "whether many losses at once hold resurrection back"),
            Key("window", "window_seconds", _D, "losses within this time count together", 1),
            Key("minimum_count", "minimum_count", _C, "fewer are never a meltdown", 2, 100_000),
            Key("share", "share", _S, "more than this share of a deployment, or of the fleet, is one"),
            Key("maximum_count", "maximum_count", _C, "more than this many are one, whatever the share", 1, 100_000),
            Key("calm", "calm_seconds", _D, "a meltdown ends when for this long fewer are missing", 1),
            Key("settle", "settle_seconds", _D, "nothing is rebuilt sooner than this after its loss was known, so that "
                "what died with it counts", 0, 60),
        ),
    ),
    Section(
        "incidents",
        "incidents",
        (
            Key("after", "after_seconds", _D, "how long a deviation lasts before it is an incident"),
            Key("container_after", "container_after_seconds", _D, "the same for a container that is being restarted"),
            Key("flap_count", "flap_count", _C, "restarts within flap_window that make an incident of their own",
                2, 10_000),
            Key("flap_window", "flap_window_seconds", _D, "see flap_count", 1),
            Key("incidents_max", "incidents_max", _C, "incidents kept", 10, 1_000_000),
        ),
    ),
    Section(
        "alerts",
        "alerts",
        (
            Key("group_wait", "group_wait_seconds", _D, "a notification is sent when for this long nothing more joined "
                "its group", 0, 600),
            Key("group_longest", "group_longest_seconds", _D, "and at the latest after this", 0, 3600),
            Key("group_max", "group_max", _C, "incidents in one notification", 1, 5000),
            Key("rows_max", "rows_max", _C, "incidents listed in a notification; the others are counted", 1, 1000),
            Key("repeat", "repeat_seconds", _D, "what nobody acknowledged is said again after this, then after "
                "twice as long, and so on; 0s: never", 0, 30 * 86400),
            Key("repeat_longest", "repeat_longest_seconds", _D, "the longest such gap", 1, 30 * 86400),
            Key("per_minute", "per_minute", _C, "notifications that one channel is given per minute", 1, 100_000),
            Key("try_timeout", "try_seconds", _D, "how long a channel may take for one notification", 0.1, 600),
            Key("retry_first", "retry_first_seconds", _D, "delay before the second try; doubles each time", 0.05, 3600),
            Key("retry_longest", "retry_longest_seconds", _D, "the longest such delay", 0.05, 86400),
            Key("circuit_after", "circuit_after", _C, "failures in a row after which a channel counts as failing, "
                "which is an incident on the others", 1, 1000),
            Key("give_up", "give_up_seconds", _D, "what could not be delivered for this long is counted in a digest "
                "instead", 60, 30 * 86400),
            Key("backlog_max", "backlog_max", _C, "notifications that wait for one channel; beyond it those that wait "
                "are counted in one digest", 2, 10_000),
            Key("log_lines", "log_lines", _C, "lines of a container's log in its alert; 0: none", 0, 20),
            Key("log_lines_wait", "log_lines_seconds", _D, "how long an alert waits for them", 0, 10),
        ),
    ),
    Section(
        "images",
        "images",
        (
            Key("store_size", "store_max_bytes", _Z, "how large the image store on the bus may become", 1, 10_485_760),
            Key("rate", "rate_bytes", _Z, "how much one VM may load from it in a second, so that many at once leave "
                "room for heartbeats", 1, 10_240),
        ),
    ),
    Section(
        "leadership",
        "leadership",
        (
            Key("ttl", "ttl_seconds", _D, "another monitor takes over when the leader was silent for this long, "
                "seen at most one renew later; at least 3 x renew", 0.3, 600),
            Key("renew", "renew_seconds", _D, "how often the leader renews its lease", 0.1, 200),
        ),
    ),
    Section(
        "events",
        "resurrection",
        (
            Key("keep", "events_max", _C, "events kept in the timeline", 100, 10_000_000),
            Key("keep_size", "events_max_bytes", _Z, "and at most this much", 1, 1_048_576),
        ),
    ),
)  # fmt: skip
"""Sizes are bounded in MiB, everything else in its own unit (seconds, pieces)."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "site": {},
    "small": {
        "heartbeat": {"interval": 2.0, "lease": 6.0},
        "resurrector": {"max_in_flight": 2, "retry_longest": 60.0},
        "incidents": {"container_after": 15.0},
    },
    "test": {
        "heartbeat": {"interval": 0.5, "lease": 2.0},
        "liveness": {
            "ask_timeout": 0.5,
            "observe_timeout": 1.0,
            "canary_interval": 0.25,
            "canary_lost": 1.0,
            "stranger_after": 5.0,
        },
        "resurrector": {"max_in_flight": 3, "retry_first": 0.2, "retry_longest": 2.0, "hourly_budget": 1000},
        "leadership": {"ttl": 1.5, "renew": 0.25},
        "alerts": {"retry_first": 0.2, "retry_longest": 5.0},
        "incidents": {"container_after": 5.0},
        "meltdown": {"calm": 10.0, "window": 60.0},
    },
}
"""Preset → section → key → value; `site` is Policy's own defaults. Durations are in seconds."""
PRESET_MEANING: Mapping[str, str] = {
    "site": "the default: a heartbeat every 5 s, a VM missing after 15 s; up to thousands of VMs",
    "small": "up to some 50 VMs: a heartbeat every 2 s, a VM missing after 6 s",
    "test": "for trying things out: everything in a second or two, and no careful budget",
}
