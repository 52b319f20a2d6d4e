"""Following a change until it is done: events as they come, and an end when everything is as it should be.

Law: it ends by itself: well, failed, held back by something only a person can change, or after its patience.
Ctrl-C ends the watching, never the change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from healthmonitor.cli.events_view import event_line
from healthmonitor.cli.failures import CliFailure, ExitCode
from healthmonitor.cli.screen import Screen, duration
from healthmonitor.cli.session import Session
from healthmonitor.cli.status_view import all_good, held, only

LOOK_SECONDS = 0.5
HELD_SECONDS = 5.0
"""A hold must last this long before it ends the following: some end by themselves at once."""
UNREACHABLE_SECONDS = 20.0
GIVE_UP_SECONDS = 3600.0

SHOWN = ("operation.", "disk.", "rollout.", "deployment.", "incident.", "container.", "vm.", "fence.")


def last_sequence(session: Session) -> int:
    events = session.api.get("/v1/events", last=1)["events"]
    return int(events[-1]["sequence"]) if events else 0


def follow_deployment(session: Session, name: str, revision: int, after: int) -> None:
    """Returns when the deployment is whole at `revision` (or, deleted, gone)."""

    def finished(status: Any) -> bool:
        found = only(status, name)
        if revision == 0:
            return not found["deployments"] and not found["instances"]
        deployment = next(iter(found["deployments"]), None)
        if deployment is None:
            raise CliFailure(f"deployment {name} was deleted meanwhile")
        if deployment["revision"] > revision:
            raise CliFailure(
                f"somebody deployed {name} again: it is at revision {deployment['revision']} now",
                ExitCode.FAILED,
                f"resurgam status {name}",
            )
        if deployment["rollout"] == "failed":
            raise CliFailure(
                f"the rollout of {name} failed: {deployment['rollout_error']}",
                ExitCode.FAILED,
                f"`resurgam status {name}` shows which instance; correct the manifest and deploy again",
            )
        return deployment["rollout"] == "done" and all_good(found)

    follow(session, name, finished, after)


def follow(session: Session, name: str, finished: Callable[[Any], bool], after: int) -> None:
    """Prints events until `finished(status)`; CliFailure(HELD_BACK) when a person is needed."""
    began = time.monotonic()
    held_since: float | None = None
    lost_since: float | None = None
    before: float | None = None
    while True:
        try:
            after, before = _print_events(session.screen, session.api.get("/v1/events", after=after), after, before)
            status = session.status()
            lost_since = None
        except CliFailure as failure:
            lost_since = lost_since or time.monotonic()
            if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - lost_since > UNREACHABLE_SECONDS:
                raise
            time.sleep(LOOK_SECONDS)
            continue
        if finished(status):
            session.screen.note(f"done in {duration(time.monotonic() - began)}", "green")
            return
        stuck = held(only(status, name))
        held_since = (held_since or time.monotonic()) if stuck else None
        if held_since is not None and time.monotonic() - held_since > HELD_SECONDS:
            raise CliFailure(f"{name} is held back", ExitCode.HELD_BACK, f"resurgam status {name}", tuple(stuck))
        if time.monotonic() - began > GIVE_UP_SECONDS:
            raise CliFailure(
                f"{name} is not done after {duration(GIVE_UP_SECONDS)}; it goes on without being watched",
                ExitCode.HELD_BACK,
                f"resurgam status {name}",
            )
        time.sleep(LOOK_SECONDS)


def _print_events(screen: Screen, reply: Any, after: int, before: float | None) -> tuple[int, float | None]:
    for event in reply["events"]:
        after = max(after, int(event["sequence"]))
        if screen.as_json or not event["kind"].startswith(SHOWN):
            continue
        screen.err.print(event_line(event, before))
        before = event["at"]
    return after, before
