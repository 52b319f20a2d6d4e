"""Commands that act on instances and on the monitor's switches."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from healthmonitor.cli.screen import parse_duration
from healthmonitor.cli.session import Session, session_of

act = typer.Typer()
fence = typer.Typer(help="Proofs that a lost VM can no longer write.", no_args_is_help=True)
resurrection = typer.Typer(help="Whether lost VMs are rebuilt.", no_args_is_help=True)
meltdown = typer.Typer(help="What to do when many VMs are lost at once.", no_args_is_help=True)

Instance = Annotated[str, typer.Argument(metavar="INSTANCE", help="shop/db/0, or db/0 where that is unambiguous.")]
Containers = Annotated[list[str] | None, typer.Argument(metavar="[CONTAINER]...", help="Only these containers.")]
Because = Annotated[str, typer.Option("--because", help="Why; kept with the event.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without being asked.")]


@act.command()
def start(context: typer.Context, instance: Instance, containers: Containers = None, because: Because = "") -> None:
    """Start an instance, or containers of it, that a person stopped; also ends `ignore`."""
    _act(session_of(context), "start", instance, containers, because)


@act.command()
def stop(
    context: typer.Context,
    instance: Instance,
    containers: Containers = None,
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Stop an instance, or containers of it, in reverse order; they stay stopped until started."""
    session = session_of(context)
    full = session.instance(instance)
    what = ", ".join(containers) if containers else "every container"
    session.screen.confirm(f"Stop {what} of {full}?", yes)
    _act(session, "stop", full, containers, because)


@act.command()
def restart(
    context: typer.Context,
    instance: Instance,
    containers: Containers = None,
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Restart the containers of an instance, and whatever depends on them."""
    session = session_of(context)
    full = session.instance(instance)
    session.screen.confirm(f"Restart {', '.join(containers) if containers else 'every container'} of {full}?", yes)
    _act(session, "restart", full, containers, because)


@act.command()
def recreate(context: typer.Context, instance: Instance, because: Because = "", yes: Yes = False) -> None:
    """Replace the VM of an instance by a new one with the same disks."""
    session = session_of(context)
    full = session.instance(instance)
    session.screen.confirm(f"Replace the VM of {full}? Its containers are down meanwhile; its disks are kept.", yes)
    _act(session, "recreate", full, None, because)


@act.command()
def ignore(context: typer.Context, instance: Instance, because: Because = "") -> None:
    """Leave an instance alone, whatever happens to it, until `resurgam start`."""
    _act(session_of(context), "ignore", instance, None, because)


@act.command()
def pause(
    context: typer.Context,
    length: Annotated[str, typer.Option("--for", help="90s, 30m, 2h; without it until `resurgam resume`.")] = "",
    because: Because = "",
) -> None:
    """Rebuild no lost VM for a while. What people ask for themselves goes on."""
    body: dict[str, Any] = {"because": because}
    if length:
        body["seconds"] = parse_duration(length)
    print_answer(session_of(context), session_of(context).api.post("/v1/switches/pause", body))


@act.command()
def resume(context: typer.Context, because: Because = "") -> None:
    """End a pause."""
    print_answer(session_of(context), session_of(context).api.post("/v1/switches/resume", {"because": because}))


@fence.command("confirm")
def fence_confirm(
    context: typer.Context,
    instance: Instance,
    because: Annotated[str, typer.Option("--because", help="Who looked, and what was seen. Required.")],
    yes: Yes = False,
) -> None:
    """Vouch that the old VM of an instance is off for good, where the cloud could not prove it.

    If that is not so, two VMs may write to one disk and destroy what is on it.
    """
    session = session_of(context)
    full = session.instance(instance)
    session.screen.confirm(
        f"You vouch that the old VM of {full} is switched off and can never write again. Is that so?", yes
    )
    print_answer(session, session.api.post("/v1/fence/confirm", {"instance": full, "because": because}))


@resurrection.command("on")
def resurrection_on(context: typer.Context, because: Because = "") -> None:
    """Rebuild lost VMs (the configuration must allow it too)."""
    session = session_of(context)
    print_answer(session, session.api.post("/v1/switches/resurrection", {"enabled": True, "because": because}))


@resurrection.command("off")
def resurrection_off(context: typer.Context, because: Because = "") -> None:
    """Rebuild nothing; lost VMs are still reported."""
    session = session_of(context)
    print_answer(session, session.api.post("/v1/switches/resurrection", {"enabled": False, "because": because}))


@meltdown.command("override")
def meltdown_override(
    context: typer.Context,
    length: Annotated[str, typer.Option("--for", help="For how long: 30m, 2h.")] = "30m",
    because: Because = "",
    yes: Yes = False,
) -> None:
    """Rebuild although many VMs are lost at once."""
    session = session_of(context)
    seconds = parse_duration(length)
    session.screen.confirm(f"Rebuild lost VMs for {length} in spite of the meltdown protection?", yes)
    print_answer(session, session.api.post("/v1/switches/meltdown", {"seconds": seconds, "because": because}))


def _act(session: Session, action: str, instance: str, containers: list[str] | None, because: str) -> None:
    full = session.instance(instance)
    body = {"containers": containers or [], "because": because}
    print_answer(session, session.api.post(f"/v1/instances/{full}/{action}", body))


def print_answer(session: Session, reply: Any) -> None:
    if session.screen.as_json:
        session.screen.json(reply)
        return
    session.screen.say(reply["text"])
    if reply.get("next"):
        session.screen.say(f"next:  {reply['next']}", "dim")
