"""May this lost VM be rebuilt now? If not: which hold, and the sentence that people read.

Law: what holds back says why and what to type. The order of the checks is the order of what a person should know
first: switches, then doubt, then storms, then limits. Whether there is a storm is decided in `core/meltdown.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from healthmonitor.core.policy import ResurrectionPolicy
from healthmonitor.core.records import Hold, Switches
from protocol.ids import DeploymentName, InstanceId

BUDGET_WINDOW_SECONDS = 3600.0
FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class GuardInputs:
    instance: InstanceId
    deployment: DeploymentName
    policy: ResurrectionPolicy
    switches: Switches
    now_unix: float
    group_allows: bool = True  # `resurrection: false` in the manifest
    ignored: bool = False
    maintenance: str = ""  # the window's name, when one is open
    cannot_tell: str = ""
    seen_off_by_cloud: bool = False  # overrides doubts that come from silence
    meltdowns: Mapping[str, str] = field(default_factory=dict)
    rebuilt_at: tuple[float, ...] = ()  # Unix seconds of earlier rebuilds, any order
    in_flight: int = 0  # resurrections that have passed this guard and are not over


@dataclass(frozen=True, slots=True)
class GuardDecision:
    hold: Hold  # NONE: go on
    text: str = ""


GO_ON = GuardDecision(Hold.NONE)


def decide(inputs: GuardInputs) -> GuardDecision:
    for check in (_switched_off, _paused, _maintenance, _doubt, _meltdown, _budget, _concurrency):
        decision = check(inputs)
        if decision is not None:
            return decision
    return GO_ON


def _switched_off(inputs: GuardInputs) -> GuardDecision | None:
    if not inputs.policy.enabled:
        return GuardDecision(
            Hold.DISABLED,
            "resurrection is switched off in the configuration file; set `resurrector: {enabled: true}` and reload,"
            f" or type `resurgam recreate {inputs.instance}`",
        )
    if not inputs.switches.resurrection:
        return GuardDecision(Hold.DISABLED, "resurrection is switched off; type `resurgam resurrection on`")
    if not inputs.group_allows:
        return GuardDecision(
            Hold.DISABLED,
            f"the manifest says `resurrection: false`; type `resurgam recreate {inputs.instance}` to rebuild it",
        )
    if inputs.ignored:
        return GuardDecision(Hold.DISABLED, "a person said that this instance is to be left alone")
    return None


def _paused(inputs: GuardInputs) -> GuardDecision | None:
    if inputs.switches.paused_until <= inputs.now_unix:
        return None
    by = f" by {inputs.switches.paused_by}" if inputs.switches.paused_by else ""
    until = _clock(inputs.switches.paused_until)
    return GuardDecision(Hold.PAUSED, f"paused{by} until {until}; `resurgam resume` ends the pause")


def _maintenance(inputs: GuardInputs) -> GuardDecision | None:
    if not inputs.maintenance:
        return None
    return GuardDecision(Hold.MAINTENANCE, f"maintenance window {inputs.maintenance} is open; it goes on when it ends")


def _doubt(inputs: GuardInputs) -> GuardDecision | None:
    if not inputs.cannot_tell or inputs.seen_off_by_cloud:
        return None
    return GuardDecision(
        Hold.CANNOT_TELL,
        f"{inputs.cannot_tell}; it goes on when the monitor can tell, or when the cloud says it is off",
    )


def _meltdown(inputs: GuardInputs) -> GuardDecision | None:
    if inputs.switches.meltdown_overridden_until > inputs.now_unix:
        return None
    for scope in (FLEET, inputs.deployment):
        if scope in inputs.meltdowns:
            # Not how many: the sentence stays the same while the hold does, so each of a thousand is written down once.
            return GuardDecision(
                Hold.MELTDOWN,
                f"meltdown of {scope}: too many VMs were lost at once; look for the common cause, then `resurgam"
                " meltdown override` lets it go on",
            )
    return None


def _budget(inputs: GuardInputs) -> GuardDecision | None:
    recent = sorted(at for at in inputs.rebuilt_at if at > inputs.now_unix - BUDGET_WINDOW_SECONDS)
    budget = inputs.policy.hourly_budget
    if len(recent) < budget:
        return None
    when = "none may begin"
    if budget > 0:
        when = f"the next may begin at {_clock(recent[len(recent) - budget] + BUDGET_WINDOW_SECONDS)}"
    return GuardDecision(
        Hold.BUDGET,
        f"{len(recent)} VMs were rebuilt within the last hour, as many as the budget of {budget} allows; {when}",
    )


def _concurrency(inputs: GuardInputs) -> GuardDecision | None:
    if inputs.in_flight < inputs.policy.max_in_flight:
        return None
    return GuardDecision(
        Hold.CONCURRENCY,
        f"{inputs.in_flight} resurrections are under way, as many as may be at once"
        f" ({inputs.policy.max_in_flight}); it goes on when one is over",
    )


def _clock(unix_time: float) -> str:
    """A time, not a time left: the sentence stays the same while the hold does, so it is written down once."""
    return datetime.fromtimestamp(unix_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
